"""The files that a report consists of, and checks that they replace no other files. Does not import matplotlib."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from data.storage.files import open_regular
from data.storage.output_paths import check_apart, check_replaceable_file
from trainer.importance_file import FILE as IMPORTANCE_FILE
from trainer.report.runs import Run

PAGE, LEARNING_CURVE = "report.html", "learning_curve"
# What generated files are recognized by: the start of a page's title, and a string in the metadata of pictures.
TITLE = "Training report: "
SOURCE = "Training report of a recommender"
HEAD_BYTES = 1 << 12  # both are within so many bytes from the start


def gates_name(number: int, runs: int) -> str:
    """Return the file name, without suffix, of the gate plot of one of several runs, counted from 1."""
    return "gates" if runs == 1 else f"gates_{number}"


def picture_files(folder: Path, name: str) -> list[Path]:
    """Return the paths of a picture's files."""
    return [folder / f"{name}.png", folder / f"{name}.svg"]


def check_inputs_stay(output: Path, folders: Sequence[Path], log_filename: str) -> None:
    """Check that no output file of the report is one of its input files.

    Raises:
        DataError: if two of them are the same; the message names both.
    """
    read = [
        folder / name for folder in folders for name in (log_filename, "args.json", "metrics.json", IMPORTANCE_FILE)
    ]
    names = [LEARNING_CURVE, *(gates_name(number, len(folders)) for number in range(1, len(folders) + 1))]
    pictures = [path for name in names for path in picture_files(output, name)]
    check_apart({"--output": [output / PAGE, *pictures]}, {"a file of --results_dir": read})


def check_report_files(output: Path, runs: Sequence[Run]) -> None:
    """Check that the report of these runs would only replace files of an earlier report.

    Raises:
        DataError: if it would replace another file; the message names it.
    """
    check_replaceable_file(output / PAGE, "the page", partial(_head_contains, mark=f"<title>{TITLE}"))
    check_pictures(output, LEARNING_CURVE)
    for number, run in enumerate(runs, 1):
        if run.gates:
            check_pictures(output, gates_name(number, len(runs)))


def check_pictures(folder: Path, name: str) -> None:
    """Check that a picture would only replace an earlier one.

    Raises:
        DataError: if it would replace another file; the message names it.
    """
    for path in picture_files(folder, name):
        check_replaceable_file(path, "the picture", partial(_head_contains, mark=SOURCE))


def _head_contains(path: Path, mark: str) -> bool:
    with open_regular(path) as file:
        return mark.encode() in file.read(HEAD_BYTES)
