#!/usr/bin/env bash
# Creates this checkout's Python environment: .venv with the locked packages and Horovod. See usage below.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: setup.sh [--cpu | --gpu]

Creates .venv with Python 3.11 or 3.12, the locked packages of requirements/ and Horovod compiled against them. The
first run takes 4 to 10 minutes on two cores, mostly to compile Horovod. If the environment is up to date, the script
finishes within a second; after a change in requirements/ it installs only what changed. Without an option, an existing
environment keeps its variant, and a new one is for the GPU if nvidia-smi lists one.

environment variables, all optional:
  PYTHON       Python to use, name or path (default: the first suitable one of python3.12, python3.11, python3, python)
  VARIANT      cpu or gpu, same as the options
  VENV         folder of the environment (default: .venv in the checkout)
  WHEEL_CACHE  cache folder for the compiled Horovod (default: .wheels in the checkout)
pip settings (index-url, cert) also apply to uv; uv's own variables (UV_DEFAULT_INDEX ...) take precedence.
TEXT
}

root=$(cd "$(dirname "$0")/.." && pwd)
requirements=$root/requirements
venv=$(realpath --canonicalize-missing --no-symlinks "${VENV:-$root/.venv}")
cache=$(realpath --canonicalize-missing --no-symlinks "${WHEEL_CACHE:-$root/.wheels}")
stamp=$venv/setup-stamp # "unfinished" during an installation, then the key of what is installed
started=$SECONDS

say() { echo "setup: $*"; }
die() { echo "setup.sh: $*" >&2; exit 1; }

parse_arguments() {
  variant=${VARIANT:-}
  for argument in "$@"; do
    case "$argument" in
      --cpu | --gpu) variant=${argument#--} ;;
      -h | --help) usage; exit 0 ;;
      *) usage >&2; exit 2 ;;
    esac
  done
  case "$variant" in
    cpu | gpu) ;;
    "") variant=$(sed -n 's/^variant //p' "$stamp" 2>/dev/null || true)
        if [ -z "$variant" ]; then variant=$(has_gpu && echo gpu || echo cpu); fi ;;
    *) echo "setup.sh: VARIANT is '$variant'; expected cpu or gpu" >&2; exit 2 ;;
  esac
}

has_gpu() { [[ "$(nvidia-smi -L 2>/dev/null)" == "GPU "* ]]; }

check_machine() {
  [ "$(uname -s) $(uname -m)" = "Linux x86_64" ] ||
    die "the locked packages are for Linux on x86_64; this is $(uname -s) on $(uname -m)"
}

# --- Python ---------------------------------------------------------------------------------------------------------

# Prints 3.x.y. Fails if it is not a working Python, such as pyenv's shim of an inactive version.
python_version() { timeout 30 "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }

is_wanted() { case "$1" in 3.11.* | 3.12.*) ;; *) return 1 ;; esac; }

# Sets `python` and `version`: the environment's own Python, or the first suitable one on PATH.
find_python() {
  local path found=
  python=$venv/bin/python
  if [ -x "$python" ] && version=$(python_version "$python"); then return; fi
  for name in ${PYTHON:-python3.12 python3.11 python3 python}; do
    while read -r path; do
      version=$(python_version "$path") || version="does not run"
      if is_wanted "$version"; then python=$path; return; fi
      found="$found
  $path: $version"
    done < <(type -aP "$name" || true)
  done
  die "Python 3.11 or 3.12 is required; found: ${found:-no ${PYTHON:-python3}}
Install one; if it is not on PATH, set PYTHON. For example
  apt-get install python3.11-dev python3.11-venv      (Debian 12; on Ubuntu 24.04: python3.12-dev and python3.12-venv)
  PYTHON=/path/to/python3.12 bash scripts/setup.sh"
}

# --- Existing environment -------------------------------------------------------------------------------------------

# A hash of everything that determines the environment, including its own path (its scripts contain it).
key() {
  { echo "$variant $venv $(python_version "$venv/bin/python")"
    cat "$requirements"/{uv,"$variant",export,dev}.txt "$requirements"/horovod-*.patch "$root"/scripts/{setup,build_horovod}.sh
  } | sha256sum | cut -d ' ' -f 1
}

is_finished() { [ -f "$stamp" ] && [ "$(head -n 1 "$stamp")" = "$(key)" ] && ! is_other_python; }

