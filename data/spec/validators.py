"""Validation rules that involve several parts of a specification.

Every rule is a function from the well-formed parts to the problems it finds. Malformed parts have already been reported
by `data.spec.document`, so a rule draws no conclusion from something absent in an incomplete section.
"""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from data.errors import MAX_NAMES_COMPARED, listed, nearest, shown
from data.spec.document import Entry, Parts, Problem, path_of, read_document
from data.spec.features import (
    BOOL_DTYPE,
    CATEGORICAL_CHANNELS,
    DIMENSION,
    ID_KEYS,
    INPUT_CHANNELS,
    INTEGER_DTYPES,
    JOINT,
    LABEL,
    LABEL_COLUMN,
    LABEL_KEYS,
    LIST_KEYS,
    MAP,
    MAX_SERVE_CARDINALITY,
    MULTIHOT,
    NEGATIVE_RATE,
    NUMBER_KEYS,
    NUMERICAL,
    ONEHOT,
    PREDICTION_COLUMN,
    PRETRAINED,
    PRETRAINED_DTYPES,
    PRETRAINED_KEYS,
    REQUIRED_MAPPINGS,
    ROW_COLUMN,
    SCORE,
    SEQUENCE,
    SERVE,
    SERVE_CHANNELS,
    SIDE,
    VECTOR,
    Feature,
    exact_integers,
)
from data.spec.score import find_mistake, parse_formula
from data.spec.sequence_rules import Column, check_sequences
from data.storage.files import find_escape
from data.storage.remote import is_url, named

# Metrics are logged as `KEY/TASK`, and their mean over several tasks as `KEY/mean`.
RESERVED_LABEL = "mean"
# Maximum length of a chain of labels linked by `given`.
MAX_CHAIN = 20


def check_document(document: Any, folder: Path, *, allow_outside_paths: bool = False) -> tuple[Parts, list[Problem]]:
    """Return the well-formed parts of a document and every violation in it; paths are relative to `folder`."""
    parts, problems = read_document(document)
    for rule in RULES:
        problems.extend(rule(parts))
    problems.extend(check_files(parts, folder, allow_outside_paths))
    return parts, problems


def _feature_path(feature: Feature | str, *key: str) -> str:
    return path_of("feature_spec", feature if isinstance(feature, str) else feature.name, *key)


# Features and channels.


def check_channels_are_used(parts: Parts) -> Iterator[Problem]:
    """Check that there is at least one input feature and one label."""
    inputs = {("channel_spec", channel) for channel in INPUT_CHANNELS}
    if parts.incomplete.isdisjoint(inputs) and not any(parts.channels[channel] for channel in INPUT_CHANNELS):
        yield Problem("channel_spec", f"has no input feature; list one under {', '.join(INPUT_CHANNELS)}")
    if ("channel_spec", LABEL) not in parts.incomplete and not parts.channels[LABEL]:
        yield Problem(f"channel_spec.{LABEL}", "has no feature; list at least one label")


def check_channel_features(parts: Parts) -> Iterator[Problem]:
    """Check that channels list existing features, each at most once overall, and that `map` lists at most one.

    The map feature may also be a one-hot feature.
    """
    shared = {entry.text for entry in parts.channels[ONEHOT]}
    unshared = [entry for entry in parts.channels[MAP] if entry.text not in shared]
    others = (entry for channel, entries in parts.channels.items() if channel != MAP for entry in entries)
    yield from _check_names((*others, *unshared), parts)
    for path, name in parts.channels[MAP][1:]:
        yield Problem(path, f"{name!r} is a second feature in {MAP}; keep one, the id that groups rows")


def check_categorical(parts: Parts) -> Iterator[Problem]:
    """Check that categorical features have a cardinality, and a numeric dtype that can represent every id."""
    for feature in parts.in_channels(*CATEGORICAL_CHANNELS):
        if feature.cardinality is None and ("feature_spec", feature.name) not in parts.incomplete:
            expected = "write the largest id + 1 (ids lie in [0, cardinality))"
            yield Problem(_feature_path(feature, "cardinality"), f"is missing; {expected}")
    for feature in parts.categorical:
        if feature.dtype == BOOL_DTYPE:
            yield from _check_integer_dtype(feature, "ids are integers")
        yield from _check_dtype_holds(feature, "ids")


