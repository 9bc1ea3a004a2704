#!/usr/bin/env bash
# Trains with the published settings and evaluates after every epoch; see -h.
set -euo pipefail
. "$(dirname "$0")/_launch.sh"
launch "Trains with the published settings and evaluates after every epoch." -- "$@"
