"""Memory limits and workers: their flags, and the processes that work on the parts of a dataset."""

import argparse
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from data.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")

CONNECT_SECONDS = 30
LEAST_LIMIT = 2**20
# Memory of a process with NVTabular loaded: a measurement plus 20%.
PROCESS_BYTES = 450 * 2**20


def add_resource_flags(parser: argparse.ArgumentParser) -> None:
    """Add --memory_limit, --use_dask and --dask_scheduler."""
    add = parser.add_argument
    add(
        "--memory_limit",
        type=byte_size,
        metavar="SIZE",
        help="of all processes together, such as 4GB; default: half of the memory",
    )
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
        size = int(parse_bytes(text))
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"expected a size such as 4GB or 1500MiB, got {text!r}") from error
    if size < LEAST_LIMIT:
        raise argparse.ArgumentTypeError(f"expected a size with its unit, such as 4GB or 1500MiB, got {text!r}")
    return size


def default_limit() -> int:
    """Return half of the memory that is available to this process, in bytes."""
    from distributed.system import MEMORY_LIMIT

    return int(MEMORY_LIMIT) // 2


class Workers:
    """Workers that apply functions to the parts of a dataset; NVTabular uses the same ones.

    Args:
        number: number of parallel workers.
        client: Dask client; None works in this process.
    """

    def __init__(self, number: int, client: Any = None) -> None:
        self.number = number
        self._client = client

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Yield the results as they complete, in any order.

        Raises:
            DataError: if a call raises one. Any error of the first failing call is re-raised, and the others are
                cancelled.
        """
        if self._client is None:
            yield from map(function, items)
            return
        from distributed import as_completed

        futures = self._client.map(function, items, pure=False)
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            self._client.cancel(futures)

    def map_in_order(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Yield the results in the order of the items, with a few calls running ahead.

        Without a cluster, a thread works on the next item while the caller uses the result of the last one.

        Raises:
            DataError: if a call raises one.
        """
        with ExitStack() as stack:
            if self._client is None:
                submit = stack.enter_context(ThreadPoolExecutor(1)).submit
            else:
                submit = partial(self._client.submit, pure=False)
            ahead: deque[Any] = deque()
            stack.callback(lambda: [future.cancel() for future in ahead])
            for item in items:
                ahead.append(submit(function, item))
                if len(ahead) > self.number:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()


@contextmanager
def start_workers(*, use_dask: bool, scheduler: str | None, folder: Path) -> Iterator[Workers]:
    """Yield the workers of a run, which are stopped or disconnected at the end of the block.

    Args:
        use_dask: whether to start a local cluster, with a worker per GPU, or per CPU core if there is no GPU.
        scheduler: address of a running cluster, whose workers must see the same files and have this project installed.
        folder: folder for the files of a local cluster.

    Raises:
        DataError: if the scheduler cannot be reached or has no workers.
    """
    if not use_dask and scheduler is None:
        yield Workers(1)
        return
    from distributed import Client
    from distributed.comm import parse_address
    from distributed.comm.registry import get_backend

    with ExitStack() as stack:
        target = stack.enter_context(_local_cluster(folder)) if scheduler is None else scheduler
        try:
            # Check the address first: a client that fails to connect would stay Dask's default client.
            if scheduler is not None:
                get_backend(parse_address(scheduler)[0])
            client = stack.enter_context(Client(target, timeout=CONNECT_SECONDS))
        except (OSError, TimeoutError, ValueError) as error:
            raise DataError(
                f"--dask_scheduler {scheduler}: cannot be reached ({error}); start it, or correct the address"
            ) from error
        number = len(client.scheduler_info()["workers"])
        if not number:
            raise DataError(f"--dask_scheduler {scheduler}: has no workers; start some with: dask worker {scheduler}")
        # NVTabular picks up Dask's default client.
        yield Workers(number, client)


def _local_cluster(folder: Path) -> Any:
    from data.encoding.nvtabular_setup import ON_GPU

    if ON_GPU:
        from dask_cuda import LocalCUDACluster

        return LocalCUDACluster(local_directory=str(folder), dashboard_address=None)
    from distributed import LocalCluster

    # Memory is bounded by the size of the parts; Dask's own limit would kill busy workers.
    return LocalCluster(
        n_workers=len(os.sched_getaffinity(0)),
        threads_per_worker=1,
        memory_limit=0,
        local_directory=str(folder),
        dashboard_address=None,
    )
