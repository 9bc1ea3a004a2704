"""The raw columns that a model's encoders read, as inputs of an export. Does not import TensorFlow."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.encoding.encoders import (
    BucketizedIds,
    CrossedIds,
    Encoder,
    HashedIds,
    HashedRanks,
    IdentityIds,
    MissingIndicator,
    Numerical,
    TimestampIds,
    Vocabulary,
)
from data.spec.raw.spec import RawSpec, Reading
from trainer.export.ports import inputs_of
from trainer.layout import InputSchema

TEXT, INTEGER, NUMBER = "string", "int64", "float64"
# The type of vectors, which have no nulls.
VECTOR = "float32"
# Values that represent null: the empty string, the smallest integer, and NaN for floats.
NULL_TEXT = b""
NULL_INTEGER = np.iinfo(np.int64).min
# Inputs hold times in seconds, encoders read them in microseconds.
TICKS_PER_SECOND = 1_000_000
# What a hashing encoder reads: integers or strings.
_KEYS = "keys"


class NotFromRaw(Exception):
    """Raw features cannot be encoded inside an export. The message gives the reason."""


@dataclass(frozen=True)
class RawInput:
    """A raw column as an input of an export.

    Attributes:
        name: name of the column.
        dtype: "string", "int64" or "float64"; "float32" for a vector.
        width: the input is [batch, width]: 1, or the dimension of a vector. None for lists, which are [batch, length]
            with rows padded by nulls at the end.
        has_empty: whether the vocabulary contains the empty string, which then cannot represent null.
        is_time: whether the input is a time in seconds since the epoch.
    """

    name: str
    dtype: str
    width: int | None = 1
    has_empty: bool = False
    is_time: bool = False

    @property
    def is_list(self) -> bool:
        """Whether the column has lists."""
        return self.width is None


def encoders_of(layout: InputSchema, encoders: Mapping[str, Encoder]) -> dict[str, Encoder]:
    """Return the encoders of a model's features and of the features that these cross.

    Returns:
        Encoders by input name (see `inputs_of`): the model's in the order of its inputs, then the others. A crossed
        feature need not come before the cross.

    Raises:
        NotFromRaw: if a feature has no encoder.
    """
    features = [port.name for port in inputs_of(layout)]
    if not encoders:
        raise NotFromRaw("the dataset of this model has no vocabularies and scalers")
    needed = list(features)
    for name in needed:  # grows in the loop
        encoder = encoders.get(name)
        if isinstance(encoder, CrossedIds):
            needed += [entry.name for entry in encoder.inputs if entry.is_feature and entry.name not in needed]
    missing = [name for name in needed if name not in encoders]
    if missing:
        raise NotFromRaw(f"the dataset of this model has no encoder for {', '.join(missing)}")
    return {name: encoders[name] for name in needed}


def raw_inputs_of(
    layout: InputSchema, encoders: Mapping[str, Encoder], readings: Mapping[str, Reading] | None = None
) -> dict[str, RawInput]:
    """Return the raw columns that the encoders read, by name.

    Args:
        layout: input layout of the model.
        encoders: encoders of its features (see `encoders_of`).
        readings: how preprocessing has read the raw columns, by name; None if it has left no description.

    Raises:
        NotFromRaw: if an encoder does not match its feature, or the type of a raw column cannot be determined.
    """
    for port in inputs_of(layout):
        _check_fits(layout, port.name, encoders[port.name])
    dimensions = {columns_of(encoders[vector.name])[0]: vector.dimension for vector in layout.vectors}
    readers: dict[str, list[Encoder]] = {}
    for feature, encoder in encoders.items():
        for name in columns_of(encoder):
            if (name in dimensions) != (feature in layout.vector_places):
                raise NotFromRaw(f"raw column {name} is read as a vector and as other values")
            readers.setdefault(name, []).append(encoder)
    return {
        name: RawInput(name, VECTOR, dimensions[name]) if name in dimensions else _input(name, own, readings or {})
        for name, own in readers.items()
    }


def columns_of(encoder: Encoder) -> tuple[str, ...]:
    """Return the names of the raw columns that an encoder reads itself, so not those of features that it crosses."""
    if isinstance(encoder, CrossedIds):
        return tuple(entry.name for entry in encoder.inputs if not entry.is_feature)
    return (encoder.column,)


def keys_of(encoder: Encoder) -> pa.Array | None:
    """Return the known raw values, int64 or strings; None for an encoder without any."""
    keys = None
    if isinstance(encoder, Vocabulary):
        keys = encoder.known_values
    elif isinstance(encoder, HashedRanks):
        keys = encoder.values
    elif isinstance(encoder, Numerical) and encoder.table:
        keys = encoder.table.keys
    return keys if keys is not None and len(keys) else None


def makes_lists(encoder: Encoder) -> bool:
    """Return whether an encoder makes lists, of lists that it reads or, as a cross, of a list among its inputs."""
    return getattr(encoder, "is_list", False)


def _reads_lists(encoder: Encoder, column: str) -> bool:
    """Return whether an encoder reads a raw column as lists."""
    return encoder.list_input == column if isinstance(encoder, CrossedIds) else makes_lists(encoder)


def _check_fits(layout: InputSchema, feature: str, encoder: Encoder) -> None:
    columns = {columns.name: columns for columns in layout.categorical}.get(feature)
    if feature in layout.vector_places:
        fits = isinstance(encoder, Numerical) and encoder.is_list and not (encoder.table or encoder.steps)
    elif isinstance(encoder, Numerical | MissingIndicator):
        fits = columns is None and makes_lists(encoder) == (feature not in layout.numerical)
    else:
        fits = columns is not None and (
            makes_lists(encoder) == columns.multihot and encoder.cardinality <= columns.cardinality
        )
    if not fits:
        raise NotFromRaw(f"the encoder of {feature} does not produce the model's inputs")


def _input(name: str, readers: list[Encoder], readings: Mapping[str, Reading]) -> RawInput:
    reading = readings.get(name)
    lists = {_reads_lists(encoder, name) for encoder in readers}
    needs = {_need(encoder) for encoder in readers}
    kinds = needs & {TEXT, INTEGER}
    if len(lists) > 1 or len(kinds) > 1 or (TEXT in kinds and NUMBER in needs):
        raise NotFromRaw(f"raw column {name} is read as values of several kinds")
    if kinds:
        dtype = kinds.pop()
    elif reading is not None:
        dtype = _dtype(reading)
    elif _KEYS in needs:  # integers and strings hash differently
        raise NotFromRaw(f"raw column {name} is hashed, but whether it holds integers or strings is unknown")
    else:
        dtype = NUMBER
    if dtype == TEXT and NUMBER in needs:
        raise NotFromRaw(f"raw column {name} holds strings, which are read as numbers")
    is_time = any(isinstance(encoder, TimestampIds) for encoder in readers)
    is_time |= reading is not None and reading.dtype == "timestamp" and dtype == INTEGER
    width = None if lists == {True} else 1
    return _checked(RawInput(name, dtype, width, _has_empty(readers), is_time), readers)


def _need(encoder: Encoder) -> str:
    keys = keys_of(encoder)
    if keys is not None:
        return INTEGER if pa.types.is_integer(keys.type) else TEXT
    if isinstance(encoder, IdentityIds | TimestampIds):
        return INTEGER
    is_number = isinstance(encoder, BucketizedIds | MissingIndicator)
    is_number |= isinstance(encoder, Numerical) and encoder.table is None
    return NUMBER if is_number else _KEYS


def _dtype(reading: Reading) -> str:
    if reading.dtype == "string":
        return TEXT
    return NUMBER if reading.dtype.startswith("float") else INTEGER


def _has_empty(readers: list[Encoder]) -> bool:
    return any(_holds(encoder, "", TEXT) for encoder in readers)


def _checked(column: RawInput, readers: list[Encoder]) -> RawInput:
    if column.has_empty and column.is_list:
        raise NotFromRaw(f"raw column {column.name} has the empty string in its lists, which is reserved for padding")
    if any(_holds(encoder, NULL_INTEGER, INTEGER) for encoder in readers):
        raise NotFromRaw(f"raw column {column.name} has the value {NULL_INTEGER}, which is reserved for null")
    if column.dtype == NUMBER and any(isinstance(encoder, HashedIds | CrossedIds) for encoder in readers):
        raise NotFromRaw(f"raw column {column.name} holds floating-point numbers, which have no hash")
    return column


def _holds(encoder: Encoder, value: str | int, kind: str) -> bool:
    keys = keys_of(encoder)
    if keys is None or _need(encoder) != kind:
        return False
    return pc.index(keys, pa.scalar(value, keys.type)).as_py() >= 0


@dataclass(frozen=True)
class RawLayout:
    """What an export encodes, and in which order.

    Attributes:
        model: input layout of the model.
        encoders: encoders by feature name (see `encoders_of`).
        columns: raw columns that the encoders read, by name (see `raw_inputs_of`).
        groups: names of features that are encoded together: with encoders of one kind that read single values of one
            type, or a single feature for lists and crosses. Crosses come after the features that they cross.
            Vectors are in none, since they are taken as they are.
        hashed: names of the columns of single strings whose hashes are always needed.
        keeps_last: names of the list inputs of which the last items of longer lists are kept, not the first ones.
        ids_of: raw column of weights -> that of their ids.
        steps_of: feature of a sequence -> the raw columns of all features of the sequence, in the order of its ids and
            numbers. Their rows end with the last step that has a value in one of them.
    """

    model: InputSchema
    encoders: dict[str, Encoder]
    columns: dict[str, RawInput]
    groups: tuple[tuple[str, ...], ...]
    hashed: frozenset[str]
    keeps_last: frozenset[str]
    ids_of: Mapping[str, str]
    steps_of: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(
        cls,
        model: InputSchema,
        encoders: Mapping[str, Encoder],
        raw_spec: RawSpec | None = None,
        known: Mapping[str, RawInput] | None = None,
    ) -> "RawLayout":
        """Return the layout of a model.

        Args:
            model: input layout of the model.
            encoders: encoders by feature name; others than those that the model needs are ignored.
            raw_spec: raw specification of its dataset; None if there was none.
            known: raw columns of these and other features, if they have been found before.

        Raises:
            NotFromRaw: if the features cannot be encoded from raw columns.
        """
        needed = encoders_of(model, encoders)
        if known is None:
            columns = raw_inputs_of(model, needed, None if raw_spec is None else raw_spec.readings)
        else:
            columns = {name: known[name] for encoder in needed.values() for name in columns_of(encoder)}
        hashed = {
            name
            for encoder in needed.values()
            if isinstance(encoder, HashedIds | CrossedIds)
            for name in columns_of(encoder)
            if columns[name].dtype == TEXT and not columns[name].is_list
        }
        encoded = {name: encoder for name, encoder in needed.items() if name not in model.vector_places}
        pairs = [(needed[feature.weights], needed[feature.name]) for feature in model.weighted]
        return cls(
            model,
            needed,
            columns,
            _groups(encoded, columns),
            frozenset(hashed),
            _keeps_last(model, raw_spec),
            ids_of={columns_of(weights)[0]: columns_of(ids)[0] for weights, ids in pairs},
            steps_of=_steps_of(model, needed),
        )


def _keeps_last(model: InputSchema, raw_spec: RawSpec | None) -> frozenset[str]:
    stated = {} if raw_spec is None else raw_spec.features
    lists = [feature for feature in model.categorical if feature.multihot and not feature.sequence]
    last = [feature for feature in lists if feature.name in stated and stated[feature.name].keep == "last"]
    return model.newest_last.union(name for feature in last for name in (feature.name, feature.weights) if name)


def _steps_of(model: InputSchema, encoders: Mapping[str, Encoder]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for sequence in model.sequences:
        features = (*sequence.features, *sequence.numbers)
        columns = tuple(dict.fromkeys(column for name in features for column in columns_of(encoders[name])))
        found |= dict.fromkeys(features, columns)
    return found


def _groups(encoders: Mapping[str, Encoder], columns: Mapping[str, RawInput]) -> tuple[tuple[str, ...], ...]:
    groups: dict[tuple[Any, ...], list[str]] = {}
    for feature, encoder in encoders.items():
        if not isinstance(encoder, CrossedIds):
            column = columns[encoder.column]
            alone = (feature,) if column.is_list else ()
            groups.setdefault((column.dtype, *_kind(encoder), *alone), []).append(feature)
    crosses: dict[str, None] = {}
    for feature in encoders:
        _add_cross(feature, encoders, crosses)
    return (*map(tuple, groups.values()), *((feature,) for feature in crosses))


def _kind(encoder: Encoder) -> tuple[Any, ...]:
    """Return what encoders of a group have in common."""
    if isinstance(encoder, Vocabulary):
        return Vocabulary, encoder.oov_buckets > 1
    if isinstance(encoder, TimestampIds):
        return TimestampIds, encoder.part
    if isinstance(encoder, Numerical):
        return Numerical, encoder.table is None, tuple(step[0] for step in encoder.steps)
    return (type(encoder),)


def _add_cross(feature: str, encoders: Mapping[str, Encoder], crosses: dict[str, None]) -> None:
    """Add a cross after the crosses among its inputs."""
    encoder = encoders[feature]
    if isinstance(encoder, CrossedIds) and feature not in crosses:
        for entry in encoder.inputs:
            if entry.is_feature:
                _add_cross(entry.name, encoders, crosses)
        crosses[feature] = None
