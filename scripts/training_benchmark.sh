#!/usr/bin/env bash
# Measures the throughput of training: see -h.
set -euo pipefail
. "$(dirname "$0")/_launch.sh"
launch "Measures training, in samples per second: steps 501 to 1000, or as the flags that follow say." \
  --benchmark --benchmark_warmup_steps 500 --benchmark_steps 1000 -- "$@"
