"""Rows in files of awkward sizes, on one to eight workers, interrupted or not: each counts once, and metrics agree."""

import random
from contextlib import closing
from itertools import islice, pairwise
from unittest import mock

import numpy as np
import pytest

from data.loading import shuffle as epoch_plan
from data.loading.batch import PAD, Batch
from data.loading.loader import ParquetLoader
from data.spec.feature_spec import FeatureSpec
from tests.data.sample_data import random_rows, write_dataset
from tests.faults.matrix import record, tries
from tests.trainer.metrics.workers import LocalWorkers, ThreadWorker
from trainer.tasks.evaluation import Evaluation
from trainer.tasks.task import tasks_of

BATCH = 839  # divides by no number of workers
MOST_WORKERS = 8
# Rows of each file.
LAYOUTS = {
    "mostly empty files": [0, 0, 3, 0],
    "single rows": [1] * 5,
    "seven rows": [7] * 4,
    "a row less than a batch": [BATCH - 1] * 3,
    "batches": [BATCH] * 3,
    "a row more than a batch": [BATCH + 1] * 3,
    "large": [100_000],
    "mixed": [7, 0, BATCH + 1, 1, 100_000, BATCH - 1, BATCH, 1],
}
QUICK = {"single rows": (1, 2, 8), "a row more than a batch": (3,)}
WHOLE = dict.fromkeys(LAYOUTS, range(1, MOST_WORKERS + 1))
CASES = [(layout, workers) for layout, counts in (WHOLE if tries(0, 1) else QUICK).items() for workers in counts]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> dict[str, FeatureSpec]:
    """A dataset of each layout, written when it is first used; groups are five rows long."""

    class Worlds(dict[str, FeatureSpec]):
        def __missing__(self, name: str) -> FeatureSpec:
            frame = random_rows(sum(LAYOUTS[name]))
            frame["session"] = np.arange(len(frame)) // 5
            files = [[rows] for rows in LAYOUTS[name]]
            self[name], _ = write_dataset(tmp_path_factory.mktemp("dataset"), files, frame=frame)
            return self[name]

    return Worlds()


def held(batches: list[Batch]) -> list[int]:
    return [row for batch in batches for row in batch.rows.tolist() if row != PAD]


def predicted(batch: Batch) -> np.ndarray:
    """Synthetic logits [batch, 6] that depend only on the row: a click, a regression and four classes."""
    price, user, stars = batch.numerical[:, 0], batch.onehot[:, 0] % 10, batch.labels[:, 1]
    first = np.round(price, 1) + batch.labels[:, 0]  # with ties
    second = np.nan_to_num(stars) + price / 2
    classes = [np.float32(user == number) + price / 3 * number for number in range(4)]
    return np.stack([first, second, *classes], axis=1).astype(np.float32)


def metrics(spec: FeatureSpec, workers: int) -> tuple[dict[str, float], list[list[Batch]]]:
    """What every worker computes over the workers' shares, and their batches."""
    shares: list[list[Batch]] = [[] for _ in range(workers)]

    def evaluate(worker: ThreadWorker) -> dict[str, float]:
        loader = ParquetLoader(
            spec,
            "test",
            global_batch_size=BATCH,
            worker=worker.rank,
            workers=workers,
            shuffle=False,
            with_group=True,
        )
        evaluation = Evaluation(tasks_of(spec), with_group=True)
        for batch in loader.epoch(0):
            evaluation.update(predicted(batch), batch.labels, batch.weights, batch.group)
            shares[worker.rank].append(batch)
        return evaluation.result(worker)

    first, *others = LocalWorkers(workers).run(evaluate)
    for other in others:
        np.testing.assert_equal(other, first)
    return first, shares


@pytest.mark.parametrize(("layout", "workers"), CASES)
def test_every_row_is_used_once_for_any_layout(datasets, layout, workers):
    spec, rows = datasets[layout], sum(LAYOUTS[layout])
    training = [
        list(ParquetLoader(spec, "train", global_batch_size=BATCH, worker=w, workers=workers, shuffle=True).epoch(0))
        for w in range(workers)
    ]
    alone, _ = metrics(spec, 1)
    together, evaluation = metrics(spec, workers)
    good = [
        sorted(row for batches in shares for row in held(batches)) == list(range(rows))
        and {len(batches) for batches in shares} == {-(-rows // BATCH)}
        for shares in (training, evaluation)
    ]
    are_equal = together.keys() == alone.keys() and np.allclose(
        list(together.values()), list(alone.values()), rtol=0, atol=1e-6, equal_nan=True
    )
    record("files of 0 to 100,000 rows, 1 to 8 workers", 1, int(all(good) and are_equal))
    assert all(good)
    assert are_equal, (together, alone)
    assert rows < 100 or sum(np.isfinite(list(alone.values()))) > 10  # or there would be nothing to compare


# The ledger


def step_rows(spec: FeatureSpec, workers: int, epoch: int, first: int, end: int, seed: int) -> list[list[int]]:
    """The rows of the steps from `first` to `end` of loaders that are created again at `first` and stopped at `end`."""
    steps: list[list[int]] = [[] for _ in range(end - first)]
    for worker in range(workers):
        loader = ParquetLoader(
            spec, "train", global_batch_size=BATCH, worker=worker, workers=workers, shuffle=True, seed=seed
        )
        with closing(loader.epoch(epoch, first)) as batches:
            for rows, batch in zip(steps, islice(batches, end - first), strict=True):
                rows += held([batch])
    return [sorted(rows) for rows in steps]


@pytest.fixture(scope="module")
def ledger_dataset(tmp_path_factory) -> FeatureSpec:
    """About 12 steps in row groups of very different sizes."""
    sizes = np.random.default_rng(3).integers(0, 400, (16, 3)).tolist()
    return write_dataset(tmp_path_factory.mktemp("ledger"), sizes)[0]


@pytest.mark.parametrize("number", range(tries(2, 40)))
def test_interrupted_epochs_use_every_row_once(ledger_dataset, number):
    chosen = random.Random(number)
    seed, epoch = chosen.randrange(1000), chosen.randrange(20)
    # Lanes and windows as large datasets have them.
    with (
        mock.patch.object(epoch_plan, "SHUFFLE_ROWS", chosen.choice([500, 3000])),
        mock.patch.object(epoch_plan, "ROW_GROUPS_PER_STREAM", 4),
    ):
        loader = ParquetLoader(ledger_dataset, "train", global_batch_size=BATCH, shuffle=True)
        stops = sorted(chosen.sample(range(1, loader.steps_per_epoch), 3))
        uninterrupted = step_rows(ledger_dataset, 1, epoch, 0, loader.steps_per_epoch, seed)
        another_epoch = step_rows(ledger_dataset, 1, epoch + 1, 0, loader.steps_per_epoch, seed)
        interrupted = []
        for first, end in pairwise([0, *stops, loader.steps_per_epoch]):
            interrupted += step_rows(ledger_dataset, chosen.randint(1, MOST_WORKERS), epoch, first, end, seed)
    used_once = sorted(row for rows in interrupted for row in rows) == list(range(loader.rows))
    record(
        "an epoch interrupted three times and resumed with other numbers of workers",
        1,
        int(used_once and interrupted == uninterrupted),
    )
    assert used_once
    assert interrupted == uninterrupted
    assert interrupted != another_epoch
