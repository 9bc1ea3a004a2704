"""A run that is stopped anywhere and gone on with ends as the one that was not, to the bit."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

import trainer.loop
import trainer.run
from main import main
from tests.helpers import ROOT, losses, make_dataset, metrics, must
from trainer.checkpoints import Checkpoint, CheckpointStore
from trainer.early_stopping import EarlyStopping
from trainer.evaluate import Evaluator
from trainer.reliability.exit_codes import DONE, FAILURE, STOPPED
from trainer.saving import Saver
from trainer.sealed.errors import CheckpointError

ROWS, BATCH, EPOCHS, SAVE_EVERY = 700, 64, 3, 4
PER_EPOCH = -(-ROWS // BATCH)  # 11: the saves fall on other places in each epoch
STEPS = EPOCHS * PER_EPOCH
VARIANTS = {
    "wide_deep": ["--model", "wide_deep", "--deep_hidden_units", "8"],
    "float16": ["--model", "wide_deep", "--deep_hidden_units", "8", "--amp", "--amp_dtype", "float16"],
    "dwa": ["--loss_weighting", "dwa"],
    "gradnorm": ["--loss_weighting", "gradnorm"],
    "rlw": ["--loss_weighting", "rlw", "--batch_norm", "--optimizer", "adagrad"],
    "uncertainty": ["--loss_weighting", "uncertainty", "--wide_part", "--expert_dropout", "0.2"],
}
MMOE = ["--model", "mmoe", "--num_experts", "2", "--expert_hidden_units", "8", "--tower_hidden_units", "4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("resume"), ROOT / "feature_specs" / "two_labels.yaml", rows=ROWS)


def arguments(data: Path, folder: Path, *more: str, variant: str = "wide_deep") -> list[str]:
    places = [
        "--dataset_path",
        str(data),
        "--model_dir",
        str(folder / "models"),
        "--results_dir",
        str(folder / "results"),
    ]
    flags = ["--global_batch_size", str(BATCH), "--eval_batch_size", str(BATCH), "--num_epochs", str(EPOCHS), "--cpu"]
    flags += ["--deterministic", "--log_every", "1", "--checkpoint_every", str(SAVE_EVERY), "--keep_checkpoints", "99"]
    model = VARIANTS[variant] if "--model" in VARIANTS[variant] else [*MMOE, *VARIANTS[variant]]
    return [*places, *flags, *model, *more]


def arrays(folder: Path) -> dict[str, np.ndarray]:
    checkpoint = CheckpointStore(folder / "models").open("last")
    assert checkpoint.step == STEPS
    return {name: checkpoint.read(name) for name in checkpoint.arrays}


def assert_same(one: Path, other: Path) -> None:
    """Weights, every state of optimizers and loss weighting, and metrics."""
    expected, found = arrays(one), arrays(other)
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert metrics(one / "results") == metrics(other / "results")


@pytest.mark.parametrize("variant", VARIANTS)
def test_going_on_from_any_place_ends_as_the_run_that_never_stopped(data, tmp_path, variant):
    whole = tmp_path / "whole"
    must(main(arguments(data, whole, variant=variant)))
    saved = [step for step in CheckpointStore(whole / "models").steps() if step < STEPS]
    assert saved == sorted({*range(SAVE_EVERY, STEPS, SAVE_EVERY), *range(PER_EPOCH, STEPS, PER_EPOCH)})
    # In the first epoch, between two, in the last; of the other models within an epoch whose losses count.
    for step in (SAVE_EVERY, 2 * PER_EPOCH, 28) if variant == "wide_deep" else (16,):
        start, folder = whole / "models" / "checkpoints" / f"step-{step}", tmp_path / str(step)
        must(main(arguments(data, folder, "--use_checkpoint", "--checkpoint", str(start), variant=variant)))
        expected = losses(whole / "results")
        assert losses(folder / "results") == {at: loss for at, loss in expected.items() if at > step}
        assert_same(whole, folder)


def test_saving_in_between_changes_nothing(data, tmp_path):
    must(main(arguments(data, tmp_path / "often")))
    must(main(arguments(data, tmp_path / "never", "--checkpoint_every", "0", "--fingerprint_every", "1")))
    assert CheckpointStore(tmp_path / "never" / "models").steps() == [PER_EPOCH, 2 * PER_EPOCH, STEPS]
    assert_same(tmp_path / "often", tmp_path / "never")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    must(main(arguments(data, folder)))
    return folder


def interrupt_training(monkeypatch, step: int, number: int) -> None:
    """Sends this process a signal while it trains a step."""
    take = trainer.loop.TrainingLoop._see

    def see(loop, position, result):  # type: ignore[no-untyped-def]
        if position.step(PER_EPOCH) + 1 == step:
            os.kill(os.getpid(), number)
            while not loop.guard._stop.requested:
                pass
        return take(loop, position, result)

    monkeypatch.setattr(trainer.loop.TrainingLoop, "_see", see)


# In the first epoch; in its last step but one, so that the stop falls on its last; in its last, so that it falls into
# the evaluation; in the last but one of all.
@pytest.mark.parametrize(
    ("step", "saved"), [(1, 2), (PER_EPOCH - 1, PER_EPOCH), (PER_EPOCH, PER_EPOCH), (STEPS - 1, STEPS)]
)
def test_a_signal_stops_after_the_next_step_and_the_run_goes_on_from_there(
    data, tmp_path, whole, monkeypatch, step, saved
):
    with monkeypatch.context() as patched:
        interrupt_training(patched, step, signal.SIGUSR1 if step == 1 else signal.SIGTERM)
        assert main(arguments(data, tmp_path)) == STOPPED
    assert CheckpointStore(tmp_path / "models").steps()[-1] == saved
    assert not (tmp_path / "results" / "metrics.json").exists()
    must(main(arguments(data, tmp_path, "--use_checkpoint")))
    assert losses(tmp_path / "results") == losses(whole / "results")
    assert_same(whole, tmp_path)


def test_a_signal_stops_an_evaluation_which_is_done_when_the_run_goes_on(data, tmp_path, whole, monkeypatch, capfd):
    count = Evaluator.count

    def interrupted(evaluator, batch, logits):  # type: ignore[no-untyped-def]
        count(evaluator, batch, logits)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Evaluator, "count", interrupted)
        patched.setattr(os, "kill", lambda *_, kill=os.kill: (kill(*_), patched.setattr(os, "kill", lambda *_: None)))
        assert main(arguments(data, tmp_path)) == STOPPED
    assert f"after step {PER_EPOCH} of {STEPS}" in capfd.readouterr().err
    last = CheckpointStore(tmp_path / "models").open("last")
    assert last.step == PER_EPOCH and not last.best and last.state["metrics"] == {}
    must(main(arguments(data, tmp_path, "--use_checkpoint")))
    assert_same(whole, tmp_path)
    assert CheckpointStore(tmp_path / "models").best() is not None


# What ends a run while an epoch is evaluated, and between the evaluation and its record.
@pytest.mark.parametrize("broken", [(Evaluator, "run"), (Saver, "evaluated")])
def test_an_evaluation_that_fails_loses_nothing(data, tmp_path, whole, monkeypatch, broken):
    owner, name = broken
    work, calls = getattr(owner, name), []

    def fails(*arguments, **more):  # type: ignore[no-untyped-def]
        calls.append(name)
        if len(calls) == 2:
            raise MemoryError("no room to evaluate")
        return work(*arguments, **more)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, fails)
        with pytest.raises(MemoryError):
            main(arguments(data, tmp_path))
    last = CheckpointStore(tmp_path / "models").open("last")
    assert last.step == 2 * PER_EPOCH and not last.best and last.state["metrics"] == {}
    before = losses(tmp_path / "results")
    must(main(arguments(data, tmp_path, "--use_checkpoint")))
    assert before == {at: loss for at, loss in losses(whole / "results").items() if at <= last.step}
    assert losses(tmp_path / "results") == losses(whole / "results")
    assert_same(whole, tmp_path)
    assert facts(tmp_path) == facts(whole)


def facts(folder: Path) -> dict[int, tuple[bool, float | None, dict[str, float]]]:
    """Of each checkpoint at an epoch's end, whether it was the best, by which value, and its metrics."""
    store = CheckpointStore(folder / "models")
    saved = [Checkpoint(store.folder / f"step-{epoch * PER_EPOCH}") for epoch in range(1, EPOCHS + 1)]
    return {one.step: (one.best, one.value, one.state["metrics"]) for one in saved}


