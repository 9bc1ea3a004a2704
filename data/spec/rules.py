"""Validation rules that involve several parts of a specification.

Every rule is a function from the well-formed parts to the problems it finds. Malformed parts have already been reported
by `data.spec.shape`, so a rule draws no conclusion from something absent in an incomplete section.
"""

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from data.errors import listed, nearest, shown
from data.spec.parts import (
    BOOL_DTYPE,
    CATEGORICAL_CHANNELS,
    CHANNELS,
    INPUT_CHANNELS,
    INTEGER_DTYPES,
    JOINT,
    LABEL,
    LABEL_COLUMN,
    LABEL_KEYS,
    MAP,
    MULTIHOT,
    PREDICTION_COLUMN,
    REQUIRED_MAPPINGS,
    ROW_COLUMN,
    Feature,
    exact_integers,
)
from data.spec.problems import Problem, place_of
from data.spec.shape import Parts, read_parts
from data.storage.files import find_escape

# Metrics are logged as `KEY/TASK`, and their mean over several tasks as `KEY/mean`.
RESERVED_LABEL = "mean"
MAX_LABELS_COMPARED = 100
# Maximum length of a chain of labels linked by `given`.
MAX_CHAIN = 20


def check_document(document: Any, folder: Path, *, allow_outside_paths: bool = False) -> tuple[Parts, list[Problem]]:
    """Returns the well-formed parts of a document and every violation in it; paths are relative to `folder`."""
    parts, problems = read_parts(document)
    for rule in (*FEATURE_RULES, *SOURCE_RULES):
        problems.extend(rule(parts))
    problems.extend(check_paths(parts, folder, allow_outside_paths))
    return parts, problems


def check_channels_are_used(parts: Parts) -> Iterator[Problem]:
    """Checks that there is at least one input feature and one label."""
    places = {f"channel_spec.{channel}" for channel in INPUT_CHANNELS}
    if places <= parts.complete and not any(parts.channels.get(channel) for channel in INPUT_CHANNELS):
        yield Problem("channel_spec", f"has no input feature; list one under {', '.join(INPUT_CHANNELS)}")
    if f"channel_spec.{LABEL}" in parts.complete and not parts.channels.get(LABEL):
        yield Problem(f"channel_spec.{LABEL}", "has no feature; list at least one label")


def check_channel_features(parts: Parts) -> Iterator[Problem]:
    """Checks that channels list existing features, each at most once overall, and that `map` lists at most one."""
    first: dict[str, str] = {}
    for entries in parts.channels.values():
        for place, name in entries:
            if "feature_spec" in parts.complete and name not in parts.features:
                yield Problem(place, f"{name!r} is not in feature_spec", name, parts.features)
            elif name in first:
                yield Problem(place, f"{name!r} is already in {first[name]}; keep one")
            first.setdefault(name, place)
    for place, name in parts.channels.get(MAP, [])[1:]:
        yield Problem(place, f"{name!r} is a second feature in {MAP}; keep one, the id that groups rows")


def check_categorical(parts: Parts) -> Iterator[Problem]:
    """Checks that categorical features have a cardinality, and a numeric dtype that can represent every id."""
    for feature in _in_channels(parts, *CATEGORICAL_CHANNELS):
        place = place_of("feature_spec", feature.name)
        if feature.cardinality is None and place in parts.complete:
            yield Problem(f"{place}.cardinality", "is missing; write the largest id + 1 (ids lie in [0, cardinality))")
        if feature.dtype == BOOL_DTYPE:
            yield from _check_integer_dtype(feature, "ids are integers")
        yield from _check_dtype_holds(feature, "ids")


def check_map_dtype(parts: Parts) -> Iterator[Problem]:
    """Checks that the map feature has an integer dtype."""
    for feature in _in_channels(parts, MAP):
        yield from _check_integer_dtype(feature, "the map feature holds ids")


def check_map_name(parts: Parts) -> Iterator[Problem]:
    """Checks that the map feature, which is copied to prediction files, does not share a name with their columns."""
    labels = [feature.name for feature in _in_channels(parts, LABEL)]
    taken = {ROW_COLUMN, *(part + label for label in labels for part in (LABEL_COLUMN, PREDICTION_COLUMN))}
    for feature in _in_channels(parts, MAP):
        if feature.name in taken:
            what = "this is the name of a column that predictions have beside the map feature; rename the feature"
            yield Problem(place_of("feature_spec", feature.name), what)


