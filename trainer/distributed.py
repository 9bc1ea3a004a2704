"""Workers and what they exchange. The only module that talks to Horovod.

Horovod's wrappers of optimizers, tapes and variables do not fit Keras 3 (its DistributedOptimizer
trains without ever reducing a gradient), so that only its collectives are used, on plain tensors.
Gradients always travel as one group: fused single all-reduces were seen to give sums that differ
from run to run with three workers.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf

from data.errors import DataError
from trainer.process.launcher import Launch

# What stands around the words of an error: nodes, operations, source files.
_WHERE_RAISED = re.compile(r"^\s*(\{\{[^}]*\}\}\s*|\[/[^\]]*\]\s*)+|\s*\[Op:[^\]]*\]\s*$")


class Comm(Protocol):
    """One worker's view of the group. Every method is a collective: all workers call it, in the same order."""

    rank: int
    size: int
    local_rank: int

    def sum_array(self, array: np.ndarray) -> np.ndarray:
        """Element-wise sum over workers; same shape everywhere, dtype kept."""

    def gather_rows(self, rows: np.ndarray) -> np.ndarray:
        """All workers' rows in rank order; they may hold unequal numbers."""

    def exchange_rows(self, rows: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        """Sends the first counts[0] rows to worker 0, the next to worker 1, ...; returns what came, in rank order."""

    def broadcast_bytes(self, data: bytes | None) -> bytes:
        """Rank 0's bytes on every worker."""

    def broadcast_variables(self, variables: Iterable[tf.Variable]) -> None:
        """Overwrites the variables on every worker with rank 0's values."""

    def sum_tensors(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """Element-wise sums over workers of tensors of one dtype, as one group. For use inside tf.function."""

    def gather_tensors(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """All workers' rows of each tensor in rank order, as one group of one dtype. For use inside tf.function."""

    def exchange_values(self, values: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
        """Sends the first counts[0] values [n] to worker 0, the next to worker 1, ...; gives what came, in rank order.

        For use inside tf.function. `counts` is [workers] int32.
        """


class SingleWorker:
    """The group of one: every collective is the identity."""

    rank, size, local_rank = 0, 1, 0

    def sum_array(self, array: np.ndarray) -> np.ndarray:
        """See Comm."""
        return array

    def gather_rows(self, rows: np.ndarray) -> np.ndarray:
        """See Comm."""
        return rows

    def exchange_rows(self, rows: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        """See Comm."""
        return rows

    def broadcast_bytes(self, data: bytes | None) -> bytes:
        """See Comm."""
        return data or b""

    def broadcast_variables(self, variables: Iterable[tf.Variable]) -> None:
        """See Comm."""

    def sum_tensors(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """See Comm."""
        return tensors

    def gather_tensors(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """See Comm."""
        return tensors

    def exchange_values(self, values: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
        """See Comm."""
        return values


class HorovodWorkers:
    """The group that a launcher started, over NCCL or Gloo."""

    def __init__(self) -> None:
        """Joins the group.

        Raises:
            DataError: Horovod is not installed.
        """
        try:
            import horovod.tensorflow as hvd
        except ImportError as error:
            raise DataError(
                f"several workers need Horovod, which cannot be imported ({error}). scripts/setup.sh builds it."
            ) from error
        hvd.init()
        self._hvd = hvd
        self.rank, self.size, self.local_rank = hvd.rank(), hvd.size(), hvd.local_rank()

    def sum_array(self, array: np.ndarray) -> np.ndarray:
        """See Comm."""
        return self._on_host(lambda x: self._hvd.allreduce(x, op=self._hvd.Sum, name="sum_array"), array)

    def gather_rows(self, rows: np.ndarray) -> np.ndarray:
        """See Comm."""
        return self._on_host(lambda x: self._hvd.allgather(x, name="gather_rows"), rows)

    def exchange_rows(self, rows: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        """See Comm."""
        splits = tf.constant(list(counts), tf.int32)
        return self._on_host(lambda x: self._hvd.alltoall(x, splits=splits, name="exchange_rows")[0], rows)

    def broadcast_bytes(self, data: bytes | None) -> bytes:
        """See Comm."""
        mine = np.frombuffer((data or b"") if self.rank == 0 else b"", np.uint8)
        length = int(self.sum_array(np.array([mine.size], np.int64))[0])
        buffer = mine if self.rank == 0 else np.zeros(length, np.uint8)
        if length == 0:
            return b""
        return self._on_host(lambda x: self._hvd.broadcast(x, 0, name="bytes"), buffer).tobytes()

    def broadcast_variables(self, variables: Iterable[tf.Variable]) -> None:
        """See Comm."""
        for index, variable in enumerate(variables):
            variable.assign(self._hvd.broadcast(tf.convert_to_tensor(variable), 0, name=f"variable.{index}"))

    def sum_tensors(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """See Comm."""
        return self._hvd.grouped_allreduce(tensors, op=self._hvd.Sum) if tensors else []

    def gather_tensors(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """See Comm."""
        return self._hvd.grouped_allgather(tensors) if tensors else []

    def exchange_values(self, values: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
        """See Comm."""
        with tf.device("/CPU:0"):  # where Horovod wants the counts; it copies them there otherwise
            counts = tf.identity(counts)
        return self._hvd.alltoall(values, splits=counts)[0]

    @staticmethod
    def _on_host(collective: Callable[[tf.Tensor], tf.Tensor], array: np.ndarray) -> np.ndarray:
        with tf.device("/CPU:0"):
            return collective(tf.convert_to_tensor(np.ascontiguousarray(array))).numpy()


def lost_peer(error: Exception) -> str | None:
    """What an error says that a collective raised because another worker is gone; None for any other error.

    Horovod has two ways of putting it: the transport's own words (connection reset by peer, timed out) for whoever
    was in the middle of a collective, and "Horovod has been shut down" for those who come later.
    """
    if not isinstance(error, tf.errors.UnknownError) or "Horovod" not in error.message:
        return None
    lines = [line for line in error.message.splitlines() if line.strip() and "[[{{" not in line]
    said = lines[-1] if lines else error.message
    return _WHERE_RAISED.sub("", said).partition(". ")[0].strip()


def connect(launch: Launch) -> Comm:
    """The group that `launch` announces.

    Raises:
        DataError: the launcher announced several workers and Horovod found others. Going on would
            train as many lonely models as there are processes, and look like success.
    """
    if launch.size == 1:
        return SingleWorker()
    workers = HorovodWorkers()
    if (workers.rank, workers.size) != (launch.rank, launch.size):
        raise DataError(
            f"{launch.launcher} announced worker {launch.rank} of {launch.size}, but Horovod formed a group in which "
            f"this is worker {workers.rank} of {workers.size}. Start the job with horovodrun; mpirun and srun need a "
            "Horovod that was built with MPI."
        )
    return workers
