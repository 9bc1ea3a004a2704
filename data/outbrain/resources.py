"""Flags for memory and workers, and the part size that keeps memory within a limit whatever the number of rows."""

import argparse

from data.errors import DataError

# Memory of a process with NVTabular loaded, and of a row of the part being processed: measurements plus 20%.
PROCESS_BYTES = 450 * 2**20
ROW_BYTES = 1_900
# Bounds of the rows per part; larger parts are not faster.
LEAST_ROWS, MOST_ROWS = 20_000, 500_000
# Each part keeps a file open while a raw table is partitioned.
MOST_PARTS = 400


def add_resource_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags shared by `preproc` and `transform`."""
    add = parser.add_argument
    add("--memory_limit", type=byte_size, metavar="SIZE", help="for all processes, such as 4GB; default: half of it")
    add("--use_dask", action="store_true", help="start a local Dask cluster: a worker per GPU, else per CPU core")
    add("--dask_scheduler", metavar="ADDRESS", help="use a running Dask cluster, such as tcp://host:8786")


def check_resource_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with an error if flags contradict each other."""
    if args.use_dask and args.dask_scheduler:
        parser.error("--use_dask starts a cluster and --dask_scheduler uses a running one; give one of them")


def byte_size(text: str) -> int:
    """Parse a size such as 4GB or 1500MiB to bytes; a `type` for argparse."""
    from dask.utils import parse_bytes

    try:
        return int(parse_bytes(text))
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"expected a size such as 4GB or 1500MiB, got {text!r}") from error


def default_limit() -> int:
    """Return half of the memory that is available to this process, in bytes."""
    from distributed.system import MEMORY_LIMIT

    return int(MEMORY_LIMIT) // 2


def number_of_parts(rows: int, limit: int, workers: int, tables_bytes: int) -> int:
    """Return the number of parts that keeps memory within a limit.

    Args:
        rows: approximate number of rows.
        limit: memory limit in bytes, summed over all processes.
        workers: number of worker processes; if more than one, the coordinating process takes memory as well.
        tables_bytes: bytes of the side tables, which every process loads.

    Raises:
        DataError: if the limit is too small.
    """
    processes = workers + (workers > 1)
    fixed = processes * (PROCESS_BYTES + tables_bytes)
    least = fixed + workers * LEAST_ROWS * ROW_BYTES
    if limit < least:
        raise DataError(
            f"--memory_limit {limit / 2**20:.0f} MiB: {processes} processes need at least {least / 2**20:.0f} MiB, "
            f"with {tables_bytes / 2**20:.0f} MiB of ads and documents in each; raise it, or take fewer workers"
        )
    rows_per_part = min(MOST_ROWS, (limit - fixed) // (workers * ROW_BYTES))
    parts = max(workers, -(-rows // rows_per_part))
    if parts > MOST_PARTS:
        raise DataError(
            f"--memory_limit {limit / 2**20:.0f} MiB: {rows:,} rows would need {parts} parts, more than {MOST_PARTS}; "
            "raise it"
        )
    return parts