# Whether PYTHON has a different version than the environment's Python.
is_other_python() {
  [ -n "${PYTHON:-}" ] && version=$(python_version "$PYTHON") && [ "$version" != "$(python_version "$venv/bin/python")" ]
}

lock() {
  mkdir -p "$(dirname "$venv")" && touch "$venv.lock" || die "cannot write to $(dirname "$venv")"
  command -v flock >/dev/null || return 0
  exec 9>"$venv.lock"
  flock --nonblock 9 || { say "another setup of $venv is running; waiting for it"; flock 9; }
}

check_disk() {
  local need=4 folder=$venv free
  [ "$variant" = cpu ] || need=12
  while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
  free=$(($(df -Pk "$folder" | awk 'NR == 2 {print $4}') / 1048576))
  [ "$free" -ge "$need" ] || die "$folder has $free GB free; the $variant packages need about $need GB." \
    "Free disk space, or put the environment elsewhere: VENV=FOLDER bash scripts/setup.sh"
}

# Removes an environment that an earlier run left unfinished or that cannot be updated; never one created by the user.
remove_unusable() {
  local why= holds
  [ -n "$(ls -A "$venv" 2>/dev/null)" ] || return 0
  holds=$(python_version "$venv/bin/python") || holds="no working Python"
  if [ "$(head -n 1 "$stamp" 2>/dev/null)" = unfinished ]; then why="an earlier setup did not finish"
  elif ! is_wanted "$holds"; then why="it has $holds; 3.11 or 3.12 is required"
  elif is_other_python; then why="it has Python $holds, not $version"
  elif [ -f "$stamp" ] && ! grep -qxF "folder $venv" "$stamp"; then why="it was created at another path"
  fi
  [ -n "$why" ] || return 0
  [ -f "$stamp" ] || die "$venv cannot be used ($why) and was not created by this script." \
    "Remove it, or choose another folder: VENV=FOLDER bash scripts/setup.sh"
  say "recreating $venv: $why"
  rm -rf "$venv"
}

# Sets `wheels`, the cache folder of the matching Horovod wheel; succeeds if the wheel is there and intact, so that no
# compiler is needed.
find_wheel() {
  local tensorflow python_tag recipe
  tensorflow=$(sed -nE 's/^tensorflow(-cpu)?==([^ ]+).*/\2/p' "$requirements/$variant.txt")
  python_tag=cp$(cut -d . -f 1,2 <<<"$version" | tr -d .)
  recipe=$(cat "$requirements"/horovod-*.patch "$root/scripts/build_horovod.sh" | sha256sum | cut -c 1-12)
  wheels=$cache/$python_tag-tensorflow-$tensorflow-$variant-$recipe
  (cd "$wheels" && sha256sum --check --status SHA256SUMS) 2>/dev/null
}

# --- Steps ----------------------------------------------------------------------------------------------------------

make_environment() {
  if [ "$python" = "$venv/bin/python" ]; then
    say "[1/4] updating the environment $venv with Python $version"
    mark unfinished
  else
    say "[1/4] creating the environment $venv with Python $version ($python)"
    mkdir -p "$venv"
    mark unfinished
    "$python" -m venv "$venv" >"$venv/venv.log" 2>&1 || { cat "$venv/venv.log" >&2
      die "'$python -m venv' failed (see above). On Debian or Ubuntu: apt-get install python${version%.*}-venv"; }
  fi
  hand_pip_settings_to_uv
  "$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --retries 2 --require-hashes --no-deps \
    -r "$requirements/uv.txt" ||
    die "cannot install uv (see pip's message above): is the package index reachable?
Behind a proxy, set HTTPS_PROXY; for a mirror: pip config set global.index-url ADDRESS"
}

hand_pip_settings_to_uv() { # uv does not read pip's configuration
  local settings index cert
  settings=$("$venv/bin/python" -m pip config list 2>/dev/null || true) # global, user, and PIP_CONFIG_FILE settings
  index=${PIP_INDEX_URL:-$(pip_setting index-url)}
  cert=${PIP_CERT:-$(pip_setting cert)}
  if [ -n "$index" ]; then export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}; fi
  if [ -n "$cert" ]; then export SSL_CERT_FILE=${SSL_CERT_FILE:-$cert}; fi
}

pip_setting() { sed -n "s/^global\.$1='\(.*\)'$/\1/p" <<<"$settings"; } # NAME

