"""The files that report.py writes, and checks of what stands in their place. Imports no matplotlib."""

from collections.abc import Sequence
from pathlib import Path

from data.files import open_regular
from data.output_paths import check_apart, check_replaceable_file
from trainer.report.runs import Run

PAGE, LEARNING_CURVE = "report.html", "learning_curve"
# What marks pages and pictures as ours: the title of a page begins like this, the metadata of a picture hold that.
TITLE = "Training report: "
SOURCE = "Training report of a recommender"
# In this many bytes from its start a file has its mark.
_HEAD = 1 << 12


def gates_name(number: int, runs: int) -> str:
    """The name of the picture of the gates of a run, counted from 1."""
    return "gates" if runs == 1 else f"gates_{number}"


def picture_files(folder: Path, name: str) -> list[Path]:
    """The files of a picture."""
    return [folder / f"{name}.png", folder / f"{name}.svg"]


def check_inputs_stay(output: Path, folders: Sequence[Path], log_filename: str) -> None:
    """Checks that no file of the report is one that it reads.

    Raises:
        DataError: naming both.
    """
    read = [folder / name for folder in folders for name in (log_filename, "args.json", "metrics.json")]
    names = [LEARNING_CURVE, *(gates_name(number, len(folders)) for number in range(1, len(folders) + 1))]
    pictures = [path for name in names for path in picture_files(output, name)]
    check_apart({"--output": [output / PAGE, *pictures]}, {"a file of --results_dir": read})


def check_report_files(output: Path, runs: Sequence[Run]) -> None:
    """Checks that nothing but an earlier report stands where the report of these runs will be written.

    Raises:
        DataError: naming the file in the way.
    """
    check_replaceable_file(output / PAGE, "the page", is_page)
    names = [LEARNING_CURVE, *(gates_name(number, len(runs)) for number, run in enumerate(runs, 1) if run.health)]
    for name in names:
        check_pictures(output, name)


def check_pictures(folder: Path, name: str) -> None:
    """Checks that a picture can be written.

    Raises:
        DataError: naming the file in the way.
    """
    for path in picture_files(folder, name):
        check_replaceable_file(path, "the picture", is_picture)


def is_page(path: Path) -> bool:
    """Whether a file is a page of report.py."""
    return f"<title>{TITLE}".encode() in _head(path)


def is_picture(path: Path) -> bool:
    """Whether a file is a picture of report.py or of a run's gates."""
    return SOURCE.encode() in _head(path)


def _head(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read(_HEAD)
