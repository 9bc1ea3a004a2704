#!/usr/bin/env bash
# Generates the lock files requirements/*.txt from the .in files, with hashes (rationale: requirements/README.md).
# usage: lock.sh [--upgrade]
# Keeps locked versions that the .in files still allow; --upgrade moves every package to its newest version.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root" # uv reads the target platforms from pyproject.toml

die() { echo "lock.sh: $*" >&2; exit 1; }

case "${1:-}" in
  "" | --upgrade) upgrade=${1:-} ;;
  *) die "usage: lock.sh [--upgrade]" ;;
esac
uv=${VENV:-.venv}/bin/uv
[ -x "$uv" ] || die "$uv not found: run scripts/setup.sh first"

work=$(mktemp -d "requirements/.lock-XXXXXX") # on the same file system, so that mv is a rename
trap 'rm -rf "$work"' EXIT

# The lock files target a single platform: drop the markers that would repeat it on every line.
drop_common_markers() {
  sed -E "s/ and platform_machine == 'x86_64' and platform_python_implementation == 'CPython' and sys_platform == 'linux'//
          s/ ; python_full_version < '3\.13'( \\\\)?$/\1/"
}

lock() { # NAME, LOCK FILE WHOSE VERSIONS TO PREFER, additional uv options
  local name=$1 prefer=$2
  shift 2
  echo "lock.sh: $name.txt"
  if [ -z "$upgrade" ] && [ -f "requirements/$name.txt" ]; then prefer=requirements/$name.txt; fi
  [ ! -f "$prefer" ] || cp "$prefer" "$work/$name.uv"
  "$uv" pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --no-annotate --no-header \
    --generate-hashes --override requirements/overrides.txt "$@" "requirements/$name.in" -o "$work/$name.uv" >/dev/null
  { echo "# Made by scripts/lock.sh from $name.in"; drop_common_markers <"$work/$name.uv"; } >"$work/$name.txt"
  ! grep -nE 'https?:|file:|index-url|find-links| @ |x86_64' "$work/$name.txt" >&2 ||
    die "$name.txt would contain URLs or platform markers (listed above); nothing is changed"
}

lock cpu "" --override requirements/overrides-cpu.txt
lock gpu "$work/cpu.txt"
lock export "" --constraint "$work/cpu.txt" --constraint "$work/gpu.txt"
lock dev "" --override requirements/overrides-dev.txt --constraint "$work/cpu.txt" --constraint "$work/gpu.txt"
lock uv ""
lock tritonserver "" --no-deps
mv "$work"/{cpu,gpu,export,dev,uv,tritonserver}.txt requirements/
echo "lock.sh: done; review the changes with git diff requirements"