def check_keys_of_inputs(parts: Parts) -> Iterator[Problem]:
    """Checks that `max_hotness` and `embedding_dim` are only stated for channels in which they have a meaning.

    Features in no channel may state them: they describe a column that is stored but not used.
    """
    channel_of = _channel_of(parts)
    for name, keys in parts.stated.items():
        channel = channel_of.get(name)
        place = place_of("feature_spec", name)
        if channel == MULTIHOT and "max_hotness" not in keys and place in parts.complete:
            yield Problem(f"{place}.max_hotness", "is missing; write the most ids that one row has")
        if "max_hotness" in keys and channel not in (MULTIHOT, None):
            what = f"is only for {MULTIHOT} and the feature is in {channel}; take it away or move the feature"
            yield Problem(f"{place}.max_hotness", what)
        if "embedding_dim" in keys and channel not in (*CATEGORICAL_CHANNELS, None):
            what = f"is only for categorical features and the feature is in {channel}; take it away"
            yield Problem(f"{place}.embedding_dim", what)


def check_keys_of_labels(parts: Parts) -> Iterator[Problem]:
    """Checks that the keys of a task are only stated for labels."""
    if f"channel_spec.{LABEL}" not in parts.complete:
        return
    channel_of = _channel_of(parts)
    for name, keys in parts.stated.items():
        if channel_of.get(name) != LABEL:
            for key in sorted(keys.intersection(LABEL_KEYS)):
                what = f"is only for labels; take it away or list {name!r} in channel_spec.{LABEL}"
                yield Problem(f"{place_of('feature_spec', name)}.{key}", what)


def check_tasks(parts: Parts) -> Iterator[Problem]:
    """Checks that the keys of a label fit its task, and that its name is not the one reserved for the mean."""
    labels = _in_channels(parts, LABEL)
    for feature in labels:
        place = place_of("feature_spec", feature.name)
        if "positive_weight" in parts.stated[feature.name] and feature.task != "binary":
            what = f"is only for binary labels and the task is {feature.task}; take it away"
            yield Problem(f"{place}.positive_weight", what)
        if feature.task == "multiclass" and (feature.cardinality or 0) < 2 and place in parts.complete:
            found = "is missing" if feature.cardinality is None else f"is {feature.cardinality}"
            yield Problem(f"{place}.cardinality", f"{found}; write the number of classes, at least 2")
        if feature.task == "multiclass":
            yield from _check_dtype_holds(feature, "classes")
        if feature.task == "binary" and (feature.cardinality or 0) > 2:
            what = f"is {feature.cardinality} but the task is binary; write task: multiclass, or take it away"
            yield Problem(f"{place}.cardinality", what)
        if feature.name == RESERVED_LABEL and len(labels) > 1:
            yield Problem(place, "this name is kept for the mean over the labels; rename the label")


def check_sample_spaces(parts: Parts) -> Iterator[Problem]:
    """Checks that `given` names another, binary label, and that `given` forms neither cycles nor overlong chains."""
    labels = {feature.name: feature for feature in _in_channels(parts, LABEL)}
    binary = [name for name, feature in labels.items() if feature.task == "binary"]
    for name, feature in labels.items():
        place = f"{place_of('feature_spec', name)}.given"
        if feature.given is None:
            continue
        if feature.given not in labels:
            others = tuple(islice((other for other in binary if other != name), MAX_LABELS_COMPARED))
            yield Problem(place, f"{feature.given!r} is not a label (channel_spec.{LABEL})", feature.given, others)
        elif labels[feature.given].task != "binary":
            what = f"{feature.given!r} has task {labels[feature.given].task}; name a binary label"
            yield Problem(place, what)
        elif len(_chain(labels, name)) > MAX_CHAIN:
            yield Problem(place, f"more than {MAX_CHAIN} labels depend on each other here; take one `given` away")
    for circle in _circles(labels):
        path = listed([*circle, circle[0]], len(circle) + 1, " -> ")
        what = f"the label depends on itself ({path}); take one `given` away"
        yield Problem(f"{place_of('feature_spec', circle[0])}.given", what)


def check_joint_names(parts: Parts) -> Iterator[Problem]:
    """Checks that the joint name of a label and its `given` chain is neither a label nor another joint name."""
    labels = {feature.name: feature for feature in _in_channels(parts, LABEL)}
    # Without the separator in a label's name, joint names are unique.
    if not any(JOINT in name for name in labels):
        return
    taken = {name: f"the label {name!r}" for name in labels}
    for name, feature in labels.items():
        chain = _chain(labels, name)
        names, together = listed(chain, len(chain)), JOINT.join(chain)
        if feature.task != "binary" or len(chain) == 1:
            continue
        if together in taken:
            what = f"in metrics, {names} together are called {together!r}, as is {taken[together]}; rename one"
            yield Problem(place_of("feature_spec", name), what)
        taken[together] = f"what {names} are called"


