# shellcheck shell=bash
# Functions that the launchers share. Source it; it does nothing when run.
#
#   act WORD...           runs the command; with --dry-run prints it, quoted for a shell, instead
#   refuse MESSAGE        prints the error and exits with code 2
#   note MESSAGE          prints to stderr
#   slice_of ACCELERATOR  sets KIND (v4, v5e, v5p, v6e), CHIPS, HOSTS, GRID and RUNTIME of one slice
#   check_name / check_bucket / check_count   validate settings that several launchers have
#
# Works with bash 3.2 (macOS) and newer.

DRY_RUN=${DRY_RUN:-}

act() {
  if [ -n "$DRY_RUN" ]; then quoted "$@"; else "$@"; fi
}

quoted() { # WORD...: prints one line that a shell parses to the same words
  local word line='' escaped="'\\''"
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_=:,./@%+-]*) line+="'${word//\'/$escaped}' " ;;
      *) line+="$word " ;;
    esac
  done
  printf '%s\n' "${line% }"
}

refuse() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

note() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }

slice_of() {
  local size=${1##*-}
  local unknown="ACCELERATOR is '$1'. Expected a Google Cloud accelerator type, such as v5litepod-8, v6e-16, v5p-8 or v4-32"
  case $size in '' | *[!0-9]*) refuse "$unknown." ;; esac
  case $1 in
    v4-*) KIND=v4 RUNTIME=tpu-ubuntu2204-base ;;
    v5p-*) KIND=v5p RUNTIME=v2-alpha-tpuv5 ;;
    v5litepod-*) KIND=v5e RUNTIME=v2-alpha-tpuv5-lite ;;
    v6e-*) KIND=v6e RUNTIME=v2-alpha-tpuv6e ;;
    *) refuse "$unknown." ;;
  esac
  case $KIND in
    v5e | v6e) # named by chips, 2D grid; up to 8 chips are one host, larger slices have 4 chips per host
      CHIPS=$size HOSTS=$((size > 8 ? size / 4 : 1))
      case $CHIPS in
        1) GRID=1x1 ;; 4) GRID=2x2 ;; 8) GRID=2x4 ;; 16) GRID=4x4 ;; 32) GRID=4x8 ;;
        64) GRID=8x8 ;; 128) GRID=8x16 ;; 256) GRID=16x16 ;;
        *) refuse "$unknown; a $KIND slice has 1, 4, 8, 16, 32, 64, 128 or 256 chips." ;;
      esac ;;
    v4 | v5p) # named by cores, two per chip, 3D grid; always 4 chips per host
      CHIPS=$((size / 2)) HOSTS=$((size / 8))
      case $size in
        8) GRID=2x2x1 ;; 16) GRID=2x2x2 ;; 32) GRID=2x2x4 ;; 64) GRID=2x4x4 ;; 128) GRID=4x4x4 ;;
        256) GRID=4x4x8 ;; 512) GRID=4x8x8 ;; 1024) GRID=8x8x8 ;;
        *) refuse "$unknown; $KIND counts cores, two per chip: 8, 16, 32, 64, 128, 256, 512 or 1024." ;;
      esac ;;
  esac
  export KIND CHIPS HOSTS GRID RUNTIME
}

check_name() { # SETTING VALUE: names of slices and jobs
  [[ ${2:-} =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    refuse "$1 is '${2:-}'. Expected 1 to 40 lower-case letters, digits and hyphens, starting with a letter: $1=zephyr $0 ..."
}

check_count() { # SETTING VALUE: integers from 1
  [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || refuse "$1 is '${2:-}'. Expected an integer, at least 1."
}

check_bucket() { # VALUE REASON
  [[ ${1:-} =~ ^gs://[a-z0-9] ]] ||
    refuse "OUT is '${1:-}'. Expected a bucket folder that all hosts can write to, since $2: OUT=gs://my-bucket/zephyr-7b $0 ..."
}
