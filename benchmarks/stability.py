"""Whether precision, compilation and number of workers change what training reaches, beyond what the seed does.

    python -m benchmarks.stability --seeds 20 --raw ml-1m [--modes float32 amp ...] [--workers 1 2] [--work DIR]
    python -m benchmarks.stability --document docs/stability.md [--work DIR]

The first trains every configuration (a mode with a number of workers, under horovodrun) from the seeds 0 to N - 1, and
adds a JSON line per run to WORK/results.jsonl, skipping runs that are already there, so a stopped benchmark continues.
The data is MovieLens as prepared by data.movielens.prepare from --raw, or any prepared folder (--dataset_path). The
seed determines weights, order of the samples and dropout; data and split stay the same.

Both print a table: mean, deviation (n - 1), minimum and maximum of each metric, and the two-sample
Kolmogorov-Smirnov statistic with its exact p-value against float32 on one worker. The second also puts it into a
page, between the lines TABLE and END, and draws the distributions to images/ beside it, as PNG and SVG.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import ks_2samp

from benchmarks.harness import ROOT, RunsFile
from trainer.report.curves import TITLES
from trainer.report.plots import COLORS, DPI, GREY, PANEL_INCHES, PIXELS, STYLE, save

MODES = {"float32": (), "amp": ("--amp",), "xla": ("--xla",), "amp+xla": ("--amp", "--xla")}
METRICS = ("auc_roc", "streaming_map_val")
TRAINING = (
    "--recipe published --global_batch_size 4096 --eval_batch_size 16384 --num_epochs 1 --deep_hidden_units 64 32 "
    "--deep_learning_rate 0.004 --deep_warmup_epochs 0.25 --keep_checkpoints 1 --log_every 1000"
)
TABLE, END = "<!-- table: python -m benchmarks.stability --document -->", "<!-- end of table -->"


class Configuration(NamedTuple):
    """What is compared.

    Attributes:
        mode: a key of MODES.
        workers: that horovodrun starts.
    """

    mode: str
    workers: int

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.mode}, {self.workers} worker{'s' if self.workers > 1 else ''}"


REFERENCE = Configuration("float32", 1)


def train_missing(configuration: Configuration, seeds: int, dataset: Path, work: Path, results_file: Path) -> None:
    """Train a configuration from all seeds that the results lack, in one group of workers."""
    results, runs = RunsFile(results_file), []
    for seed in range(seeds):
        about = configuration._asdict() | {"seed": seed, "dataset": str(dataset), "training": TRAINING}
        if not results.has(**about):
            arguments = ["--dataset_path", str(dataset), "--seed", str(seed), *TRAINING.split()]
            arguments += MODES[configuration.mode]
            runs.append({"about": about, "folder": str(work / "runs" / f"seed-{seed}"), "arguments": arguments})
    if not runs:
        return
    shutil.rmtree(work / "runs", ignore_errors=True)  # what an interrupted run has left
    runs_file, output = work / "runs.json", work / "output.txt"
    runs_file.write_text(json.dumps(runs))
    horovodrun = str(Path(sys.executable).with_name("horovodrun"))
    command = [horovodrun, "-np", str(configuration.workers), sys.executable]
    command += ["-m", "benchmarks.stability_runs", str(runs_file), str(results_file)]
    print(f"{configuration.name}: {len(runs)} run(s)", file=sys.stderr, flush=True)
    with output.open("w") as stream:
        done = subprocess.run(command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise SystemExit(f"{configuration.name} has failed; what it printed is in {output}")


def values_of(runs: Sequence[dict[str, Any]], metric: str) -> dict[Configuration, list[float]]:
    """Return the metric of each configuration's runs by seed; the reference first.

    Raises:
        SystemExit: the runs are of several datasets or settings, or there is none of the reference.
    """
    if len({(run["dataset"], run["training"]) for run in runs}) > 1:
        raise SystemExit("these runs are of several datasets or settings: take another --work for each")
    found = sorted({Configuration(run["mode"], run["workers"]) for run in runs}, key=_place)
    if REFERENCE not in found:
        raise SystemExit(f"there is no run of {REFERENCE.name}, which the others are compared with")
    by_seed = sorted(runs, key=lambda run: run["seed"])
    return {
        one: [run[metric] for run in by_seed if (run["mode"], run["workers"]) == one and metric in run] for one in found
    }


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Format as Markdown: a line per metric and configuration."""
    lines = ["| metric | configuration | seeds | mean | deviation | minimum | maximum | KS statistic | p-value |"]
    lines.append("|" + " --- |" * 9)
    for metric in metrics_in(runs):
        by_configuration = values_of(runs, metric)
        for configuration, values in by_configuration.items():
            deviation = f"{np.std(values, ddof=1):.5f}" if len(values) > 1 else ""
            figures = [f"{np.mean(values):.5f}", deviation, f"{min(values):.5f}", f"{max(values):.5f}"]
            compared = ["", ""]
            if configuration != REFERENCE:
                test = ks_2samp(by_configuration[REFERENCE], values, method="exact")
                compared = [f"{test.statistic:.3f}", f"{test.pvalue:.2g}"]
            cells = [TITLES.get(metric, metric), configuration.name, str(len(values)), *figures, *compared]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def metrics_in(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the metrics that all runs have."""
    return [metric for metric in METRICS if all(metric in run for run in runs)]


def draw(runs: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Draw a row per metric: every run as a dot, and the distribution functions that the test compares.

    Returns:
        The files written, stability.png and stability.svg.
    """
    metrics = metrics_in(runs)
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        size = (PIXELS / DPI, len(metrics) * PANEL_INCHES)
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        axes = figure.subplots(len(metrics), 2, squeeze=False, sharex="row")
        for (dots, steps), metric in zip(axes, metrics, strict=True):
            values = values_of(runs, metric)
            _draw_dots(dots, values)
            _draw_steps(steps, values)
            dots.xaxis.set_major_locator(MaxNLocator(nbins=5))
            dots.set_title(f"{TITLES.get(metric, metric)} of every seed")
            steps.set_title(f"{TITLES.get(metric, metric)}: distribution functions")
        return save(figure, folder, "stability")


def _draw_dots(axis: Axes, by_configuration: dict[Configuration, list[float]]) -> None:
    """Draw a line per configuration: a dot per run, its mean, and a deviation to both sides."""
    for row, (color, values) in enumerate(_colored(by_configuration)):
        heights = row + np.linspace(-0.22, 0.22, len(values))
        axis.plot(values, heights, "o", color=color, alpha=0.55, markersize=4.5)
        mean, deviation = np.mean(values), np.std(values, ddof=1) if len(values) > 1 else 0.0
        axis.errorbar(mean, row, xerr=deviation, fmt="|", color="black", markersize=16, capsize=4, linewidth=1.4)
    axis.set_yticks(range(len(by_configuration)), [one.name for one in by_configuration])
    axis.invert_yaxis()
    axis.set_xlabel("mean and deviation in black")


def _draw_steps(axis: Axes, by_configuration: dict[Configuration, list[float]]) -> None:
    """Draw the share of the runs at or below each value."""
    for color, values in _colored(by_configuration):
        axis.ecdf(values, color=color, linewidth=1.8)
    axis.set_ylabel("share of runs", color=GREY)


def _colored(by_configuration: dict[Configuration, list[float]]) -> list[tuple[str, list[float]]]:
    return [(COLORS[index % len(COLORS)], values) for index, values in enumerate(by_configuration.values())]


def _place(configuration: Configuration) -> tuple[int, int]:
    """Sort as MODES does, fewer workers first."""
    return list(MODES).index(configuration.mode), configuration.workers


def write_document(runs: Sequence[dict[str, Any]], page: Path) -> None:
    """Put table and settings between the marked lines of a page, and the picture beside it.

    Raises:
        SystemExit: the page lacks the lines.
    """
    before, found, rest = page.read_text().partition(TABLE)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        raise SystemExit(f"{page}: the table goes between the lines\n{TABLE}\n{END}\nwhich it lacks")
    settings = f"Every run: `main.py {runs[0]['training']}`."
    page.write_text(f"{before}{TABLE}\n\n{settings}\n\n{table(runs)}\n\n{END}{after}")
    draw(runs, page.parent / "images")


def main(argv: list[str] | None = None) -> int:
    """Train what is missing, or write what there is into a page; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="runs of each configuration")
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--raw", type=Path, help="MovieLens-1M as published; prepared once, to WORK/data")
    data.add_argument("--dataset_path", type=Path, help="a prepared dataset")
    parser.add_argument("--work", type=Path, default=Path("stability"), help="prepared data, runs and results.jsonl")
    parser.add_argument("--document", type=Path, help="train nothing: write table and picture of what has been run")
    arguments = parser.parse_args(argv)
    work = arguments.work.absolute()
    results_file = work / "results.jsonl"
    if not arguments.document:
        if not (arguments.raw or arguments.dataset_path):
            parser.error("say which data to train on: --raw or --dataset_path")
        dataset = (arguments.dataset_path or _prepared(arguments.raw, work / "data")).absolute()
        for workers in arguments.workers:
            for mode in arguments.modes:
                train_missing(Configuration(mode, workers), arguments.seeds, dataset, work, results_file)
    runs = RunsFile(results_file).runs
    if not runs:
        raise SystemExit(f"{results_file} holds no run yet: train some with --seeds")
    if arguments.document:
        write_document(runs, arguments.document)
    print(table(runs))
    return 0


def _prepared(raw: Path, folder: Path) -> Path:
    if not (folder / "feature_spec.yaml").exists():
        subprocess.run(
            [sys.executable, "-m", "data.movielens.prepare", "--raw", raw.absolute(), "--output", folder],
            cwd=ROOT,
            check=True,
        )
    return folder


if __name__ == "__main__":
    sys.exit(main())
