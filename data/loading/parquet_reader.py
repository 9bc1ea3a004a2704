"""Decode the rows of a mapping from parquet, row group by row group."""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from data.errors import DataError
from data.loading.batch import Batch
from data.loading.batch_arrays import bytes_per_row, empty_batch, slice_rows
from data.loading.column_decoder import Decoded, decode_table, extra_dtype
from data.loading.parquet_files import ColumnGroup, ParquetFile, column_problems, open_files
from data.loading.targets import OovPolicy, Target, batch_targets
from data.loading.value_checks import Place
from data.specification.feature_spec import Chunk, FeatureSpec

PROBLEMS_SHOWN = 20


class ParquetReader:
    """Opens the files of a mapping and decodes ranges of their rows.

    A unit is a row group of the column group with the fewest row groups. Where another column group is split
    differently, its overlapping row groups are read along with the unit. All methods are thread-safe.

    Args:
        spec: feature specification of the dataset.
        mapping: name of the mapping to read.
        with_group: whether to decode the map feature.
        extra_columns: names of further columns to decode, whether or not they are features.
        needs_labels: whether labels and sample weights are required. If False, absent or null labels are NaN and
            all sample weights are 1.
        oov_policy: how to handle ids outside [0, cardinality): "error", "clip" (use the nearest valid id) or "drop"
            (clip, and set the weight of the row to 0).

    Attributes:
        rows: number of rows in the mapping.
        unit_rows: [units] int64 number of rows of each unit, all positive.
        fingerprint: hash of the names, the order and the row group sizes of the files.

    Raises:
        DataError: if a file is missing or damaged, a column is missing or has the wrong type, the column groups
            differ in length, or there are no rows.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        mapping: str,
        *,
        with_group: bool = False,
        extra_columns: Sequence[str] = (),
        needs_labels: bool = True,
        oov_policy: OovPolicy = "error",
    ):
        self._spec, self._with_group, self._oov_policy = spec, with_group, oov_policy
        self._converting = threading.Lock()
        chunks = spec.chunks(mapping)
        if any(chunk.type != "parquet" for chunk in chunks):
            raise DataError(f"mapping {mapping!r} is in CSV files; turn them into parquet with transcode.py first")
        if with_group and spec.map_feature is None:
            raise DataError("the map channel of the feature specification is empty, so there are no groups to read")
        files = iter(open_files(spec.files(mapping)))
        chunk_files = [[next(files) for _ in chunk.files] for chunk in chunks]
        targets = batch_targets(spec, with_group=with_group, extra_columns=extra_columns, oov_policy=oov_policy)
        if not needs_labels:
            targets = _without_needed_labels(targets, chunks)
        fields = [target.field for target in targets]
        self._lacks_labels = fields.count("labels") < len(spec.labels)
        self._lacks_weights = "weights" not in fields
        assigned = _assign(targets, chunks, chunk_files, mapping)
        self._groups = [ColumnGroup(*group) for group in zip(chunk_files, assigned, strict=True)]
        _check_columns(self._groups)
        self._extra_dtypes = _extra_dtypes(self._groups, len(extra_columns))
        self.rows = _common_rows(self._groups, mapping)
        # The coarsest division: finer row groups of the others mostly fall within one unit, and are read once.
        units = min(self._groups, key=lambda group: len(group.starts))
        self.unit_rows, self._unit_starts = units.sizes, units.starts
        self.fingerprint = _fingerprint(chunks, chunk_files)

    @property
    def row_bytes(self) -> int:
        """Bytes per row in the arrays that `allocate` returns."""
        return bytes_per_row(self._spec, with_group=self._with_group, extra_dtypes=self._extra_dtypes)

    @property
    def widest_list(self) -> tuple[str, int]:
        """Name of the widest multi-hot feature and its bytes per row; ("", 0) without such features."""
        widest = max(self._spec.multihot, key=lambda feature: feature.max_hotness or 0, default=None)
        return ("", 0) if widest is None else (widest.name, 4 * (widest.max_hotness or 0))

    @property
    def longest_unit(self) -> tuple[Place, int]:
        """Location of the longest row group, and its number of rows."""
        group = max(self._groups, key=lambda group: int(group.sizes.max()))
        longest = int(np.argmax(group.sizes))
        return group.place(int(group.starts[longest])), int(group.sizes[longest])

    @property
    def unit_bytes(self) -> int:
        """Uncompressed bytes of the columns to decode in the longest row group."""
        return max(group.unpacked_bytes() for group in self._groups)

    def allocate(self, rows: int) -> Batch:
        """Allocate a batch of `rows` rows with undefined contents."""
        return empty_batch(self._spec, rows, with_group=self._with_group, extra_dtypes=self._extra_dtypes)

    def decode(self, unit: int, start: int, stop: int, out: Batch) -> Decoded:
        """Decode the rows [start, stop) of a unit into `out`.

        Args:
            unit: index into `unit_rows`.
            start: first row within the unit.
            stop: end of the rows within the unit.
            out: batch of stop - start rows to write to.

        Returns:
            The lists that were cut and the ids that were replaced, with row numbers relative to `out`.

        Raises:
            DataError: if a file is damaged or a value is out of range, naming file, row group, row and column.
        """
        begin, end = (int(self._unit_starts[unit]) + row for row in (start, stop))
        out.rows[:] = np.arange(begin, end)
        if self._lacks_weights:
            out.weights[:] = 1
        if self._lacks_labels:
            out.labels[:] = np.nan
        cut: Counter[str] = Counter()
        replaced: dict[str, np.ndarray] = {}
        for group in self._groups:
            for piece in group.read(begin, end) if group.targets else ():
                rows = slice_rows(out, piece.begin - begin, piece.end - begin)
                # One thread at a time: several threads of short NumPy calls would contend for the interpreter lock.
                # Arrow releases it, so reading parquet (`group.read`) stays parallel.
                with self._converting:
                    decoded = decode_table(piece.table, group.targets, piece.place, rows)
                cut.update(decoded.cut)
                for name, bad_rows in decoded.replaced.items():
                    earlier = replaced.get(name, bad_rows[:0])
                    replaced[name] = np.concatenate([earlier, bad_rows + (piece.begin - begin)])
        if self._oov_policy == "drop":
            # After all column groups, since decoding the one with the weights overwrites them.
            for bad_rows in replaced.values():
                out.weights[bad_rows] = 0
        return Decoded(cut, replaced)

    def place(self, column: str, row: int) -> Place:
        """Return the file, row group and row within the file that store a decoded column at a row of the dataset."""
        return next(
            group.place(row) for group in self._groups if any(target.name == column for target in group.targets)
        )


def _assign(
    targets: Sequence[Target], chunks: Sequence[Chunk], chunk_files: list[list[ParquetFile]], mapping: str
) -> list[list[Target]]:
    """Assign each target to the chunk that stores it; an extra column need not be in the specification."""
    assigned: list[list[Target]] = [[] for _ in chunks]
    owners = {name: index for index, chunk in reversed(list(enumerate(chunks))) for name in chunk.features}
    for target in targets:
        owner = owners.get(target.name)
        if owner is None and target.field == "extra":
            found = (index for index, files in enumerate(chunk_files) if files and target.name in files[0].schema.names)
            owner = next(found, None)
        if owner is None:
            raise DataError(f"mapping {mapping!r} has no column {target.name!r}; add it to the features of a chunk")
        assigned[owner].append(target)
    return assigned


def _without_needed_labels(targets: Sequence[Target], chunks: Sequence[Chunk]) -> list[Target]:
    """Drop the weights and the labels that the mapping lacks, and allow nulls in the labels that it has."""
    held = {name for chunk in chunks for name in chunk.features}
    kept = [target for target in targets if target.field not in ("labels", "weights")]
    labels = [target for target in targets if target.field == "labels" and target.name in held]
    return kept + [replace(label, domain=replace(label.domain, may_miss=True)) for label in labels]


def _check_columns(groups: list[ColumnGroup]) -> None:
    problems = [problem for group in groups for file in group.files for problem in column_problems(file, group.targets)]
    if len(problems) > PROBLEMS_SHOWN:
        problems[PROBLEMS_SHOWN:] = [f"... and {len(problems) - PROBLEMS_SHOWN} more"]
    if problems:
        raise DataError("\n".join(problems))


def _extra_dtypes(groups: list[ColumnGroup], count: int) -> list[np.dtype]:
    dtypes: list[np.dtype] = [np.dtype(object)] * count
    for target, files in _extras(groups):
        stored = {file.schema.field(target.name).type: file.path for file in files}
        if len(stored) > 1:
            found = ", ".join(f"{kind} in {path}" for kind, path in stored.items())
            raise DataError(f"column {target.name!r} has several types ({found}); it must have one")
        dtypes[target.slot] = extra_dtype(next(iter(stored)))
    return dtypes


def _extras(groups: list[ColumnGroup]) -> Iterator[tuple[Target, tuple[ParquetFile, ...]]]:
    for group in groups:
        for target in group.targets:
            if target.field == "extra":
                yield target, group.files


def _common_rows(groups: list[ColumnGroup], mapping: str) -> int:
    rows = [group.rows for group in groups]
    if len(set(rows)) > 1:
        found = ", ".join(
            f"{group.rows} in chunk {index} ({group.files[0].path}{', ...' if len(group.files) > 1 else ''})"
            for index, group in enumerate(groups)
        )
        raise DataError(
            f"the chunks of mapping {mapping!r} must have equally many rows, found {found}; write them again"
        )
    if rows[0] == 0:
        raise DataError(f"mapping {mapping!r} has no rows: all its files are empty")
    return rows[0]


def _fingerprint(chunks: Sequence[Chunk], chunk_files: list[list[ParquetFile]]) -> str:
    described = [
        [[name, file.row_group_rows()] for name, file in zip(chunk.files, files, strict=True)]
        for chunk, files in zip(chunks, chunk_files, strict=True)
    ]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()
