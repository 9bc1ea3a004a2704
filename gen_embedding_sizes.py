"""Writes a JSON file of embedding widths for the categorical features of a specification."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from data.command_line import Parser, run_tool, whole_number
from data.errors import DataError
from data.files.new_dataset import SPEC_FILE
from data.spec.embedding_sizes import default_dim
from data.spec.feature_spec import FeatureSpec
from data.spec.features import MAX_EMBEDDING_DIM
from data.storage.files import write_whole
from data.storage.output_paths import check_replaceable_file


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0 for success, 1 for a failure, 2 for wrong input or arguments."""
    args = _parse(argv)

    def job() -> int:
        spec = FeatureSpec.read(args.feature_spec_in, allow_outside_paths=args.allow_outside_paths)
        _check_output(args.output)
        sizes = random_sizes(spec, args.max_size, args.seed) if args.random else rule_sizes(spec, args.max_size)
        _write(sizes, args.output)
        return 0

    return run_tool("gen_embedding_sizes", job)


def rule_sizes(spec: FeatureSpec, max_size: int) -> dict[str, int]:
    """Return {categorical feature: width}: `embedding_dim` if stated, else from the cardinality, up to `max_size`."""
    return {
        feature.name: feature.embedding_dim or min(max_size, default_dim(feature.cardinality or 1))
        for feature in spec.categorical
    }


def random_sizes(spec: FeatureSpec, max_size: int, seed: int) -> dict[str, int]:
    """Return {categorical feature: width} with widths drawn uniformly from [1, max_size]."""
    rng = np.random.default_rng(seed)
    return {feature.name: int(rng.integers(1, max_size + 1)) for feature in spec.categorical}


def _write(sizes: dict[str, int], path: Path) -> None:
    try:
        write_whole(path, json.dumps(sizes, indent=2) + "\n")
    except FileNotFoundError as error:
        raise DataError(f"{path}: its folder does not exist; create it first") from error


def _check_output(path: Path) -> None:
    """Raise DataError if the file exists: it may be hand-written, so no file with content is overwritten."""
    if path.is_dir():
        raise DataError(f"{path}: is a folder; expected a file, such as {path / 'embedding_sizes.json'}")
    check_replaceable_file(path, "--output", lambda _: False)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="gen_embedding_sizes.py",
        description=(
            "Writes {feature: embedding width} as JSON for the categorical features of a specification, for "
            "--embedding_sizes_file of main.py. A width is what the specification states (embedding_dim), else "
            "min(max_size, round(1.6 * cardinality ** 0.56)); a file named embedding_sizes.json next to a "
            "specification is read without the flag."
        ),
    )
    add = parser.add_argument
    add("--feature_spec_in", type=Path, default=SPEC_FILE, metavar="FILE", help="the specification")
    add(
        "--output",
        type=Path,
        required=True,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="a new JSON file",
    )
    add("--max_size", type=whole_number(1), default=256, metavar="WIDTH", help="largest width")
    add("--random", action="store_true", help="draw widths uniformly from [1, max_size] instead")
    add("--seed", type=whole_number(0), default=0, help="seed of the random widths")
    parser.add_outside_paths()
    args = parser.parse(argv)
    if args.max_size > MAX_EMBEDDING_DIM:
        parser.error(f"--max_size {args.max_size}: expected at most {MAX_EMBEDDING_DIM}")
    return args


if __name__ == "__main__":
    sys.exit(main())
