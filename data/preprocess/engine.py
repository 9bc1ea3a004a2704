"""Turn raw files into a dataset, as a raw specification says.

    raw files -> blocks -> rows of each mapping -> histories and counts -> fitted encoders -> parquet

`preprocess` fits the encoders on the training rows and writes a dataset; `encode_new` encodes other rows with them. The
specification compiles to an NVTabular workflow whose operators work on Arrow memory. The result does not depend on the
size of blocks or the number of workers.
"""

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.encoding.earlier import Earlier
from data.encoding.encoder_files import load_encoders, save_encoders
from data.encoding.encoders import Encoder, Vocabulary
from data.encoding.splits import ORDER, TEST, TRAIN, VALID, ranges
from data.encoding.staged_columns import KEPT, ROW, finished
from data.encoding.workflow_folder import ENCODERS_FOLDER, RAW_SPEC_FILE, read_raw_document
from data.errors import DataError
from data.files.new_dataset import SPEC_FILE, new_dataset
from data.files.parquet import DatasetWriter, parquet_schema
from data.preprocess.findings import DatasetCounts, used_columns
from data.preprocess.histories import add_computed
from data.preprocess.lists import check_text_lists, keep_items, longest
from data.preprocess.prepared import StageLog, encoded_features
from data.preprocess.pretrained import encoded_vectors, with_stated_types, write_pretrained
from data.preprocess.staging import RowFiles, Staged, Stager, read_arrow
from data.preprocess.workers import PROCESS_BYTES, Workers, default_limit, start_workers
from data.raw.cells import CellError, combined, convert
from data.raw.files import column_names
from data.raw.rows import row_hashes
from data.spec.feature_spec import FeatureSpec
from data.spec.features import LABEL, MAP, SAMPLE_WEIGHT, SERVE, VECTOR, Chunk, Feature
from data.spec.raw.reader import plain_document, raw_spec_from_dict
from data.spec.raw.spec import CrossRule, RawChunk, RawSpec, Reading, TimeSplit, added_by
from data.storage.file_patterns import files_there, find_files, located
from data.storage.output_paths import check_apart
from data.storage.remote import named

STATE_FOLDER = "state"
# Sort keys of training rows that are stored in a random order.
SORT_KEY = "//order"
# Bytes that a cell takes while its block is read, counted and encoded: a measurement plus 20%.
CELL_BYTES = 200
MIN_BLOCK_ROWS, MAX_BLOCK_ROWS = 10_000, 1_000_000
# Rows of a range that is sorted in memory when training rows are shuffled.
BLOCKS_PER_RANGE = 2


@dataclass(frozen=True)
class Resources:
    """What a run may use.

    Attributes:
        memory_limit: memory limit in bytes, summed over all processes; None uses half of the machine's memory.
        use_dask, dask_scheduler: see `data.preprocess.workers.start_workers`.
    """

    memory_limit: int | None = None
    use_dask: bool = False
    dask_scheduler: str | None = None

    @property
    def limit(self) -> int:
        """The memory limit in bytes."""
        return self.memory_limit or default_limit()

    def state_bytes(self, workers: int) -> int:
        """Return the bytes for what is counted while the encoders are fitted: a third of what the processes leave."""
        return max(0, self.limit - _processes_bytes(workers)) // 3

    def block_rows(self, columns: int, workers: int) -> int:
        """Return the rows of a block with so many columns that keep memory within the limit.

        Raises:
            DataError: if the limit is too small.
        """
        fixed, row_bytes = _processes_bytes(workers), workers * columns * CELL_BYTES
        rows = (self.limit - fixed) * 2 // 3 // row_bytes
        if rows < MIN_BLOCK_ROWS:
            least = fixed + MIN_BLOCK_ROWS * row_bytes * 3 // 2
            several, fewer = ("", "") if workers == 1 else ("s", ", or use fewer workers")
            raise DataError(
                f"--memory_limit {self.limit / 2**20:.0f}MiB: is too small for {workers} worker{several} and {columns} "
                f"columns; write at least --memory_limit {-(-least // 2**20)}MiB{fewer}"
            )
        return min(rows, MAX_BLOCK_ROWS)


