#!/usr/bin/env bash
# Prepares Outbrain for training: converts the raw tables from Kaggle or data.outbrain.synthesize to a parquet dataset.
# usage: preproc.sh [--data_path RAW] [--metadata_path OUT] [FLAG ...]   (flags of data.outbrain.preproc; see --help)
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
venv=${VENV:-$root/.venv}
if [ -d "$venv/bin" ]; then PATH=$(cd "$venv/bin" && pwd):$PATH; fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec python -m data.outbrain.preproc "$@"