def check_map(parts: Parts) -> Iterator[Problem]:
    """Check that the map feature has an integer dtype, and can be copied to prediction files beside their columns."""
    labels = [feature.name for feature in parts.in_channels(LABEL)]
    taken = {ROW_COLUMN, *(prefix + label for label in labels for prefix in (LABEL_COLUMN, PREDICTION_COLUMN))}
    for feature in parts.in_channels(MAP):
        yield from _check_integer_dtype(feature, "the map feature holds ids")
        if feature.name in taken:
            message = "this is the name of a column that predictions have beside the map feature; rename the feature"
            yield Problem(_feature_path(feature), message)


def check_keys_of_inputs(parts: Parts) -> Iterator[Problem]:
    """Check that the keys of lists and of ids are only stated for channels in which they have a meaning.

    Features in no channel may state them: they describe a column that is stored but not used.
    """
    channel_of = parts.channel_of()
    for name, keys in parts.stated.items():
        channel = channel_of.get(name)
        if channel == SEQUENCE:
            yield from _check_keys_of_steps(name, keys, parts)
        if channel == MULTIHOT and "max_hotness" not in keys and ("feature_spec", name) not in parts.incomplete:
            yield Problem(_feature_path(name, "max_hotness"), "is missing; write the most ids that one row has")
        if channel not in (MULTIHOT, SEQUENCE, None):
            for key in sorted(keys.intersection(LIST_KEYS)):
                message = f"is only for {MULTIHOT} and the feature is in {channel}; remove it or move the feature"
                yield Problem(_feature_path(name, key), message)
        if channel not in (*CATEGORICAL_CHANNELS, SEQUENCE, None):
            for key in sorted(keys.intersection(ID_KEYS)):
                message = f"is only for categorical features and the feature is in {channel}; remove it"
                yield Problem(_feature_path(name, key), message)
        if channel not in (NUMERICAL, None):
            for key in sorted(keys.intersection(NUMBER_KEYS)):
                message = f"is only for {NUMERICAL} features and the feature is in {channel}; remove it"
                yield Problem(_feature_path(name, key), message)


def _check_keys_of_steps(name: str, keys: Collection[str], parts: Parts) -> Iterator[Problem]:
    """Check the keys of a feature of a sequence; without a cardinality, it has numbers."""
    is_complete = ("feature_spec", name) not in parts.incomplete
    if "cardinality" in keys and "max_hotness" not in keys and is_complete:
        yield Problem(_feature_path(name, "max_hotness"), "is missing; write the most steps that one row has")
    if "cardinality" not in keys and is_complete:
        for key in sorted(set(keys).intersection(ID_KEYS)):
            yield Problem(_feature_path(name, key), "is only for ids; write the cardinality of the ids, or remove it")
    if "weights" in keys:
        message = f"is only for {MULTIHOT}; remove it, and list the weights as one more feature of the sequence"
        yield Problem(_feature_path(name, "weights"), message)
    if "combiner" in keys:
        message = f"is only for {MULTIHOT}; remove it, and state the encoder of the sequence"
        yield Problem(_feature_path(name, "combiner"), message)


def check_serve(parts: Parts) -> Iterator[Problem]:
    """Check the constants of features known only in training, and that there are other inputs."""
    channel_of = parts.channel_of()
    served = [feature for feature in parts.features.values() if feature.serve is not None]
    for feature in served:
        yield from _check_served(feature, channel_of.get(feature.name), parts.stated[feature.name])
    names = {feature.name for feature in served}
    for other in parts.features.values():
        for key, name in (("table", other.table), ("unseen_with", other.unseen_with)):
            if name in names and name != other.name:
                message = f"{name!r} has `{SERVE}`, so that predictions do not know it; name another feature"
                yield Problem(_feature_path(other, key), message)
    inputs = {("channel_spec", channel) for channel in INPUT_CHANNELS}
    known = [feature for feature in parts.in_channels(*INPUT_CHANNELS) if feature.serve is None]
    if served and not known and parts.incomplete.isdisjoint(inputs):
        message = f"has only features with `{SERVE}`, which predictions do not know; list another one"
        yield Problem("channel_spec", message)


