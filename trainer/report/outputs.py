"""The files that report.py writes, and checks of existing files in their place. Does not import matplotlib."""

from collections.abc import Sequence
from pathlib import Path

from data.errors import DataError
from data.storage.files import open_regular
from data.storage.output_paths import check_apart, check_replaceable_file
from trainer.logging.log import warn
from trainer.report.runs import Run, read_run

PAGE, LEARNING_CURVE = "report.html", "learning_curve"
# Marks of generated files: the start of a page's title, and a string in the metadata of pictures.
TITLE = "Training report: "
SOURCE = "Training report of a recommender"
# The mark lies within this many bytes from the start of a file.
_HEAD = 1 << 12


def gates_name(number: int, runs: int) -> str:
    """Returns the file name, without suffix, of a run's gate plot.

    Args:
        number: number of the run, starting at 1.
        runs: number of runs in the report.
    """
    return "gates" if runs == 1 else f"gates_{number}"


def picture_files(folder: Path, name: str) -> list[Path]:
    """Returns the paths of a picture's files."""
    return [folder / f"{name}.png", folder / f"{name}.svg"]


def check_inputs_stay(output: Path, folders: Sequence[Path], log_filename: str) -> None:
    """Checks that no output file of the report is one of its input files.

    Raises:
        DataError: if two of them are the same; the message names both.
    """
    read = [folder / name for folder in folders for name in (log_filename, "args.json", "metrics.json")]
    names = [LEARNING_CURVE, *(gates_name(number, len(folders)) for number in range(1, len(folders) + 1))]
    pictures = [path for name in names for path in picture_files(output, name)]
    check_apart({"--output": [output / PAGE, *pictures]}, {"a file of --results_dir": read})


def check_report_files(output: Path, runs: Sequence[Run]) -> None:
    """Checks that the report of these runs would only replace files of an earlier report.

    Raises:
        DataError: if it would replace another file; the message names it.
    """
    check_replaceable_file(output / PAGE, "the page", is_page)
    names = [LEARNING_CURVE, *(gates_name(number, len(runs)) for number, run in enumerate(runs, 1) if run.gates)]
    for name in names:
        check_pictures(output, name)


def check_pictures(folder: Path, name: str) -> None:
    """Checks that a picture would only replace an earlier one.

    Raises:
        DataError: if it would replace another file; the message names it.
    """
    for path in picture_files(folder, name):
        check_replaceable_file(path, "the picture", is_picture)


def is_page(path: Path) -> bool:
    """Returns whether a file is a page written by report.py."""
    return f"<title>{TITLE}".encode() in _head(path)


def is_picture(path: Path) -> bool:
    """Returns whether a file is a picture written by report.py or by a run (its gate plot)."""
    return SOURCE.encode() in _head(path)


def _head(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read(_HEAD)


def draw_gates_of_run(results_dir: Path, log_filename: str) -> None:
    """Draws the gates of all epochs in a run's log, if the model has any.

    Failures are reported only: the trained model matters more than its picture.
    """
    try:
        run = read_run(results_dir, "", log_filename)
        if run.gates:
            from trainer.report.gates import draw_gates  # imported late: matplotlib takes a second

            for path in draw_gates(run, results_dir):
                print(f"gates: {path}", flush=True)
    except (DataError, OSError) as error:
        warn(f"the gates could not be drawn: {error}")
