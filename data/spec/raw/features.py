"""The features of a raw specification: their encodings, what they are read from, and what fits together."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal, NamedTuple, cast

from data.errors import listed, shown
from data.spec.document import Parts, Problem, SequencePart, path_of
from data.spec.features import (
    CANDIDATE,
    CATEGORICAL_CHANNELS,
    DIMENSION,
    INPUT_CHANNELS,
    LABEL,
    LABEL_KEYS,
    LIST_KEYS,
    MAP,
    MULTIHOT,
    NUMERICAL,
    PRETRAINED,
    PRETRAINED_KEYS,
    SCORE,
    SEQUENCE,
    SERVE,
    SIDE,
    VECTOR,
    Feature,
    FeatureSequence,
)
from data.spec.raw.columns import ANY_TYPE, KEY_TYPES, ORDER_TYPES, RawColumns, ReadCondition, as_condition
from data.spec.raw.document import RawFeatureKeys, RawParts
from data.spec.raw.encodings import (
    ID_RULES,
    INTEGER_TYPES,
    NUMBER_OR_BOOL_TYPES,
    TYPES_OF_RULE,
    check_channel,
    check_keys,
    check_steps,
    default_rule,
    rule_of,
)
from data.spec.raw.spec import (
    Count,
    CrossRule,
    HashRule,
    History,
    IdentityRule,
    KeepRule,
    LabelMapRule,
    NumberRule,
    QuantilesRule,
    RawFeature,
    RawType,
    Reading,
    Rule,
    SharedVocabularyRule,
    TargetRule,
    ThresholdRule,
    VocabularyRule,
    added_by,
)
from data.spec.raw.values import MICROSECOND
from data.spec.validators import (
    check_all_sequences,
    check_channel_features,
    check_channels_are_used,
    check_joint_names,
    check_keys_of_labels,
    check_keys_of_vectors,
    check_list_weights,
    check_map,
    check_pretrained,
    check_sample_spaces,
    check_score,
    check_serve,
    check_sides,
    check_tables,
    check_tasks,
)

FEATURE_RULES = (
    check_channels_are_used,
    check_channel_features,
    check_map,
    check_keys_of_labels,
    check_tasks,
    check_sample_spaces,
    check_joint_names,
    check_serve,
    check_sides,
    check_tables,
    check_list_weights,
    check_all_sequences,
    check_keys_of_vectors,
    check_pretrained,
    check_score,
)
_ENCODED_KEYS = ("cardinality", "embedding_dim", "table", "wide", SIDE, DIMENSION, *LIST_KEYS, *LABEL_KEYS)
_LOOKED_UP_KEYS = (*PRETRAINED_KEYS, DIMENSION, "dtype")
_READING_KEYS = ("column", "dtype", "format", "unit", "separator")
# Encodings that give an id to each raw value.
_LOOK_UP_RULES = (VocabularyRule, HashRule, IdentityRule)
_RAW_LIST_KEYS = (*LIST_KEYS, "separator", "keep")


def feature_path(name: str, *keys: str) -> str:
    """Return the path of a feature or of one of its keys."""
    return path_of("feature_spec", name, *keys)


class Computed(NamedTuple):
    """A history or count, before its readings have names.

    Attributes:
        reading: reading of the computed values, named like the feature.
        of, by, order: readings that it takes; `of` is None to count all rows of `by`.
        where: the condition that its rows satisfy, or None.
        limit: `last` of a history, `window` of a count.
    """

    reading: Reading
    of: Reading | None
    by: Reading
    order: Reading
    where: ReadCondition | None
    limit: int | None


@dataclass
class RawFeatures:
    """The features of a document, while they are checked.

    Attributes:
        parts: well-formed parts of the document.
        columns: raw columns, to which the features add theirs.
        channel_of: {feature name: channel} of every feature in a channel.
        sequence_of: {feature name: its sequence} of every feature in a sequence.
        ids_of_weights: {name of a feature in no channel with weights of ids: the feature that has these ids}.
        rules: {feature name: encoding}, of the features in which nothing is malformed.
        added: {name of a feature that a rule adds: path of its name}.
        computed: {feature name: its history or count}.
        list_inputs: {name of a cross: its inputs that are lists}; at most one, or there is a problem.
        crossed: {(name of a cross, raw column): how it is read}.
        problems: problems found.
    """

    parts: RawParts
    columns: RawColumns
    channel_of: dict[str, str] = field(default_factory=dict)
    sequence_of: dict[str, SequencePart] = field(default_factory=dict)
    ids_of_weights: dict[str, str] = field(default_factory=dict)
    rules: dict[str, Rule] = field(default_factory=dict)
    added: dict[str, str] = field(default_factory=dict)
    computed: dict[str, Computed] = field(default_factory=dict)
    list_inputs: dict[str, list[str]] = field(default_factory=dict)
    crossed: dict[tuple[str, str], Reading | None] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def check(self) -> None:
        """Find the encodings and readings of all features, and everything that is wrong with them."""
        entries = [(entry.text, name) for name, channel in reversed(self.parts.channels.items()) for entry in channel]
        self.channel_of = {text: name for text, name in entries}
        self.sequence_of = {entry.text: each for each in reversed(self.parts.sequences) for entry in each.features}
        for name, keys in self.parts.features.items():
            if "weights" in keys and self.channel_of.get(name, MULTIHOT) == MULTIHOT:
                self.ids_of_weights[keys["weights"]] = name
        self.ids_of_weights = {name: ids for name, ids in self.ids_of_weights.items() if name not in self.channel_of}
        for name, keys in self.parts.features.items():
            if PRETRAINED in keys:
                self.columns.unreadable[name] = "is looked up in a file"
            elif ("feature_spec", name) in self.parts.incomplete or not self._find_rule(name, keys):
                self.columns.unknown.add(name)
        self._share_tables()
        self._find_added()
        self._find_list_inputs()
        encoded = self.encoded_parts()
        for rule in FEATURE_RULES:
            self.problems.extend(rule(encoded))
        for name in self.rules:
            self.problems.extend(self._check_feature(name, self.parts.features[name]))
        self._check_added_weights()
        self._check_shared()
        self.problems.extend(self._check_looked_up())
        self._find_formats()
        for name in self.rules:
            self._find_reading(name, self.parts.features[name])

    def is_list(self, name: str) -> bool:
        """Return whether a feature has a list per row: as stated, or for a cross if one of its inputs is a list."""
        if isinstance(self.rules.get(name), CrossRule):
            return bool(self.list_inputs.get(name))
        keys, channel = self.parts.features[name], self.channel_of.get(name, MULTIHOT)
        if channel in (SEQUENCE, VECTOR):
            return True
        return channel == MULTIHOT and (
            name in self.channel_of
            or name in self.ids_of_weights
            or any(key in keys for key in ("history", "max_hotness", "separator", "weights"))
        )

    def encoded_parts(self) -> Parts:
        """Return the parts of a specification of encoded features, for the rules that both kinds share."""
        features, stated = {}, {}
        for name, keys in self.parts.features.items():
            known = _LOOKED_UP_KEYS if PRETRAINED in keys else (*_ENCODED_KEYS, *PRETRAINED_KEYS)
            stated[name] = frozenset(key for key in known if key in keys)
            features[name] = Feature(name=name, **{key: keys[key] for key in stated[name]})  # type: ignore
            if SERVE in keys:  # its id or number is only known when the encoder is fitted
                features[name] = replace(features[name], serve=0.0)
        for name in self.added:
            if name not in features:
                features[name], stated[name] = Feature(name=name), frozenset()
        # Whether a feature of a sequence has ids is unknown if its encoding is wrong.
        wrong = self.sequence_of.keys() & features.keys() - self.rules.keys()
        return Parts(
            features,
            stated,
            channels=self.parts.channels,
            sequences=self.parts.sequences,
            steps_with_ids={name for name in self.sequence_of if isinstance(self.rules.get(name), ID_RULES)},
            score=self.parts.others.get(SCORE),
            incomplete=self.parts.incomplete | {("feature_spec", name) for name in wrong},
        )

    # Encodings.

    def _find_rule(self, name: str, keys: RawFeatureKeys) -> bool:
        """Find the encoding of a feature; return whether it is well-formed."""
        channel, path = self.channel_of.get(name), feature_path(name, "encode")
        if "encode" not in keys:
            rule = NumberRule() if name in self.ids_of_weights else default_rule(channel, keys.get("dtype"))
            if isinstance(rule, NumberRule) and "indicator" in keys:
                rule = NumberRule((), keys["indicator"])
        else:
            mistake = check_keys(keys["encode"])
            rule = KeepRule() if mistake else rule_of(name, keys["encode"], keys.get("indicator"))
            if mistake := mistake or check_channel(rule, channel):
                self.problems.append(Problem(path, mistake))
                return False
        self.columns.rules[name] = self.rules[name] = rule
        return True

    def _share_tables(self) -> None:
        """Give the features of an embedding table one encoder, fitted on the values of all of them.

        It is that of the first feature that states an encoding. The items of histories are not counted, because they
        repeat values of another column in every later row.
        """
        tables: dict[str, list[str]] = {}
        for name, keys in self.parts.features.items():
            channel = self.channel_of.get(name)
            has_ids = channel in CATEGORICAL_CHANNELS or (
                channel == SEQUENCE and isinstance(self.rules.get(name), ID_RULES)
            )
            if name in self.rules and (has_ids or (channel is None and "table" in keys)):
                tables.setdefault(keys.get("table", name), []).append(name)
        for table, members in tables.items():
            owners = [name for name in members if _can_share(self.rules[name])]
            owner = next((name for name in owners if "encode" in self.parts.features[name]), "".join(owners[:1]))
            for name in members if owner else ():
                keys, rule = self.parts.features[name], self.rules[name]
                if name == owner or isinstance(rule, SharedVocabularyRule):
                    continue
                if rule != self.rules[owner] and "encode" in keys:
                    message = f"differs from that of {owner!r}, which has the same table {table!r}; remove one of them"
                    self.problems.append(Problem(feature_path(name, "encode"), message))
                elif "encode" not in keys or isinstance(rule, VocabularyRule | QuantilesRule):
                    self.columns.rules[name] = self.rules[name] = SharedVocabularyRule(owner, "history" not in keys)

    def _find_added(self) -> None:
        """Find the features that rules add, and check that their names are new."""
        for name in self.columns.unknown:
            self.added.update(dict.fromkeys(self.parts.outputs.get(name, ()), ""))
        for name, rule in self.rules.items():
            keys = self.parts.features[name]
            if isinstance(rule, NumberRule) and rule.indicator is not None:
                inner = ("encode", "indicator") if "indicator" in keys.get("encode", {}) else ("indicator",)
                self._add(rule.indicator, feature_path(name, *inner))
            elif isinstance(rule, TargetRule):
                for index, output in enumerate(output for output in (rule.mean, rule.count) if output is not None):
                    path = path_of("feature_spec", name, "encode", "target", "outputs", index)
                    if output != name:
                        self._add(output, path)
                if name in self.channel_of and name not in (rule.mean, rule.count):
                    message = f"is in {self.channel_of[name]}, but the encoding makes {rule.mean}; list that instead"
                    self.problems.append(Problem(feature_path(name), message))

    def _add(self, name: str, path: str) -> None:
        if name in self.parts.features:
            self.problems.append(Problem(path, f"{shown(name)} is also a feature of the specification; rename one"))
        elif self.added.get(name):
            self.problems.append(Problem(path, f"{shown(name)} is already the name at {self.added[name]}; rename one"))
        else:
            self.added[name] = path
        if self.channel_of.get(name, NUMERICAL) != NUMERICAL:
            message = f"{shown(name)} is a number, and in {self.channel_of[name]}; list it in {NUMERICAL}"
            self.problems.append(Problem(path, message))

    def _find_list_inputs(self) -> None:
        """Find the inputs of crosses that are lists: features, crosses of lists among them, and raw columns.

        A raw column is a list where all features of the column are, in a cross that is stated to be a list.
        """
        crosses = {name: rule for name, rule in self.rules.items() if isinstance(rule, CrossRule)}
        kinds: dict[str, set[bool]] = {}
        for name in self.rules.keys() - crosses.keys():
            keys = self.parts.features[name]
            if "history" not in keys and "count" not in keys:
                kinds.setdefault(keys.get("column", name), set()).add(self.is_list(name))

        def is_list(cross: str, other: str) -> bool:
            if other in self.parts.features or other in self.added:
                return other in self.parts.features and self.is_list(other)
            is_stated = "max_hotness" in self.parts.features[cross] or cross in self.channel_of
            return is_stated and self.channel_of.get(cross, MULTIHOT) == MULTIHOT and kinds.get(other) == {True}

        changed = True
        while changed:  # a cross of a list can be an input of another one
            found = {name: [one for one in rule.inputs if is_list(name, one)] for name, rule in crosses.items()}
            changed, self.list_inputs = found != self.list_inputs, found

    # Checks of one feature.

    def _check_feature(self, name: str, keys: RawFeatureKeys) -> Iterator[Problem]:
        rule, channel = self.rules[name], self.channel_of.get(name)
        yield from self._check_source(name, keys, rule)
        yield from self._check_steps(name, keys) if channel == SEQUENCE else self._check_lists(name, keys, rule)
        if name in self.ids_of_weights:
            yield from self._check_weights(name, keys, rule)
        yield from self._check_ids(name, keys, rule)
        yield from self._check_times(name, keys)
        if isinstance(rule, NumberRule):
            yield from self._check_numbers(name, keys, rule)
        elif "indicator" in keys:
            message = "is only for input numbers with a fill, such as encode: [{fill: median}]; remove it"
            yield Problem(feature_path(name, "indicator"), message)
        if channel in (LABEL, MAP, VECTOR) and "count" in keys:
            yield Problem(feature_path(name, "count"), f"is for inputs, and the feature is in {channel}; remove it")
        if channel == LABEL:
            yield from self._check_label(name, keys, rule)
        if isinstance(rule, TargetRule):
            yield from self._check_target(name, rule)
        if SERVE in keys and (name in self.computed or isinstance(rule, CrossRule | TargetRule) or "indicator" in keys):
            message = "is for one feature that is read from a column as it is or with an encoding of its own; remove it"
            yield Problem(feature_path(name, SERVE), message)

    def _check_looked_up(self) -> Iterator[Problem]:
        """Check that pretrained vectors state nothing about raw columns, and that each raw value has an id."""
        for name, keys in self.parts.features.items():
            if PRETRAINED not in keys:
                continue
            for key in keys:
                if key not in _LOOKED_UP_KEYS:
                    message = "has no meaning for a vector that is looked up in a file; remove it"
                    yield Problem(feature_path(name, key), message)
            of = keys.get("of", "")
            rule = self.rules.get(of)
            if isinstance(rule, SharedVocabularyRule):
                rule = self.rules.get(rule.feature)
            if isinstance(rule, ID_RULES) and not isinstance(rule, _LOOK_UP_RULES):
                message = f"{shown(of)} has no id per raw value; name a feature with a vocabulary, a hash or identity"
                yield Problem(feature_path(name, "of"), message)

    def _check_source(self, name: str, keys: RawFeatureKeys, rule: Rule) -> Iterator[Problem]:
        """Check that a computed feature or a cross states nothing about a raw column."""
        computed: list[str] = [key for key in ("history", "count") if key in keys]
        if isinstance(rule, CrossRule):
            computed.append("encode.cross")
        if len(computed) > 1:
            message = f"has {' and '.join(computed)}; keep one, and make another feature of the other"
            yield Problem(feature_path(name), message)
        if computed:
            others = ("weights",) if isinstance(rule, CrossRule) else ("keep", "weights")
            for key in (*_READING_KEYS, *others):
                if key in keys:
                    message = f"is for values read from files, and those of {computed[0]} are not; remove it"
                    yield Problem(feature_path(name, key), message)

    def _check_lists(self, name: str, keys: RawFeatureKeys, rule: Rule) -> Iterator[Problem]:
        channel = self.channel_of.get(name)
        if channel not in (MULTIHOT, None):
            for key in (*_RAW_LIST_KEYS, "history"):
                is_told_apart = key == "keep" and ("history" in keys or "count" in keys)
                if key in keys and not is_told_apart and not (key == "separator" and channel == VECTOR):
                    message = f"is only for {MULTIHOT}, and the feature is in {channel}; remove it or move the feature"
                    yield Problem(feature_path(name, key), message)
            return
        if isinstance(rule, CrossRule):
            yield from self._check_cross_of_single_values(name, keys)
        elif channel == MULTIHOT and "count" in keys:
            message = f"has one value per row, and is in {MULTIHOT}; list it in another channel"
            yield Problem(feature_path(name), message)
        elif "history" in keys:
            if "max_hotness" in keys:
                message = "is stated by history: {last: ...}; remove it"
                yield Problem(feature_path(name, "max_hotness"), message)
        elif "keep" in keys and not self.is_list(name):
            yield Problem(feature_path(name, "keep"), "is only for lists; remove it, or state max_hotness")
        if self.is_list(name) and isinstance(rule, TargetRule):
            message = (
                "target is for one value per row, and this is a list; write an encoding of ids, such as {hash: 1000}, "
                "or add a column with one value per row"
            )
            yield Problem(feature_path(name, "encode"), message)

    def _check_steps(self, name: str, keys: RawFeatureKeys) -> Iterator[Problem]:
        """Check the keys of a feature of a sequence."""
        if "count" in keys:
            yield Problem(feature_path(name), f"has one value per row, and is in {SEQUENCE}; list it in {NUMERICAL}")
        if "max_hotness" in keys and "history" in keys:
            yield Problem(feature_path(name, "max_hotness"), "is stated by history: {last: ...}; remove it")
        if "keep" in keys and "history" not in keys:
            message = "follows from the order of the sequence, whose newest steps are kept; remove it"
            yield Problem(feature_path(name, "keep"), message)
        if "weights" in keys and "history" not in keys:
            message = f"is only for {MULTIHOT}; remove it, and list the weights as one more feature of the sequence"
            yield Problem(feature_path(name, "weights"), message)

    def _check_cross_of_single_values(self, name: str, keys: RawFeatureKeys) -> Iterator[Problem]:
        """Check that nothing about a cross says that it is a list if none of its inputs is one."""
        if self.is_list(name):
            return
        if self.channel_of.get(name) == MULTIHOT:
            fix = "list it in another channel, or add an input that is a list"
            yield Problem(feature_path(name), f"has one value per row, and is in {MULTIHOT}; {fix}")
            return
        for key in ("max_hotness", "keep"):
            if key in keys:
                message = "is only for lists, and the cross has no input that is a list; remove it"
                yield Problem(feature_path(name, key), message)

    def _check_weights(self, name: str, keys: RawFeatureKeys, rule: Rule) -> Iterator[Problem]:
        """Check that the weights of ids are lists of numbers of at least 0 that are read from files."""
        if "history" in keys or "count" in keys:
            message = f"{shown(name)} is computed; name a feature whose lists are read from files"
            yield Problem(feature_path(self.ids_of_weights[name], "weights"), message)
        elif not isinstance(rule, NumberRule):
            message = "makes no numbers, which weights are; write steps such as [{fill: 1}], or remove it"
            yield Problem(feature_path(name, "encode"), message)
        elif any(step.kind in ("standardize", "minmax") for step in rule.steps):
            message = "makes numbers below 0 of weights; write [log1p] or [{clip: [0, 1]}], or remove it"
            yield Problem(feature_path(name, "encode"), message)
        if "keep" in keys:
            message = f"is that of {shown(self.ids_of_weights[name])}, whose weights these are; state it there"
            yield Problem(feature_path(name, "keep"), message)

    def _check_ids(self, name: str, keys: RawFeatureKeys, rule: Rule) -> Iterator[Problem]:
        """Check the keys that only some encodings of ids have."""
        channel = self.channel_of.get(name)
        if isinstance(rule, IdentityRule) and "cardinality" not in keys:
            message = "is missing; write the largest id + 1 (identity keeps ids in [0, cardinality))"
            yield Problem(feature_path(name, "cardinality"), message)
        elif "cardinality" in keys and not isinstance(rule, IdentityRule) and channel != LABEL:
            message = "is only for `encode: identity` and labels; other encodings find it: remove it"
            yield Problem(feature_path(name, "cardinality"), message)
        for key in ("embedding_dim", "table", "wide"):
            if key in keys and not (channel in CATEGORICAL_CHANNELS or isinstance(rule, ID_RULES)):
                yield Problem(feature_path(name, key), "is only for categorical features; remove it")

    def _check_times(self, name: str, keys: RawFeatureKeys) -> Iterator[Problem]:
        stated = [key for key in ("format", "unit") if key in keys]
        if len(stated) == 2:
            message = "is for numbers, and format for text; keep the one that says how the column is written"
            yield Problem(feature_path(name, "unit"), message)
        for key in stated:
            if keys.get("dtype", "timestamp") != "timestamp":
                message = f"is for timestamps, and the dtype is {keys['dtype']}; write dtype: timestamp, or remove it"
                yield Problem(feature_path(name, key), message)
            elif "timestamp" not in self._allowed(name):
                message = "is for timestamps, and the encoding does not take them; remove it, or write another encoding"
                yield Problem(feature_path(name, key), message)

    def _check_numbers(self, name: str, keys: RawFeatureKeys, rule: NumberRule) -> Iterator[Problem]:
        for mistake in check_steps(rule):
            yield Problem(feature_path(name, "encode"), mistake)
        path = feature_path(name, "indicator")
        if "indicator" in keys and "indicator" in keys.get("encode", {}):
            yield Problem(path, "is stated twice, here and in encode; keep one")
        elif rule.indicator is not None and not any(step.kind == "fill" for step in rule.steps):
            yield Problem(path, "has no effect without a fill; add one, such as encode: [{fill: median}]")
        elif rule.indicator is not None and self.is_list(name):
            yield Problem(path, "is not for lists; remove it")

    def _check_label(self, name: str, keys: RawFeatureKeys, rule: Rule) -> Iterator[Problem]:
        task = keys.get("task", "binary")
        if isinstance(rule, ThresholdRule) and task != "binary":
            message = f"threshold makes 0 and 1, but the task is {task}; write task: binary, or remove encode"
            yield Problem(feature_path(name, "encode"), message)
        if isinstance(rule, LabelMapRule) and task != "regression":
            classes = 2 if task == "binary" else keys.get("cardinality", 2**31)
            wrong = [value for value in rule.values.values() if value not in range(classes)]
            if wrong:
                expected = "0 and 1" if task == "binary" else f"classes in [0, {classes})"
                yield Problem(feature_path(name, "encode", "map"), f"has the value {wrong[0]:g}; write {expected}")
        if isinstance(rule, KeepRule) and keys.get("dtype", "float64") not in NUMBER_OR_BOOL_TYPES:
            message = f'is {keys["dtype"]}, and a label is a number; write encode: {{map: {{"yes": 1, "no": 0}}}}'
            yield Problem(feature_path(name, "dtype"), message)

    def _check_target(self, name: str, rule: TargetRule) -> Iterator[Problem]:
        path = feature_path(name, "encode", "target", "label")
        labels = tuple(entry.text for entry in self.parts.channels[LABEL])
        if ("channel_spec", LABEL) in self.parts.incomplete or rule.label in self.columns.unknown:
            return
        if rule.label not in labels:
            yield Problem(path, f"{shown(rule.label)} is not a label (channel_spec.{LABEL})", rule.label, labels)
        elif self.parts.features.get(rule.label, {}).get("task") == "multiclass":
            yield Problem(path, f"{shown(rule.label)} is multiclass; name a binary label or a regression")

    # Features that refer to other features.

    def _check_added_weights(self) -> None:
        for name, ids in self.ids_of_weights.items():
            if name in self.added and name not in self.parts.features:
                message = f"{shown(name)} is one number per row, made by an encoding; name a feature of lists"
                self.problems.append(Problem(feature_path(ids, "weights"), message))

    def _check_shared(self) -> None:
        """Replace `vocabulary_of: F` by the feature at the end of the chain, and check that this has an encoder."""
        for name, rule in list(self.rules.items()):
            if not isinstance(rule, SharedVocabularyRule):
                continue
            path, seen, target = feature_path(name, "encode", "vocabulary_of"), [name], rule.feature
            while target not in seen and isinstance(self.rules.get(target), SharedVocabularyRule):
                seen.append(target)
                target = self.rules[target].feature  # type: ignore[union-attr]
            if target in seen:
                message = f"the encoding depends on itself ({listed([*seen, target], len(seen) + 1, ' -> ')})"
                self.problems.append(Problem(path, f"{message}; write vocabulary for one of them"))
            elif target not in self.parts.features and ("feature_spec",) not in self.parts.incomplete:
                others = tuple(other for other, known in self.rules.items() if _can_share(known) and other != name)
                self.problems.append(Problem(path, f"{shown(target)} is not in feature_spec", target, others))
            elif target in self.rules and not _can_share(self.rules[target]):
                message = f"{shown(target)} has no encoder of ids of one column; name one with a vocabulary"
                self.problems.append(Problem(path, message))
            else:
                self.rules[name] = replace(rule, feature=target)

    def _check_crosses(self) -> None:
        for name, rule in self.rules.items():
            if isinstance(rule, CrossRule):
                for index, other in enumerate(rule.inputs):
                    path = path_of("feature_spec", name, "encode", "cross", index)
                    if other not in self.parts.features and other not in self.added:
                        is_list, columns = other in self.list_inputs[name], self.columns
                        reading = columns.refer_to_lists(other) if is_list else columns.refer(other, path, KEY_TYPES)
                        self.crossed[name, other] = reading
                    if other in rule.inputs[:index]:
                        self.problems.append(Problem(path, f"{shown(other)} is already an input; keep one"))
                    elif mistake := self._cross_mistake(name, other):
                        self.problems.append(Problem(path, mistake))

    def _cross_mistake(self, name: str, other: str) -> str | None:
        """Return why an input does not fit a cross, or None; whether raw columns exist is checked elsewhere."""
        if other in self.added:
            return f"{shown(other)} is a number; cross features with ids"
        lists = [one for one in self.list_inputs[name] if not self._leads_to(one, name)]
        is_looked_up = PRETRAINED in self.parts.features.get(other, {})
        if is_looked_up or (other in self.rules and not isinstance(self.rules[other], ID_RULES)):
            return f"{shown(other)} has no ids; add a feature of its column with an encoding of ids, and name that"
        if self._leads_to(other, name):
            return f"the cross depends on itself through {shown(other)}; remove it"
        if other in lists[1:]:
            return (
                f"{shown(other)} is a list, and so is {shown(lists[0])}: nothing says which of their items belong "
                "together; keep one of them"
            )
        if other in lists and self.channel_of.get(name, MULTIHOT) != MULTIHOT:
            return f"{shown(other)} is a list, and the cross has an id for each item; list {shown(name)} in {MULTIHOT}"
        return None

    def _leads_to(self, start: str, name: str) -> bool:
        """Return whether a feature is a cross that has another one among its inputs, directly or not."""
        todo, seen = [start], {start}
        while todo:
            current = todo.pop()
            if current == name:
                return True
            rule = self.rules.get(current)
            inputs = set(rule.inputs) if isinstance(rule, CrossRule) else set()
            todo += inputs - seen
            seen |= inputs
        return False

    # Readings.

    def _find_reading(self, name: str, keys: RawFeatureKeys) -> None:
        """Find how the values of a feature are read, and check that the type fits its encoding."""
        rule = self.rules[name]
        if isinstance(rule, CrossRule) or "history" in keys or "count" in keys:
            self.columns.unreadable[name] = "is a cross" if isinstance(rule, CrossRule) else "is computed"
            return
        dtype = self._dtype(name, ())
        if dtype is None:
            self.columns.unknown.add(name)
            return
        if not self._check_type(name, dtype, "dtype"):
            self.columns.unknown.add(name)
            return
        column = keys.get("column", name)
        path = feature_path(name, "column") if "column" in keys else feature_path(name)
        self.columns.check_listed(column, path)
        reading = self.columns.reading(column, dtype, self.is_list(name), keys.get("separator"))
        self.columns.readings[name] = self.columns.use(reading)

    def _find_formats(self) -> None:
        """Find how timestamps are written, which is stated once per column and holds for all its uses."""
        first: dict[str, str] = {}
        stated: list[tuple[str, str, Any]] = [
            (keys.get("column", name), feature_path(name), keys) for name, keys in self.parts.features.items()
        ]
        split = self.parts.others.get("split", {})
        if "time" in split:
            feature = self.parts.features.get(split["time"], {})
            stated.append((feature.get("column", split["time"]), "split", split))
        for column, path, keys in stated:
            form = keys.get("format"), keys.get("unit")
            if form != (None, None) and self.columns.formats.setdefault(column, form) != form:
                key = "format" if form[0] is not None else "unit"
                message = f"differs from that of {first[column]}, which reads the same column; write it once"
                self.problems.append(Problem(f"{path}.{key}", message))
            if form != (None, None):
                first.setdefault(column, path)

    def find_computed(self) -> None:
        """Find the readings that crosses, histories and counts take, once those of all features are known."""
        self._check_crosses()
        for name in self.rules:
            keys = self.parts.features[name]
            if ("history" in keys) != ("count" in keys):
                self._find_computed(name, "history" if "history" in keys else "count")
        for sequence in self.parts.sequences:
            self.problems.extend(self._check_histories(sequence))
        self.problems.extend(self._check_sides())

    def _check_sides(self) -> Iterator[Problem]:
        """Check that features read a raw column for one side, and that crosses of a candidate's values are its own."""
        sides, first = self._sides(), dict[str, str]()
        for name, reading in self.columns.readings.items():
            if name in sides:
                other = first.setdefault(reading.column, name)
                if sides[name] != sides[other]:
                    message = f"is {sides[name]}, and {sides[other]} for {shown(other)}, which reads the same column"
                    yield Problem(feature_path(name, SIDE), f"{message}; write the same for both")
        for name, rule in self.rules.items():
            for other in rule.inputs if isinstance(rule, CrossRule) and sides.get(name) != CANDIDATE else ():
                crossed = self.crossed.get((name, other))
                read = other if crossed is None else first.get(crossed.column)
                if name in sides and sides.get(read or "") == CANDIDATE:
                    message = f"is request, and {shown(other)} is the candidate's; write {CANDIDATE}"
                    yield Problem(feature_path(name, SIDE), message)

    def _sides(self) -> dict[str, str]:
        """Return whose the features that are inputs are in a ranking request, by name, and those that make inputs."""
        names = {
            name
            for name in self.parts.features
            for made in (name, *(added_by(self.rules[name]) if name in self.rules else ()))
            if self.channel_of.get(made) in INPUT_CHANNELS
        }
        sides: dict[str, str] = {name: self.parts.features[name].get("side", "request") for name in names}
        return sides | {weights: sides[ids] for weights, ids in self.ids_of_weights.items() if ids in sides}

    def _find_computed(self, name: str, kind: Literal["history", "count"]) -> None:
        stated: Any = self.parts.features[name].get(kind)
        path, columns = feature_path(name, kind), self.columns
        types = ANY_TYPE if kind == "history" else KEY_TYPES
        of = columns.refer(stated["of"], f"{path}.of", types) if "of" in stated else None
        by = columns.refer(stated["by"], f"{path}.by", KEY_TYPES)
        order = columns.refer(stated["order"], f"{path}.order", ORDER_TYPES, "timestamp")
        where = columns.condition(stated["where"], f"{path}.where") if "where" in stated else None
        window = stated.get("window")
        if window is not None and order is not None and isinstance(window, timedelta) != (order.dtype == "timestamp"):
            found = (
                "a timestamp; write a duration such as 7d"
                if order.dtype == "timestamp"
                else "a number; write a whole number"
            )
            self.problems.append(Problem(f"{path}.window", f"does not fit order {shown(stated['order'])}, {found}"))
        if by is None or order is None or (of is None and "of" in stated):
            return
        is_history = kind == "history"
        reading = Reading(name, name, of.dtype if of is not None and is_history else "int64", is_history)
        self._check_type(name, reading.dtype, "encode")
        window = window // MICROSECOND if isinstance(window, timedelta) else window
        limit = stated["last"] if is_history else window
        self.computed[name] = Computed(reading, of, by, order, where, limit)

    def _check_histories(self, sequence: SequencePart) -> Iterator[Problem]:
        """Check that the features of a sequence are read from files, or are histories of the same rows."""
        names = [entry.text for entry in sequence.features if entry.text in self.parts.features]
        histories = [name for name in names if "history" in self.parts.features[name]]
        others = [name for name in names if name not in histories]
        if histories and others:
            message = (
                f"has the history {shown(histories[0])} and {shown(others[0])}, which is none: nothing says that their "
                "steps are the same; make two sequences of them"
            )
            yield Problem(f"{sequence.path}.features", message)
        if histories and sequence.order != "newest_last":
            message = "is newest_first, and a history ends with its newest step; write newest_last, or remove it"
            yield Problem(f"{sequence.path}.order", message)
        computed = {name: self.computed[name] for name in histories if name in self.computed}
        first = next(iter(computed), "")
        for name, rule in computed.items():
            if rule[2:] != computed[first][2:]:
                message = f"differs from that of {shown(first)} of the same sequence; write the same by, order, where"
                yield Problem(feature_path(name, "history"), f"{message} and last for both")

    def _check_type(self, name: str, dtype: RawType, key: str) -> bool:
        """Check that the encoding of a feature takes the type of its raw values; return whether it does."""
        allowed = self._allowed(name)
        is_stated_otherwise = not {"format", "unit"}.isdisjoint(self.parts.features[name])  # and reported there
        if dtype not in allowed and not is_stated_otherwise:
            types = ", ".join(allowed)
            if key == "dtype":
                message = f"is {dtype}, which the encoding does not take; write one of {types}, or remove it"
            else:
                message = f"takes {types}, and the values are {dtype}; write another encoding"
            self.problems.append(Problem(feature_path(name, key), message))
        return dtype in allowed

    def _allowed(self, name: str) -> tuple[RawType, ...]:
        rule = self.rules[name]
        if isinstance(rule, SharedVocabularyRule):
            shared = self._dtype(rule.feature, ())
            return TYPES_OF_RULE[KeepRule] if shared is None else (shared,)
        if isinstance(rule, KeepRule) and self.channel_of.get(name) == LABEL:
            return NUMBER_OR_BOOL_TYPES
        if isinstance(rule, KeepRule) and self.channel_of.get(name) == MAP:
            return ("string", *INTEGER_TYPES)
        return TYPES_OF_RULE[type(rule)]

    def _dtype(self, name: str, seen: tuple[str, ...]) -> RawType | None:
        """Return the type of a feature's raw values, None if it is unknown."""
        keys, rule = self.parts.features.get(name, {}), self.rules.get(name)
        if name in seen or rule is None or isinstance(rule, CrossRule):
            return None
        if "count" in keys:
            return "int64"
        if "history" in keys:
            of = keys["history"]["of"]
            return self._dtype(of, (*seen, name)) if of in self.parts.features else "string"
        if "dtype" in keys:
            return keys["dtype"]
        if "format" in keys or "unit" in keys:
            return "timestamp"
        if isinstance(rule, SharedVocabularyRule):
            return self._dtype(rule.feature, (*seen, name))
        if isinstance(rule, KeepRule) and self.channel_of.get(name) == LABEL:
            return "float64"
        return "string" if isinstance(rule, KeepRule) else TYPES_OF_RULE[type(rule)][0]

    # The result.

    def build(self, names: dict[Reading, Reading]) -> dict[str, RawFeature]:
        """Return the features, given the names of all readings; there must be no problems."""
        return {name: self._built(name, names) for name in self.rules}

    def pretrained(self) -> dict[str, Feature]:
        """Return the vectors that are looked up, by name; there must be no problems."""
        stated = self.encoded_parts().features
        return {name: feature for name, feature in stated.items() if feature.pretrained is not None}

    def sequences(self) -> Iterator[FeatureSequence]:
        """Yield the sequences; there must be no problems. Those of unstated length have the length 1."""
        stated = self.encoded_parts().features
        return (sequence.with_length(stated) for sequence in self.parts.sequences)

    def _built(self, name: str, names: dict[Reading, Reading]) -> RawFeature:
        keys, rule, sequence = self.parts.features[name], self.rules[name], self.sequence_of.get(name)
        stated: Any = {key: keys[key] for key in _ENCODED_KEYS if key in keys}  # type: ignore[literal-required]
        keep = keys.get("keep", "first")
        if sequence is not None:
            keep = "last" if sequence.order == "newest_last" else "first"
            lengths = [self.parts.features[entry.text].get("max_hotness") for entry in sequence.features]
            stated["max_hotness"] = next((length for length in lengths if length is not None), None)
        if isinstance(rule, CrossRule):
            readings = {other: self.crossed.get((name, other)) for other in rule.inputs}
            named = {other: other if read is None else names[read].name for other, read in readings.items()}
            lists = [named[other] for other in self.list_inputs[name]]
            cross = CrossRule(tuple(named.values()), rule.ids, lists[0] if lists else None)
            return RawFeature(Feature(name=name, **stated), None, cross, keys.get("keep", "first"))
        if name not in self.computed:
            reading = names[self.columns.readings[name]].name
            return RawFeature(Feature(name=name, **stated), reading, rule, keep, serve=keys.get("serve"))
        parts = self.computed[name]
        of = None if parts.of is None else names[parts.of].name
        others = names[parts.by].name, names[parts.order].name, as_condition(parts.where, names)
        if not parts.reading.is_list:
            return RawFeature(Feature(name=name, **stated), name, rule, computed=Count(of, *others, parts.limit))
        feature = Feature(name=name, **stated | {"max_hotness": parts.limit})
        steps = None
        if sequence is not None and (of_first := self.computed[sequence.features[0].text].of) is not None:
            steps = names[of_first].name
        history = History(cast(str, of), *others, cast(int, parts.limit), steps)
        return RawFeature(feature, name, rule, "last", history)


def _can_share(rule: Rule) -> bool:
    return isinstance(rule, ID_RULES) and not isinstance(rule, (CrossRule, SharedVocabularyRule))
