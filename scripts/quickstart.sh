#!/usr/bin/env bash
# From nothing to a trained and evaluated model with two workers, in a few minutes on two cores.
# usage: quickstart.sh [--raw DIR] [--output DIR]
#   --raw DIR     raw MovieLens files (ratings, users, movies) to train on; without it, a generated dataset
#   --output DIR  where everything goes (default: ./quickstart); must not exist yet
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
raw='' output=$PWD/quickstart

while [ $# -gt 0 ]; do
  case $1 in
    --raw) raw=$(realpath "${2:?--raw needs a folder}"); shift 2 ;;
    --output) output=$(realpath -m "${2:?--output needs a folder}"); shift 2 ;;
    -h | --help) sed -n '2,5s/^# //p' "$0"; exit 0 ;;
    *) echo "quickstart.sh: unknown argument $1 (--help shows the usage)" >&2; exit 2 ;;
  esac
done
if [ -e "$output" ]; then
  echo "quickstart.sh: $output exists already; delete it, or name another folder with --output" >&2
  exit 2
fi

step() { printf '\n== %s\n' "$*"; }

step "1/5 Set-up"
bash "$root/scripts/setup.sh"
cd "$root"
export PATH="$root/.venv/bin:$PATH"
mkdir -p "$output"

batch=2048
if [ -n "$raw" ]; then
  batch=4096
  step "2/5 Data: MovieLens ratings from $raw (liked = rating of 4 or 5; groups of MAP@12 = users)"
  python -m data.movielens.prepare --raw "$raw" --output "$output/data"
else
  step "2/5 Data: 200,000 generated rows with a planted signal (with --raw DIR: MovieLens)"
  python gen_csv.py --feature_spec_in feature_specs/with_map.yaml --output "$output/csv" --size 200000 --signal 2
  python transcode.py --input "$output/csv" --output "$output/data"
fi
python check_dataset.py "$output/data"

run() {
  horovodrun -np 2 sh hvd_wrapper.sh python main.py --dataset_path "$output/data" --model_dir "$output/checkpoints" \
    --eval_batch_size 16384 --deep_hidden_units 256 128 "$@"
}

step "3/5 Training: Wide & Deep, two workers"
run --results_dir "$output/results" --global_batch_size $batch --num_epochs 8 --deep_learning_rate 0.004 \
  --deep_warmup_epochs 2 --deep_dropout 0.3

step "4/5 Evaluation of the best checkpoint, with its predictions"
run --results_dir "$output/evaluation" --evaluate --predictions_file "$output/predictions.parquet"

step "5/5 Learning curve"
python report.py --results_dir "$output/results"
printf '\nDone. Metrics: %s  Predictions: %s  Model: %s\n' \
  "$output/evaluation/metrics.json" "$output/predictions.parquet" "$output/checkpoints/model"
