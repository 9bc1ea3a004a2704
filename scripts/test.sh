#!/usr/bin/env bash
# Sets up what is missing, then checks everything: style, types, tests.
# usage: test.sh [--all] [ARGUMENT OF pytest ...]
# --all adds the slow tests. Tests of real data read the folder RECIPE_TEST_DATA, by default ../shared/data beside the
# checkout, and are skipped where it is absent.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
bin=${VENV:-$root/.venv}/bin
times=

step() { # NAME COMMAND ...
  local name=$1 begin=$SECONDS
  shift
  echo "== $name"
  "$@" || { echo "== $name failed after $((SECONDS - begin)) s" >&2; exit 1; }
  times="$times$name $((SECONDS - begin)) s, "
}

select=(-m "not slow")
if [ "${1:-}" = --all ]; then select=(); shift; fi
if [ -z "${RECIPE_TEST_DATA:-}" ] && [ -d ../shared/data ]; then
  RECIPE_TEST_DATA=$(cd ../shared/data && pwd)
  export RECIPE_TEST_DATA
fi

step "set-up" bash scripts/setup.sh
step "ruff check" "$bin/ruff" check .
step "ruff format" "$bin/ruff" format --check --quiet .
step "mypy" "$bin/mypy"
step "pytest" "$bin/python" -m pytest "${select[@]}" --durations=15 --durations-min=1 "$@"
echo "== all passed: ${times}$SECONDS s together"
