"""Read raw files and stage their rows on disk, by mapping, as Arrow files that are mapped into memory.

A staged file holds the rows of one block of a raw file that belong to one mapping: a column per reading, in raw values,
and columns whose names begin with "//": finished ones (labels, weights and the map feature) and the number of the row.
Nothing depends on how rows are cut into blocks.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.encoding.splits import MAPPINGS, TRAIN
from data.encoding.staged_columns import KEPT, ROW, finished
from data.errors import DataError
from data.preprocess.prepared import StageLog
from data.raw.cells import combined, first_true
from data.raw.files import RawBlock, count_rows_estimate, locate_row, read_raw
from data.raw.labels import (
    check_given,
    check_list_weights,
    check_steps,
    check_vectors,
    group_values,
    is_negative,
    label_values,
    weight_values,
)
from data.raw.rows import RawRows, assign_mappings, keeps_negative, satisfies
from data.spec.features import LABEL, MAP, ONEHOT, SAMPLE_WEIGHT, VECTOR, Feature
from data.spec.raw.spec import IdentityRule, LastSplit, NumberRule, RawChunk, RawSpec, Reading, SharedVocabularyRule
from data.storage.file_patterns import located

# A row number is the number of its file, in sorted path order within its source, times this, plus its number there.
ROWS_PER_FILE = 2**40
# Key of a staged file's metadata: the raw file of its rows.
RAW_FILE = b"raw_file"


@dataclass
class Staged:
    """The rows of each mapping as Arrow files, in the order of the raw files.

    Attributes:
        folder: folder of the files.
        raw_folder: folder that the paths of the raw files are relative to.
        files: paths of the files, by mapping.
        rows: number of rows, by mapping.
        chunks: chunk of each raw file.
    """

    folder: Path
    raw_folder: Path
    files: dict[str, list[Path]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    chunks: dict[str, RawChunk] = field(default_factory=dict)

    def add(self, mapping: str, rows: pa.Table, raw_file: str) -> None:
        """Append rows of a raw file to a mapping."""
        files = self.files.setdefault(mapping, [])
        path = self.folder / f"{mapping}-{len(files):06}.arrow"
        write_arrow(rows, path, raw_file)
        files.append(path)
        self.rows[mapping] = self.rows.get(mapping, 0) + rows.num_rows

    def sort(self) -> None:
        """Sort the mappings: train, valid, test, then others by name, whatever the order of their first rows."""
        ranks = {mapping: rank for rank, mapping in enumerate(MAPPINGS)}
        order = sorted(self.files, key=lambda mapping: (ranks.get(mapping, len(ranks)), mapping))
        self.files = {mapping: self.files[mapping] for mapping in order}
        self.rows = {mapping: self.rows[mapping] for mapping in order}

    def row_name(self, path: Path, row: int) -> str:
        """Return the location of a row of a staged file in its raw file, for messages."""
        table = read_arrow(path)
        number = table.column(ROW)[row].as_py() % ROWS_PER_FILE
        return self.locate(table.schema.metadata[RAW_FILE].decode(), number)

    def locate(self, file: str, row: int) -> str:
        """Return the location of a row of a raw file, given its number from 0."""
        return locate_row(located(self.raw_folder, file), self.chunks[file], row, self.folder)


def write_arrow(rows: pa.Table, path: Path, raw_file: str) -> None:
    """Write rows of a raw file as one record batch of an Arrow file."""
    rows = rows.unify_dictionaries().combine_chunks().replace_schema_metadata({RAW_FILE: raw_file})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, rows.schema) as writer:
        writer.write_table(rows)


def read_arrow(path: Path) -> pa.Table:
    """Read an Arrow file by mapping it into memory: columns that are not used are not read."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


class RowFiles:
    """Arrow files over which rows are distributed.

    Args:
        paths: files to write.
        schema: columns of the rows.
    """

    def __init__(self, paths: list[Path], schema: pa.Schema) -> None:
        self.paths, self._schema, self._stack = paths, schema, ExitStack()

    def __enter__(self) -> "RowFiles":
        files = [self._stack.enter_context(pa.OSFile(str(path), "wb")) for path in self.paths]
        self._writers = [self._stack.enter_context(pa.ipc.new_file(file, self._schema)) for file in files]
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def write(self, rows: pa.Table, parts: np.ndarray) -> None:
        """Append rows to the files with the indices `parts`, [rows] integers, in their sequence."""
        if len(self.paths) == 1:
            self._writers[0].write_table(rows)
            return
        rows = rows.take(pa.array(np.argsort(parts, kind="stable")))
        ends = np.cumsum(np.bincount(parts, minlength=len(self.paths)))
        for index in np.unique(parts).tolist():
            begin = int(ends[index - 1]) if index else 0
            self._writers[index].write_table(rows.slice(begin, int(ends[index]) - begin))


