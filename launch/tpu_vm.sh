#!/usr/bin/env bash
# Cloud TPU VMs from your machine, with gcloud: one slice or several, on demand or spot.
#
#   launch/tpu_vm.sh [--dry-run] create [--spot] [--slices N] [-- gcloud flags]   request the slice and wait until it exists
#   launch/tpu_vm.sh [--dry-run] install             copy this commit to every host; install uv, Python and the package
#   launch/tpu_vm.sh [--dry-run] run [COMMAND...]    start the command on every host in the background (default: launch/zephyr.sh)
#   launch/tpu_vm.sh [--dry-run] auto [--spot] [--slices N] [COMMAND...]   create, install and run; again after every
#                                                    preemption, until the command succeeds; then delete
#   launch/tpu_vm.sh [--dry-run] logs [WORKER|all] [-f]    print the end of a worker's log (default: worker 0)
#   launch/tpu_vm.sh [--dry-run] fetch [PART] [FOLDER]     copy $OUT-PART to this machine (default: hf, the exported model)
#   launch/tpu_vm.sh [--dry-run] status | stop | delete
#
# Environment
#   NAME, ZONE           name and zone of the slice, such as zephyr and us-west4-a
#   PROJECT              Google Cloud project (default: gcloud's)
#   ACCELERATOR          Google Cloud accelerator type: v5litepod-8, v6e-16, v5p-8, v4-32, ...; required by create, run and auto
#   RUNTIME              software version of the VMs (default: by chip)
#   OUT                  prefix of the outputs: gs://bucket/name; a local path works with one host and `run`
#   CARDS, LIBTPU_INIT_ARGS, XLA_FLAGS   passed to the command if set
#   ENV_FILE             file of NAME=VALUE lines (HF_TOKEN, WANDB_API_KEY) that install copies to every host
#   GIT                  clone from this address instead of copying the commit of this checkout
#   SPOT, SLICES         same as the options
#   QUEUE=no             create the VMs directly instead of with a queued resource; an error if capacity is missing
#   NODE                 slice whose worker logs are printed (default 0)
#   POLL, RETRIES        seconds between polls (60); maximum number of retries of auto after failures without a preemption (3)
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/slice.sh

ACTIONS="create install run auto logs fetch status stop delete"
action='' SPOT=${SPOT:-} SLICES=${SLICES:-1} QUEUE=${QUEUE:-yes} POLL=${POLL:-60} RETRIES=${RETRIES:-3} OUT=${OUT:-}
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) DRY_RUN=1 ;;
    --spot) SPOT=1 ;;
    --slices) SLICES=${2:-} && { [ $# -eq 1 ] || shift; } ;;
    --) shift && break ;;
    -*) [ "$action" = logs ] && break; refuse "Unknown option '$1'. Expected --dry-run, --spot or --slices N." ;;
    *) if [ -z "$action" ]; then action=$1; else break; fi ;;
  esac
  shift
done
case " $ACTIONS " in *" ${action:-none} "*) ;; *) refuse "Unknown action '$action'. Expected one of: $ACTIONS." ;; esac
check_name NAME "${NAME:-}"
[ -n "${ZONE:-}" ] || refuse "ZONE is not set. Set it to a zone that has your chips: ZONE=us-west4-a $0 $action"
check_count SLICES "$SLICES" && check_count RETRIES "$RETRIES"
[ "$QUEUE" != no ] || [ "$SLICES" = 1 ] || refuse "SLICES is $SLICES and QUEUE=no. Several slices need a queued resource."

where=("--zone=$ZONE") && [ -z "${PROJECT:-}" ] || where+=("--project=$PROJECT")
if [ "$QUEUE" = no ]; then
  group=(gcloud compute tpus tpu-vm) first=(--worker=0) every=(--worker=all) force=() format='value(state)'
else
  group=(gcloud compute tpus queued-resources) first=(--node=0 --worker=0) every=(--node=all --worker=all)
  force=(--force) format='value(state.state)'
fi
on() { # COMMAND WORKERS...: run it by ssh
  local command=$1 && shift
  act "${group[@]}" ssh "$NAME" "${where[@]}" "$@" "--command=$command"
}

