"""Reads raw specifications: checks that their parts fit together, and derives how every raw column is read."""

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from data.errors import shown
from data.spec.document import Problem, format_problems, path_of
from data.spec.feature_spec import FeatureSpecError
from data.spec.features import CHANNELS, LABEL, SAMPLE_WEIGHT, SCORE, name_mistake
from data.spec.raw.columns import RawColumns, ReadCondition, as_condition
from data.spec.raw.document import RawParts, raw_key_of, read_raw_document
from data.spec.raw.encodings import NUMBER_TYPES
from data.spec.raw.features import RawFeatures
from data.spec.raw.sources import RawSplit, check_chunks, check_files, chunk_of, listed_columns
from data.spec.raw.spec import RawSpec, Reading
from data.spec.validators import check_document
from data.spec.yaml_reader import read_yaml

ENCODED_HELP = (
    "this is the specification of a dataset with encoded ids; pass the dataset to main.py, or its CSV files to "
    "transcode.py. A raw specification, for preprocess.py, says how to encode its columns (`encode:`)"
)


def read_raw_spec(path: Path, *, allow_outside_paths: bool = False) -> RawSpec:
    """Read and validate the YAML file of a raw specification.

    Args:
        path: path of the file.
        allow_outside_paths: accept data files outside of the specification's folder; only for a trusted specification.

    Raises:
        DataError: The file cannot be read or is not plain YAML.
        FeatureSpecError: The specification is invalid; `problems` lists every violation.
    """
    path = Path(path)
    document, folder = read_yaml(path), path.absolute().parent
    return raw_spec_from_dict(document, folder, str(path), allow_outside_paths=allow_outside_paths)


def raw_spec_from_dict(
    document: Any, folder: Path, source: str = "raw specification", *, allow_outside_paths: bool = False
) -> RawSpec:
    """Validate the document of a raw specification and build the specification.

    Args:
        document: root of the document, as the YAML reader or a JSON reader returns it.
        folder: folder that the paths in the document are relative to.
        source: origin of the document, for error messages.
        allow_outside_paths: accept data files outside of `folder`; only for a trusted specification.

    Raises:
        FeatureSpecError: The document is invalid; `problems` lists every violation.
    """
    folder = Path(folder)
    parts, problems = read_raw_document(document)
    draft = _Draft(parts, RawColumns(listed=listed_columns(parts)))
    problems += draft.check()
    if not allow_outside_paths:
        problems += check_files(parts, folder)
    if not problems:
        return draft.build(folder)
    if raw_key_of(document) is None and not check_document(document, folder, allow_outside_paths=True)[1]:
        problems = [Problem("document", ENCODED_HELP)]
    raise FeatureSpecError(source, format_problems(problems))


