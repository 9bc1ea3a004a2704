"""The shape of a raw specification's document, as pydantic types.

`read_raw_document` separates the well-formed parts from everything else, which it reports as problems;
`data.spec.raw.reader` then checks the parts against each other.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, NotRequired, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    Strict,
    TypeAdapter,
    with_config,
)
from pydantic import ValidationError as PydanticError
from pydantic_core import ErrorDetails
from typing_extensions import TypedDict

from data.errors import described, nearest, shown
from data.spec.document import (
    CATEGORICAL_HELP,
    SEQUENCE_KEYS,
    Entry,
    KeyPath,
    Problem,
    SequencePart,
    channel_entries,
    incomplete_after,
    is_sequence,
    path_of,
)
from data.spec.document_values import (
    Boolean,
    ChannelKeys,
    Dimension,
    FilePath,
    FormulaText,
    Name,
    NoneIsList,
    NoneIsMapping,
    Number,
    PlainNumber,
    PositiveInteger,
    Share,
    TaskType,
    TweediePower,
    Weight,
    Width,
    expects,
    expects_integer,
    expects_one_of,
    numpy_dtype,
    wrong_value,
)
from data.spec.features import (
    CHANNELS,
    CHUNK_KEYS,
    SCORE,
    SECTIONS,
    Combiner,
    Feature,
    Missing,
    Side,
    Wide,
    name_mistake,
)
from data.spec.raw.spec import Comparison, Keep, RawType, TimestampPart
from data.spec.raw.values import WrittenCondition, read_condition, read_threshold, read_time, read_window

STEPS = ("fill", "log1p", "clip", "standardize", "minmax")
# Encodings that are complete without an argument, and therefore may be written as a single word.
WORDS = ("vocabulary", "identity", "log1p", "standardize", "minmax")
MAX_COLUMN_LENGTH = 1000
MAX_BOUNDARIES = 100_000
# Ids are int32, and three of them are reserved.
MAX_BUCKETS = 2**31 - 4

RawFileType = Literal["csv", "parquet"]
_FORBID: Any = with_config(ConfigDict(extra="forbid"))
_UNKNOWN_KEY = ("extra_forbidden", "invalid_key")  # types of pydantic's errors


def _parsed(read: Callable[[Any], Any]) -> PlainValidator:
    """Return a validator that reads a value with a function that raises ValueError, whose message it reports."""

    def validate(value: Any) -> Any:
        try:
            return read(value)
        except ValueError as error:
            raise wrong_value(str(error)) from error

    return PlainValidator(validate)


def _column_name(value: Any) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise wrong_value(f"is {described(value)}; write the name of a raw column, in quotes if it looks like a number")
    if len(value) > MAX_COLUMN_LENGTH:
        raise wrong_value(f"this name has {len(value)} characters; the maximum is {MAX_COLUMN_LENGTH}")
    return value


def _text(expected: str, most: int) -> PlainValidator:
    """Return a validator of a text of at most so many bytes in UTF-8."""

    def validate(value: Any) -> str:
        if (
            not isinstance(value, str)
            or not 0 < len(value.encode(errors="replace")) <= most
            or "\n" in value
            or "\0" in value
        ):
            raise wrong_value(f"is {described(value)}; write {expected} in quotes")
        return value

    return PlainValidator(validate)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_mapping(value: Any) -> Any:
    """Return `encode` as a mapping: a word as {word: }, a list as {steps: [...]}."""
    if isinstance(value, list | tuple):
        return {"steps": value}
    if not isinstance(value, str):
        return value
    if value not in WORDS:
        hints = {part: f"{{timestamp: {part}}}" for part in get_args(TimestampPart)}
        hints |= {"hash": "{hash: 100000}, with the number of buckets", "quantiles": "{quantiles: 10}"}
        hints |= {"fill": "[{fill: median}]", "clip": "[{clip: [0, 100]}]", "boundaries": "{boundaries: [1, 10, 100]}"}
        near = nearest(value, WORDS)
        did_you_mean = f"write one of {', '.join(WORDS)}, or a mapping" + (f"; did you mean {near!r}?" if near else "")
        raise wrong_value(f"is {shown(value)}; " + (f"write {hints[value]}" if value in hints else did_you_mean))
    return {value: None}


def _nothing(value: Any) -> None:
    if value is not None and value != {}:
        raise wrong_value(f"is {described(value)}; this step takes no argument: write only its name")


def _fill(value: Any) -> Any:
    if value in ("median", "mean"):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise wrong_value(f"is {described(value)}; write median, mean or a number")
    return float(value)


def _limits(value: Any) -> tuple[float | None, float | None]:
    is_pair = isinstance(value, list | tuple) and len(value) == 2
    numbers = [
        limit is None or (isinstance(limit, int | float) and not isinstance(limit, bool) and abs(limit) < float("inf"))
        for limit in (value if is_pair else ())
    ]
    if not is_pair or not all(numbers) or value[0] is value[1] is None:
        raise wrong_value("write the smallest and the largest value, such as [0, 100], or null for one of them")
    low, high = (None if limit is None else float(limit) for limit in value)
    if low is not None and high is not None and low >= high:
        raise wrong_value(f"{low:g} is not below {high:g}; write the smaller limit first")
    return low, high


def _ascending(numbers: list[float]) -> list[float]:
    if any(left >= right for left, right in zip(numbers, numbers[1:], strict=False)):
        raise wrong_value("these numbers do not ascend; write each once, in ascending order")
    return numbers


def _null_as_text(chunk: Any) -> Any:
    """Return a chunk in which the key `null` is a string: YAML reads it as an empty value."""
    return {"null" if key is None else key: value for key, value in chunk.items()} if isinstance(chunk, dict) else chunk


def _quote(value: Any) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) != 1 or not value.isprintable():
        raise wrong_value(f"is {described(value)}; write one character in quotes, or null for files without quotes")
    return value


def _one_step(step: Any) -> Any:
    """Return a step as a mapping with one key: a word as {word: }."""
    if isinstance(step, str):
        return {step: None}
    if isinstance(step, dict) and len(step) != 1:
        raise wrong_value(f"has {len(step)} keys; write one step each, such as [{{fill: median}}, log1p, standardize]")
    return step


def _integer(least: int, most: int) -> Any:
    return Annotated[int, Strict(), Field(ge=least, le=most), PlainNumber, expects_integer(least, most)]


_Column = Annotated[str, PlainValidator(_column_name)]
_AtLeastZero = Annotated[
    float, Strict(), Field(ge=0, allow_inf_nan=False), PlainNumber, expects("a number of at least 0")
]
_Buckets: Any = _integer(1, MAX_BUCKETS)
_Intervals: Any = _integer(2, MAX_BOUNDARIES)
_Folds: Any = _integer(2, 1000)
_Seed: Any = _integer(0, 2**63 - 1)
_Condition = Annotated[WrittenCondition, _parsed(read_condition)]
_Time = Annotated[datetime | float, _parsed(read_time)]
_Format = Annotated[str, _text('the format of a time, such as "%Y-%m-%d %H:%M:%S",', 100)]
_Unit = Annotated[Literal["s", "ms", "us", "ns"], expects_one_of(Literal["s", "ms", "us", "ns"])]
_ColumnOrList = Annotated[
    list[_Column],
    Field(min_length=1),
    expects("a list of columns, such as [user_id]"),
    BeforeValidator(_as_list),
]
_NameOrList = Annotated[
    list[Name],
    Field(min_length=1),
    expects("the name of a source, or a list of names"),
    BeforeValidator(_as_list),
]


@_FORBID
class _VocabularyKeys(TypedDict, total=False):
    min_count: PositiveInteger
    max_size: _Buckets
    oov_buckets: _Buckets


class _StepKeys(TypedDict, total=False):
    fill: Annotated[Any, PlainValidator(_fill)]
    log1p: Annotated[None, PlainValidator(_nothing)]
    clip: Annotated[Any, PlainValidator(_limits)]
    standardize: Annotated[None, PlainValidator(_nothing)]
    minmax: Annotated[None, PlainValidator(_nothing)]


@_FORBID
class _OneStep(_StepKeys, total=False):
    pass


_Step = Annotated[_OneStep, expects(f"a step: {', '.join(STEPS)}"), BeforeValidator(_one_step)]


@_FORBID
class _TargetKeys(TypedDict):
    label: Name
    smoothing: NotRequired[_AtLeastZero]
    folds: NotRequired[_Folds]
    outputs: NotRequired[
        Annotated[
            list[Name],
            Field(min_length=1, max_length=2),
            expects("the name of the mean and, if wanted, of the count, such as [ctr, views]"),
        ]
    ]


@_FORBID
class EncodeKeys(_StepKeys, total=False):
    """The keys of `encode`, written as a mapping."""

    vocabulary: Annotated[_VocabularyKeys, expects("a mapping, such as {min_count: 5}"), NoneIsMapping]
    hash: _Buckets
    identity: Annotated[None, PlainValidator(_nothing)]
    boundaries: Annotated[
        list[Number],
        Field(min_length=1, max_length=MAX_BOUNDARIES),
        expects("a list of ascending numbers, such as [1, 10, 100]"),
        AfterValidator(_ascending),
    ]
    quantiles: _Intervals
    timestamp: Annotated[TimestampPart, expects_one_of(TimestampPart)]
    cross: Annotated[list[_Column], Field(min_length=2), expects("a list of two or more names, such as [site, hour]")]
    vocabulary_of: Name
    steps: Annotated[list[_Step], expects("a list of steps, such as [{fill: median}, log1p]")]
    indicator: Name
    target: Annotated[_TargetKeys, expects("a mapping, such as {label: click}")]
    map: Annotated[
        dict[Annotated[str, Strict(), expects('the text in quotes, such as "yes"')], Number],
        Field(min_length=1),
        expects('a mapping of texts, such as {"yes": 1, "no": 0}'),
    ]
    threshold: Annotated[tuple[Comparison, float], _parsed(read_threshold)]


@_FORBID
class HistoryKeys(TypedDict):
    """The keys of `history`."""

    of: _Column
    by: _Column
    order: _Column
    last: PositiveInteger
    where: NotRequired[_Condition]


@_FORBID
class CountKeys(TypedDict):
    """The keys of `count`."""

    by: _Column
    order: _Column
    of: NotRequired[_Column]
    where: NotRequired[_Condition]
    window: NotRequired[Annotated[int | timedelta, _parsed(read_window)]]


def _raw_value(value: Any) -> str:
    """Return a cell of a raw column as text."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise wrong_value(f"is {described(value)}; write a value of the raw column")
    return str(value)


