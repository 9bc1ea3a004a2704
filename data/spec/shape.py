"""Splits a document into the parts of a specification, checking types, names and single values.

Well-formed content becomes a part, malformed content a problem; `data.spec.rules` then checks the parts
against each other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from data.errors import described
from data.spec.parts import CHANNELS, CHUNK_KEYS, CHUNK_TYPES, REQUIRED_SECTIONS, SECTIONS, Feature
from data.spec.problems import Problem, place_of
from data.spec.values import FEATURE_VALUES, file_mistake, name_mistake, one_of

# Words of the public DLRM recipe's specifications that are not valid here.
SPLIT_BINARY = "split_binary"
SPLIT_BINARY_HELP = (
    "split_binary files, which the DLRM recipe makes, are not read; write the columns as parquet, or name the CSV "
    "files that they were made of (type: csv) and run transcode.py"
)
CATEGORICAL_HELP = (
    "is no channel; write onehot_categorical where rows have one id, multihot_categorical where they have lists of ids"
)


class Entry(NamedTuple):
    """A text in a list of the document, with its location."""

    place: str
    text: str


@dataclass
class ChunkPart:
    """The well-formed content of a chunk.

    Attributes:
        place: location of the chunk in the document.
        type: file type of the chunk, empty if it is missing or invalid.
        features: valid entries of the list of features.
        files: valid entries of the list of files.
    """

    place: str
    type: str = ""
    features: list[Entry] = field(default_factory=list)
    files: list[Entry] = field(default_factory=list)


@dataclass
class Parts:
    """The well-formed parts of a document.

    Attributes:
        features: {feature name: feature}, of all features with a valid name.
        stated: {feature name: keys stated in the document}.
        sources: {mapping name: chunks}.
        channels: {channel name: feature names}.
        metadata: metadata section of the document.
        complete: locations that were read without a problem; only there does an absence mean anything. "feature_spec"
            stands for the names of all features and "source_spec" for those of all mappings; below them, each feature,
            mapping and channel has its own location.
    """

    features: dict[str, Feature] = field(default_factory=dict)
    stated: dict[str, frozenset[str]] = field(default_factory=dict)
    sources: dict[str, list[ChunkPart]] = field(default_factory=dict)
    channels: dict[str, list[Entry]] = field(default_factory=dict)
    metadata: dict[Any, Any] = field(default_factory=dict)
    complete: set[str] = field(default_factory=set)


def read_parts(document: Any) -> tuple[Parts, list[Problem]]:
    """Splits a document into its well-formed parts and the problems of everything else."""
    parts, problems = Parts(), list[Problem]()
    if not isinstance(document, dict):
        return parts, [Problem("document", f"is {described(document)}; write a mapping with {', '.join(SECTIONS)}")]
    for key in document:
        if key not in SECTIONS:
            problems.append(Problem(place_of("document", key), "is no section", str(key), SECTIONS))
    readers = (_read_features, _read_sources, _read_channels, _read_metadata)
    for section, reader in zip(SECTIONS, readers, strict=True):
        content = document.get(section)
        if section in document and (isinstance(content, dict) or content is None):
            reader(content or {}, parts, problems)
        elif section in document:
            problems.append(Problem(section, f"is {described(content)}; write a mapping"))
        elif section in REQUIRED_SECTIONS:
            problems.append(Problem(section, "this section is missing"))
    return parts, problems


def _read_features(section: dict[Any, Any], parts: Parts, problems: list[Problem]) -> None:
    names = _read_names(section, "feature_spec", parts, problems)
    for name in names:
        before = len(problems)
        place, entry = place_of("feature_spec", name), section[name]
        if entry is not None and not isinstance(entry, dict):
            problems.append(Problem(place, f"is {described(entry)}; write a mapping, such as {{dtype: int64}}"))
            entry = None
        values = _feature_values(entry or {}, place, problems)
        parts.features[name] = Feature(name=name, **values)
        parts.stated[name] = frozenset(key for key in entry or {} if isinstance(key, str))
        if len(problems) == before:
            parts.complete.add(place)


def _read_names(section: dict[Any, Any], place: str, parts: Parts, problems: list[Problem]) -> list[str]:
    """Returns the keys of a section that are valid names, and adds a problem for each other key."""
    names = [name for name in section if name_mistake(name) is None]
    problems += [Problem(place_of(place, key), mistake) for key in section if (mistake := name_mistake(key))]
    if len(names) == len(section):
        parts.complete.add(place)
    return names


def _feature_values(entry: dict[Any, Any], place: str, problems: list[Problem]) -> dict[str, Any]:
    values = {}
    for key, value in entry.items():
        if key not in FEATURE_VALUES:
            problems.append(Problem(place_of(place, key), "is no key of a feature", str(key), FEATURE_VALUES))
            continue
        try:
            values[key] = FEATURE_VALUES[key](value)
        except ValueError as error:
            problems.append(Problem(place_of(place, key), str(error)))
    return values


def _read_sources(section: dict[Any, Any], parts: Parts, problems: list[Problem]) -> None:
    for mapping in _read_names(section, "source_spec", parts, problems):
        before = len(problems)
        place = place_of("source_spec", mapping)
        chunks = _read_chunks(section[mapping], place, problems)
        parts.sources[mapping] = [_read_chunk(chunk, f"{place}[{i}]", problems) for i, chunk in enumerate(chunks)]
        if len(problems) == before:
            parts.complete.add(place)


def _read_chunks(chunks: Any, place: str, problems: list[Problem]) -> Sequence[Any]:
    """Returns the items of a mapping's list of chunks, unchecked; an empty sequence if it is not a list."""
    if isinstance(chunks, dict):
        problems.append(Problem(place, "is a mapping; write a list of chunks, each beginning with '- '"))
    elif chunks is None or chunks == []:
        problems.append(Problem(place, f"has no chunk; write a list of chunks, each with {', '.join(CHUNK_KEYS)}"))
    elif not isinstance(chunks, list | tuple):
        problems.append(Problem(place, f"is {described(chunks)}; write a list of chunks"))
    return chunks if isinstance(chunks, list | tuple) else ()


