#!/usr/bin/env bash
#SBATCH --job-name=zephyr
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#SBATCH --signal=B:USR1@180
# The recipe on SLURM: one process a node, which find each other by SLURM's own variables. Preempted or out of time, the job is
# queued again and goes on from its newest checkpoint.
#
#   NODES=4 OUT=/shared/runs/zephyr-7b launch/slurm.sh [--dry-run] [sbatch flags... --] [COMMAND...]
#
# From a login node it submits itself; what sbatch then runs is the same file. Default command: launch/zephyr.sh.
#
# Environment: NODES (1), OUT (a folder that all nodes see, or gs://), CARDS; what else is set goes along, as sbatch does.
# Partition, account, time limit and accelerators are your site's: --partition=tpu --time=24:00:00 --gres=gpu:8 -- COMMAND
set -euo pipefail

if [ -z "${SLURM_JOB_ID:-}" ]; then # on the login node: submit
  cd "$(dirname "$0")/.."
  . launch/slice.sh
  flags=()
  if [ "${1:-}" = --dry-run ]; then DRY_RUN=1 && shift; fi
  while [ $# -gt 0 ]; do
    case $1 in --) shift && break ;; -*) flags+=("$1") && shift ;; *) break ;; esac
  done
  [ $# -gt 0 ] || set -- launch/zephyr.sh
  check_count NODES "${NODES:=1}"
  case ${OUT:-} in
    '') refuse "OUT is not set. It must be a folder that all nodes see: OUT=/shared/runs/zephyr-7b $0" ;;
    /tmp/* | /dev/shm/*) refuse "OUT is '$OUT', and each node has its own. It must be a folder that all nodes see, or gs://." ;;
  esac
  export OUT
  act sbatch "--nodes=$NODES" "--chdir=$PWD" --export=ALL ${flags[@]+"${flags[@]}"} launch/slurm.sh "$@"
  [ -z "$DRY_RUN" ] || { note "and in the job:" && quoted srun --kill-on-bad-exit=1 launch/host.sh exec "$@"; }
  exit
fi

again() { # SLURM says 3 minutes before the time limit; preemption queues the job again by itself
  echo "slurm.sh: time is nearly over; queued again" >&2
  scontrol requeue "$SLURM_JOB_ID"
  wait
}
trap again USR1
srun --kill-on-bad-exit=1 launch/host.sh exec "$@" &
wait $!
