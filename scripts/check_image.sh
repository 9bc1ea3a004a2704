#!/usr/bin/env bash
# Builds the image and verifies it; see usage below.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: check_image.sh [cpu] [gpu]      (default: both)

cpu  builds the CPU image, fails if it is larger than 3 GB, and runs in it, as a user unknown to the image: a command
     with an invalid flag, a small quickstart with two workers, and some of the tests
gpu  compiles and links Horovod with CUDA and NCCL as in the GPU image; no GPU required

With a Docker engine, the images use the base images of the Dockerfile. Without one, run this script as root: it builds
and runs them with buildah (apt-get install buildah debootstrap) on an Ubuntu 24.04 base made by debootstrap, with
Ubuntu's own CUDA 12 compiler for gpu. Bases, layers and images are kept for the next run; remove them with
docker image rm or buildah rmi.

environment variables, all optional:
  WORK            folder for the base, logs and quickstart output (default: /var/tmp/check_image)
  STORAGE_DRIVER  buildah's storage driver: overlay (the default where it can be mounted) or vfs
pip settings (index-url, cert) also apply to the build; they are passed as secrets and not stored in the image.
TEXT
}

root=$(cd "$(dirname "$0")/.." && pwd)
work=${WORK:-/var/tmp/check_image}
image=localhost/wd2-check-cpu wheel_image=localhost/wd2-check-horovod-gpu
base=localhost/wd2-check-base cuda_base=localhost/wd2-check-cuda
stranger=4321:4321
largest_mb=3000
ubuntu=http://archive.ubuntu.com/ubuntu
keyring=pool/main/u/ubuntu-keyring/ubuntu-keyring_2023.11.28.1_all.deb
keyring_sha256=36de43b15853ccae0028e9a767613770c704833f82586f28eb262f0311adb8a8

say() { echo "check_image: $*"; }
die() { echo "check_image.sh: $*" >&2; exit 1; }
fail() { tail -n 30 "$2" >&2; die "$1; full log: $2"; } # WHAT, LOG

# --- Engine ---------------------------------------------------------------------------------------------------------

find_engine() {
  if docker info >/dev/null 2>&1; then engine=docker; return; fi
  [ "$(id -u)" = 0 ] && command -v buildah >/dev/null && command -v debootstrap >/dev/null ||
    die "no Docker engine; without one, this needs root, buildah and debootstrap: apt-get install buildah debootstrap"
  engine=buildah
  export BUILDAH_ISOLATION=chroot
  if [ -z "${STORAGE_DRIVER:-}" ]; then
    export STORAGE_DRIVER=overlay
    buildah info >/dev/null 2>&1 || STORAGE_DRIVER=vfs # overlay cannot be mounted everywhere
  fi
}

stop() {
  if [ -n "$container" ]; then buildah rm "$container" >/dev/null; container=; fi
}

# --- Bases ----------------------------------------------------------------------------------------------------------

make_base() {
  if buildah inspect --type image "$base" >/dev/null 2>&1; then return; fi
  say "building the base image $base, Ubuntu 24.04, with debootstrap"
  container=$(buildah from scratch)
  debootstrap_ubuntu "$(buildah mount "$container")" >"$work/debootstrap.log" 2>&1 ||
    fail "cannot build the base image: is $ubuntu reachable?" "$work/debootstrap.log"
  buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
  buildah commit --quiet "$container" "$base" >/dev/null
  stop
}

# Debian's debootstrap may predate this Ubuntu release, and Debian does not ship Ubuntu's keys.
debootstrap_ubuntu() { # FOLDER
  curl --fail --silent --show-error --retry 2 --output "$work/keyring.deb" "$ubuntu/$keyring" &&
    sha256sum --check <<<"$keyring_sha256  $work/keyring.deb" &&
    dpkg-deb --extract "$work/keyring.deb" "$work/keyring" &&
    debootstrap --variant=minbase --components=main,universe,multiverse \
      --keyring="$work/keyring/usr/share/keyrings/ubuntu-archive-keyring.gpg" \
      noble "$1" "$ubuntu" /usr/share/debootstrap/scripts/gutsy &&
    echo 'APT::Keep-Downloaded-Packages "false";' >"$1/etc/apt/apt.conf.d/keep-nothing" &&
    rm -rf "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/*
}

