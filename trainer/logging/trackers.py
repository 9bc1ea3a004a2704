"""Experiment trackers, MLflow and Weights & Biases, if their packages are installed.

A tracker gets the flags of a run and the numbers of its log, from a thread of its own: a slow or absent server never
holds up training, and never ends it.
"""

import importlib
import importlib.util
import math
import queue
import re
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from data.errors import DataError
from trainer.logging.log import warn

PACKAGES = {"mlflow": "MLflow", "wandb": "Weights & Biases"}  # package, which is also the flag -> product
CLOSE_SECONDS = 30.0  # how long the end of a run waits for values that are still to be sent
LOGIN_SECONDS = 30  # how long Weights & Biases may ask for a key on a terminal
MAX_WAITING = 10_000  # records; further ones are dropped
MLFLOW_PARAMETERS = 100  # an MLflow server's limit per request
_NOT_IN_MLFLOW_NAMES = re.compile(r"[^\w\-. /]")


class Run(Protocol):
    """A run of a tracker, in which every call may raise any exception."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send finite values of a step, by key."""

    def end(self) -> None:
        """Complete the run."""


def check_trackers(names: Mapping[str, str]) -> None:
    """Check that the packages of the trackers are installed, without importing them.

    Raises:
        DataError: a package is missing; the message says how to install it.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise DataError(
                f"--{name} needs the package {name} of {PACKAGES[name]}, which is not installed: "
                f"python -m pip install {name}, or remove --{name}"
            )


def open_trackers(names: Mapping[str, str], results_dir: Path, flags: Mapping[str, Any]) -> "list[Tracker]":
    """Start a run in each of the trackers, under the last two names of the results folder's path.

    Args:
        names: MLflow experiment and Weights & Biases project, by the flag's name.
        results_dir: folder of the run's results.
        flags: values of all flags by name, as JSON values.
    """
    starts: dict[str, Callable[[str, str, Mapping[str, Any]], Run]] = {"mlflow": _MlflowRun, "wandb": _WandbRun}
    run_name = "/".join(results_dir.absolute().parts[-2:])
    return [Tracker(name, partial(starts[name], to, run_name, flags)) for name, to in names.items()]


class Tracker:
    """Sends the numbers of a log to a tracker in the background.

    The first failure is reported on stderr; later values are attempted again, unless the run could not be started.

    Args:
        name: name of the tracker's flag, for the warning.
        start: starts the run; called in the background thread.
    """

    def __init__(self, name: str, start: Callable[[], Run]) -> None:
        self._name, self._start, self._has_warned = name, start, False
        self._waiting: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._send_all, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Queue the finite values of a step, by key."""
        finite = {key: float(value) for key, value in values.items() if math.isfinite(value)}
        self._put((step, finite))

    def close(self) -> None:
        """Complete the run, after waiting at most CLOSE_SECONDS for queued values to be sent."""
        self._put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._warn_once(f"values were still to be sent after {CLOSE_SECONDS:g} s")

    def _put(self, record: tuple[int, Mapping[str, float]] | None) -> None:
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self._warn_once(f"{MAX_WAITING:,} records are waiting to be sent")

    def _send_all(self) -> None:
        run: list[Run] = []
        self._attempt(lambda: run.append(self._start()))
        while (record := self._waiting.get()) is not None:
            if run:
                step, values = record
                self._attempt(partial(run[0].log, step, values))
        if run:
            self._attempt(run[0].end)

    def _attempt(self, call: Callable[[], object]) -> None:
        # Third-party code that talks to a server may raise anything, and none of it is worth a training run.
        try:
            call()
        except (Exception, SystemExit) as error:
            self._warn_once(f"{type(error).__name__}: {error}")

    def _warn_once(self, reason: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            warn(f"--{self._name}: {PACKAGES[self._name]} is incomplete, training goes on: {reason}")


class _MlflowRun:
    """A run in an MLflow experiment; the server is that of MLFLOW_TRACKING_URI."""

    def __init__(self, experiment: str, name: str, flags: Mapping[str, Any]) -> None:
        self._mlflow = importlib.import_module("mlflow")
        self._mlflow.set_experiment(experiment)
        self._mlflow.start_run(run_name=name)
        items = list(flags.items())
        for first in range(0, len(items), MLFLOW_PARAMETERS):
            self._mlflow.log_params(dict(items[first : first + MLFLOW_PARAMETERS]))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        named = {_NOT_IN_MLFLOW_NAMES.sub("_", key): value for key, value in values.items()}
        self._mlflow.log_metrics(named, step=step)

    def end(self) -> None:
        self._mlflow.end_run()


class _WandbRun:
    """A run in a Weights & Biases project; the account is that of `wandb login`."""

    def __init__(self, project: str, name: str, flags: Mapping[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        settings = {"login_timeout": LOGIN_SECONDS, "console": "off"}
        self._run = wandb.init(project=project, name=name, config=dict(flags), settings=settings)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def end(self) -> None:
        self._run.finish()
