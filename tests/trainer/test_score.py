"""The score against arithmetic by hand: in arrays, in the graph, in metrics, in predictions files and in exports."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

import export
from data.spec.feature_spec import FeatureSpec
from tests.trainer.export.models import draw_inputs, write_run
from tests.trainer.export.test_raw import make_encoders
from tests.trainer.metrics.oracles import auc_over_all_pairs, mean, measure
from tests.trainer.metrics.workers import LocalWorkers
from trainer.export.comparison import Check, ExportDiffers, largest_difference
from trainer.predictions import PredictionWriter, check_column_names
from trainer.tasks.binary import with_logit_maps
from trainer.tasks.evaluation import Evaluation, metric_of
from trainer.tasks.logit_map import LogitMap, Platt
from trainer.tasks.score import Score, predicted, predicted_in_graph
from trainer.tasks.task import tasks_of

FORMULA = "click * buy ** 0.5 * price"
LABELS = ("click", "spend", "buy")


def specification(score: str | None = FORMULA) -> FeatureSpec:
    """Three tasks, of which the last is given the first, and three numerical features."""
    columns = ["age", "price", "item rank", *LABELS, "session"]
    chunks = [{"type": "parquet", "features": columns, "files": ["part.parquet"]}]
    document = {
        "feature_spec": {
            **{name: {"dtype": "float32"} for name in columns[:3]},
            "click": {},
            "spend": {"task": "regression"},
            "buy": {"given": "click"},
            "session": {"dtype": "int64"},
        },
        "source_spec": {"train": chunks, "test": chunks},
        "channel_spec": {"numerical": columns[:3], "label": [*LABELS], "map": ["session"]},
    } | ({} if score is None else {"score": score})
    return FeatureSpec.from_dict(document, Path())


def score_of(formula: str) -> Score:
    score = Score.of(specification(formula))
    assert score is not None
    return score


TASKS = tasks_of(specification())


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def test_a_specification_without_a_formula_has_no_score():
    assert Score.of(specification(None)) is None
    found = predicted(TASKS, None, np.zeros((4, 3), np.float32), None)
    assert list(found) == [*LABELS]


OF_ROWS = {
    FORMULA: lambda click, spend, buy, age, price, rank: click * np.sqrt(buy) * price,
    "'item rank'": lambda click, spend, buy, age, price, rank: rank,
    "buy": lambda click, spend, buy, age, price, rank: buy,
    "-spend ** 2 / -3 + 1": lambda click, spend, buy, age, price, rank: spend**2 / 3 + 1,
    "min(click, buy, 0.3) - max(age, price)": lambda click, spend, buy, age, price, rank: (
        np.minimum(np.minimum(click, buy), 0.3) - np.maximum(age, price)
    ),
    "log(click) + exp(-buy) * abs(spend)": lambda click, spend, buy, age, price, rank: (
        np.log(click) + np.exp(-buy) * np.abs(spend)
    ),
    "sqrt(abs(age)) * 2 ** 'item rank'": lambda click, spend, buy, age, price, rank: np.sqrt(np.abs(age)) * 2**rank,
}


@pytest.mark.parametrize("formula", OF_ROWS)
def test_arrays_and_graph_have_the_score_of_the_formula(formula):
    random = np.random.default_rng(1)
    logits, numerical = (random.normal(size=(200, 3)).astype(np.float32) for _ in range(2))
    score = score_of(formula)
    found = predicted(TASKS, score, logits, score.numbers(numerical))
    assert list(found) == [*LABELS, "score"] and found["score"].dtype == np.float32
    click, spend, buy = sigmoid(logits[:, 0]), logits[:, 1].astype(float), sigmoid(logits[:, 2])
    expected = OF_ROWS[formula](click, spend, buy, *numerical.T.astype(float))[:, np.newaxis]
    np.testing.assert_allclose(found["score"], expected, rtol=1e-5, atol=1e-6)
    in_graph = predicted_in_graph(TASKS, score, tf.constant(logits), tf.constant(numerical))
    assert list(in_graph) == [*LABELS, "score"] and in_graph["score"].dtype == tf.float32
    np.testing.assert_allclose(in_graph["score"], found["score"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("age ** -1", [np.inf, -0.5, 1 / 3]),
        ("1 / age", [np.inf, -0.5, 1 / 3]),
        ("-1 / age", [-np.inf, 0.5, -1 / 3]),
        ("age / age", [np.nan, 1, 1]),
        ("log(age)", [-np.inf, np.nan, math.log(3)]),
        ("sqrt(age)", [0, np.nan, math.sqrt(3)]),
        ("age ** 0.5", [0, np.nan, math.sqrt(3)]),
        ("age ** 2", [0, 4, 9]),
        ("age ** 0", [1, 1, 1]),
        ("exp(age * 1e3)", [1, 0, np.inf]),
        ("max(log(age), 0)", [0, np.nan, math.log(3)]),
        ("min(1, sqrt(age))", [0, np.nan, 1]),
    ],
)
def test_undefined_and_infinite_scores(formula, expected):
    numerical = np.array([[0, 0, 0], [-2, 0, 0], [3, 0, 0]], np.float32)
    score, logits = score_of(formula), np.zeros((3, 3), np.float32)
    found = predicted(TASKS, score, logits, score.numbers(numerical))["score"][:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    in_graph = predicted_in_graph(TASKS, score, tf.constant(logits), tf.constant(numerical))["score"][:, 0]
    np.testing.assert_allclose(in_graph, expected, rtol=1e-6)


# Metrics.


def rows(count: int = 240) -> dict[str, np.ndarray]:
    """Rows with groups, some of weight 0 and some whose purchase is unknown, and many equal scores."""
    random = np.random.default_rng(5)
    click = random.random(count) < 0.5
    buy = (click & (random.random(count) < 0.5)).astype(np.float32)
    buy[random.random(count) < 0.1] = np.nan
    return {
        "logits": random.integers(-2, 3, (count, 3)).astype(np.float32),
        "labels": np.stack([click, random.normal(size=count), buy], axis=1).astype(np.float32),
        "weights": random.choice([0, 1, 2.5], count).astype(np.float32),
        "group": random.integers(0, 25, count),
        "numerical": random.integers(1, 4, (count, 3)).astype(np.float32),
    }


def evaluated(columns: dict[str, np.ndarray], workers: int = 1, tasks=TASKS, **options) -> tuple[dict, list[str]]:
    count = len(columns["weights"])

    def work(comm):
        evaluation = Evaluation(tasks, with_group=True, ranking_metrics=["ndcg@3", "map@3"], **options)
        first, last = (worker * count // workers for worker in (comm.rank, comm.rank + 1))
        for start in range(first, last, 50):
            evaluation.update(**{name: column[start : min(start + 50, last)] for name, column in columns.items()})
        return evaluation.result(comm), evaluation.undefined, evaluation.keys

    results = LocalWorkers(workers).run(work)
    assert all(str(result) == str(results[0]) for result in results)
    values, undefined, keys = results[0]
    assert tuple(values) == keys
    return values, undefined


def by_groups(scores: np.ndarray, labels: np.ndarray, columns: dict[str, np.ndarray]) -> dict[str, float]:
    """GAUC, NDCG@3 and MAP@3 over the groups by their definitions; for scores without ties."""
    counts = (columns["weights"] > 0) & ~np.isnan(labels)
    areas, weights, gains, precisions = [], [], [], []
    for group in np.unique(columns["group"][counts]):
        here = counts & (columns["group"] == group)
        own, positive, weight = scores[here], labels[here], columns["weights"][here].astype(float)
        if 0 < positive.sum() < len(positive):
            areas.append(auc_over_all_pairs(own, positive, weight) * weight.sum())
            weights.append(weight.sum())
        if positive.any():
            ranked = positive[np.argsort(-own, kind="stable")].astype(int).tolist()
            gains.append(measure("ndcg", 3, ranked))
            precisions.append(measure("map", 3, ranked))
    return {"gauc": math.fsum(areas) / math.fsum(weights), "ndcg@3": mean(gains), "map@3": mean(precisions)}


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("label", [None, "click", "buy"])
def test_metrics_of_the_score_are_those_of_its_ranking(label, workers):
    columns = rows()
    columns["numerical"] += 1e-3 * np.arange(240, dtype=np.float32)[::-1, np.newaxis] % 0.7  # no ties
    values, undefined = evaluated(columns, workers, score=score_of(FORMULA), score_label=label)
    logits, price = columns["logits"], columns["numerical"][:, 1]
    scores = sigmoid(logits[:, 0]) * sigmoid(logits[:, 2]) ** 0.5 * price
    click, _, buy = columns["labels"].T
    # On all rows, what is not clicked is not bought, whether or not that is known.
    labels = np.where(click == 0, 0, buy) if label == "buy" else click
    expected = by_groups(scores, labels, columns)
    assert {name: values[f"{name}/score"] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert not undefined
    others = {key for key in values if key.endswith("/score")} - {f"{name}/score" for name in expected}
    assert others == {"streaming_map_val/score"}
    without, _ = evaluated(columns, workers)
    assert {key: value for key, value in values.items() if not key.endswith("/score")} == without
    assert metric_of("gauc/score").name == "gauc"


def test_a_score_of_one_prediction_ranks_like_its_task():
    columns = rows()
    values, _ = evaluated(columns, score=score_of("click"))
    for name in ("gauc", "ndcg@3", "streaming_map_val"):
        assert values[f"{name}/score"] == pytest.approx(values[f"{name}/click"], abs=1e-12)
    one = Evaluation(TASKS[:1], with_group=True, score=score_of("click"))
    assert one.keys[-2:] == ("streaming_map_val/score", "gauc/score") and "gauc" in one.keys
    assert Evaluation(TASKS, with_group=False, score=score_of("click")).keys == Evaluation(TASKS, with_group=False).keys


def test_logit_maps_change_the_score_of_rows_that_are_already_there():
    columns, comm_less = rows(), {"score": score_of("click - 0.9 * buy")}
    maps = {"click": LogitMap(1.5, Platt(0.25, 0.0)), "buy": LogitMap(-1.0)}
    calibrated = with_logit_maps(TASKS, maps)
    expected, _ = evaluated(columns, tasks=calibrated, **comm_less)

    def work(comm):
        evaluation = Evaluation(TASKS, with_group=True, ranking_metrics=["ndcg@3", "map@3"], **comm_less)
        evaluation.update(**columns)
        before = evaluation.result(comm)
        evaluation.tasks = calibrated
        return before, evaluation.result(comm)

    ((before, after),) = LocalWorkers(1).run(work)
    assert after["gauc/score"] == expected["gauc/score"] != before["gauc/score"]


def test_without_a_score_of_every_row_there_is_no_metric():
    columns = rows()
    columns["numerical"][3:5, 0], columns["weights"][3:5] = -1, 1
    values, undefined = evaluated(columns, 2, score=score_of("click * log(age)"))
    assert all(math.isnan(value) == key.endswith("/score") for key, value in values.items())
    rows_that_count = int((columns["weights"] > 0).sum())
    assert undefined == [
        f"score: 2 of {rows_that_count} evaluated rows have no score (NaN, as of the logarithm or the square root of a "
        "negative number, or of 0 / 0), so that streaming_map_val, gauc, ndcg@3, map@3 cannot be computed"
    ]
    columns["numerical"][3:5, 0] = 0  # log(0): the last ranks
    values, undefined = evaluated(columns, 2, score=score_of("click * log(age)"))
    assert not undefined and values["gauc/score"] > 0
    columns["labels"][:, 0] = 0
    _, undefined = evaluated(columns, score=score_of("click"))
    assert "label 'click': it is 0 in all" in undefined[-1] and "gauc of the score" in undefined[-1]


def test_slices_have_the_metrics_of_the_score():
    columns = rows() | {"slices": [np.arange(240) % 2]}

    def work(comm):
        evaluation = Evaluation(TASKS, with_group=True, slices=["side"], score=score_of(FORMULA))
        evaluation.update(**columns)
        evaluation.result(comm)
        return {found.value: found for found in evaluation.slices if found.task == "score"}

    (slices,) = LocalWorkers(1).run(work)
    part = {name: column[::2] for name, column in rows().items()}
    values, _ = evaluated(part, score=score_of(FORMULA))
    assert slices["0"].metrics["gauc"] == pytest.approx(values["gauc/score"], abs=1e-12)
    assert slices["0"].standard_errors["gauc"] > 0 and set(slices) == {"0", "1"}


# Predictions files.


@pytest.mark.parametrize("workers", [1, 2])
def test_predictions_have_a_column_of_the_score(workers, tmp_path):
    columns = rows(90)
    columns["numerical"][7, 1] = -1

    def work(comm):
        writer = PredictionWriter(tmp_path / "out.parquet", TASKS, score=score_of("click * price ** 0.5"), labelled=[])
        first, last = (worker * 90 // workers for worker in (comm.rank, comm.rank + 1))
        here = slice(first, last)
        writer.add(np.arange(first, last), *(columns[name][here] for name in ("labels", "logits", "numerical")))
        writer.write(comm)
        return writer.undefined_scores

    assert LocalWorkers(workers).run(work)[0] == 1
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["row", *(f"prediction_{label}" for label in LABELS), "score"]
    with np.errstate(invalid="ignore"):
        expected = table["prediction_click"].to_numpy() * np.sqrt(columns["numerical"][:, 1])
    assert str(table["score"].type) == "float" and np.isnan(expected).sum() == 1
    np.testing.assert_allclose(table["score"].to_numpy(), expected, rtol=1e-6)


def test_no_kept_column_is_called_score():
    check_column_names(["score"], ["click"])
    with pytest.raises(ValueError, match="two columns score: the file has row, label_click, prediction_click, score"):
        check_column_names(["score"], ["click"], ["score"])


# Exports.


def check_of(found: np.ndarray, score: np.ndarray, numbers: np.ndarray) -> Check:
    outputs = {"click": found[:, :1], "spend": found[:, 1:2], "buy": found[:, 2:]}
    answers = outputs | {"score": score[:, np.newaxis]}
    expected = {name: values + np.float32(1e-6) for name, values in outputs.items()}
    return Check(
        "file",
        lambda rows: {name: values[: len(rows["age"])] for name, values in answers.items()},
        {"age": numbers},
        expected,
        "rows",
        score_of("1 / (click - buy) + log(age)"),
        numbers,
    )


def test_an_export_is_compared_with_the_formula_of_its_own_predictions():
    random = np.random.default_rng(0)
    found = random.random((50, 3), np.float32)
    found[:, 2] = found[:, 0] + np.float32(1e-5)
    numbers = random.normal(size=(50, 1)).astype(np.float32)
    with np.errstate(all="ignore"):
        score = 1 / (found[:, 0] - found[:, 2]) + np.log(numbers[:, 0])
    assert np.isnan(score).any() and not np.isnan(score).all()
    assert 0 < largest_difference(check_of(found, score, numbers)) < 1e-5
    wrong = np.where(np.isnan(score), np.float32(0), score)
    with pytest.raises(ExportDiffers):
        largest_difference(check_of(found, wrong, numbers))
    with pytest.raises(ExportDiffers):
        largest_difference(check_of(found, score * np.float32(1.001), numbers))


EXPORTED = "click * abs(spend) ** 0.5 + log(price) / 10"


def by_hand(outputs: dict[str, np.ndarray], price: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return outputs["click"] * np.sqrt(np.abs(outputs["spend"])) + np.log(price) / 10


@pytest.mark.parametrize("format", ["savedmodel", "triton"])
def test_exports_have_the_score(format, tmp_path, capfd):
    if format == "triton":
        pytest.importorskip("tf2onnx", reason="requirements/export.txt is not installed")
    write_run(tmp_path / "run", encoders=make_encoders(), score=EXPORTED, model="wide_deep")
    code = export.main(["--model_dir", str(tmp_path / "run"), "--output", str(tmp_path / "out"), "--format", format])
    printed = capfd.readouterr()
    assert code == 0, printed.err
    inputs = draw_inputs(64)
    if format == "savedmodel":
        from trainer.export.saved_model_folder import load_signatures

        assert "serving_raw: largest difference" in printed.out
        signatures = load_signatures(tmp_path / "out")
        found = signatures["serving_default"](inputs)
        assert set(signatures) == {"serving_default", "serving_raw"}
    else:
        from trainer.export.onnx_file import load_onnx

        assert "recommender_raw/1/model.onnx: largest difference" in printed.out
        found = load_onnx(tmp_path / "out" / "recommender" / "1" / "model.onnx")(inputs)
        for name in ("recommender", "recommender_python", "recommender_raw"):
            config = (tmp_path / "out" / name / "config.pbtxt").read_text()
            assert '{ name: "score", data_type: TYPE_FP32, dims: [ 1 ] }' in config
    assert set(found) == {"click", "spend", "topic", "score"} and found["score"].shape == (64, 1)
    assert 0 < np.isnan(found["score"]).sum() < 64
    np.testing.assert_allclose(found["score"], by_hand(found, inputs["price"]), rtol=1e-5, atol=1e-6)


def test_a_raw_column_called_score_gets_another_tensor(tmp_path):
    from dataclasses import replace

    from trainer.export.run import with_tensor_names

    encoders = make_encoders()
    encoders["age"] = replace(encoders["age"], column="score")
    saved = write_run(tmp_path / "run", encoders=encoders, score="click * age", model="wide_deep")
    renamed, names = with_tensor_names(saved)
    assert names == {"score": "score_2"} and renamed.encoders["age"].column == "score_2"
    assert json.loads(json.dumps(saved.score.tasks)) == {"click": 0} and saved.score.numerical == {"age": 0}
