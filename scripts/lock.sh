#!/usr/bin/env bash
# Writes the locked lists requirements/*.txt from the .in files, with hashes (why: requirements/README.md).
# usage: lock.sh [--upgrade]
# Versions that are locked already stay where the .in files allow it; --upgrade takes the newest of everything.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root" # uv reads from pyproject.toml which machines the lists are for

die() { echo "lock.sh: $*" >&2; exit 1; }

case "${1:-}" in
  "" | --upgrade) upgrade=${1:-} ;;
  *) die "usage: lock.sh [--upgrade]" ;;
esac
uv=${VENV:-.venv}/bin/uv
[ -x "$uv" ] || die "no $uv: run scripts/setup.sh first"

work=$(mktemp -d "requirements/.lock-XXXXXX") # beside the lists, so that mv only renames
trap 'rm -rf "$work"' EXIT

# The lists are for one kind of machine, so what every line would say of it is left out.
drop_common_markers() {
  sed -E "s/ and platform_machine == 'x86_64' and platform_python_implementation == 'CPython' and sys_platform == 'linux'//
          s/ ; python_full_version < '3\.13'( \\\\)?$/\1/"
}

lock() { # NAME, LIST WHOSE VERSIONS TO PREFER, further uv options
  local name=$1 prefer=$2
  shift 2
  echo "lock.sh: $name.txt"
  if [ -z "$upgrade" ] && [ -f "requirements/$name.txt" ]; then prefer=requirements/$name.txt; fi
  [ ! -f "$prefer" ] || cp "$prefer" "$work/$name.uv"
  "$uv" pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --no-annotate --no-header \
    --generate-hashes --override requirements/overrides.txt "$@" "requirements/$name.in" -o "$work/$name.uv" >/dev/null
  { echo "# Made by scripts/lock.sh from $name.in"; drop_common_markers <"$work/$name.uv"; } >"$work/$name.txt"
  ! grep -nE 'https?:|file:|index-url|find-links| @ |x86_64' "$work/$name.txt" >&2 ||
    die "$name.txt would hold what does not belong in a list for every machine (above); nothing is changed"
}

lock cpu "" --override requirements/overrides-cpu.txt
lock gpu "$work/cpu.txt"
lock export "" --constraint "$work/cpu.txt" --constraint "$work/gpu.txt"
lock dev "" --constraint "$work/cpu.txt" --constraint "$work/gpu.txt"
lock uv ""
lock tritonserver "" --no-deps
mv "$work"/{cpu,gpu,export,dev,uv,tritonserver}.txt requirements/
echo "lock.sh: done; see the change with git diff requirements"