def test_the_last_evaluation_alone_is_done_where_it_is_missing(data, tmp_path, whole, monkeypatch, capfd):
    evaluated = Saver.evaluated

    def lost(saver, position, values):  # type: ignore[no-untyped-def]
        if position.epoch < EPOCHS:
            evaluated(saver, position, values)

    with monkeypatch.context() as patched:
        patched.setattr(Saver, "evaluated", lost)
        must(main(arguments(data, tmp_path)))
    must(main(arguments(data, tmp_path, "--use_checkpoint")))
    assert "nothing to do" not in capfd.readouterr().out
    assert losses(tmp_path / "results") == losses(whole / "results")
    assert_same(whole, tmp_path)
    assert facts(tmp_path) == facts(whole)


def test_an_epoch_that_is_not_evaluated_is_no_epoch_without_progress(data, tmp_path, monkeypatch):
    """Nothing is learned: patience runs out at the end of the second epoch, and not before it is evaluated."""
    early = ["--early_stopping_patience", "1", "--deep_learning_rate", "1e-30", "--linear_learning_rate", "1e-30"]
    seen, count = [], EarlyStopping.should_stop

    def fails(stopping, metrics):  # type: ignore[no-untyped-def]
        seen.append(stopping.epochs_since_best)
        return count(stopping, metrics)

    run = Evaluator.run
    with monkeypatch.context() as patched:
        patched.setattr(Evaluator, "run", lambda *a, **k: run(*a, **k) if not seen else (_ for _ in ()).throw(OSError))
        patched.setattr(EarlyStopping, "should_stop", fails)
        assert main(arguments(data, tmp_path, *early)) == FAILURE
    monkeypatch.setattr(EarlyStopping, "should_stop", fails)
    must(main(arguments(data, tmp_path, *early, "--use_checkpoint")))
    assert seen == [0, 0]
    assert CheckpointStore(tmp_path / "models").steps()[-1] == 2 * PER_EPOCH


