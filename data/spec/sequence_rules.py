"""The rules of the channel `sequence`, which an encoded and a raw specification have in common."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import NamedTuple

from data.errors import MAX_NAMES_COMPARED
from data.spec.document import Problem, SequencePart, path_of
from data.spec.features import ONEHOT, TARGET_ENCODERS


class Column(NamedTuple):
    """What the rules need to know of a feature.

    Attributes:
        table: name of its embedding table; None for numbers.
        max_hotness: maximum length of its lists, or None if not stated.
        wide: part of the model that the feature is in, as in `Feature`.
    """

    table: str | None
    max_hotness: int | None
    wide: str


def check_sequences(
    sequences: list[SequencePart], columns: Mapping[str, Column], channel_of: Mapping[str, str], *, is_complete: bool
) -> Iterator[Problem]:
    """Check the sequences of a specification.

    Args:
        sequences: the sequences.
        columns: {feature name: its description}, of all features of which everything is well-formed.
        channel_of: {feature name: channel}.
        is_complete: whether all lists of features are well-formed, so that an absent name proves something.
    """
    onehot = tuple(islice((name for name, channel in channel_of.items() if channel == ONEHOT), MAX_NAMES_COMPARED))
    for sequence in sequences:
        names = dict.fromkeys(entry.text for entry in sequence.features)
        known = {name: columns[name] for name in names if name in columns}
        has_all = is_complete and len(known) == len(names)
        if has_all and all(column.table is None for column in known.values()):
            message = "has no feature with ids, whose embeddings an encoder combines; list one"
            yield Problem(f"{sequence.path}.features", message)
        yield from _check_lengths(known)
        for name, column in known.items():
            if column.wide == "only":
                message = "is only, and an encoder of sequences needs embeddings; write too or no"
                yield Problem(path_of("feature_spec", name, "wide"), message)
        yield from _check_target(sequence, known, columns, channel_of, onehot, has_all=has_all)
        if is_complete and sequence.encoder in TARGET_ENCODERS and not sequence.target:
            message = f"is {sequence.encoder}, which compares steps with a target; write sum or mean, or a target"
            yield Problem(f"{sequence.path}.encoder", message)


def _check_lengths(known: Mapping[str, Column]) -> Iterator[Problem]:
    """Check that the features of a sequence state the same number of steps."""
    stated = {name: column.max_hotness for name, column in known.items() if column.max_hotness is not None}
    first = next(iter(stated), "")
    for name, length in stated.items():
        if length != stated[first]:
            message = f"is {length}, and {stated[first]} for {first!r} of the same sequence; write the same for both"
            yield Problem(path_of("feature_spec", name, "max_hotness"), message)


def _check_target(
    sequence: SequencePart,
    known: Mapping[str, Column],
    columns: Mapping[str, Column],
    channel_of: Mapping[str, str],
    onehot: tuple[str, ...],
    *,
    has_all: bool,
) -> Iterator[Problem]:
    """Check that targets are one-hot features, each with one partner: the feature of the sequence with its table."""
    partners: dict[str | None, list[str]] = {}
    for name, column in known.items():
        partners.setdefault(column.table, []).append(name)
    taken: dict[str, str] = {}
    for path, name in sequence.target:
        channel = channel_of.get(name)
        if channel is None:
            yield Problem(path, f"{name!r} is not in {ONEHOT}", name, onehot)
        elif channel != ONEHOT:
            yield Problem(path, f"{name!r} is in {channel}; name a feature of {ONEHOT}")
        elif name in columns and (table := columns[name].table) is not None:
            mistake = _target_mistake(columns[name], taken.get(table), partners.get(table), has_all=has_all)
            if mistake:
                yield Problem(path, f"{name!r} {mistake}")
            taken.setdefault(table, name)


def _target_mistake(column: Column, other: str | None, partners: list[str] | None, *, has_all: bool) -> str | None:
    """Return what is wrong with a target: `other` has its table, too, and `partners` are in the sequence."""
    if column.wide == "only":
        return "is in the wide part only, and a target needs embeddings; write wide: too for it"
    if other is not None:
        return f"has the same table as the target {other!r}; keep one"
    if partners is not None and len(partners) > 1:
        return f"shares its table with {partners[0]!r} and {partners[1]!r}; give one of these a table of its own"
    if partners is None and has_all:
        return f"shares its table with no feature of the sequence; write `table: {column.table}` for one of them"
    return None