@_FORBID
class RawFeatureKeys(TypedDict, total=False):
    """The keys of a feature."""

    dtype: Annotated[RawType, BeforeValidator(numpy_dtype), expects_one_of(RawType)]
    column: _Column
    encode: Annotated[
        EncodeKeys,
        expects("a word, a mapping or a list, such as vocabulary, {hash: 1000} or [log1p, standardize]"),
        BeforeValidator(_as_mapping),
    ]
    indicator: Name
    format: _Format
    unit: _Unit
    separator: Annotated[str, _text('the separator of a list, such as " " or "|",', 10)]
    max_hotness: PositiveInteger
    keep: Annotated[Keep, expects_one_of(Keep)]
    weights: Name
    combiner: Annotated[Combiner, expects_one_of(Combiner)]
    dimension: Dimension
    pretrained: FilePath
    of: Name
    trained: Boolean
    history: Annotated[HistoryKeys, expects("a mapping with of, by, order and last")]
    count: Annotated[CountKeys, expects("a mapping with of, by, order and window")]
    cardinality: PositiveInteger
    embedding_dim: Width
    table: Name
    wide: Annotated[Wide, expects_one_of(Wide)]
    serve: Annotated[Any, PlainValidator(_raw_value)]
    side: Annotated[Side, expects_one_of(Side)]
    task: Annotated[TaskType, expects_one_of(TaskType)]
    loss_weight: Weight
    positive_weight: Weight
    tweedie_power: TweediePower
    given: Name
    missing: Annotated[Missing, expects_one_of(Missing)]


