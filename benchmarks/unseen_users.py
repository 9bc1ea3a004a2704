"""How well users unseen in training are served, by what trains the row that stands for them.

    python -m data.movielens.prepare --raw ml-1m --output movielens --labels liked rating
    python -m benchmarks.unseen_users --data movielens --runs unseen_users.jsonl

For each seed, a fifth of the users (of a sample, so that a run takes a minute) is held out: no row of theirs is in
training, and all of their rows are evaluated with the id and the numbers of unseen users. Wide & Deep learns `liked`
and `rating` at the defaults of main.py. The test rows of the other users show what this costs them. Each run is a line
of the file, and a stopped benchmark continues there. The ways that train nothing share a model, whose row is set after
training. The table is printed at the end.
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
from data.loading.loader import ParquetLoader
from data.spec.feature_spec import FeatureSpec
from data.spec.features import MAP, NUMERICAL, Chunk
from trainer.cli import make_options
from trainer.inputs import open_inputs
from trainer.metrics.auc import RocAuc
from trainer.metrics.rows import Rows
from trainer.process.startup import import_tensorflow
from trainer.process.worker_env import WorkerEnv

if TYPE_CHECKING:
    from trainer.trainer import Trainer
    from trainer.variables import TableRows

USER, KNOWN = "user", "known"
MAPPINGS = ("train", "test", KNOWN)
FLAGS = {"eval_batch_size": 32_768, "affinity": "disabled"}
# In the order of the table: way -> share of ids that are replaced in training.
MOVIE, SMOOTHING = "no model: the movie's smoothed mean", 5.0
RANDOM, ZEROS, MEAN = "random start, untrained", "zeros, untrained", "mean of the trained rows, by their counts"
TRAINED = {"1% replaced": 0.01, "3% replaced": 0.03}
OWN_NUMBERS = "1% replaced, but not the numbers of the user"
FIGURES = {
    "mean predicted / actual `liked`": "calibration",
    "AUC": "auc",
    "log loss": "log_loss",
    "RMSE of `rating`": "rmse",
    "AUC of known users": "known_auc",
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


def split_by_user(data: Path, folder: Path, *, seed: int, users: int, numbers: bool) -> Split:
    """Write a dataset of some users, a fifth of whom are held out; `numbers` keeps those looked up by the user."""
    spec = FeatureSpec.read(data / "feature_spec.yaml")
    names = [name for chunk in spec.chunks("train") for name in chunk.features]
    tables = [pq.read_table(file, columns=names) for mapping in ("train", "test") for file in spec.files(mapping)]
    user = spec.features[USER]
    ids = np.arange(user.unseen_ids.stop, user.cardinality)
    chosen = np.random.default_rng(seed).permutation(ids)[:users]
    train, known = (_rows_of(table, chosen[users // 5 :]) for table in tables)
    test = _rows_of(pa.concat_tables(tables), chosen[: users // 5])
    values = {USER: user.unseen_id} | {
        feature.name: feature.unseen_value for feature in spec.numerical if feature.unseen_with == USER
    }
    for name, value in values.items():
        index = test.schema.get_field_index(name)
        column = pa.array(np.full(len(test), value), test.schema.field(name).type)
        test = test.set_column(index, name, column)
    for mapping, table in zip(MAPPINGS, (train, test, known), strict=True):
        pq.write_table(table, folder / f"{mapping}.parquet", row_group_size=65_536)
    sources = {mapping: (Chunk("parquet", tuple(names), (f"{mapping}.parquet",)),) for mapping in MAPPINGS}
    numerical = [feature.name for feature in spec.numerical if numbers or feature.unseen_with != USER]
    spec = replace(spec, channels=spec.channels | {MAP: (), NUMERICAL: tuple(numerical)}).with_sources(sources, folder)
    return Split(folder, spec, np.bincount(train[USER].to_numpy(), minlength=user.cardinality))


def _rows_of(table: pa.Table, users: np.ndarray) -> pa.Table:
    return table.filter(pa.array(np.isin(table[USER].to_numpy(), users)))


def without_numbers(spec: FeatureSpec) -> FeatureSpec:
    """Return a specification that does not say which numbers belong to the user."""
    used = [feature.name for feature in spec.numerical if feature.unseen_with == USER]
    bare = spec.features | {name: replace(spec.features[name], unseen_with=None, unseen_value=None) for name in used}
    return replace(spec, features=bare)


def trained(split: Split, scratch: Path, spec: FeatureSpec, seed: int, share: float) -> Trainer:
    """Train a model that replaces a share of the ids."""
    from trainer.build import start_worker
    from trainer.trainer import Trainer

    spec.write(split.folder / "feature_spec.yaml")
    folders = {"dataset_path": split.folder, "model_dir": scratch / "models", "results_dir": scratch / "results"}
    config = make_options(FLAGS | folders | {"seed": seed, "unseen_share": share})
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        data = open_inputs(config, WorkerEnv())
        trainer = Trainer(config, data, start_worker(config, WorkerEnv()))
        trainer.fit()
    return trainer


def set_row(table: TableRows, number: int, values: np.ndarray | float) -> None:
    """Replace a row of a table."""
    row = table.variable[table.first + number]
    row.assign(np.broadcast_to(np.float32(values), row.shape))


def figures(trainer: Trainer) -> Line:
    """Measure the predictions for the held-out users, and the ranking for the others."""
    (labels, logits), (known_labels, known_logits) = (predicted(trainer, mapping) for mapping in ("test", KNOWN))
    return compared(labels, logits) | {"known_auc": auc(known_logits[0], known_labels[0])}


def compared(labels: np.ndarray, logits: np.ndarray) -> Line:
    """Compare labels and logits, [liked and rating, rows] each."""
    (liked, rating), (logit, stars) = labels, logits
    chance = 1 / (1 + np.exp(-logit))
    return {
        "calibration": float(chance.mean() / liked.mean()),
        "auc": auc(logit, liked),
        "log_loss": float(-np.mean(np.where(liked == 1, np.log(chance), np.log1p(-chance)))),
        "rmse": float(np.sqrt(np.mean((stars - rating) ** 2))),
        "rows": len(liked),
    }


def movie_means(split: Split) -> Line:
    """Predict the mean labels of the movie's training rows, smoothed towards those of all rows."""
    columns = ["movie", *(label.name for label in split.spec.labels)]
    train, test, known = (pq.read_table(split.folder / f"{mapping}.parquet", columns=columns) for mapping in MAPPINGS)
    movies = train["movie"].to_numpy()
    counts = np.bincount(movies, minlength=split.spec.features["movie"].cardinality or 0)

    def means(label: str) -> np.ndarray:
        values = train[label].to_numpy().astype(np.float64)
        return (np.bincount(movies, values, len(counts)) + SMOOTHING * values.mean()) / (counts + SMOOTHING)

    liked, rating = (means(label) for label in columns[1:])
    scores = np.stack([np.log(liked / (1 - liked)), rating])
    labels, known_labels = (
        np.stack([table[label].to_numpy() for label in columns[1:]]).astype(np.float64) for table in (test, known)
    )
    own = compared(labels, scores[:, test["movie"].to_numpy()])
    return own | {"known_auc": auc(scores[0, known["movie"].to_numpy()], known_labels[0])}


