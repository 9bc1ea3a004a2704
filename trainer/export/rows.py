"""Rows for the comparison of an export with the model."""

from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.encoding.encoders import (
    FILL,
    LOG1P,
    SCALE,
    BucketizedIds,
    Encoder,
    IdentityIds,
    Numerical,
    encode_columns,
)
from data.loading.batch import PAD
from data.loading.loader import ParquetLoader
from trainer.checkpoint.load_model import LoadedModel
from trainer.export.comparison import Arrays, Check, Predict, expected_predictions
from trainer.export.ports import inputs_of
from trainer.export.raw_columns import (
    INTEGER,
    NULL_INTEGER,
    NULL_TEXT,
    NUMBER,
    TEXT,
    TICKS_PER_SECOND,
    VECTOR,
    RawInput,
    RawLayout,
    columns_of,
    keys_of,
)
from trainer.layout import InputSchema, ModelInputs
from trainer.recommender.scorer import Scorer
from trainer.tasks.score import Score

# Shares of random raw values that are null, and that are not among the known ones.
NULL_SHARE, UNSEEN_SHARE = 0.1, 0.2
# Longest list of random raw values.
LONGEST = 5


@dataclass(frozen=True)
class ComparedRows:
    """Rows on which an export is compared with the model.

    Attributes:
        inputs: encoded features, or raw columns, by name, [rows, width] each.
        expected: the model's predictions by task name, [rows, width] each.
        kind: what the rows are, for messages.
        score: the model's score; None for none.
        numerical: the numerical features, [rows, numerical] float32.
    """

    inputs: Arrays
    expected: Arrays
    kind: str
    score: Score | None
    numerical: np.ndarray

    @property
    def number(self) -> int:
        """Number of rows."""
        return len(next(iter(self.inputs.values())))

    def check(self, name: str, predict: Predict) -> Check:
        """Return the comparison of a prediction function on these rows."""
        numbers = np.empty((self.number, 0), np.float32) if self.score is None else self.score.numbers(self.numerical)
        return Check(name, predict, self.inputs, self.expected, self.kind, self.score, numbers)


def first_rows(loader: ParquetLoader, layout: InputSchema) -> ModelInputs:
    """Return the loader's first batch without padding rows."""
    with closing(loader.epoch(0)) as batches:
        batch = next(batches)
    real = batch.rows >= 0  # padding rows have index -1
    return ModelInputs(*(matrix[real] for matrix in layout.model_inputs(batch.ids, batch.numerical, batch.vectors)))


def random_rows(layout: InputSchema, rows: int, seed: int = 0) -> ModelInputs:
    """Generate random valid ids, lists of random lengths, weights in [0, 1), and normal numbers and vectors."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((rows, layout.id_columns), np.int32)
    of_sequence = {sequence.name: rng.integers(0, sequence.length + 1, (rows, 1)) for sequence in layout.sequences}
    for columns in layout.categorical:
        drawn = rng.integers(0, columns.cardinality, (rows, columns.hotness))
        if columns.multihot:
            lengths = of_sequence.get(columns.sequence)
            lengths = rng.integers(0, columns.hotness + 1, (rows, 1)) if lengths is None else lengths
            drawn = np.where(np.arange(columns.hotness) < lengths, drawn, PAD)
        ids[:, columns.start : columns.stop] = drawn
    numerical = rng.normal(size=(rows, len(layout.numerical))).astype(np.float32)
    weights = rng.random((rows, layout.weight_columns), np.float32)
    numbers, vectors = (
        rng.normal(size=(rows, width)).astype(np.float32) for width in (layout.number_columns, layout.vector_columns)
    )
    return ModelInputs(ids, numerical, weights, numbers, vectors)


def random_raw_rows(saved: LoadedModel, layout: RawLayout, rows: int, *, shared: Collection[str] = ()) -> ComparedRows:
    """Generate random rows of raw columns, with the model's predictions of what the encoders make of them.

    Args:
        saved: the model.
        layout: features, encoders and raw columns.
        rows: number of rows.
        shared: names of columns that have the same value in all rows.
    """
    raw = random_raw(layout, rows)
    raw |= {name: _as_objects(rows * [raw[name][0]]) for name in shared}
    encoded = encode_columns(layout.encoders, raw)
    for port in inputs_of(layout.model):
        if port.name in layout.keeps_last:
            encoded[port.name] = _last(encoded[port.name], port.width)
    inputs = Scorer(saved).matrices(encoded, rows)
    expected = expected_predictions(saved.tasks, saved.model(*inputs).numpy())
    return ComparedRows(raw_inputs(layout.columns, raw), expected, "random raw rows", saved.score, inputs.numerical)


def random_raw(layout: RawLayout, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Generate random raw values as encoders read them: known and unseen ones, and null (None).

    Returns:
        [rows] objects by column name; the objects are lists for columns of lists.
    """
    rng, drawn = np.random.default_rng(seed), {}
    lengths = _random_lengths(layout, rows, rng)
    for name, column in layout.columns.items():
        readers = {feature: own for feature, own in layout.encoders.items() if name in columns_of(own)}
        if column.dtype == VECTOR:
            drawn[name] = _as_objects(rng.normal(size=(rows, column.width or 1)).astype(np.float32).tolist())
        elif not column.is_list:
            drawn[name] = _values(column, [*readers.values()], rows, rng)
        else:
            flat = _values(column, [*readers.values()], 2 * int(lengths[name].sum()), rng).tolist()
            # The first column of a sequence tells how long its rows are.
            if not all(feature in layout.steps_of and layout.steps_of[feature][0] != name for feature in readers):
                flat = [value for value in flat if value is not None]
            if name in layout.ids_of:
                flat = np.abs(np.array(flat, np.float64)).tolist()
            ends = np.cumsum(lengths[name])
            drawn[name] = _as_objects(
                [flat[end - length : end] for end, length in zip(ends, lengths[name], strict=True)]
            )
    return drawn