@_FORBID
class RawChunkKeys(TypedDict):
    """The keys of a chunk."""

    type: Annotated[RawFileType, expects_one_of(RawFileType)]
    files: Annotated[list[FilePath], Field(min_length=1), expects('a list, such as ["logs/*.csv.gz"]')]
    features: NotRequired[
        Annotated[list[_Column], Field(min_length=1), expects("a list of columns, such as [click, user_id]")]
    ]
    header: NotRequired[Boolean]
    separator: NotRequired[Annotated[str, _text('one character, such as ";" or "\\t",', 1)]]
    quote: NotRequired[Annotated[str | None, PlainValidator(_quote)]]
    trim: NotRequired[Boolean]
    null: NotRequired[Annotated[list[str], expects('a list of texts, such as ["NA", "?"]'), BeforeValidator(_as_list)]]


_Fractions = Annotated[
    dict[Name, Share],
    Field(min_length=1),
    expects("the fraction of each mapping but train, such as {valid: 0.1, test: 0.1}"),
]
_SplitKeys = TypedDict(
    "_SplitKeys",
    {
        "from": _NameOrList,
        "time": _Column,
        "valid_from": _Time,
        "test_from": _Time,
        "format": _Format,
        "unit": _Unit,
        "random": _Fractions,
        "last": _Fractions,
        "by": _Column,
        "key": _ColumnOrList,
    },
    total=False,
)
SplitKeys: Any = _FORBID(_SplitKeys)

