"""Permutation importance against its definition, row by row and pair by pair, for any number of workers."""

import json
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import report
from data.errors import DataError
from data.loading.batch import Batch
from data.loading.lists import Lists, empty_lists
from data.loading.loader import ParquetLoader
from data.spec.feature_spec import FeatureSpec
from main import main
from tests.data.sample_data import nested
from tests.helpers import ROOT, make_dataset, metrics, must, words
from tests.trainer import small_models
from tests.trainer.metrics.oracles import auc_over_all_pairs, log_loss_row_by_row
from tests.trainer.metrics.workers import LocalWorkers
from tests.trainer.small_models import WEIGHTED as LAYOUT
from tests.trainer.small_models import unpadded, weights_of
from trainer import importance
from trainer.checkpoint.load_model import load_model
from trainer.comm import SingleWorker
from trainer.importance import (
    BLOCKS,
    Sample,
    SampleModel,
    block_metrics,
    blocks_of,
    choose_rows,
    draw_sample,
    input_features,
    measure_importance,
    measured_metrics,
    permutation_of,
)
from trainer.importance_file import FILE, read_importance
from trainer.layout import ModelInputs
from trainer.tasks.binary import BinaryTask
from trainer.tasks.multiclass import MulticlassTask
from trainer.tasks.regression import RegressionTask

ROWS, SEED = 230, 3
make_model = partial(small_models.make_model, layout=LAYOUT)
TASKS = (BinaryTask("click"), BinaryTask("buy", given=0))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(importance, "BATCH_ROWS", 32)


def make_sample(rows: int = ROWS) -> Sample:
    random = np.random.default_rng(0)
    tags = random.integers(0, 90, (rows, 3))
    tags[random.random((rows, 3)) < 0.3] = -1
    friends = random.integers(0, 500, (rows, 2))
    ids = np.column_stack([random.integers(0, 500, rows), random.integers(0, 7, rows), tags, friends]).astype(np.int32)
    labels = random.integers(0, 2, (rows, 2)).astype(np.float32)
    labels[:5, 0] = np.nan
    weights = random.choice([0.5, 1.0, 2.0], rows).astype(np.float32)
    own = unpadded(LAYOUT, ids, weights_of(LAYOUT, ids))
    numerical = random.normal(size=(rows, 2)).astype(np.float32)
    return Sample(own, numerical, numerical[:, :0], labels, weights)


def measured(comm=None):
    sample, comm = make_sample(), comm or SingleWorker()
    logits_of = SampleModel(make_model(tasks=TASKS, embedding_init_std=0.5), sample, comm, xla=False, on_batch=int)
    return measure_importance(logits_of, sample, TASKS, LAYOUT, SEED)[0]


