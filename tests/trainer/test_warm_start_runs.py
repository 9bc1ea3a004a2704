"""Warm starts of main.py from extended vocabularies, model folders and other settings, and on several workers."""

import json
import signal

import numpy as np
import pytest

from data.encoding.encoder_files import load_encoders
from main import main
from tests.faults.jobs import SupervisedJob, logged_losses
from tests.helpers import ROOT, losses, make_dataset, must, run_program, words
from tests.trainer.test_warm_start import FLAGS, SPEC, STILL, at, ids_by_value, last, make_day, run
from trainer.checkpoint.model_folder import open_model
from trainer.checkpoint.store import CheckpointStore
from trainer.cli import parse

CROSSED = SPEC | {
    "feature_spec": SPEC["feature_spec"]
    | {
        "pair": {"encode": {"cross": ["shop", "tag"], "vocabulary": {}}, "wide": "only"},
        "site": {"encode": "vocabulary", "serve": "w1"},
    },
    "channel_spec": SPEC["channel_spec"] | {"onehot_categorical": ["item", "shop", "site", "pair"]},
}


def test_retired_and_reused_ids(tmp_path, capfd):
    """Tuesday reuses the ids of Monday's items; crosses are extended; one feature is known only in training."""
    monday = make_day(tmp_path / "monday", 0, spec=CROSSED)
    extend = ["--extend", str(monday / "workflow"), "--retire_after", "1"]
    tuesday = make_day(tmp_path / "tuesday", 200, *extend, seed=1, spec=CROSSED)
    old_values, values = (load_encoders(day / "workflow")["item"].values.to_pylist() for day in (monday, tuesday))
    reused = [old for old, new in zip(old_values, values, strict=False) if new not in (old, None)]
    assert len(reused) > 50 and len(values) >= len(old_values)
    must(run(monday, tmp_path / "first"))
    capfd.readouterr()
    must(
        run(
            tuesday,
            tmp_path / "warm",
            *STILL,
            *words("--checkpoint_every 1 --warm_start"),
            str(tmp_path / "first/models"),
        )
    )
    report = capfd.readouterr().out
    before, after = last(tmp_path / "first"), at(tmp_path / "warm", last(tmp_path / "first").step + 1)
    untouched = after.read("embeddings/deep.item.last_step") <= before.step
    assert not any(line.startswith("starts cold") for line in report.splitlines())
    expected = {}
    for feature in ("item", "pair", "site"):
        ids, old_ids = ids_by_value(tuesday, feature), ids_by_value(monday, feature)
        expected[feature] = (ids, old_ids)
        counts = next((line.split()[1:5] for line in report.splitlines() if line.startswith(f"{feature} ")), None)
        if counts is not None:
            new, gone = len(ids.keys() - old_ids), len(old_ids.keys() - ids)
            assert counts[2:] == [str(new), str(gone)], feature
    ids, old_ids = expected["item"]
    unseen = load_encoders(monday / "workflow")["item"]
    old, new = before.read("embeddings/deep.item"), after.read("embeddings/deep.item")
    compared = 0
    for value, row in ids.items():
        if untouched[row]:
            source = old_ids[value] if value in old_ids else int(unseen.encode([value])[0])
            np.testing.assert_array_equal(new[row], old[source], err_msg=value)
            compared += value not in old_ids and values.index(value) < len(old_values)
    assert compared > 10  # reused ids whose rows start like those of unseen values
    # FTRL computes the weights of a cross from their state, which goes on for the same combination: the first batch
    # touches some of them.
    ids, old_ids = expected["pair"]
    names = [name for name in before.arrays if name.startswith("embeddings/wide.pair.")]
    known = {row: old_ids[value] for value, row in ids.items() if value in old_ids}
    state, old_state = (np.concatenate([one.read(name) for name in names], axis=1) for one in (after, before))
    same = (state[[*known]] == old_state[[*known.values()]]).all(axis=1)
    assert len(known) > 100 and same.mean() > 0.6
    assert len(np.unique(old_state, axis=0)) > 0.8 * len(old_state)
    table = "wide_deep/training_only/id.site"
    for value, row in expected["site"][0].items():
        np.testing.assert_allclose(after.read(table)[row], before.read(table)[expected["site"][1][value]], atol=1e-6)


def test_model_folder_of_a_dataset_without_encoders(tmp_path, capfd):
    """Everything goes by id, and the model alone is known: its flags, widths and weights."""
    data = make_dataset(tmp_path, ROOT / "feature_specs" / "tiny.yaml", rows=200)
    must(run(data, tmp_path / "first", "--embedding_init_std", "0.3"))
    folder = tmp_path / "first" / "models" / "model"
    options = [flag for flag in FLAGS if flag not in ("--deep_hidden_units", "8")]
    places = words(f"--dataset_path {data} --model_dir {tmp_path}/warm/models --results_dir {tmp_path}/warm/results")
    capfd.readouterr()
    must(main([*places, *options, *STILL, "--warm_start", str(folder)]))
    assert "no state of the optimizer" in capfd.readouterr().out
    first, model = at(tmp_path / "warm", 3), open_model(folder)
    compared = [name for name in model.arrays if "embeddings/wide" not in name and "/wide_" not in name]
    assert any("deep." in name for name in compared) and any("kernel" in name for name in compared)
    for name in compared:
        np.testing.assert_array_equal(first.read(name), model.read(name), err_msg=name)
    assert min(losses(tmp_path / "warm" / "results")) == 1


