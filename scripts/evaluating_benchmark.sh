#!/usr/bin/env bash
# Benchmarks evaluation throughput; see -h.
set -euo pipefail
. "$(dirname "$0")/_launch.sh"
launch "Benchmarks evaluation throughput in samples per second over steps 501 to 1000; flags can change the range." \
  --evaluate --benchmark --benchmark_warmup_steps 500 --benchmark_steps 1000 -- "$@"
