"""Tables that fill the memory: what making, saving and restoring them takes, over a first copy. One JSON line.

    python -m benchmarks.large_tables [--parameters 200000000] [--folder FOLDER]

Eight tables of --width share the parameters; RMSprop adds one slot per weight and a step per row. Each part runs in a
process of its own:

    copy     writes as many bytes as tables and slots have to memory that no one has used before, with all cores
    make     makes tables and slots, updates some rows, saves a checkpoint to --folder as a run does (training waits for
             `blocked`), and updates some rows again
    restore  makes the same without initial values, verifies the checkpoint and reads it

`*_over_copy` are ratios of seconds. `*_peak` is the peak of the process's memory over what it had after importing
TensorFlow, in bytes of tables and slots. The folder needs as much room as tables and slots take.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.harness import report
from data.parallel import in_parallel
from trainer.layout import CategoricalInput, InputSchema

if TYPE_CHECKING:
    from trainer.checkpoint.state import TrainState
    from trainer.optimizers.optimizer import Optimizer

TABLES = 8
# Bytes of each source of the copy, and rows of the group of tables that an update changes.
PIECE, TOUCHED = 1 << 24, 10_000

Figures = dict[str, float]


def copy(state_bytes: int) -> Figures:
    source = np.ones(PIECE, np.uint8)
    started = time.perf_counter()
    target = np.empty(state_bytes, np.uint8)

    def fill(start: int) -> None:
        piece = target[start : start + PIECE]
        piece[...] = source[: len(piece)]

    in_parallel(fill, range(0, state_bytes, PIECE))
    return {"copy_seconds": time.perf_counter() - started}


def make(rows: int, width: int, folder: Path) -> Figures:
    before = _start()
    started = time.perf_counter()
    state, optimizer = _training(rows, width, restored=False)
    made = time.perf_counter()
    _update(optimizer, width, 1)
    blocked, saved = _save(state, folder)
    _update(optimizer, width, 2)
    return {
        "make_seconds": made - started,
        "blocked_seconds": blocked,
        "save_seconds": saved,
        "make_peak": _peak_over(before, state),
    }


def restore(rows: int, width: int, folder: Path) -> Figures:
    from trainer.checkpoint.store import CheckpointStore

    before = _start()
    started = time.perf_counter()
    state, optimizer = _training(rows, width, restored=True)
    made = time.perf_counter()
    checkpoint = CheckpointStore(folder).open("last")
    verified = time.perf_counter()
    state.restore(checkpoint)
    read = time.perf_counter()
    _update(optimizer, width, 2)
    return {
        "make_for_restoring_seconds": made - started,
        "verify_seconds": verified - made,
        "read_seconds": read - verified,
        "restore_peak": _peak_over(before, state),
    }


def _start() -> int:
    """Import TensorFlow and run something; return the process's peak memory in bytes."""
    from trainer.process.startup import import_tensorflow

    import_tensorflow()
    _training(TOUCHED, 1, restored=False)
    return _peak()


def _training(rows: int, width: int, *, restored: bool) -> "tuple[TrainState, Optimizer]":
    """Make tables of so many rows each, their slots, and the state of both."""
    from trainer.checkpoint.state import TrainState
    from trainer.embeddings.tables import EmbeddingTables
    from trainer.models.weights import named
    from trainer.optimizers.optimizer import Optimizer, ParameterGroup
    from trainer.optimizers.rules import RMSprop
    from trainer.optimizers.schedules import Constant

    features = [CategoricalInput(f"f{index}", index, 1, False, rows, width) for index in range(TABLES)]
    embeddings = EmbeddingTables(InputSchema(tuple(features), ()), outputs=0, combiner="sum", seed=1, restored=restored)
    groups = named(embeddings.deep_variables)
    optimizer = Optimizer(ParameterGroup(RMSprop(), Constant(0.1), tables=groups), restored=restored)
    tables = embeddings.tables()
    for name in groups:
        tables |= embeddings.split(name, optimizer.table_state(name))
    return TrainState(tables), optimizer


def _update(optimizer: "Optimizer", width: int, step: int) -> None:
    """Update the first rows of every group of tables, as training does."""
    import tensorflow as tf

    for name in optimizer.tables:
        gradient = tf.ones([TOUCHED, width])
        optimizer.apply({name: tf.IndexedSlices(gradient, tf.range(TOUCHED))}, tf.constant(step))


def _save(state: "TrainState", folder: Path) -> tuple[float, float]:
    """Save a checkpoint; return the seconds until training may go on, and until the checkpoint is there."""
    from trainer.checkpoint.background_writer import Handover
    from trainer.checkpoint.store import CheckpointStore

    started = time.perf_counter()
    handover = Handover(state.sources())
    with ThreadPoolExecutor(1) as pool:
        saving = pool.submit(handover.save, lambda arrays: CheckpointStore(folder).save(1, arrays, {}))
        handover.fill()
        blocked = time.perf_counter() - started
        saving.result()
    return blocked, time.perf_counter() - started


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _peak_over(before: int, state: "TrainState") -> float:
    return (_peak() - before) / sum(source.nbytes for source in state.sources())


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    rows, width = arguments.parameters // arguments.width // TABLES, arguments.width
    state_bytes = 4 * TABLES * rows * (2 * width + 1)
    figures: Figures = {}
    for part, values in ((copy, (state_bytes,)), (make, (rows, width, folder)), (restore, (rows, width, folder))):
        # A new process each: none finds memory that another part has used.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            figures |= pool.submit(part, *values).result()
    ratios = {
        f"{key.removesuffix('_seconds')}_over_copy": seconds / figures["copy_seconds"]
        for key, seconds in figures.items()
        if key.endswith("_seconds") and key != "copy_seconds"
    }
    return {
        "benchmark": "tables that fill the memory",
        "parameters": TABLES * rows * width,
        "state_gb": round(state_bytes / 1e9, 3),
        **{key: round(value, 3) for key, value in (figures | ratios).items()},
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=200_000_000, help="values in all tables")
    parser.add_argument("--width", type=int, default=32, help="width of the tables")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is written, and removed (default: temporary)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        report(measure(arguments, Path(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
