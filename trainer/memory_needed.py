"""The memory that a run takes on each worker, from its specification and flags alone. Imports no TensorFlow.

The estimate is a sum of named parts. On a CPU they are added up even where a run needs them one after the other, as the
activations of training and those of evaluation: TensorFlow's allocator does not return memory to the system. Only the
loader does, after each epoch. docs/performance.md compares the sum with measured peaks.
"""

from dataclasses import dataclass, replace

import psutil

from data.errors import DataError
from data.memory import available_memory, in_gibibytes
from trainer.checkpoint.background_writer import COPIED_BYTES
from trainer.embeddings.placement import HostTables
from trainer.model_size import (
    TableSize,
    dense_weights,
    large_groups,
    may_use_gpu,
    rules_of,
    shards_tables,
    table_sizes,
    weight_copies,
)
from trainer.process.worker_env import WorkerEnv
from trainer.step_memory import RunSize, StepMemory

TABLES_SHOWN = 3
MOST_WORKERS = 1 << 16
NO_TABLES = HostTables()
OF_HOST_TABLES = ("tables in host memory", "optimizer state in host memory")
HEADROOM = 0.1  # share of a device's memory that is left once tables are moved to the host's, for a cache of their rows
_FLOAT_BYTES = 4

# Measured on the CPU build: interpreter, shared libraries of TensorFlow, Keras and Arrow, and the graphs of a model.
PROGRAM_BYTES = 690 << 20
# Horovod with its threads, and the messages of collectives that it joins.
HOROVOD_BYTES = 40 << 20
# TensorFlow's allocator puts tensors of a step where they fit best, and between them leaves gaps that no other fits.
FRAGMENTATION = 0.2


@dataclass(frozen=True)
class Part:
    """A part of a worker's memory.

    Attributes:
        name: what takes it.
        bytes: how much it takes.
        on_device: whether it is on the GPU, if there is one.
    """

    name: str
    bytes: int
    on_device: bool = False


@dataclass(frozen=True)
class MemoryNeeded:
    """The memory of a worker.

    Attributes:
        parts: what takes it.
        tables: the tables, with their optimizer state.
    """

    parts: tuple[Part, ...]
    tables: tuple[TableSize, ...] = ()

    @property
    def bytes(self) -> int:
        """All parts together."""
        return sum(part.bytes for part in self.parts)

    def where(self, *, on_device: bool) -> "MemoryNeeded":
        """Return the parts that are on a GPU, or those that are not."""
        return MemoryNeeded(
            tuple(part for part in self.parts if part.on_device == on_device),
            tuple(table for table in self.tables if table.on_host != on_device),
        )

    def __str__(self) -> str:
        shown = sorted((part for part in self.parts if part.bytes >= 1 << 19), key=lambda part: -part.bytes)
        return ", ".join(f"{part.name} {in_gibibytes(part.bytes)}" for part in shown)


