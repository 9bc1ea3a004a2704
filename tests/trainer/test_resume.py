"""A run that is stopped anywhere and resumed ends bit-identical to an uninterrupted one."""

import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import check_dataset
import trainer.trainer
from data.spec.feature_spec import FeatureSpec
from data.storage.arrays import ArraySource
from data.storage.checksummed_dir import StorageError, write_checksummed
from main import main
from tests.helpers import ROOT, left_to_all, losses, make_dataset, metrics, must, words
from trainer.checkpoint.load_model import load_model
from trainer.checkpoint.manager import CheckpointManager
from trainer.checkpoint.store import Checkpoint, CheckpointStore, NoCheckpointError
from trainer.early_stopping import EarlyStopping
from trainer.evaluate import Evaluator, describe
from trainer.lifecycle.errors import DONE, FAILURE, NO_CHECKPOINT, STOPPED

pytestmark = pytest.mark.long

ROWS, BATCH, EPOCHS, SAVE_EVERY = 700, 64, 3, 8
PER_EPOCH = -(-ROWS // BATCH)  # 11: the saves fall on other places in each epoch
STEPS = EPOCHS * PER_EPOCH
VARIANTS = {
    "wide_deep": ["--model", "wide_deep", "--deep_hidden_units", "8"],
    # A loss scale and moving averages, each with a state of its own.
    "float16": words("--model wide_deep --deep_hidden_units 8 --amp --amp_dtype float16 --ema_momentum 0.9")
    + words("--clip_norm 0.1"),
    "dwa": words("--loss_weighting dwa --batch_norm --optimizer adagrad"),
    "gradnorm": words("--loss_weighting gradnorm --wide_part --expert_dropout 0.2"),
    "rlw": words("--loss_weighting rlw --batch_norm --optimizer adagrad"),
    "uncertainty": words("--loss_weighting uncertainty --wide_part --expert_dropout 0.2"),
}
# scripts/test.sh --all resumes the others, too.
USUAL_VARIANTS = ("wide_deep", "gradnorm")
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
    flags = [
        "--global_batch_size",
        str(BATCH),
        "--eval_batch_size",
        str(BATCH),
        "--num_epochs",
        str(EPOCHS),
        "--cpu",
        "--recipe",
        "published",
    ]
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


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    must(main(arguments(data, folder)))
    return folder


@pytest.mark.parametrize("variant", left_to_all(VARIANTS, USUAL_VARIANTS))
def test_resumed_run_equals_uninterrupted_run(data, tmp_path, whole, variant):
    if variant != "wide_deep":
        whole = tmp_path / "whole"
        must(main(arguments(data, whole, variant=variant)))
    saved = [step for step in CheckpointStore(whole / "models").steps() if step < STEPS]
    assert saved == sorted({*range(SAVE_EVERY, STEPS, SAVE_EVERY), *range(PER_EPOCH, STEPS, PER_EPOCH)})
    # In the first epoch, between two, in the last; of the other models within an epoch whose losses count.
    for step in (SAVE_EVERY, 2 * PER_EPOCH, 3 * SAVE_EVERY) if variant == "wide_deep" else (2 * SAVE_EVERY,):
        start, folder = whole / "models" / "checkpoints" / f"step-{step}", tmp_path / str(step)
        must(main(arguments(data, folder, "--use_checkpoint", "--checkpoint", str(start), variant=variant)))
        expected = losses(whole / "results")
        assert losses(folder / "results") == {at: loss for at, loss in expected.items() if at > step}
        assert_same(whole, folder)


def test_saving_in_between_changes_nothing(data, tmp_path, whole):
    must(main(arguments(data, tmp_path, "--checkpoint_every", "0", "--fingerprint_every", "1")))
    assert CheckpointStore(tmp_path / "models").steps() == [PER_EPOCH, 2 * PER_EPOCH, STEPS]
    assert_same(whole, tmp_path)


def interrupt_training(monkeypatch, step: int, number: int) -> None:
    """Sends this process a signal while it trains a step."""
    handle_result = trainer.trainer.Trainer._handle_result

    def interrupted(worker, ended, result):  # type: ignore[no-untyped-def]
        if ended == step:
            os.kill(os.getpid(), number)
            while not worker.services.stop.requested:
                pass
        return handle_result(worker, ended, result)

    monkeypatch.setattr(trainer.trainer.Trainer, "_handle_result", interrupted)


# In the first epoch; in its last step, so that the stop falls into the evaluation; in an epoch's last step but one, so
# that the stop falls on its last.
@pytest.mark.parametrize(
    ("step", "saved"),
    [
        (1, 2),
        (PER_EPOCH, PER_EPOCH),
        pytest.param(STEPS - 1, STEPS, marks=pytest.mark.slow),
        pytest.param(PER_EPOCH - 1, PER_EPOCH, marks=pytest.mark.slow),
    ],
)
def test_signal_stops_after_next_step_and_run_resumes(data, tmp_path, whole, monkeypatch, step, saved):
    with monkeypatch.context() as patched:
        interrupt_training(patched, step, signal.SIGUSR1 if step == 1 else signal.SIGTERM)
        assert main(arguments(data, tmp_path)) == STOPPED
    assert CheckpointStore(tmp_path / "models").steps()[-1] == saved
    assert not (tmp_path / "results" / "metrics.json").exists()
    must(main(arguments(data, tmp_path, "--use_checkpoint")))
    assert losses(tmp_path / "results") == losses(whole / "results")
    assert_same(whole, tmp_path)


def test_signal_stops_evaluation_which_resume_repeats(data, tmp_path, whole, monkeypatch, capfd):
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


# What ends a run between an epoch's evaluation and its record, and while it is evaluated.
@pytest.mark.parametrize(
    "broken",
    [(CheckpointManager, "record_evaluation"), pytest.param((Evaluator, "run"), marks=pytest.mark.slow)],
)
def test_failed_evaluation_loses_nothing(data, tmp_path, whole, monkeypatch, broken):
    owner, name = broken
    work, calls = getattr(owner, name), []

    def fails(*arguments, **more):  # type: ignore[no-untyped-def]
        calls.append(name)
        if len(calls) == 2:
            raise MemoryError("no room to evaluate")
        return work(*arguments, **more)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, fails)
        assert main(arguments(data, tmp_path)) == FAILURE
    last = CheckpointStore(tmp_path / "models").open("last")
    assert last.step == 2 * PER_EPOCH and not last.best and last.state["metrics"] == {}
    before = losses(tmp_path / "results")
    must(main(arguments(data, tmp_path, "--use_checkpoint")))
    assert before == {at: loss for at, loss in losses(whole / "results").items() if at <= last.step}
    assert losses(tmp_path / "results") == losses(whole / "results")
    assert_same(whole, tmp_path)
    assert facts(tmp_path) == facts(whole)


