"""What `encode:` says as rules, and which encodings fit which channels and types."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

from data.spec.features import CATEGORICAL_CHANNELS, FLOAT_DTYPES, LABEL, MAP, NUMERICAL, SEQUENCE, VECTOR
from data.spec.raw.document import STEPS
from data.spec.raw.spec import (
    BoundariesRule,
    CrossRule,
    HashRule,
    IdentityRule,
    KeepRule,
    LabelMapRule,
    NumberRule,
    NumberStep,
    QuantilesRule,
    RawType,
    Rule,
    SharedVocabularyRule,
    TargetRule,
    ThresholdRule,
    TimestampRule,
    VocabularyRule,
)

INTEGER_TYPES: tuple[RawType, ...] = ("int8", "int16", "int32", "int64")
NUMBER_TYPES: tuple[RawType, ...] = (*INTEGER_TYPES, "float16", "float32", "float64")
NUMBER_OR_BOOL_TYPES: tuple[RawType, ...] = (*NUMBER_TYPES, "bool")
ID_RULES = (
    VocabularyRule,
    HashRule,
    IdentityRule,
    BoundariesRule,
    QuantilesRule,
    TimestampRule,
    CrossRule,
    SharedVocabularyRule,
)
NUMBER_RULES = (NumberRule, TargetRule)
LABEL_RULES = (LabelMapRule, ThresholdRule)
# For each rule the types of raw values that it accepts; the first is the default.
TYPES_OF_RULE: dict[type, tuple[RawType, ...]] = {
    VocabularyRule: ("string", "int64", "int32", "int16", "int8"),
    HashRule: ("string", "int64", "int32", "int16", "int8"),
    IdentityRule: ("int64", "int32", "int16", "int8"),
    BoundariesRule: ("float64", "float32", "float16", "int64", "int32", "int16", "int8"),
    QuantilesRule: ("float64", "float32", "float16", "int64", "int32", "int16", "int8"),
    TimestampRule: ("timestamp",),
    NumberRule: ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "bool"),
    TargetRule: ("string", "int64", "int32", "int16", "int8"),
    LabelMapRule: ("string",),
    ThresholdRule: ("float64", "float32", "float16", "int64", "int32", "int16", "int8"),
    KeepRule: get_args(RawType),
}
# Keys of `encode` that stand alone, each an encoding, with what makes the rule of a value; others add to one.
RULE_OF_KEY: dict[str, Callable[[Any], Rule]] = {
    "vocabulary": lambda keys: VocabularyRule(**keys),
    "hash": HashRule,
    "identity": lambda _: IdentityRule(),
    "boundaries": lambda numbers: BoundariesRule(tuple(numbers)),
    "quantiles": QuantilesRule,
    "timestamp": TimestampRule,
    "vocabulary_of": SharedVocabularyRule,
    "map": LabelMapRule,
    "threshold": lambda comparison: ThresholdRule(*comparison),
}
ALONE = (*RULE_OF_KEY, "target")


def check_keys(keys: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the combination of keys of `encode`, or None."""
    names = list(keys)
    main = [name for name in names if name in ALONE or name in ("cross", "steps")]
    steps = [name for name in names if name in STEPS]
    if not main and not steps:
        return "names no encoding; write one, such as {hash: 1000}, or remove it"
    if "cross" in names:
        others = [name for name in names if name != "cross"]
        if len(others) > 1 or (others and others[0] not in ("hash", "vocabulary")):
            return f"combines cross with {', '.join(others)}; it takes one of hash and vocabulary"
        return None
    if len(main) + len(steps) > 1:
        return f"combines {', '.join(main + steps)}; write steps as a list in their order, and other encodings alone"
    if "indicator" in names and main and main != ["steps"]:
        return f"combines indicator with {main[0]}; an indicator is for numbers with {{fill: ...}}"
    return None


def rule_of(name: str, keys: Mapping[str, Any], indicator: str | None) -> Rule:
    """Return the rule of a feature, given keys that `check_keys` accepts.

    Args:
        name: name of the feature.
        keys: keys of its `encode`.
        indicator: name of its missing indicator, if that is stated beside `encode`.
    """
    if "cross" in keys:
        ids = HashRule(keys["hash"]) if "hash" in keys else VocabularyRule(**keys.get("vocabulary", {}))
        return CrossRule(tuple(keys["cross"]), ids)
    if "target" in keys:
        stated = {key: value for key, value in keys["target"].items() if key != "outputs"}
        mean, count = (*keys["target"].get("outputs", [name]), None)[:2]
        return TargetRule(**stated, mean=mean, count=count)
    key = next((key for key in keys if key in RULE_OF_KEY), None)
    if key is not None:
        return RULE_OF_KEY[key](keys[key])
    steps = keys["steps"] if "steps" in keys else [{step: keys[step] for step in STEPS if step in keys}]
    return NumberRule(tuple(_step(step) for step in steps), keys.get("indicator", indicator))


def _step(step: Any) -> NumberStep:
    ((kind, value),) = step.items()
    if kind == "fill":
        return NumberStep("fill", fill=value)
    return NumberStep("clip", low=value[0], high=value[1]) if kind == "clip" else NumberStep(kind)


def default_rule(channel: str | None, dtype: str | None) -> Rule:
    """Return the rule of a feature without `encode`.

    Args:
        channel: its channel, None for a feature in no channel.
        dtype: its stated dtype, or None. In a sequence, a floating-point type makes numbers.
    """
    if channel in CATEGORICAL_CHANNELS or (channel == SEQUENCE and dtype not in FLOAT_DTYPES):
        return VocabularyRule()
    return NumberRule() if channel in (NUMERICAL, SEQUENCE, VECTOR) else KeepRule()


def check_channel(rule: Rule, channel: str | None) -> str | None:
    """Return why an encoding does not fit the channel of its feature, or None."""
    if channel in CATEGORICAL_CHANNELS and not isinstance(rule, ID_RULES):
        return f"makes numbers, and the feature is in {channel}; write an encoding of ids, such as vocabulary"
    if channel == SEQUENCE and (isinstance(rule, CrossRule) or not isinstance(rule, (*ID_RULES, NumberRule))):
        return f"is not for lists in {channel}; write another encoding of ids, or steps of numbers"
    if channel == VECTOR and rule != NumberRule():
        return f"changes values, and those of a {VECTOR} are taken as they are; remove it"
    if channel == NUMERICAL and not isinstance(rule, (*NUMBER_RULES, KeepRule)):
        return f"does not make input numbers, and the feature is in {channel}; write steps, such as [standardize]"
    if channel == LABEL and not isinstance(rule, (*LABEL_RULES, KeepRule)):
        return 'is not for labels; write {map: {"yes": 1, "no": 0}} or {threshold: ">= 4"}, or remove it'
    if channel == MAP and not isinstance(rule, KeepRule):
        return "is not for the map feature, which groups rows by the raw value; remove it"
    if channel is None and isinstance(rule, LABEL_RULES):
        return f"is for labels; list the feature in channel_spec.{LABEL}, or remove it"
    return None


def check_steps(rule: NumberRule) -> Iterator[str]:
    """Yield what is wrong with the steps of a number."""
    kinds = [step.kind for step in rule.steps]
    if kinds.count("fill") > 1:
        yield "fills missing values twice; keep one fill"
    if kinds.count("standardize") + kinds.count("minmax") > 1:
        yield "scales twice; keep one of standardize and minmax"
