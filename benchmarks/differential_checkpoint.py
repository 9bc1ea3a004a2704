"""A differential checkpoint beside a full one: bytes, and seconds until it is on disk. One JSON line.

    python -m benchmarks.differential_checkpoint [--megabytes 200] [--tables 1] [--touched 0.01] [--turns 5]

--tables of --width, RMSprop's slots and the step of each row's last update take --megabytes together. In each turn a
full checkpoint is saved, --touched of the rows are updated, and a differential one is saved, both as a run does it: all
that is saved is searched for non-finite values first, and the differential save begins with finding the rows that were
touched. `*_ratio` are differential over full: the median of the turns, and the range.
"""

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.harness import report
from trainer.layout import CategoricalInput, InputSchema

if TYPE_CHECKING:
    from trainer.checkpoint.state import ChosenRows, TrainState
    from trainer.checkpoint.store import CheckpointStore
    from trainer.embeddings.tables import EmbeddingTables
    from trainer.optimizers.optimizer import Optimizer


def training(tables: int, rows: int, width: int) -> "tuple[EmbeddingTables, Optimizer, TrainState]":
    """Make tables of so many rows each, their slots, and the state of both."""
    from trainer.checkpoint.state import TrainState
    from trainer.embeddings.tables import EmbeddingTables
    from trainer.models.weights import named
    from trainer.optimizers.optimizer import Optimizer, ParameterGroup
    from trainer.optimizers.rules import RMSprop
    from trainer.optimizers.schedules import Constant

    features = [CategoricalInput(f"f{index}", index, 1, False, rows, width) for index in range(tables)]
    embeddings = EmbeddingTables(InputSchema(tuple(features), ()), outputs=0, combiner="sum", seed=1)
    groups = named(embeddings.deep_variables)
    optimizer = Optimizer(ParameterGroup(RMSprop(), Constant(0.1), tables=groups))
    variables = embeddings.tables()
    for name in groups:
        variables |= embeddings.split(name, optimizer.table_state(name))
    return embeddings, optimizer, TrainState(variables)


def save(store: "CheckpointStore", state: "TrainState", step: int, chosen: "ChosenRows | None") -> int:
    """Save a checkpoint, a differential one if rows are chosen; return its bytes."""
    from trainer.checkpoint.background_writer import Handover
    from trainer.checkpoint.fingerprints import check_state

    check_state(state, step, chosen)
    refers = {} if chosen is None else {"full": step - 1, "row_numbers": state.row_numbers}
    handover = Handover(state.sources(chosen))
    with ThreadPoolExecutor(1) as pool:
        saving = pool.submit(handover.save, partial(store.save, step, state={}, **refers))
        handover.fill()
        folder = saving.result()
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    import tensorflow as tf

    from trainer.checkpoint.store import CheckpointStore
    from trainer.comm import SingleWorker
    from trainer.embeddings.touched_rows import TouchedRows

    tables, width = arguments.tables, arguments.width
    rows = int(arguments.megabytes * 1e6 / (4 * (2 * width + 1)) / tables)
    embeddings, optimizer, state = training(tables, rows, width)
    store, touched, random = CheckpointStore(folder, keep=1), TouchedRows(embeddings.groups), np.random.default_rng(1)
    [table] = optimizer.tables
    written, seconds = [], []  # of the full and of the differential checkpoint, by turn
    for turn in range(arguments.turns + 1):
        started = time.perf_counter()
        full_bytes = save(store, state, 2 * turn + 1, None)
        full_seconds = time.perf_counter() - started
        touched.clear()
        numbers = random.choice(tables * rows, int(arguments.touched * tables * rows), replace=False)
        gradient = tf.IndexedSlices(tf.random.normal([len(numbers), width]), tf.constant(numbers))
        optimizer.apply({table: gradient}, tf.constant(turn + 1))
        touched.add([numbers])
        started = time.perf_counter()
        part_bytes = save(store, state, 2 * turn + 2, touched.of_all_workers(SingleWorker()))
        written.append((full_bytes, part_bytes))
        seconds.append((full_seconds, time.perf_counter() - started))
    # The first turn compiles the search for non-finite values.
    sizes, times = np.array(written[1:]), np.array(seconds[1:])
    bytes_ratios, seconds_ratios = sizes[:, 1] / sizes[:, 0], times[:, 1] / times[:, 0]
    return {
        "benchmark": "differential checkpoint",
        "tables": tables,
        "full_mb": round(float(np.median(sizes[:, 0])) / 1e6, 1),
        "touched": arguments.touched,
        "full_seconds": round(float(np.median(times[:, 0])), 3),
        "differential_seconds": round(float(np.median(times[:, 1])), 4),
        "bytes_ratio": round(float(np.median(bytes_ratios)), 4),
        "seconds_ratio": round(float(np.median(seconds_ratios)), 4),
        "seconds_ratio_spread": np.round([seconds_ratios.min(), seconds_ratios.max()], 4).tolist(),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=200, help="size of tables and slots")
    parser.add_argument("--tables", type=int, default=1, help="number of tables that share them")
    parser.add_argument("--width", type=int, default=32, help="width of the tables")
    parser.add_argument("--touched", type=float, default=0.01, help="share of the rows that are updated in between")
    parser.add_argument("--turns", type=int, default=5, help="measured pairs of a full and a differential save")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written, and removed (default: temporary)")
    arguments = parser.parse_args(argv)
    from trainer.process.startup import import_tensorflow

    import_tensorflow()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        report(measure(arguments, Path(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