def facts(folder: Path) -> dict[int, tuple[bool, dict[str, Any]]]:
    """Of each checkpoint at an epoch's end, whether it was the best, and its state without the flags."""
    store = CheckpointStore(folder / "models")
    saved = [Checkpoint(store.folder / f"step-{epoch * PER_EPOCH}") for epoch in range(1, EPOCHS + 1)]
    kept = ("position", "stopping", "metrics")
    return {one.step: (one.best, {name: one.state[name] for name in kept}) for one in saved}


def test_missing_last_evaluation_is_made_up(data, tmp_path, whole, monkeypatch, capfd):
    evaluated = CheckpointManager.record_evaluation

    def lost(saver, position, stopping, values, best_by):  # type: ignore[no-untyped-def]
        if position.epoch < EPOCHS:
            evaluated(saver, position, stopping, values, best_by)

    with monkeypatch.context() as patched:
        patched.setattr(CheckpointManager, "record_evaluation", lost)
        must(main(arguments(data, tmp_path)))
    must(main(arguments(data, tmp_path, "--use_checkpoint")))
    assert "nothing to do" not in capfd.readouterr().out
    assert losses(tmp_path / "results") == losses(whole / "results")
    assert_same(whole, tmp_path)
    assert facts(tmp_path) == facts(whole)


