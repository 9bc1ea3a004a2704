#!/usr/bin/env bash
# The first minutes on a GPU: trains, evaluates and benchmarks the default model in every precision, and checks the
# losses against the CPU's. See benchmarks/gpu.py for what is written.
#
# usage: bash benchmarks/gpu.sh [--output FILE.jsonl] [--small]
#
# Uses the environment of scripts/setup.sh where there is one, else the Python on the path, which needs TensorFlow,
# NumPy, pyarrow, PyYAML and psutil. Horovod is not needed: one worker trains.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
python=${VENV:-$root/.venv}/bin/python
[ -x "$python" ] || python=$(command -v python3) || { echo "gpu.sh: no Python found: run  bash scripts/setup.sh" >&2; exit 1; }
cd "$root"
exec "$python" -m benchmarks.gpu "$@"
