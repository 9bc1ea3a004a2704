#!/usr/bin/env bash
# Prepares Outbrain for training: the raw tables of the competition, or of data.outbrain.synthesize, into parquet.
# usage: preproc.sh [--data_path RAW] [--metadata_path OUT] [FLAG OF data.outbrain.preproc ...]   (--help lists them)
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
venv=${VENV:-$root/.venv}
if [ -d "$venv/bin" ]; then PATH=$(cd "$venv/bin" && pwd):$PATH; fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec python -m data.outbrain.preproc "$@"