def test_unevaluated_epoch_does_not_count_for_patience(data, tmp_path, monkeypatch):
    """Nothing is learned: patience runs out at the end of the second epoch, and not before it is evaluated."""
    early = ["--early_stopping_patience", "1", "--deep_learning_rate", "1e-30", "--linear_learning_rate", "1e-30"]
    seen, count = [], EarlyStopping.update

    def counts(stopping, metrics):  # type: ignore[no-untyped-def]
        seen.append(stopping.state.epochs_since_best)
        return count(stopping, metrics)

    run = Evaluator.run
    with monkeypatch.context() as patched:
        patched.setattr(Evaluator, "run", lambda *a, **k: run(*a, **k) if not seen else (_ for _ in ()).throw(OSError))
        patched.setattr(EarlyStopping, "update", counts)
        assert main(arguments(data, tmp_path, *early)) == FAILURE
    monkeypatch.setattr(EarlyStopping, "update", counts)
    must(main(arguments(data, tmp_path, *early, "--use_checkpoint")))
    assert seen == [0, 0]
    assert CheckpointStore(tmp_path / "models").steps()[-1] == 2 * PER_EPOCH


def test_nonfinite_loss_stops_and_checkpoints_are_finite(data, tmp_path, capfd):
    hot = ["--deep_learning_rate", "1e30", "--deep_warmup_epochs", "0", "--checkpoint_every", "1"]
    assert main(arguments(data, tmp_path, *hot)) == FAILURE
    shown = capfd.readouterr().err
    assert "Traceback" not in shown and (
        "the loss or its gradient is NaN" in shown or "variables have NaN or infinite values" in shown
    )
    assert "--deep_learning_rate" in shown and "check_dataset.py warns" in shown and "float16" not in shown
    store = CheckpointStore(tmp_path / "models")
    for step in store.steps():
        checkpoint = Checkpoint(store.folder / f"step-{step}")
        assert all(np.isfinite(checkpoint.read(name)).all() for name in checkpoint.arrays), step


def test_nonfinite_loss_is_found_at_the_next_log(data, tmp_path, capfd):
    """Losses are read at steps 1 and 4; the steps in between apply no update once one of them is not finite."""
    hot = ["--deep_learning_rate", "1e30", "--deep_warmup_epochs", "0", "--checkpoint_every", "0", "--log_every", "4"]
    assert main(arguments(data, tmp_path, *hot)) == FAILURE
    assert "the loss or its gradient is NaN or infinite in one of the steps 2 to 4" in capfd.readouterr().err
    assert not CheckpointStore(tmp_path / "models").steps()


def test_float16_overflow_names_its_limit(data, tmp_path, capfd):
    extreme = shutil.copytree(data, tmp_path / "data")
    name = FeatureSpec.read(extreme / "feature_spec.yaml").numerical[0].name
    for path in extreme.glob("train_*.parquet"):
        table = pq.read_table(path)
        index = table.column_names.index(name)
        pq.write_table(table.set_column(index, name, pa.array([1e6] * len(table), pa.float32())), path)
    assert main(arguments(extreme, tmp_path, variant="float16")) == FAILURE
    shown = capfd.readouterr().err
    assert (
        "the loss or its gradient is NaN" in shown
        and "float16" in shown
        and "65,504" in shown
        and "--amp_dtype bfloat16" in shown
    )
    assert check_dataset.main([str(extreme)]) == 0
    assert f"train, {name}, first in {extreme / 'train_0.parquet'}" in capfd.readouterr().out


