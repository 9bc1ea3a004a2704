"""The stages shared by `preproc` and `transform`, from raw tables to files."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from data.errors import DataError
from data.outbrain.columns import CLICKED, DISPLAY, TAGS_PER_ROW
from data.outbrain.joining import CLICKS, TRAIN, VALID, Joined, JoinedFiles, divide, join_part, joined_parts
from data.outbrain.raw import estimated_rows, require_raw
from data.outbrain.raw_tables import EVENTS, RawTable
from data.outbrain.recipe import Fitted, Recipe
from data.outbrain.resources import default_limit, number_of_parts
from data.outbrain.side_tables import load_side_tables
from data.outbrain.workers import Workers, start_workers
from data.outbrain.writing import RAW_AD, Encoding, write_files
from data.preprocess.encoders import Encoder
from data.preprocess.nvtabular_setup import from_map, to_device
from data.preprocess.prepared import Progress, encoded_features
from data.spec.feature_spec import LABEL, MAP, MULTIHOT, NUMERICAL, ONEHOT, Chunk, Feature, FeatureSpec


@dataclass(frozen=True)
class Run:
    """Resources and settings that every stage needs.

    Attributes:
        scratch: folder for intermediate files.
        workers: workers that process the parts.
        seed: seed of the split, the folds and the order.
        memory_limit: memory limit in bytes, summed over all processes.
        progress: progress to report on.
    """

    scratch: Path
    workers: Workers
    seed: int
    memory_limit: int
    progress: Progress


@contextmanager
def start_run(
    draft: Path, seed: int, memory_limit: int | None, use_dask: bool, dask_scheduler: str | None, progress: Progress
) -> Iterator[Run]:
    """Context manager of a run, with workers and a scratch folder that are removed at the end of the block.

    Args:
        draft: folder in which to create the scratch folder.
        seed: seed of the split, the folds and the order.
        memory_limit: memory limit in bytes; None uses half of the machine's memory.
        use_dask, dask_scheduler: see `start_workers`.
        progress: progress to report on.
    """
    scratch = draft / "scratch"
    scratch.mkdir()
    with start_workers(use_dask=use_dask, scheduler=dask_scheduler, folder=scratch) as workers:
        yield Run(scratch, workers, seed, default_limit() if memory_limit is None else memory_limit, progress)
    shutil.rmtree(scratch)


def join(run: Run, raw: Path, clicks: RawTable, tables: Path, *, split: bool = True) -> Joined:
    """Partition clicks and events, and join every part.

    Args:
        run: workers, scratch folder and settings.
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
    parts = number_of_parts(expected[clicks.name], run.memory_limit, run.workers.number, tables_bytes)
    rows = 0
    for table, name in ((EVENTS, EVENTS.name), (clicks, CLICKS)):
        done = run.progress.stage(f"divide {table.name}", expected[table.name])
        rows = divide(paths[table.name], table, name, parts, run.scratch, run.seed, done)
        run.progress.tell(f"divided {table.name}: {rows:,} rows into {parts} parts")
    done = run.progress.stage("join", rows)
    joined = Joined({TRAIN: 0, VALID: 0}, {})
    files = JoinedFiles(paths[clicks.name], paths[EVENTS.name])
    for part in run.workers.map(partial(_join_part, run.scratch, tables, run.seed, split, files), range(parts)):
        joined += part
        done(sum(joined.rows.values()))
    for path in (*run.scratch.glob(f"{CLICKS}-*"), *run.scratch.glob(f"{EVENTS.name}-*")):
        path.unlink()
    if sum(joined.rows.values()) != rows:
        raise RuntimeError(f"{rows} clicks became {sum(joined.rows.values())} joined rows")
    for column, number in joined.unknown.items():
        if number:
            run.progress.tell(f"{number:,} rows have nothing in {column}: what it would tell is null")
    return joined


def fit(run: Run, recipe: Recipe, joined: Joined, tables: Path) -> Fitted:
    """Fit a recipe on the joined training rows.

    Raises:
        DataError: if there are no training rows, or no validation rows.
    """
    for mapping, rows in joined.rows.items():
        if not rows:
            raise DataError(f"no display falls to {mapping}: there are too few of them, or no days for it")
    folder = run.scratch / "nvtabular"
    folder.mkdir()
    rows = from_map(_read_part, joined_parts(run.scratch, TRAIN))
    fitted = recipe.fit(rows, load_side_tables(tables), str(folder))
    run.progress.tell(f"fitted the {recipe.name} recipe on {joined.rows[TRAIN]:,} training rows")
    out_of_fold = {name: rates for name, rates in fitted.out_of_fold.items() if name in recipe.features}
    return Fitted({name: fitted.encoders[name] for name in recipe.features}, out_of_fold)


def write(run: Run, encoding: Encoding, rows: int, folder: Path, files: int) -> Chunk:
    """Encode the joined parts of a mapping and write its files.

    Args:
        run: workers, scratch folder and settings.
        encoding: how to encode the parts.
        rows: total number of rows of the parts.
        folder: folder for the files; it is created.
        files: maximum number of files.

    Returns:
        The chunk of the files in the specification.
    """
    parts = joined_parts(run.scratch, encoding.mapping)
    done, encoded = run.progress.stage(f"encode {folder.name}", rows), 0
    for number in run.workers.map(encoding.encode_part, parts):
        encoded += number
        done(encoded)
    for part in parts:
        part.unlink()
    return write_files(encoding, folder, rows, files, run.progress.stage(f"write {folder.name}", rows))


def specification(
    recipe: Recipe, encoders: dict[str, Encoder], folder: Path, *, labelled: bool = True, with_ads: bool = False
) -> FeatureSpec:
    """Return the specification of a dataset, without sources.

    Args:
        recipe: recipe of the features.
        encoders: encoder of each feature, by feature name.
        folder: folder of the dataset.
        labelled: whether all rows have a label.
        with_ads: whether there is a column `raw_ad_id` with the raw ad id.
    """
    features = encoded_features(encoders, {name: TAGS_PER_ROW for name in recipe.tags})
    features[DISPLAY] = Feature(name=DISPLAY, dtype="int64")
    if with_ads:
        features[RAW_AD] = Feature(name=RAW_AD, dtype="int64")
    features[CLICKED] = Feature(name=CLICKED, dtype="float32", missing="error" if labelled else "ignore")
    channels = {
        ONEHOT: recipe.onehot,
        MULTIHOT: tuple(recipe.tags),
        NUMERICAL: recipe.numerical,
        LABEL: (CLICKED,),
        MAP: (DISPLAY,),
    }
    return FeatureSpec(folder, features, {}, channels, {"dataset": "outbrain", "recipe": recipe.name})


def _join_part(scratch: Path, tables: Path, seed: int, split: bool, files: JoinedFiles, part: int) -> Joined:
    return join_part(part, scratch, load_side_tables(tables), seed, split=split, files=files)


def _read_part(path: Path) -> pd.DataFrame:
    return to_device(pq.read_table(path, page_checksum_verification=True).to_pandas())