def memory_needed(
    run: RunSize, workers: int, *, sharded: bool, on_gpu: bool = False, host: HostTables = NO_TABLES
) -> MemoryNeeded:
    """Estimate the memory of each of so many workers.

    Args:
        run: the run.
        workers: number of workers, which divide the global batch.
        sharded: whether large tables are sharded over them.
        on_gpu: whether they compute on GPUs.
        host: the tables in host memory.
    """
    options = run.options
    tables = tuple(table_sizes(options, run.layout, run.outputs, workers if sharded else 1, host.groups))
    on_device, on_host = ([table for table in tables if table.on_host == hosted] for hosted in (False, True))
    dense = _FLOAT_BYTES * dense_weights(options.model, run.layout, run.tasks)
    state = dense * (len(rules_of(options)[0].slots) + weight_copies(options))
    weights = sum(table.weight_bytes for table in tables) + dense
    steps = StepMemory(run, workers, sharded=sharded, on_gpu=on_gpu)
    of_step = steps.activations(), steps.gradients(), dense * steps.dense_copies(), steps.unpacked()
    parts = [
        Part("TensorFlow and the program", PROGRAM_BYTES + (HOROVOD_BYTES if workers > 1 else 0)),
        Part("tables", sum(table.weight_bytes for table in on_device), on_device=True),
        Part("optimizer state", sum(table.state_bytes for table in on_device) + state, on_device=True),
        Part("dense weights", dense, on_device=True),
        Part("activations", of_step[0], on_device=True),
        Part("gradients", of_step[1], on_device=True),
        Part("dense gradients", of_step[2], on_device=True),
        Part("unpacked batch", of_step[3], on_device=True),
        Part("fragmentation", int(FRAGMENTATION * sum(of_step)), on_device=True),
        Part("batches ahead", steps.ahead(), on_device=on_gpu),
        Part("loader", steps.loader()),
        Part("evaluation", steps.evaluation()),
    ]
    if on_host:
        of_tables = sum(table.weight_bytes for table in on_host), sum(table.state_bytes for table in on_host)
        parts += [Part(name, size) for name, size in zip(OF_HOST_TABLES, of_tables, strict=True)]
    if on_host and options.run.trains:
        cached = sum(table.bytes * host.places(table.rows) // table.rows for table in on_host)
        parts.append(Part("cache of tables in host memory", cached, on_device=True))
    if options.run.trains and not options.run.benchmark:
        parts.append(Part("checkpoint", min(COPIED_BYTES, weights)))
    return MemoryNeeded(tuple(parts), tables)


def place_tables(
    run: RunSize, workers: int, *, sharded: bool, device_bytes: int | None, at_least: int = 0
) -> HostTables:
    """Choose the tables that are in host memory, and how many of their rows the device caches.

    `--table_placement auto` leaves all tables on the device if they fit. Otherwise, groups of large tables go to host
    memory, the largest one first, until the device keeps HEADROOM of its memory. Half of what is left is for the cache.

    Args:
        run: the run.
        workers: number of workers, which divide the global batch.
        sharded: whether large tables are sharded over them.
        device_bytes: memory of this worker's GPU that TensorFlow may use; None if it computes on a CPU, or if it is not
            known yet: `auto` is then the same as `device`.
        at_least: number of groups that are in host memory at least, as they are on other workers.
    """
    placement, on_gpu = run.options.training.table_placement, device_bytes is not None
    if placement == "device" or (placement == "auto" and device_bytes is None):
        return NO_TABLES

    def left(host: HostTables) -> float:
        needed = memory_needed(run, workers, sharded=sharded, on_gpu=on_gpu, host=host)
        return (device_bytes or 0) - needed.where(on_device=True).bytes

    names = large_groups(run.options, run.layout, run.outputs, workers if sharded else 1)
    if placement == "auto" and not at_least and left(NO_TABLES) >= 0:
        return NO_TABLES
    first = len(names) if placement == "host" else min(max(1, at_least), len(names))
    choices = [HostTables(frozenset(names[:count])) for count in range(first, len(names) + 1)]
    fitting = (host for host in choices if left(host) >= HEADROOM * (device_bytes or 0))
    host = next(fitting, choices[-1])
    of_host = memory_needed(run, workers, sharded=sharded, on_gpu=on_gpu, host=host).where(on_device=False)
    total = sum(table.bytes for table in of_host.tables)
    return replace(host, cached_share=min(1.0, max(0.0, left(host)) / 2 / total)) if total else host


def check_memory(run: RunSize, launch: WorkerEnv) -> MemoryNeeded | None:
    """Check that the workers of this host have the memory of a run, before any of it is allocated.

    With a GPU nothing is checked yet: the memory of the device is unknown before TensorFlow is imported.

    Args:
        run: the run.
        launch: rank and size of this process as its launcher announced them.

    Returns:
        The estimate; None on workers that do not know the model yet, as they restore rank 0's checkpoint.

    Raises:
        DataError: the memory is exceeded; see `check_available`.
    """
    if run.options.run.restores and launch.rank != 0:
        return None
    on_gpu, available = may_use_gpu(run.options.training.cpu), available_memory(launch.local_size)
    sharded = shards_tables(run.options, run.layout, run.outputs, launch, None if on_gpu else available)
    host = place_tables(run, launch.size, sharded=sharded, device_bytes=None)
    needed = memory_needed(run, launch.size, sharded=sharded, on_gpu=on_gpu, host=host)
    if not on_gpu:
        check_available(run, needed, launch, available, host=host)
    return needed


def check_devices(
    run: RunSize, launch: WorkerEnv, *, sharded: bool, device_bytes: int, host: HostTables = NO_TABLES
) -> None:
    """Check that GPUs and hosts have the memory of a run, before its variables are created.

    Args:
        run: the run.
        launch: rank and size of this process as its launcher announced them.
        sharded: whether large tables are sharded over the workers.
        device_bytes: memory of this worker's GPU that TensorFlow may use.
        host: the tables in host memory.

    Raises:
        DataError: the memory is exceeded; see `check_available`.
    """
    needed = memory_needed(run, launch.size, sharded=sharded, on_gpu=True, host=host)
    check_available(run, needed.where(on_device=True), launch, device_bytes, device="the GPU", host=host)
    check_available(run, needed.where(on_device=False), launch, available_memory(launch.local_size), host=host)


def check_available(
    run: RunSize,
    needed: MemoryNeeded,
    launch: WorkerEnv,
    available: int,
    *,
    device: str | None = None,
    host: HostTables = NO_TABLES,
) -> None:
    """Compare an estimate with the memory that there is.

    Args:
        run: the run.
        needed: what a worker needs in this memory.
        launch: rank and size of this process as its launcher announced them.
        available: bytes that this worker can still allocate.
        device: the device whose memory it is, for the message; None for that of the host, of which this process already
            holds some.
        host: the tables in host memory.

    Raises:
        DataError: `needed` exceeds it; the message names the parts, the largest tables, what to change, and how many
            workers would hold the model.
    """
    limit = available if device else available + resident_bytes()
    if needed.bytes <= limit:
        return
    workers = workers_that_hold(run, limit, on_device=device is not None, host=host)
    largest = sorted(needed.tables, key=lambda table: table.bytes, reverse=True)[:TABLES_SHOWN]
    tables = f"; largest tables: {', '.join(map(str, largest))}" if largest else ""
    each = f" to each of {launch.local_size} workers on this host" if not device and launch.local_size > 1 else ""
    what = f"the run needs {in_gibibytes(needed.bytes)} of memory {f'on {device}' if device else 'per worker'}"
    may_move = device is not None and not host.groups.issuperset(large_groups(run.options, run.layout, run.outputs))
    moving = "; or keep large tables in host memory (--table_placement host)" if may_move else ""
    raise DataError(
        f"{what} ({needed}{tables}), and {in_gibibytes(limit)} are available{each}; {_fix(needed, workers)}{moving}"
    )


def resident_bytes() -> int:
    """Return the bytes that this process holds, which the estimate contains."""
    resident: int = psutil.Process().memory_info().rss
    return resident


def workers_that_hold(run: RunSize, limit: int, *, on_device: bool, host: HostTables = NO_TABLES) -> int | None:
    """Return the smallest number of workers that hold a run, with sharded tables if there are several.

    Args:
        run: the run.
        limit: bytes of memory of each of them.
        on_device: whether it is the memory of a GPU.
        host: the tables in host memory.

    Returns:
        The number; None if MOST_WORKERS are too few, as each of them holds the rest of the model.
    """

    def fits(workers: int) -> bool:
        needed = memory_needed(run, workers, sharded=workers > 1, on_gpu=on_device, host=host)
        return (needed.where(on_device=True) if on_device else needed).bytes <= limit

    low, high = 0, 1  # `low` workers are too few
    while not fits(high):
        low, high = high, 2 * high
        if high > MOST_WORKERS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _fix(needed: MemoryNeeded, workers: int | None) -> str:
    """Return what to change, beginning with what takes most."""
    tables = sum(table.bytes for table in needed.tables)
    of_weights = ("tables", "optimizer state", "dense weights", "dense gradients", *OF_HOST_TABLES)
    weights = sum(part.bytes for part in needed.parts if part.name in of_weights)
    narrower = "narrower embeddings (--embedding_sizes_file, or embedding_dim in the specification)"
    smaller = "a smaller batch (--global_batch_size, --eval_batch_size)"
    choices = [
        (tables, narrower),
        (needed.bytes - weights - PROGRAM_BYTES, smaller),
        (weights - tables, "narrower layers"),
    ]
    named = [text for _, text in sorted(choices, key=lambda choice: -choice[0])]
    if workers is None:
        held = "no number of workers would hold it, since each holds dense weights and small tables whole"
    else:
        held = f"{workers:,} workers with --shard_embeddings and as much memory each would hold it"
        held = "a single worker with this memory would hold it" if workers == 1 else held
    return f"choose {named[0]}, {named[1]} or {named[2]}, or more memory; {held}"


def describe_memory(needed: MemoryNeeded, workers: int, *, on_gpu: bool) -> str:
    """Return the line that a run prints at its start."""
    each = "per worker" if workers > 1 else "needed"
    if not on_gpu:
        return f"memory {each}: about {in_gibibytes(needed.bytes)} ({needed})"
    device, host = needed.where(on_device=True), needed.where(on_device=False)
    return (
        f"memory {each}: about {in_gibibytes(device.bytes)} on the GPU ({device}); "
        f"{in_gibibytes(host.bytes)} on the host ({host})"
    )
