#!/usr/bin/env bash
# Cloud TPU VMs from your own machine, by gcloud: one slice or several, on demand or spot. Nothing runs here but this file.
#
#   launch/tpu_vm.sh [--dry-run] create [--spot] [--slices N] [-- gcloud flags]   ask for it and wait until it is there
#   launch/tpu_vm.sh [--dry-run] install             this commit, uv, Python and the package, on every host
#   launch/tpu_vm.sh [--dry-run] run [COMMAND...]    start it on every host, in the background (default: launch/zephyr.sh)
#   launch/tpu_vm.sh [--dry-run] auto [--spot] [--slices N] [COMMAND...]   create, install and run; again after every
#                                                    preemption, until the command has ended well; then delete
#   launch/tpu_vm.sh [--dry-run] logs [WORKER|all] [-f]    the end of a worker's log (default: worker 0)
#   launch/tpu_vm.sh [--dry-run] fetch [PART] [FOLDER]     copy $OUT-PART here (default: hf, the exported model)
#   launch/tpu_vm.sh [--dry-run] status | stop | delete
#
# Environment
#   NAME, ZONE           of the slice, such as zephyr and us-west4-a
#   PROJECT              Google Cloud project (default: gcloud's)
#   ACCELERATOR          v5litepod-8, v6e-16, v5p-8, v4-32, ...: needed by create, run and auto
#   RUNTIME              software version of the VMs (default: by kind of chip)
#   OUT                  where runs go: gs://bucket/name; with one host and `run`, a local path will do
#   CARDS, LIBTPU_INIT_ARGS, XLA_FLAGS   passed on to the command when set
#   ENV_FILE             file of NAME=VALUE lines (HF_TOKEN, WANDB_API_KEY) that install copies to every host
#   GIT                  clone from this address instead of copying this checkout's commit
#   SPOT, SLICES         as the options
#   QUEUE=no             ask for the VMs at once, not by a queued resource; an error where there is no room
#   NODE                 slice whose worker logs are shown (default 0)
#   POLL, RETRIES        seconds between looks (60); failures without a preemption that auto tries again (3)
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/slice.sh

VERBS="create install run auto logs fetch status stop delete"
verb='' SPOT=${SPOT:-} SLICES=${SLICES:-1} QUEUE=${QUEUE:-yes} POLL=${POLL:-60} RETRIES=${RETRIES:-3} OUT=${OUT:-}
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) DRY_RUN=1 ;;
    --spot) SPOT=1 ;;
    --slices) SLICES=${2:-} && { [ $# -eq 1 ] || shift; } ;;
    --) shift && break ;;
    -*) [ "$verb" = logs ] && break; refuse "'$1' is no option here. There are --dry-run, --spot and --slices N." ;;
    *) if [ -z "$verb" ]; then verb=$1; else break; fi ;;
  esac
  shift
done
case " $VERBS " in *" ${verb:-none} "*) ;; *) refuse "'$verb' is nothing that tpu_vm.sh does. It is one of: $VERBS." ;; esac
check_name NAME "${NAME:-}"
[ -n "${ZONE:-}" ] || refuse "ZONE is not set. It must be a zone that has your chips, such as ZONE=us-west4-a $0 $verb"
check_count SLICES "$SLICES" && check_count RETRIES "$RETRIES"
[ "$QUEUE" != no ] || [ "$SLICES" = 1 ] || refuse "SLICES is $SLICES and QUEUE=no. Several slices need a queued resource."

where=("--zone=$ZONE") && [ -z "${PROJECT:-}" ] || where+=("--project=$PROJECT")
if [ "$QUEUE" = no ]; then
  group=(gcloud compute tpus tpu-vm) first=(--worker=0) every=(--worker=all) force=() format='value(state)'
else
  group=(gcloud compute tpus queued-resources) first=(--node=0 --worker=0) every=(--node=all --worker=all)
  force=(--force) format='value(state.state)'
fi
on() { # COMMAND WORKERS...: by ssh
  local command=$1 && shift
  act "${group[@]}" ssh "$NAME" "${where[@]}" "$@" "--command=$command"
}

case $verb in create | run | auto)
  [ -n "${ACCELERATOR:-}" ] || refuse "ACCELERATOR is not set. It says which slice, such as ACCELERATOR=v5litepod-8 $0 $verb"
  asked=${RUNTIME:-} && slice_of "$ACCELERATOR" && RUNTIME=${asked:-$RUNTIME} ;;
esac
case $verb in run | auto)
  [ $# -gt 0 ] || set -- launch/zephyr.sh
  case $1 in *zephyr.sh)
    [ "$verb" != auto ] || check_bucket "$OUT" "a preempted VM takes its disk with it"
    [ $((HOSTS * SLICES)) = 1 ] || check_bucket "$OUT" "$ACCELERATOR times $SLICES is $((HOSTS * SLICES)) hosts" ;;
  esac
  settings=("TPU_CHIP=$KIND" "JAX_PLATFORMS=tpu,cpu") # no TPU is an error then, not a slow run on the CPU
  for name in OUT CARDS LIBTPU_INIT_ARGS XLA_FLAGS; do [ -z "${!name:-}" ] || settings+=("$name=${!name}"); done
  command="cd zephyr-jax && $(quoted env "${settings[@]}" launch/host.sh start "$@")"
  ask="cd zephyr-jax/launch 2> /dev/null && cd .. && $(quoted env "${settings[@]}" launch/host.sh state "$@") || echo none" ;;
esac

