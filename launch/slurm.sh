#!/usr/bin/env bash
#SBATCH --job-name=zephyr
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#SBATCH --signal=B:USR1@180
# The Zephyr pipeline on Slurm: one process per node; JAX finds the other nodes by Slurm's variables. After a preemption or at the
# time limit Slurm requeues the job, and it resumes from its newest checkpoint.
#
#   NODES=4 OUT=/shared/runs/zephyr-7b launch/slurm.sh [--dry-run] [sbatch flags... --] [COMMAND...]
#
# --dry-run may stand anywhere before COMMAND. COMMAND for more than 8 devices:
#   launch/zephyr.sh --batch.microbatch_rows N, a multiple of all devices (the cards set 8)
#
# On a login node it submits itself; sbatch then runs the same file. Default command: launch/zephyr.sh.
#
# Environment: NODES (1), OUT (a folder that all nodes can write to, or gs://), CARDS; sbatch passes all other variables on.
# Partition, account, time limit and accelerators depend on your site: --partition=tpu --time=24:00:00 --gres=gpu:8 -- COMMAND
set -euo pipefail

if [ -z "${SLURM_JOB_ID:-}" ]; then # on the login node: submit
  cd "$(dirname "$0")/.."
  . launch/slice.sh
  flags=()
  while [ $# -gt 0 ]; do
    case $1 in --) shift && break ;; --dry-run) DRY_RUN=1 && shift ;; -*) flags+=("$1") && shift ;; *) break ;; esac
  done
  [ $# -gt 0 ] || set -- launch/zephyr.sh
  check_count NODES "${NODES:=1}"
  case ${OUT:-} in
    '') refuse "OUT is not set. Set it to a folder that all nodes can write to: OUT=/shared/runs/zephyr-7b $0" ;;
    /tmp/* | /dev/shm/*) refuse "OUT is '$OUT', which is local to each node. Expected a shared folder, or gs://." ;;
  esac
  export OUT
  act sbatch "--nodes=$NODES" "--chdir=$PWD" --export=ALL ${flags[@]+"${flags[@]}"} launch/slurm.sh "$@"
  [ -z "$DRY_RUN" ] || { note "in the job:" && quoted srun --kill-on-bad-exit=1 launch/host.sh exec "$@"; }
  exit
fi

requeue() { # on SLURM's signal 3 minutes before the time limit; SLURM itself requeues preempted jobs
  echo "slurm.sh: time limit in 3 minutes, requeued" >&2
  scontrol requeue "$SLURM_JOB_ID"
  wait
}
trap requeue USR1
srun --kill-on-bad-exit=1 launch/host.sh exec "$@" &
wait $!
