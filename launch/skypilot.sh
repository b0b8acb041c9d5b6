#!/usr/bin/env bash
# Submit launch/skypilot.yaml as a managed job: SkyPilot chooses a zone, and after a preemption restarts in another one.
#
#   launch/skypilot.sh [--dry-run] [--on-demand] [SETTINGS...]     SETTINGS are passed to every stage, as with launch/zephyr.sh
#
# Environment: OUT (gs://bucket/name, required), ACCELERATOR (v5litepod-8), NAME (zephyr), CARDS, HF_TOKEN (passed as a secret)
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/slice.sh

spot=--use-spot
while :; do
  case ${1:-} in --dry-run) DRY_RUN=1 ;; --on-demand) spot=--no-use-spot ;; *) break ;; esac
  shift
done
check_name NAME "${NAME:=zephyr}"
check_bucket "${OUT:-}" "the next machine resumes from there"
slice_of "${ACCELERATOR:=v5litepod-8}"
for word in "$@"; do
  case $word in *[[:space:]\*\?\[]*)
    refuse "The setting '$word' has a space, *, ? or [, which the remote shell expands. Put it in a card: CARDS=FOLDER $0" ;;
  esac
done
options=(--name "$NAME" --gpus "tpu-$ACCELERATOR" "$spot" --env "OUT=$OUT")
[ -z "${CARDS:-}" ] || options+=(--env "CARDS=$CARDS")
[ $# -eq 0 ] || options+=(--env "ARGS=$*")
[ -z "${HF_TOKEN:-}" ] || options+=(--secret HF_TOKEN)
act sky jobs launch --yes --detach-run "${options[@]}" launch/skypilot.yaml
