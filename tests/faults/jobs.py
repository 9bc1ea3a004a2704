"""Real supervised jobs of two workers, observed and disturbed from outside."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.helpers import ROOT, environment
from trainer.checkpoint.store import CheckpointStore
from trainer.logging.log import read_log

PATIENCE = 240.0


class SupervisedJob:
    """`supervise.py -- horovodrun ... main.py`, started at once.

    Args:
        arguments: arguments of main.py, without its paths.
        folder: for models, results and output; one folder is one run, whatever the number of jobs.
        workers: processes; 1 runs main.py without a launcher.
        restarts: allowed.
    """

    def __init__(self, arguments: list[str], folder: Path, *, workers: int = 2, restarts: int = 0):
        self.models, self.results = folder / "models", folder / "results"
        folder.mkdir(parents=True, exist_ok=True)
        self._began_after = self.last_step()
        places = ["--model_dir", str(self.models), "--results_dir", str(self.results)]
        launcher = [str(Path(sys.executable).with_name("horovodrun")), "-np", str(workers)]
        main = [sys.executable, str(ROOT / "main.py"), *arguments, *places]
        supervise = [sys.executable, str(ROOT / "supervise.py"), "--max_restarts", str(restarts), "--"]
        self._output_path = folder / "output.txt"
        with open(self._output_path, "ab") as output:
            self._begun_at = output.tell()
            self.process = subprocess.Popen(
                [*supervise, *(launcher if workers > 1 else []), *main],
                cwd=folder,
                env=environment(),
                stdout=output,
                stderr=output,
                # Where the tests run in the background, a shell has made them ignore Ctrl-C.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def output(self) -> str:
        """The output of this job."""
        return self._output_path.read_bytes()[self._begun_at :].decode(errors="replace")

    def wait_for(self, what: str, happened: Callable[[], bool]) -> None:
        """Waits until something happens; fails if the job ends first or it takes too long."""
        until = time.monotonic() + PATIENCE
        while not happened():
            assert self.process.poll() is None, f"the job ended before {what}:\n{self.output()[-3000:]}"
            assert time.monotonic() < until, f"no {what} in {PATIENCE} s:\n{self.output()[-3000:]}"
            time.sleep(0.1)

    def wait_for_step(self, step: int) -> None:
        """Waits until this job, with all workers alive, has logged this step or a later one."""
        least = max(step, self._began_after + 1)
        self.wait_for(f"step {least}", lambda: self.last_step() >= least and self.is_training())

    def is_training(self) -> bool:
        """Whether all workers have begun and none has ended."""
        records = self.records()
        return bool(records) and len(records) == records[0]["size"] and all(r["code"] is None for r in records)

    def records(self) -> list[dict]:
        """The workers' records."""
        found = []
        for path in sorted((self.results / "workers").glob("worker-*.json")):
            try:
                found.append(json.loads(path.read_text()))
            except (OSError, ValueError):
                continue
        return found

    def last_step(self) -> int:
        """The last logged step, 0 if there is none."""
        steps = logged_losses(self.results)
        return steps[-1][0] if steps else 0

    def send(self, number: int, worker: int) -> None:
        """Sends a signal to a worker."""
        os.kill(self.records()[worker]["pid"], number)

    def finish(self) -> int:
        """Waits for the supervisor and returns its exit code."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
            raise

    def orphans(self) -> list[str]:
        """Command lines of live processes of this run."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(self.results) in words:
                found.append(f"{path.parent.name}: {words}")
        return found


def logged_losses(results: Path) -> list[tuple[int, float]]:
    """(step, loss) of every training record, in the order of writing; a resumed run repeats steps."""
    path = results / "log.json"
    records = [record for record in read_log(path) if record["type"] == "LOG"] if path.exists() else []
    return [(record["step"][0], record["data"]["loss"]) for record in records if "loss" in record["data"]]


def last_arrays(models: Path) -> tuple[int, dict[str, np.ndarray]]:
    """Step and arrays of the last checkpoint."""
    checkpoint = CheckpointStore(models).open("last")
    return checkpoint.step, {name: checkpoint.read(name) for name in checkpoint.arrays}
