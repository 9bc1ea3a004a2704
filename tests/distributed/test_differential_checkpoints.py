"""Two workers that resume from a differential checkpoint, which holds the rows that either of them has looked up."""

import json

import numpy as np
import pytest

from tests.distributed.test_training import RUN_ALL
from tests.helpers import ROOT, make_dataset, run_program
from trainer.checkpoint.store import Checkpoint

pytestmark = pytest.mark.horovod
STEPS = 7
FLAGS = "--deep_hidden_units 8 --global_batch_size 64 --eval_batch_size 512 --num_epochs 1 --cpu --deterministic "
FLAGS += "--recipe published --shard_embeddings off --checkpoint_every 2 --keep_checkpoints 9"


def test_two_workers_resume_from_a_difference(tmp_path):
    # With its slots, the table has 115 MB: leaving most of it out saves the 64 MiB from which on this is done.
    spec = (ROOT / "feature_specs" / "tiny.yaml").read_text()
    (tmp_path / "large.yaml").write_text(spec.replace("cardinality: 50", "cardinality: 70000, embedding_dim: 200"))
    data = make_dataset(tmp_path, tmp_path / "large.yaml", rows=64 * (STEPS - 1) + 30)
    whole, resumed = (tmp_path / name / "checkpoints" for name in ("whole", "resumed"))
    places = [f"--dataset_path={data}", f"--results_dir={tmp_path / 'results'}"]
    first = [*places, f"--model_dir={whole.parent}", *FLAGS.split()]
    second = [
        *places,
        f"--model_dir={resumed.parent}",
        *FLAGS.split(),
        "--use_checkpoint",
        f"--checkpoint={whole}/step-6",
    ]
    (tmp_path / "scenarios.json").write_text(json.dumps([first, second]))
    done = run_program([RUN_ALL, tmp_path / "scenarios.json"], workers=2, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    assert [Checkpoint(whole / f"step-{step}").full is None for step in (2, 4, 6, 7)] == [True, False, False, True]
    one, other = Checkpoint(whole / f"step-{STEPS}"), Checkpoint(resumed / f"step-{STEPS}")
    assert one.arrays == other.arrays
    for name in one.arrays:
        np.testing.assert_array_equal(other.read(name), one.read(name), err_msg=name)
