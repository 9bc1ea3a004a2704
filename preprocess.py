"""Turns raw logs into a parquet dataset that can be trained on, as a raw specification says."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from data.command_line import Parser, location, run_tool, whole_number
from data.encoding.workflow_folder import RAW_SPEC_FILE, read_raw_document
from data.errors import DataError
from data.files.new_dataset import SPEC_FILE
from data.preprocess.prepared import StageLog
from data.preprocess.workers import add_resource_flags, check_resource_flags
from data.spec.raw.reader import raw_spec_from_dict
from data.spec.yaml_reader import read_yaml
from data.storage import remote
from data.storage.checksummed_dir import MANIFEST
from data.storage.file_patterns import has_wildcard
from data.storage.working_copy import working_copy

if TYPE_CHECKING:
    from data.preprocess.engine import Resources

NAME = "preprocess"
KEEP, UPDATE = "keep", "update"
DESCRIPTION = """Turns raw logs (CSV or parquet) into a parquet dataset that main.py trains on.
With a specification:    preprocess.py --input RAW --output DATA
Write a first one:       preprocess.py --infer 'RAW/*.csv.gz' --label click --write_spec RAW/feature_spec.yaml
The next day's dataset:  preprocess.py --extend DATA/workflow --input DAY2 --output DATA2
Encode new rows:         preprocess.py --workflow DATA/workflow --input NEW --output NEWDATA"""


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0 for success, 1 for a failure, 2 for wrong input or arguments."""
    args = _parse(argv)

    def job() -> int:
        for folder in (args.workflow, args.extend):
            if folder and (url := remote.url_of(folder)):
                remote.pull_folder(url, MANIFEST)
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
    is_stored = path == _stored(args)
    if is_stored:
        document = read_raw_document(args.extend)
    else:
        with working_copy(path) as copy:
            document = read_yaml(copy)
    source = remote.named(path)
    spec = raw_spec_from_dict(document, folder, source=source, allow_outside_paths=args.allow_outside_paths)
    # Imported late: it imports NVTabular, which takes seconds.
    from data.preprocess.engine import Extension, preprocess, with_files

    # The files of a stored specification are those of an earlier day. Several sources have the same names every day.
    is_listed = bool(args.input) and (not _is_folder(args.input[0]) or (is_stored and len(spec.sources) == 1))
    if is_listed:
        # The files are anywhere. Vectors are beside a specification that is given, too, and otherwise the day's.
        of_day = folder if _is_folder(args.input[0]) else args.input[0].parent
        spec = with_files(spec, args.input, of_day if is_stored else path.parent)
    preprocess(
        spec,
        document,
        args.output,
        _resources(args),
        StageLog(NAME),
        extension=Extension(args.extend, args.retire_after, args.scalers == UPDATE) if args.extend else None,
        allow_outside_paths=is_listed or args.allow_outside_paths,
    )


def _stored(args: argparse.Namespace) -> Path | None:
    """Return the path of the specification that the earlier dataset was made with, with --extend."""
    return args.extend / RAW_SPEC_FILE if args.extend else None


def _specification(args: argparse.Namespace) -> tuple[Path, Path]:
    """Return the path of the raw specification, and the folder that the paths in it are relative to."""
    if args.infer:
        return args.write_spec, args.write_spec.absolute().parent
    is_local = [remote.url_of(path) is None and not has_wildcard(str(path)) for path in args.input]
    if missing := [path for path, here in zip(args.input, is_local, strict=True) if here and not path.exists()]:
        raise DataError(f"--input {missing[0]}: no such file or folder")
    if len(args.input) > 1 and any(map(_is_folder, args.input)):
        raise DataError("--input: expected one folder, or files")
    given, stored = args.feature_spec_in or Path(SPEC_FILE), None if args.feature_spec_in else _stored(args)
    folder = args.input[0]
    if not _is_folder(folder):
        return _existing(given, folder, stored), Path.cwd()
    inside = folder / given
    return _existing(inside if _exists(inside) or not _exists(given) else given, folder, stored), folder.absolute()


def _exists(path: Path) -> bool:
    url = remote.url_of(path)
    return path.exists() if url is None else remote.exists(url)


def _is_folder(path: Path) -> bool:
    """Return whether an input is a folder, rather than a file or a pattern."""
    if remote.url_of(path) is None:
        return path.is_dir()
    return not has_wildcard(str(path)) and not _exists(path)