def check_bool_dtype(parts: Parts) -> Iterator[Problem]:
    """Checks that the dtype bool is only used for binary labels and for columns in no channel."""
    channel_of = _channel_of(parts)
    for feature in parts.features.values():
        channel = channel_of.get(feature.name)
        is_used = channel is not None or feature.role is not None
        if feature.dtype == BOOL_DTYPE and is_used and (channel != LABEL or feature.task != "binary"):
            place = f"{place_of('feature_spec', feature.name)}.dtype"
            yield Problem(place, "is bool, which only a binary label can be; store numbers and write their dtype")


def check_sample_weight(parts: Parts) -> Iterator[Problem]:
    """Checks that at most one feature has the role sample_weight, and that it is in no channel."""
    weights = [feature.name for feature in parts.features.values() if feature.role is not None]
    channel_of = _channel_of(parts)
    for name in weights:
        place = f"{place_of('feature_spec', name)}.role"
        if name in channel_of:
            what = f"is sample_weight but the feature is in {channel_of[name]}; a weight is in no channel: keep one"
            yield Problem(place, what)
        elif name != weights[0]:
            yield Problem(place, f"is sample_weight, as is that of {weights[0]!r}; keep one")


def _check_integer_dtype(feature: Feature, reason: str) -> Iterator[Problem]:
    if feature.dtype is not None and feature.dtype not in INTEGER_DTYPES:
        place = f"{place_of('feature_spec', feature.name)}.dtype"
        yield Problem(place, f"is {feature.dtype} but {reason}; write one of {', '.join(INTEGER_DTYPES)}")


def _check_dtype_holds(feature: Feature, things: str) -> Iterator[Problem]:
    """Checks that the dtype represents every integer below the cardinality exactly."""
    dtype = feature.dtype if feature.dtype != BOOL_DTYPE else None
    if feature.cardinality is not None and dtype is not None and feature.cardinality > exact_integers(dtype):
        place = f"{place_of('feature_spec', feature.name)}.dtype"
        what = f"is {dtype}, which cannot hold {things} up to {feature.cardinality - 1}; write a wider one"
        yield Problem(place, what)


def _in_channels(parts: Parts, *channels: str) -> list[Feature]:
    """Returns the known features of some channels, each once."""
    names = dict.fromkeys(entry.text for channel in channels for entry in parts.channels.get(channel, []))
    return [parts.features[name] for name in names if name in parts.features]


def _channel_of(parts: Parts) -> dict[str, str]:
    """Returns {feature name: channel} of every feature in a channel; the first channel if it is in several."""
    channel_of: dict[str, str] = {}
    for channel in CHANNELS:
        for entry in parts.channels.get(channel, []):
            channel_of.setdefault(entry.text, channel)
    return channel_of


def _chain(labels: dict[str, Feature], name: str) -> list[str]:
    """Returns the chain of `given` labels that ends with `name`, root first; the labels of a cycle appear once.

    A chain that is too long is cut to MAX_CHAIN + 1 labels, just enough to tell.
    """
    chain = [name]
    while len(chain) <= MAX_CHAIN and (given := labels[chain[0]].given) in labels and given not in chain:
        chain.insert(0, given)
    return chain


def _circles(labels: dict[str, Feature]) -> Iterator[list[str]]:
    """Yields every cycle of labels linked by `given`, once each.

    Every label has at most one `given`, so following it from each start, and never into a label that is done, takes
    linear time.
    """
    done: set[str] = set()
    for start in labels:
        path: dict[str, None] = {}
        name: str | None = start
        while name is not None and name in labels and name not in done and name not in path:
            path[name] = None
            name = labels[name].given
        if name in path:
            yield list(path)[list(path).index(name) :]
        done.update(path)


FEATURE_RULES: tuple[Callable[[Parts], Iterator[Problem]], ...] = (
    check_channels_are_used,
    check_channel_features,
    check_categorical,
    check_map_dtype,
    check_map_name,
    check_keys_of_inputs,
    check_keys_of_labels,
    check_tasks,
    check_sample_spaces,
    check_joint_names,
    check_bool_dtype,
    check_sample_weight,
)


MAX_MAPPINGS_COMPARED = 1000


