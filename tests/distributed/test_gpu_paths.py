"""Whole runs that take the paths of a GPU, on CPUs: float16 with a loss scale, compiled passes, results read late."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import trainer.optimizers.loss_scale
from benchmarks.gpu_audit import as_if_on_gpu
from main import main
from tests.helpers import ROOT, environment, losses, make_dataset, metrics, must, run_program, words
from trainer.checkpoint.store import Checkpoint, CheckpointStore
from trainer.optimizers.loss_scale import INITIAL_SCALE

pytestmark = pytest.mark.long

# The last batches of epochs and of evaluations are short.
ROWS, BATCH, EPOCHS, DIES_AT = 1000, 64, 2, 14
STEPS = EPOCHS * -(-ROWS // BATCH)
FLAGS = words(f"--global_batch_size {BATCH} --eval_batch_size 300 --num_epochs {EPOCHS} --log_every 3")
FLAGS += words("--deep_hidden_units 32 16 --deep_learning_rate 0.002 --deep_warmup_epochs 1 --recipe published --cpu")
FLOAT16 = words("--amp --amp_dtype float16 --xla")
OFTEN = [*FLOAT16, *words("--deterministic --checkpoint_every 5 --keep_checkpoints 99")]
AS_IF_ON_GPU = ["-m", "tests.distributed.programs.as_if_on_gpu"]
# Steps after which the loss scale doubles: gradients overflow after a few, or never.
SOON, NEVER = "1", "0"


def arguments(data: Path, folder: Path, *more: str) -> list[str]:
    places = ["--dataset_path", data, "--model_dir", folder / "models", "--results_dir", folder / "results"]
    return [*map(str, places), *FLAGS, *more]


def train(data: Path, folder: Path, *more: str, growth: str = NEVER, workers: int = 1, **variables: str) -> None:
    """Trains on the paths of a GPU, in processes of their own."""
    program = [*AS_IF_ON_GPU, growth, "main", *arguments(data, folder, *more)]
    done = run_program(program, workers=workers, timeout=900, **variables)
    assert done.returncode == 0, done.stderr[-3000:]


def train_with_a_kill(data: Path, folder: Path, *more: str, growth: str, workers: int) -> None:
    """The same under supervise.py: the last worker is killed in step DIES_AT, and the job restarted."""
    folder.mkdir()
    launcher = [str(Path(sys.executable).with_name("horovodrun")), "-np", str(workers)] if workers > 1 else []
    program = ["tests.distributed.programs.dies_once", str(DIES_AT), str(folder / "has_died")]
    job = [*launcher, sys.executable, *AS_IF_ON_GPU, growth, *program, *arguments(data, folder, *more)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "supervise.py"), "--max_restarts", "1", "--", *job],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]


def scales(folder: Path) -> dict[int, float]:
    """Step -> loss scale of each checkpoint that a run has kept."""
    steps = CheckpointStore(folder / "models").steps()
    kept = {step: Checkpoint(folder / "models" / "checkpoints" / f"step-{step}") for step in steps}
    return {step: float(checkpoint.read("loss_scale")) for step, checkpoint in kept.items()}


def assert_same_end(one: Path, other: Path) -> None:
    """All weights, all other state and the metrics."""
    first, second = (CheckpointStore(folder / "models").open("last") for folder in (one, other))
    assert first.step == second.step == STEPS and {"loss_scale", "loss_scale_good_steps"} < set(first.arrays)
    assert set(first.arrays) == set(second.arrays)
    for name in first.arrays:
        np.testing.assert_array_equal(second.read(name), first.read(name), err_msg=name)
    assert metrics(one / "results") == metrics(other / "results")


def assert_overflowed(folder: Path, before: int) -> None:
    """The scale, which doubles in every finite step, was halved before a step, again and again, and never ran away."""
    found = scales(folder)
    assert any(found[step] < INITIAL_SCALE * 2.0**step for step in found if step <= before)
    assert INITIAL_SCALE <= found[STEPS] < INITIAL_SCALE * 2.0**STEPS


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("gpu"), ROOT / "feature_specs" / "with_map.yaml", rows=ROWS)


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory) -> Path:
    """A run in float32, as it is on a CPU."""
    folder = tmp_path_factory.mktemp("plain")
    must(main(arguments(data, folder)))
    return folder


def assert_follows(plain: Path, folder: Path, of_losses: float, of_metrics: float) -> None:
    expected, found = losses(plain / "results"), losses(folder / "results")
    assert list(found) == list(expected) and STEPS in found
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=0, atol=of_losses)
    for name, value in metrics(plain / "results").items():
        assert abs(metrics(folder / "results")[name] - value) < of_metrics, name


@pytest.mark.parametrize(
    ("flags", "of_losses", "of_metrics"), [(["--xla"], 1e-5, 1e-4), (FLOAT16, 2e-3, 5e-3)], ids=["float32", "float16"]
)
def test_a_run_as_on_a_gpu_follows_that_of_a_cpu(data, plain, tmp_path, flags, of_losses, of_metrics):
    with as_if_on_gpu():
        must(main(arguments(data, tmp_path, *flags)))
    assert_follows(plain, tmp_path, of_losses, of_metrics)


def test_a_run_resumed_between_overflows_equals_the_whole_run(data, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer.optimizers.loss_scale, "GROWTH_STEPS", 1)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    with as_if_on_gpu():
        must(main(arguments(data, whole, *OFTEN)))
        start = max(step for step in scales(whole) if step <= DIES_AT)
        assert_overflowed(whole, before=start)
        on = ["--use_checkpoint", "--checkpoint", str(whole / "models" / "checkpoints" / f"step-{start}")]
        must(main(arguments(data, resumed, *OFTEN, *on)))
    expected = losses(whole / "results")
    assert losses(resumed / "results") == {step: loss for step, loss in expected.items() if step > start}
    assert_same_end(whole, resumed)


def compiled_functions(folder: Path) -> Counter[str]:
    """How many modules XLA has compiled of each function, from what it has dumped of every one of them."""
    dumped = re.compile(r"module_\d+\.a_inference_(\w+)_\d+__\.\d+\.before_optimizations\.txt")
    return Counter(name[1] for path in folder.iterdir() if (name := dumped.fullmatch(path.name)))


def test_nothing_is_compiled_twice(data, tmp_path):
    """The passes, the check of gradients, the update and the evaluation, in two epochs."""
    dump = tmp_path / "dump"
    train(data, tmp_path, *FLOAT16, XLA_FLAGS=f"--xla_dump_to={dump}")
    names = ("_differentiate", "all_finite", "_update_whole", "logits")
    assert compiled_functions(dump) == dict.fromkeys(names, 1)
    assert len(list(dump.glob("*.before_optimizations.txt"))) == len(names)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.horovod)])
def test_a_killed_run_equals_the_whole_run(data, tmp_path, workers):
    """With gradients that overflow before and after the kill; saves compare the workers' weights and loss scales."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(data, whole, *OFTEN, growth=SOON, workers=workers)
    train_with_a_kill(data, killed, *OFTEN, growth=SOON, workers=workers)
    lines = (killed / "results" / "supervise.jsonl").read_text().splitlines()
    _, start = [event["step"] for event in map(json.loads, lines) if event["event"] == "started"]
    assert start in (0, 6, 11)  # from the last save that was written when the worker was killed
    assert_overflowed(whole, before=11)
    assert scales(killed) == scales(whole)
    assert_same_end(whole, killed)


@pytest.mark.slow
@pytest.mark.horovod
def test_two_workers_as_on_gpus_follow_one_on_a_cpu(data, tmp_path):
    """Without dropout, whose masks are each worker's own. The step times its first collective."""
    one, two = tmp_path / "one", tmp_path / "two"
    must(main(arguments(data, one, "--deep_dropout", "0")))
    train(data, two, *FLOAT16, "--deep_dropout", "0", workers=2)
    assert_follows(one, two, 2e-3, 5e-3)