def _existing(path: Path, raw: Path, otherwise: Path | None) -> Path:
    """Return the path of a specification of raw files, if it exists, or another one."""
    if not _exists(path):
        if otherwise is not None:
            return otherwise
        raise DataError(
            f"{remote.named(path)}: no such specification; name it with --feature_spec_in FILE, or write a first one: "
            f"preprocess.py --infer {_quoted(raw)} --label COLUMN --write_spec {_quoted(path)}"
        )
    return path


def _quoted(path: Path) -> str:
    """Return a path for a command; --infer works on local files only."""
    return shlex.quote(str(path) if remote.url_of(path) is None else f"COPY/{path.name}")


def _encode_new(args: argparse.Namespace) -> None:
    from data.preprocess.engine import encode_new

    encode_new(args.workflow, args.input, args.output, keep=args.keep, resources=_resources(args), log=StageLog(NAME))


def _resources(args: argparse.Namespace) -> "Resources":
    from data.preprocess.engine import Resources

    return Resources(args.memory_limit, args.use_dask, args.dask_scheduler)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="preprocess.py", description=DESCRIPTION)
    add = parser.add_argument
    add(
        "--input",
        type=location,
        nargs="+",
        metavar="PATH",
        help="folder or URL of the raw files, or the files themselves",
    )
    add("--output", type=location, metavar="DIR", help="folder or URL of the new dataset, created if missing")
    add(
        "--feature_spec_in",
        type=location,
        metavar="FILE",
        help=f"the raw specification, in --input or elsewhere ({SPEC_FILE})",
    )
    add("--workflow", type=location, metavar="DIR", help="workflow/ of a dataset or model, to encode new rows with")
    add("--keep", nargs="+", default=[], metavar="COLUMN", help="with --workflow: raw columns to store as they are")
    add(
        "--extend", type=location, metavar="DIR", help="workflow/ of an earlier dataset or its model, whose ids to keep"
    )
    add(
        "--retire_after", type=whole_number(1), metavar="N", help="with --extend: free the ids of values unseen N times"
    )
    add("--scalers", choices=(KEEP, UPDATE), help="with --extend: keep the scaling of numbers (default), or refit it")
    add("--infer", nargs="+", metavar="PATTERN", help="raw files to write a first specification for, as quoted globs")
    add("--label", nargs="+", action="extend", default=[], metavar="COLUMN", help="with --infer: columns to learn")
    add("--time", metavar="COLUMN", help="with --infer: column of the time, by which rows are split")
    add("--write_spec", type=location, metavar="FILE", help="with --infer: the specification to write")
    add("--sample_rows", type=whole_number(1), default=100_000, help="with --infer: rows to look at")
    add_resource_flags(parser)
    parser.add_outside_paths()
    args = parser.parse(argv)
    check_resource_flags(parser, args)
    _check(parser, args)
    return args


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with an error unless the flags say what to do."""
    if args.infer:
        if not args.label:
            parser.error("--infer: needs --label COLUMN, the column to learn")
        if args.write_spec is None:
            parser.error("--infer: needs --write_spec FILE, such as RAW/feature_spec.yaml")
        if (url := remote.url_of(args.write_spec)) is not None:
            parser.error(f"--write_spec: {url} is a URL; expected a path of this machine")
        if any(map(remote.is_url, args.infer)):
            parser.error("--infer: reads local files; copy some of the raw files here")
        if args.input or args.workflow or args.extend:
            parser.error("--infer: reads the files that it names; remove --input, --workflow and --extend")
    else:
        _check_use(parser, args)


def _check_use(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with an error unless the flags say what to do without --infer."""
    if args.extend and args.workflow:
        parser.error(
            "--extend: makes a dataset to train on, and --workflow encodes rows to predict; remove one of them"
        )
    given = [flag for flag in ("retire_after", "scalers") if getattr(args, flag) is not None]
    if given and not args.extend:
        parser.error(f"--{given[0]}: needs --extend DIR, the workflow/ of an earlier dataset")
    given = [flag for flag in ("label", "time", "write_spec") if getattr(args, flag)]
    if given:
        parser.error(f"--{given[0]}: only with --infer; otherwise the specification says what the columns are")
    if not args.input:
        parser.error("--input: needs the folder of the raw files (or use --infer to write a first specification)")
    if args.output is None:
        parser.error("--output: needs the folder of the new dataset")
    if args.keep and not args.workflow:
        parser.error("--keep is only for new rows; without a --workflow, write `keep: [COLUMN]` into the specification")


if __name__ == "__main__":
    sys.exit(main())
