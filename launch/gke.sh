#!/usr/bin/env bash
# The recipe on Google Kubernetes Engine: a JobSet with one Job a TPU slice and one pod a host. A pod that fails or is preempted
# ends the whole set, which starts again and goes on from its newest checkpoint.
#
#   launch/gke.sh [--dry-run] apply [COMMAND...]   make and submit the manifest (default command: launch/zephyr.sh)
#   launch/gke.sh [--dry-run] status | logs [all] | delete
# apply --dry-run prints the manifest and nothing else: launch/gke.sh --dry-run apply > job.yaml
#
# The cluster needs the JobSet controller and a node pool of the slice's machines a slice; launch/README.md says how.
#
# Environment
#   NAME               of the JobSet, such as zephyr
#   IMAGE              container with this checkout in its working directory (launch/Dockerfile makes one)
#   ACCELERATOR        v5litepod-16, v6e-8, v5p-32, ...: slice as Google spells it; sizes and labels follow from it
#   OUT                gs://bucket/name: pods have no disk that outlives them
#   SLICES             how many slices (1)
#   SPOT               1: on spot node pools
#   RESTARTS           how often the set may start again (100)
#   CARDS              passed on to the command when set
#   SECRET             a Kubernetes secret whose entries (HF_TOKEN, ...) become environment variables
#   SERVICE_ACCOUNT    Kubernetes service account that may write to the bucket (default)
#   NAMESPACE          default: kubectl's
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/slice.sh

verb='' SLICES=${SLICES:-1} RESTARTS=${RESTARTS:-100}
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) DRY_RUN=1 ;;
    -*) refuse "'$1' is no option here. There is --dry-run." ;;
    *) if [ -z "$verb" ]; then verb=$1; else break; fi ;;
  esac
  shift
done
case $verb in apply | status | logs | delete) ;; *)
  refuse "'$verb' is nothing that gke.sh does. It is one of: apply status logs delete." ;;
esac
check_name NAME "${NAME:-}"
kube=(kubectl) && [ -z "${NAMESPACE:-}" ] || kube+=("--namespace=$NAMESPACE")

text() { # a word as a YAML string; JSON's are
  local word=${1//\\/\\\\}
  printf '"%s"' "${word//\"/\\\"}"
}

manifest() { # COMMAND...
  local word
  cat << EOF
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
  annotations:
    # One Job has one node pool to itself, and a node pool is a slice.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $RESTARTS
  replicatedJobs:
  - name: slice
    replicas: $SLICES
    template:
      spec:
        parallelism: $HOSTS
        completions: $HOSTS
        completionMode: Indexed
        backoffLimit: 0
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 150 # schedule.grace_seconds is 120: time to save, where the node has it (spot: 25 s)
            hostNetwork: true
            dnsPolicy: ClusterFirstWithHostNet
            serviceAccountName: ${SERVICE_ACCOUNT:-default}
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $LABEL
              cloud.google.com/gke-tpu-topology: $GRID
EOF
  [ -z "${SPOT:-}" ] || cat << EOF
              cloud.google.com/gke-spot: "true"
            tolerations:
            - key: cloud.google.com/gke-spot
              operator: Equal
              value: "true"
              effect: NoSchedule
EOF
  cat << EOF
            containers:
            - name: train
              image: $(text "$IMAGE")
              command:
EOF
  for word in launch/host.sh exec "$@"; do echo "              - $(text "$word")"; done
  cat << EOF
              # GKE itself sets TPU_WORKER_ID and TPU_WORKER_HOSTNAMES and, for several slices, MEGASCALE_*, by which JAX
              # finds the other hosts.
              env:
              - name: OUT
                value: $(text "$OUT")
              - name: TPU_CHIP
                value: $KIND
              - name: JAX_PLATFORMS # a pod without its TPU ends, instead of training on the CPU
                value: tpu,cpu
EOF
  [ -z "${CARDS:-}" ] || printf '              - name: CARDS\n                value: %s\n' "$(text "$CARDS")"
  [ -z "${SECRET:-}" ] || printf '              envFrom:\n              - secretRef:\n                  name: %s\n' "$SECRET"
  cat << EOF
              ports:
              - containerPort: 8471 # TPU hosts among themselves
              - containerPort: 8482 # JAX's coordinator
              resources:
                limits:
                  google.com/tpu: $((CHIPS / HOSTS))
              volumeMounts:
              - name: shared-memory
                mountPath: /dev/shm
            volumes:
            - name: shared-memory
              emptyDir:
                medium: Memory
EOF
}

case $verb in
  apply)
    [ -n "${ACCELERATOR:-}" ] || refuse "ACCELERATOR is not set. It says which slice, such as ACCELERATOR=v5litepod-16 $0 apply"
    [ -n "${IMAGE:-}" ] || refuse "IMAGE is not set. It must be a container with this checkout, which launch/Dockerfile makes."
    check_count SLICES "$SLICES" && check_count RESTARTS "$RESTARTS"
    check_bucket "${OUT:-}" "pods have no disk that outlives them"
    slice_of "$ACCELERATOR"
    case $KIND in
      v4) LABEL=tpu-v4-podslice ;; v5e) LABEL=tpu-v5-lite-podslice ;; v5p) LABEL=tpu-v5p-slice ;; v6e) LABEL=tpu-v6e-slice ;;
    esac
    [ $# -gt 0 ] || set -- launch/zephyr.sh
    for word in "$IMAGE" "$OUT" "${CARDS:-}" "$@"; do
      case $word in *[[:cntrl:]]*) refuse "$(quoted "$word") holds a line break or tab. Put what it says into a file." ;; esac
    done
    made=$(manifest "$@")
    if [ -n "$DRY_RUN" ]; then printf '%s\n' "$made"; else printf '%s\n' "$made" | "${kube[@]}" apply --filename=-; fi ;;
  status) act "${kube[@]}" get jobset "$NAME" && act "${kube[@]}" get pods "--selector=jobset.sigs.k8s.io/jobset-name=$NAME" ;;
  logs)
    selector=jobset.sigs.k8s.io/jobset-name=$NAME
    [ "${1:-}" = all ] || selector+=,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0
    act "${kube[@]}" logs "--selector=$selector" --tail=50 --prefix --max-log-requests=512 ;;
  delete) act "${kube[@]}" delete jobset "$NAME" ;;
esac