def test_summary_shows_few_of_many_tasks():
    values = {f"auc_roc/task_{number}": 0.5 + number / 1000 for number in range(128)}
    values |= {"auc_roc/unknown": math.nan, "auc_roc/mean": 0.56, "pr_auc/mean": 0.1}
    line = describe(values | {"loss_val/a": 0.25, "loss_val/b": 0.5, "loss_val/mean": 0.375})
    best = "best task_127 0.62700, task_126 0.62600, task_125 0.62500"
    worst = "worst task_0 0.50000, task_1 0.50100, task_2 0.50200"
    assert f"auc_roc/mean 0.56000  (128 of 129 tasks known; {best}; {worst})" in line
    assert "loss_val/a 0.25000  loss_val/b 0.50000  loss_val/mean 0.37500" in line
    smaller = describe({f"loss_val/task_{number}": float(number) for number in range(20)})
    assert "best task_0 0.00000" in smaller and "worst task_19 19.00000" in smaller
    assert "no task known" in describe({f"loss_val/task_{number}": math.nan for number in range(20)})


@pytest.mark.parametrize(
    ("failing", "code"),
    [pytest.param({1, 2}, DONE, marks=pytest.mark.slow), (set(range(7, 99)), FAILURE)],
)
def test_failed_save_is_reported_and_the_last_must_succeed(data, tmp_path, monkeypatch, capfd, failing, code):
    save, calls = CheckpointStore.save, []

    def fails(store, step, *more, **facts):  # type: ignore[no-untyped-def]
        calls.append(step)
        if len(calls) in failing:
            raise StorageError(f"cannot save step {step}: no room")
        return save(store, step, *more, **facts)

    monkeypatch.setattr(CheckpointStore, "save", fails)
    assert main(arguments(data, tmp_path, "--checkpoint_every", "4")) == code
    shown = capfd.readouterr().err
    assert f"warning: cannot save step {calls[min(failing) - 1]}: no room" in shown and "Training continues" in shown
    steps = CheckpointStore(tmp_path / "models").steps()
    assert steps == [step for number, step in enumerate(calls, 1) if number not in failing]
    assert (code == FAILURE) == (f"main.py: error: cannot save step {STEPS}: no room" in shown)


def reseal(checkpoint: Checkpoint, **facts: Any) -> None:
    """Writes a checkpoint again with other facts, and checksums that fit them."""
    sources = [checkpoint.source(name) for name in checkpoint.arrays]
    write_checksummed(checkpoint.path, arrays=sources, metadata=checkpoint.metadata | facts)


HUGE = 10**400
# Where a state is spoilt -> what is put there.
SPOILT_STATES: dict[tuple[str, ...], list[Any]] = {
    ("identity",): [[1], "x", None, 7],
    ("identity", "seed"): [None, True, "1", 1.5, HUGE],
    ("identity", "training_data"): [7],
    ("position",): [{"epoch": 0}, {"epoch": "a", "steps": 4, "losses": []}, 7, None],
    ("position", "losses"): [["x"], [float("nan")], [[1.0]], 3],
    ("metrics",): [{"auc_roc": HUGE}, {"auc_roc": float("nan")}, {"auc_roc": True}, {"auc_roc": {"a": 1}}, []],
    ("stopping",): [None, {"metric": "auc_roc", "best": HUGE, "epochs_since_best": 0}, {"metric": 3}],
    ("schema",): [None, {"features": [], "tasks": [1]}, {"features": "x", "tasks": []}],
    ("options",): [[], "x", None, {"num_epochs": 3}],
    ("options", "num_epochs"): [HUGE, "3", True],
    ("options", "deep_learning_rate"): [float("inf"), "x", None],
}


def test_state_of_wrong_types_is_no_checkpoint(data, tmp_path, whole, capfd, monkeypatch):
    monkeypatch.setattr("main.import_tensorflow", lambda: pytest.fail("the checks were passed"))
    copied = tmp_path / "models" / "checkpoints" / f"step-{SAVE_EVERY}"
    shutil.copytree(whole / "models" / "checkpoints" / copied.name, copied)
    checkpoint = Checkpoint(copied)
    for place, values in SPOILT_STATES.items():
        for value in values:
            state = json.loads(json.dumps(checkpoint.state))
            holder = state if len(place) == 1 else state[place[0]]
            holder[place[-1]] = value
            reseal(checkpoint, state=state)
            for action in ("--use_checkpoint", "--evaluate"):
                assert main(arguments(data, tmp_path, action)) == NO_CHECKPOINT, (place, value)
                shown = capfd.readouterr().err
                assert "manifest.json" in shown and ".".join(place) in shown and "Traceback" not in shown, (
                    place,
                    shown,
                )


