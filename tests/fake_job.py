"""A launcher and its workers, for the tests of supervise.py: fast, and with every way to end.

python -m tests.fake_job FLAG ... starts the workers described by the variable FAKE_JOB_PLAN: a list of starts, each a
list of the actions of each worker, in order (see `act`). The last start is repeated.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from trainer.default_paths import path_in
from trainer.lifecycle.records import JOB_VARIABLE, WorkerRecord, WorkerState, read_records
from trainer.process.worker_env import read_worker_env

FOREVER = 300


def main() -> int:
    results_dir = path_in(sys.argv, "results_dir")
    if "HOROVOD_RANK" in os.environ:
        record = WorkerRecord(results_dir, read_worker_env(os.environ))
        for action in os.environ["FAKE_JOB_ACTIONS"].split(" "):
            act(record, *action.split(":"))
        return 0
    return launch(results_dir.parent / "starts.jsonl")


def launch(starts: Path) -> int:
    """Starts the workers; returns 1 if one fails, after terminating the others unless FAKE_JOB_PATIENT is set."""
    with open(starts, "a") as file:
        file.write(json.dumps(sys.argv[1:]) + "\n")
    plan = json.loads(os.environ["FAKE_JOB_PLAN"])
    actions = plan[min(len(starts.read_text().splitlines()), len(plan)) - 1]
    if isinstance(actions, int):
        return actions
    sizes = {"HOROVOD_SIZE": str(len(actions)), "HOROVOD_LOCAL_SIZE": str(len(actions))}
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.fake_job", *sys.argv[1:]],
            env=os.environ
            | sizes
            | {"HOROVOD_RANK": str(rank), "HOROVOD_LOCAL_RANK": str(rank), "FAKE_JOB_ACTIONS": action},
        )
        for rank, action in enumerate(actions)
    ]
    while any(worker.poll() is None for worker in workers):
        if any(worker.poll() for worker in workers) and "FAKE_JOB_PATIENT" not in os.environ:
            until(lambda: all(worker.poll() is not None for worker in workers), seconds=1)
            for worker in workers:
                worker.terminate()
            return 1
        time.sleep(0.02)
    return int(any(worker.returncode for worker in workers))


def act(record: WorkerRecord, action: str, *details: str) -> None:
    """Performs one action of a worker."""
    actions: dict[str, Callable[..., object]] = {
        "begin": record.begin,
        "end": lambda code, cause: end(record, int(code), cause.replace("_", " ")),
        "obey": lambda: signal.signal(signal.SIGTERM, lambda *_: end(record, 75, "stopped after step 7")),
        "obey_slowly": lambda: signal.signal(signal.SIGTERM, lambda *_: None),
        "deaf": lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
        "save": lambda step: save(int(step)),
        "meet": lambda rank: until(lambda: int(rank) in records()),
        "outlive": lambda rank: until(lambda: int(rank) in records() and has_ended(records()[int(rank)])),
        "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "freeze": lambda: os.kill(os.getpid(), signal.SIGSTOP),
        "leave_a_child": lambda: subprocess.Popen(["sleep", str(FOREVER)], start_new_session=True),
        "kill_launcher": lambda: os.kill(os.getppid(), signal.SIGKILL),
        "wait": lambda seconds=FOREVER: time.sleep(float(seconds)),
    }
    actions[action](*details)


def records() -> dict[int, WorkerState]:
    return read_records(path_in(sys.argv, "results_dir"), os.environ[JOB_VARIABLE])


def has_ended(state: WorkerState) -> bool:
    return state.code is not None or not state.is_alive()


def until(is_so: Callable[[], bool], seconds: float = FOREVER) -> None:
    deadline = time.monotonic() + seconds
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.02)


def save(step: int) -> None:
    import numpy as np

    from data.storage.arrays import ArraySource
    from trainer.checkpoint.store import CheckpointStore

    store = CheckpointStore(path_in(sys.argv, "model_dir"))
    store.save(step, [ArraySource.from_array("weights", np.zeros(1))], {})


def end(record: WorkerRecord, code: int, cause: str) -> NoReturn:
    record.end(code, cause)
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
