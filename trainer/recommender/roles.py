"""The roles of an application's columns: their kinds, the tables that they share, and the sequences that they form."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.encoding.keys import as_lists
from data.errors import DataError, shown
from data.spec import features as channels
from data.spec.feature_spec import FeatureSpec
from data.spec.features import LABEL, SEQUENCE, TEST, TRAIN, FeatureSequence
from trainer.recommender.columns import (
    CATEGORICAL,
    KINDS,
    MULTIHOT,
    NUMERICAL,
    STEP_KINDS,
    VECTOR,
    kind_of,
    require_mapping,
)

CHANNEL_OF = {
    CATEGORICAL: channels.ONEHOT,
    NUMERICAL: channels.NUMERICAL,
    MULTIHOT: channels.MULTIHOT,
    VECTOR: channels.VECTOR,
}
SEQUENCES_EXAMPLE = "{'clicks': {'features': ['clicked'], 'target': ['item_id']}}"
# What the rules of a specification need to be told of a column whose values have not been read.
_SIZES = {
    CATEGORICAL: ("cardinality",),
    MULTIHOT: ("cardinality", "max_hotness"),
    VECTOR: ("dimension",),
}


@dataclass(frozen=True)
class Roles:
    """The roles of the columns that are features.

    Attributes:
        kinds: kind of each column by name, one of KINDS.
        tables: the table of categorical columns that share one with others.
        sequences: the sequences. Their lengths are not known yet.
        dimensions: how many numbers each vector has, by its column.
    """

    kinds: dict[str, str]
    tables: Mapping[str, str]
    sequences: tuple[FeatureSequence, ...]
    dimensions: dict[str, int]

    @cached_property
    def steps(self) -> frozenset[str]:
        """The columns that belong to sequences."""
        return frozenset(name for sequence in self.sequences for name in sequence.features)

    def channels(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Return the columns of each channel of a specification, in the given order but for those of sequences."""
        of_sequences = tuple(chain.from_iterable(sequence.features for sequence in self.sequences))
        return _channels({name: self.kinds[name] for name in names}, self.steps) | {SEQUENCE: of_sequences}


def find_roles(
    ids: Sequence[str],
    label: str,
    sources: Mapping[str, pd.DataFrame],
    kinds: Mapping[str, str],
    sequences: Mapping[str, Any],
    tables: Mapping[str, str],
) -> Roles:
    """Return the roles of columns.

    Args:
        ids: columns of the raw ids.
        label: column of a label.
        sources: the columns of features, by the name of the argument that holds them.
        kinds: stated kinds by column; those of other columns are inferred from their values.
        sequences: keys of each sequence, as in a specification, by its name.
        tables: tables of categorical columns.

    Raises:
        DataError: if one of the last three arguments is invalid, or the lists of a sequence or the vectors of a column
            differ in length.
    """
    require_mapping(kinds, "kinds", f"{{'age': '{KINDS[0]}'}}")
    require_mapping(sequences, "sequences", SEQUENCES_EXAMPLE)
    require_mapping(tables, "tables", f"{{'clicked': '{ids[-1]}'}}")
    steps = _steps(sequences)
    found = dict.fromkeys(ids, CATEGORICAL)
    for frame in sources.values():
        for name in frame:
            found[str(name)] = kinds.get(str(name)) or kind_of(frame[name], is_step=name in steps)
    for name, kind in kinds.items():
        expected = STEP_KINDS if name in steps else KINDS
        if kind not in expected or name not in found or name in ids:
            raise DataError(f"kinds: {name!r}: {kind!r}; expected a feature's column, and one of {', '.join(expected)}")
    for name in tables:
        if name not in found:
            raise DataError(f"tables: {name!r} is none of the features {', '.join(found)}")
    checked = _checked_sequences(found, steps, sequences, tables, label)
    for sequence in checked:
        _check_lists(sequence, sources)
    dimensions = {
        name: _dimension(argument, frame[name])
        for argument, frame in sources.items()
        for name in map(str, frame)
        if found[name] == VECTOR
    }
    return Roles(found, tables, checked, dimensions)


