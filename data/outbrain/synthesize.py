"""Generate a synthetic Outbrain Click Prediction: python -m data.outbrain.synthesize --output RAW --displays N."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.command_line import Parser, run_tool, whole_number
from data.errors import DataError
from data.files.new_dataset import new_dataset
from data.outbrain.synthetic.displays import Displays, draw_displays, draw_page_views
from data.outbrain.synthetic.files import TableWriter, event_columns, view_columns, write_documents, write_promoted
from data.outbrain.synthetic.marginals import Marginals
from data.outbrain.synthetic.world import World, make_world
from data.outbrain.tables import CLICKS, CLICKS_TO_PREDICT, EVENTS, PAGE_VIEWS
from data.preprocess.prepared import Progress

SUMMARY_FILE = "synthetic.json"
TRUTH_FILE = "truth/click_probabilities.parquet"
FORMAT_VERSION = 1
FEWEST_DISPLAYS = 50
DISPLAYS_PER_BLOCK = 16_384
TRUTH_SCHEMA = pa.schema([("display_id", pa.int64()), ("ad_id", pa.int64()), ("probability", pa.float64())])


def synthesize(output: Path, displays: int, seed: int = 0) -> None:
    """Write the raw tables, the true click probabilities and a summary, atomically.

    Args:
        output: folder for the tables, which is empty or does not exist yet.
        displays: number of training displays, at least 50; a fifth as many displays to predict are added.
        seed: seed of all draws.

    Raises:
        DataError: if `output` is not empty, or `displays` is too small.
    """
    if displays < FEWEST_DISPLAYS:
        raise DataError(f"--displays {displays}: expected at least {FEWEST_DISPLAYS}")
    if output.is_dir() and any(output.iterdir()):
        first = min(path.name for path in output.iterdir())
        raise DataError(f"{output}: is not empty ({first}); choose another folder, or delete what is in it")
    progress = Progress("outbrain")
    with new_dataset(output, SUMMARY_FILE) as draft:
        world = make_world(displays, seed)
        progress.tell(f"drew {len(world.documents):,} documents and {len(world.ads):,} ads")
        rows = write_documents(draft, world) | write_promoted(draft, world)
        progress.tell("wrote the documents_* tables and promoted_content")
        marginals = Marginals(world)
        rows |= _write_displays(draft, world, marginals, progress)
        rows |= _write_page_views(draft, world, progress)
        summary = {
            "format_version": FORMAT_VERSION,
            "displays": displays,
            "rows": marginals.rows,
            "seed": seed,
            "map_at_12_ceiling": marginals.map_at_12_ceiling,
            "table_rows": rows,
            "marginals": marginals.measured(),
        }
        (draft / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n")
    progress.tell(f"MAP@12 of ranking by the true probabilities: {marginals.map_at_12_ceiling:.4f}")
    progress.tell(f"done: {output}")


def _write_displays(draft: Path, world: World, marginals: Marginals, progress: Progress) -> dict[str, int]:
    """Write events, clicks_train, clicks_test and the true probabilities; return the number of rows by table."""
    (draft / TRUTH_FILE).parent.mkdir()
    with (
        TableWriter(draft, EVENTS) as events,
        TableWriter(draft, CLICKS) as clicks,
        TableWriter(draft, CLICKS_TO_PREDICT) as to_predict,
        pq.ParquetWriter(draft / TRUTH_FILE, TRUTH_SCHEMA, write_page_checksum=True) as truth,
    ):
        # Blocks do not cross from training to test.
        for first, last in ((0, world.displays), (world.displays, world.events)):
            for begin in range(first, last, DISPLAYS_PER_BLOCK):
                shown = draw_displays(world, begin, min(begin + DISPLAYS_PER_BLOCK, last))
                events.write(event_columns(world, shown))
                marginals.add(shown)
                if first:
                    to_predict.write(_keys(shown))
                else:
                    clicks.write(_keys(shown) | {"clicked": shown.clicked.astype(np.int8)})
                    truth.write_table(pa.table(_keys(shown) | {"probability": shown.probabilities}, TRUTH_SCHEMA))
                progress.tell(f"events: {events.rows:,} of {world.events:,}; clicks_train: {clicks.rows:,} rows")
    return {EVENTS.name: events.rows, CLICKS.name: clicks.rows, CLICKS_TO_PREDICT.name: to_predict.rows}


def _keys(shown: Displays) -> dict[str, np.ndarray]:
    return {"display_id": shown.row_events + 1, "ad_id": shown.ads + 1}


def _write_page_views(draft: Path, world: World, progress: Progress) -> dict[str, int]:
    with TableWriter(draft, PAGE_VIEWS) as file:
        for columns in view_columns(world, draw_page_views(world)):
            file.write(columns)
        progress.tell(f"page_views_sample: {file.rows:,} rows")
    return {PAGE_VIEWS.name: file.rows}


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0 success, 1 failure, 2 invalid input or arguments."""
    args = _parse(argv)

    def job() -> int:
        synthesize(**vars(args))
        return 0

    return run_tool("outbrain", job)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m data.outbrain.synthesize",
        description=(
            "Makes raw tables in the form of Kaggle's Outbrain Click Prediction, with its published rates and a "
            "planted signal, the true click probabilities, and the MAP@12 that a perfect ranking reaches."
        ),
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the tables, empty or made if missing")
    add("--displays", type=whole_number(FEWEST_DISPLAYS), default=200_000, help="training displays, of 5.16 ads each")
    add("--seed", type=whole_number(0), default=0, help="of everything")
    return parser.parse(argv)


if __name__ == "__main__":
    sys.exit(main())
