"""Rows for the comparison of an export with the model."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from data.loading.batch import PAD
from data.loading.loader import ParquetLoader
from data.preprocess.encoders import Encoder, Numerical
from trainer.export.comparison import Arrays, Check, Predict
from trainer.export.raw import NULL_INTEGER, NULL_TEXT, RawInput, keys_of
from trainer.layout import InputSchema


@dataclass(frozen=True)
class ComparedRows:
    """Rows on which an export is compared with the model.

    Attributes:
        inputs: encoded features by name, [rows, width] each.
        expected: the model's predictions by task name, [rows, width] each.
        kind: what the rows are, for messages.
    """

    inputs: Arrays
    expected: Arrays
    kind: str

    def check(self, name: str, predict: Predict) -> Check:
        """Returns the comparison of a prediction function on these rows."""
        return Check(name, predict, self.inputs, self.expected, self.kind)


def first_rows(loader: ParquetLoader) -> tuple[np.ndarray, np.ndarray]:
    """Returns the loader's first batch without padding rows.

    Returns:
        ids [rows, id columns] int32 and numerical [rows, numerical features] float32.
    """
    with closing(loader.epoch(0)) as batches:
        batch = next(batches)
    real = batch.rows >= 0  # padding rows have index -1
    return batch.ids[real], batch.numerical[real]


def random_rows(layout: InputSchema, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Generates rows of random valid ids, multi-hot rows of random lengths, and normally distributed numbers.

    Returns:
        ids [rows, id columns] int32 and numerical [rows, numerical features] float32.
    """
    rng = np.random.default_rng(seed)
    ids = np.zeros((rows, layout.id_columns), np.int32)
    for columns in layout.categorical:
        drawn = rng.integers(0, columns.cardinality, (rows, columns.hotness))
        if columns.multihot:
            lengths = rng.integers(0, columns.hotness + 1, (rows, 1))
            drawn = np.where(np.arange(columns.hotness) < lengths, drawn, PAD)
        ids[:, columns.start : columns.stop] = drawn
    return ids, rng.normal(size=(rows, len(layout.numerical))).astype(np.float32)


def random_raw(
    columns: Mapping[str, RawInput], encoders: Mapping[str, Encoder], rows: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """Generates random raw values: known and unseen ones, and null (None).

    Returns:
        [rows] objects by column name; the objects are lists for columns of lists.
    """
    rng = np.random.default_rng(seed)
    drawn = {}
    for name, column in columns.items():
        readers = [encoder for encoder in encoders.values() if encoder.column == name]
        if not column.is_list:
            drawn[name] = _values(column, readers, rows, rng, nulls=not column.has_empty)
            continue
        lengths = rng.integers(0, 6, rows)
        flat = _values(column, readers, int(lengths.sum()), rng, nulls=False)
        lists = np.empty(rows, object)
        lists[:] = [list(part) for part in np.split(flat, np.cumsum(lengths)[:-1])]
        drawn[name] = lists
    return drawn


def raw_inputs(columns: Mapping[str, RawInput], raw: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Converts raw values to graph inputs: null becomes the value that represents it, which also pads lists."""
    return {name: _as_matrix(column, raw[name]) for name, column in columns.items()}


def _values(
    column: RawInput, readers: list[Encoder], rows: int, rng: np.random.Generator, *, nulls: bool
) -> np.ndarray:
    values = np.empty(rows, object)
    if column.dtype == "float64":
        (first, *_) = [encoder for encoder in readers if isinstance(encoder, Numerical)]
        numbers = rng.normal(first.mean, first.std, rows)
        values[:] = (np.expm1(np.abs(numbers)) if first.log else numbers).tolist()
    else:
        keys = np.concatenate([keys for encoder in readers if (keys := keys_of(encoder)) is not None])
        unseen = rng.integers(2**62, size=rows)
        new = [f"unseen \u00e9 {number}" for number in unseen] if column.dtype == "string" else unseen.tolist()
        known = keys[rng.integers(0, len(keys), rows)].tolist()
        values[:] = [
            other if pick else one for one, other, pick in zip(known, new, rng.random(rows) < 0.2, strict=True)
        ]
    if nulls:
        values[rng.random(rows) < 0.1] = None
    return values


def _as_matrix(column: RawInput, values: np.ndarray) -> np.ndarray:
    null = {"string": NULL_TEXT, "int64": NULL_INTEGER, "float64": np.nan}[column.dtype]
    lists = [entry or [] for entry in values] if column.is_list else [[value] for value in values]
    width = max(1, *map(len, lists)) if column.is_list else 1
    padded = [[null if value is None else value for value in entry] + [null] * (width - len(entry)) for entry in lists]
    return np.array(padded, object if column.dtype == "string" else column.dtype)