def check_mappings(parts: Parts) -> Iterator[Problem]:
    """Checks that the mappings for training and evaluation exist."""
    if "source_spec" not in parts.complete:
        return
    for mapping in REQUIRED_MAPPINGS:
        if mapping not in parts.sources:
            others = (name for name in parts.sources if name not in REQUIRED_MAPPINGS)
            near = nearest(mapping, list(islice(others, MAX_MAPPINGS_COMPARED)))
            hint = f"; is it the one called {near!r}?" if near else "; write a list of chunks"
            yield Problem(f"source_spec.{mapping}", f"this mapping is missing{hint}")


def check_chunk_types(parts: Parts) -> Iterator[Problem]:
    """Checks that all chunks of a mapping have the same file type."""
    for chunks in parts.sources.values():
        types = [chunk.type for chunk in chunks if chunk.type]
        for chunk in chunks:
            if chunk.type and chunk.type != types[0]:
                what = f"is {chunk.type} but other chunks of the mapping are {types[0]}; one mapping has one type"
                yield Problem(f"{chunk.place}.type", what)


def check_chunk_features(parts: Parts) -> Iterator[Problem]:
    """Checks that chunks list existing features, each at most once per mapping."""
    for chunks in parts.sources.values():
        first: dict[str, str] = {}
        for place, name in (entry for chunk in chunks for entry in chunk.features):
            if "feature_spec" in parts.complete and name not in parts.features:
                yield Problem(place, f"{name!r} is not in feature_spec", name, parts.features)
            elif name in first:
                yield Problem(place, f"{name!r} is already in {first[name]}; keep one")
            first.setdefault(name, place)


def check_coverage(parts: Parts) -> Iterator[Problem]:
    """Checks that every mapping has all input features, and that train also has the labels and the sample weight.

    Other mappings may be used for prediction, where labels are unknown; the loader raises an error if one without
    labels is evaluated.
    """
    inputs = [entry.text for name in INPUT_CHANNELS for entry in parts.channels.get(name, [])]
    labels = [entry.text for entry in parts.channels.get(LABEL, [])]
    weights = [feature.name for feature in parts.features.values() if feature.role is not None]
    needed_in_train, needed_elsewhere = (
        {name: None for name in names if name in parts.features} for names in ([*inputs, *labels, *weights], inputs)
    )
    for mapping, chunks in parts.sources.items():
        place = place_of("source_spec", mapping)
        held = {entry.text for chunk in chunks for entry in chunk.features}
        needed = needed_in_train if mapping == "train" else needed_elsewhere
        # Iterates over the columns held rather than needed: fast for many mappings with few of many features.
        count = len(needed) - sum(name in needed for name in held)
        if count and place in parts.complete:
            lacking = listed((name for name in needed if name not in held), count)
            what = f"lacks {lacking}; add to the features of a chunk, or take out of channel_spec"
            yield Problem(place, what)


def check_map_is_evaluated(parts: Parts) -> Iterator[Problem]:
    """Checks that some mapping besides train has the map feature, which is needed for evaluation."""
    entries = parts.channels.get(MAP, [])
    mappings = {place_of("source_spec", mapping) for mapping in (*REQUIRED_MAPPINGS, *parts.sources)}
    if not entries or entries[0].text not in parts.features or not {"source_spec", *mappings} <= parts.complete:
        return
    for mapping, chunks in parts.sources.items():
        if mapping != "train" and any(entries[0].text == entry.text for chunk in chunks for entry in chunk.features):
            return
    what = f"{entries[0].text!r} is in no mapping but train; add it to a chunk of test, or empty the map channel"
    yield Problem(entries[0].place, what)


def check_paths(parts: Parts, folder: Path, allow_outside: bool) -> Iterator[Problem]:
    """Checks that paths name files under the folder (unless outside paths are allowed), each once per chunk.

    The files need not exist yet.
    """
    root = os.path.realpath(folder)
    resolved: dict[str, str] = {}
    for chunk in (chunk for chunks in parts.sources.values() for chunk in chunks):
        first: dict[str, str] = {}
        for entry in chunk.files:
            path = os.path.normpath(entry.text)
            mistake = None if allow_outside else find_escape(entry.text, root, resolved)
            if mistake:
                yield Problem(entry.place, f"{shown(entry.text)} {mistake}, or pass --allow_outside_paths")
            elif os.path.basename(entry.text) in ("", ".", ".."):
                yield Problem(entry.place, f"{shown(entry.text)} is a folder; write the path of a file")
            elif path in first:
                yield Problem(entry.place, f"{shown(entry.text)} is already {first[path]}; keep one")
            first.setdefault(path, entry.place)


SOURCE_RULES: tuple[Callable[[Parts], Iterator[Problem]], ...] = (
    check_mappings,
    check_chunk_types,
    check_chunk_features,
    check_coverage,
    check_map_is_evaluated,
)