# gcc 12 is the newest that this CUDA supports. CUDA's libraries (4 GB) are removed: Horovod needs only the runtime.
make_cuda_base() {
  make_base
  say "adding Ubuntu's CUDA 12 compiler (downloads 1.5 GB once)"
  buildah build --layers --tag "$cuda_base" - >"$work/cuda.log" 2>&1 <<DOCKERFILE || fail "cannot install the CUDA compiler" "$work/cuda.log"
FROM $base
RUN apt-get update && apt-get install -y --no-install-recommends nvidia-cuda-toolkit && cd /usr/lib/x86_64-linux-gnu && \
    rm -rf libcublas* libcufft* libcurand* libcusolver* libcusparse* libnpp* /var/lib/apt/lists/*
ENV CC=gcc-12 CXX=g++-12
DOCKERFILE
}

# --- Build ----------------------------------------------------------------------------------------------------------

# Sets `secrets`: build options for the package index and its certificate.
find_secrets() {
  local settings index cert
  settings=$(python3 -m pip config list 2>/dev/null || true)
  index=${PIP_INDEX_URL:-$(pip_setting index-url)}
  cert=${PIP_CERT:-$(pip_setting cert)}
  (umask 077; printf '%s\n' '[global]' "${index:+index-url = $index}" "${cert:+cert = /run/secrets/ca}" >"$work/pip.conf")
  secrets=(--secret "id=pip,src=$work/pip.conf")
  if [ -n "$cert" ]; then secrets+=(--secret "id=ca,src=$cert"); fi
}

pip_setting() { sed -n "s/^global\.$1='\(.*\)'$/\1/p" <<<"$settings"; } # NAME

build() { # NAME, FOLDER, OPTION ...
  local name=$1 folder=$2 begin=$SECONDS options=()
  shift 2
  if [ $engine = buildah ]; then
    options=(--build-arg "CPU_BASE=$base" --build-arg "GPU_BASE=$base")
    [ "$STORAGE_DRIVER" = vfs ] || options+=(--layers) # with vfs, each layer is a full copy of the previous ones
  fi
  say "building $name with $engine${STORAGE_DRIVER:+ ($STORAGE_DRIVER)}"
  $engine build "${options[@]}" "${secrets[@]}" "$@" --tag "$name" "$folder" >"$work/build.log" 2>&1 ||
    fail "cannot build $name" "$work/build.log"
  say "built in $((SECONDS - begin)) s"
}

# --- Run ------------------------------------------------------------------------------------------------------------

start() { # IMAGE
  if [ $engine = buildah ]; then container=$(buildah from "$1"); fi
  running=$1
}

inside() { # COMMAND ...   as the image's own user
  if [ $engine = docker ]; then docker run --rm "$running" "$@"; else buildah run "$container" -- "$@"; fi
}

inside_as_stranger() { # COMMAND ...
  local options=(--user "$stranger" --volume "$work/outbrain:/outbrain" --volume "$work/results:/results")
  if [ $engine = docker ]; then
    docker run --rm --init --read-only --tmpfs /tmp "${options[@]}" "$running" "$@"
  else
    buildah run "${options[@]}" "$container" -- scripts/entrypoint.sh "$@" # buildah ignores the image's entrypoint
  fi
}

expect() { # WHAT, EXPECTED, FOUND
  [ "$2" = "$3" ] || die "$1: expected '$2', found '$3'"
  say "$1: $3"
}

code_of() { # COMMAND ...
  local code=0
  "$@" >"$work/command.log" 2>&1 || code=$?
  echo "$code"
}

size_mb() {
  if [ $engine = docker ]; then
    echo $(($(docker image inspect --format '{{.Size}}' "$running") / 1000000))
  else
    du -sx --block-size=MB "$(buildah mount "$container")" | sed 's/MB.*//'
  fi
}

# --- Checks ---------------------------------------------------------------------------------------------------------

check_cpu() {
  local size
  [ $engine = docker ] || make_base
  build "$image" "$root" --build-arg VARIANT=cpu
  start "$image"
  size=$(size_mb)
  say "size: $size MB"
  [ "$size" -le $largest_mb ] || die "the CPU image has $size MB; it may have at most $largest_mb"
  rm -rf "$work"/{outbrain,results}
  mkdir --mode=1777 "$work"/{outbrain,results}
  check_contents
  check_runs
  stop
}