def _check_served(feature: Feature, channel: str | None, keys: Collection[str]) -> Iterator[Problem]:
    path = _feature_path(feature, SERVE)
    if channel not in (*SERVE_CHANNELS, None):
        message = f"is only for {' and '.join(SERVE_CHANNELS)}, and the feature is in {channel}; remove it"
        yield Problem(path, message)
    for key in sorted({"embedding_dim", "table", "wide"}.intersection(keys)):
        message = f"has no meaning for a feature with `{SERVE}`, which has a tower of its own; remove it"
        yield Problem(_feature_path(feature, key), message)
    if channel != ONEHOT or feature.cardinality is None:
        return
    if feature.serve not in range(feature.cardinality):
        message = f"is {feature.serve:g}, and ids are whole numbers in [0, {feature.cardinality}); write one of them"
        yield Problem(path, message)
    if feature.cardinality > MAX_SERVE_CARDINALITY:
        message = (
            f"is for at most {MAX_SERVE_CARDINALITY:,} ids, and the feature has {feature.cardinality:,}; remove it"
        )
        yield Problem(path, message)


def check_sides(parts: Parts) -> Iterator[Problem]:
    """Check that only inputs that rows have state a side, and that the features of a sequence have the same one."""
    channel_of = parts.channel_of()
    ids_of_weights = {feature.weights: feature.name for feature in parts.features.values() if feature.weights}
    for name, keys in parts.stated.items():
        feature, channel, path = parts.features[name], channel_of.get(name), _feature_path(name, SIDE)
        if SIDE not in keys:
            continue
        if channel not in (*INPUT_CHANNELS, None) or feature.role is not None:
            where = f"in {channel}" if channel else "the sample_weight of rows"
            yield Problem(path, f"is only for inputs and the feature is {where}; remove it")
        elif feature.serve is not None:
            yield Problem(
                path, f"has no meaning for a feature with `{SERVE}`, which predictions do not know; remove it"
            )
        elif _is_looked_up(feature):
            yield Problem(path, f"is that of {feature.of!r}, whose ids the vector is looked up by; state it there")
        elif name in ids_of_weights:
            yield Problem(path, f"is that of {ids_of_weights[name]!r}, whose weights these are; state it there")
    for sequence in parts.sequences:
        known = [entry.text for entry in sequence.features if entry.text in parts.features]
        complete = [parts.features[name] for name in known if ("feature_spec", name) not in parts.incomplete]
        for feature in complete:
            if feature.side != complete[0].side:
                message = (
                    f"is {feature.side}, and {complete[0].side} for {complete[0].name!r} of the same sequence; write "
                    "the same for both"
                )
                yield Problem(_feature_path(feature, SIDE), message)


def check_keys_of_vectors(parts: Parts) -> Iterator[Problem]:
    """Check that vectors in rows, and no features of other channels, state their dimension."""
    channel_of = parts.channel_of()
    for name, keys in parts.stated.items():
        channel, path = channel_of.get(name), _feature_path(name, DIMENSION)
        is_complete = ("feature_spec", name) not in parts.incomplete
        if channel == VECTOR and keys.isdisjoint({DIMENSION, PRETRAINED}) and is_complete:
            yield Problem(path, "is missing; write how many numbers each vector has")
        if channel not in (VECTOR, None) and DIMENSION in keys:
            message = f"is only for {VECTOR} and the feature is in {channel}; remove it or move the feature"
            yield Problem(path, message)


def check_pretrained(parts: Parts) -> Iterator[Problem]:
    """Check that vectors that are looked up state by which feature, and that no others do."""
    channel_of = parts.channel_of()
    for name, keys in parts.stated.items():
        channel, feature = channel_of.get(name), parts.features[name]
        if channel not in (VECTOR, None):
            for key in sorted(keys.intersection(PRETRAINED_KEYS)):
                message = f"is only for {VECTOR} and the feature is in {channel}; remove it or move the feature"
                yield Problem(_feature_path(name, key), message)
        elif PRETRAINED not in keys and ("feature_spec", name) not in parts.incomplete:
            for key in sorted(keys.intersection(PRETRAINED_KEYS)):
                message = f"is for vectors that are looked up; write `{PRETRAINED}`, their file, or remove it"
                yield Problem(_feature_path(name, key), message)
        elif PRETRAINED in keys:
            yield from _check_looked_up(feature, channel_of, parts)


