#!/usr/bin/env bash
# Eight minutes on a GPU: trains and evaluates in every precision, checks losses against the CPU's, and measures speed,
# memory, kernels, exports and preprocessing. See benchmarks/gpu.py for what is written.
#
# usage: bash benchmarks/gpu.sh [--output FILE.jsonl] [--small] [--seconds 480]
#
# Uses the environment of scripts/setup.sh where there is one, else the Python on the path, which needs TensorFlow,
# NumPy, pyarrow, PyYAML and psutil. What else is missing, such as onnxruntime or cuDF, costs the parts that need it.
# Horovod is not needed: one worker trains.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
python=${VENV:-$root/.venv}/bin/python
[ -x "$python" ] || python=$(command -v python3) || { echo "gpu.sh: no Python found: run  bash scripts/setup.sh" >&2; exit 1; }
cd "$root"
exec "$python" -m benchmarks.gpu "$@"
