"""Saves where memory is short: in blocks in the foreground, decided before the first step, the same to the byte."""

import subprocess
import sys
from pathlib import Path

import pytest

import trainer.saving
from main import main
from tests.helpers import ROOT, environment, make_dataset, metrics, must
from trainer.checkpoints import CheckpointStore
from trainer.state import RunState

STEPS_PER_EPOCH = 7
FLAGS = ["--deep_hidden_units", "8", "--global_batch_size", "64", "--eval_batch_size", "64", "--num_epochs", "2"]
FOREGROUND, LATER = "checkpoints are written in the foreground", "checkpoints are now written in the foreground"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("saving"), ROOT / "feature_specs" / "tiny.yaml", rows=400)


def arguments(data: Path, folder: Path) -> list[str]:
    places = {"--dataset_path": data, "--model_dir": folder / "models", "--results_dir": folder / "results"}
    return [*(str(part) for place in places.items() for part in place), *FLAGS, "--cpu", "--deterministic"]


def arrays(folder: Path) -> dict[str, bytes]:
    """Every array of every checkpoint and of the model, as bytes."""
    store = CheckpointStore(folder / "models")
    assert store.steps() == [STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH]
    assert store.open("last").step == 2 * STEPS_PER_EPOCH
    files = sorted((folder / "models").rglob("*.npy"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def in_background(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("background")
    must(main(arguments(data, folder)))
    return folder


def no_copy(state: RunState) -> list:
    raise AssertionError("the state was copied")


def test_without_room_for_a_copy_saves_are_foreground(data, in_background, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trainer.saving, "available_memory", lambda: 1000)
    monkeypatch.setattr(RunState, "snapshot", no_copy)
    must(main(arguments(data, tmp_path)))
    said = capsys.readouterr()
    assert said.out.count(FOREGROUND) == 1 and "1,000 are available" in said.out
    assert said.out.index(FOREGROUND) < said.out.index("model: ") and LATER not in said.err
    assert arrays(tmp_path) == arrays(in_background)
    assert metrics(tmp_path / "results") == metrics(in_background / "results")


@pytest.mark.parametrize("shortage", ["MemoryError", "little left"])
def test_memory_that_is_gone_at_a_save_costs_nothing(data, in_background, tmp_path, monkeypatch, capsys, shortage):
    if shortage == "MemoryError":

        def snapshot(state: RunState) -> list:
            raise MemoryError

        monkeypatch.setattr(RunState, "snapshot", snapshot)
    else:
        figures = iter([1 << 40])
        monkeypatch.setattr(trainer.saving, "available_memory", lambda: next(figures, 1000))
        monkeypatch.setattr(RunState, "snapshot", no_copy)
    must(main(arguments(data, tmp_path)))
    said = capsys.readouterr()
    assert said.err.count(LATER) == 1 and FOREGROUND not in said.out
    assert arrays(tmp_path) == arrays(in_background)


def test_a_failed_foreground_save_lets_training_go_on(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trainer.saving, "available_memory", lambda: 1000)
    save, steps = CheckpointStore.save, []

    def failing(self, step, *rest, **more):  # type: ignore[no-untyped-def]
        steps.append(step)
        if len(steps) == 1:
            (self.folder / f"step-{step}").write_text("in the way")
        return save(self, step, *rest, **more)

    monkeypatch.setattr(CheckpointStore, "save", failing)
    must(main(arguments(data, tmp_path)))
    assert "Training goes on" in capsys.readouterr().err
    assert CheckpointStore(tmp_path / "models", warn=lambda text: None).open("last").step == 2 * STEPS_PER_EPOCH


# Once the model is there, the process gets 200 MB more; a copy of the state takes about 300 MB.
LIMITED = """
import resource, sys
import psutil
import trainer.run
from main import main

training = trainer.run.Run._training
def limited(self):
    made = training(self)
    limit = psutil.Process().memory_info().vms + int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return made
trainer.run.Run._training = limited
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_a_limit_on_memory_costs_no_checkpoint(tmp_path):
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
    assert done.stdout.count(FOREGROUND) == 1
    checkpoint = CheckpointStore(tmp_path / "models").open("last")
    assert checkpoint.step == 2 * STEPS_PER_EPOCH
    assert sum(checkpoint.read(name).nbytes for name in checkpoint.arrays) > 250_000_000