_Feature = Annotated[RawFeatureKeys, expects("a mapping, such as {encode: {hash: 1000}}"), NoneIsMapping]
_Chunk = Annotated[RawChunkKeys, expects("a mapping with type and files"), BeforeValidator(_null_as_text)]
_Chunks = Annotated[
    list[_Chunk],
    Field(min_length=1),
    expects("a list of chunks, each beginning with '- ', with type and files"),
    NoneIsList,
]


@_FORBID
class _RawDocument(TypedDict):
    feature_spec: Annotated[dict[Name, _Feature], expects("a mapping"), NoneIsMapping]
    source_spec: Annotated[dict[Name, _Chunks], expects("a mapping"), NoneIsMapping]
    channel_spec: Annotated[ChannelKeys, expects("a mapping"), NoneIsMapping]
    metadata: NotRequired[Annotated[dict[Any, Any], expects("a mapping"), NoneIsMapping]]
    score: NotRequired[FormulaText]
    split: NotRequired[Annotated[SplitKeys, expects("a mapping, such as {from: logs, random: {test: 0.2}}")]]
    where: NotRequired[_Condition]
    sample_weight: NotRequired[_Column]
    keep_negatives: NotRequired[Share]
    keep: NotRequired[Annotated[list[_Column], expects("a list of columns, such as [user_id]"), NoneIsList]]
    shuffle: NotRequired[Boolean]
    seed: NotRequired[_Seed]


_DOCUMENT = TypeAdapter(Annotated[_RawDocument, expects("a mapping with feature_spec, source_spec and channel_spec")])
RAW_SECTIONS = tuple(_RawDocument.__annotations__)
# Keys by which a raw specification differs from that of an encoded dataset.
_RAW_ONLY_SECTIONS = frozenset(RAW_SECTIONS).difference(SECTIONS, (SCORE,))
_RAW_ONLY_KEYS = frozenset(RawFeatureKeys.__annotations__).difference(Feature.__dataclass_fields__)
_RAW_ONLY_CHUNK_KEYS = frozenset(RawChunkKeys.__annotations__).difference(CHUNK_KEYS)