def _steps(sequences: Mapping[str, Any]) -> set[str]:
    """Return the columns that sequences name, as far as these are well-formed."""
    lists = [keys.get("features") for keys in sequences.values() if isinstance(keys, Mapping)]
    return {name for names in lists if isinstance(names, list | tuple) for name in names if isinstance(name, str)}


def _channels(kinds: Mapping[str, str], steps: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return the columns of each channel except for the sequences."""
    return {
        channel: tuple(name for name, own in kinds.items() if own == kind and name not in steps)
        for kind, channel in CHANNEL_OF.items()
    }


def _checked_sequences(
    kinds: Mapping[str, str], steps: set[str], sequences: Mapping[str, Any], tables: Mapping[str, str], label: str
) -> tuple[FeatureSequence, ...]:
    """Return the sequences, which a specification with any sizes checks like those of its files."""
    features: dict[str, dict[str, Any]] = {
        name: {key: 2 for key in _SIZES.get(MULTIHOT if name in steps and kind == CATEGORICAL else kind, ())}
        for name, kind in kinds.items()
    }
    for name, table in tables.items():
        features[name]["table"] = table
    chunk = {"type": "parquet", "features": [*features, label], "files": ["rows.parquet"]}
    roles = {channel: [*names] for channel, names in _channels(kinds, steps).items()}
    named = {name: _plain(keys) for name, keys in sequences.items()}
    document = {
        "feature_spec": features | {label: {}},
        "source_spec": {TRAIN: [chunk], TEST: [chunk]},
        "channel_spec": roles | {LABEL: [label], SEQUENCE: named},
    }
    return FeatureSpec.from_dict(document, Path(), source="sequences and tables").sequences


def _plain(keys: Any) -> Any:
    if not isinstance(keys, Mapping):
        return keys
    return {key: list(value) if isinstance(value, tuple) else value for key, value in keys.items()}


def _check_lists(sequence: FeatureSequence, sources: Mapping[str, pd.DataFrame]) -> None:
    holders = [argument for argument, frame in sources.items() for name in sequence.features if name in frame]
    if len(set(holders)) > 1:
        raise DataError(
            f"sequences: {shown(sequence.name)} has columns of {' and '.join(dict.fromkeys(holders))}; those of a "
            "sequence are in one of them"
        )
    frame, first = sources[holders[0]], sequence.features[0]
    lengths = {name: _lengths(frame[name]) for name in sequence.features}
    for name in sequence.features[1:]:
        differs = np.flatnonzero(lengths[name] != lengths[first])
        if len(differs):
            row = int(differs[0])
            raise DataError(
                f"{holders[0]}: column {name!r} has {lengths[name][row]} items in row {row}, and {first!r}, of the "
                f"same sequence, {lengths[first][row]}; expected as many"
            )


def _dimension(argument: str, series: pd.Series) -> int:
    """Return how many numbers each vector has that is not missing."""
    lists = as_lists(str(series.name), series)
    known = [(row, len(entry)) for row, entry in enumerate(lists) if entry is not None]
    first, dimension = known[0] if known else (0, 0)
    if not dimension:
        raise DataError(f"{argument}: column {series.name!r} has no numbers in its first vector; drop the column")
    for row, number in known:
        if number != dimension:
            raise DataError(
                f"{argument}: column {series.name!r} has {number} numbers in row {row}; expected a vector of "
                f"{dimension}, as in row {first}"
            )
    return dimension


def _lengths(series: pd.Series) -> np.ndarray:
    """Return the length of each list, [n]; 0 for a missing one."""
    lists = as_lists(str(series.name), series)
    return np.fromiter((0 if entry is None else len(entry) for entry in lists), np.int64, len(lists))
