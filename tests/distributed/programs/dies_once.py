"""Run on every worker: main.py, whose last worker is killed in the middle of a step, in its first life only.

usage: python -m tests.distributed.programs.dies_once STEP MARK ARGUMENT OF main.py ...
MARK is a file on that worker's disk, by which its next life knows that it is not the first.
"""

import os
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import trainer.trainer
from main import main
from trainer.process.worker_env import read_worker_env


def die_at(step: int, mark: Path) -> None:
    """Lets this worker kill itself when it is about to compute a step of an epoch."""
    timed = trainer.trainer.timed

    def timed_until_death(batches: Iterable[Any]) -> Iterator[Any]:
        for number, batch in enumerate(timed(batches), start=1):
            if number == step:
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    trainer.trainer.timed = timed_until_death


if __name__ == "__main__":
    step, mark = int(sys.argv[1]), Path(sys.argv[2])
    worker = read_worker_env(os.environ)
    if worker.rank == worker.size - 1 and not mark.exists():
        die_at(step, mark)
    sys.exit(main(sys.argv[3:]))