def _random_lengths(layout: RawLayout, rows: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return random lengths of lists, [rows] by raw column: those of weights and of steps are the same."""
    lists = [name for name, column in layout.columns.items() if column.is_list]
    lengths = {name: rng.integers(0, LONGEST + 1, rows) for name in lists}
    for columns in dict.fromkeys(layout.steps_of.values()):
        # Also of the columns of other sequences that share one with this sequence.
        same = {id(lengths[name]) for name in columns}
        lengths |= {name: lengths[columns[0]] for name in lists if id(lengths[name]) in same}
    return lengths | {weights: lengths[ids] for weights, ids in layout.ids_of.items()}


def raw_inputs(columns: Mapping[str, RawInput], raw: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Convert raw values to inputs of an export: null becomes the value that represents it, which also pads lists."""
    return {name: _as_matrix(column, raw[name]) for name, column in columns.items()}


def _last(lists: Any, number: int) -> np.ndarray:
    return _as_objects([entry[-number:] for entry in lists])


def _as_objects(lists: list[Any]) -> np.ndarray:
    return np.array([*lists, None], object)[:-1]  # None, so that equally long lists do not become a matrix


def _values(column: RawInput, readers: list[Encoder], rows: int, rng: np.random.Generator) -> np.ndarray:
    """Return random values of single cells, [rows] objects."""
    plain = [encoder for encoder in readers if isinstance(encoder, Numerical) and encoder.table is None]
    keys = [known.to_pylist() for encoder in readers if (known := keys_of(encoder)) is not None]
    limits = [encoder.cardinality for encoder in readers if isinstance(encoder, IdentityIds)]
    drawn: list[float] | list[int] | list[str]
    if column.dtype == TEXT:
        drawn = [f"unseen \u00e9 {number}" for number in rng.integers(2**62, size=rows)]
    elif limits:
        drawn = rng.integers(min(limits), size=rows).tolist()
    elif column.is_time:
        drawn = (rng.integers(-(2**32), 2**33, rows) * TICKS_PER_SECOND).tolist()
    elif plain or column.dtype == NUMBER:
        numbers = _numbers(plain, readers, rows, rng)
        drawn = (np.round(numbers).astype(np.int64) if column.dtype == INTEGER else numbers).tolist()
    else:
        drawn = rng.integers(2**62, size=rows).tolist()
    values = np.array([*drawn, None], object)[:-1]
    known = [key for of_one in keys for key in of_one if not column.is_time or key % TICKS_PER_SECOND == 0]
    if known and not limits:
        picked = rng.random(rows) >= UNSEEN_SHARE
        values[picked] = np.array([*known, None], object)[rng.integers(0, len(known), int(picked.sum()))]
    fills = all(any(step[0] == FILL for step in encoder.steps) for encoder in plain)
    if fills and not column.has_empty:
        values[rng.random(rows) < NULL_SHARE] = None
    return values


def _numbers(plain: list[Numerical], readers: list[Encoder], rows: int, rng: np.random.Generator) -> np.ndarray:
    """Return random numbers of the size of the training data's, some of them boundaries of intervals."""
    scales = [step[1:] for encoder in plain for step in encoder.steps if step[0] == SCALE]
    mean, std = map(float, scales[0]) if scales else (0.0, 1.0)  # type: ignore[arg-type]
    numbers = rng.normal(mean, std, rows)
    if any(step[0] == LOG1P for encoder in plain for step in encoder.steps):
        numbers = np.expm1(np.abs(numbers))
    bounds = [bound for encoder in readers if isinstance(encoder, BucketizedIds) for bound in encoder.boundaries]
    if bounds and not plain:
        near = rng.choice(bounds, rows)
        numbers = np.where(rng.random(rows) < 0.5, near, near + numbers)
    return numbers


def _as_matrix(column: RawInput, values: np.ndarray) -> np.ndarray:
    if column.dtype == VECTOR:
        return np.array(values.tolist(), np.float32)
    null = {TEXT: NULL_TEXT, INTEGER: NULL_INTEGER, NUMBER: np.nan}[column.dtype]
    lists = [entry or [] for entry in values] if column.is_list else [[value] for value in values]
    width = max(1, *map(len, lists)) if column.is_list else 1
    divisor = TICKS_PER_SECOND if column.is_time else None
    padded = [[_as_input(value, null, divisor) for value in entry] + [null] * (width - len(entry)) for entry in lists]
    return np.array(padded, object if column.dtype == TEXT else column.dtype)


def _as_input(value: object, null: object, divisor: int | None) -> object:
    if value is None:
        return null
    return value // divisor if isinstance(value, int) and divisor else value