@pytest.mark.parametrize("fact", [{"step": True}, {"sequence": 10**30}, {"best": 1}, {"state": []}, {"step": "4"}])
def test_manifest_values_of_wrong_types_are_damage(tmp_path, fact):
    path = CheckpointStore(tmp_path).save(4, [ArraySource.from_array("x", np.zeros(1))], {})
    reseal(Checkpoint(path), **fact)
    with pytest.raises(NoCheckpointError, match=next(iter(fact))):
        CheckpointStore(tmp_path, warn=lambda text: None).open("last")


def test_position_of_another_step_is_rejected(data, tmp_path, whole, capfd):
    copied = tmp_path / "models" / "checkpoints" / f"step-{SAVE_EVERY}"
    shutil.copytree(whole / "models" / "checkpoints" / copied.name, copied)
    checkpoint = Checkpoint(copied)
    position = checkpoint.state["position"] | {"steps": 5}
    reseal(checkpoint, state=checkpoint.state | {"position": position})
    assert main(arguments(data, tmp_path, "--use_checkpoint")) == NO_CHECKPOINT
    assert "its position in the epoch" in capfd.readouterr().err


def test_result_lag_of_a_gpu_changes_no_value(data, tmp_path, whole, monkeypatch):
    """As on a GPU, which must not wait for this process between steps."""
    monkeypatch.setattr(trainer.trainer, "on_gpu", lambda: True)
    must(main(arguments(data, tmp_path / "behind")))
    assert losses(tmp_path / "behind" / "results") == losses(whole / "results")
    assert_same(whole, tmp_path / "behind")
    # Saves by count come a step later, but for the last steps of epochs.
    saved = CheckpointStore(tmp_path / "behind" / "models").steps()
    assert saved == [9, 11, 17, 22, 25, 33]
    with monkeypatch.context() as patched:
        interrupt_training(patched, 6, signal.SIGTERM)
        assert main(arguments(data, tmp_path / "stopped")) == STOPPED
    assert CheckpointStore(tmp_path / "stopped" / "models").steps()[-1] == 9
    must(main(arguments(data, tmp_path / "stopped", "--use_checkpoint")))
    assert_same(whole, tmp_path / "stopped")


def test_run_killed_after_last_save_gets_its_model(data, tmp_path, whole, capfd):
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
    assert "has not improved" in capfd.readouterr().err
    must(main(arguments(data, tmp_path, *early, "--use_checkpoint", "--num_epochs", "9")))
    shown = capfd.readouterr().out
    assert "nothing to do" in shown and "--early_stopping_patience above 1" in shown and "--num_epochs" not in shown
    assert CheckpointStore(tmp_path / "models").steps() == steps
    # What the message says is what continues it.
    must(main(arguments(data, tmp_path, *early, "--use_checkpoint", "--early_stopping_patience", "2")))
    assert CheckpointStore(tmp_path / "models").steps()[-1] == STEPS
    capfd.readouterr()
    must(main(arguments(data, tmp_path, *early, "--use_checkpoint", "--early_stopping_patience", "2")))
    assert "set --num_epochs above 3 and --early_stopping_patience above 2" in capfd.readouterr().out


@pytest.mark.slow
def test_new_stopping_metric_starts_from_its_own_best(data, tmp_path, capfd):
    """Nothing is learned: by no metric is a later epoch better, though its loss is below the first epoch's 1.0."""
    still = ["--deep_learning_rate", "1e-30", "--linear_learning_rate", "1e-30", "--checkpoint_every", "0"]
    first = ["--early_stopping_metric", "normalized_entropy/click", "--num_epochs", "1"]
    must(main(arguments(data, tmp_path, *still, *first)))
    other = ["--early_stopping_metric", "loss_val/click", "--early_stopping_patience", "1"]
    must(main(arguments(data, tmp_path, *still, *other, "--use_checkpoint")))
    store = CheckpointStore(tmp_path / "models")
    assert store.steps() == [PER_EPOCH, 2 * PER_EPOCH] and store.best().step == PER_EPOCH
    evaluated = store.open("best").state
    assert store.open("last").state["stopping"] == {
        "metric": "loss_val/click",
        "best": evaluated["metrics"]["loss_val/click"],
        "epochs_since_best": 1,
        "epochs_without_improvement": 1,
    }
    shown = capfd.readouterr().out
    assert "looked at normalized_entropy/click and looks at loss_val/click now" in shown