def _processes_bytes(workers: int) -> int:
    """Return the memory of the processes themselves: the workers and, if there are several, their coordinator."""
    return (workers + (workers > 1)) * PROCESS_BYTES


@dataclass(frozen=True)
class Extension:
    """How a dataset continues an earlier one.

    Attributes:
        workflow: folder `workflow` of the earlier dataset, or of a model trained on it.
        retire_after: number of datasets in a row without a value after which its id becomes free, or None.
        updates_scalers: whether numbers and target statistics are refitted.
    """

    workflow: Path
    retire_after: int | None = None
    updates_scalers: bool = False

    def load(self) -> Earlier:
        """Return the encoders of the earlier dataset."""
        spec = _stored_spec(self.workflow)
        return Earlier(spec, load_encoders(self.workflow), self.retire_after, self.updates_scalers)


@dataclass(frozen=True)
class Part:
    """A staged file with the columns computed for it.

    Attributes:
        path: path of the staged file.
        computed: path of the file with its histories and counts, or None.
    """

    path: Path
    computed: Path | None = None

    def load(self) -> pa.Table:
        """Return the rows of the part, without the training rows that `keep_negatives` leaves out."""
        table = read_arrow(self.path)
        if self.computed is not None:
            for name, column in _columns(read_arrow(self.computed)).items():
                table = table.append_column(name, column)
        return table.filter(table.column(KEPT)) if KEPT in table.column_names else table


def preprocess(
    spec: RawSpec,
    document: Mapping[str, Any],
    output: Path,
    resources: Resources,
    log: StageLog,
    *,
    extension: Extension | None = None,
    allow_outside_paths: bool = False,
) -> None:
    """Write the dataset of a raw specification, atomically: parquet files, feature_spec.yaml and `workflow/`.

    Args:
        spec: the raw specification.
        document: the document that it was read from, which is kept for new rows.
        output: folder for the dataset; must not contain one yet.
        resources: memory and workers.
        log: log of the progress.
        extension: the earlier dataset to continue: its ids, scalers, histories and counts; None for a dataset of its
            own.
        allow_outside_paths: whether to read files outside of the specification's folder.

    Raises:
        DataError: if the input or the earlier workflow is invalid; nothing is left of the output.
    """
    if extension is not None:
        check_apart({"--output": output}, {"--extend": extension.workflow})
    earlier = None if extension is None else extension.load()
    spec, document = with_stated_types(spec, document)
    with _draft(output, resources) as (draft, scratch, workers):
        block_rows = resources.block_rows(len(spec.readings), workers.number)
        staged = Stager(spec, block_rows, log, allow_outside_paths=allow_outside_paths).stage(_made(scratch / "rows"))
        _check_mappings(spec, staged)
        check_text_lists(spec, staged)
        before = None if extension is None else extension.workflow
        continued = None if earlier is None else earlier.continued_states(spec)
        parts = _computed(spec, staged, scratch, before, resources, continued)
        workflow = FeatureWorkflow(spec, scratch, earlier=earlier, memory=resources.state_bytes(workers.number))
        workflow.fit(parts[TRAIN])
        log.write(f"fitted {len(workflow.encoders)} encoders on {staged.rows[TRAIN]:,} training rows")
        for line in () if earlier is None else earlier.report(spec, workflow.encoders):
            log.write(line)
        for line in write_pretrained(spec, workflow.encoders, draft):
            log.write(line)
        writer = _Writer(spec, workflow, workers, draft, log, block_rows)
        state = {path.name: path.read_bytes() for path in (scratch / STATE_FOLDER).glob("*")}
        others = {RAW_SPEC_FILE: plain_document(document), **state}
        save_encoders(workflow.encoders, draft / ENCODERS_FOLDER, others)
        writer.write(parts, staged.rows).write(draft / SPEC_FILE)
    log.write(f"done: {named(output)}")


