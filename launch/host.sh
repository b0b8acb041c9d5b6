#!/usr/bin/env bash
# Commands of one host. The launchers call it inside the checkout on every TPU VM, pod or node; it works on any Linux machine.
#
#   launch/host.sh install            install uv, Python 3.12 and this package with libtpu into .venv
#   launch/host.sh exec COMMAND...    run COMMAND with .venv on the PATH and the variables of .env
#   launch/host.sh start COMMAND...   the same in the background and in a new session: it survives a closed ssh connection
#   launch/host.sh state [COMMAND...] print none | running | ended CODE | lost (killed, or the machine rebooted); with
#                                     COMMAND, none if the last run was another command or had another OUT or CARDS, and is over
#   launch/host.sh stop               end the started command and its children
#   launch/host.sh log [LINES|-f]     print the end of its log; -f follows
# --dry-run before the action prints commands instead of running them.
#
# Environment: RUN_FOLDER (runs/host: log, process id and exit code). If the checkout has a .env file (HF_TOKEN, ...), it is read.
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
  [ "$(state)" != running ] || refuse "A command is already running (log: $folder/log). To stop it: launch/host.sh stop"
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
  for _ in $(seq 300); do # 150 s: schedule.grace_seconds (120) and a margin, to save
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
action=${1:-} && [ $# -eq 0 ] || shift
case $action in
  exec | start) [ $# -gt 0 ] || refuse "$action needs a command: launch/host.sh $action launch/zephyr.sh" ;;
esac
case $action in
  install) install ;;
  exec) prepare && if [ -n "$DRY_RUN" ]; then quoted "$@"; else exec "$@"; fi ;;
  start) if [ -n "$DRY_RUN" ]; then quoted setsid "$@"; else start "$@"; fi ;;
  state) state "$@" ;;
  stop) act stop ;;
  log) if [ "${1:-}" = -f ]; then act tail -n 50 -f "$folder/log"; else act tail -n "${1:-50}" "$folder/log"; fi ;;
  *) refuse "Unknown action '$action'. Expected one of: install exec start state stop log." ;;
esac
