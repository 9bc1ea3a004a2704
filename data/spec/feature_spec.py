"""The feature specification: the columns of a dataset, the files that hold them, and what each column is used for."""

import contextlib
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.representer import SafeRepresenter

from data.errors import DataError, nearest
from data.spec.document import Entry, Problem, format_problems
from data.spec.features import (
    CHANNELS,
    LABEL,
    MAP,
    MULTIHOT,
    NUMERICAL,
    ONEHOT,
    SAMPLE_WEIGHT,
    SCORE,
    SEQUENCE,
    SERVE_CHANNELS,
    VECTOR,
    Chunk,
    Feature,
    FeatureSequence,
    default_encoder,
)
from data.spec.found_files import find_sources
from data.spec.raw.document import raw_key_of
from data.spec.validators import check_document
from data.spec.yaml_reader import read_yaml
from data.storage.file_patterns import located
from data.storage.files import create_new, temporary_beside

MAX_PROBLEMS_SHOWN = 100
RAW_HELP = (
    "only a raw specification says this; turn its files into a dataset with `python preprocess.py --input RAW --output "
    "DATA`, and pass DATA instead"
)
_PLAIN_TEXT = re.compile(
    r"(?!(y|n|yes|no|on|off|true|false|null)$)[a-z_][\w./-]*( [\w./-]+)*", re.ASCII | re.IGNORECASE
)


class FeatureSpecError(DataError):
    """An invalid specification; the message lists the first hundred problems.

    Attributes:
        source: file (or other origin) of the specification.
        problems: every problem, each as "location: what is wrong and what to write instead".
    """

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = list(problems)
        count = f"{len(self.problems)} problem{'s' if len(self.problems) > 1 else ''}"
        lines = [f"{source}: {count} in the feature specification:", *self.problems[:MAX_PROBLEMS_SHOWN]]
        if len(self.problems) > MAX_PROBLEMS_SHOWN:
            lines.append(f"... and {len(self.problems) - MAX_PROBLEMS_SHOWN} more")
        super().__init__("\n  ".join(lines))


