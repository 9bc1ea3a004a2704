"""A feature specification: which columns a dataset has, which files hold them, and what each is for."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from data.atomic import create_new, temporary_beside
from data.errors import DataError
from data.specification.parts import CHANNELS, LABEL, MAP, MULTIHOT, NUMERICAL, ONEHOT, SAMPLE_WEIGHT, Chunk, Feature
from data.specification.problems import nearest, told
from data.specification.rules import check_document
from data.specification.shape import Entry
from data.specification.yaml_reader import read_yaml

__all__ = [
    "CHANNELS",
    "LABEL",
    "MAP",
    "MULTIHOT",
    "NUMERICAL",
    "ONEHOT",
    "Chunk",
    "Feature",
    "FeatureSpec",
    "FeatureSpecError",
]

MAX_PROBLEMS_SHOWN = 100
_FOREIGN_LINE_ENDS = "\r\x85\u2028\u2029"


class FeatureSpecError(DataError):
    """A specification that breaks the rules; the message shows the first hundred violations.

    Attributes:
        source: the file (or other origin) of the specification.
        problems: every violation, each as "place: what is wrong and what to write instead".
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
    """A dataset as its YAML file describes it.

    `read` and `from_dict` check everything; an instance made by hand is checked when it is written.

    Attributes:
        folder: the paths in `sources` are relative to it.
        features: every feature by name, in the order of the file.
        sources: mapping name ("train", "test", ...) -> its chunks.
        channels: channel name -> feature names; always all five channels, empty where not used.
        metadata: whatever else the file holds about the dataset.
    """

    folder: Path
    features: dict[str, Feature]
    sources: dict[str, tuple[Chunk, ...]]
    channels: dict[str, tuple[str, ...]]
    metadata: dict[str, Any]

    @classmethod
    def read(cls, path: Path, *, allow_outside_paths: bool = False) -> "FeatureSpec":
        """Read and check a YAML file.

        Args:
            path: of the file.
            allow_outside_paths: take files that do not lie under the file's folder; only for a specification
                that is trusted.

        Raises:
            DataError: the file cannot be read or is not plain YAML.
            FeatureSpecError: it breaks rules; `problems` lists all of them.
        """
        path = Path(path)
        document, folder = read_yaml(path), path.absolute().parent
        return cls.from_dict(document, folder, source=str(path), allow_outside_paths=allow_outside_paths)

    @classmethod
    def from_dict(
        cls,
        document: Any,
        folder: Path,
        source: str = "feature specification",
        *,
        allow_outside_paths: bool = False,
    ) -> "FeatureSpec":
        """Check a document and build the specification; errors name `source`. Otherwise like `read`.

        Raises:
            FeatureSpecError: the document breaks rules; `problems` lists all of them.
        """
        parts, problems = check_document(document, Path(folder), allow_outside_paths=allow_outside_paths)
        if problems:
            raise FeatureSpecError(source, told(problems))
        return cls(
            folder=Path(folder),
            features=parts.features,
            sources={
                mapping: tuple(Chunk(chunk.type, _texts(chunk.features), _texts(chunk.files)) for chunk in chunks)
                for mapping, chunks in parts.sources.items()
            },
            channels={channel: _texts(parts.channels.get(channel, [])) for channel in CHANNELS},
            metadata=parts.metadata,
        )

    def to_dict(self) -> dict[str, Any]:
        """The document that `from_dict` reads back; values that equal their default are left out."""
        return {
            "feature_spec": {name: _stated(feature) for name, feature in self.features.items()},
            "source_spec": {
                mapping: [
                    {"type": chunk.type, "features": list(chunk.features), "files": list(chunk.files)}
                    for chunk in chunks
                ]
                for mapping, chunks in self.sources.items()
            },
            "channel_spec": {channel: list(self.channels.get(channel, ())) for channel in CHANNELS},
            "metadata": dict(self.metadata),
        }

    def to_yaml(self) -> str:
        """The text of `to_dict` that `read` reads back.

        Raises:
            yaml.YAMLError: metadata holds a value that YAML has no form for.
        """
        return yaml.dump(
            self.to_dict(), Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, default_flow_style=None
        )

    def write(self, path: Path) -> None:
        """Write the specification as YAML, whole or not at all.

        Paths in the file are relative to where it lies, so `path` is normally in `folder`.

        Raises:
            FeatureSpecError: the specification breaks rules; nothing is written.
            DataError: the file cannot be written; nothing is left behind.
        """
        path = Path(path)
        FeatureSpec.from_dict(self.to_dict(), path.absolute().parent, source=str(path))
        temporary = temporary_beside(path)
        try:
            with create_new(temporary) as file:
                file.write(self.to_yaml().encode())
                file.flush()
                os.fsync(file.fileno())
            read_yaml(temporary)
            os.replace(temporary, path)
        except yaml.YAMLError as error:
            raise DataError(f"{path}: metadata holds a value that YAML has no form for: {error}") from error
        except DataError as error:
            raise DataError(f"{path}: would not be readable: {error}") from error
        except OSError as error:
            raise DataError(f"{path}: cannot be written: {error}") from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def channel(self, name: str) -> tuple[Feature, ...]:
        """The features of a channel, in channel order."""
        return tuple(self.features[feature] for feature in self.channels.get(name, ()))

    @property
    def onehot(self) -> tuple[Feature, ...]:
        """Features with exactly one id per row."""
        return self.channel(ONEHOT)

    @property
    def multihot(self) -> tuple[Feature, ...]:
        """Features with a list of up to `max_hotness` ids per row."""
        return self.channel(MULTIHOT)

    @property
    def numerical(self) -> tuple[Feature, ...]:
        """Features with one number per row."""
        return self.channel(NUMERICAL)

    @property
    def labels(self) -> tuple[Feature, ...]:
        """What is learned, one task each."""
        return self.channel(LABEL)

    @property
    def inputs(self) -> tuple[Feature, ...]:
        """What the model sees: one-hot, then multi-hot, then numerical features."""
        return self.onehot + self.multihot + self.numerical

    @cached_property
    def channel_of(self) -> dict[str, str]:
        """The channel of each feature that is in one; of one in two, the first of them."""
        return {name: channel for channel, names in reversed(self.channels.items()) for name in names}

    @property
    def map_feature(self) -> Feature | None:
        """The feature whose value groups rows for MAP, if any."""
        return next(iter(self.channel(MAP)), None)

    @property
    def sample_weight(self) -> Feature | None:
        """The column that weighs rows, if any; it is in no channel."""
        return next((feature for feature in self.features.values() if feature.role == SAMPLE_WEIGHT), None)

    def chunks(self, mapping: str) -> tuple[Chunk, ...]:
        """The chunks of a mapping.

        Raises:
            DataError: there is no such mapping; the message names those there are.
        """
        if mapping not in self.sources:
            near = nearest(mapping, self.sources)
            hint = f"; did you mean {near!r}?" if near else ""
            raise DataError(f"no mapping {mapping!r} in source_spec; there are {', '.join(self.sources)}{hint}")
        return self.sources[mapping]

    def files(self, mapping: str) -> tuple[Path, ...]:
        """Absolute paths of a mapping's files, chunk after chunk, in row order within each."""
        folder = self.folder.absolute()
        return tuple(folder / file for chunk in self.chunks(mapping) for file in chunk.files)

    def missing_files(self, mapping: str) -> list[Path]:
        """Those of `files(mapping)` that do not exist."""
        return [file for file in self.files(mapping) if not os.path.isfile(file)]

    def with_sources(self, sources: Mapping[str, Sequence[Chunk]], folder: Path) -> "FeatureSpec":
        """The same features and channels over other files, which lie under `folder`.

        Raises:
            FeatureSpecError: the new sources break rules.
        """
        chunks = {mapping: tuple(parts) for mapping, parts in sources.items()}
        moved = FeatureSpec(Path(folder), self.features, chunks, self.channels, self.metadata)
        return FeatureSpec.from_dict(moved.to_dict(), folder)


class _PlainDumper(yaml.SafeDumper):
    """Writes every value out, without aliases, and every text so that it stays the same."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_scalar(self, tag: str, value: str, style: str | None = None) -> yaml.ScalarNode:
        # PyYAML folds these line ends to blanks unless they are escaped.
        style = '"' if any(end in value for end in _FOREIGN_LINE_ENDS) else style
        return super().represent_scalar(tag, value, style)


def _texts(entries: Sequence[Entry]) -> tuple[str, ...]:
    return tuple(entry.text for entry in entries)


def _stated(feature: Feature) -> dict[str, Any]:
    """The keys of a feature that say something: those that differ from their default."""
    keys = [field for field in fields(feature) if field.name != "name"]
    return {key.name: getattr(feature, key.name) for key in keys if getattr(feature, key.name) != key.default}
