"""What being reliable costs: checkpoints, fingerprints and checks of the data, as shares of the time of training.

    python -m benchmarks.reliability_overhead [--batch 16384] [--steps 4] [--turns 3] [--flags FLAG OF main.py ...]

The default Wide & Deep on Outbrain's 29 features; with the flags' defaults, one JSON line each:

    checkpoints  = (seconds of --steps steps, of which a save of the whole state is a part until it is on disk
                    - seconds of so many steps) / seconds of --checkpoint_every
    fingerprints = seconds of a comparison / (--fingerprint_every * seconds of a step)
    validation   = (seconds of a pass of the loader - seconds of one without checks of values and checksums)
                   / (steps of a pass * seconds of a step)

The sides take turns; `ratio` is the median over the turns, `ratio_spread` its smallest and largest value. Nothing of
the checks counts as overlapped by the step, although the loader works ahead of it.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np

from benchmarks.harness import measure_and_report, parser_of
from benchmarks.synthetic_rows import write_rows
from data.files.parquet import ChunkChecksums
from data.loading import decode
from data.loading.loader import ParquetLoader
from trainer.config import parse_interval

BATCHES = 16  # of the dataset


def seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@contextmanager
def unchecked() -> Iterator[None]:
    """Take rows as they come: no checksum, no range, no null is looked at."""
    no_rows = np.empty(0, np.int64)
    with (
        patch.object(ChunkChecksums, "check_in", lambda *arguments: None),
        patch.object(decode, "reject_nulls", lambda *arguments: None),
        patch.object(decode, "usable_values", lambda target, values, *arguments: (values, no_rows)),
    ):
        yield


def pass_over(loader: ParquetLoader) -> float:
    return seconds_of(lambda: [None for _ in loader.epoch(0)])


def validation(loader: ParquetLoader, turns: int) -> np.ndarray:
    """Measure the seconds that the checks of one batch take, by turn."""
    found = []
    for _ in range(turns):
        checked = pass_over(loader)
        with unchecked():
            found.append((checked - pass_over(loader)) / loader.steps_per_epoch)
    return np.array(found)


def measure(folder: Path, arguments: argparse.Namespace) -> list[dict[str, object]]:
    from benchmarks.training_run import TrainingRun
    from trainer.checkpoint.fingerprints import check_state
    from trainer.checkpoint.run_state import EarlyStoppingState, Position

    write_rows(folder, BATCHES * arguments.batch)
    model_dir = ["--model_dir", str(folder / "model")]
    run = TrainingRun(folder, "--global_batch_size", str(arguments.batch), *model_dir, *arguments.flags)
    trainer, state = run.trainer, run.trainer.training.state

    def steps_with_a_save(number: int) -> float:
        started = time.perf_counter()
        check_state(state, number)
        trainer.checkpoints.save(state, Position(0, number), EarlyStoppingState("auc_roc"))
        run.seconds(arguments.steps)
        trainer.checkpoints.finish()
        return time.perf_counter() - started

    run.seconds(2)
    steps_with_a_save(0)
    plain, saved, compared = [], [], []
    for turn in range(1, 1 + arguments.turns):
        plain.append(run.seconds(arguments.steps))
        saved.append(steps_with_a_save(turn))
        compared.append(seconds_of(lambda turn=turn: check_state(state, turn)))
    step = np.array(plain) / arguments.steps
    interval = parse_interval("checkpoint_every", trainer.config.run.checkpoint_every).seconds
    every = trainer.config.run.fingerprint_every
    costs = {
        "checkpoints": (np.array(saved) - np.array(plain), interval),
        "fingerprints": (np.array(compared), every * step),
        "validation": (validation(trainer.data.train_loader, 5 * arguments.turns), float(np.median(step))),
    }
    return [
        {
            "benchmark": "cost of reliability",
            "what": what,
            "batch": arguments.batch,
            "step_ms": round(1000 * float(np.median(step))),
            "cost_ms": round(1000 * float(np.median(cost)), 1),
            "ratio": round(float(np.median(cost / per)), 5),
            "ratio_spread": np.round([(cost / per).min(), (cost / per).max()], 5).tolist(),
        }
        for what, (cost, per) in costs.items()
    ]


def main(argv: list[str] | None = None) -> int:
    parser = parser_of(__doc__, takes_flags=True)
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn; one save is over within them")
    parser.add_argument("--turns", type=int, default=3, help="turns of each side")
    return measure_and_report(measure, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
