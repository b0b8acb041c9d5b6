#!/usr/bin/env bash
# The Zephyr pipeline on Google Kubernetes Engine: a JobSet with one Job per TPU slice and one pod per host. If a pod fails or is
# preempted, the JobSet restarts and the command resumes from its newest checkpoint.
#
#   launch/gke.sh [--dry-run] apply [COMMAND...]   create and submit the manifest (default command: launch/zephyr.sh)
#   launch/gke.sh [--dry-run] status | logs [all] | delete
# apply with --dry-run prints only the manifest: launch/gke.sh --dry-run apply > job.yaml
#
# The cluster needs the JobSet controller and one node pool per slice; see launch/README.md.
#
# Environment
#   NAME               name of the JobSet, such as zephyr
#   IMAGE              container image with this checkout in its working directory (launch/Dockerfile builds one)
#   ACCELERATOR        Google Cloud accelerator type: v5litepod-16, v6e-8, v5p-32, ...; sizes and labels are derived from it
#   OUT                gs://bucket/name: pods have no persistent disk
#   SLICES             number of slices (1)
#   SPOT               1: use spot node pools
#   RESTARTS           maximum number of restarts of the JobSet (100)
#   CARDS              passed to the command if set
#   SECRET             Kubernetes secret whose entries (HF_TOKEN, ...) become environment variables
#   SERVICE_ACCOUNT    Kubernetes service account that may write to the bucket (default)
#   NAMESPACE          Kubernetes namespace (default: kubectl's)
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/slice.sh

action='' SLICES=${SLICES:-1} RESTARTS=${RESTARTS:-100}
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) DRY_RUN=1 ;;
    -*) refuse "Unknown option '$1'. Expected --dry-run." ;;
    *) if [ -z "$action" ]; then action=$1; else break; fi ;;
  esac
  shift
done
case $action in apply | status | logs | delete) ;; *)
  refuse "Unknown action '$action'. Expected one of: apply status logs delete." ;;
esac
check_name NAME "${NAME:-}"
kube=(kubectl) && [ -z "${NAMESPACE:-}" ] || kube+=("--namespace=$NAMESPACE")

text() { # WORD: prints it as a YAML string in JSON's syntax
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
    # Each Job gets its own node pool, which is one slice.
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
            terminationGracePeriodSeconds: 150 # schedule.grace_seconds (120) and a margin, to save (spot nodes: 25 s)
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
              # GKE sets TPU_WORKER_ID and TPU_WORKER_HOSTNAMES and, for several slices, MEGASCALE_*; JAX finds the other
              # hosts by them.
              env:
              - name: OUT
                value: $(text "$OUT")
              - name: TPU_CHIP
                value: $KIND
              - name: JAX_PLATFORMS # a pod without a TPU fails instead of training on the CPU
                value: tpu,cpu
EOF
  [ -z "${CARDS:-}" ] || printf '              - name: CARDS\n                value: %s\n' "$(text "$CARDS")"
  [ -z "${SECRET:-}" ] || printf '              envFrom:\n              - secretRef:\n                  name: %s\n' "$SECRET"
  cat << EOF
              ports:
              - containerPort: 8471 # between TPU hosts
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

case $action in
  apply)
    [ -n "${ACCELERATOR:-}" ] || refuse "ACCELERATOR is not set. Set the accelerator type: ACCELERATOR=v5litepod-16 $0 apply"
    [ -n "${IMAGE:-}" ] || refuse "IMAGE is not set. Set it to a container image with this checkout (see launch/Dockerfile)."
    check_count SLICES "$SLICES" && check_count RESTARTS "$RESTARTS"
    check_bucket "${OUT:-}" "pods have no persistent disk"
    slice_of "$ACCELERATOR"
    case $KIND in
      v4) LABEL=tpu-v4-podslice ;; v5e) LABEL=tpu-v5-lite-podslice ;; v5p) LABEL=tpu-v5p-slice ;; v6e) LABEL=tpu-v6e-slice ;;
    esac
    [ $# -gt 0 ] || set -- launch/zephyr.sh
    for word in "$IMAGE" "$OUT" "${CARDS:-}" "$@"; do
      case $word in *[[:cntrl:]]*) refuse "$(quoted "$word") contains a line break or tab. Put the value into a file." ;; esac
    done
    rendered=$(manifest "$@")
    if [ -n "$DRY_RUN" ]; then printf '%s\n' "$rendered"; else printf '%s\n' "$rendered" | "${kube[@]}" apply --filename=-; fi ;;
  status) act "${kube[@]}" get jobset "$NAME" && act "${kube[@]}" get pods "--selector=jobset.sigs.k8s.io/jobset-name=$NAME" ;;
  logs)
    selector=jobset.sigs.k8s.io/jobset-name=$NAME
    [ "${1:-}" = all ] || selector+=,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0
    act "${kube[@]}" logs "--selector=$selector" --tail=50 --prefix --max-log-requests=512 ;;
  delete) act "${kube[@]}" delete jobset "$NAME" ;;
esac
