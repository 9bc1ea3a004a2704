"""Memory and workers: their flags, and how large parts may be, so that memory follows a limit and not the rows."""

import argparse

from data.errors import DataError

# Of a process with NVTabular loaded, and of a row of the part that is worked on: what was measured, and a fifth more.
PROCESS_BYTES = 450 * 2**20
ROW_BYTES = 1_900
# Larger parts are not faster.
LEAST_ROWS, MOST_ROWS = 20_000, 500_000
# Each part has a file or two open while the raw tables are divided.
MOST_PARTS = 400


def add_resource_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that `preproc` and `transform` share."""
    add = parser.add_argument
    add("--memory_limit", type=byte_size, metavar="SIZE", help="for all processes, such as 4GB; default: half of it")
    add("--use_dask", action="store_true", help="start a local Dask cluster: a worker per GPU, else per CPU core")
    add("--dask_scheduler", metavar="ADDRESS", help="use a running Dask cluster, such as tcp://host:8786")


def check_resource_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program for flags that contradict each other."""
    if args.use_dask and args.dask_scheduler:
        parser.error("--use_dask starts a cluster and --dask_scheduler uses a running one; give one of them")


def byte_size(text: str) -> int:
    """A `type` for argparse: 4GB, 1500MiB."""
    from dask.utils import parse_bytes

    try:
        return int(parse_bytes(text))
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"expected a size such as 4GB or 1500MiB, got {text!r}") from error


def default_limit() -> int:
    """Half of the memory that this process may use, in bytes."""
    from distributed.system import MEMORY_LIMIT

    return int(MEMORY_LIMIT) // 2


def number_of_parts(rows: int, limit: int, workers: int, tables_bytes: int) -> int:
    """Into how many parts to divide rows.

    Args:
        rows: about how many there are.
        limit: bytes for all processes together.
        workers: processes that work at a time; with more than one, the process that leads them takes memory as well.
        tables_bytes: of the side tables, which every process has.

    Raises:
        DataError: the limit is too small.
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
