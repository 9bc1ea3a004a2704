"""How TensorFlow is set up before its first operation."""

import os

import pytest
import tensorflow as tf

from trainer.config import TrainingOptions
from trainer.process import runtime
from trainer.process.worker_env import WorkerEnv

DETERMINISTIC_SUMS = "TF_USE_DETERMINISTIC_SEGMENT_REDUCTIONS"


@pytest.mark.parametrize(("workers", "own", "expected"), [(1, None, None), (2, None, "1"), (2, "0", "0")])
def test_workers_on_gpus_add_gathered_rows_in_one_order(monkeypatch, workers, own, expected):
    monkeypatch.setenv(DETERMINISTIC_SUMS, own or "")  # for monkeypatch to restore it
    if own is None:
        monkeypatch.delenv(DETERMINISTIC_SUMS)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"])
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda gpus, kind: None)
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda gpu, on: None)
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: {"device_name": gpu})
    launch = WorkerEnv(size=workers, local_size=workers)
    assert runtime.prepare(launch, TrainingOptions(global_batch_size=16)) == "a GPU"
    assert os.environ.get(DETERMINISTIC_SUMS) == expected