create() { # gcloud flags...
  local kind=("--accelerator-type=$ACCELERATOR") nodes=("--node-id=$NAME")
  [ -z "$SPOT" ] || kind+=(--spot)
  [ "$SLICES" = 1 ] || nodes=("--node-count=$SLICES" "--node-prefix=$NAME")
  if [ "$QUEUE" = no ]; then
    act "${group[@]}" create "$NAME" "${where[@]}" "${kind[@]}" "--version=$RUNTIME" "$@"
  else
    act "${group[@]}" create "$NAME" "${where[@]}" "${kind[@]}" "--runtime-version=$RUNTIME" "${nodes[@]}" "$@"
  fi
}

look() { # sets state: gcloud's word, NONE, or UNKNOWN where gcloud could not say
  if [ -n "$DRY_RUN" ]; then act "${group[@]}" describe "$NAME" "${where[@]}" "--format=$format" && state=ACTIVE && return; fi
  if ! state=$("${group[@]}" describe "$NAME" "${where[@]}" "--format=$format" 2>&1); then
    case $state in *NOT_FOUND* | *"not found"*) state=NONE ;; *) note "$state" && state=UNKNOWN ;; esac
  fi
}

install() {
  local archive=zephyr-jax.tar.gz unpack
  if [ -n "${GIT:-}" ]; then
    unpack="rm -rf zephyr-jax && $(quoted git clone --quiet "$GIT" zephyr-jax)"
    unpack+=" && git -C zephyr-jax checkout --quiet $(git rev-parse HEAD)"
  else
    [ -z "$(git status --porcelain)" ] || note "what is not committed is not copied; the hosts get $(git rev-parse --short HEAD)"
    act git archive --format=tar.gz "--output=${TMPDIR:-/tmp}/$archive" HEAD || return
    act "${group[@]}" scp "${TMPDIR:-/tmp}/$archive" "$NAME:" "${where[@]}" "${every[@]}" || return
    unpack="mkdir -p zephyr-jax && tar -xzf $archive -C zephyr-jax"
  fi
  on "$unpack && zephyr-jax/launch/host.sh install" "${every[@]}" || return
  [ -z "${ENV_FILE:-}" ] || act "${group[@]}" scp "$ENV_FILE" "$NAME:zephyr-jax/.env" "${where[@]}" "${every[@]}"
}

delete() { act "${group[@]}" delete "$NAME" "${where[@]}" ${force[@]+"${force[@]}"} --quiet; }
stop() { on "zephyr-jax/launch/host.sh stop" "${every[@]}"; }

look_at_command() { # sets progress: as host.sh state, or unreachable
  if [ -n "$DRY_RUN" ]; then on "$ask" "${first[@]}" && progress="ended 0" && return; fi
  progress=$(on "$ask" "${first[@]}" 2> /dev/null | tail -n 1) || progress=unreachable
}

auto() { # knows nothing but the count of failures: killed and started again, it goes on
  local failures=0 before=''
  if [ -n "$DRY_RUN" ]; then create && install && stop && on "$command" "${every[@]}"; fi
  while true; do
    look && progress=''
    case $state in ACTIVE | READY) look_at_command ;; esac
    [ "$before" = "$state $progress" ] || note "slice $state${progress:+, command $progress}"
    before="$state $progress"
    case $state,$progress in
      NONE,*) failures=0 && create ;;
      FAILED,* | SUSPENDED,* | PREEMPTED,* | TERMINATED,* | STOPPED,*) delete && continue ;;
      *,"ended 0") delete && note "done; the runs are at $OUT-*" && return ;;
      *,none) { install && stop && on "$command" "${every[@]}"; } || failures=$((failures + 1)) ;;
      *,ended* | *,lost) failures=$((failures + 1))
        [ "$failures" -gt "$RETRIES" ] || { stop && on "$command" "${every[@]}"; } || note "trying again" ;;
    esac
    if [ "$failures" -gt "$RETRIES" ]; then
      note "the command failed $failures times without a preemption. Read why: $0 logs. The slice still costs: $0 delete"
      exit 1
    fi
    sleep "$POLL"
  done
}

case $verb in
  create)
    create "$@"
    while look && case $state in ACTIVE | READY) false ;; FAILED | SUSPENDED | PREEMPTED | NONE) refuse \
      "The slice is $state. Try another zone or --spot, after: $0 delete" ;; esac; do note "$state" && sleep "$POLL"; done ;;
  install) install ;;
  run) on "$command" "${every[@]}" ;;
  auto) auto ;;
  logs)
    worker=${1:-0} follow='' node=${NODE:-0}
    case "$*" in *-f) follow=' -f' && worker=${1/#-f/0} ;; esac
    [ "$worker" != all ] || node=${NODE:-all}
    [ "$QUEUE" = no ] || node_flag="--node=$node"
    on "zephyr-jax/launch/host.sh log$follow" ${node_flag+"$node_flag"} "--worker=$worker" ;;
  fetch)
    case $OUT in
      '') refuse "OUT is not set. It must say where the runs are, as it did for run: OUT=gs://my-bucket/zephyr-7b $0 fetch" ;;
      gs://*) act gcloud storage cp --recursive "$OUT-${1:-hf}" "${2:-.}" ;;
      *) act "${group[@]}" scp --recurse "$NAME:zephyr-jax/$OUT-${1:-hf}" "${2:-.}" "${where[@]}" "${first[@]}" ;;
    esac ;;
  status) act "${group[@]}" describe "$NAME" "${where[@]}" && on "zephyr-jax/launch/host.sh state" "${every[@]}" ;;
  stop) stop ;;
  delete) delete ;;
esac
