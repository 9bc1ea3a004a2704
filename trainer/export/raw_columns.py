"""The raw columns that a model's encoders read, with their types. Does not import TensorFlow."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data.encoding.encoders import Encoder, HashedRanks, Numerical, Vocabulary
from trainer.layout import InputLayout

# Values that represent null: the smallest integer, the empty string, and NaN for floats.
NULL_INTEGER = np.iinfo(np.int64).min
NULL_TEXT = b""


class NotFromRaw(Exception):
    """Raw features cannot be encoded inside a graph. The message gives the reason."""


@dataclass(frozen=True)
class RawColumn:
    """A raw column as an input of a graph.

    Attributes:
        name: name of the column.
        dtype: "string", "int64" or "float64".
        is_list: whether the input is [batch, length] with rows padded by nulls at the end; otherwise it is [batch, 1].
        has_empty: whether the vocabulary contains the empty string, which then cannot represent null.
    """

    name: str
    dtype: str
    is_list: bool
    has_empty: bool


def encoders_of(layout: InputLayout, encoders: Mapping[str, Encoder]) -> dict[str, Encoder]:
    """Returns the encoders of a model's features, in the order of its layout.

    Raises:
        NotFromRaw: if a feature has no encoder.
    """
    features = [*(columns.name for columns in layout.categorical), *layout.numerical]
    missing = [name for name in features if name not in encoders]
    if not encoders:
        raise NotFromRaw("the dataset of this model came without vocabularies and scalers")
    if missing:
        raise NotFromRaw(f"the dataset of this model came without an encoder of {', '.join(missing)}")
    return {name: encoders[name] for name in features}


def raw_columns(layout: InputLayout, encoders: Mapping[str, Encoder]) -> dict[str, RawColumn]:
    """Returns the raw columns that the encoders read, by name.

    Args:
        layout: input layout of the model.
        encoders: encoders of its features (see `encoders_of`).

    Raises:
        NotFromRaw: if an encoder does not match its feature, or the type of a raw column cannot be determined.
    """
    readers: dict[str, list[Encoder]] = {}
    for feature, encoder in encoders.items():
        _check_fits(layout, feature, encoder)
        readers.setdefault(encoder.column, []).append(encoder)
    return {name: _column(name, encoders) for name, encoders in readers.items()}


def keys_of(encoder: Encoder) -> np.ndarray | None:
    """Returns the known raw values, int64 or strings; None for an encoder of plain numbers or without vocabulary."""
    if isinstance(encoder, Vocabulary | HashedRanks):
        return encoder.values if len(encoder.values) else None
    return encoder.table.keys if isinstance(encoder, Numerical) and encoder.table else None


def _check_fits(layout: InputLayout, feature: str, encoder: Encoder) -> None:
    columns = {columns.name: columns for columns in layout.categorical}.get(feature)
    if isinstance(encoder, Numerical):
        fits = columns is None
    else:
        fits = columns is not None and (
            _reads_lists(encoder) == columns.multihot and encoder.cardinality <= columns.cardinality
        )
    if not fits:
        raise NotFromRaw(f"the encoder of {feature} makes other values than the model takes")


def _column(name: str, readers: list[Encoder]) -> RawColumn:
    found = [keys for encoder in readers if (keys := keys_of(encoder)) is not None]
    kinds = {"string" if keys.dtype == object else "int64" for keys in found}
    plain = [isinstance(encoder, Numerical) and encoder.table is None for encoder in readers]
    lists = {_reads_lists(encoder) for encoder in readers}
    if len(lists) > 1 or len(kinds) > 1 or (any(plain) and kinds == {"string"}):
        raise NotFromRaw(f"raw column {name} is read as values of several kinds")
    if not kinds and not all(plain):  # integers and strings hash differently
        raise NotFromRaw(f"raw column {name} is hashed, and nothing says whether it holds integers or texts")
    has_empty = any("" in keys for keys in found) if kinds == {"string"} else False
    if has_empty and lists == {True}:
        raise NotFromRaw(f"raw column {name} has the empty text in its lists, which is needed as their pad")
    if kinds == {"int64"} and any(NULL_INTEGER in keys for keys in found):
        raise NotFromRaw(f"raw column {name} has the value {NULL_INTEGER}, which stands for null")
    return RawColumn(name, kinds.pop() if kinds else "float64", lists == {True}, has_empty)


def _reads_lists(encoder: Encoder) -> bool:
    return isinstance(encoder, HashedRanks) or (isinstance(encoder, Vocabulary) and encoder.is_list)
