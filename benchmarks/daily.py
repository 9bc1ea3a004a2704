"""What a daily warm start is worth on logs whose items drift. One JSON line per day and way of training.

    python -m benchmarks.daily [--days 10] [--rows 30000] [--ways warm day all] [--runs FILE]

Every day, a fifth of the items on offer is replaced. The model of each day is evaluated on the rows of the next one,
encoded with the model's own vocabularies. `warm` extends the vocabularies of the day before and starts from its model;
`day` trains from scratch on the rows of that day, `all` on those of all days so far. `ceiling` are the true
probabilities. Everything else is left to the defaults of the programs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.drifting_logs import draw_day, write_day
from benchmarks.harness import ROOT, Line, markdown, report
from benchmarks.quality import log_loss, roc_auc

WARM, DAY, ALL = "warm", "day", "all"


def call(*arguments: str | Path) -> float:
    """Run a program of this project; return the seconds that it takes."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, check=True, stdout=sys.stderr)
    return time.perf_counter() - begin


def train(way: str, day: int, logs: Path, folder: Path) -> Line:
    """Make the dataset and the model of a day in `folder`/DAY, and evaluate it on the next day.

    Args:
        way: WARM, DAY or ALL.
        day: number of the day, from 0.
        logs: folder with a folder of raw logs for each day.
        folder: folder of the days of this way of training.
    """
    own, before = folder / str(day), folder / str(day - 1)
    is_warm = way == WARM and day > 0
    first = 0 if way == ALL else day
    specification = ["--feature_spec_in", logs / str(day) / "feature_spec.yaml"]
    files = [logs / str(each) / "logs.csv" for each in range(first, day + 1)]
    extend = ["--extend", before / "data/workflow"] if is_warm else []
    preparing = call("preprocess.py", *extend, *specification, "--input", *files, "--output", own / "data")
    warm = ["--warm_start", before / "model"] if is_warm else []
    places = ["--model_dir", own / "model", "--results_dir"]
    training = call("main.py", *warm, "--dataset_path", own / "data", *places, own / "results")
    new = ["--workflow", own / "data/workflow", "--input", logs / str(day + 1) / "logs.csv", "--output", own / "next"]
    call("preprocess.py", *new)
    call("main.py", "--evaluate", "--dataset_path", own / "next", *places, own / "evaluation")
    found = json.loads((own / "evaluation/metrics.json").read_text())
    seconds = {"preprocess_seconds": round(preparing, 1), "training_seconds": round(training, 1)}
    return {"auc": found["auc_roc"], "log_loss": found["loss_val"], **seconds}


def table(lines: list[Line]) -> str:
    """Format the mean over the days of each way of training."""
    rows = []
    for way in dict.fromkeys(line["way"] for line in lines):
        own = [line for line in lines if line["way"] == way and line["day"] > 0]
        columns = ("auc", "log_loss", "preprocess_seconds", "training_seconds")
        means = [sum(line[name] for line in own) / len(own) if name in own[0] else None for name in columns]
        digits = (4, 4, 1, 1)
        rows.append([way, *("" if mean is None else f"{mean:.{n}f}" for mean, n in zip(means, digits, strict=True))])
    return markdown(["way", "AUC", "log loss", "preprocessing, s", "training, s"], rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=10)
    parser.add_argument("--rows", type=int, default=30_000, help="rows of a day")
    parser.add_argument("--ways", nargs="+", choices=(WARM, DAY, ALL), default=(WARM, DAY, ALL))
    parser.add_argument("--seed", type=int, default=0, help="seed of the logs")
    arguments = parser.parse_args(argv)
    lines: list[Line] = []

    def add(line: Line) -> None:
        lines.append(line)
        report({"benchmark": "daily training", "rows": arguments.rows, **line})

    with tempfile.TemporaryDirectory() as name:
        logs = Path(name) / "logs"
        days = [draw_day(day, arguments.rows, arguments.seed) for day in range(arguments.days + 1)]
        for number, day in enumerate(days):
            write_day(logs / str(number), day)
        for number, day in enumerate(days[1:]):
            clicks = day.columns["click"]
            scores = {"auc": roc_auc(clicks, day.probabilities), "log_loss": log_loss(clicks, day.probabilities)}
            add({"day": number, "way": "ceiling", **scores})
        for number in range(arguments.days):
            for way in arguments.ways:
                add({"day": number, "way": way, **train(way, number, logs, Path(name) / way)})
    print(table(lines), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
