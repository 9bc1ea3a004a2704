"""Run on every worker: main.py with one faulty worker.

usage: python -m tests.faults.faulty_worker slow|drifting|slow_check ARGUMENT OF main.py ...
"""

import sys
import time
from typing import Any

import trainer.inputs
import trainer.trainer
from main import main
from trainer.process.worker_env import read_worker_env

SLOW_SECONDS = 0.05
DRIFTS_AT = 30
CHECK_SECONDS = 25.0


def make_slow() -> None:
    """Slows this worker down at every batch."""
    step_input = trainer.trainer.step_input

    def slowly(*arguments: Any) -> Any:
        time.sleep(SLOW_SECONDS)
        return step_input(*arguments)

    trainer.trainer.step_input = slowly


def make_drift() -> None:
    """Changes the last bit of one weight after a step."""
    import tensorflow as tf

    handle_result = trainer.trainer.Trainer._handle_result

    def handle_and_drift(worker: trainer.trainer.Trainer, number: int, result: Any) -> Any:
        decision = handle_result(worker, number, result)
        if number == DRIFTS_AT:
            variables = worker.training.state.variables
            variable = next(value for name, value in variables.items() if name.endswith("kernel"))
            first = tf.bitcast(variable[0, 0], tf.int32)
            variable[0, 0].assign(tf.bitcast(tf.bitwise.bitwise_xor(first, 1), tf.float32))
        return decision

    trainer.trainer.Trainer._handle_result = handle_and_drift  # type: ignore[method-assign]


def make_check_slow() -> None:
    """Slows the label check down."""
    inspect_labels = trainer.inputs.inspect_labels

    def slowly(*arguments: Any) -> Any:
        time.sleep(CHECK_SECONDS)
        return inspect_labels(*arguments)

    trainer.inputs.inspect_labels = slowly


if __name__ == "__main__":
    import os

    faults = {"slow": (1, make_slow), "drifting": (1, make_drift), "slow_check": (0, make_check_slow)}
    rank, inject = faults[sys.argv[1]]
    if read_worker_env(os.environ).rank == rank:
        inject()
    sys.exit(main(sys.argv[2:]))
