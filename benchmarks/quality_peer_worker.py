"""Another program's model of an encoded dataset, run by benchmarks/quality.py in an own process.

    python quality_peer_worker.py KIND DATASET.json SETTINGS SEED OUTPUT

KIND is a key of KINDS. DATASET.json describes the dataset: `files` (parquet files of train, valid and test, in their
order), `onehot` (features and their cardinalities), `multihot` (features, cardinalities and the most ids of a row),
`numerical` and `label`. SETTINGS is JSON, with the entries that the function of KIND takes.

The valid rows decide when training stops, and in logistic regression about C; the test rows are only predicted.
Predictions of both go to the folder OUTPUT, valid.parquet and test.parquet, with the columns of this project's
predictions: label_LABEL and prediction_LABEL. It prints a line of JSON: `working_seconds`, without imports and reading,
`versions`, and `chosen`, what the valid rows decided.

FuxiCTR's models are those of quality_fuxictr.py. They get the ids of the dataset, and batches from memory, shuffled in
every epoch; layers, regularization, optimizer, learning rate and early stopping are FuxiCTR's.

This file does not import anything of this project.
"""

import contextlib
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MAPPINGS = ("train", "valid", "test")
PADDING = 0  # an id that no value has
REGULARIZATIONS = (0.001, 0.01, 0.1, 1.0, 10.0)  # C of logistic regression


@dataclass(frozen=True)
class Rows:
    """The rows of a mapping.

    Attributes:
        onehot: ids by feature, [rows] int64.
        multihot: ids by feature, [rows, most ids of a row] int64, filled up with PADDING.
        numerical: values by feature, [rows] float32.
        labels: [rows] float32, 0 or 1.
    """

    onehot: dict[str, np.ndarray]
    multihot: dict[str, np.ndarray]
    numerical: dict[str, np.ndarray]
    labels: np.ndarray


@dataclass(frozen=True)
class Fitted:
    """A trained model.

    Attributes:
        predict: returns the probability of a positive label of rows, [rows] float64.
        chosen: what the valid rows decided, for the report.
    """

    predict: Callable[[Rows], np.ndarray]
    chosen: dict[str, Any]


# Takes the description of the dataset, training rows, valid rows and the seed.
Fit = Callable[[dict[str, Any], Rows, Rows, int], Fitted]


def read_rows(dataset: dict[str, Any], mapping: str) -> Rows:
    """Read the rows of a mapping."""
    table = pa.concat_tables(pq.read_table(file) for file in dataset["files"][mapping])
    column = {name: table[name].combine_chunks() for name in table.column_names}
    return Rows(
        {name: column[name].to_numpy().astype(np.int64) for name in dataset["onehot"]},
        {name: padded(column[name], most) for name, (_, most) in dataset["multihot"].items()},
        {name: column[name].to_numpy().astype(np.float32) for name in dataset["numerical"]},
        column[dataset["label"]].to_numpy().astype(np.float32),
    )


def padded(lists: pa.ListArray, most: int) -> np.ndarray:
    """Return the first `most` ids of each list, [rows, most] int64, filled up with PADDING."""
    offsets, values = lists.offsets.to_numpy(), lists.values.to_numpy()
    places = offsets[:-1, None] + np.arange(most)
    is_id = places < offsets[1:, None]
    return np.where(is_id, values[np.where(is_id, places, 0)], PADDING).astype(np.int64)


def counts_of(ids: np.ndarray, cardinality: int) -> np.ndarray:
    """Return how often a row has each id but PADDING, [rows, cardinality - 1] float32."""
    counts = np.zeros((len(ids), cardinality), np.float32)
    for column in ids.T:
        np.add.at(counts, (np.arange(len(ids)), column), 1)
    return counts[:, PADDING + 1 :]


def logistic_regression() -> Fit:
    """Fit scikit-learn's logistic regression of one- and multi-hot ids and numbers; `valid` chooses C by log loss."""
    from scipy import sparse
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    def matrix(dataset: dict[str, Any], rows: Rows) -> sparse.csr_matrix:
        count = np.arange(len(rows.labels))
        ones = np.ones(len(rows.labels), np.float32)
        blocks = [
            sparse.csr_matrix((ones, (count, rows.onehot[name])), shape=(len(ones), cardinality))
            for name, cardinality in dataset["onehot"].items()
        ]
        for name, (cardinality, _) in dataset["multihot"].items():
            blocks.append(sparse.csr_matrix(counts_of(rows.multihot[name], cardinality)))
        blocks.extend(sparse.csr_matrix(values[:, None]) for values in rows.numerical.values())
        return sparse.hstack(blocks, format="csr")

    def fit(dataset: dict[str, Any], train: Rows, valid: Rows, seed: int) -> Fitted:
        inputs, valid_inputs = matrix(dataset, train), matrix(dataset, valid)
        models = {
            C: LogisticRegression(C=C, max_iter=1000, random_state=seed).fit(inputs, train.labels)
            for C in REGULARIZATIONS
        }
        losses = {C: log_loss(valid.labels, model.predict_proba(valid_inputs)[:, 1]) for C, model in models.items()}
        best = min(losses, key=losses.__getitem__)
        return Fitted(lambda rows: models[best].predict_proba(matrix(dataset, rows))[:, 1], {"C": best})

    return fit


