#!/usr/bin/env bash
# Sets up the environment if necessary, then runs all checks: style, types, tests.
# usage: test.sh [--all | --faults] [PYTEST ARGUMENT ...]
# --all adds the slow tests, draws new examples for the property tests and repeats every fault as often as
# docs/reliability.md states. --faults runs only the fault tests and regenerates the table of that page from their
# results. Tests on real data read the folder RECIPE_TEST_DATA (default: ../shared/data next to the checkout) and are
# skipped if it does not exist.
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

faults() { # [PYTEST ARGUMENT ...]   Writes the table even if tests fail: it shows the faults that were not survived.
  local passed=0 recorded=0 log
  log=$(mktemp)
  RECIPE_FAULTS_LOG=$log "$bin/python" -m pytest tests/faults --durations=15 --durations-min=1 "$@" || passed=1
  "$bin/python" -m benchmarks.reliability "$log" || recorded=1
  rm -f "$log"
  return $((passed + recorded))
}

select=(-m "not slow" --hypothesis-profile=repeatable)
only=
case ${1:-} in
  --all) select=(); export RECIPE_FAULTS=whole; shift ;;
  --faults) only=faults; export RECIPE_FAULTS=whole; shift ;;
esac
if [ -z "${RECIPE_TEST_DATA:-}" ] && [ -d ../shared/data ]; then
  RECIPE_TEST_DATA=$(cd ../shared/data && pwd)
  export RECIPE_TEST_DATA
fi

# Many tests start programs, which start faster if this checkout's bytecode is kept, too.
unset PYTHONDONTWRITEBYTECODE

step "setup" bash scripts/setup.sh
if [ -n "$only" ]; then
  step "faults" faults "$@"
else
  step "ruff check" "$bin/ruff" check .
  step "ruff format" "$bin/ruff" format --check --quiet .
  step "import-linter" "$bin/lint-imports" --no-cache
  step "mypy" "$bin/mypy"
  # One pytest process per CPU; a file stays in one process, which shares its fixtures.
  step "pytest" "$bin/python" -m pytest "${select[@]}" -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder --durations=15 --durations-min=1 "$@"
fi
echo "== all passed: ${times}total $SECONDS s"
