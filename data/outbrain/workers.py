"""Who does the work, part by part: this process, a cluster of Dask workers that it starts, or a running one."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from data.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")

CONNECT_SECONDS = 30


class Workers:
    """Applies functions to the parts of a dataset; NVTabular works on the same workers.

    Args:
        number: how many work at a time.
        client: Dask's; None for this process.
    """

    def __init__(self, number: int, client: Any = None) -> None:
        self.number = number
        self._client = client

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Results, each as soon as it is there, in any order.

        Raises:
            DataError: what the first failing call raised; the others are cancelled.
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


@contextmanager
def start_workers(*, use_dask: bool, scheduler: str | None, folder: Path) -> Iterator[Workers]:
    """The workers of a run, gone when the block ends.

    Args:
        use_dask: start a local cluster: a worker per GPU, or per CPU core where there is none.
        scheduler: address of a running cluster, whose workers see the same files and have this project installed.
        folder: for the cluster's own files.

    Raises:
        DataError: the scheduler is not reached, or has no workers.
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
            # Before there is a client, which would be left as Dask's default.
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
        # NVTabular finds the client by itself.
        yield Workers(number, client)


def _local_cluster(folder: Path) -> Any:
    from data.encoding.nvtabular_setup import ON_GPU

    if ON_GPU:
        from dask_cuda import LocalCUDACluster

        return LocalCUDACluster(local_directory=str(folder), dashboard_address=None)
    from distributed import LocalCluster

    # Memory is bounded by the size of the parts: Dask's own limit would stop workers that are on their way.
    return LocalCluster(
        n_workers=len(os.sched_getaffinity(0)),
        threads_per_worker=1,
        memory_limit=0,
        local_directory=str(folder),
        dashboard_address=None,
    )