@pytest.mark.slow
def test_more_epochs_report_changed_rates(data, tmp_path, whole, monkeypatch, capfd):
    shutil.copytree(whole / "models" / "checkpoints", tmp_path / "models" / "checkpoints")
    changed = ["--num_epochs", "4", "--linear_learning_rate", "0.01"]
    interrupt_training(monkeypatch, STEPS + 1, signal.SIGTERM)  # what follows does not matter
    assert main(arguments(data, tmp_path, "--use_checkpoint", *changed)) == STOPPED
    shown = capfd.readouterr().out
    # Three epochs end at an eighth of 0.00012. The fourth of four lies behind the middle of what follows the warm-up.
    assert "the schedule of the deep learning rate has changed: 1.5e-05 before and 1.5e-05 now at step 34" in shown
    assert "--num_epochs was 3 and is 4" in shown and "linear learning rate was 0.02 and is 0.01" in shown
    start = whole / "models" / "checkpoints" / f"step-{2 * PER_EPOCH}"
    again = ["--use_checkpoint", "--checkpoint", str(start), "--num_epochs", "8"]
    interrupt_training(monkeypatch, 2 * PER_EPOCH + 1, signal.SIGTERM)
    assert main(arguments(data, tmp_path / "eight", *again)) == STOPPED
    # Of eight epochs' 88 steps the first 26.4 warm up: the rate is 23 / 26.4 of the base, not an eighth.
    assert "1.5e-05 before and 0.0001045 now at step 23" in capfd.readouterr().out


def test_constant_rate_reports_no_change(data, tmp_path, capfd):
    must(main(arguments(data, tmp_path, "--num_epochs", "1", variant="dwa")))
    must(main(arguments(data, tmp_path, "--use_checkpoint", "--num_epochs", "2", variant="dwa")))
    assert "rate has changed" not in capfd.readouterr().out


@pytest.mark.slow
def test_a_metric_that_is_never_defined(tmp_path, capfd):
    """No row of the mapping that is evaluated is positive: the last checkpoint stands for the best."""
    data = make_dataset(tmp_path / "made", ROOT / "feature_specs" / "tiny.yaml", rows=ROWS)
    for file in data.glob("test_*.parquet"):
        table = pq.read_table(file)
        index = table.column_names.index("liked")
        zeros = pa.array(np.zeros(len(table), table.schema.field(index).type.to_pandas_dtype()))
        pq.write_table(table.set_column(index, "liked", zeros), file)
    must(main(arguments(data, tmp_path, "--early_stopping_patience", "1")))
    shown = capfd.readouterr()
    assert "'liked': it is 0 in all 700 evaluated rows, so that auc_roc" in shown.err
    assert "nor count for patience" in shown.err and "stopping" not in shown.err
    store = CheckpointStore(tmp_path / "models", warn=lambda text: None)
    assert store.steps()[-1] == STEPS and store.best() is None
    stopping = store.open("last").state["stopping"]
    assert (stopping["metric"], stopping["best"], stopping["epochs_since_best"]) == ("auc_roc", None, 0)
    must(main(arguments(data, tmp_path, "--evaluate")))
    shown = capfd.readouterr()
    assert f"the last one, step {STEPS}, is used" in shown.err
    assert "it is 0 in all 700 evaluated rows" in shown.out
    assert load_model(tmp_path / "models" / "model").metrics["loss_val"] > 0
    assert math.isnan(load_model(tmp_path / "models" / "model").metrics["auc_roc"])