@dataclass(frozen=True)
class FeatureSpec:
    """A dataset as described by its YAML file.

    `read` and `from_dict` validate everything; an instance constructed directly is validated when it is written.

    Attributes:
        folder: folder that the paths in `sources` are relative to.
        features: {feature name: feature}, in the order of the file.
        sources: {mapping name ("train", "test", ...): chunks of the mapping}.
        channels: {channel name: feature names}; always contains all channels, unused ones empty. The channel `sequence`
            has the features of all `sequences`, one sequence after the other.
        metadata: free-form information about the dataset, as in the file.
        sequences: the sequences of the channel `sequence`, in the order of the file.
        score: formula that combines predictions and numerical features into the output `score`; None for no score.
    """

    folder: Path
    features: dict[str, Feature]
    sources: dict[str, tuple[Chunk, ...]]
    channels: dict[str, tuple[str, ...]]
    metadata: dict[str, Any]
    sequences: tuple[FeatureSequence, ...] = ()
    score: str | None = None

    @classmethod
    def read(cls, path: Path, *, allow_outside_paths: bool = False, has_files: bool = True) -> "FeatureSpec":
        """Read and validate a YAML file, and find the files of its folders and patterns.

        Args:
            path: path of the file.
            allow_outside_paths: accept data files outside of the specification's folder; only for a trusted
                specification.
            has_files: False for the specification in a model's folder, whose data files are elsewhere: folders and
                patterns stay as they are.

        Raises:
            DataError: The file cannot be read or is not plain YAML.
            FeatureSpecError: The specification is invalid; `problems` lists every violation.
        """
        path = Path(path)
        document, folder = read_yaml(path), path.absolute().parent
        spec = cls.from_dict(document, folder, source=str(path), allow_outside_paths=allow_outside_paths)
        if not has_files:
            return spec
        sources, problems = find_sources(spec.sources, folder, allow_outside_paths=allow_outside_paths)
        if problems:
            raise FeatureSpecError(str(path), format_problems(problems))
        return replace(spec, sources=sources)

    @classmethod
    def from_dict(
        cls,
        document: Any,
        folder: Path,
        source: str = "feature specification",
        *,
        allow_outside_paths: bool = False,
    ) -> "FeatureSpec":
        """Validate a document and build the specification.

        Args:
            document: root of the document, as the YAML reader returns it.
            folder: folder that the paths in the document are relative to.
            source: origin of the document, for error messages.
            allow_outside_paths: accept data files outside of `folder`; only for a trusted specification.

        Raises:
            FeatureSpecError: The document is invalid; `problems` lists every violation.
        """
        parts, problems = check_document(document, Path(folder), allow_outside_paths=allow_outside_paths)
        if problems:
            raw_key = raw_key_of(document)
            raise FeatureSpecError(source, format_problems([Problem(raw_key, RAW_HELP)] if raw_key else problems))
        return cls(
            folder=Path(folder),
            features=parts.features,
            sources={
                mapping: tuple(Chunk(chunk.type, _texts(chunk.features), _texts(chunk.files)) for chunk in chunks)
                for mapping, chunks in parts.sources.items()
            },
            channels={channel: _texts(parts.channels[channel]) for channel in CHANNELS},
            metadata=parts.metadata,
            sequences=tuple(part.with_length(parts.features) for part in parts.sequences),
            score=parts.score,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the document that `from_dict` reads back; values equal to their default are omitted."""
        return {
            "feature_spec": {name: _stated(feature) for name, feature in self.features.items()},
            "source_spec": {
                mapping: [
                    {"type": chunk.type, "features": list(chunk.features), "files": list(chunk.files)}
                    for chunk in chunks
                ]
                for mapping, chunks in self.sources.items()
            },
            "channel_spec": channel_keys(self.channels, self.sequences),
            **({} if self.score is None else {SCORE: self.score}),
            "metadata": dict(self.metadata),
        }

    def to_yaml(self) -> str:
        """Return the document of `to_dict` as YAML text.

        Raises:
            YAMLError: The metadata contains a value that YAML cannot represent.
        """
        yaml: Any = YAML(typ="safe", pure=True)
        yaml.Representer = PlainRepresenter
        yaml.sort_base_mapping_type_on_output = False
        yaml.default_flow_style = None
        text = io.StringIO()
        yaml.dump(self.to_dict(), text)
        return text.getvalue()

    def write(self, path: Path) -> None:
        """Write the specification as YAML, atomically.

        Paths in the file are relative to its own folder, so `path` is normally in `folder`.

        Raises:
            FeatureSpecError: The specification is invalid; nothing is written.
            DataError: The file cannot be written or read back; nothing is left behind.
        """
        path = Path(path)
        FeatureSpec.from_dict(self.to_dict(), path.absolute().parent, source=str(path))
        temporary = temporary_beside(path)
        try:
            with create_new(temporary) as file:
                file.write(self.to_yaml().encode())
                file.flush()
                os.fsync(file.fileno())
            # The reader is stricter than the dumper (size, depth, tags): replace `path` only by what can be read again.
            read_yaml(temporary)
            os.replace(temporary, path)
        except YAMLError as error:
            raise DataError(f"{path}: metadata contains a value that YAML cannot represent: {error}") from error
        except DataError as error:
            raise DataError(f"{path}: would not be readable: {error}") from error
        except OSError as error:
            raise DataError(f"{path}: cannot be written: {error}") from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def channel(self, name: str) -> tuple[Feature, ...]:
        """Return the features of a channel, in channel order."""
        return tuple(self.features[feature] for feature in self.channels.get(name, ()))

    @property
    def onehot(self) -> tuple[Feature, ...]:
        """Features with exactly one id per row, except for those known only in training."""
        return tuple(feature for feature in self.channel(ONEHOT) if feature.serve is None)

    @property
    def multihot(self) -> tuple[Feature, ...]:
        """Features with a list of up to `max_hotness` ids per row."""
        return self.channel(MULTIHOT)

    @property
    def weighted(self) -> tuple[Feature, ...]:
        """Multi-hot features whose ids have weights, in channel order."""
        return tuple(feature for feature in self.multihot if feature.weights is not None)

    @property
    def list_weights(self) -> tuple[Feature, ...]:
        """Columns with the weights of the ids of each feature in `weighted`, in the same order."""
        return tuple(self.features[feature.weights] for feature in self.multihot if feature.weights is not None)

    @cached_property
    def ids_of_weights(self) -> dict[str, Feature]:
        """{name of a column with weights of ids: the feature that has these ids}, whether or not it is in a channel."""
        return {feature.weights: feature for feature in self.features.values() if feature.weights is not None}

    @property
    def sequence_ids(self) -> tuple[Feature, ...]:
        """Features of sequences that have an id per step, sequence by sequence."""
        steps = (self.features[name] for sequence in self.sequences for name in sequence.features)
        return tuple(feature for feature in steps if feature.cardinality is not None)

    @property
    def sequence_numbers(self) -> tuple[Feature, ...]:
        """Features of sequences that have a number per step, sequence by sequence."""
        steps = (self.features[name] for sequence in self.sequences for name in sequence.features)
        return tuple(feature for feature in steps if feature.cardinality is None)

    @cached_property
    def sequence_of(self) -> dict[str, FeatureSequence]:
        """{feature name: the sequence that it belongs to}."""
        return {name: sequence for sequence in self.sequences for name in sequence.features}

    @property
    def id_lists(self) -> tuple[Feature, ...]:
        """Features with a list of ids per row: multi-hot features, then those of sequences."""
        return self.multihot + self.sequence_ids

    @property
    def number_lists(self) -> tuple[Feature, ...]:
        """Columns with a list of numbers per row: weights of ids of multi-hot features, then numbers of sequences."""
        return self.list_weights + self.sequence_numbers

    @property
    def categorical(self) -> tuple[Feature, ...]:
        """Features with ids: one-hot, multi-hot, then those of sequences."""
        return self.onehot + self.id_lists

    @property
    def numerical(self) -> tuple[Feature, ...]:
        """Features with one number per row, except for those known only in training."""
        return tuple(feature for feature in self.channel(NUMERICAL) if feature.serve is None)

    @property
    def training_only(self) -> tuple[Feature, ...]:
        """Features known only in training: those with one id per row, then those with one number."""
        known = (feature for channel in SERVE_CHANNELS for feature in self.channel(channel))
        return tuple(feature for feature in known if feature.serve is not None)

    @property
    def vectors(self) -> tuple[Feature, ...]:
        """Features with a vector of `dimension` numbers that every row has."""
        return tuple(feature for feature in self.channel(VECTOR) if feature.pretrained is None)

    @property
    def pretrained(self) -> tuple[Feature, ...]:
        """Features with a vector of `dimension` numbers that is looked up in a file."""
        return tuple(feature for feature in self.channel(VECTOR) if feature.pretrained is not None)

    @property
    def labels(self) -> tuple[Feature, ...]:
        """Features that the model predicts, one task each."""
        return self.channel(LABEL)

    @property
    def inputs(self) -> tuple[Feature, ...]:
        """Inputs of the model that rows have: one-hot, multi-hot, numerical, those of sequences, then vectors."""
        steps = self.sequence_ids + self.sequence_numbers
        return self.onehot + self.multihot + self.numerical + steps + self.vectors

    @cached_property
    def channel_of(self) -> dict[str, str]:
        """{feature name: channel} of every feature in a channel; the first channel if it is in several."""
        return {name: channel for channel, names in reversed(self.channels.items()) for name in names}

    @property
    def map_feature(self) -> Feature | None:
        """The feature whose value groups rows for metrics within groups, if any; it may also be a one-hot feature."""
        return next(iter(self.channel(MAP)), None)

    @property
    def sample_weight(self) -> Feature | None:
        """The feature with the sample weights, if any; it is in no channel."""
        return next((feature for feature in self.features.values() if feature.role == SAMPLE_WEIGHT), None)

    def chunks(self, mapping: str) -> tuple[Chunk, ...]:
        """Return the chunks of a mapping.

        Raises:
            DataError: There is no such mapping; the message lists the existing ones.
        """
        if mapping not in self.sources:
            near = nearest(mapping, self.sources)
            hint = f"; did you mean {near!r}?" if near else ""
            raise DataError(f"no mapping {mapping!r} in source_spec; expected one of {', '.join(self.sources)}{hint}")
        return self.sources[mapping]

    def files(self, mapping: str) -> tuple[Path, ...]:
        """Return the absolute paths of a mapping's files, chunk by chunk, in row order within each chunk."""
        return tuple(self.path(file) for chunk in self.chunks(mapping) for file in chunk.files)

    def path(self, name: str) -> Path:
        """Return the absolute path of a file that the specification names; that of its local copy for a URL."""
        return located(self.folder.absolute(), name)

    def only(self, channel: str, *, with_sample_weight: bool = False) -> "FeatureSpec":
        """Return a specification with the features of a single channel, so that no other column is read."""
        features = list(self.channel(channel))
        if with_sample_weight and self.sample_weight is not None:
            features.append(self.sample_weight)
        names = {channel: self.channels.get(channel, ())}
        return replace(self, features={feature.name: feature for feature in features}, channels=names, sequences=())

    def with_sources(self, sources: Mapping[str, Sequence[Chunk]], folder: Path) -> "FeatureSpec":
        """Return a specification with the same features and channels, but other files, located under `folder`.

        Raises:
            FeatureSpecError: The new sources are invalid.
        """
        chunks = {mapping: tuple(parts) for mapping, parts in sources.items()}
        moved = replace(self, folder=Path(folder), sources=chunks)
        return FeatureSpec.from_dict(moved.to_dict(), folder)


class PlainRepresenter(SafeRepresenter):
    """Writes values in full instead of aliases, and quotes every string that some reader might not read as a string."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_scalar(self, tag: Any, value: str, style: str | None = None, anchor: Any = None) -> Any:
        # YAML 1.1 reads "no" as false and "1:30" as 90, and the emitter does not quote every `:`, `?` and line end.
        if str(tag).endswith(":str") and not _PLAIN_TEXT.fullmatch(value):
            style = '"'
        return super().represent_scalar(tag, value, style, anchor)


def channel_keys(channels: Mapping[str, Sequence[str]], sequences: Sequence[FeatureSequence]) -> dict[str, Any]:
    """Return the section `channel_spec` of a document; without the channels `sequence` and `vector` if empty."""
    keys: dict[str, Any] = {channel: list(channels.get(channel, ())) for channel in CHANNELS if channel != SEQUENCE}
    if not keys[VECTOR]:
        del keys[VECTOR]
    return keys | ({SEQUENCE: {each.name: _sequence_keys(each) for each in sequences}} if sequences else {})


def _sequence_keys(sequence: FeatureSequence) -> dict[str, Any]:
    keys: dict[str, Any] = {"features": list(sequence.features)}
    if sequence.target:
        keys["target"] = list(sequence.target)
    if sequence.encoder != default_encoder(bool(sequence.target)):
        keys["encoder"] = sequence.encoder
    return keys | ({"order": sequence.order} if sequence.order != "newest_last" else {})


def _texts(entries: Sequence[Entry]) -> tuple[str, ...]:
    return tuple(entry.text for entry in entries)


def _stated(feature: Feature) -> dict[str, Any]:
    """Return the keys of a feature whose values differ from the default."""
    keys = [field for field in fields(feature) if field.name != "name"]
    return {key.name: getattr(feature, key.name) for key in keys if getattr(feature, key.name) != key.default}
