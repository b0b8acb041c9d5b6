#!/usr/bin/env bash
# One host's side of a launch: runs inside the checkout on every TPU VM, pod or node. It works on any Linux machine.
#
#   launch/host.sh install            uv, Python 3.12 and this package with libtpu, into .venv
#   launch/host.sh exec COMMAND...    COMMAND with .venv on the PATH and .env read
#   launch/host.sh start COMMAND...   the same in the background, in a session of its own: a dropped ssh does not end it
#   launch/host.sh state [COMMAND...] none | running | ended CODE | lost (the machine restarted, or it was killed); with COMMAND,
#                                     what was another command, or had another OUT or CARDS, and is over, is none
#   launch/host.sh stop               ends what was started, its children too
#   launch/host.sh log [LINES|-f]     the end of its log; -f follows
# --dry-run before the verb prints commands instead of running them.
#
# Environment: RUN_FOLDER (runs/host: log, process and exit code); .env in the checkout is read if there, for HF_TOKEN and such.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/slice.sh # act, refuse, note, quoted
folder=${RUN_FOLDER:-runs/host}

prepare() {
  # shellcheck source=/dev/null
  if [ -f .env ]; then set -a && . ./.env && set +a; fi
  export PATH="$PWD/.venv/bin:$PATH"
}

named() { quoted "OUT=${OUT:-}" "CARDS=${CARDS:-}" "$@"; }
boot() { cat /proc/sys/kernel/random/boot_id 2>/dev/null || echo unknown; }

state() { # COMMAND...
  [ -f "$folder/process" ] || { echo none && return; }
  read -r process since < "$folder/process"
  if [ "$since" = "$(boot)" ] && [ ! -f "$folder/ended" ] && kill -0 "$process" 2> /dev/null; then echo running && return; fi
  if [ $# -gt 0 ] && [ "$(named "$@")" != "$(cat "$folder/command")" ]; then echo none && return; fi
  if [ -f "$folder/ended" ]; then echo "ended $(cat "$folder/ended")"; else echo lost; fi
}

start() {
  [ "$(state)" != running ] || refuse "Something runs here already (see $folder/log). Wait for it, or: launch/host.sh stop"
  mkdir -p "$folder" && rm -f "$folder/ended"
  named "$@" > "$folder/command"
  prepare
  # shellcheck disable=SC2016  # the inner bash expands these
  setsid bash -c '"$@"; echo $? > "$0.new" && mv "$0.new" "$0"' "$folder/ended" "$@" >> "$folder/log" 2>&1 < /dev/null &
  echo "$! $(boot)" > "$folder/process"
}

stop() {
  [ "$(state)" = running ] || return 0
  read -r process _ < "$folder/process"
  kill -TERM -- "-$process"
  for _ in $(seq 300); do # as long as schedule.grace_seconds, and some: time to save
    kill -0 -- "-$process" 2> /dev/null || return 0
    sleep 0.5
  done
  kill -KILL -- "-$process"
}

install() {
  export PATH="$HOME/.local/bin:$PATH"
  command -v uv > /dev/null || act python3 -m pip install --quiet --user uv
  act uv sync --quiet --no-dev --extra tpu --python 3.12
}

if [ "${1:-}" = --dry-run ]; then DRY_RUN=1 && shift; fi
verb=${1:-} && [ $# -eq 0 ] || shift
case $verb in
  exec | start) [ $# -gt 0 ] || refuse "$verb needs a command, such as: launch/host.sh $verb launch/zephyr.sh" ;;
esac
case $verb in
  install) install ;;
  exec) prepare && if [ -n "$DRY_RUN" ]; then quoted "$@"; else exec "$@"; fi ;;
  start) if [ -n "$DRY_RUN" ]; then quoted setsid "$@"; else start "$@"; fi ;;
  state) state "$@" ;;
  stop) act stop ;;
  log) if [ "${1:-}" = -f ]; then act tail -n 50 -f "$folder/log"; else act tail -n "${1:-50}" "$folder/log"; fi ;;
  *) refuse "'$verb' is nothing that host.sh does. It is one of install, exec, start, state, stop, log." ;;
esac