def test_a_loss_that_is_no_number_stops_and_what_was_saved_is_all_numbers(data, tmp_path, capfd):
    hot = ["--deep_learning_rate", "1e30", "--deep_warmup_epochs", "0", "--checkpoint_every", "1"]
    assert main(arguments(data, tmp_path, *hot)) == FAILURE
    told = capfd.readouterr().err
    assert "Traceback" not in told and ("the loss is" in told or "variables hold NaN or infinities" in told)
    store = CheckpointStore(tmp_path / "models")
    for step in store.steps():
        checkpoint = Checkpoint(store.folder / f"step-{step}")
        assert all(np.isfinite(checkpoint.read(name)).all() for name in checkpoint.arrays), step


@pytest.mark.parametrize(("failing", "code"), [({1, 2}, DONE), (set(range(7, 99)), FAILURE)])
def test_a_save_that_fails_is_told_and_the_last_one_must_not(data, tmp_path, monkeypatch, capfd, failing, code):
    save, calls = CheckpointStore.save, []

    def fails(store, step, *more, **facts):  # type: ignore[no-untyped-def]
        calls.append(step)
        if len(calls) in failing:
            raise CheckpointError(f"cannot save step {step}: no room")
        return save(store, step, *more, **facts)

    monkeypatch.setattr(CheckpointStore, "save", fails)
    assert main(arguments(data, tmp_path)) == code
    told = capfd.readouterr().err
    assert f"warning: cannot save step {calls[min(failing) - 1]}: no room" in told and "Training goes on" in told
    steps = CheckpointStore(tmp_path / "models").steps()
    assert steps == [step for number, step in enumerate(calls, 1) if number not in failing]
    assert (code == FAILURE) == (f"main.py: error: cannot save step {STEPS}: no room" in told)


