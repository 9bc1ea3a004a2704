"""Prepare Outbrain's raw tables as a dataset: python -m data.outbrain.preproc --data_path RAW --metadata_path OUT.

Stages: read the side tables; partition clicks and events by display; join every part; fit the recipe's encoders on the
training rows; encode every part; order and write the rows.
"""

import argparse
import os
import sys
from pathlib import Path

from data.command_line import Parser, whole_number
from data.files.new_dataset import SPEC_FILE, new_dataset
from data.outbrain.raw_tables import CLICKS, EVENTS, META, PROMOTED, TAG_TABLES, require_raw
from data.preprocess.prepared import StageLog, run_prepare
from data.preprocess.workers import add_resource_flags, check_resource_flags

ENTRIES = ("train", "valid", "workflow", "manifest.json", "embedding_sizes.json")
RECIPES = ("leak_free", "published")
TABLES = (CLICKS, EVENTS, PROMOTED, META, *TAG_TABLES.values())


def preprocess(
    raw: Path,
    output: Path,
    *,
    recipe: str = "leak_free",
    seed: int = 0,
    output_files: int = 8,
    memory_limit: int | None = None,
    use_dask: bool = False,
    dask_scheduler: str | None = None,
) -> None:
    """Write training and validation files, specification, embedding sizes, workflow and manifest, atomically.

    Args:
        raw: folder of the raw tables.
        output: folder for the dataset; must not contain one yet.
        recipe: name of the recipe, one of `RECIPES`.
        seed: seed of the split, the folds and the order of rows.
        output_files: maximum number of files per mapping.
        memory_limit: memory limit in bytes, summed over all processes; None uses half of the machine's memory.
        use_dask, dask_scheduler: see `start_workers`.

    Raises:
        DataError: if the input is invalid.
    """
    log = StageLog("outbrain")
    log.write(f"from {raw} into {output}, recipe {recipe}")
    require_raw(raw, TABLES)
    with new_dataset(output, entries=ENTRIES) as draft:
        # Imports NVTabular, which takes seconds: mistakes in arguments and missing files are reported first.
        from data.outbrain import pipeline

        with pipeline.start_pipeline(draft, seed, memory_limit, use_dask, dask_scheduler, log) as stages:
            spec = pipeline.prepare(stages, raw, draft, recipe, output_files)
        spec.write(draft / SPEC_FILE)
    log.write(f"done: {output}")


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0 success, 1 failure, 2 invalid input or arguments."""
    return run_prepare("outbrain", preprocess, _parse(argv))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m data.outbrain.preproc",
        description=(
            "Converts the tables of Kaggle's Outbrain Click Prediction (.csv, .csv.gz or .csv.zip) into a parquet "
            "dataset of 29 or more features, with its feature specification, for main.py."
        ),
    )
    add = parser.add_argument
    root = Path("/outbrain" if os.access("/outbrain", os.W_OK) else "outbrain")
    add("--data_path", dest="raw", type=Path, default=root / "orig", metavar="RAW", help="folder of the raw tables")
    add("--metadata_path", dest="output", type=Path, default=root / "data", metavar="OUT", help="dataset folder")
    add("--recipe", choices=RECIPES, default=RECIPES[0], help="how features are computed: see docs/outbrain.md")
    add("--seed", type=whole_number(0), default=0, help="seed of the split, the folds and the order of rows")
    add("--output_files", type=whole_number(1), default=8, help="maximum number of files per mapping")
    add_resource_flags(parser)
    args = parser.parse(argv)
    check_resource_flags(parser, args)
    return args


if __name__ == "__main__":
    sys.exit(main())
