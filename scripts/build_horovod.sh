#!/usr/bin/env bash
# Builds the Horovod wheel against the TensorFlow of a Python environment; prints only the path of the wheel.
# usage: build_horovod.sh PYTHON FOLDER_FOR_WHEELS [cpu|gpu]
#        build_horovod.sh --check [cpu|gpu]     only checks that the build requirements are installed
# gpu: all-reduce with NCCL. NCCL's headers and library come from the nvidia-nccl wheel next to TensorFlow, nvcc from
# a CUDA 12 toolkit in HOROVOD_CUDA_HOME, CUDA_HOME, /usr/local/cuda or on PATH. HOROVOD_BUILD_CUDA_CC_LIST
# ("80,90") limits the GPU architectures to compile for.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
patch_file=$(ls "$here"/../requirements/horovod-*.patch)
version=${patch_file##*/horovod-}
version=${version%.patch}
source_sha256=92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0

die() { echo "build_horovod.sh: $*" >&2; exit 1; }

cuda_home() {
  local folder
  for folder in "${HOROVOD_CUDA_HOME:-}" "${CUDA_HOME:-}" /usr/local/cuda; do
    if [ -n "$folder" ] && [ -x "$folder/bin/nvcc" ]; then echo "$folder"; return; fi
  done
  command -v nvcc >/dev/null && dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")"
}

check_machine() { # VARIANT
  local tool missing=
  for tool in gcc g++ make patch; do
    command -v "$tool" >/dev/null || missing="$missing $tool"
  done
  [ -z "$missing" ] || die "Horovod must be compiled, but this machine lacks:$missing." \
    "On Debian or Ubuntu: apt-get install build-essential patch"
  [ "$1" = cpu ] || cuda_home >/dev/null || die "no nvcc found: Horovod's GPU build requires a CUDA 12 toolkit" \
    "(set HOROVOD_CUDA_HOME to its folder); for a CPU setup, run scripts/setup.sh --cpu"
}

use_nccl() {
  local nccl
  nccl=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia/nccl
  [ -e "$nccl/lib/libnccl.so.2" ] || die "no NCCL in $nccl: install requirements/gpu.txt first"
  mkdir "$work/nccl"
  ln -s "$nccl/lib/libnccl.so.2" "$work/nccl/libnccl.so" # the wheel lacks the name that the linker expects
  export HOROVOD_GPU_OPERATIONS=NCCL HOROVOD_NCCL_LINK=SHARED
  export HOROVOD_CUDA_HOME HOROVOD_NCCL_INCLUDE=$nccl/include HOROVOD_NCCL_LIB=$work/nccl
  HOROVOD_CUDA_HOME=$(cuda_home)
}

fetch_source() {
  echo "horovod==$version --hash=sha256:$source_sha256" >"$work/source.txt"
  "$python" -m pip download --quiet --no-deps --no-binary=:all: --no-build-isolation --require-hashes -d "$work" \
    -r "$work/source.txt" >"$log" 2>&1 ||
    { tail -n 20 "$log" >&2; die "cannot download the source of horovod $version, or its hash does not match (see pip's message above)"; }
  tar -xzf "$work/horovod-$version.tar.gz" -C "$work"
  patch --quiet -p1 -d "$work/horovod-$version" <"$patch_file" || die "$patch_file does not apply to horovod $version"
}

tell_time() { # reports progress while the compiler prints nothing
  local seconds=0 nap=
  trap 'kill "$nap"; exit' TERM
  while true; do
    sleep 30 & nap=$!
    wait "$nap"
    seconds=$((seconds + 30))
    echo "build_horovod.sh: still compiling after $seconds s" >&2
  done
}

compile() {
  # Puts the environment's cmake first on PATH; Horovod is compiled against the environment's TensorFlow.
  export PATH="$(dirname "$python"):$PATH" CMAKE_POLICY_VERSION_MINIMUM=3.5 MAKEFLAGS="${MAKEFLAGS:--j$(nproc)}"
  export HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1
  tell_time & ticker=$!
  "$python" -m pip wheel --no-deps --no-build-isolation -w "$work/wheel" "$work/horovod-$version" >"$log" 2>&1 || {
    cp "$log" "$wheels/horovod-build.log"
    { grep -E '[Ee]rror' "$log" || cat "$log"; } | tail -n 20 >&2
    die "Horovod failed to compile; full log: $wheels/horovod-build.log"
  }
}

clean_up() {
  [ -z "$ticker" ] || kill "$ticker" 2>/dev/null || true
  rm -rf "$work"
}

main() {
  if [ "${1:-}" = --check ]; then check_machine "${2:-cpu}"; return; fi
  [ $# -ge 2 ] || die "usage: build_horovod.sh PYTHON FOLDER_FOR_WHEELS [cpu|gpu]"
  wheels=$2 variant=${3:-cpu} ticker=
  check_machine "$variant"
  mkdir -p "$wheels"
  work=$(mktemp -d)
  trap clean_up EXIT
  log=$work/build.log
  # CMake lists cannot contain paths with spaces: use a link without spaces to the environment.
  ln -s "$(dirname "$(dirname "$(realpath --no-symlinks "$1")")")" "$work/env"
  python=$work/env/bin/python
  fetch_source
  [ "$variant" = cpu ] || use_nccl
  compile
  mv "$work"/wheel/horovod-*.whl "$wheels/"
  ls "$wheels"/horovod-"$version"-*.whl
}

main "$@"; exit # on one line, so that bash has read the whole file and editing it cannot affect a running build