def plain_document(document: Any) -> Any:
    """Return the document of a raw specification with values that JSON can represent: times as text, text keys.

    `raw_spec_from_dict` reads it as it reads the original.
    """
    if isinstance(document, dict):
        return {"null" if key is None else str(key): plain_document(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [plain_document(value) for value in document]
    return document.isoformat() if isinstance(document, date) else document


class _Draft:
    """A specification while it is checked."""

    def __init__(self, parts: RawParts, columns: RawColumns) -> None:
        self.parts, self.columns = parts, columns
        self.features, self.split = RawFeatures(parts, columns), RawSplit(parts, columns)
        self.where: ReadCondition | None = None
        self.sample_weight: Reading | None = None
        self.keep: list[Reading] = []

    def check(self) -> list[Problem]:
        """Check everything, in the order in which parts depend on each other, and return the problems."""
        self.features.check()
        self.split.check()
        self.features.find_computed()
        problems = [*check_chunks(self.parts), *self._check_lists(), *self._check_rows(), *self._check_names()]
        return [*self.features.problems, *self.split.problems, *self.columns.problems, *problems]

    def build(self, folder: Path) -> RawSpec:
        """Return the specification; there must be no problems."""
        parts, others = self.parts, self.parts.others
        computed = {name: found.reading for name, found in self.features.computed.items()}
        names, pretrained = self.columns.named(computed), self.features.pretrained()
        return RawSpec(
            folder=folder,
            readings={reading.name: reading for reading in names.values()} | computed,
            features=self.features.build(names),
            sources={name: tuple(chunk_of(chunk) for chunk in chunks) for name, chunks in parts.sources.items()},
            split=self.split.build(names),
            channels={
                channel: tuple(entry.text for entry in parts.channels[channel] if entry.text not in pretrained)
                for channel in CHANNELS
            },
            sequences=tuple(self.features.sequences()),
            pretrained=pretrained,
            keep=tuple(names[reading].name for reading in self.keep),
            where=as_condition(self.where, names),
            sample_weight=None if self.sample_weight is None else names[self.sample_weight].name,
            keep_negatives=others.get("keep_negatives"),
            shuffle=others.get("shuffle", False),
            seed=others.get("seed", 0),
            row_key=tuple(names[reading].name for reading in self.split.key),
            metadata=others.get("metadata", {}),
            score=others.get(SCORE),
        )

    def _check_rows(self) -> Iterator[Problem]:
        """Check the sections on rows and columns to keep."""
        others, columns = self.parts.others, self.columns
        if "where" in others:
            self.where = columns.condition(others["where"], "where")
        if "sample_weight" in others:
            self.sample_weight = columns.refer(others["sample_weight"], "sample_weight", NUMBER_TYPES, "float64")
        if "keep_negatives" in others and not self._has_binary_label():
            yield Problem("keep_negatives", "needs a binary label (a row is negative if all of them are 0); remove it")
        if SAMPLE_WEIGHT in self._stored() and ("sample_weight" in others or "keep_negatives" in others):
            message = "this is the name of the column of weights that is made; rename the feature"
            yield Problem(path_of("feature_spec", SAMPLE_WEIGHT), message)
        yield from self._check_kept(others.get("keep", []))

    def _check_kept(self, names: list[str]) -> Iterator[Problem]:
        """Check the raw columns to keep; those with the name of a feature are stored as raw_NAME."""
        for index, name in enumerate(names):
            path, stored = f"keep[{index}]", f"raw_{name}" if name in self.parts.features else name
            if name in names[:index]:
                yield Problem(path, f"{shown(name)} is already in keep; keep one")
            elif mistake := name_mistake(name):
                yield Problem(path, f"cannot be stored: {mistake}")
            elif stored in self._stored() or (stored != name and stored in names):
                yield Problem(path, f"{shown(name)} is stored as {shown(stored)}, another column's name; rename that")
            elif (reading := self.columns.keep(name, path)) is not None:
                self.keep.append(reading)

    def _check_lists(self) -> Iterator[Problem]:
        """Check that lists in CSV files have a separator."""
        has_csv = any(chunk["type"] == "csv" for chunks in self.parts.sources.values() for chunk in chunks)
        for name, reading in self.columns.readings.items():
            if has_csv and reading.is_list and reading.separator is None:
                message = 'is missing: CSV files hold lists as text; write what separates the items, such as " "'
                yield Problem(path_of("feature_spec", name, "separator"), message)

    def _check_names(self) -> Iterator[Problem]:
        """Check that computed features do not have the names of raw columns that are read."""
        read = {reading.column for reading in self.columns.used}
        for name in self.features.computed:
            if name in read:
                message = "is the name of a raw column, too; rename the feature"
                yield Problem(path_of("feature_spec", name), message)

    def _has_binary_label(self) -> bool:
        labels = (entry.text for entry in self.parts.channels[LABEL])
        unknown = self.columns.unknown
        tasks = [self.parts.features.get(name, {}).get("task", "binary") for name in labels if name not in unknown]
        return "binary" in tasks or bool(unknown)

    def _stored(self) -> set[str]:
        return {*self.parts.features, *self.features.added}
