"""Generates random CSV files for a feature specification."""

import argparse
import math
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np

from data.command_line import Parser, run_tool, whole_number
from data.errors import DataError
from data.files.csv import check_can_write, write_csv_chunks
from data.files.new_dataset import SPEC_FILE
from data.files.pretrained import write_vectors
from data.files.random_rows import BLOCK_ROWS, SignalOf, paired_features, random_tables, random_vectors
from data.memory import check_fits, in_gibibytes
from data.spec.feature_spec import FeatureSpec
from data.spec.features import Feature
from data.storage.files import open_regular, write_whole

# Values of pretrained vectors that are drawn at once.
VALUES_AT_ONCE = 1 << 21


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0 for success, 1 for a failure, 2 for wrong input or arguments."""
    args = _parse(argv)
    return run_tool("gen_csv", lambda: generate(args))


def generate(args: argparse.Namespace) -> int:
    """Write random rows to every file of a CSV specification, and a copy of the specification next to them.

    Raises:
        DataError: The specification lists files that are not CSV, an output file already exists, the rows fit neither
            in memory nor on the disk, or there are no pairs of features that could have effects.
    """
    output, rows, spec_path = args.output, args.size, args.feature_spec_in
    spec = FeatureSpec.read(spec_path, allow_outside_paths=args.allow_outside_paths)
    _check_output(spec, args)
    if args.signal_of == "pairs" and len(paired := paired_features(spec)) < 2:
        raise DataError(
            f"{spec_path}: --signal_of pairs needs two one-hot features without `serve` and `wide: only`, and there "
            f"are {len(paired)}; add features to channel_spec.onehot_categorical, or pass --signal_of values"
        )
    _check_sizes(spec, output, rows)
    for mapping, chunks in spec.sources.items():
        tables = random_tables(spec, mapping, rows, seed=args.seed, signal=args.signal, signal_of=args.signal_of)
        write_csv_chunks(chunks, output, tables, rows)
        print(f"gen_csv: {mapping}: {rows:,} rows in {len(spec.files(mapping))} files", file=sys.stderr)
    for feature in spec.pretrained:
        _write_vectors(spec, feature, output, args.seed)
    if not os.path.lexists(output / SPEC_FILE):
        with open_regular(spec_path) as file:
            write_whole(output / SPEC_FILE, file.read())
    return 0


def _write_vectors(spec: FeatureSpec, feature: Feature, output: Path, seed: int) -> None:
    """Write random vectors for all ids that a pretrained vector is looked up by."""
    of = spec.features[str(feature.of)]
    path, rows = output / str(feature.pretrained), max(1, VALUES_AT_ONCE // (feature.dimension or 1))
    blocks = (np.arange(start, min(start + rows, of.cardinality or 0)) for start in range(0, of.cardinality or 0, rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    vectors = ((ids, random_vectors(feature, ids, seed)) for ids in blocks)
    write_vectors(path, of.name, feature.name, feature.table_dtype, vectors)
    print(f"gen_csv: {feature.name}: {of.cardinality:,} vectors", file=sys.stderr)


def _check_sizes(spec: FeatureSpec, output: Path, rows: int) -> None:
    """Raise DataError if lists do not fit in memory, or the rows do not fit on the disk."""
    block = min(rows, BLOCK_ROWS)
    lists = [
        (f"feature {feature.name!r}", feature.max_hotness or 0, 1 if feature.weights is None else 2)
        for feature in spec.multihot
    ]
    lists += [(f"sequence {each.name!r}", each.length, len(each.features)) for each in spec.sequences]
    for name, longest, columns in lists:
        # Lists have longest / 2 items on average, drawn as float64 (8 bytes) and stored in at most 8 bytes.
        check_fits(
            block * longest // 2 * 8 * columns,
            f"{output}: {name}, with up to {longest:,} ids in each of {block:,} rows,",
            "lower its max_hotness in the specification, or --size",
        )
    for feature in spec.vectors:
        check_fits(
            block * (feature.dimension or 0) * 8,
            f"{output}: feature {feature.name!r}, with {feature.dimension:,} numbers in each of {block:,} rows,",
            "lower its dimension in the specification, or --size",
        )
    # Lower bound: one digit and one separator per cell.
    needed = sum(2 * rows * len(chunk.features) for chunks in spec.sources.values() for chunk in chunks)
    # Random numbers do not shrink when a file is compressed.
    needed += sum(
        (spec.features[str(own.of)].cardinality or 0) * (own.dimension or 0) * np.dtype(own.table_dtype).itemsize
        for own in spec.pretrained
    )
    # The output folder may not exist yet: measure its closest existing parent.
    free = shutil.disk_usage(
        next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    ).free
    if needed > free:
        raise DataError(
            f"{output}: {rows:,} rows in each mapping take at least {in_gibibytes(needed)}, and "
            f"{in_gibibytes(free)} are free on the disk; lower --size, or choose another --output"
        )


def _check_output(spec: FeatureSpec, args: argparse.Namespace) -> None:
    """Raise DataError if a file is listed twice, is not CSV or exists, or if another specification is in the way."""
    spec_path, output = args.feature_spec_in, args.output
    files = Counter(path for mapping in spec.sources for path in spec.files(mapping))
    for path, count in files.items():
        if count > 1:
            raise DataError(f"{spec_path}: {path.name} is listed {count} times; random rows need separate files")
    for mapping, chunks in spec.sources.items():
        for chunk in chunks:
            if chunk.type != "csv":
                raise DataError(f"{spec_path}: mapping {mapping!r} has chunks of type {chunk.type}, expected csv")
            check_can_write(chunk, output, args.size)
    for feature in spec.pretrained:
        if os.path.lexists(path := output / str(feature.pretrained)):
            raise DataError(f"{path}: exists; choose another output folder, or delete it")
    present = output / SPEC_FILE
    if not os.path.lexists(present):
        return
    if FeatureSpec.read(present, allow_outside_paths=args.allow_outside_paths).to_dict() != spec.to_dict():
        raise DataError(f"{present}: differs from {spec_path}; choose another output folder, or delete it")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="gen_csv.py",
        description=(
            "Generates random CSV files for every mapping of a feature specification, and copies the specification "
            "next to them as feature_spec.yaml, ready for transcode.py."
        ),
    )
    add = parser.add_argument
    add("--feature_spec_in", type=Path, default=SPEC_FILE, metavar="FILE", help="specification of csv files")
    add("--output", type=Path, default="/data", metavar="DIR", help="folder of the files, created if missing")
    add("--size", type=whole_number(1), default=1000, metavar="ROWS", help="number of rows of each mapping")
    add(
        "--seed", type=whole_number(0), default=0, help="seed of the random numbers; the same seed gives the same files"
    )
    add(
        "--signal",
        type=_strength,
        default=0.0,
        metavar="STRENGTH",
        help=(
            "standard deviation of the labels' log odds over the rows: at 0 labels are independent of the features, "
            "at 1, 2 and 4 a perfect model reaches an AUC of about 0.74, 0.86 and 0.95. Every id has its own "
            "effect on the labels, so rare ids take many rows to learn. In a sequence with a target, labels depend on "
            "the step most similar to it"
        ),
    )
    add(
        "--signal_of",
        choices=get_args(SignalOf),
        default="values",
        help=(
            "what has effects on the labels under --signal; values: the values of all features, as above; pairs: all "
            "pairs of ids of one-hot features, of which single ids tell little: a linear model needs their crosses"
        ),
    )
    parser.add_outside_paths()
    return parser.parse(argv)


def _strength(text: str) -> float:
    try:
        strength = float(text)
    except ValueError:
        strength = math.nan
    if not 0 <= strength <= 100:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 100, got {text!r}")
    return strength


if __name__ == "__main__":
    sys.exit(main())
