"""The shape of a specification's document, as pydantic types.

`read_document` separates the well-formed parts from everything else, which it reports as problems;
`data.spec.validators` then checks the parts against each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, with_config
from pydantic import ValidationError as PydanticError
from pydantic_core import ErrorDetails
from typing_extensions import TypedDict

from data.errors import listed, nearest, shown
from data.spec.document_values import (
    Boolean,
    ChannelKeys,
    Dimension,
    FilePath,
    FormulaText,
    Id,
    Name,
    NoneIsList,
    NoneIsMapping,
    Number,
    NumpyDtype,
    PositiveInteger,
    SequenceKeys,
    Share,
    TaskType,
    TweediePower,
    Weight,
    Width,
    expects,
    expects_one_of,
)
from data.spec.features import (
    CATEGORICAL_CHANNELS,
    CHANNELS,
    CHUNK_KEYS,
    SCORE,
    SECTIONS,
    SEQUENCE,
    ChunkType,
    Combiner,
    Encoder,
    Feature,
    FeatureSequence,
    Missing,
    Order,
    Role,
    Side,
    Wide,
    default_encoder,
    name_mistake,
)

# Number of misspelled names for which the closest known name is searched: a search takes up to 0.1 s.
MAX_SUGGESTIONS = 20

# Words of the public DLRM recipe's specifications that are not valid here.
SPLIT_BINARY = "split_binary"
SPLIT_BINARY_HELP = (
    "split_binary files, which the DLRM recipe writes, are not supported; write the columns as parquet, or name the "
    "CSV files that they were generated from (type: csv) and run transcode.py"
)
CATEGORICAL_HELP = (
    "unknown channel; write onehot_categorical where rows have one id, multihot_categorical where they have lists"
)

KeyPath = tuple[int | str, ...]
_UNKNOWN_KEY = ("extra_forbidden", "invalid_key")  # types of pydantic's errors


class Problem(NamedTuple):
    """One violation of the specification's rules.

    Attributes:
        path: path in the document, such as `feature_spec.ad_id.cardinality`.
        message: what is wrong and what to write instead.
        wrong: an unknown name, for which the closest of `known` is suggested.
        known: valid names in place of `wrong`.
    """

    path: str
    message: str
    wrong: str = ""
    known: tuple[str, ...] | dict[str, Any] = ()


class Entry(NamedTuple):
    """A string in a list of the document, with its path in the document."""

    path: str
    text: str


def path_of(*location: Any) -> str:
    """Return the path of a location, such as `source_spec.train[0].type`, short and on one line for any keys."""
    path = ""
    for depth, key in enumerate(location):
        is_plain = isinstance(key, str) and key.isprintable() and 0 < len(key) <= 80
        # The document and its sections are mappings, in which a number is a wrong name and not an index.
        path += f"[{key}]" if isinstance(key, int) and depth > 1 else f".{key if is_plain else shown(key)}"
    return path.removeprefix(".") or "document"


def format_problems(problems: list[Problem]) -> list[str]:
    """Return one line per problem, with suggestions for the first misspelled names.

    Of several problems at one path only the first is kept: the others follow from it.
    """
    first: dict[str, Problem] = {}
    for problem in problems:
        first.setdefault(problem.path, problem)
    lines, suggestions = [], 0
    for path, message, wrong, known in first.values():
        if wrong:
            suggestions += 1
            near = nearest(wrong, known) if suggestions <= MAX_SUGGESTIONS else None
            expected = f"expected {listed(known, len(known)) or 'none'}"
            message += f"; did you mean {near!r}?" if near else f"; {expected}"
        lines.append(f"{path}: {message}")
    return lines


# The shape of the document.


@with_config(ConfigDict(extra="forbid"))
class _FeatureKeys(TypedDict, total=False):
    dtype: NumpyDtype
    cardinality: PositiveInteger
    max_hotness: PositiveInteger
    weights: Name
    combiner: Annotated[Combiner, expects_one_of(Combiner)]
    dimension: Dimension
    pretrained: FilePath
    of: Name
    trained: Boolean
    embedding_dim: Width
    table: Name
    wide: Annotated[Wide, expects_one_of(Wide)]
    null_id: Id
    unseen_id: Id
    oov_buckets: PositiveInteger
    unseen_with: Name
    unseen_value: Number
    serve: Number
    side: Annotated[Side, expects_one_of(Side)]
    task: Annotated[TaskType, expects_one_of(TaskType)]
    loss_weight: Weight
    positive_weight: Weight
    tweedie_power: TweediePower
    given: Name
    missing: Annotated[Missing, expects_one_of(Missing)]
    role: Annotated[Role, expects_one_of(Role)]
    negative_rate: Share


@with_config(ConfigDict(extra="forbid"))
class _ChunkKeys(TypedDict):
    type: Annotated[ChunkType, expects_one_of(ChunkType)]
    features: Annotated[list[Name], Field(min_length=1), expects("a list, such as [age, price]")]
    files: Annotated[list[FilePath], Field(min_length=1), expects("a list, such as [train_0.csv, train_1.csv]")]


_Feature = Annotated[_FeatureKeys, expects("a mapping, such as {dtype: int64}"), NoneIsMapping]
_Chunk = Annotated[_ChunkKeys, expects(f"a mapping with {', '.join(CHUNK_KEYS)}")]
_Chunks = Annotated[
    list[_Chunk],
    Field(min_length=1),
    expects(f"a list of chunks, each beginning with '- ', with {', '.join(CHUNK_KEYS)}"),
    NoneIsList,
]


@with_config(ConfigDict(extra="forbid"))
class _Document(TypedDict):
    feature_spec: Annotated[dict[Name, _Feature], expects("a mapping"), NoneIsMapping]
    source_spec: Annotated[dict[Name, _Chunks], expects("a mapping"), NoneIsMapping]
    channel_spec: Annotated[ChannelKeys, expects("a mapping"), NoneIsMapping]
    metadata: NotRequired[Annotated[dict[Any, Any], expects("a mapping"), NoneIsMapping]]
    score: NotRequired[FormulaText]


_FEATURE = TypeAdapter(_FeatureKeys)
_DOCUMENT = TypeAdapter(Annotated[_Document, expects(f"a mapping with {', '.join(SECTIONS)}")])
_FEATURE_KEYS = tuple(_FeatureKeys.__annotations__)
SEQUENCE_KEYS = tuple(SequenceKeys.__annotations__)


# What remains of a document without its mistakes.


@dataclass
class ChunkPart:
    """The well-formed content of a chunk.

    Attributes:
        path: path of the chunk in the document.
        type: file type of the chunk, empty if it is missing or invalid.
        features: valid entries of the list of features.
        files: valid entries of the list of files.
    """

    path: str
    type: str
    features: list[Entry]
    files: list[Entry]


@dataclass
class SequencePart:
    """The well-formed content of a sequence.

    Attributes:
        name: name of the sequence.
        path: path of the sequence in the document.
        features: valid entries of the list of features.
        target: valid entries of the list of targets.
        encoder: encoder of the sequence, the default one if it is missing or invalid.
        order: order of the steps, likewise.
    """

    name: str
    path: str
    features: list[Entry]
    target: list[Entry]
    encoder: Encoder
    order: Order

    def with_length(self, features: Mapping[str, Feature]) -> FeatureSequence:
        """Return the sequence of a valid document, as long as one of its features states; 1 if none does."""
        names, target = (tuple(entry.text for entry in entries) for entries in (self.features, self.target))
        lengths = [features[name].max_hotness for name in names]
        length = next((length for length in lengths if length is not None), 1)
        return FeatureSequence(self.name, names, target, self.encoder, self.order, length)


@dataclass
class Parts:
    """The well-formed parts of a document.

    Attributes:
        features: {feature name: feature}, of all features with a valid name.
        stated: {feature name: keys stated in the document}.
        sources: {mapping name: chunks}.
        channels: {channel name: feature names}, of all channels; those of all sequences together.
        sequences: the sequences of the channel `sequence`.
        steps_with_ids: names of the features of sequences that have ids.
        metadata: metadata section of the document.
        score: formula of the score; None if there is none or it is malformed.
        incomplete: locations of the sections, features, mappings and channels in which something was malformed. There,
            a missing name proves nothing: it may be the malformed one. A section of which all names are well-formed is
            complete, whatever is malformed below them.
    """

    features: dict[str, Feature] = field(default_factory=dict)
    stated: dict[str, frozenset[str]] = field(default_factory=dict)
    sources: dict[str, list[ChunkPart]] = field(default_factory=dict)
    channels: dict[str, list[Entry]] = field(default_factory=dict)
    sequences: list[SequencePart] = field(default_factory=list)
    steps_with_ids: set[str] = field(default_factory=set)
    metadata: dict[Any, Any] = field(default_factory=dict)
    score: str | None = None
    incomplete: set[KeyPath] = field(default_factory=set)

    def in_channels(self, *channels: str) -> list[Feature]:
        """Return the known features of some channels, each once."""
        names = dict.fromkeys(entry.text for channel in channels for entry in self.channels[channel])
        return [self.features[name] for name in names if name in self.features]

    @property
    def categorical(self) -> list[Feature]:
        """The known features that have ids, each once: those of the categorical channels, then those of sequences."""
        steps = [feature for feature in self.in_channels(SEQUENCE) if feature.name in self.steps_with_ids]
        return [*self.in_channels(*CATEGORICAL_CHANNELS), *steps]

    def channel_of(self) -> dict[str, str]:
        """Return {feature name: channel} of every feature in a channel; the first channel if it is in several."""
        return {entry.text: channel for channel in reversed(CHANNELS) for entry in self.channels[channel]}


def read_document(document: Any) -> tuple[Parts, list[Problem]]:
    """Return the well-formed parts of a document and the problems of everything else."""
    parts, problems = Parts(), list[Problem]()
    wrong: set[KeyPath] = set()
    try:
        _DOCUMENT.validate_python(document)
    except PydanticError as error:
        for details in error.errors(include_url=False):
            location = details["loc"]
            if location[:2] not in wrong or len(location) <= 2:  # nothing below a wrong name
                problems.append(_problem(details))
            wrong.add(location[:-1] if location[-1:] == ("[key]",) else location)
            parts.incomplete |= incomplete_after(location, details["type"])
    sections = document if isinstance(document, dict) else {}
    features, sources, channels, metadata = (
        {} if (section,) in wrong else sections.get(section) or {} for section in SECTIONS
    )
    for name, keys in features.items():
        if name_mistake(name) is None:
            known = _FEATURE_KEYS if ("feature_spec", name) not in wrong and keys else ()
            stated = {key: keys[key] for key in known if key in keys and ("feature_spec", name, key) not in wrong}
            parts.features[name] = Feature(name=name, **_FEATURE.validate_python(stated))
            parts.stated[name] = frozenset(stated)
    for name, chunks in sources.items():
        if name_mistake(name) is None:
            chunks = enumerate([] if ("source_spec", name) in wrong else chunks)
            parts.sources[name] = [_chunk_part(chunk, ("source_spec", name, i), wrong) for i, chunk in chunks]
    parts.channels, parts.sequences = channel_entries(channels, wrong)
    steps = parts.in_channels(SEQUENCE)
    parts.steps_with_ids = {feature.name for feature in steps if feature.cardinality is not None}
    parts.metadata = metadata
    parts.score = None if (SCORE,) in wrong else sections.get(SCORE)
    return parts, problems


def _problem(error: ErrorDetails) -> Problem:
    """Convert an error of pydantic to a problem."""
    *parent, key = error["loc"] or ("document",)
    if key == "[key]":
        return Problem(path_of(*parent[:-1], error["input"]), error["msg"])
    if error["type"] == "missing":
        return Problem(path_of(*parent, key), missing_key(parent))
    if error["type"] in _UNKNOWN_KEY:
        return _unknown_key(parent, error["input"] if error["type"] == "invalid_key" else key)
    if error["input"] == SPLIT_BINARY and parent[:1] == ["source_spec"]:
        return Problem("source_spec", SPLIT_BINARY_HELP)  # one path, so that it is reported once for all chunks
    return Problem(path_of(*parent, key), error["msg"])


def missing_key(parent: Sequence[int | str]) -> str:
    """Return what to say of a missing key of the mapping at this location of a document."""
    if not parent:
        return "this section is missing"
    return f"is missing; a {'sequence has features' if is_sequence(parent) else 'chunk has type, features and files'}"


def is_sequence(location: Sequence[int | str]) -> bool:
    """Return whether the mapping at a location of a document is a sequence."""
    return len(location) == 3 and list(location[:2]) == ["channel_spec", SEQUENCE]


def _unknown_key(parent: list[int | str], key: Any) -> Problem:
    path = path_of(*parent, key) if parent else f"document.{path_of(key)}"
    if parent == ["channel_spec"] and key == "categorical":
        return Problem(path, CATEGORICAL_HELP)
    kind, known = {
        "feature_spec": ("key of a feature", _FEATURE_KEYS),
        "source_spec": ("key of a chunk", CHUNK_KEYS),
        "channel_spec": ("channel", CHANNELS),
    }.get(str(parent[0]) if parent else "", ("section", (*SECTIONS, SCORE)))
    if is_sequence(parent):
        kind, known = "key of a sequence", SEQUENCE_KEYS
    return Problem(path, f"unknown {kind}", str(key), known)


def incomplete_after(location: KeyPath, error_type: str) -> set[KeyPath]:
    """Return the locations that an error leaves incomplete."""
    channels: set[KeyPath] = {("channel_spec", channel) for channel in CHANNELS}
    if not location:
        return {*((section,) for section in SECTIONS), *channels}
    if location == ("channel_spec",) or (
        location[0] == "channel_spec" and len(location) == 2 and error_type in _UNKNOWN_KEY
    ):
        return channels  # an unknown channel may be any of them, misspelled
    return {location[:1] if location[-1] == "[key]" else location[:2]}


def channel_entries(
    channels: Mapping[str, Any], wrong: set[KeyPath]
) -> tuple[dict[str, list[Entry]], list[SequencePart]]:
    """Return the valid names in each channel of `channel_spec`, and its sequences."""
    sequences = {} if ("channel_spec", SEQUENCE) in wrong else channels.get(SEQUENCE) or {}
    parts = [
        _sequence_part(name, {} if ("channel_spec", SEQUENCE, name) in wrong else keys, wrong)
        for name, keys in sequences.items()
        if name_mistake(name) is None
    ]
    entries = {
        channel: [entry for part in parts for entry in part.features]
        if channel == SEQUENCE
        else valid_entries(channels.get(channel), ("channel_spec", channel), wrong)
        for channel in CHANNELS
    }
    return entries, parts


def _sequence_part(name: str, keys: Mapping[str, Any], wrong: set[KeyPath]) -> SequencePart:
    location = ("channel_spec", SEQUENCE, name)
    features, target = (valid_entries(keys.get(key), (*location, key), wrong) for key in ("features", "target"))
    values = {key: keys[key] for key in ("encoder", "order") if key in keys and (*location, key) not in wrong}
    encoder = values.get("encoder", default_encoder(bool(target)))
    return SequencePart(name, path_of(*location), features, target, encoder, values.get("order", "newest_last"))


def _chunk_part(chunk: Any, location: KeyPath, wrong: set[KeyPath]) -> ChunkPart:
    values = {} if location in wrong else {key: chunk.get(key) for key in CHUNK_KEYS if (*location, key) not in wrong}
    lists = [valid_entries(values.get(key), (*location, key), wrong) for key in ("features", "files")]
    return ChunkPart(path_of(*location), values.get("type", ""), *lists)


def valid_entries(values: Any, location: KeyPath, wrong: set[KeyPath]) -> list[Entry]:
    """Return the valid strings of a list."""
    if location in wrong or not values:
        return []
    path = path_of(*location)
    return [Entry(f"{path}[{i}]", value) for i, value in enumerate(values) if (*location, i) not in wrong]