@dataclass(frozen=True)
class Stager:
    """Turns blocks of raw values into staged rows.

    Args:
        spec: specification of the rows.
        block_rows: approximate number of rows to hold in memory.
        log: log of the progress.
        absent: names of readings that the files do not hold, which become null; rows to predict may have no labels.
        allow_outside_paths: whether to read files outside of the specification's folder.
    """

    spec: RawSpec
    block_rows: int
    log: StageLog
    absent: frozenset[str] = frozenset()
    allow_outside_paths: bool = False

    def stage(self, folder: Path) -> Staged:
        """Read all sources and stage their rows in an empty folder.

        Raises:
            DataError: if a file cannot be read or a row is not as the specification says; the message names both.
        """
        staged = Staged(folder, self.spec.folder)
        for source, chunks in self.spec.sources.items():
            total = self._count(source, chunks, folder)
            report, numbers, rows = self._progress(source, chunks), dict[str, int](), 0
            for chunk in chunks:
                for block in self._blocks(chunk, self._readings(), folder):
                    in_file = block.first_row + np.arange(block.table.num_rows, dtype=np.int64)
                    in_source = rows + np.arange(block.table.num_rows, dtype=np.int64)
                    number = numbers.setdefault(block.file, len(numbers)) * ROWS_PER_FILE + in_file
                    table = self._with_absent(block.table.unify_dictionaries().combine_chunks())
                    staged.chunks[block.file] = chunk
                    raw = RawRows(partial(staged.locate, block.file), table, in_file, in_source, number)
                    self._add(source, block.file, raw, total, staged)
                    rows += block.table.num_rows
                    report(rows)
            if not rows:
                raise DataError(f"source_spec.{source}: its files hold no rows; name files with rows")
        staged.sort()
        return staged

    def _with_absent(self, table: pa.Table) -> pa.Table:
        for name in sorted(self.absent):
            dtype = self.spec.readings[name].dtype
            kind = pa.dictionary(pa.int32(), pa.string()) if dtype == "string" else pa.int64()
            table = table.append_column(name, pa.nulls(table.num_rows, kind))
        return table

    def _count(self, source: str, chunks: Sequence[RawChunk], scratch: Path) -> int:
        """Return the number of rows of a source whose last rows are split off, else 0."""
        split = self.spec.split
        if not isinstance(split, LastSplit) or source not in split.sources:
            return 0
        first = self._readings()[:1]
        return sum(block.table.num_rows for chunk in chunks for block in self._blocks(chunk, first, scratch))

    def _blocks(self, chunk: RawChunk, readings: Sequence[Reading], scratch: Path) -> Iterator[RawBlock]:
        return read_raw(
            chunk,
            self.spec.folder,
            readings,
            block_rows=self.block_rows,
            scratch=scratch,
            allow_outside_paths=self.allow_outside_paths,
        )

    def _readings(self) -> list[Reading]:
        """Return the readings that the files hold."""
        others = self.absent | {raw.reading for raw in self.spec.features.values() if raw.computed}
        return [reading for name, reading in self.spec.readings.items() if name not in others]

    def _progress(self, source: str, chunks: Sequence[RawChunk]) -> Callable[[int], None]:
        total, folder, outside = 0, self.spec.folder, self.allow_outside_paths
        with suppress(DataError):  # reported when the files are read
            total = sum(count_rows_estimate(chunk, folder, allow_outside_paths=outside) for chunk in chunks)
        return self.log.stage(f"reading {source}", total)

    def _add(self, source: str, file: str, rows: RawRows, total: int, staged: Staged) -> None:
        if self.spec.where is not None:
            rows = rows.filter(satisfies(self.spec.where, rows.table))
        self._check_identities(rows)
        self._check_list_weights(rows)
        self._check_sequences(rows)
        self._check_vectors(rows)
        mappings = assign_mappings(self.spec, source, rows, total)
        table = self._with_finished(rows, mappings)
        for mapping in sorted(set(mappings)):
            inside = mappings == mapping
            staged.add(mapping, table if inside.all() else table.filter(pa.array(inside)), file)

    def _check_identities(self, rows: RawRows) -> None:
        """Raise a DataError for an id that is outside of the cardinality that its feature states."""
        for raw in self.spec.features.values():
            owner = self.spec.features[raw.rule.feature] if isinstance(raw.rule, SharedVocabularyRule) else raw
            if isinstance(owner.rule, IdentityRule) and raw.reading is not None and raw.computed is None:
                values, ids = _column(rows, raw.reading), owner.feature.cardinality or 0
                items = values.flatten() if pa.types.is_nested(values.type) else values
                wrong = first_true(pc.or_(pc.less(items, 0), pc.greater_equal(items, ids)))
                if wrong is not None:
                    row = wrong if items is values else pc.list_parent_indices(values)[wrong].as_py()
                    raise DataError(
                        f"{rows.name(row)}: column {self.spec.readings[raw.reading].column!r} has the id "
                        f"{items[wrong].as_py()}; expected ids in [0, {ids}), as the `cardinality` of "
                        f"{owner.feature.name} says; raise it, or write `encode: vocabulary`"
                    )

    def _check_list_weights(self, rows: RawRows) -> None:
        """Raise a DataError for weights of ids that are not one number of at least 0 for each id."""
        for ids in self.spec.features.values():
            if ids.feature.weights is not None:
                weights = self.spec.features[ids.feature.weights]
                columns = [
                    (self.spec.readings[name].column, _column(rows, name))
                    for name in (ids.reading, weights.reading)
                    if name is not None
                ]
                steps = weights.rule.steps if isinstance(weights.rule, NumberRule) else ()
                check_list_weights(columns[0], columns[1], steps, rows.name)

    def _check_sequences(self, rows: RawRows) -> None:
        """Raise a DataError for a row in which the lists of a sequence differ in length; histories never do."""
        for sequence in self.spec.sequences:
            features = [self.spec.features[name] for name in sequence.features]
            read = [raw.reading for raw in features if raw.reading is not None and raw.computed is None]
            columns = [(self.spec.readings[name].column, _column(rows, name)) for name in read]
            if columns:
                check_steps(columns, rows.name)

    def _check_vectors(self, rows: RawRows) -> None:
        """Raise a DataError for a vector that is not as many numbers as its dimension says."""
        for name in self.spec.channels.get(VECTOR, ()):
            feature, reading = self.spec.features[name].feature, self.spec.features[name].reading or name
            column = self.spec.readings[reading].column
            check_vectors(column, _column(rows, reading), feature.dimension or 1, rows.name)

    def _with_finished(self, rows: RawRows, mappings: np.ndarray) -> pa.Table:
        spec, columns = self.spec, {ROW: pa.array(rows.numbers)}
        labels = self._labels(rows)
        columns |= {finished(name): values for name, (_, values) in labels.items()}
        weights = None
        if spec.sample_weight:
            weights = weight_values(_column(rows, spec.sample_weight), spec.sample_weight, rows.name)
        if spec.keep_negatives is not None:
            in_training = (mappings == TRAIN) & is_negative(labels, len(mappings))
            columns[KEPT] = pa.array(~in_training | keeps_negative(spec, rows))
            factors = pa.array(np.where(in_training, 1 / spec.keep_negatives, 1.0))
            weights = factors if weights is None else pc.multiply(weights, factors)
        if weights is not None:
            columns[finished(SAMPLE_WEIGHT)] = weights
        for name in spec.channels.get(MAP, ()):
            if name in spec.channels.get(ONEHOT, ()):  # encoded like any input
                continue
            columns[finished(name)] = group_values(_column(rows, spec.features[name].reading or name), name, rows.name)
        table = rows.table
        for name, values in columns.items():
            table = table.append_column(name, values)
        return table

    def _labels(self, rows: RawRows) -> dict[str, tuple[Feature, pa.Array]]:
        labels: dict[str, tuple[Feature, pa.Array]] = {}
        for name in self.spec.channels.get(LABEL, ()):
            raw = self.spec.features[name]
            if raw.reading in self.absent:
                values = pa.nulls(len(rows.numbers), pa.float64())
            else:
                values = label_values(raw, _column(rows, raw.reading or name), rows.name)
            labels[name] = raw.feature, values
        check_given(labels, rows.name)
        return labels


def _column(rows: RawRows, name: str) -> pa.Array:
    return combined(rows.table.column(name))
