"""Converts a CSV dataset to parquet files that can be trained on."""

import argparse
import sys
from pathlib import Path

from data.command_line import Parser, location, run_tool, whole_number
from data.encoding.remote_dataset import pull_dataset
from data.files.new_dataset import SPEC_FILE
from data.files.transcode import transcode


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0 for success, 1 for a failure, 2 for wrong input or arguments."""
    args = _parse(argv)

    def job() -> int:
        pull_dataset(args.input, args.feature_spec_in, allow_outside_paths=args.allow_outside_paths)
        transcode(
            args.input / args.feature_spec_in,
            args.output,
            spec_file=args.feature_spec_out,
            rows_per_file=args.chunk_size,
            min_files=args.minimum_partition_number,
            allow_outside_paths=args.allow_outside_paths,
        )
        return 0

    return run_tool("transcode", job)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="transcode.py",
        description=(
            "Converts a dataset of CSV files to parquet files that can be trained on. CSV files have no header and one "
            "column per feature in the order of source_spec; a list is one quoted cell such as '[1, 2]'; an empty "
            "cell is a missing value. Every cell is checked, and nothing is written unless all are valid."
        ),
    )
    add = parser.add_argument
    add("--input", type=location, default=".", metavar="DIR", help="folder or URL of the CSV dataset")
    add("--feature_spec_in", default=SPEC_FILE, metavar="FILE", help="its specification, in that folder")
    add(
        "--output",
        type=location,
        default="/data",
        metavar="DIR",
        help="folder or URL of the new dataset, created if missing",
    )
    add("--feature_spec_out", default=SPEC_FILE, metavar="FILE", help="the new specification, in that folder")
    add(
        "--chunk_size",
        type=whole_number(1),
        default=65536,
        metavar="ROWS",
        help="maximum number of rows of a parquet file",
    )
    add(
        "--minimum_partition_number",
        type=whole_number(1),
        default=8,
        metavar="FILES",
        help="minimum number of parquet files per mapping; overrides --chunk_size",
    )
    parser.add_outside_paths()
    args = parser.parse(argv)
    if Path(args.feature_spec_out).name != args.feature_spec_out:
        parser.error(f"--feature_spec_out {args.feature_spec_out}: expected a file name; its folder is --output")
    return args


if __name__ == "__main__":
    sys.exit(main())
