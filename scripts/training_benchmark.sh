#!/usr/bin/env bash
# Benchmarks training throughput; see -h.
set -euo pipefail
. "$(dirname "$0")/_launch.sh"
launch "Benchmarks training throughput in samples per second over steps 501 to 1000; flags can change the range." \
  --benchmark --benchmark_warmup_steps 500 --benchmark_steps 1000 -- "$@"