def predicted(trainer: Trainer, mapping: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels and the logits of a mapping, [liked and rating, rows] each."""
    from trainer.evaluate import Evaluator

    loader = ParquetLoader(trainer.data.spec, mapping, global_batch_size=32_768, shuffle=False)
    evaluator = Evaluator(trainer.model, loader, trainer.evaluator.evaluation, trainer.comm, xla=False)
    pairs = [(batch.labels[batch.rows >= 0], logits[batch.rows >= 0]) for batch, logits in evaluator.predicted()]
    labels, logits = (np.concatenate(parts).astype(np.float64).T for parts in zip(*pairs, strict=True))
    return labels, logits


def auc(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the area under the ROC curve."""
    ones = np.ones(len(labels), np.float32)
    return RocAuc().result(Rows(logits.astype(np.float32), labels.astype(np.float32), ones, None), Alone())


def untrained(trainer: Trainer, split: Split) -> Iterator[tuple[str, Line]]:
    """Yield the figures of each way that sets the row of unseen users after training."""
    tables = trainer.model.embeddings
    of_users = [table for name, table in tables.tables().items() if name.endswith(f".{USER}")]
    means = [(split.counts @ table.numpy()) / split.counts.sum() for table in of_users]
    yield RANDOM, figures(trainer)
    for way, values in ((ZEROS, [0.0] * len(of_users)), (MEAN, means)):
        for table, value in zip(of_users, values, strict=True):
            set_row(table, split.spec.features[USER].unseen_id, value)
        yield way, figures(trainer)


def runs_of(split: Split, seed: int, is_done: Callable[[str], bool]) -> Iterator[tuple[str, Line]]:
    """Yield the figures of every way that is not done."""
    if not is_done(MOVIE):
        yield MOVIE, movie_means(split)
    if not is_done(MEAN):
        with tempfile.TemporaryDirectory() as scratch:
            yield from untrained(trained(split, Path(scratch), split.spec, seed, 0.0), split)
    ways = [(way, share, split.spec) for way, share in TRAINED.items()]
    bare = without_numbers(split.spec)
    if bare != split.spec:
        ways.append((OWN_NUMBERS, 0.01, bare))
    for way, share, spec in ways:
        if not is_done(way):
            with tempfile.TemporaryDirectory() as scratch:
                yield way, figures(trained(split, Path(scratch), spec, seed, share))


def table_of(runs: list[Line]) -> str:
    """Format the mean of each way's figures over the seeds, with the smallest and the largest."""
    rows = []
    for way in (MOVIE, RANDOM, ZEROS, MEAN, *TRAINED, OWN_NUMBERS):
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
    parser.add_argument("--users", type=int, default=2000, help="users to sample, a fifth of them held out")
    parser.add_argument("--numbers", action="store_true", help="keep the numbers looked up by the user")
    args = parser.parse_args(argv)
    import_tensorflow()
    runs = RunsFile(args.runs)
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            split = split_by_user(args.data, Path(folder), seed=seed, users=args.users, numbers=args.numbers)
            for way, result in runs_of(split, seed, lambda way, seed=seed: runs.has(way=way, seed=seed)):
                runs.add(about(command()) | {"way": way, "seed": seed} | result)
                print(f"seed {seed}, {way}: {result}", file=sys.stderr, flush=True)
    print(table_of(runs.runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