def test_a_checkpoint_whose_place_in_the_epoch_is_nonsense_is_refused(data, tmp_path, whole, capfd):
    copied = tmp_path / "models" / "checkpoints" / "step-4"
    shutil.copytree(whole / "models" / "checkpoints" / "step-4", copied)
    from trainer.sealed.writer import write_sealed

    checkpoint = Checkpoint(copied)
    for position in ({"epoch": 0, "steps": 5, "losses": []}, {"epoch": 0}, {"epoch": "a", "steps": 4, "losses": []}, 7):
        facts = checkpoint.facts | {"state": checkpoint.state | {"position": position}}
        write_sealed(copied, [checkpoint.source(name) for name in checkpoint.arrays], {}, facts)
        assert main(arguments(data, tmp_path, "--use_checkpoint")) == 2
        assert "its place in the epoch" in capfd.readouterr().err


def test_looking_at_results_one_step_behind_changes_only_when_they_are_seen(data, tmp_path, whole, monkeypatch):
    """As on a GPU, which must not wait for this process between steps."""
    monkeypatch.setattr(trainer.run, "on_gpu", lambda: True)
    must(main(arguments(data, tmp_path / "behind")))
    assert losses(tmp_path / "behind" / "results") == losses(whole / "results")
    assert_same(whole, tmp_path / "behind")
    # Saves by count come a step later, but for the last steps of epochs.
    saved = CheckpointStore(tmp_path / "behind" / "models").steps()
    assert saved == [5, 9, 11, 13, 17, 21, 22, 25, 29, 33]
    with monkeypatch.context() as patched:
        interrupt_training(patched, 6, signal.SIGTERM)
        assert main(arguments(data, tmp_path / "stopped")) == STOPPED
    assert CheckpointStore(tmp_path / "stopped" / "models").steps()[-1] == 9
    must(main(arguments(data, tmp_path / "stopped", "--use_checkpoint")))
    assert_same(whole, tmp_path / "stopped")


def test_a_run_that_died_after_its_last_checkpoint_gets_its_model_and_metrics(data, tmp_path, whole, capfd):
    shutil.copytree(whole / "models" / "checkpoints", tmp_path / "models" / "checkpoints")
    must(main(arguments(data, tmp_path, "--use_checkpoint")))
    assert "nothing to do" in capfd.readouterr().out and not losses(tmp_path / "results")
    assert metrics(tmp_path / "results") == metrics(whole / "results")
    assert (tmp_path / "models" / "model" / "manifest.json").read_bytes() == (
        whole / "models" / "model" / "manifest.json"
    ).read_bytes()


def test_a_run_that_has_stopped_early_stays_stopped(data, tmp_path, capfd):
    """Nothing is learned: the first epoch stays the best."""
    early = ["--early_stopping_patience", "1", "--deep_learning_rate", "1e-30", "--linear_learning_rate", "1e-30"]
    must(main(arguments(data, tmp_path, *early)))
    steps = CheckpointStore(tmp_path / "models").steps()
    assert steps[-1] == 2 * PER_EPOCH
    capfd.readouterr()
    must(main(arguments(data, tmp_path, *early, "--use_checkpoint")))
    assert "nothing to do" in capfd.readouterr().out
    assert CheckpointStore(tmp_path / "models").steps() == steps