def encode_new(
    workflow: Path,
    inputs: Sequence[Path],
    output: Path,
    *,
    keep: Sequence[str] = (),
    resources: Resources | None = None,
    log: StageLog | None = None,
) -> None:
    """Encode new raw rows with the encoders of a dataset, with or without labels, and write them as a dataset.

    Both mappings of its specification, train and test, refer to the same files in the order of the input.

    Args:
        workflow: folder `workflow` of a dataset that `preprocess` wrote, or of a model trained on it.
        inputs: files and folders of files, in the format of the training files.
        output: folder for the dataset; must not contain one yet.
        keep: raw columns to store as they are, under the names that `kept_name` returns.
        resources: memory and workers.
        log: log of the progress.

    Raises:
        DataError: if the workflow or the input is invalid; nothing is left of the output.
    """
    resources, log = resources or Resources(), log or StageLog("preprocess")
    spec = _spec_of_new_rows(workflow, inputs, keep)
    # What is known only in training is not read: predictions take a constant in its place.
    served = {name for name, raw in spec.features.items() if raw.serve is not None}
    spec = _without(spec, served)
    encoders = {name: encoder for name, encoder in load_encoders(workflow).items() if name not in served}
    with _draft(output, resources) as (draft, scratch, workers):
        block_rows = resources.block_rows(len(spec.readings), workers.number)
        absent = _absent(spec, scratch)
        spec = _with_missing_labels(spec, absent)
        staged = Stager(spec, block_rows, log, absent, allow_outside_paths=True).stage(_made(scratch / "rows"))
        parts = _computed(spec, staged, scratch, workflow, resources)
        fitted = FeatureWorkflow(spec, scratch, encoders)
        writer = _Writer(spec, fitted, workers, draft, log, block_rows)
        writer.write(parts, staged.rows).write(draft / SPEC_FILE)
    log.write(f"done: {named(output)}")


def with_files(spec: RawSpec, files: Sequence[Path], vectors: Path) -> RawSpec:
    """Return the specification with other files for its only source.

    Args:
        spec: the raw specification.
        files: files, patterns and folders; files of pretrained vectors that are in the folders are no raw files.
        vectors: folder that the paths of pretrained vectors are relative to.

    Raises:
        DataError: if it has several sources.
    """
    if len(spec.sources) > 1:
        raise DataError(
            f"--input: files were given, but source_spec has {', '.join(spec.sources)}; give the folder of the files"
        )
    (source, chunks), *_ = spec.sources.items()
    pretrained = {
        name: replace(feature, pretrained=str(located(vectors.absolute(), str(feature.pretrained))))
        for name, feature in spec.pretrained.items()
    }
    spec = replace(spec, pretrained=pretrained)
    return replace(spec, sources={source: tuple(_chunk_of(path, chunks, spec) for path in files)})


def kept_name(spec: RawSpec, reading: str) -> str:
    """Return the name under which a kept raw column is stored: its own, or "raw_NAME" where a feature has that name."""
    column = spec.readings[reading].column
    return f"raw_{column}" if column in spec.features else column


class FeatureWorkflow:
    """The NVTabular workflow of a raw specification: from the columns of a part to ids and numbers.

    Args:
        spec: the raw specification.
        scratch: existing folder for what does not fit into memory during the fit.
        encoders: encoders of an earlier fit, by feature name; None before `fit`.
        earlier: encoders of an earlier dataset, which `fit` continues, or None.
        memory: bytes for what is counted during the fit.

    Attributes:
        encoders: fitted encoders, by feature name.
    """

    def __init__(
        self,
        spec: RawSpec,
        scratch: Path,
        encoders: Mapping[str, Encoder] | None = None,
        *,
        earlier: Earlier | None = None,
        memory: int = 0,
    ) -> None:
        # Imported late, since it takes seconds: mistakes in arguments and raw files are reported first.
        from data.encoding.nvtabular_operators import FitFeatures
        from data.encoding.nvtabular_setup import Schema, Workflow

        self._operator = FitFeatures(spec, scratch, encoders, earlier=earlier, memory=memory)
        self._inputs = self._operator.inputs
        self._workflow = Workflow(self._inputs >> self._operator)
        if encoders is not None:
            self._workflow.fit_schema(Schema(self._inputs))

    @property
    def encoders(self) -> dict[str, Encoder]:
        return self._operator.encoders

    def fit(self, parts: Sequence[Part]) -> None:
        """Fit the encoders on the training rows, part by part.

        Raises:
            DataError: if a column cannot be encoded.
        """
        from data.encoding.nvtabular_setup import Dataset, from_map

        self._workflow.fit(Dataset(from_map(self._frame, list(parts))))

    def transform(self, table: pa.Table, *, is_training: bool) -> pa.Table:
        """Return the encoded features of a part, a column per feature, in the same row order."""
        from data.encoding.nvtabular_operators import to_frame, to_table

        self._operator.is_training = is_training
        return to_table(self._workflow.transform(to_frame(table.select(self._inputs))))

    def _frame(self, part: Part) -> Any:
        from data.encoding.nvtabular_operators import to_frame

        return to_frame(part.load().select(self._inputs))


