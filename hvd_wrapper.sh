#!/bin/sh
# Assigns one GPU to each worker, then execs the command:  horovodrun -np 8 sh hvd_wrapper.sh python main.py ...
#
# Worker k of a host sees only entry k of CUDA_VISIBLE_DEVICES (indices, UUIDs or MIG names), counted from 0, or GPU k
# if the variable is not set. Nothing changes without a launcher, with an empty list or -1 (CPU run), or if SLURM has
# already bound one GPU to each task. The original list is kept in HOST_VISIBLE_DEVICES, for CPU affinity.
set -eu

die() { printf 'hvd_wrapper.sh: %s\n' "$1" >&2; exit 2; }

entry() ( # POSITION LIST: prints the entry at a position of a comma-separated list, counted from 0
  position=$1 IFS=', '
  # shellcheck disable=SC2086
  set -- $2
  [ "$position" -lt $# ] ||
    die "worker $position on this host has no GPU: CUDA_VISIBLE_DEVICES lists $#. Start at most $# workers per host or list more GPUs"
  shift "$position"
  echo "$1"
)

[ $# -gt 0 ] || die "usage: hvd_wrapper.sh COMMAND [ARGUMENT ...]"

# horovodrun; Open MPI; Intel MPI; MPICH and other PMI launchers; SLURM. The first variable that is set is used.
local_rank=${HOROVOD_LOCAL_RANK:-${OMPI_COMM_WORLD_LOCAL_RANK:-${MPI_LOCALRANKID:-${PMI_LOCAL_RANK:-}}}}
launcher=
if [ -z "$local_rank" ] && [ -n "${SLURM_LOCALID:-}" ]; then local_rank=$SLURM_LOCALID launcher=slurm; fi
case "$local_rank" in
  '') exec "$@" ;;
  *[!0-9]*) die "the launcher set the local rank to '$local_rank', which is not a number" ;;
esac

host_gpus=0
for gpu in /proc/driver/nvidia/gpus/*; do
  if [ -e "$gpu" ]; then host_gpus=$((host_gpus + 1)); fi
done

case "${CUDA_VISIBLE_DEVICES-unset}" in
  '' | -1* | NoDevFiles) exec "$@" ;; # SLURM sets NoDevFiles for jobs without GPUs
  unset)
    if [ "$host_gpus" -gt 0 ] && [ "$local_rank" -ge "$host_gpus" ]; then
      die "worker $local_rank on this host has no GPU: there are only $host_gpus. Start at most $host_gpus workers per host, or set CUDA_VISIBLE_DEVICES= to run on the CPU"
    fi
    export CUDA_VISIBLE_DEVICES="$local_rank"
    ;;
  *)
    if [ "$launcher" != slurm ] || [ "${CUDA_VISIBLE_DEVICES#*,}" != "$CUDA_VISIBLE_DEVICES" ]; then
      export HOST_VISIBLE_DEVICES="$CUDA_VISIBLE_DEVICES"
      CUDA_VISIBLE_DEVICES=$(entry "$local_rank" "$CUDA_VISIBLE_DEVICES")
    fi
    ;;
esac

# All gradients are reduced in one group per step. On GPUs, waiting for Horovod's next cycle (1 ms by default) only adds
# latency; on CPUs, shorter cycles take time from the computation.
if [ "$host_gpus" -gt 0 ]; then export HOROVOD_CYCLE_TIME="${HOROVOD_CYCLE_TIME:-0.1}"; fi

exec "$@"
