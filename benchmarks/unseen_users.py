"""How well users unseen in training are served, by what trains the row that stands for them.

    python -m data.movielens.prepare --raw ml-1m --output movielens --labels liked rating
    python -m benchmarks.unseen_users --data movielens --runs unseen_users.jsonl

For each seed, a tenth of the users (of a sample, so that a run takes seconds) is held out: no row of theirs is in
training, and all of their rows are evaluated with the id and the numbers of unseen users. A small Wide & Deep learns
`liked` and `rating`. Each run is a line of the file, and a stopped benchmark continues there.
The ways that train nothing share a model, whose row is set after training. The table is printed at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import Line, RunsFile, about, command, markdown
from benchmarks.metrics_speed import Alone
from data.spec.feature_spec import FeatureSpec
from data.spec.features import MAP, Chunk
from trainer.cli import make_options
from trainer.inputs import open_inputs
from trainer.process.startup import import_tensorflow
from trainer.process.worker_env import WorkerEnv

if TYPE_CHECKING:
    import keras

    from trainer.trainer import Trainer

USER, MAPPINGS = "user", ("train", "test")
FLAGS = {
    "global_batch_size": 2048,
    "eval_batch_size": 32_768,
    "num_epochs": 2,
    "deep_hidden_units": (64, 32),
    "optimizer": "adam",
    "deep_learning_rate": 0.004,
    "deep_schedule": "constant",
    "affinity": "disabled",
}
# In the order of the table: way -> share of ids that are replaced in training.
RANDOM, ZEROS, MEAN = "random start, untrained", "zeros, untrained", "mean of the trained rows, by their counts"
ZERO_START, OWN_NUMBERS = "1 % replaced, row starts at zeros", "1 % replaced, but not the numbers of the user"
TRAINED = {
    "0.3 % replaced": 0.003,
    "1 % replaced": 0.01,
    "3 % replaced": 0.03,
    ZERO_START: 0.01,
    OWN_NUMBERS: 0.01,
}
FIGURES = {
    "mean predicted / actual `liked`": "calibration",
    "AUC": "auc",
    "log loss": "log_loss",
    "RMSE of `rating`": "rmse",
}


class Split(NamedTuple):
    """A dataset in which some users are in the test mapping only.

    Attributes:
        folder: folder of the dataset.
        spec: its specification.
        counts: [cardinality] training rows of each user id.
    """

    folder: Path
    spec: FeatureSpec
    counts: np.ndarray


def split_by_user(data: Path, folder: Path, *, seed: int, users: int) -> Split:
    """Write a dataset of some users, a tenth of whom are held out."""
    spec = FeatureSpec.read(data / "feature_spec.yaml")
    names = [name for chunk in spec.chunks("train") for name in chunk.features]
    tables = [pq.read_table(file, columns=names) for mapping in MAPPINGS for file in spec.files(mapping)]
    user = spec.features[USER]
    ids = np.arange(user.unseen_ids.stop, user.cardinality)
    chosen = np.random.default_rng(seed).permutation(ids)[:users]
    train = _rows_of(tables[0], chosen[users // 10 :])
    test = _rows_of(pa.concat_tables(tables), chosen[: users // 10])
    values = {USER: user.unseen_id} | {
        feature.name: feature.unseen_value for feature in spec.numerical if feature.unseen_with == USER
    }
    for name, value in values.items():
        index = test.schema.get_field_index(name)
        column = pa.array(np.full(len(test), value), test.schema.field(name).type)
        test = test.set_column(index, name, column)
    for mapping, table in zip(MAPPINGS, (train, test), strict=True):
        pq.write_table(table, folder / f"{mapping}.parquet", row_group_size=65_536)
    sources = {mapping: (Chunk("parquet", tuple(names), (f"{mapping}.parquet",)),) for mapping in MAPPINGS}
    spec = replace(spec, channels=spec.channels | {MAP: ()}).with_sources(sources, folder)
    return Split(folder, spec, np.bincount(train[USER].to_numpy(), minlength=user.cardinality))


def _rows_of(table: pa.Table, users: np.ndarray) -> pa.Table:
    return table.filter(pa.array(np.isin(table[USER].to_numpy(), users)))


def without_numbers(spec: FeatureSpec) -> FeatureSpec:
    """Return a specification that does not say which numbers belong to the user."""
    bare = {name: replace(feature, unseen_with=None, unseen_value=None) for name, feature in spec.features.items()}
    return replace(spec, features=spec.features | bare)


def trained(split: Split, scratch: Path, spec: FeatureSpec, seed: int, share: float, *, at_zeros: bool) -> Trainer:
    """Train a model; `at_zeros` starts the rows of unseen values and of null at zeros."""
    from trainer.build import start_worker
    from trainer.trainer import Trainer

    spec.write(split.folder / "feature_spec.yaml")
    folders = {"dataset_path": split.folder, "model_dir": scratch / "models", "results_dir": scratch / "results"}
    config = make_options(FLAGS | folders | {"seed": seed, "unseen_share": share})
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        data = open_inputs(config, WorkerEnv())
        trainer = Trainer(config, data, start_worker(config, WorkerEnv()))
        for columns, table in zip(data.layout.categorical, trainer.model.embeddings.deep_tables, strict=True):
            feature = spec.features[columns.name]
            if at_zeros:
                set_rows(table, [feature.null_id, *feature.unseen_ids], 0.0)
        trainer.fit()
    return trainer


def set_rows(table: keras.Variable, ids: list[int], values: np.ndarray | float) -> None:
    """Replace rows of a table."""
    whole = table.numpy()
    whole[ids] = values
    table.assign(whole)


def figures(trainer: Trainer) -> Line:
    """Measure the predictions for the held-out users."""
    from trainer.metrics.auc import RocAuc
    from trainer.metrics.rows import Rows

    pairs = [
        (batch.labels[batch.rows >= 0], logits[batch.rows >= 0]) for batch, logits in trainer.evaluator.predicted()
    ]
    labels, logits = (np.concatenate(parts).astype(np.float64) for parts in zip(*pairs, strict=True))
    (liked, rating), (logit, predicted) = labels.T, logits.T
    chance = 1 / (1 + np.exp(-logit))
    rows = Rows(logit.astype(np.float32), liked.astype(np.float32), np.ones(len(liked), np.float32), None)
    return {
        "calibration": float(chance.mean() / liked.mean()),
        "auc": RocAuc().result(rows, Alone()),
        "log_loss": float(-np.mean(np.where(liked == 1, np.log(chance), np.log1p(-chance)))),
        "rmse": float(np.sqrt(np.mean((predicted - rating) ** 2))),
        "rows": len(liked),
    }


def untrained(trainer: Trainer, split: Split) -> Iterator[tuple[str, Line]]:
    """Yield the figures of each way that sets the row of unseen users after training."""
    tables = trainer.model.embeddings
    of_users = [tables.deep_tables[0], *tables.wide_tables]  # the user is the first feature, also of the wide table
    means = [(split.counts @ table.numpy()[: len(split.counts)]) / split.counts.sum() for table in of_users]
    yield RANDOM, figures(trainer)
    for way, values in ((ZEROS, [0.0] * len(of_users)), (MEAN, means)):
        for table, value in zip(of_users, values, strict=True):
            set_rows(table, [split.spec.features[USER].unseen_id], value)
        yield way, figures(trainer)


def runs_of(split: Split, seed: int, is_done: Callable[[str], bool]) -> Iterator[tuple[str, Line]]:
    """Yield the figures of every way that is not done."""
    if not is_done(MEAN):
        with tempfile.TemporaryDirectory() as scratch:
            yield from untrained(trained(split, Path(scratch), split.spec, seed, 0.0, at_zeros=False), split)
    for way, share in TRAINED.items():
        if not is_done(way):
            spec = without_numbers(split.spec) if way == OWN_NUMBERS else split.spec
            with tempfile.TemporaryDirectory() as scratch:
                yield way, figures(trained(split, Path(scratch), spec, seed, share, at_zeros=way == ZERO_START))


def table_of(runs: list[Line]) -> str:
    """Format the mean of each way's figures over the seeds, with the smallest and the largest."""
    rows = []
    for way in (RANDOM, ZEROS, MEAN, *TRAINED):
        own = [run for run in runs if run["way"] == way]
        cells = [[run[figure] for run in own] for figure in FIGURES.values()]
        if own:
            rows.append([way, *(f"{np.mean(cell):.3f} ({min(cell):.3f} to {max(cell):.3f})" for cell in cells)])
    return markdown(["row of unseen users", *FIGURES], rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="MovieLens, prepared with the labels liked and rating")
    parser.add_argument("--runs", type=Path, required=True, help="file of results")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--users", type=int, default=1600, help="users to sample, a tenth of them held out")
    args = parser.parse_args(argv)
    import_tensorflow()
    runs = RunsFile(args.runs)
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            split = split_by_user(args.data, Path(folder), seed=seed, users=args.users)
            for way, result in runs_of(split, seed, lambda way, seed=seed: runs.has(way=way, seed=seed)):
                runs.add(about(command()) | {"way": way, "seed": seed} | result)
                print(f"seed {seed}, {way}: {result}", file=sys.stderr, flush=True)
    print(table_of(runs.runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
