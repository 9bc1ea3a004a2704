"""Files of pretrained vectors by raw value, rewritten by id."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data.encoding.encoders import Encoder, HashedIds, IdentityIds, Vocabulary
from data.encoding.hashing import hash_values
from data.errors import DataError
from data.files.pretrained import FirstOfIds, VectorFile, vectors_file, write_vectors
from data.memory import check_fits
from data.raw.cells import CellError, convert
from data.spec.features import Feature
from data.spec.raw.spec import RawSpec, Reading
from data.storage.file_patterns import located
from data.storage.remote import fetch, url_of


def encoded_vectors(spec: RawSpec) -> dict[str, Feature]:
    """Return the entries of pretrained vectors in the specification of a dataset, by name."""
    return {name: replace(feature, pretrained=vectors_file(name)) for name, feature in spec.pretrained.items()}


def with_stated_types(spec: RawSpec, document: Mapping[str, Any]) -> tuple[RawSpec, dict[str, Any]]:
    """Return a specification whose pretrained vectors all state their dimension and dtype, and its document.

    Files in a store are downloaded.

    Args:
        spec: the raw specification.
        document: the document that it was read from.

    Raises:
        DataError: if a file is missing, or its columns or the length of its vectors are wrong.
    """
    pretrained = {}
    for name, feature in spec.pretrained.items():
        if url := url_of(_path(spec, feature)):
            fetch(url, _path(spec, feature))
        file = _open(spec, feature)
        dtype = feature.dtype or ("float16" if file.stored == "float16" else "float32")
        pretrained[name] = replace(feature, dimension=file.dimension, dtype=dtype)
    stated = {
        name: {**document["feature_spec"][name], "dimension": feature.dimension, "dtype": feature.dtype}
        for name, feature in pretrained.items()
    }
    features = {**document["feature_spec"], **stated}
    return replace(spec, pretrained=pretrained), {**document, "feature_spec": features}


def write_pretrained(spec: RawSpec, encoders: Mapping[str, Encoder], draft: Path) -> Iterator[str]:
    """Write the vectors of all files by id, block by block.

    Vectors of values that a vocabulary does not have are left out. Where a hash gives several values of a file the same
    id, this has the vector of the first one in the file.

    Args:
        spec: the raw specification, whose pretrained vectors state their types.
        encoders: fitted encoders, by feature.
        draft: folder of the dataset.

    Yields:
        A line about each file.

    Raises:
        DataError: if a file is invalid, a value cannot be read or occurs twice, or the encoder knows none of them.
    """
    for name, feature in spec.pretrained.items():
        of = str(feature.of)
        by_id = _ById(_open(spec, feature), feature, _reading(spec, of), encoders[of])
        write_vectors(draft / vectors_file(name), of, name, feature.table_dtype, by_id.blocks())
        yield by_id.summary()


class _ById:
    """The vectors of a file by id.

    Args:
        file: the file.
        feature: the entry of the vectors.
        reading: how the raw values are read that they belong to.
        encoder: encoder of these values.
    """

    def __init__(self, file: VectorFile, feature: Feature, reading: Reading, encoder: Encoder) -> None:
        if not isinstance(encoder, Vocabulary | HashedIds | IdentityIds):
            raise TypeError(f"{feature.of} has no id for each value")
        self._file, self._feature, self._reading, self._encoder = file, feature, reading, encoder
        size, what = 8 * encoder.cardinality, f"{file.path}: telling the values of {encoder.cardinality:,} ids apart"
        check_fits(size, what, f"give {feature.of} fewer ids")
        self._first = FirstOfIds(encoder.cardinality)
        # The hash of the value that has given its vector to each id.
        self._hashes = np.zeros(encoder.cardinality, np.uint64)
        self._unknown = self._collisions = 0

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield ids [rows] int64, each once, and vectors [rows, dimension], for at least one block."""
        for row, keys, vectors in self._file.blocks(self._feature.table_dtype):
            ids, hashes = self._encoded(row, keys)
            first_known = self._encoder.first_known_id if isinstance(self._encoder, Vocabulary) else 0
            kept = np.flatnonzero(ids >= first_known)
            self._unknown += len(ids) - len(kept)
            is_first = self._first.add(ids[kept])
            self._hashes[ids[kept[is_first]]] = hashes[kept[is_first]]
            repeated = kept[~is_first]
            is_same = self._hashes[ids[repeated]] == hashes[repeated]
            if is_same.any():
                place = int(repeated[is_same.argmax()])
                raise self._file.error(row + place, f"{keys[place]} occurs a second time; remove one of the rows")
            self._collisions += len(repeated)
            if is_first.any():
                yield ids[kept[is_first]], vectors[kept[is_first]]
        if not self._first.count:
            raise DataError(
                f"{self._file.path}: none of its values in column {self._file.key!r} is a value of {self._feature.of} "
                "in the training rows; write the raw values that the logs have"
            )

    def summary(self) -> str:
        """Return how many ids have a vector, and which rows are not used."""
        found = f"{self._feature.name}: vectors for {self._first.count:,} of {self._encoder.cardinality:,} ids of"
        lines = [f"{found} {self._feature.of}"]
        if self._unknown:
            lines.append(f"{self._unknown:,} values of the file are not in its vocabulary")
        if self._collisions:
            lines.append(f"{self._collisions:,} values have the hash of an earlier one, whose vector counts")
        return "; ".join(lines)

    def _encoded(self, row: int, keys: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of values [n] int64, and hashes that tell values apart, [n] uint64."""
        try:
            values = convert(keys, self._reading)
            if values.null_count:
                raise CellError(int(np.asarray(values.is_null()).argmax()), "is empty", "a value; remove the row")
        except CellError as error:
            place = "" if error.row is None else f", row {row + error.row}"
            raise error.located(f"{self._file.path}{place}", self._reading) from error
        try:
            ids = self._encoder.encode_flat(values)
        except DataError as error:
            raise DataError(f"{self._file.path}, rows {row} to {row + len(keys) - 1}: {error}") from error
        plain = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
        return ids, hash_values(plain)


def _path(spec: RawSpec, feature: Feature) -> Path:
    return located(spec.folder, str(feature.pretrained))


def _open(spec: RawSpec, feature: Feature) -> VectorFile:
    of = str(feature.of)
    return VectorFile.open(_path(spec, feature), [of, _reading(spec, of).column], feature.dimension)


def _reading(spec: RawSpec, of: str) -> Reading:
    """Return how single values of a feature are read."""
    name = spec.features[of].reading
    return replace(spec.readings[str(name)], is_list=False, separator=None)