def _read_chunk(chunk: Any, place: str, problems: list[Problem]) -> ChunkPart:
    part = ChunkPart(place)
    if not isinstance(chunk, dict):
        problems.append(Problem(place, f"is {described(chunk)}; write a mapping with {', '.join(CHUNK_KEYS)}"))
        return part
    for key in chunk:
        if key not in CHUNK_KEYS:
            problems.append(Problem(place_of(place, key), "is no key of a chunk", str(key), CHUNK_KEYS))
    for key in CHUNK_KEYS:
        if key not in chunk:
            problems.append(Problem(f"{place}.{key}", "is missing; a chunk has type, features and files"))
    if "type" in chunk:
        part.type = _read_type(chunk["type"], place, problems)
    if "features" in chunk:
        part.features = _read_entries(chunk["features"], f"{place}.features", name_mistake, problems)
    if "files" in chunk:
        part.files = _read_entries(chunk["files"], f"{place}.files", file_mistake, problems)
    return part


def _read_type(value: Any, place: str, problems: list[Problem]) -> str:
    """Returns the file type of a chunk, or an empty string if it is invalid."""
    try:
        return one_of(CHUNK_TYPES)(value)
    except ValueError as error:
        is_foreign = value == SPLIT_BINARY  # at one location, so that it is reported once for all chunks
        problems.append(
            Problem("source_spec", SPLIT_BINARY_HELP) if is_foreign else Problem(f"{place}.type", str(error))
        )
    return ""


def _read_channels(section: dict[Any, Any], parts: Parts, problems: list[Problem]) -> None:
    unknown = [key for key in section if key not in CHANNELS]
    for key in unknown:
        place = place_of("channel_spec", key)
        problems.append(
            Problem(place, CATEGORICAL_HELP)
            if key == "categorical"
            else Problem(place, "is no channel", str(key), CHANNELS)
        )
    for channel in CHANNELS:
        before = len(problems)
        place, names = f"channel_spec.{channel}", section.get(channel)
        if names not in (None, [], ()):
            parts.channels[channel] = _read_entries(names, place, name_mistake, problems)
        # An unknown channel may be a misspelling of this one.
        if len(problems) == before and not unknown:
            parts.complete.add(place)


def _read_metadata(section: dict[Any, Any], parts: Parts, problems: list[Problem]) -> None:
    parts.metadata = section


def _read_entries(
    values: Any, place: str, mistake_in: Callable[[Any], str | None], problems: list[Problem]
) -> list[Entry]:
    """Returns the valid texts of a list, and adds problems for invalid ones and for an empty list."""
    if not isinstance(values, list | tuple):
        example = f": [{values}]" if isinstance(values, str) and len(values) < 80 else ""
        problems.append(Problem(place, f"is {described(values)}; write a list{example}"))
        return []
    if not values:
        problems.append(Problem(place, "is an empty list; name at least one"))
    entries = [Entry(f"{place}[{i}]", value) for i, value in enumerate(values)]
    problems += [Problem(entry.place, mistake) for entry in entries if (mistake := mistake_in(entry.text))]
    return [entry for entry in entries if mistake_in(entry.text) is None]