case $action in create | run | auto)
  [ -n "${ACCELERATOR:-}" ] || refuse "ACCELERATOR is not set. Set the accelerator type: ACCELERATOR=v5litepod-8 $0 $action"
  asked=${RUNTIME:-} && slice_of "$ACCELERATOR" && RUNTIME=${asked:-$RUNTIME} ;;
esac
case $action in run | auto)
  [ $# -gt 0 ] || set -- launch/zephyr.sh
  case $1 in *zephyr.sh)
    [ "$action" != auto ] || check_bucket "$OUT" "a preempted VM loses its disk"
    [ $((HOSTS * SLICES)) = 1 ] || check_bucket "$OUT" "$ACCELERATOR times $SLICES is $((HOSTS * SLICES)) hosts" ;;
  esac
  settings=("TPU_CHIP=$KIND" "JAX_PLATFORMS=tpu,cpu") # without a TPU: an error instead of a slow run on the CPU
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

read_slice_state() { # sets state: gcloud's value, NONE (not found), or UNKNOWN (gcloud failed)
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
    [ -z "$(git status --porcelain)" ] || note "uncommitted changes are not copied; the hosts get $(git rev-parse --short HEAD)"
    act git archive --format=tar.gz "--output=${TMPDIR:-/tmp}/$archive" HEAD || return
    act "${group[@]}" scp "${TMPDIR:-/tmp}/$archive" "$NAME:" "${where[@]}" "${every[@]}" || return
    unpack="mkdir -p zephyr-jax && tar -xzf $archive -C zephyr-jax"
  fi
  on "$unpack && zephyr-jax/launch/host.sh install" "${every[@]}" || return
  [ -z "${ENV_FILE:-}" ] || act "${group[@]}" scp "$ENV_FILE" "$NAME:zephyr-jax/.env" "${where[@]}" "${every[@]}"
}

delete() { act "${group[@]}" delete "$NAME" "${where[@]}" ${force[@]+"${force[@]}"} --quiet; }
stop() { on "zephyr-jax/launch/host.sh stop" "${every[@]}"; }

read_command_state() { # sets progress: output of host.sh state, or unreachable
  if [ -n "$DRY_RUN" ]; then on "$ask" "${first[@]}" && progress="ended 0" && return; fi
  progress=$(on "$ask" "${first[@]}" 2> /dev/null | tail -n 1) || progress=unreachable
}

auto() { # its only state is the number of failures: if it is killed, start it again
  local failures=0 before=''
  if [ -n "$DRY_RUN" ]; then create && install && stop && on "$command" "${every[@]}"; fi
  while true; do
    read_slice_state && progress=''
    case $state in ACTIVE | READY) read_command_state ;; esac
    [ "$before" = "$state $progress" ] || note "slice $state${progress:+, command $progress}"
    before="$state $progress"
    case $state,$progress in
      NONE,*) failures=0 && create ;;
      FAILED,* | SUSPENDED,* | PREEMPTED,* | TERMINATED,* | STOPPED,*) delete && continue ;;
      *,"ended 0") delete && note "done; the runs are at $OUT-*" && return ;;
      *,none) { install && stop && on "$command" "${every[@]}"; } || failures=$((failures + 1)) ;;
      *,ended* | *,lost) failures=$((failures + 1))
        [ "$failures" -gt "$RETRIES" ] || { stop && on "$command" "${every[@]}"; } || note "retrying" ;;
    esac
    if [ "$failures" -gt "$RETRIES" ]; then
      note "the command failed $failures times without a preemption. Logs: $0 logs. To stop paying for the slice: $0 delete"
      exit 1
    fi
    sleep "$POLL"
  done
}

case $action in
  create)
    create "$@"
    while read_slice_state && case $state in ACTIVE | READY) false ;; FAILED | SUSPENDED | PREEMPTED | NONE) refuse \
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
      '') refuse "OUT is not set. Set it to the same value as for run: OUT=gs://my-bucket/zephyr-7b $0 fetch" ;;
      gs://*) act gcloud storage cp --recursive "$OUT-${1:-hf}" "${2:-.}" ;;
      *) act "${group[@]}" scp --recurse "$NAME:zephyr-jax/$OUT-${1:-hf}" "${2:-.}" "${where[@]}" "${first[@]}" ;;
    esac ;;
  status) act "${group[@]}" describe "$NAME" "${where[@]}" && on "zephyr-jax/launch/host.sh state" "${every[@]}" ;;
  stop) stop ;;
  delete) delete ;;
esac
