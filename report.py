"""Reports the learning curves of runs: a table per run on the terminal, figures, and an HTML page of the whole log."""

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

from data.command_line import Parser
from data.errors import DataError, printable
from trainer.process.startup import robust_stdio
from trainer.report.outputs import PAGE, check_inputs_stay, check_report_files, gates_name
from trainer.report.runs import Run, read_run
from trainer.report.table import curve_table

NOTE = "loss: mean of the training losses logged since the evaluation before; *: best of the run"


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code.

    Returns:
        0 for success, 1 if the figures or the page could not be written, 2 for wrong arguments or no usable log.
    """
    arguments = _parser().parse(argv)
    try:
        folders = list(dict.fromkeys(Path(os.path.abspath(folder)) for folder in arguments.results_dir))
        output = arguments.output or folders[0]
        check_inputs_stay(output, folders, arguments.log_filename)
        runs = [
            read_run(folder, name, arguments.log_filename)
            for folder, name in zip(folders, run_names(folders), strict=True)
        ]
        check_report_files(output, runs)
        for run in runs:
            _say(f"{run.name}\n\n{curve_table(run)}\n")
        _say(NOTE)
        _draw(runs, output)
    except DataError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"report.py: {printable(str(error))}", file=sys.stderr)
        return 1
    return 0


def _say(text: str) -> None:
    """Print text that may contain file names or log contents, with control characters escaped."""
    print(printable(text))


def run_names(folders: list[Path]) -> list[str]:
    """Return a short unique name per folder: the shortest suffix of its path that tells it apart from the others."""
    parts = [folder.parts for folder in folders]
    lengths = [1] * len(parts)
    # Lengthen only the names that clash, until none does (or their paths are used up).
    while True:
        names = [str(Path(*path[-length:])) for path, length in zip(parts, lengths, strict=True)]
        counts = Counter(names)
        longer = [
            length + (counts[name] > 1 and length < len(path))
            for name, length, path in zip(names, lengths, parts, strict=True)
        ]
        if longer == lengths:
            return names
        lengths = longer


def _draw(runs: list[Run], folder: Path) -> None:
    # Imported late: matplotlib takes a second to import, and wrong arguments are reported without it.
    from trainer.report.curves import learning_charts
    from trainer.report.gates import draw_gates
    from trainer.report.page import write_page
    from trainer.report.plots import draw_learning_curves

    folder.mkdir(parents=True, exist_ok=True)
    paths = draw_learning_curves(runs, folder)
    for number, run in enumerate(runs, start=1):
        paths += draw_gates(run, folder, gates_name(number, len(runs)))
    if not paths:
        _say("no picture: none of these values belongs to a step")
    if note := learning_charts(runs)[1]:
        _say(note)
    write_page(runs, folder / PAGE)
    for path in (*paths, folder / PAGE):
        _say(f"wrote {path}")


def _parser() -> Parser:
    parser = Parser(
        prog="report.py",
        description="Prints the learning curves of runs of main.py, draws them into learning_curve.png and .svg, and "
        "writes report.html, one page about all the runs that needs no network.",
        formatter=argparse.HelpFormatter,
    )
    parser.add_argument(
        "--results_dir", type=Path, nargs="+", required=True, metavar="R", help="--results_dir of one run or several"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of what is written (default: the first R)")
    parser.add_argument("--log_filename", default="log.json", help="name of the log in R (default: %(default)s)")
    return parser


if __name__ == "__main__":
    robust_stdio()
    sys.exit(main())
