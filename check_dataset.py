"""Checks a dataset before training: its specification, then every value in its files."""

import argparse
import sys
from collections import Counter
from itertools import chain

from data.checks.dataset import Finding, MappingSummary, check_folder, check_mapping, read_encoders
from data.command_line import Parser, location, run_tool, whole_number
from data.encoding.remote_dataset import pull_dataset
from data.files.new_dataset import SPEC_FILE
from data.preprocess.findings import DatasetCounts
from data.spec.feature_spec import FeatureSpec


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code.

    Returns:
        0 if no error was found, 1 for errors in the data or a failure, 2 for a wrong specification or arguments.
    """
    args = _parse(argv)
    return run_tool("check_dataset", lambda: check(args))


def check(args: argparse.Namespace) -> int:
    """Print the findings, notes on what is unusual, and a summary; return 1 if any finding is an error, else 0."""
    pull_dataset(args.dataset, args.fspec_file, allow_outside_paths=args.allow_outside_paths)
    spec = FeatureSpec.read(args.dataset / args.fspec_file, allow_outside_paths=args.allow_outside_paths)
    counts: Counter[str] = Counter()
    values = DatasetCounts(spec, read_encoders(spec, allow_outside_paths=args.allow_outside_paths))
    summaries = {mapping: MappingSummary(counts=values.mapping(mapping)) for mapping in spec.sources}
    errors = 0
    # Generators: findings are printed while the files are scanned, and the summaries are filled on the way.
    of_files = (check_mapping(spec, mapping, summary) for mapping, summary in summaries.items())
    of_folder = check_folder(spec, allow_outside_paths=args.allow_outside_paths)
    for finding in chain(of_folder, *of_files):
        if counts.total() < args.max_findings:
            print(finding, flush=True)
        counts[_kind(finding)] += 1
        errors += not finding.is_warning
    if counts.total() > args.max_findings:
        print(f"... and {counts.total() - args.max_findings} more findings (--max_findings shows them)")
    _print_summary(summaries, counts, values.texts())
    return 1 if errors else 0


def _kind(finding: Finding) -> str:
    return f"{finding.what} (warning)" if finding.is_warning else finding.what


def _print_summary(summaries: dict[str, MappingSummary], counts: Counter[str], notes: list[str]) -> None:
    for mapping, summary in summaries.items():
        labels = "; ".join(label.describe() for label in summary.labels.values())
        print(f"{mapping}: {summary.rows:,} rows in {summary.files} files; {labels}")
    for note in notes:
        print(f"note: {note}")
    if counts:
        print("findings: " + ", ".join(f"{what}: {count}" for what, count in counts.most_common()))
    else:
        print("no findings" + (f" besides {len(notes)} notes" if notes else ""))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="check_dataset.py",
        description=(
            "Checks a dataset before it is trained on: the specification, then every value of every file. Prints each "
            "finding with its location (rows of parquet files count from 0, lines of CSV files from 1) and exits with "
            "1 if there is an error among them, with 2 if the specification itself is wrong."
        ),
    )
    parser.add_argument("dataset", type=location, metavar="DATASET_FOLDER", help="folder or URL of the dataset")
    parser.add_argument("--fspec_file", default=SPEC_FILE, metavar="FILE", help="its specification, in that folder")
    parser.add_argument(
        "--max_findings", type=whole_number(0), default=20, metavar="N", help="findings to print; all are counted"
    )
    parser.add_outside_paths()
    return parser.parse(argv)


if __name__ == "__main__":
    sys.exit(main())