class _Writer:
    """Encodes parts and writes the dataset's files.

    Args:
        spec: the raw specification.
        workflow: fitted workflow.
        workers: workers that encode parts.
        draft: folder of the dataset.
        log: log of the progress.
        block_rows: number of rows to hold in memory.
    """

    def __init__(
        self, spec: RawSpec, workflow: FeatureWorkflow, workers: Workers, draft: Path, log: StageLog, block_rows: int
    ) -> None:
        self._spec, self._workflow, self._workers = spec, workflow, workers
        self._draft, self._log, self._block_rows = draft, log, block_rows
        # Lists but for vectors, and for weights, which are as long as those of their ids.
        weights = {raw.feature.weights for raw in spec.features.values()}
        self._hotness = {
            name: raw.feature.max_hotness or 1
            for name, raw in spec.features.items()
            if spec.is_list(name) and name not in weights and raw.feature.dimension is None
        }

    def write(self, parts: Mapping[str, Sequence[Part]], rows: Mapping[str, int]) -> FeatureSpec:
        """Write every mapping; return the specification of the dataset."""
        spec, features = self._spec, self._features()
        chunks: dict[str, tuple[Chunk, ...]] = {}
        channels = {**spec.channels, VECTOR: (*spec.channels.get(VECTOR, ()), *spec.pretrained)}
        draft_spec = FeatureSpec(self._draft, features, {}, channels, spec.metadata, spec.sequences, spec.score)
        counts = DatasetCounts(draft_spec, self._workflow.encoders, used_columns(self._spec))
        for mapping, mapping_parts in parts.items():
            tables = self._encoded(mapping, mapping_parts, rows[mapping])
            if mapping == TRAIN and self._spec.shuffle:
                tables = self._shuffled(tables, rows[mapping])
            first = next(tables)
            stored = set(first.column_names) - (self._only_for_map() if mapping == TRAIN else set())
            columns = [name for name in features if name in stored]
            with DatasetWriter(self._draft, mapping, parquet_schema(draft_spec, columns)) as writer:
                for table in chain([first], tables):
                    writer.write(table)
                    counts.add(mapping, table)
            chunks[mapping] = (writer.chunk,)
        for line in counts.texts():
            self._log.write(f"note: {line}")
        # Only now are the longest lists known.
        final = replace(draft_spec, features=self._features())
        return final.with_sources(_with_both_mappings(chunks), self._draft)

    def _only_for_map(self) -> set[str]:
        """Return the names of map features that are no inputs; training does not need them."""
        return set(self._spec.channels.get(MAP, ())) - set(self._workflow.encoders)

    def _features(self) -> dict[str, Feature]:
        """Return the entries of the dataset's specification: inputs, looked up, labels, weights, map feature, kept."""
        spec = self._spec
        features = encoded_features(self._workflow.encoders, self._hotness)
        for name, feature in features.items():
            stated = spec.features[name].feature if name in spec.features else None
            if stated is not None:
                features[name] = replace(
                    feature,
                    weights=stated.weights,
                    combiner=stated.combiner,
                    dimension=stated.dimension,
                    embedding_dim=stated.embedding_dim,
                    table=stated.table,
                    wide=stated.wide,
                    side=stated.side,
                    serve=self._served(name),
                )
        for raw in spec.features.values():
            for name in added_by(raw.rule):
                if name in features:
                    features[name] = replace(features[name], side=raw.feature.side)
        features |= encoded_vectors(spec)
        for name in spec.channels.get(LABEL, ()):
            features[name] = replace(spec.features[name].feature, dtype="float32")
        for name in spec.channels.get(MAP, ()):
            features.setdefault(name, Feature(name=name, dtype="int64"))
        if spec.sample_weight or spec.keep_negatives is not None:
            features[SAMPLE_WEIGHT] = Feature(
                name=SAMPLE_WEIGHT, dtype="float32", role=SAMPLE_WEIGHT, negative_rate=spec.keep_negatives
            )
        for column in spec.keep:
            name, dtype = kept_name(spec, column), spec.readings[column].dtype
            features[name] = Feature(name=name, dtype={"string": None, "timestamp": "int64"}.get(dtype, dtype))
        return features

    def _served(self, name: str) -> float | None:
        """Return what predictions take for a feature that is known only in training, encoded; None for others.

        Raises:
            DataError: if the encoder does not know the value.
        """
        raw, encoder = self._spec.features[name], self._workflow.encoders[name]
        if raw.serve is None or raw.reading is None:
            return None
        where = f"feature_spec.{name}.{SERVE}"
        try:
            value = float(encoder.encode(convert(pa.array([raw.serve]), self._spec.readings[raw.reading]))[0])
        except CellError as error:
            raise error.located(where, self._spec.readings[raw.reading]) from error
        if isinstance(encoder, Vocabulary) and value < encoder.first_known_id:
            raise DataError(f"{where}: {raw.serve!r} is no value of the training rows; write one of them")
        return value

    def _encoded(self, mapping: str, parts: Sequence[Part], total: int) -> Iterator[pa.Table]:
        """Yield the encoded rows of a mapping, part by part."""
        report, rows = self._log.stage(f"encoding {mapping}", total), 0
        for table in self._workers.map_in_order(_Encode(self._workflow, self._spec, mapping == TRAIN), parts):
            for name in self._hotness.keys() & table.column_names:
                self._hotness[name] = max(self._hotness[name], longest(table.column(name)))
            rows += table.num_rows
            report(rows)
            yield table

    def _shuffled(self, tables: Iterator[pa.Table], total: int) -> Iterator[pa.Table]:
        """Yield rows in ascending order of hash(seed, ORDER, row number): an external bucket sort.

        Rows are first divided into files by ranges of their sort keys, then the rows of each range are sorted.
        """
        number = -(-total // (BLOCKS_PER_RANGE * self._block_rows))
        first = next(tables)
        with tempfile.TemporaryDirectory(dir=self._draft) as folder:
            paths = [Path(folder) / f"range-{index:06}.arrow" for index in range(number)]
            with RowFiles(paths, first.schema) as files:
                for table in chain([first], tables):
                    files.write(table, ranges(table.column(SORT_KEY).to_numpy(), number))
            for path in paths:
                table = read_arrow(path)
                yield table.take(pa.array(np.argsort(table.column(SORT_KEY).to_numpy(), kind="stable")))
                path.unlink()


@dataclass(frozen=True)
class _Encode:
    """Encodes a part: features, finished and kept columns. Sent to workers, so it holds no open files."""

    workflow: FeatureWorkflow
    spec: RawSpec
    is_training: bool

    def __call__(self, part: Part) -> pa.Table:
        raw = part.load()
        encoded = self.workflow.transform(raw, is_training=self.is_training)
        columns = _columns(encoded)
        for name, feature in self.spec.features.items():
            limit = feature.feature.max_hotness
            if limit is not None:
                for each in columns.keys() & {name, feature.feature.weights}:
                    columns[each] = keep_items(combined(columns[each]), limit, feature.keep)
        prefix = finished("")
        for name, values in _columns(raw).items():
            if name.startswith(prefix):
                columns[name.removeprefix(prefix)] = values
        for column in self.spec.keep:
            kept = raw.column(column)
            is_text = pa.types.is_dictionary(kept.type)
            columns[kept_name(self.spec, column)] = kept.cast(pa.string()) if is_text else kept
        if self.is_training and self.spec.shuffle:
            columns[SORT_KEY] = pa.array(row_hashes(self.spec, ORDER, raw, raw.column(ROW).to_numpy()))
        return pa.table(columns)


@contextmanager
def _draft(output: Path, resources: Resources) -> Iterator[tuple[Path, Path, Workers]]:
    """Yield the draft of a dataset, a scratch folder in it, and the workers."""
    with new_dataset(output) as draft, tempfile.TemporaryDirectory(dir=draft) as scratch:
        started = start_workers(
            use_dask=resources.use_dask, scheduler=resources.dask_scheduler, folder=Path(scratch) / "dask"
        )
        with started as workers:
            yield draft, Path(scratch), workers


def _check_mappings(spec: RawSpec, staged: Staged) -> None:
    """Raise a DataError if a mapping has no rows: train, test, or another one that the specification states."""
    expected = [TRAIN, TEST, *(source for source in spec.sources if spec.split is None)]
    if isinstance(spec.split, TimeSplit):
        expected += [VALID] if spec.split.valid_from is not None else []
    elif spec.split is not None:
        expected += spec.split.fractions
    lacking = [name for name in expected if not staged.rows.get(name)]
    if lacking:
        found = ", ".join(f"{mapping}: {rows:,}" for mapping, rows in staged.rows.items()) or "none"
        causes = [key for key, value in (("split", spec.split), ("where", spec.where)) if value is not None]
        raise DataError(
            f"mapping {lacking[0]} has no rows (rows of each mapping: {found}{_times(spec, staged)}); provide files "
            f"with more rows, or change {' or '.join(causes) or 'source_spec'}"
        )


def _times(spec: RawSpec, staged: Staged) -> str:
    """Return the range of the column that splits the rows by time, for a message."""
    if not isinstance(spec.split, TimeSplit) or not staged.rows:
        return ""
    name = spec.split.reading
    tables = [read_arrow(path) for files in staged.files.values() for path in files]
    limits = pc.min_max(pa.chunked_array([chunk for table in tables for chunk in table.column(name).chunks]))
    if spec.readings[name].dtype == "timestamp":
        limits = [value.cast(pa.timestamp("us")) for value in limits.values()]
    else:
        limits = list(limits.values())
    return f"; {spec.readings[name].column} from {limits[0]} to {limits[1]}"


def _computed(
    spec: RawSpec,
    staged: Staged,
    scratch: Path,
    workflow: Path | None,
    resources: Resources,
    continued: Collection[str] | None = None,
) -> dict[str, list[Part]]:
    """Return the parts of each mapping, with the histories and counts of their rows if the specification has any.

    Args:
        spec, staged, resources: the specification, the staged rows and the resources.
        scratch: folder for the results; STATE_FOLDER in it gets the state that new rows continue from.
        workflow: folder with the state of earlier rows, or None.
        continued: readings of the histories and counts that continue from it, or None for all.
    """
    if not any(raw.computed for raw in spec.features.values()):
        return {mapping: [Part(path) for path in files] for mapping, files in staged.files.items()}
    files = add_computed(
        spec,
        staged.files,
        _made(scratch / "computed"),
        memory=resources.limit - PROCESS_BYTES,
        state=workflow,
        continued=continued,
        new_state=_made(scratch / STATE_FOLDER),
        locate=staged.row_name,
    )
    return {
        mapping: [Part(path, computed) for path, computed in zip(staged.files[mapping], files[mapping], strict=True)]
        for mapping in staged.files
    }


def _stored_spec(workflow: Path) -> RawSpec:
    """Return the specification that a workflow was fitted with."""
    source = str(workflow / RAW_SPEC_FILE)
    return raw_spec_from_dict(read_raw_document(workflow), workflow, source, allow_outside_paths=True)


def _spec_of_new_rows(workflow: Path, inputs: Sequence[Path], keep: Sequence[str]) -> RawSpec:
    """Return the specification that a workflow was fitted with, with the new files as its only source."""
    spec = _stored_spec(workflow)
    trained = [chunk for chunks in spec.sources.values() for chunk in chunks]
    chunks = tuple(_chunk_of(input_path, trained, spec) for input_path in inputs)
    readings = dict(spec.readings)
    kept = list(spec.keep)
    for column in keep:
        known = readings.get(column)
        # A column that is read as a time or list is kept as it is written.
        name = column if known is None or not (known.is_list or known.dtype == "timestamp") else f"{column}:string"
        readings.setdefault(name, Reading(name=name, column=column))
        kept.append(name)
    return replace(
        spec,
        readings=readings,
        sources={TEST: chunks},
        split=None,
        where=None,
        keep_negatives=None,
        sample_weight=None,
        shuffle=False,
        keep=tuple(dict.fromkeys(kept)),
    )


def _without(spec: RawSpec, names: Collection[str]) -> RawSpec:
    """Return the specification without some features."""
    features = {name: raw for name, raw in spec.features.items() if name not in names}
    channels = {
        channel: tuple(name for name in listed if name not in names) for channel, listed in spec.channels.items()
    }
    return replace(spec, features=features, channels=channels)


def _chunk_of(path: Path, trained: Sequence[RawChunk], spec: RawSpec) -> RawChunk:
    """Return the chunk that reads the new files of a path, folder or pattern in the format of the training files.

    Files of pretrained vectors, which may be beside the raw files, are left out.
    """
    entry = str(path.absolute())
    vectors = {named(located(path.absolute(), str(feature.pretrained))) for feature in spec.pretrained.values()}
    found = find_files(entry, path, allow_outside_paths=True)
    names = [name for name in found if named(name) not in vectors]
    if not names:
        there = files_there(path, entry)
        raise DataError(f"{named(path)}: does not exist, or holds no files{there}; give raw files, or folders of them")
    kind: Literal["csv", "parquet"] = "parquet" if any(name.endswith((".parquet", ".pq")) for name in names) else "csv"
    chunk = next((chunk for chunk in trained if chunk.type == kind), None)
    if chunk is None:
        chunk = RawChunk(type=kind, files=(), has_header=True)
    if len(names) == len(found):
        return replace(chunk, files=(entry,))
    files = find_files(entry, path, kind, allow_outside_paths=True)
    return replace(chunk, files=tuple(name for name in files if named(name) not in vectors))


def _absent(spec: RawSpec, scratch: Path) -> frozenset[str]:
    """Return the readings that new files lack and that no input needs, such as labels."""
    labels = set(spec.channels.get(LABEL, ()))
    needed = {raw.reading for name, raw in spec.features.items() if name not in labels} | set(spec.keep)
    for raw in spec.features.values():
        if isinstance(raw.rule, CrossRule):
            needed.update(raw.rule.inputs)
        if raw.computed is not None:
            needed |= {raw.computed.of, raw.computed.by, raw.computed.order}
    stored = [
        column_names(chunk, spec.folder, scratch=scratch, allow_outside_paths=True) for chunk in spec.sources[TEST]
    ]
    lacking = {name for name, reading in spec.readings.items() if not all(reading.column in names for names in stored)}
    return frozenset(lacking - needed)


def _with_missing_labels(spec: RawSpec, absent: frozenset[str]) -> RawSpec:
    """Return the specification with absent labels marked as such, so that their nulls are accepted."""
    features = {
        name: replace(raw, feature=replace(raw.feature, missing="ignore")) if raw.reading in absent else raw
        for name, raw in spec.features.items()
    }
    return replace(spec, features=features)


def _with_both_mappings(chunks: dict[str, tuple[Chunk, ...]]) -> dict[str, tuple[Chunk, ...]]:
    """Return the chunks with the required mapping train, which for new rows has the same files as test."""
    return chunks if TRAIN in chunks else {TRAIN: chunks[TEST], **chunks}


def _columns(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return dict(zip(table.column_names, table.columns, strict=True))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
