#!/usr/bin/env bash
# Goes from a fresh checkout to a trained and evaluated model with two workers, in a few minutes on two cores.
# usage: quickstart.sh [--raw DIR] [--output DIR] [--displays N]
#   --raw DIR     train on the raw MovieLens files in DIR (ratings, users, movies) instead of a synthetic Outbrain
#   --output DIR  output folder (default: ./quickstart); must not exist yet
#   --displays N  size of the synthetic Outbrain (default: 200000, about a million rows)
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
raw='' output=$PWD/quickstart displays=200000

while [ $# -gt 0 ]; do
  case $1 in
    --raw) raw=$(realpath "${2:?--raw needs a folder}"); shift 2 ;;
    --output) output=$(realpath -m "${2:?--output needs a folder}"); shift 2 ;;
    --displays) displays=${2:?--displays needs a number}; shift 2 ;;
    -h | --help) sed -n '2,6s/^# //p' "$0"; exit 0 ;;
    *) echo "quickstart.sh: unknown argument $1 (see --help)" >&2; exit 2 ;;
  esac
done
if [ -e "$output" ]; then
  echo "quickstart.sh: $output already exists; delete it or choose another folder with --output" >&2
  exit 2
fi

step() { printf '\n== %s\n' "$*"; }

step "1/5 Setup"
bash "$root/scripts/setup.sh"
cd "$root"
export PATH="$root/.venv/bin:$PATH"
mkdir -p "$output"

if [ -n "$raw" ]; then
  step "2/5 Data: MovieLens ratings from $raw (liked = rating of 4 or 5; MAP@12 grouped by user)"
  python -m data.movielens.prepare --raw "$raw" --output "$output/data"
  epochs=8 warmup=2
else
  step "2/5 Data: synthetic Outbrain with $displays displays, preprocessed with NVTabular (use --raw DIR for MovieLens)"
  python -m data.outbrain.synthesize --output "$output/raw" --displays "$displays" --seed 1
  bash scripts/preproc.sh --data_path "$output/raw" --metadata_path "$output/data"
  epochs=4 warmup=1
fi
python check_dataset.py "$output/data"

run() {
  horovodrun -np 2 sh hvd_wrapper.sh python main.py --dataset_path "$output/data" --model_dir "$output/checkpoints" \
    --recipe published --eval_batch_size 16384 --deep_hidden_units 256 128 "$@"
}

step "3/5 Training: Wide & Deep, two workers"
run --results_dir "$output/results" --global_batch_size 4096 --num_epochs "$epochs" --deep_learning_rate 0.004 \
  --deep_warmup_epochs "$warmup" --deep_dropout 0.3

step "4/5 Evaluation of the best checkpoint, with predictions"
run --results_dir "$output/evaluation" --evaluate --predictions_file "$output/predictions.parquet"

step "5/5 Learning curve"
python report.py --results_dir "$output/results"
if [ -z "$raw" ]; then
  python -m benchmarks.outbrain_quality --raw "$output/raw" --predictions "$output/predictions.parquet" \
    > "$output/quality.json"
fi
printf '\nDone. Metrics: %s  Predictions: %s  Model: %s\n' \
  "$output/evaluation/metrics.json" "$output/predictions.parquet" "$output/checkpoints/model"
