# Sourced by training_full.sh, training_benchmark.sh and evaluating_benchmark.sh. Parses their options and starts the
# workers. A script that sources it calls `launch "DESCRIPTION" [MAIN.PY FLAG ...] -- "$@"`.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
script=$(basename "$0")

die() { echo "$script: $1" >&2; exit "${2:-1}"; }

usage() {
  cat <<TEXT
usage: $script [-g WORKERS] [-a] [-x] [-b BATCH] [MAIN.PY FLAG ...]

$purpose

  -g, --gpu WORKERS  number of workers on this host, one GPU each (default: number of GPUs, or 1 without GPUs)
  -a, --amp          use mixed precision; same as -a amp
  -x, --xla          compile with XLA; same as -x xla
  -b, --bs BATCH     rows per step over all workers together: $batch_flag
  -h                 show this help

All other flags are passed to main.py unchanged and override those set by this script. See python main.py --help.
TEXT
}

count_gpus() {
  local gpus listed=${CUDA_VISIBLE_DEVICES-all}
  case "$listed" in
    all) gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ') || true ;;
    "" | -1*) gpus=0 ;;
    *) gpus=$(tr , '\n' <<<"$listed" | grep -c .) ;;
  esac
  echo "$((gpus > 0 ? gpus : 1))"
}

# Sets `flags`, the flags for main.py, and `workers`.
parse() {
  while [ $# -gt 0 ]; do
    case "$1" in
      -h) usage; exit 0 ;;
      --gpu=* | --bs=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    esac
    case "$1" in
      -g | --gpu | -b | --bs) [ $# -ge 2 ] || die "$1 needs a value; see -h" 2 ;;
    esac
    case "$1" in
      -g | --gpu) [[ "$2" =~ ^[1-9][0-9]*$ ]] || die "$1 takes a number of workers, not '$2'" 2
          workers=$2; shift ;;
      -b | --bs) flags+=("$batch_flag" "$2"); shift ;;
      -a) flags+=(--amp); if [ "${2:-}" = amp ]; then shift; fi ;;
      -x) flags+=(--xla); if [ "${2:-}" = xla ]; then shift; fi ;;
      *) flags+=("$1") ;;
    esac
    shift
  done
}

# Puts the environment created by scripts/setup.sh first on PATH.
use_environment() {
  local venv=${VENV:-$root/.venv}
  if [ "$(head -n 1 "$venv/setup-stamp" 2>/dev/null)" = unfinished ]; then
    die "setup of $venv did not finish: run  bash scripts/setup.sh"
  fi
  if [ -d "$venv/bin" ]; then PATH=$(cd "$venv/bin" && pwd):$PATH; fi
  command -v horovodrun >/dev/null || die "horovodrun not found: run  bash scripts/setup.sh"
}

launch() { # DESCRIPTION, FLAG ... -- ARGUMENT ...
  purpose=$1 batch_flag=--global_batch_size workers= flags=(--recipe published)
  shift
  while [ "$1" != -- ]; do
    if [ "$1" = --evaluate ]; then batch_flag=--eval_batch_size; fi
    flags+=("$1")
    shift
  done
  shift
  parse "$@"
  use_environment
  set -- horovodrun -np "${workers:-$(count_gpus)}" sh "$root/hvd_wrapper.sh" "$(command -v python)" "$root/main.py" "${flags[@]}"
  printf '%s:' "$script"
  printf ' %q' "$@"
  echo
  exec "$@"
}
