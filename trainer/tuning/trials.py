"""A trial: one run of main.py, whose log is read while it trains."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from trainer.lifecycle.errors import DONE
from trainer.logging.log import read_log
from trainer.supervisor import PATIENCE_WITH_BROKEN, Job
from trainer.tasks.evaluation import is_better

POLL_SECONDS = 0.5
OUTPUT = "output.txt"


class TrialFailed(Exception):
    """A trial has ended without a model. Other values of the flags may do better."""


def run_trial(
    command: Sequence[str],
    folder: Path,
    results_dir: Path,
    metric: str,
    on_epoch: Callable[[int, float], None],
    lock: int | None = None,
) -> float:
    """Run a trial to its end. No process of it is left when this returns or raises.

    Args:
        command: the command to run.
        folder: folder of the trial, which is created; the output of the command goes there.
        results_dir: folder of the run's results.
        metric: key of the metric in the log.
        on_epoch: called after each evaluation with the epoch, counted from 1, and the metric; may raise to end the
            trial.
        lock: file descriptor of a lock that is held until no process of the trial is left.

    Returns:
        The metric of the best epoch, whose model is the run's.

    Raises:
        TrialFailed: the command has failed, or the metric never had a value.
    """
    folder.mkdir(parents=True)
    best: float | None = None
    with open(folder / OUTPUT, "wb") as output:
        job = Job(command, results_dir, lock, output)
        try:
            for epoch, value in _follow(job, results_dir / "log.json", metric):
                best = value if is_better(metric, value, best) else best
                on_epoch(epoch, value)
            outcome = job.finish()
        finally:
            job.kill()
    if outcome.code != DONE:
        raise TrialFailed(f"{outcome.cause}; see {folder / OUTPUT}")
    if best is None:
        raise TrialFailed(f"{metric} never had a value; see {folder / OUTPUT}")
    return best


def _follow(job: Job, log: Path, metric: str) -> Iterator[tuple[int, float]]:
    """Yield the epoch and the metric of each evaluation as soon as it is logged, until the job ends."""
    told, size, broken_since = 0, -1, None
    while True:
        # Queried before the log is read: once the launcher has exited, that read sees everything written.
        has_ended = job.has_ended
        job.look()
        if log.exists() and log.stat().st_size != size:
            size = log.stat().st_size
            for epoch, value in evaluations(log, metric):
                if epoch > told:
                    told = epoch
                    yield epoch, value
        if job.is_broken and broken_since is None:
            broken_since = time.monotonic()
        if has_ended or (broken_since is not None and time.monotonic() > broken_since + PATIENCE_WITH_BROKEN):
            return
        time.sleep(POLL_SECONDS)


def evaluations(log: Path, metric: str) -> list[tuple[int, float]]:
    """Return the epoch and the metric of each evaluation in a log, without those in which it has no value."""
    found = []
    for record in read_log(log):
        step, data = record.get("step"), record.get("data")
        if isinstance(step, list) and len(step) == 1 and isinstance(data, dict):
            epoch, value = data.get("epoch"), data.get(metric)
            if isinstance(epoch, int) and isinstance(value, int | float):
                found.append((epoch, float(value)))
    return found