def _check_looked_up(feature: Feature, channel_of: Mapping[str, str], parts: Parts) -> Iterator[Problem]:
    """Check what a vector is looked up by, and the type that it is stored in."""
    of, path = feature.of, _feature_path(feature, "of")
    is_complete = ("feature_spec", feature.name) not in parts.incomplete
    if feature.dtype is not None and feature.dtype not in PRETRAINED_DTYPES:
        message = f"is {feature.dtype}, and a pretrained vector is {' or '.join(PRETRAINED_DTYPES)}; write one of them"
        yield Problem(_feature_path(feature, "dtype"), message)
    if of is None:
        if is_complete:
            yield Problem(path, f"is missing; write the feature of {ONEHOT} or {MULTIHOT} whose values the file has")
    elif of not in parts.features:
        if ("feature_spec",) not in parts.incomplete:
            candidates = tuple(each.name for each in parts.in_channels(*CATEGORICAL_CHANNELS))
            yield Problem(path, f"{of!r} is not in feature_spec", of, candidates)
    elif (channel := channel_of.get(of)) not in CATEGORICAL_CHANNELS:
        if parts.incomplete.isdisjoint({("channel_spec", each) for each in CATEGORICAL_CHANNELS}):
            where = f"is in {channel}" if channel else "is in no channel"
            yield Problem(path, f"{of!r} {where}; name a feature of {ONEHOT} or {MULTIHOT}")
    elif parts.features[of].serve is not None:
        yield Problem(path, f"{of!r} has `{SERVE}`, so that predictions do not know it; name another feature")


def _is_looked_up(feature: Feature) -> bool:
    """Return whether a vector is looked up in a file, even one with a malformed path, and not stored in rows."""
    return feature.pretrained is not None or feature.of is not None


def check_dimension_of_pretrained(parts: Parts) -> Iterator[Problem]:
    """Check that pretrained vectors state their dimension, so that no file is needed to know the model."""
    for feature in parts.in_channels(VECTOR):
        is_complete = ("feature_spec", feature.name) not in parts.incomplete
        if feature.pretrained is not None and feature.dimension is None and is_complete:
            yield Problem(_feature_path(feature, DIMENSION), "is missing; write how many numbers each vector has")


def check_reserved_ids(parts: Parts) -> Iterator[Problem]:
    """Check that the ids of null and of unseen values lie within the table, and that buckets begin at an id."""
    for name, keys in parts.stated.items():
        feature, is_known = parts.features[name], ("feature_spec", name) not in parts.incomplete
        if "oov_buckets" in keys and "unseen_id" not in keys and is_known:
            yield Problem(_feature_path(name, "oov_buckets"), "has no effect without unseen_id, the first of these ids")
        limit = feature.cardinality
        last_unseen = feature.unseen_ids[-1] if feature.unseen_ids else None
        for key, last in (("null_id", feature.null_id), ("unseen_id", last_unseen)):
            if last is not None and limit is not None and last >= limit:
                buckets = f" with {feature.oov_buckets} buckets" if key == "unseen_id" and feature.oov_buckets else ""
                message = f"is {getattr(feature, key)}{buckets} but ids lie in [0, {limit}); write a smaller one"
                yield Problem(_feature_path(name, key), message)


def check_tables(parts: Parts) -> Iterator[Problem]:
    """Check that features with the same embedding table have the same ids and state no different widths.

    The table of a feature that states none is called like the feature.
    """
    first: dict[str, Feature] = {}
    for feature in parts.categorical:
        other = first.setdefault(feature.table or feature.name, feature)
        for key in ("cardinality", "embedding_dim"):
            ours, theirs = getattr(feature, key), getattr(other, key)
            if ours is not None and theirs is not None and ours != theirs:
                message = (
                    f"is {ours}, and {theirs} for {other.name!r}, which has the same table; write the same for both"
                )
                yield Problem(_feature_path(feature, key), message)


def check_all_sequences(parts: Parts) -> Iterator[Problem]:
    """Check the sequences; see `check_sequences`."""
    categorical = {feature.name for feature in parts.categorical}
    columns = {
        feature.name: Column(
            feature.table or feature.name if feature.name in categorical else None, feature.max_hotness, feature.wide
        )
        for feature in parts.in_channels(ONEHOT, SEQUENCE)
        if ("feature_spec", feature.name) not in parts.incomplete
    }
    is_complete = parts.incomplete.isdisjoint({("channel_spec", channel) for channel in (ONEHOT, SEQUENCE)})
    yield from check_sequences(parts.sequences, columns, parts.channel_of(), is_complete=is_complete)


