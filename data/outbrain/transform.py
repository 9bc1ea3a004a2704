"""Compute features of new raw rows: python -m data.outbrain.transform --workflow W --input NEW --output DIR."""

import argparse
import sys
from pathlib import Path

from data.command_line import Parser
from data.files.new_dataset import SPEC_FILE, new_dataset
from data.outbrain.raw_tables import CLICKS, CLICKS_TO_PREDICT, EVENTS, find_raw, require_raw
from data.preprocess.prepared import StageLog, run_prepare
from data.preprocess.workers import add_resource_flags, check_resource_flags

CLICK_TABLES = {table.name: table for table in (CLICKS, CLICKS_TO_PREDICT)}


def transform(
    workflow: Path,
    raw: Path,
    output: Path,
    *,
    clicks: str | None = None,
    memory_limit: int | None = None,
    use_dask: bool = False,
    dask_scheduler: str | None = None,
) -> None:
    """Write a dataset of new rows, display by display, atomically.

    Both mappings of its specification refer to the same files, so the rows can be evaluated, predicted or trained on.

    Args:
        workflow: folder `workflow` of a dataset written by `preproc`.
        raw: folder with `events` and clicks; any side tables in it replace those stored in the workflow.
        output: folder for the dataset; must not contain one yet.
        clicks: "clicks_train" (with labels) or "clicks_test"; None uses the first that exists.
        memory_limit, use_dask, dask_scheduler: see `data.outbrain.preproc.preprocess`.

    Raises:
        DataError: if the input is invalid.
    """
    log = StageLog("outbrain")
    chosen = clicks or (CLICKS.name if find_raw(raw, CLICKS) else CLICKS_TO_PREDICT.name)
    table = CLICK_TABLES[chosen]
    require_raw(raw, (table, EVENTS))
    with new_dataset(output) as draft:
        # Imports NVTabular, which takes seconds: mistakes in arguments and missing files are reported first.
        from data.outbrain import pipeline

        with pipeline.start_pipeline(draft, 0, memory_limit, use_dask, dask_scheduler, log) as stages:
            spec = pipeline.transform(stages, workflow, raw, table, draft)
        spec.write(draft / SPEC_FILE)
    log.write(f"done: {output}")


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0 success, 1 failure, 2 invalid input or arguments."""
    return run_prepare("outbrain", transform, _parse(argv))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m data.outbrain.transform",
        description=(
            "Computes the features of new raw rows with the workflow that preproc fitted, and writes them as a dataset."
        ),
    )
    add = parser.add_argument
    add("--workflow", type=Path, required=True, metavar="W", help="folder `workflow` of the training dataset")
    add("--input", dest="raw", type=Path, required=True, metavar="NEW", help="folder with the new tables")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the dataset, created if missing")
    add("--clicks", choices=sorted(CLICK_TABLES), help="table of clicks; default: the first one found")
    add_resource_flags(parser)
    args = parser.parse(argv)
    check_resource_flags(parser, args)
    return args


if __name__ == "__main__":
    sys.exit(main())
