"""The stages of `preproc` and `transform`, from raw tables to files.

Encoding and writing is an external sort: the encoded rows of each joined part are divided by range of their sort key,
then the rows of each range are sorted and appended to the files. The concatenated files are therefore the same table
whatever the number of parts or workers.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from data.encoding.encoder_files import load_encoders
from data.encoding.encoders import Encoder
from data.encoding.nvtabular_setup import Dataset, from_map, to_device
from data.encoding.splits import ranges
from data.encoding.workflow_folder import ENCODERS_FOLDER
from data.errors import DataError
from data.files.parquet import DatasetWriter, parquet_schema
from data.outbrain.joining import (
    CLICKS,
    TRAIN,
    VALID,
    JoinCounts,
    PartJoiner,
    display_order,
    divide,
    joined_parts,
    row_order,
)
from data.outbrain.operators import load_out_of_fold, save_out_of_fold, to_host
from data.outbrain.raw_tables import AD, CLICKED, DISPLAY, EVENTS, RawTable, estimated_rows, require_raw
from data.outbrain.raw_tables import CLICKS as CLICKS_TABLE
from data.outbrain.recipes import (
    ENCODERS,
    TABLES,
    TAGS_PER_ROW,
    FittedRecipe,
    Recipe,
    find_recipe,
    load_workflow,
    save_workflow,
)
from data.outbrain.side_tables import SideTables, load_side_tables
from data.preprocess.prepared import StageLog, encoded_features
from data.preprocess.workers import PROCESS_BYTES, Workers, default_limit, start_workers
from data.spec.embedding_sizes import SIZES_FILE, read_sizes
from data.spec.feature_spec import FeatureSpec
from data.spec.features import LABEL, MAP, MULTIHOT, NUMERICAL, ONEHOT, Chunk, Feature

MAPPINGS = {"train": TRAIN, "test": VALID}
MANIFEST_FILE = "manifest.json"
PUBLISHED_SIZES = Path(__file__).parent / SIZES_FILE
PACKAGES = ("numpy", "pandas", "pyarrow", "dask", "nvtabular")
# Columns of encoded rows besides those of the dataset.
ORDER, RAW_AD = ".order", "raw_ad_id"
# Memory of a row of the part being processed: a measurement plus 20%.
ROW_BYTES = 1_900
# Bounds of the rows per part; larger parts are not faster.
MIN_ROWS, MAX_ROWS = 20_000, 500_000
# Each part keeps a file open while a raw table is partitioned.
MAX_PARTS = 400


@dataclass(frozen=True)
class Pipeline:
    """The stages, with their resources and settings.

    Attributes:
        scratch: folder for intermediate files.
        workers: workers that process the parts.
        seed: seed of the split, the folds and the order.
        memory_limit: memory limit in bytes, summed over all processes.
        log: log of the progress.
    """

    scratch: Path
    workers: Workers
    seed: int
    memory_limit: int
    log: StageLog

    def join(self, raw: Path, clicks: RawTable, tables: Path, *, split: bool = True) -> JoinCounts:
        """Partition clicks and events, and join every part.

        Args:
            raw: folder of the raw tables.
            clicks: table of clicks to read.
            tables: folder of the side tables as parquet.
            split: whether to split into training and validation; if False, all rows go to validation.

        Raises:
            DataError: if the input is invalid.
        """
        paths = require_raw(raw, [clicks, EVENTS])
        expected = {name: estimated_rows(path) for name, path in paths.items()}
        tables_bytes = load_side_tables(tables).memory_bytes
        parts = number_of_parts(expected[clicks.name], self.memory_limit, self.workers.number, tables_bytes)
        rows = 0
        for table, name in ((EVENTS, EVENTS.name), (clicks, CLICKS)):
            done = self.log.stage(f"divide {table.name}", expected[table.name])
            rows = divide(paths[table.name], table, name, parts, self.scratch, self.seed, done)
            self.log.write(f"divided {table.name}: {rows:,} rows into {parts} parts")
        done = self.log.stage("join", rows)
        joined = JoinCounts({TRAIN: 0, VALID: 0}, {})
        joiner = PartJoiner(self.scratch, tables, self.seed, split, paths[clicks.name], paths[EVENTS.name])
        for counts in self.workers.map(joiner.join, range(parts)):
            joined += counts
            done(sum(joined.rows.values()))
        for path in (*self.scratch.glob(f"{CLICKS}-*"), *self.scratch.glob(f"{EVENTS.name}-*")):
            path.unlink()
        if sum(joined.rows.values()) != rows:
            raise RuntimeError(f"{rows} clicks became {sum(joined.rows.values())} joined rows")
        for column, number in joined.unknown.items():
            if number:
                self.log.write(f"{number:,} rows have no match in {column}; the columns from there are null")
        return joined

    def fit(self, recipe: Recipe, joined: JoinCounts, tables: Path) -> FittedRecipe:
        """Fit a recipe on the joined training rows.

        Raises:
            DataError: if there are no training rows, or no validation rows.
        """
        for mapping, rows in joined.rows.items():
            if not rows:
                raise DataError(f"no display is in {mapping}: too few displays, or no days for it")
        folder = self.scratch / "nvtabular"
        folder.mkdir()
        rows = from_map(_read_part, joined_parts(self.scratch, TRAIN))
        fitted = recipe.fit(rows, load_side_tables(tables), str(folder))
        self.log.write(f"fitted the {recipe.name} recipe on {joined.rows[TRAIN]:,} training rows")
        out_of_fold = {name: rates for name, rates in fitted.out_of_fold.items() if name in recipe.features}
        return FittedRecipe({name: fitted.encoders[name] for name in recipe.features}, out_of_fold)

    def write(self, encoding: "Encoding", rows: int, folder: Path, files: int) -> Chunk:
        """Encode the joined parts of a mapping and write its files.

        Args:
            encoding: how to encode the parts.
            rows: total number of rows of the parts.
            folder: folder for the files; it is created.
            files: maximum number of files.

        Returns:
            The chunk of the files in the specification.
        """
        parts = joined_parts(self.scratch, encoding.mapping)
        done, encoded = self.log.stage(f"encode {folder.name}", rows), 0
        for number in self.workers.map(encoding.encode_part, parts):
            encoded += number
            done(encoded)
        for part in parts:
            part.unlink()
        return _write_files(encoding, folder, rows, files, self.log.stage(f"write {folder.name}", rows))


@contextmanager
def start_pipeline(
    draft: Path, seed: int, memory_limit: int | None, use_dask: bool, dask_scheduler: str | None, log: StageLog
) -> Iterator[Pipeline]:
    """Yield a pipeline, whose workers and scratch folder are removed at the end of the block.

    Args:
        draft: folder in which to create the scratch folder.
        seed: seed of the split, the folds and the order.
        memory_limit: memory limit in bytes; None uses half of the machine's memory.
        use_dask, dask_scheduler: see `start_workers`.
        log: log of the progress.
    """
    scratch = draft / "scratch"
    scratch.mkdir()
    with start_workers(use_dask=use_dask, scheduler=dask_scheduler, folder=scratch) as workers:
        yield Pipeline(scratch, workers, seed, default_limit() if memory_limit is None else memory_limit, log)
    shutil.rmtree(scratch)


def prepare(pipeline: Pipeline, raw: Path, draft: Path, recipe_name: str, files: int) -> FeatureSpec:
    """Write training and validation files, embedding sizes, workflow and manifest.

    Args:
        pipeline: stages to run.
        raw: folder with all raw tables.
        draft: folder of the dataset to write to.
        recipe_name: name of the recipe to fit.
        files: maximum number of files per mapping.

    Returns:
        The specification of the dataset, which is not written.

    Raises:
        DataError: if the input is invalid.
    """
    recipe, workflow, rates = find_recipe(recipe_name), draft / ENCODERS_FOLDER, pipeline.scratch / "out_of_fold"
    for folder in (workflow / TABLES, rates):
        folder.mkdir(parents=True)
    tables = SideTables.read(raw, pipeline.log.write, fill_publishers=recipe.fill_publishers)
    tables.to_parquet(workflow / TABLES)
    del tables  # from here on, every process loads them from parquet
    joined = pipeline.join(raw, CLICKS_TABLE, workflow / TABLES)
    fitted = pipeline.fit(recipe, joined, workflow / TABLES)
    save_out_of_fold(fitted.out_of_fold, rates)
    save_workflow(workflow, recipe.name, dict(fitted.encoders))
    spec = _specification(recipe, fitted.encoders, draft)
    chunks = {}
    for mapping, joined_mapping in MAPPINGS.items():
        hidden = spec.channels[MAP] if mapping == "train" else ()
        columns = [name for name in spec.features if name not in hidden]
        encoding = Encoding(
            recipe=recipe.name,
            encoders=workflow / ENCODERS,
            tables=workflow / TABLES,
            out_of_fold=rates if mapping == "train" else None,
            schema=parquet_schema(spec, columns),
            mapping=joined_mapping,
            ranges=len(joined_parts(pipeline.scratch, joined_mapping)),
            seed=pipeline.seed,
            scratch=pipeline.scratch / "encoded",
        )
        rows = joined.rows[joined_mapping]
        chunks[mapping] = (pipeline.write(encoding, rows, draft / joined_mapping, files),)
    _write_sizes(draft, recipe)
    manifest = {
        "format": 1,
        "recipe": recipe.name,
        "seed": pipeline.seed,
        "rows": joined.rows,
        "unknown": joined.unknown,
        "versions": {name: version(name) for name in PACKAGES},
    }
    (draft / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n")
    return spec.with_sources(chunks, draft)


def transform(pipeline: Pipeline, workflow: Path, raw: Path, clicks: RawTable, draft: Path) -> FeatureSpec:
    """Write a file of new rows, and embedding sizes.

    Args:
        pipeline: stages to run.
        workflow: folder of a stored workflow.
        raw: folder with clicks and events, and any side tables that replace the stored ones.
        clicks: table of clicks to read.
        draft: folder of the dataset to write to.

    Returns:
        The specification of the dataset, which is not written; both of its mappings have the same file.

    Raises:
        DataError: if the input is invalid.
    """
    stored, tables = load_workflow(workflow), pipeline.scratch / TABLES
    recipe, report = stored.recipe, pipeline.log.write
    tables.mkdir()
    SideTables.read(raw, report, fill_publishers=recipe.fill_publishers, fitted=stored.tables).to_parquet(tables)
    joined = pipeline.join(raw, clicks, tables, split=False)
    spec = _specification(recipe, stored.encoders, draft, labeled=clicks is CLICKS_TABLE, with_ads=True)
    encoding = Encoding(
        recipe=recipe.name,
        encoders=workflow / ENCODERS,
        tables=tables,
        out_of_fold=None,
        schema=parquet_schema(spec, list(spec.features)),
        mapping=VALID,
        ranges=len(joined_parts(pipeline.scratch, VALID)),
        seed=pipeline.seed,
        scratch=pipeline.scratch / "encoded",
    )
    chunk = pipeline.write(encoding, joined.rows[VALID], draft / "rows", 1)
    _write_sizes(draft, recipe)
    return spec.with_sources({mapping: (chunk,) for mapping in MAPPINGS}, draft)


def _specification(
    recipe: Recipe, encoders: Mapping[str, Encoder], folder: Path, *, labeled: bool = True, with_ads: bool = False
) -> FeatureSpec:
    """Return the specification of a dataset, without sources; `with_ads` adds a column with the raw ad id."""
    features = encoded_features(encoders, {name: TAGS_PER_ROW for name in recipe.tags})
    features[DISPLAY] = Feature(name=DISPLAY, dtype="int64")
    if with_ads:
        features[RAW_AD] = Feature(name=RAW_AD, dtype="int64")
    features[CLICKED] = Feature(name=CLICKED, dtype="float32", missing="error" if labeled else "ignore")
    channels = {
        ONEHOT: recipe.onehot,
        MULTIHOT: tuple(recipe.tags),
        NUMERICAL: recipe.numerical,
        LABEL: (CLICKED,),
        MAP: (DISPLAY,),
    }
    return FeatureSpec(folder, features, {}, channels, {"dataset": "outbrain", "recipe": recipe.name})


def _write_sizes(draft: Path, recipe: Recipe) -> None:
    known = read_sizes(PUBLISHED_SIZES) | dict(recipe.embedding_sizes)
    sizes = {name: known[name] for name in (*recipe.onehot, *recipe.tags)}
    (draft / SIZES_FILE).write_text(json.dumps(sizes, indent=2) + "\n")


@dataclass(frozen=True)
class Encoding:
    """How to encode the parts of a mapping. Holds paths rather than data, so that it is cheap to send to workers.

    Attributes:
        recipe: name of the recipe.
        encoders: folder of the encoders.
        tables: folder of the side tables.
        out_of_fold: folder of the out-of-fold rates for training rows; None for rows to predict.
        schema: Arrow schema of the dataset's columns.
        mapping: name of the mapping; TRAIN shuffles single rows, other mappings whole displays.
        ranges: number of ranges of the sort key.
        seed: seed of the order.
        scratch: folder for the encoded rows.
    """

    recipe: str
    encoders: Path
    tables: Path
    out_of_fold: Path | None
    schema: pa.Schema
    mapping: str
    ranges: int
    seed: int
    scratch: Path

    def encode_part(self, path: Path) -> int:
        """Encode a joined part, write its rows by range, and return their number.

        Raises:
            RuntimeError: if encoding changed the number of rows.
        """
        joined = pq.read_table(path, page_checksum_verification=True).to_pandas()
        workflow = _workflow(self.recipe, self.encoders, self.tables, self.out_of_fold)
        if workflow.output_schema is None:
            workflow.fit_schema(Dataset(to_device(joined)).schema)
        encoded = to_host(workflow.transform(to_device(joined))).reset_index(drop=True)
        if len(encoded) != len(joined):
            raise RuntimeError(f"{path.name}: {len(joined)} rows became {len(encoded)}")
        display, ad = joined[DISPLAY].to_numpy(), joined[AD].to_numpy()
        by_row = self.mapping == TRAIN
        order = row_order(display, ad, seed=self.seed) if by_row else display_order(display, seed=self.seed)
        clicked = joined.get(CLICKED)
        self._write_ranges(encoded.assign(**{DISPLAY: display, RAW_AD: ad, CLICKED: clicked, ORDER: order}), path.name)
        return len(encoded)

    def _write_ranges(self, frame: pd.DataFrame, name: str) -> None:
        extra = {DISPLAY: pa.int64(), RAW_AD: pa.int64(), ORDER: pa.uint64()}
        fields = [pa.field(name, kind) for name, kind in extra.items() if name not in self.schema.names]
        table = pa.Table.from_pandas(frame, pa.schema([*self.schema, *fields]), preserve_index=False)
        target = ranges(frame[ORDER].to_numpy(), self.ranges)
        order = np.argsort(target, kind="stable")
        ends = np.searchsorted(target[order], np.arange(self.ranges + 1))
        table = table.take(pa.array(order))
        for number in np.flatnonzero(np.diff(ends)).tolist():
            folder = self._range(number)
            folder.mkdir(parents=True, exist_ok=True)
            rows = table.slice(ends[number], ends[number + 1] - ends[number])
            pq.write_table(rows, folder / name, write_page_checksum=True)

    def sorted_ranges(self) -> Iterator[pa.Table]:
        """Yield the sorted rows of each range, then delete its files."""
        for number in range(self.ranges):
            folder = self._range(number)
            if not folder.exists():
                continue
            table = pa.concat_tables(
                [pq.read_table(path, page_checksum_verification=True) for path in sorted(folder.iterdir())]
            )
            # lexsort's last key is the primary one; display and ad break ties.
            keys = [table.column(name).to_numpy() for name in (RAW_AD, DISPLAY, ORDER)]
            yield table.take(pa.array(np.lexsort(keys)))
            shutil.rmtree(folder)

    def _range(self, number: int) -> Path:
        return self.scratch / f"{self.mapping}-{number:05d}"


def _write_files(encoding: Encoding, folder: Path, rows: int, files: int, done: Callable[[int], None]) -> Chunk:
    """Write a mapping to `FOLDER/part_0.parquet`, ..., with equal numbers of rows but for the last.

    Returns:
        The chunk of the files in the specification, with names relative to the parent of the folder.

    Raises:
        RuntimeError: if the encoded rows are not `rows` rows.
    """
    folder.mkdir()
    with DatasetWriter(folder, "part", encoding.schema, max(1, -(-rows // files))) as writer:
        for table in encoding.sorted_ranges():
            writer.write(table)
            done(writer.rows)
    if writer.rows != rows:
        raise RuntimeError(f"{folder.name}: {rows} joined rows became {writer.rows}")
    chunk = writer.chunk
    return Chunk(chunk.type, chunk.features, tuple(f"{folder.name}/{name}" for name in chunk.files))


@lru_cache(maxsize=1)
def _workflow(recipe: str, encoders: Path, tables: Path, out_of_fold: Path | None) -> Any:
    """Build the NVTabular workflow, cached so that each process builds it once per mapping."""
    rates = {} if out_of_fold is None else load_out_of_fold(out_of_fold)
    return find_recipe(recipe).workflow(FittedRecipe(load_encoders(encoders), rates), load_side_tables(tables))


def _read_part(path: Path) -> pd.DataFrame:
    return to_device(pq.read_table(path, page_checksum_verification=True).to_pandas())


def number_of_parts(rows: int, limit: int, workers: int, tables_bytes: int) -> int:
    """Return the number of parts that keeps memory within a limit.

    Args:
        rows: approximate number of rows.
        limit: memory limit in bytes, summed over all processes.
        workers: number of worker processes; if more than one, the coordinating process takes memory as well.
        tables_bytes: bytes of the side tables, which every process loads.

    Raises:
        DataError: if the limit is too small.
    """
    processes = workers + (workers > 1)
    fixed = processes * (PROCESS_BYTES + tables_bytes)
    least = fixed + workers * MIN_ROWS * ROW_BYTES
    if limit < least:
        raise DataError(
            f"--memory_limit {limit / 2**20:.0f} MiB: {processes} processes need at least {least / 2**20:.0f} MiB, "
            f"with {tables_bytes / 2**20:.0f} MiB of ads and documents in each; raise it, or use fewer workers"
        )
    rows_per_part = min(MAX_ROWS, (limit - fixed) // (workers * ROW_BYTES))
    parts = max(workers, -(-rows // rows_per_part))
    if parts > MAX_PARTS:
        raise DataError(
            f"--memory_limit {limit / 2**20:.0f} MiB: {rows:,} rows would need {parts} parts, more than {MAX_PARTS}; "
            "raise it"
        )
    return parts