def check_unseen_values(parts: Parts) -> Iterator[Problem]:
    """Check that a number for unseen values comes with the feature whose ids are unseen with it, and vice versa.

    That feature may be in no channel: then it is not an input, and the number is of no use.
    """
    channel_of, onehot = parts.channel_of(), tuple(feature.name for feature in parts.in_channels(ONEHOT))
    for name, keys in parts.stated.items():
        if channel_of.get(name) not in (NUMERICAL, None):
            continue  # the keys have been reported
        given = [key for key in NUMBER_KEYS if key in keys]
        if len(given) == 1 and ("feature_spec", name) not in parts.incomplete:
            missing = next(key for key in NUMBER_KEYS if key not in keys)
            yield Problem(_feature_path(name, missing), f"is missing; {' and '.join(NUMBER_KEYS)} need each other")
        other, path = parts.features[name].unseen_with, _feature_path(name, "unseen_with")
        if other is None or channel_of.get(other) == ONEHOT:
            continue
        if other in channel_of:
            yield Problem(path, f"{other!r} is in {channel_of[other]}; name a feature of {ONEHOT}")
        elif other not in parts.features and ("feature_spec",) not in parts.incomplete:
            yield Problem(path, f"{other!r} is not in feature_spec", other, onehot)


def check_list_weights(parts: Parts) -> Iterator[Problem]:
    """Check that the weights of a multi-hot feature are a column in no channel, and of one feature only."""
    channel_of, weighs = parts.channel_of(), dict[str, str]()
    unused = tuple(islice((name for name in parts.features if name not in channel_of), MAX_NAMES_COMPARED))
    for name, feature in parts.features.items():
        weights, path = feature.weights, _feature_path(name, "weights")
        if weights is None or channel_of.get(name) not in (MULTIHOT, None):
            continue  # the key has been reported
        if weights not in parts.features:
            if ("feature_spec",) not in parts.incomplete:
                yield Problem(path, f"{weights!r} is not in feature_spec", weights, unused)
        elif weights in channel_of:
            message = f"{weights!r} is in {channel_of[weights]}; name a column in no channel, with a weight for each id"
            yield Problem(path, message)
        elif parts.features[weights].role is not None:
            message = f"{weights!r} is the sample_weight of rows; name another column, with a weight for each id"
            yield Problem(path, message)
        elif weights in weighs:
            message = f"{weights!r} has the weights of {weighs[weights]!r}; store the column a second time for these"
            yield Problem(path, message)
        else:
            weighs[weights] = name
            for key in sorted(parts.stated[weights].intersection(LIST_KEYS)):
                message = f"is only for lists of ids, and these are the weights of {name!r}; remove it"
                yield Problem(_feature_path(weights, key), message)


def check_keys_of_labels(parts: Parts) -> Iterator[Problem]:
    """Check that the keys of a task are only stated for labels."""
    if ("channel_spec", LABEL) in parts.incomplete:
        return
    channel_of = parts.channel_of()
    for name, keys in parts.stated.items():
        if channel_of.get(name) != LABEL:
            for key in sorted(keys.intersection(LABEL_KEYS)):
                message = f"is only for labels; remove it or list {name!r} in channel_spec.{LABEL}"
                yield Problem(_feature_path(name, key), message)