def test_flags_under_the_automatic_recipe(tmp_path):
    monday, tuesday = make_day(tmp_path / "monday", 0), make_day(tmp_path / "tuesday", 0, rows=4 * 600)
    where = ["--cpu", "--dataset_path"]
    small = words(
        f"--model_dir {tmp_path}/models --results_dir {tmp_path}/results --deep_hidden_units 8 --num_epochs 1"
    )
    must(main([*where, str(monday), *small, "--batch_norm"]))
    old = parse([*where, str(monday), *small, "--batch_norm"], 1)
    alone = parse([*where, str(tuesday), "--model_dir", str(tmp_path / "other")], 1)
    start = [*where, str(tuesday), "--model_dir", str(tmp_path / "other"), "--warm_start", str(tmp_path / "models")]
    warm = parse(start, 1)
    assert alone.training != old.training
    assert warm.model == old.model
    for name in ("num_epochs", "optimizer", "deep_learning_rate", "l2_reg_embedding", "global_batch_size"):
        assert getattr(warm.training, name) == getattr(old.training, name), name
    changed = parse([*start, *words("--model mmoe --optimizer sgd --num_epochs 3")], 1)
    assert changed.model.model == "mmoe" and (changed.training.optimizer, changed.training.num_epochs) == ("sgd", 3)


# Tables of at least 4,096 rows can be sharded.
LARGE = {"items": 12_000, "rows": 9000}


@pytest.mark.slow
@pytest.mark.horovod
def test_two_workers_and_shards_equal_one_worker(tmp_path):
    """Flags come from the old model by rank 0 alone, which also knows the checkpoint."""
    monday, tuesday = (make_day(tmp_path / f"{day}", 6000 * day, seed=day, **LARGE) for day in (0, 1))
    assert len(ids_by_value(tuesday, "item")) > 4096
    must(
        run(
            monday,
            tmp_path / "first",
            *words("--deep_dropout 0 --optimizer adam --l2_reg_embedding 0.001"),
            *words("--checkpoint_every 60"),
        )
    )
    start = CheckpointStore(tmp_path / "first" / "models").folder / "step-60"

    def arguments(name: str, *more: str) -> list[str]:
        places = [f"--{kind}_dir={tmp_path / name / kind}s" for kind in ("model",)]
        return [
            *places,
            *(f"--results_dir={tmp_path / name / 'results'}", f"--dataset_path={tuesday}"),
            *words("--cpu --deterministic --log_every 1 --deep_schedule constant --deep_warmup_epochs 0"),
            *(f"--warm_start={tmp_path / 'first' / 'models'}", f"--warm_start_checkpoint={start}"),
            *more,
        ]

    must(main(arguments("one")))
    scenarios = [arguments("replicated", "--shard_embeddings", "off"), arguments("sharded", "--shard_embeddings")]
    (tmp_path / "scenarios.json").write_text(json.dumps(scenarios))
    programs = ROOT / "tests" / "distributed" / "programs"
    done = run_program([programs / "run_all.py", tmp_path / "scenarios.json"], workers=2)
    assert done.returncode == 0, done.stdout + done.stderr
    one = last(tmp_path / "one")
    assert min(losses(tmp_path / "one" / "results")) == 61
    for name in ("replicated", "sharded"):
        other = last(tmp_path / name)
        assert other.step == one.step and other.arrays.keys() == one.arrays.keys()
        for array in one.arrays:
            # Row 0 of a table is padding's: whether it decays depends on how gradients are summed.
            own = slice(1, None) if array.startswith("embeddings/") else ...
            np.testing.assert_allclose(
                other.read(array)[own], one.read(array)[own], rtol=1e-3, atol=1e-4, err_msg=f"{name} {array}"
            )


@pytest.mark.slow
def test_supervisor_restarts_a_warm_start(tmp_path):
    """Killed after its first checkpoint, the same command goes on there, although MODEL is gone."""
    monday, tuesday = make_day(tmp_path / "monday", 0), make_day(tmp_path / "tuesday", 100, seed=1, rows=9000)
    must(run(monday, tmp_path / "first"))
    done, models = last(tmp_path / "first").step, tmp_path / "first" / "models"
    must(run(tuesday, tmp_path / "whole", "--warm_start", str(models)))
    start = ["--dataset_path", str(tuesday), *FLAGS, "--warm_start", str(models)]
    job = SupervisedJob(start, tmp_path / "killed", workers=1, restarts=1)
    job.wait_for("a checkpoint", lambda: any(CheckpointStore(job.models).folder.glob("step-*")))
    models.rename(tmp_path / "gone")
    job.send(signal.SIGKILL, 0)
    assert job.finish() == 0, job.output()
    steps = [step for step, _ in logged_losses(job.results)]
    assert steps[0] == done + 1 and job.output().count("resuming after step") == 1
    whole, restarted = last(tmp_path / "whole"), last(tmp_path / "killed")
    assert whole.step == restarted.step > done
    for name in whole.arrays:
        np.testing.assert_array_equal(whole.read(name), restarted.read(name), err_msg=name)
