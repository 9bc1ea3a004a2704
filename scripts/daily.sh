#!/usr/bin/env bash
# Trains on one day's raw logs, starting from the model of the days before, and keeps the new model if it is good enough.
# usage: daily.sh --raw DIR --next DIR --runs DIR [OPTION ...] [-- MAIN.PY FLAG ...]
#   --raw DIR        the day's raw logs with their feature_spec.yaml, or their URL; the folder's name is that of the day
#   --next DIR       the next day's raw logs, or their URL, on which both models are evaluated
#   --runs DIR       folder of all days: DIR/DAY has a day's dataset, model and metrics, DIR/current is the day in use
#   --metric KEY     key of metrics.json by which the models are compared (default: loss_val)
#   --tolerance T    by how much the new model may be worse and is still kept (default: 0)
#   --format FORMAT  export of a model that is kept, in DIR/DAY/export (default: savedmodel; none for no export)
#   --extend FLAGS   flags of preprocess.py for the vocabularies, such as '--retire_after 7'
#   --workers N      number of workers on this host (default: 1)
# The first day trains from scratch, and its model is kept. Safe to run again at any point: what is done is not repeated.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

die() { echo "daily.sh: $1" >&2; exit "${2:-2}"; }
usage() { sed -n '2,12s/^# //p' "$0"; }

raw='' following='' runs='' metric=loss_val tolerance=0 format=savedmodel extend='' workers=1
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    --raw | --next | --runs | --metric | --tolerance | --format | --extend | --workers)
      [ $# -ge 2 ] || die "$1 needs a value (see --help)" ;;
    *) die "unknown argument $1 (see --help)" ;;
  esac
  case $1 in
    --raw) raw=${2%/} ;;
    --next) following=${2%/} ;;
    --runs) runs=$2 ;;
    --metric) metric=$2 ;;
    --tolerance) tolerance=$2 ;;
    --format) format=$2 ;;
    --extend) extend=$2 ;;
    --workers) workers=$2 ;;
  esac
  shift 2
done
[ -n "$raw" ] && [ -n "$following" ] && [ -n "$runs" ] || die "needs --raw, --next and --runs (see --help)"
[[ $workers =~ ^[1-9][0-9]*$ ]] || die "--workers takes a number of workers, not '$workers'"
[[ $tolerance =~ ^[0-9]*\.?[0-9]+([eE]-?[0-9]+)?$ ]] || die "--tolerance takes a number from 0 up, not '$tolerance'"
[[ $format =~ ^(savedmodel|onnx|triton|none)$ ]] || die "--format takes savedmodel, onnx, triton or none, not '$format'"
[[ $runs != *://* ]] || die "--runs $runs: is a URL; give a folder of this machine (--raw and --next may be URLs)"
day=$(basename "$raw")
[ "$day" != current ] || die "--raw $raw: the name of the folder is that of the day, which cannot be 'current'"

venv=${VENV:-$root/.venv}
if [ -d "$venv/bin" ]; then PATH=$(cd "$venv/bin" && pwd):$PATH; fi
mkdir -p "$runs/$day"
runs=$(cd "$runs" && pwd)
own=$runs/$day

# The programs that this script starts inherit the lock: should it be killed alone, the next run waits until they end.
exec 9>"$runs/.lock"
flock --nonblock 9 || { echo "daily.sh: another run works in $runs; waiting for it" >&2; flock 9; }

step() { printf '\n== %s: %s\n' "$day" "$*"; }

# The day before is written down once: after this day is the current one, a second run must not start from itself.
if [ ! -L "$own/previous" ]; then
  ln -sfn "$(readlink "$runs/current" || echo none)" "$own/previous.new"
  mv -T "$own/previous.new" "$own/previous"
fi
previous=$runs/$(readlink "$own/previous")
[ -d "$previous/model" ] || previous=

preprocess() { # OUTPUT, FLAG ...   A dataset appears whole or not at all.
  local output=$1
  shift
  if [ ! -e "$output/feature_spec.yaml" ]; then python "$root/preprocess.py" "$@" --output "$output"; fi
}

# What starts main.py.
main=("$(command -v python)" "$root/main.py")
if [ "$workers" -gt 1 ]; then main=(horovodrun -np "$workers" sh "$root/hvd_wrapper.sh" "${main[@]}"); fi

evaluate() { # MODEL_DIR, DATASET, RESULTS_DIR
  if [ ! -e "$3/metrics.json" ]; then
    "${main[@]}" --evaluate --eval_mapping test --model_dir "$1" --dataset_path "$2" --results_dir "$3"
  fi
}

step "preprocessing $raw"
if [ -n "$previous" ]; then
  # shellcheck disable=SC2086  # several flags
  preprocess "$own/data" --extend "$previous/data/workflow" $extend --input "$raw"
else
  preprocess "$own/data" --input "$raw"
fi

step "training${previous:+ from the model of $(basename "$previous")}"
warm=()
if [ -n "$previous" ]; then warm=(--warm_start "$previous/model"); fi
# Resumes from the last checkpoint, if there is one.
python "$root/supervise.py" -- "${main[@]}" --dataset_path "$own/data" --model_dir "$own/model" --results_dir "$own/results" \
  "${warm[@]}" "$@"

step "evaluating on $following"
preprocess "$own/next" --workflow "$own/data/workflow" --input "$following"
evaluate "$own/model" "$own/next" "$own/evaluation"
if [ -n "$previous" ]; then
  preprocess "$own/next_previous" --workflow "$previous/data/workflow" --input "$following"
  evaluate "$previous/model" "$own/next_previous" "$own/evaluation_previous"
fi

step "comparing $metric"
if [ ! -e "$own/decision.json" ]; then
  python "$root/scripts/compare_models.py" --metric "$metric" --tolerance "$tolerance" --new "$own/evaluation/metrics.json" \
    ${previous:+--previous "$own/evaluation_previous/metrics.json"} --output "$own/decision.json"
fi
cat "$own/decision.json"
if ! grep -q '"kept": true' "$own/decision.json"; then
  echo "daily.sh: the model of $day is not kept; $(readlink "$runs/current") stays the current one"
  exit 0
fi

if [ "$format" != none ]; then
  step "exporting"
  if [ ! -e "$own/export" ]; then
    python "$root/export.py" --model_dir "$own/model" --output "$own/export" --format "$format"
  fi
fi
# A run of an earlier day, repeated, must not make it the current one again.
if [ "$(readlink "$runs/current" || echo none)" = "$(readlink "$own/previous")" ]; then
  ln -sfn "$day" "$own/current.new"
  mv -T "$own/current.new" "$runs/current"
fi
echo "daily.sh: the model of $day is kept; the current day is $(readlink "$runs/current")"
