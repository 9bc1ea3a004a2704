#!/usr/bin/env bash
# Eight minutes on a GPU: trains and evaluates in every precision, checks losses against the CPU's, and measures speed,
# memory, kernels, exports and preprocessing. See benchmarks/gpu.py for what is written.
#
# usage: bash benchmarks/gpu.sh [--output FILE.jsonl] [--small] [--seconds 480]
#
# Uses the environment of scripts/setup.sh where there is one, else the Python on the path, which needs the packages
# below. What else is missing, such as onnxruntime or cuDF, costs the parts that need it. Horovod is not needed: one
# worker trains.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
python=${VENV:-$root/.venv}/bin/python
[ -x "$python" ] || python=$(command -v python3) || { echo "gpu.sh: no Python found: run  bash scripts/setup.sh" >&2; exit 1; }
needed="tensorflow keras numpy pandas pyarrow pydantic ruamel.yaml scipy tqdm psutil"
missing=$("$python" - $needed <<'PY'
import sys
from importlib.util import find_spec

def is_there(name):
    try:
        return find_spec(name) is not None
    except ImportError:
        return False

print(*(name for name in sys.argv[1:] if not is_there(name)))
PY
)
[ -z "$missing" ] || { echo "gpu.sh: $python lacks $missing: install them, or run  bash scripts/setup.sh --gpu" >&2; exit 1; }
cd "$root"
exec "$python" -m benchmarks.gpu "$@"