uv_pip() { # shows a progress bar on a terminal, otherwise only errors
  local command=$1 quiet=
  shift
  [ -t 2 ] || quiet=--quiet
  "$venv/bin/uv" pip "$command" $quiet --python "$venv/bin/python" "$@"
}

install_packages() {
  local size="2 GB, 1 to 3 minutes" other=tensorflow
  [ "$variant" = cpu ] || size="8 GB, 3 to 10 minutes" other=tensorflow-cpu
  say "[2/4] installing requirements/$variant.txt, export.txt and dev.txt (first time: $size; from uv's cache: half a minute)"
  # Both TensorFlow packages install into the same folder: uninstall both when the variant changes.
  if [ -n "$(find "$venv"/lib -maxdepth 3 -name "${other//-/_}-*.dist-info")" ]; then uv_pip uninstall tensorflow tensorflow-cpu; fi
  # Build dependencies of source distributions are locked and verified as well.
  uv_pip install --no-deps --require-hashes --build-constraints "$requirements/$variant.txt" \
    -r "$requirements/$variant.txt" -r "$requirements/export.txt" -r "$requirements/dev.txt" ||
    die "cannot install the packages (see uv's message above). Usual causes: no network, or a full disk" \
      "($venv or uv's cache, $("$venv/bin/uv" cache dir))"
}

install_horovod() {
  if find_wheel && use_wheel; then return; fi
  build_wheel
  use_wheel || { rm -rf "$wheels"; die "Horovod was compiled but does not load (see message above)"; }
}

build_wheel() {
  say "[3/4] compiling Horovod, once (2 to 8 minutes on two cores)"
  mkdir -p "$cache" || die "cannot write to $cache (WHEEL_CACHE)"
  local fresh
  fresh=$(mktemp -d "$cache/.building-XXXXXX")
  bash "$root/scripts/build_horovod.sh" "$venv/bin/python" "$fresh" "$variant" >/dev/null ||
    { move_log "$fresh"; rm -rf "$fresh"; die "Horovod is missing; the environment is not finished"; }
  (cd "$fresh" && sha256sum -- *.whl >SHA256SUMS && chmod a+rX .)
  rm -rf "$wheels"
  mv "$fresh" "$wheels"
}

move_log() { [ ! -f "$1/horovod-build.log" ] || mv "$1/horovod-build.log" "$cache/"; }

use_wheel() {
  say "[3/4] installing Horovod $(basename "$wheels")"
  uv_pip install --no-deps --reinstall "$wheels"/horovod-*.whl || return 1
  say "[4/4] compiling bytecode and checking that Horovod and TensorFlow load (about a minute)"
  compile_bytecode
  (cd "$venv" && ./bin/python - "$variant") >"$venv/check.log" 2>&1 <<'PY' || { cat "$venv/check.log" >&2; return 1; }
import sys
import horovod.tensorflow as hvd
if not hvd.gloo_built():
    sys.exit("Horovod was built without Gloo")
if sys.argv[1] == "gpu" and not hvd.nccl_built():
    sys.exit("Horovod was built without NCCL")
PY
}

# Without bytecode, TensorFlow takes three times as long to import. Python writes none where it may not write, or if
# PYTHONDONTWRITEBYTECODE is set. The exit code is ignored: some packages contain templates that are not valid Python.
compile_bytecode() { "$venv/bin/python" -m compileall -q -j 0 "$venv/lib" >/dev/null 2>&1 || true; }

mark() { printf '%s\n' "$1" "variant $variant" "folder $venv" >"$stamp.new" && mv "$stamp.new" "$stamp"; }

main() {
  parse_arguments "$@"
  check_machine
  if is_finished; then say "$venv is up to date ($variant)"; return; fi
  lock
  if is_finished; then say "$venv is up to date ($variant)"; return; fi
  remove_unusable
  find_python
  check_disk
  find_wheel || bash "$root/scripts/build_horovod.sh" --check "$variant" || exit 1
  make_environment
  install_packages
  install_horovod
  mark "$(key)"
  say "done in $((SECONDS - started)) s: $venv ($variant)"
}

trap 'echo "setup.sh: interrupted; the environment is not finished. Run this script again" >&2; exit 130' INT TERM
main "$@"; exit # on one line, so that bash has read the whole file and editing it cannot affect a running script