_FEATURE_KEYS = tuple(RawFeatureKeys.__annotations__)
# What the keys of each mapping in the document are called, and which there are.
KEYS_OF: dict[str, tuple[str, tuple[str, ...]]] = {
    "document": ("the specification", RAW_SECTIONS),
    "feature_spec": ("a feature", _FEATURE_KEYS),
    "source_spec": ("a chunk", tuple(RawChunkKeys.__annotations__)),
    "channel_spec": ("channel_spec", CHANNELS),
    "sequence": ("a sequence", SEQUENCE_KEYS),
    "split": ("split", tuple(_SplitKeys.__annotations__)),
    "encode": ("encode", tuple(EncodeKeys.__annotations__)),
    "step": ("a step", STEPS),
    "vocabulary": ("vocabulary", tuple(_VocabularyKeys.__annotations__)),
    "target": ("target", tuple(_TargetKeys.__annotations__)),
    "history": ("history", tuple(HistoryKeys.__annotations__)),
    "count": ("count", tuple(CountKeys.__annotations__)),
}


# What remains of a document without its mistakes.


@dataclass
class RawParts:
    """The well-formed parts of a raw specification.

    Attributes:
        features: {feature name: its keys}, of all features with a valid name.
        sources: {source name: its chunks}, of all sources with a valid name; empty where one is malformed.
        channels: {channel name: feature names}, of all channels; those of all sequences together.
        sequences: the sequences of the channel `sequence`.
        outputs: {feature name: names that its encoding may add to the features}, well-formed or not.
        others: values of the other sections, by name of the section.
        incomplete: locations of the sections, features, sources and channels in which something was malformed.
    """

    features: dict[str, RawFeatureKeys] = field(default_factory=dict)
    sources: dict[str, list[RawChunkKeys]] = field(default_factory=dict)
    channels: dict[str, list[Entry]] = field(default_factory=dict)
    sequences: list[SequencePart] = field(default_factory=list)
    outputs: dict[str, list[str]] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)
    incomplete: set[KeyPath] = field(default_factory=set)


def read_raw_document(document: Any) -> tuple[RawParts, list[Problem]]:
    """Return the well-formed parts of a raw specification and the problems of everything else."""
    problems, wrong, incomplete = list[Problem](), set[KeyPath](), set[KeyPath]()
    try:
        valid: Any = _DOCUMENT.validate_python(document)
    except PydanticError as error:
        for details in error.errors(include_url=False):
            location = details["loc"]
            if location[:2] not in wrong or len(location) <= 2:  # nothing below a wrong name
                problems.append(_problem(details, document))
            wrong.add(location[:-1] if location[-1:] == ("[key]",) else location)
            incomplete |= incomplete_after(location, details["type"])
        valid = _DOCUMENT.validate_python(_without_mistakes(document, wrong))
    channels, sequences = channel_entries(_section(document, "channel_spec"), wrong)
    return RawParts(
        features=valid["feature_spec"],
        sources={
            name: valid["source_spec"].get(name, [])
            for name in _section(document, "source_spec")
            if name_mistake(name) is None
        },
        channels=channels,
        sequences=sequences,
        outputs={name: _outputs(keys) for name, keys in _section(document, "feature_spec").items()},
        others={section: valid[section] for section in RAW_SECTIONS[3:] if section in valid},
        incomplete=incomplete,
    ), problems


def _outputs(keys: Any) -> list[str]:
    """Return the names of features that an encoding may add, whatever else is wrong with it."""
    encode = _section(keys, "encode")
    outputs = _section(encode, "target").get("outputs")
    names = [keys.get("indicator") if isinstance(keys, dict) else None, encode.get("indicator")]
    return [name for name in [*names, *(outputs if isinstance(outputs, list) else [])] if isinstance(name, str)]