def check_tasks(parts: Parts) -> Iterator[Problem]:
    """Check that the keys of a label fit its task, and that its name is not the one reserved for the mean."""
    labels = parts.in_channels(LABEL)
    for feature in labels:
        classes = feature.cardinality or 0
        if "positive_weight" in parts.stated[feature.name] and feature.task != "binary":
            message = f"is only for binary labels and the task is {feature.task}; remove it"
            yield Problem(_feature_path(feature, "positive_weight"), message)
        if "tweedie_power" in parts.stated[feature.name] and feature.task != "tweedie":
            message = f"is only for labels with task: tweedie and the task is {feature.task}; remove it"
            yield Problem(_feature_path(feature, "tweedie_power"), message)
        if feature.is_class and classes < 2 and ("feature_spec", feature.name) not in parts.incomplete:
            found = "is missing" if feature.cardinality is None else f"is {classes}"
            yield Problem(_feature_path(feature, "cardinality"), f"{found}; write the number of classes, at least 2")
        if feature.is_class:
            yield from _check_dtype_holds(feature, "classes")
        if feature.is_binary and classes > 2:
            message = f"is {classes} but the task is binary; write task: multiclass, or remove it"
            yield Problem(_feature_path(feature, "cardinality"), message)
        if feature.name == RESERVED_LABEL and len(labels) > 1:
            yield Problem(_feature_path(feature), "this name is reserved for the mean over the labels; rename it")


def check_sample_spaces(parts: Parts) -> Iterator[Problem]:
    """Check that `given` names another, binary label, and that `given` forms neither cycles nor overlong chains."""
    labels = {feature.name: feature for feature in parts.in_channels(LABEL)}
    binary = list(islice((name for name, feature in labels.items() if feature.is_binary), MAX_NAMES_COMPARED))
    for name, feature in labels.items():
        path, given = _feature_path(name, "given"), feature.given
        if given is None:
            continue
        if given not in labels:
            others = tuple(other for other in binary if other != name)
            yield Problem(path, f"{given!r} is not a label (channel_spec.{LABEL})", given, others)
        elif not labels[given].is_binary:
            yield Problem(path, f"{given!r} has task {labels[given].task}; name a binary label")
        elif "jrc" in (feature.task, labels[given].task):
            yield Problem(
                path, "a label with task: jrc has no part in a sample space; choose another task or remove it"
            )
        elif len(_chain(labels, name)) > MAX_CHAIN:
            yield Problem(path, f"more than {MAX_CHAIN} labels depend on each other here; remove one `given`")
    for cycle in _cycles(labels):
        path = listed([*cycle, cycle[0]], len(cycle) + 1, " -> ")
        message = f"the label depends on itself ({path}); remove one `given`"
        yield Problem(_feature_path(cycle[0], "given"), message)


def check_joint_names(parts: Parts) -> Iterator[Problem]:
    """Check that the joint name of a label and its `given` chain is neither a label nor another joint name."""
    labels = {feature.name: feature for feature in parts.in_channels(LABEL)}
    # Without the separator in a label's name, joint names are unique.
    if not any(JOINT in name for name in labels):
        return
    taken = {name: f"the label {name!r}" for name in labels}
    for name, feature in labels.items():
        chain = _chain(labels, name)
        if not feature.is_binary or len(chain) == 1:
            continue
        names, joint = listed(chain, len(chain)), JOINT.join(chain)
        if joint in taken:
            message = f"in metrics, {names} together are called {joint!r}, as is {taken[joint]}; rename one"
            yield Problem(_feature_path(name), message)
        taken[joint] = f"the combination of {names}"


def check_bool_dtype(parts: Parts) -> Iterator[Problem]:
    """Check that the dtype bool is only used for binary labels and for columns in no channel."""
    channel_of, weights = parts.channel_of(), {feature.weights for feature in parts.features.values()}
    for feature in parts.features.values():
        channel = channel_of.get(feature.name)
        is_used = channel is not None or feature.role is not None or feature.name in weights
        if feature.dtype == BOOL_DTYPE and is_used and (channel != LABEL or not feature.is_binary):
            message = "is bool, which only a binary label can be; store numbers and write their dtype"
            yield Problem(_feature_path(feature, "dtype"), message)


def check_score(parts: Parts) -> Iterator[Problem]:
    """Check that the formula of the score names labels and numerical features."""
    sections = {("feature_spec",), ("channel_spec", LABEL), ("channel_spec", NUMERICAL)}
    if parts.score is None or not parts.incomplete.isdisjoint(sections):
        return
    if mistake := find_mistake(parse_formula(parts.score), parts.features.values(), parts.channel_of()):
        yield Problem(SCORE, mistake)