check_contents() {
  expect "user of the image" 10001 "$(inside id -u)"
  expect "compilers in the image" "" "$(inside sh -c 'command -v gcc cc g++ make nvcc || true')"
  expect "mode and owner of the home folder" "700 10001" "$(inside sh -c 'stat -c "%a %u" ~')"
  expect "bytes of secrets in the image" 0 "$(inside sh -c 'cat /etc/pip.conf /run/secrets/* 2>/dev/null | wc -c')"
  expect "environment matches the lock files" "setup: /wd/.venv is up to date (cpu)" "$(inside_as_stranger bash scripts/setup.sh)"
}

check_runs() {
  expect "UID:GID unknown to the image" $stranger "$(inside_as_stranger sh -c 'touch ~/made /outbrain/made /results/made && id -u | tr "\n" : && id -g')"
  expect "mode and owner of that user's home folder" "700 ${stranger%:*}" "$(inside_as_stranger sh -c 'stat -c "%a %u" ~')"
  expect "exit code for an invalid flag" 2 "$(code_of inside_as_stranger python main.py --deep_learning_rat 0.1)"
  say "running the quickstart with two workers; output: $work/quickstart.log"
  inside_as_stranger bash scripts/quickstart.sh --displays 20000 --output /results/quickstart >"$work/quickstart.log" 2>&1 ||
    fail "quickstart fails in the image" "$work/quickstart.log"
  say "metrics: $(cat "$work/results/quickstart/evaluation/metrics.json")"
  inside_as_stranger python -m pytest -q -p no:cacheprovider tests/test_main_errors.py tests/distributed/test_collectives.py ||
    die "tests fail in the image"
}

# The Dockerfile with a reduced gpu.txt: RAPIDS and CUDA's libraries (6 GB) are not needed to compile Horovod.
only_what_horovod_needs() {
  rm -rf "$work/gpu"
  mkdir "$work/gpu"
  cp -r "$root"/{Dockerfile,.dockerignore,requirements,scripts} "$work/gpu/"
  # A requirement is a line followed by its hashes, which are indented.
  { awk '/^[^ ]/ {wanted = !/^tensorflow-cpu==/} wanted' "$root/requirements/cpu.txt"
    awk '/^[^ ]/ {wanted = /^(tensorflow|nvidia-nccl-cu12)==/} wanted' "$root/requirements/gpu.txt"
  } >"$work/gpu/requirements/gpu.txt"
}

check_gpu() {
  local options=(--build-arg VARIANT=gpu --target environment) library
  if [ $engine = buildah ]; then
    make_cuda_base
    options+=(--build-arg "GPU_BASE=$cuda_base")
  fi
  only_what_horovod_needs
  build "$wheel_image" "$work/gpu" "${options[@]}" # ends with an import check that fails without NCCL
  start "$wheel_image"
  library=$(inside sh -c 'echo .venv/lib/python3*/site-packages/horovod/tensorflow/mpi_lib*.so')
  inside readelf --wide --sections --dynamic "$library" >"$work/readelf.log"
  expect "Horovod links to NCCL" 1 "$(grep -c 'NEEDED.*libnccl.so.2' "$work/readelf.log")"
  expect "Horovod's RPATH contains NCCL" 1 "$(grep -c 'R.*PATH.*nvidia/nccl/lib' "$work/readelf.log")"
  expect "sections with CUDA kernels" 1 "$(grep -c ' \.nv_fatbin' "$work/readelf.log")"
  stop
}

main() {
  local part
  for part in "$@"; do
    case "$part" in
      cpu | gpu) ;;
      -h | --help) usage; exit 0 ;;
      *) usage >&2; exit 2 ;;
    esac
  done
  [ $# -gt 0 ] || set -- cpu gpu
  mkdir -p "$work"
  container=
  trap 'stop; rm -f "$work/pip.conf"' EXIT
  find_engine
  find_secrets
  for part in "$@"; do "check_$part"; done
  say "all passed in $SECONDS s"
}

main "$@"; exit # on one line, so that bash has read the whole file and editing it cannot affect a running script