def lightgbm(*, rounds: int, patience: int, parameters: dict[str, Any]) -> Fit:
    """Fit LightGBM with categorical features; the log loss of `valid` stops it.

    Args:
        rounds: the most trees.
        patience: number of trees without a lower log loss after which it stops.
        parameters: LightGBM's parameters.
    """
    import lightgbm as gbm

    def matrix(dataset: dict[str, Any], rows: Rows) -> np.ndarray:
        lists = (counts_of(rows.multihot[name], size) for name, (size, _) in dataset["multihot"].items())
        return np.column_stack([*rows.onehot.values(), *rows.numerical.values(), *lists]).astype(np.float32)

    def fit(dataset: dict[str, Any], train: Rows, valid: Rows, seed: int) -> Fitted:
        ids = list(range(len(dataset["onehot"])))  # the first columns
        data = gbm.Dataset(matrix(dataset, train), train.labels, categorical_feature=ids)
        held_out = gbm.Dataset(matrix(dataset, valid), valid.labels, reference=data)
        booster = gbm.train(
            {"objective": "binary", "metric": "binary_logloss", "seed": seed, "verbosity": -1, **parameters},
            data,
            rounds,
            valid_sets=[held_out],
            callbacks=[gbm.early_stopping(patience, verbose=False)],
        )
        return Fitted(lambda rows: booster.predict(matrix(dataset, rows)), {"trees": booster.best_iteration})

    return fit


def fuxictr(*, network: str, batch_size: int, epochs: int, **settings: Any) -> Fit:
    """Train FuxiCTR's Wide & Deep or DCN-V2; AUC - log loss of `valid` lowers the learning rate and stops it.

    Args:
        network: a key of quality_fuxictr.NETWORKS.
        batch_size: rows of a step.
        epochs: the most epochs.
        settings: see quality_fuxictr.Network.
    """
    from fuxictr.pytorch.torch_utils import seed_everything
    from quality_fuxictr import NETWORKS, Batches, feature_map

    logging.basicConfig(level=logging.INFO, format="%(message)s")

    def batches(dataset: dict[str, Any], rows: Rows, *, shuffle: bool = False) -> Batches:
        columns = rows.onehot | rows.multihot | rows.numerical | {dataset["label"]: rows.labels}
        return Batches(columns, batch_size, shuffle=shuffle)

    def fit(dataset: dict[str, Any], train: Rows, valid: Rows, seed: int) -> Fitted:
        seed_everything(seed)
        features = feature_map(dataset, settings["embedding_dim"], PADDING)
        with tempfile.TemporaryDirectory() as folder:
            model = NETWORKS[network](features, folder, settings)
            model.fit(batches(dataset, train, shuffle=True), epochs=epochs, validation_data=batches(dataset, valid))
        return Fitted(lambda rows: model.predict(batches(dataset, rows)), {"epochs": model._epoch_index + 1})

    return fit


KINDS = {"logistic_regression": logistic_regression, "lightgbm": lightgbm, "fuxictr": fuxictr}
PACKAGES = {
    "logistic_regression": ("scikit-learn",),
    "lightgbm": ("lightgbm",),
    "fuxictr": ("fuxictr", "torch"),
}


def write_predictions(file: Path, label: str, rows: Rows, predictions: np.ndarray) -> None:
    """Write predictions beside their labels."""
    table = pa.table({f"label_{label}": rows.labels, f"prediction_{label}": predictions.astype(np.float64)})
    pq.write_table(table, file)


def main() -> None:
    kind, description, settings, seed, output = sys.argv[1:]
    with contextlib.redirect_stdout(sys.stderr):
        fit = KINDS[kind](**json.loads(settings))
        dataset = json.loads(Path(description).read_text())
        train, valid, test = (read_rows(dataset, mapping) for mapping in MAPPINGS)
        begin = time.perf_counter()
        fitted = fit(dataset, train, valid, int(seed))
        for mapping, rows in (("valid", valid), ("test", test)):
            write_predictions(Path(output) / f"{mapping}.parquet", dataset["label"], rows, fitted.predict(rows))
        seconds = time.perf_counter() - begin
    versions = {package: version(package) for package in PACKAGES[kind]}
    print(json.dumps({"working_seconds": seconds, "versions": versions, "chosen": fitted.chosen}), flush=True)


if __name__ == "__main__":
    main()