def check_sample_weight(parts: Parts) -> Iterator[Problem]:
    """Check that at most one feature is the sample weight, is in no channel, and alone has a negative_rate."""
    weights = [feature.name for feature in parts.features.values() if feature.role is not None]
    channel_of = parts.channel_of()
    for name, keys in parts.stated.items():
        if NEGATIVE_RATE in keys and name not in weights and ("feature_spec", name) not in parts.incomplete:
            message = "is only for the column with role: sample_weight; remove it"
            yield Problem(_feature_path(name, NEGATIVE_RATE), message)
    for name in weights:
        if name in channel_of:
            message = f"is sample_weight but the feature is in {channel_of[name]}; a weight is in no channel: keep one"
            yield Problem(_feature_path(name, "role"), message)
        elif name != weights[0]:
            yield Problem(_feature_path(name, "role"), f"is sample_weight, as is that of {weights[0]!r}; keep one")


def _check_names(entries: Iterable[Entry], parts: Parts) -> Iterator[Problem]:
    """Check that entries name existing features, each at most once."""
    first: dict[str, str] = {}
    for path, name in entries:
        if ("feature_spec",) not in parts.incomplete and name not in parts.features:
            yield Problem(path, f"{name!r} is not in feature_spec", name, parts.features)
        elif name in first:
            yield Problem(path, f"{name!r} is already in {first[name]}; keep one")
        first.setdefault(name, path)


def _check_integer_dtype(feature: Feature, reason: str) -> Iterator[Problem]:
    if feature.dtype is not None and feature.dtype not in INTEGER_DTYPES:
        message = f"is {feature.dtype} but {reason}; write one of {', '.join(INTEGER_DTYPES)}"
        yield Problem(_feature_path(feature, "dtype"), message)


def _check_dtype_holds(feature: Feature, values: str) -> Iterator[Problem]:
    """Check that the dtype represents every integer below the cardinality exactly."""
    dtype = feature.dtype if feature.dtype != BOOL_DTYPE else None
    if feature.cardinality is not None and dtype is not None and feature.cardinality > exact_integers(dtype):
        message = f"is {dtype}, which cannot hold {values} up to {feature.cardinality - 1}; write a wider one"
        yield Problem(_feature_path(feature, "dtype"), message)


def _chain(labels: dict[str, Feature], name: str) -> list[str]:
    """Return the chain of `given` labels that ends with `name`, root first; the labels of a cycle appear once.

    A chain that is too long is cut to MAX_CHAIN + 1 labels, just enough to tell.
    """
    chain = [name]
    while len(chain) <= MAX_CHAIN and (given := labels[chain[0]].given) in labels and given not in chain:
        chain.insert(0, given)
    return chain


