"""Collectives over the workers. The only module that calls Horovod.

Horovod's wrappers of optimizers, tapes and variables are incompatible with Keras 3 (its DistributedOptimizer trains
without ever reducing a gradient), so only its collectives are used, on plain tensors. Gradients are always reduced as
one group: with three workers, individually fused all-reduces gave sums that differed from run to run.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Protocol, TypeVar

import numpy as np
import tensorflow as tf

from data.errors import DataError
from trainer.process.worker_env import WorkerEnv

T = TypeVar("T")
R = TypeVar("R")

# The node, operation and source file names around the text of a TensorFlow error.
_WHERE_RAISED = re.compile(r"^\s*(\{\{[^}]*\}\}\s*|\[/[^\]]*\]\s*)+|\s*\[Op:[^\]]*\]\s*$")


class Comm(Protocol):
    """The collectives of a group of workers, as one of them sees it.

    Every method is a collective: all workers must call it, and in the same order.

    Attributes:
        rank: position of this worker, 0 to size - 1.
        size: number of workers.
        local_rank: position of this worker among those on its host.
    """

    rank: int
    size: int
    local_rank: int

    def sum_array(self, array: np.ndarray) -> np.ndarray:
        """Sum an array over workers, element by element. All workers pass the same shape; the dtype is kept."""

    def gather_rows(self, rows: np.ndarray) -> np.ndarray:
        """Concatenate the rows of all workers in rank order. Workers may hold different numbers of rows."""

    def exchange_rows(self, rows: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        """Send the first counts[0] rows to worker 0, the next counts[1] to worker 1, and so on.

        Returns:
            The rows received from all workers, in rank order.
        """

    def broadcast_bytes(self, data: bytes | None) -> bytes:
        """Return rank 0's bytes on every worker; what the others pass is ignored."""

    def broadcast_variables(self, variables: Iterable[tf.Variable]) -> None:
        """Overwrite the variables on every worker with rank 0's values."""

    def sum_tensors(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """Sum each tensor over workers, all in one group and of one dtype. For use inside tf.function."""

    def gather_tensors(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """Concatenate each tensor's rows of all workers in rank order, all in one group and of one dtype.

        For use inside tf.function.
        """

    def exchange_values(self, values: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
        """Send the first counts[0] values to worker 0, the next counts[1] to worker 1, and so on.

        For use inside tf.function.

        Args:
            values: the values to send, [n].
            counts: number of values for each worker, [workers] int32.

        Returns:
            The values received from all workers, in rank order.
        """


class SingleWorker:
    """A group of one worker, in which every collective is the identity."""

    rank, size, local_rank = 0, 1, 0

    def sum_array(self, array: np.ndarray) -> np.ndarray:
        """Return the array, which is its own sum."""
        return array

    def gather_rows(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows, which are all there are."""
        return rows

    def exchange_rows(self, rows: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        """Return the rows, all of which this worker sends to itself."""
        return rows

    def broadcast_bytes(self, data: bytes | None) -> bytes:
        """Return the bytes; an empty string for None."""
        return data or b""

    def broadcast_variables(self, variables: Iterable[tf.Variable]) -> None:
        """Leave the variables as they are."""

    def sum_tensors(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """Return the tensors, which are their own sums."""
        return tensors

    def gather_tensors(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """Return the tensors, whose rows are all there are."""
        return tensors

    def exchange_values(self, values: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
        """Return the values, all of which this worker sends to itself."""
        return values


class HorovodWorkers:
    """The group of workers that a launcher started, connected by Horovod over NCCL or Gloo."""

    def __init__(self) -> None:
        """Initialize Horovod and join the group.

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
        """Sum an array over workers with an all-reduce on the host."""
        return self._on_host(lambda x: self._hvd.allreduce(x, op=self._hvd.Sum, name="sum_array"), array)

    def gather_rows(self, rows: np.ndarray) -> np.ndarray:
        """Concatenate all workers' rows with an all-gather on the host."""
        return self._on_host(lambda x: self._hvd.allgather(x, name="gather_rows"), rows)

    def exchange_rows(self, rows: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        """Send rows to their workers with an all-to-all on the host."""
        splits = tf.constant(list(counts), tf.int32)
        return self._on_host(lambda x: self._hvd.alltoall(x, splits=splits, name="exchange_rows")[0], rows)

    def broadcast_bytes(self, data: bytes | None) -> bytes:
        """Broadcast rank 0's bytes on the host, after their length."""
        mine = np.frombuffer((data or b"") if self.rank == 0 else b"", np.uint8)
        # A broadcast needs a buffer of the right size on every worker; only rank 0 adds to this sum.
        length = int(self.sum_array(np.array([mine.size], np.int64))[0])
        buffer = mine if self.rank == 0 else np.zeros(length, np.uint8)
        if length == 0:
            return b""
        return self._on_host(lambda x: self._hvd.broadcast(x, 0, name="bytes"), buffer).tobytes()

    def broadcast_variables(self, variables: Iterable[tf.Variable]) -> None:
        """Broadcast rank 0's values one variable at a time, each under a name that all workers agree on."""
        for index, variable in enumerate(variables):
            with tf.device(variable.device):  # a table in host memory stays there
                variable.assign(self._hvd.broadcast(tf.convert_to_tensor(variable), 0, name=f"variable.{index}"))

    def sum_tensors(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """Sum the tensors with one grouped all-reduce."""
        return self._hvd.grouped_allreduce(tensors, op=self._hvd.Sum) if tensors else []

    def gather_tensors(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """Concatenate the tensors' rows with one grouped all-gather."""
        return self._hvd.grouped_allgather(tensors) if tensors else []

    def exchange_values(self, values: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
        """Send values to their workers with an all-to-all."""
        with tf.device("/CPU:0"):  # Horovod reads the counts on the host and would copy them there otherwise
            counts = tf.identity(counts)
        received, received_counts = self._hvd.alltoall(values, splits=counts)
        received_counts.set_shape(counts.shape)  # Horovod leaves it open
        return received

    @staticmethod
    def _on_host(collective: Callable[[tf.Tensor], tf.Tensor], array: np.ndarray) -> np.ndarray:
        with tf.device("/CPU:0"):
            return collective(tf.convert_to_tensor(np.ascontiguousarray(array))).numpy()


def differentiable_sum(comm: Comm, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    """Sum tensors over workers, differentiably. A collective, as is the gradient of its result.

    Every worker's loss depends on the sum, so the gradient of an input is the sum of all workers' upstream gradients.
    """
    if comm.size == 1:
        return tensors

    @tf.custom_gradient
    def summed(*own: tf.Tensor) -> tuple[list[tf.Tensor], Callable[..., list[tf.Tensor]]]:
        return comm.sum_tensors(list(own)), lambda *upstream: comm.sum_tensors(list(upstream))

    return list(summed(*tensors))


def timed(collectives: Callable[[T], R], inputs: T) -> tuple[R, tf.Tensor]:
    """Run collectives and measure the seconds from when all inputs are ready until all results are.

    Args:
        collectives: function of a structure of tensors that returns one.
        inputs: its argument.

    Returns:
        The function's results, and the seconds, scalar float64.
    """
    # A graph has no program order: control dependencies alone keep the two timestamps around the collectives.
    with tf.control_dependencies(tf.nest.flatten(inputs, expand_composites=True)):
        ready = tf.timestamp()
    with tf.control_dependencies([ready]):
        results = collectives(tf.nest.map_structure(tf.identity, inputs, expand_composites=True))
    with tf.control_dependencies(tf.nest.flatten(results, expand_composites=True)):
        return results, tf.timestamp() - ready


def sees_clock() -> bool:
    """Return whether TensorFlow operations may read the clock, which deterministic execution forbids."""
    with suppress(tf.errors.FailedPreconditionError):
        return bool(tf.timestamp())
    return False


def lost_peer(error: Exception) -> str | None:
    """Return the reason given by a collective that failed because another worker is gone; None for other errors.

    Horovod reports this in two ways: with the transport's message (connection reset by peer, timed out) on workers in
    the middle of a collective, and with "Horovod has been shut down" on workers that enter one later.
    """
    if not isinstance(error, tf.errors.UnknownError) or "Horovod" not in error.message:
        return None
    lines = [line for line in error.message.splitlines() if line.strip() and "[[{{" not in line]
    reason = lines[-1] if lines else error.message
    return _WHERE_RAISED.sub("", reason).partition(". ")[0].strip()


def connect(launch: WorkerEnv) -> Comm:
    """Connect to the group of workers that `launch` announces.

    Raises:
        DataError: the launcher announced several workers, but Horovod formed another group. Continuing would
            silently train one independent model per process.
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