def by_definition(model, sample: Sample, feature: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns by metric of the second task its change over all rows, and its changes within blocks."""
    intact = LAYOUT.model_inputs(sample.ids, sample.numerical, sample.vectors)
    permuted, order = ModelInputs(*(matrix.copy() for matrix in intact)), permutation_of(feature, ROWS, SEED)
    ids, numerical, weights, *_ = permuted
    if feature == "friends":
        ids[:, 5:], weights[:] = ids[order, 5:], weights[order]
    elif feature == "tags":
        ids[:, 2:5] = ids[order, 2:5]
    elif feature == "user":
        ids[:, 0] = ids[order, 0]
    else:
        numerical[:, 1] = numerical[order, 1]
    old, new = (np.asarray(model(*inputs))[:, 1] for inputs in (intact, permuted))
    counts, blocks = sample.labels[:, 0] == 1, blocks_of(ROWS, SEED)
    parts = [counts, *(counts & (blocks == block) for block in range(BLOCKS))]
    return {
        name: np.array(
            [
                metric(new[part], sample.labels[part, 1], sample.weights[part])
                - metric(old[part], sample.labels[part, 1], sample.weights[part])
                for part in parts
            ]
        )
        for name, metric in (("auc_roc", auc_over_all_pairs), ("loss_val", log_loss_row_by_row))
    }


def test_changes_and_errors_follow_the_definition():
    tasks = measured()
    found = {feature.feature: feature.effects for feature in tasks[1].features}
    assert set(found) == {"user", "day", "tags", "friends", "age", "price"}
    model, sample = make_model(tasks=TASKS, embedding_init_std=0.5), make_sample()
    for feature in ("tags", "friends", "user", "price"):
        for metric, (change, *of_blocks) in by_definition(model, sample, feature).items():
            effect = found[feature][metric]
            assert abs(change) > 1e-4 and effect.change == pytest.approx(change, abs=1e-6)
            known = [value for value in of_blocks if not math.isnan(value)]
            mean = sum(known) / len(known)
            variance = sum((value - mean) ** 2 for value in known) / (len(known) - 1)
            assert effect.standard_error == pytest.approx(math.sqrt(variance / len(known)), abs=1e-6)


def test_features_are_sorted_by_the_ranking_metric():
    for task in measured():
        assert list(task.intact) == ["auc_roc", "loss_val"]
        changes = [feature.effects["auc_roc"].change for feature in task.features]
        assert changes == sorted(changes) and changes[0] < changes[-1]


@pytest.mark.parametrize("workers", [2, 3])
def test_results_do_not_depend_on_the_number_of_workers(workers):
    alone = measured()
    for found in LocalWorkers(workers).run(measured):
        assert found == alone


def test_a_feature_without_influence_changes_nothing():
    sample, model = make_sample(), make_model(tasks=TASKS)
    sample.ids.onehot[:, 1] = 4
    logits_of = SampleModel(model, sample, SingleWorker(), xla=False, on_batch=int)
    for task in measure_importance(logits_of, sample, TASKS, LAYOUT, SEED)[0]:
        (day,) = (feature for feature in task.features if feature.feature == "day")
        assert all((effect.change, effect.standard_error) == (0, 0) for effect in day.effects.values())


def test_metrics_without_a_value_are_null():
    sample = make_sample()
    sample.labels[:, 1] = 0
    logits_of = SampleModel(make_model(tasks=TASKS), sample, SingleWorker(), xla=False, on_batch=int)
    (_, buy), (reason,) = measure_importance(logits_of, sample, TASKS, LAYOUT, SEED)[0], ["buy"]
    assert buy.intact["auc_roc"] is None and buy.intact["loss_val"] > 0
    assert {(f.effects["auc_roc"].change, f.effects["auc_roc"].standard_error) for f in buy.features} == {(None, None)}
    assert all(feature.effects["loss_val"].change is not None for feature in buy.features)
    assert reason in "".join(measure_importance(logits_of, sample, TASKS, LAYOUT, SEED)[1])


def test_labels_that_no_metric_can_use_are_an_error():
    sample = make_sample()
    sample.labels[7, 0] = 3
    logits_of = SampleModel(make_model(tasks=TASKS), sample, SingleWorker(), xla=False, on_batch=int)
    with pytest.raises(DataError, match="label 'click': 1 of 225"):
        measure_importance(logits_of, sample, TASKS, LAYOUT, SEED)


def test_standard_error_is_the_spread_over_samples():
    """200 samples of rows, each with its own permutation: their changes spread as much as each one's standard error."""
    random, task = np.random.default_rng(0), (BinaryTask("click"),)
    changes, errors = [], []
    for seed in range(200):
        signal, noise = random.normal(size=(2, 1000))
        labels = (random.random(1000) < 1 / (1 + np.exp(1 - 1.5 * signal))).astype(np.float32)[:, None]
        sample = Sample(*[np.empty((1000, 0))] * 3, labels, np.ones(1000, np.float32))
        blocks = blocks_of(1000, seed)
        orders = (np.arange(1000), permutation_of("signal", 1000, seed))
        old, new = (
            block_metrics((signal[order] + noise).astype(np.float32)[:, None], sample, task, blocks)[0]["auc_roc"]
            for order in orders
        )
        effect = importance._effect(new - old)
        changes.append(effect.change)
        errors.append(effect.standard_error)
    assert np.mean(errors) == pytest.approx(np.std(changes, ddof=1), rel=0.2)


def test_reported_metrics_follow_the_task():
    names = {
        kind: [metric.name for metric in measured_metrics(task)]
        for kind, task in (
            ("binary", BinaryTask("a")),
            ("multiclass", MulticlassTask("b", num_classes=3)),
            ("regression", RegressionTask("c")),
        )
    }
    assert names == {
        "binary": ["auc_roc", "loss_val"],
        "multiclass": ["auc_roc", "loss_val"],
        "regression": ["rmse", "loss_val"],
    }


@given(st.integers(1, 60), st.integers(1, 70), st.integers(1, 9), st.integers(1, 3), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_sample_is_the_chosen_rows_of_the_mapping(rows, most, batch, workers, seed):
    chosen = choose_rows(rows, most, seed)
    assert len(set(chosen.tolist())) == len(chosen) == min(rows, most) and 0 <= chosen[0] <= chosen[-1] < rows
    assert sorted(chosen) == list(chosen) == list(choose_rows(rows, most, seed))
    random = np.random.default_rng(seed)
    labels, numerical = random.normal(size=(2, rows, 1)).astype(np.float32)
    weights = random.integers(0, 2, rows).astype(np.float32)
    weights[chosen[0]] = 1

    def epoch(rank: int):
        own = np.arange(rank * rows // workers, (rank + 1) * rows // workers)
        for step in range(-(-rows // (batch * workers))):
            here = own[step * batch : (step + 1) * batch]
            pad = batch - len(here)
            columns = [
                np.pad(column[here], [(0, pad)] + [(0, 0)] * (column.ndim - 1)) for column in (numerical, labels)
            ]
            ids = np.pad(here, (0, pad)).astype(np.int32)[:, None]
            positions = np.pad(here, (0, pad), constant_values=-1)
            lengths = np.pad(here % 4, (0, pad)).astype(np.int32)
            # The second of two features has weights.
            lists = Lists(np.repeat(ids, 2 * lengths), np.repeat(lengths[:, None], 2, axis=1))
            number_lists = Lists(np.repeat(ids[:, 0], lengths) / np.float32(8), lengths[:, None])
            values, targets = columns
            own_weights = np.pad(weights[here], (0, pad))
            yield Batch(ids, lists, number_lists, values, -2 * values, targets, own_weights, None, positions)

    kept = chosen[weights[chosen] > 0]
    loaders = [SimpleNamespace(epoch=lambda _, rank=rank: epoch(rank)) for rank in range(workers)]
    for found in LocalWorkers(workers).run(lambda comm: draw_sample(loaders[comm.rank], chosen, comm, int)):
        assert found.ids.onehot[:, 0].tolist() == kept.tolist()
        assert nested(found.ids.id_lists) == [[[row] * (row % 4)] * 2 for row in kept.tolist()]
        assert nested(found.ids.number_lists) == [[[row / 8] * (row % 4)] for row in kept.tolist()]
        np.testing.assert_array_equal(found.numerical, numerical[kept])
        np.testing.assert_array_equal(found.vectors, -2 * numerical[kept])
        np.testing.assert_array_equal(found.labels, labels[kept])
        np.testing.assert_array_equal(found.weights, weights[kept])


def test_rows_without_weight_are_an_error():
    ids, numbers = np.zeros((4, 1), np.int32), np.zeros((4, 1), np.float32)
    batch = Batch(
        ids,
        empty_lists(4, 2),
        empty_lists(4, 0, np.float32),
        numbers,
        numbers,
        numbers,
        np.zeros(4, np.float32),
        None,
        np.arange(4),
    )
    loader = SimpleNamespace(epoch=lambda _: (batch for _ in range(1)))
    with pytest.raises(DataError, match="none of the evaluated rows has a sample weight above 0"):
        draw_sample(loader, np.arange(4), SingleWorker(), int)


# Runs of main.py


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A dataset, the flags of its folders, and a model trained on it."""
    folder = tmp_path_factory.mktemp("importance")
    data = make_dataset(folder, ROOT / "feature_specs" / "three_tasks.yaml", rows=1200)
    places = [
        "--dataset_path",
        data,
        "--model_dir",
        folder / "models",
        "--results_dir",
        folder / "results",
        "--cpu",
        "--recipe",
        "published",
    ]
    flags = words("--model ple --expert_hidden_units 8 --tower_hidden_units 8 --deep_learning_rate 0.01")
    must(main([*map(str, places), *flags, "--num_epochs", "1", "--global_batch_size", "128"]))
    return SimpleNamespace(folder=folder, data=data, flags=[*map(str, places), "--eval_batch_size", "500"])


def test_file_agrees_with_the_model_folder(run, capsys):
    out = run.folder / "results" / FILE
    must(main([*run.flags, "--importance", str(out), "--seed", "5"]))
    assert f"importance: {out}" in capsys.readouterr().out
    found = read_importance(out)
    assert (found.mapping, found.mapping_rows, found.rows, found.seed) == ("test", 1200, 1200, 5)
    assert [task.task for task in found.tasks] == ["click", "conversion", "spend"]
    trained = metrics(run.folder / "results")
    for task in found.tasks:
        assert task.intact == pytest.approx({name: trained[f"{name}/{task.task}"] for name in task.intact}, abs=1e-6)
    saved = load_model(run.folder / "models" / "model")
    loader = ParquetLoader(
        FeatureSpec.read(run.data / "feature_spec.yaml"), "test", global_batch_size=1200, shuffle=False
    )
    (batch,) = loader.epoch(0)
    spend = batch.labels[:, 2]
    counts = (batch.labels[:, 1] == 1) & (batch.labels[:, 0] == 1) & ~np.isnan(spend)
    for feature in input_features(saved.layout):
        whole, numerical = saved.layout.padded(batch.ids), batch.numerical.copy()
        ids, order = whole.copy(), permutation_of(feature.name, 1200, 5)
        if feature.numerical:
            numerical[:, feature.numerical] = numerical[order][:, feature.numerical]
        else:
            [columns] = [part for part in saved.layout.categorical if part.name == feature.name]
            ids[:, columns.start : columns.stop] = ids[order, columns.start : columns.stop]
        errors = [
            np.asarray(saved.model(*inputs))[counts, 2].astype(float) - spend[counts]
            for inputs in ((whole, batch.numerical), (ids, numerical))
        ]
        old, new = (math.sqrt(np.mean(error**2)) for error in errors)
        (effect,) = (one.effects["rmse"] for one in found.tasks[2].features if one.feature == feature.name)
        assert effect.change == pytest.approx(new - old, abs=1e-6)


def test_report_draws_the_file(run):
    must(main([*run.flags, "--importance", str(run.folder / "results" / FILE)]))
    must(report.main(["--results_dir", str(run.folder / "results")]))
    page = (run.folder / "results" / "report.html").read_text()
    assert '<section id="feature-importance">' in page
    assert "1,200 of the 1,200 rows of mapping test" in page and "change of RMSE" in page
    assert page.count("Importance for ") == 3 and "topic_id_list" in page


def test_fewer_rows_are_a_seeded_sample(run, capsys):
    files = [run.folder / f"few_{number}.json" for number in range(2)]
    for file in files:
        must(main([*run.flags, "--importance", str(file), "--importance_rows", "500"]))
    assert "--importance measures on 500 rows: below 2,000" in capsys.readouterr().err
    first, second = map(read_importance, files)
    assert first == second and (first.rows, first.mapping_rows) == (500, 1200)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--importance", "nowhere/out.json"], "mkdir -p nowhere"),
        (["--importance", "README.md"], "README.md: exists and was not written by this command"),
        (["--importance", "out.json", "--importance_rows", "1"], "--importance_rows must be at least 2"),
        (["--importance", "out.json", "--checkpoint", "step-7"], "step-7"),
    ],
)
def test_wrong_requests_are_rejected(run, more, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main([*run.flags, *more]) in (2, 4)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"tasks": []}, {"rows": -0.5}, {"schema": "another"}, {"more": 1}, {"intact": {}}])
def test_inconsistent_files_are_rejected(tmp_path, change):
    effects = {"auc_roc": {"change": -0.1, "standard_error": None}}
    task = {"task": "click", "intact": {"auc_roc": 0.5}, "features": [{"feature": "day", "effects": effects}]}
    document = {
        "schema": "feature importance 1",
        "checkpoint": "c",
        "mapping": "test",
        "mapping_rows": 9,
        "rows": 9,
        "blocks": 20,
        "seed": 0,
        "tasks": [task],
    }
    (tmp_path / FILE).write_text(json.dumps(document))
    assert read_importance(tmp_path / FILE).tasks[0].features[0].effects["auc_roc"].change == -0.1
    task.update({name: value for name, value in change.items() if name in task})
    document.update({name: value for name, value in change.items() if name not in task})
    (tmp_path / FILE).write_text(json.dumps(document))
    with pytest.raises(DataError, match="is not a file of main.py --importance"):
        read_importance(tmp_path / FILE)


@pytest.mark.parametrize("content", ["{", '{"schema": "feature importance 2"}', "[]", "[" * 100_000])
def test_other_files_are_recognized(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(DataError, match=f"{FILE}: is not a file of main.py --importance"):
        read_importance(tmp_path / FILE)
