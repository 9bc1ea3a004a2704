"""Turns raw logs into a parquet dataset that can be trained on, as a raw specification says."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from data.command_line import Parser, run_tool, whole_number
from data.errors import DataError
from data.files.new_dataset import SPEC_FILE
from data.preprocess.prepared import StageLog
from data.preprocess.workers import add_resource_flags, check_resource_flags
from data.spec.raw.reader import raw_spec_from_dict
from data.spec.yaml_reader import read_yaml

if TYPE_CHECKING:
    from data.preprocess.engine import Resources

NAME = "preprocess"
DESCRIPTION = """Turns raw logs (CSV or parquet) into a parquet dataset that main.py trains on.
With a specification:    preprocess.py --input RAW --output DATA
Write a first one:       preprocess.py --infer 'RAW/*.csv.gz' --label click --write_spec RAW/feature_spec.yaml
Encode new rows:         preprocess.py --workflow DATA/workflow --input NEW --output NEWDATA"""


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 for success, 1 for a failure, 2 for wrong input or arguments."""
    args = _parse(argv)

    def job() -> int:
        if args.infer:
            _infer(args)
        if args.workflow:
            _encode_new(args)
        elif args.output:
            _preprocess(args)
        return 0

    return run_tool(NAME, job)


def _infer(args: argparse.Namespace) -> None:
    from data.raw.infer import infer

    text = infer(args.infer, args.label, time=args.time, folder=args.write_spec.parent, rows=args.sample_rows)
    args.write_spec.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(args.write_spec, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise DataError(f"{args.write_spec}: exists; remove it, or give another name to --write_spec") from error
    print(f"{NAME}: {text.splitlines()[0].removeprefix('# ')}", file=sys.stderr)
    following = f", then run: python preprocess.py --input {args.write_spec.parent} --output DATA"
    hint = "" if args.output else following
    print(f"{NAME}: wrote {args.write_spec}; read its comments{hint}", file=sys.stderr)


def _preprocess(args: argparse.Namespace) -> None:
    path, folder = _specification(args)
    document = read_yaml(path)
    spec = raw_spec_from_dict(document, folder, source=str(path), allow_outside_paths=args.allow_outside_paths)
    # Imported late: it imports NVTabular, which takes seconds.
    from data.preprocess.engine import preprocess, with_files

    is_listed = bool(args.input) and args.input[0].is_file()
    preprocess(
        with_files(spec, args.input) if is_listed else spec,
        document,
        args.output,
        _resources(args),
        StageLog(NAME),
        allow_outside_paths=is_listed or args.allow_outside_paths,
    )


def _specification(args: argparse.Namespace) -> tuple[Path, Path]:
    """Returns the path of the raw specification, and the folder that the paths in it are relative to."""
    if args.infer:
        return args.write_spec, args.write_spec.absolute().parent
    if missing := [path for path in args.input if not path.exists()]:
        raise DataError(f"--input {missing[0]}: no such file or folder")
    given = Path(args.feature_spec_in)
    if args.input[0].is_file():
        return _existing(given, args.input[0]), Path.cwd()
    folder = args.input[0]
    inside = folder / given
    return _existing(inside if inside.exists() or not given.exists() else given, folder), folder.absolute()


def _existing(path: Path, raw: Path) -> Path:
    """Returns the path of a specification of raw files, if it exists."""
    if not path.exists():
        raise DataError(
            f"{path}: no such specification; name it with --feature_spec_in FILE, or write a first one: preprocess.py "
            f"--infer {shlex.quote(str(raw))} --label COLUMN --write_spec {shlex.quote(str(path))}"
        )
    return path


def _encode_new(args: argparse.Namespace) -> None:
    from data.preprocess.engine import encode_new

    encode_new(args.workflow, args.input, args.output, keep=args.keep, resources=_resources(args), log=StageLog(NAME))


def _resources(args: argparse.Namespace) -> "Resources":
    from data.preprocess.engine import Resources

    return Resources(args.memory_limit, args.use_dask, args.dask_scheduler)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="preprocess.py", description=DESCRIPTION)
    add = parser.add_argument
    add("--input", type=Path, nargs="+", metavar="PATH", help="folder of the raw files, or the files themselves")
    add("--output", type=Path, metavar="DIR", help="folder of the new dataset, created if missing")
    add("--feature_spec_in", default=SPEC_FILE, metavar="FILE", help="the raw specification, in --input or elsewhere")
    add("--workflow", type=Path, metavar="DIR", help="workflow/ of a dataset or model, to encode new rows with")
    add("--keep", nargs="+", default=[], metavar="COLUMN", help="with --workflow: raw columns to store as they are")
    add("--infer", nargs="+", metavar="PATTERN", help="raw files to write a first specification for, as quoted globs")
    add("--label", nargs="+", action="extend", default=[], metavar="COLUMN", help="with --infer: columns to learn")
    add("--time", metavar="COLUMN", help="with --infer: column of the time, by which rows are split")
    add("--write_spec", type=Path, metavar="FILE", help="with --infer: the specification to write")
    add("--sample_rows", type=whole_number(1), default=100_000, help="with --infer: rows to look at")
    add_resource_flags(parser)
    parser.add_outside_paths()
    args = parser.parse(argv)
    check_resource_flags(parser, args)
    _check(parser, args)
    return args


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exits with an error unless the flags say what to do."""
    if args.infer:
        if not args.label:
            parser.error("--infer: needs --label COLUMN, the column to learn")
        if args.write_spec is None:
            parser.error("--infer: needs --write_spec FILE, such as RAW/feature_spec.yaml")
        if args.input or args.workflow:
            parser.error("--infer: reads the files that it names; remove --input and --workflow")
    else:
        _check_use(parser, args)


def _check_use(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exits with an error unless the flags say what to do without --infer."""
    given = [flag for flag in ("label", "time", "write_spec") if getattr(args, flag)]
    if given:
        parser.error(f"--{given[0]}: only with --infer; otherwise the specification says what the columns are")
    if not args.input:
        parser.error("--input: needs the folder of the raw files (or use --infer to write a first specification)")
    if args.output is None:
        parser.error("--output: needs the folder of the new dataset")
    if not args.workflow and len(args.input) > 1 and any(path.is_dir() for path in args.input):
        parser.error("--input: expected one folder, or files")
    if args.keep and not args.workflow:
        parser.error("--keep is only for new rows; without a --workflow, write `keep: [COLUMN]` into the specification")


if __name__ == "__main__":
    sys.exit(main())
