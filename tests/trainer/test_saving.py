"""Saves where memory is short, and saves that fail."""

import subprocess
import sys
from pathlib import Path

import pytest

from main import main
from tests.helpers import ROOT, environment, make_dataset, must
from trainer.checkpoint.store import CheckpointStore

STEPS_PER_EPOCH = 7
FLAGS = ["--deep_hidden_units", "8", "--global_batch_size", "64", "--eval_batch_size", "64", "--num_epochs", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("saving"), ROOT / "feature_specs" / "tiny.yaml", rows=400)


def arguments(data: Path, folder: Path) -> list[str]:
    places = {"--dataset_path": data, "--model_dir": folder / "models", "--results_dir": folder / "results"}
    return [
        *(str(part) for place in places.items() for part in place),
        *FLAGS,
        "--cpu",
        "--recipe",
        "published",
        "--deterministic",
    ]


def test_training_continues_after_a_failed_save(data, tmp_path, monkeypatch, capsys):
    save, steps = CheckpointStore.save, []

    def failing(self, step, *rest, **more):  # type: ignore[no-untyped-def]
        steps.append(step)
        if len(steps) == 1:
            (self.folder / f"step-{step}").write_text("in the way")
        return save(self, step, *rest, **more)

    monkeypatch.setattr(CheckpointStore, "save", failing)
    must(main(arguments(data, tmp_path)))
    assert "Training continues" in capsys.readouterr().err
    assert CheckpointStore(tmp_path / "models", warn=lambda text: None).open("last").step == 2 * STEPS_PER_EPOCH


# Once the model is there, the process gets 200 MB more; a second copy of the state would take about 300 MB.
LIMITED = """
import resource, sys
import psutil
import trainer.trainer
from main import main

make_training = trainer.trainer.make_training
def limited(*arguments):
    made = make_training(*arguments)
    limit = psutil.Process().memory_info().data + int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return made
trainer.trainer.make_training = limited
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_saving_fits_into_limited_memory(tmp_path):
    spec = (ROOT / "feature_specs" / "tiny.yaml").read_text()
    (tmp_path / "large.yaml").write_text(spec.replace("cardinality: 50", "cardinality: 1500000, embedding_dim: 24"))
    data = make_dataset(tmp_path, tmp_path / "large.yaml", rows=400)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "200000000", *arguments(data, tmp_path)],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=ROOT,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    checkpoint = CheckpointStore(tmp_path / "models").open("last")
    assert checkpoint.step == 2 * STEPS_PER_EPOCH
    assert sum(checkpoint.read(name).nbytes for name in checkpoint.arrays) > 250_000_000