def _cycles(labels: dict[str, Feature]) -> Iterator[list[str]]:
    """Yield every cycle of labels linked by `given`, once each.

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


# Mappings, chunks and files.


def check_mappings(parts: Parts) -> Iterator[Problem]:
    """Check that the mappings for training and evaluation exist."""
    if ("source_spec",) in parts.incomplete:
        return
    for mapping in REQUIRED_MAPPINGS:
        if mapping not in parts.sources:
            near = nearest(mapping, (name for name in parts.sources if name not in REQUIRED_MAPPINGS))
            hint = f"; is it the one called {near!r}?" if near else "; write a list of chunks"
            yield Problem(path_of("source_spec", mapping), f"this mapping is missing{hint}")


def check_chunk_types(parts: Parts) -> Iterator[Problem]:
    """Check that all chunks of a mapping have the same file type."""
    for chunks in parts.sources.values():
        types = [chunk.type for chunk in chunks if chunk.type]
        for chunk in chunks:
            if chunk.type and chunk.type != types[0]:
                message = f"is {chunk.type} but other chunks of the mapping are {types[0]}; one mapping has one type"
                yield Problem(f"{chunk.path}.type", message)


def check_chunk_features(parts: Parts) -> Iterator[Problem]:
    """Check that chunks list existing features, each at most once per mapping, and none that is looked up."""
    looked_up = {feature.name for feature in parts.in_channels(VECTOR) if _is_looked_up(feature)}
    for chunks in parts.sources.values():
        yield from _check_names((entry for chunk in chunks for entry in chunk.features), parts)
        for path, name in (entry for chunk in chunks for entry in chunk.features):
            if name in looked_up:
                yield Problem(path, f"{name!r} is looked up in its file `{PRETRAINED}`, not read from rows; remove it")


def check_coverage(parts: Parts) -> Iterator[Problem]:
    """Check that every mapping has all inputs, and that train also has the labels and what else training needs.

    Other mappings may be used for prediction, where labels are unknown; the loader raises an error if one without
    labels is evaluated.
    """
    inputs_of_rows = [feature for feature in parts.in_channels(*INPUT_CHANNELS) if not _is_looked_up(feature)]
    inputs = {feature.name: None for feature in inputs_of_rows if feature.serve is None}
    inputs |= {feature.weights: None for feature in parts.in_channels(MULTIHOT) if feature.weights in parts.features}
    of_train = {feature.name: None for feature in (*inputs_of_rows, *parts.in_channels(LABEL))}
    of_train |= {feature.name: None for feature in parts.features.values() if feature.role is not None}
    for mapping, chunks in parts.sources.items():
        held = {entry.text for chunk in chunks for entry in chunk.features}
        needed = inputs | of_train if mapping == "train" else inputs
        # Iterates over the columns held rather than needed: fast for many mappings with few of many features.
        count = len(needed) - sum(name in needed for name in held)
        if count and ("source_spec", mapping) not in parts.incomplete:
            missing = listed((name for name in needed if name not in held), count)
            yield Problem(
                path_of("source_spec", mapping),
                f"lacks {missing}; add to the features of a chunk, or remove from channel_spec",
            )


def check_map_is_evaluated(parts: Parts) -> Iterator[Problem]:
    """Check that some mapping besides train has the map feature, which is needed for evaluation."""
    entries = parts.channels[MAP]
    mappings = {("source_spec",), *(("source_spec", mapping) for mapping in parts.sources)}
    is_complete = parts.sources.keys() >= set(REQUIRED_MAPPINGS) and parts.incomplete.isdisjoint(mappings)
    if not entries or entries[0].text not in parts.features or not is_complete:
        return
    path, name = entries[0]
    others = [chunks for mapping, chunks in parts.sources.items() if mapping != "train"]
    if not any(name == entry.text for chunks in others for chunk in chunks for entry in chunk.features):
        message = f"{name!r} is only in mapping train; add it to a chunk of test, or empty the map channel"
        yield Problem(path, message)


def check_files(parts: Parts, folder: Path, allow_outside: bool) -> Iterator[Problem]:
    """Check that paths name files under the folder (unless outside paths are allowed), each once per chunk.

    The files need not exist yet.
    """
    root = os.path.realpath(folder)
    resolved: dict[str, str] = {}
    lists = [chunk.files for chunks in parts.sources.values() for chunk in chunks]
    for own in parts.features.values():
        if own.pretrained is not None and is_url(own.pretrained):
            message = f"{shown(named(own.pretrained))} is a URL; copy the file into the specification's folder"
            yield Problem(_feature_path(own, PRETRAINED), message)
        elif own.pretrained is not None:
            lists.append([Entry(_feature_path(own, PRETRAINED), own.pretrained)])
    for entries in lists:
        first: dict[str, str] = {}
        for entry in entries:
            path, name = os.path.normpath(entry.text), shown(named(entry.text))
            mistake = None if allow_outside else find_escape(entry.text, root, resolved)
            if mistake:
                yield Problem(entry.path, f"{name} {mistake}, or pass --allow_outside_paths")
            elif os.path.basename(entry.text) in (".", ".."):
                yield Problem(entry.path, f"{name} is a folder; end it with / for all files below it")
            elif path in first:
                yield Problem(entry.path, f"{name} is already {first[path]}; keep one")
            first.setdefault(path, entry.path)


RULES: tuple[Callable[[Parts], Iterator[Problem]], ...] = (
    check_channels_are_used,
    check_channel_features,
    check_categorical,
    check_map,
    check_keys_of_inputs,
    check_serve,
    check_sides,
    check_keys_of_vectors,
    check_pretrained,
    check_dimension_of_pretrained,
    check_reserved_ids,
    check_tables,
    check_unseen_values,
    check_list_weights,
    check_all_sequences,
    check_keys_of_labels,
    check_tasks,
    check_sample_spaces,
    check_joint_names,
    check_bool_dtype,
    check_sample_weight,
    check_score,
    check_mappings,
    check_chunk_types,
    check_chunk_features,
    check_coverage,
    check_map_is_evaluated,
)