def raw_key_of(document: Any) -> str | None:
    """Return the path of the first key that only a raw specification has, or None if there is none."""
    sections = document if isinstance(document, dict) else {}
    paths: list[KeyPath] = [(key,) for key in sections if key in _RAW_ONLY_SECTIONS]
    for name, keys in _section(document, "feature_spec").items():
        keys = keys if isinstance(keys, dict) else {}
        paths += [("feature_spec", name, key) for key in keys if key in _RAW_ONLY_KEYS]
        paths += [("feature_spec", name, "dtype")] if keys.get("dtype") in ("string", "timestamp") else []
    for name, chunks in _section(document, "source_spec").items():
        for index, chunk in enumerate(chunks if isinstance(chunks, list) else []):
            keys = chunk if isinstance(chunk, dict) else {}
            paths += [("source_spec", name, index, key) for key in keys if key in _RAW_ONLY_CHUNK_KEYS]
    return path_of(*paths[0]) if paths else None


def _section(document: Any, name: str) -> dict[Any, Any]:
    section = document.get(name) if isinstance(document, dict) else None
    return section if isinstance(section, dict) else {}


def _without_mistakes(document: Any, wrong: set[KeyPath]) -> dict[str, Any]:
    """Return a document without sources, keys of features and sections in which something is wrong."""
    sections, keys, parts = ({location[:depth] for location in wrong} for depth in (1, 3, 2))
    others = document if isinstance(document, dict) else {}
    cleaned = {name: others[name] for name in RAW_SECTIONS[3:] if name in others and (name,) not in sections}
    cleaned |= {"feature_spec": {}, "channel_spec": {}}
    cleaned["source_spec"] = {
        name: chunks
        for name, chunks in _section(document, "source_spec").items()
        if name_mistake(name) is None and ("source_spec", name) not in parts
    }
    for name, stated in _section(document, "feature_spec").items():
        if name_mistake(name) is None:
            stated = stated if isinstance(stated, dict) else {}
            right = [key for key in _FEATURE_KEYS if key in stated and ("feature_spec", name, key) not in keys]
            cleaned["feature_spec"][name] = {key: stated[key] for key in right}
    return cleaned


def _problem(error: ErrorDetails, document: Any) -> Problem:
    """Convert an error of pydantic to a problem."""
    *parent, key = _as_written(error["loc"], document) or ("document",)
    if key == "[key]":
        return Problem(path_of(*parent[:-1], error["input"]), error["msg"])
    if error["type"] == "missing":
        where = KEYS_OF.get(_kind(parent), ("this section", ()))[0]
        return Problem(
            path_of(*parent, key), f"is missing from {where}; add it" if parent else "this section is missing"
        )
    if error["type"] in _UNKNOWN_KEY:
        return _unknown_key(parent, error["input"] if error["type"] == "invalid_key" else key)
    path = f"{parent[0]}[{key}]" if len(parent) == 1 and isinstance(key, int) else path_of(*parent, key)
    return Problem(path, error["msg"])


def _as_written(location: KeyPath, document: Any) -> KeyPath:
    """Return a location without the key `steps` where the document has the list of steps itself."""
    if location[:1] == ("feature_spec",) and location[2:4] == ("encode", "steps"):
        keys = _section(document, "feature_spec").get(location[1])
        if isinstance(keys, dict) and not isinstance(keys.get("encode"), dict):
            return location[:3] + location[4:]
    return location


def _kind(parent: list[int | str]) -> str:
    """Return what a location holds, as a key of `KEYS_OF`."""
    if is_sequence(parent):
        return "sequence"
    names = [key for key in parent if isinstance(key, str)]
    if len(parent) < 3 or parent[0] == "source_spec":
        return names[0] if names else "document"
    return "step" if isinstance(parent[-1], int) else names[-1]


def _unknown_key(parent: list[int | str], key: Any) -> Problem:
    path = path_of(*parent, key) if parent else f"document.{path_of(key)}"
    if parent == ["channel_spec"] and key == "categorical":
        return Problem(path, CATEGORICAL_HELP)
    if len(parent) == 2 and parent[0] == "feature_spec" and key == "role":
        return Problem(path, "name the column of the sample weight at the top level: `sample_weight: COLUMN`")
    if parent == ["split"] and key == "seed":
        return Problem(path, "there is one seed for all draws; write `seed:` at the top level")
    kind, known = KEYS_OF.get(_kind(parent), ("a mapping", ()))
    return Problem(path, f"unknown key of {kind}", str(key), known)
