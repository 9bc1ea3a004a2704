from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.checks.labels import inspect_labels
from data.checks.leaks import (
    LEAK_AUC,
    LEAK_CORRELATION,
    PRIOR_ROWS,
    Leak,
    Sums,
    auc,
    bins_of,
    code_means,
    encode,
    find_leaks,
    row_means,
)
from data.loading.batch import PAD, Batch
from data.loading.lists import empty_lists, from_padded
from data.spec.feature_spec import FeatureSpec
from tests.data.sample_data import random_rows, write_dataset

ROWS = 6000
LABELS: dict[str, dict[str, Any]] = {
    "click": {},
    "buy": {"given": "click"},
    "spend": {"task": "regression", "missing": "ignore"},
    "kind": {"task": "multiclass", "cardinality": 4},
}


def auc_by_pairs(scores: Sequence[float], positive: Sequence[bool]) -> float:
    pairs = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for high, is_positive in zip(scores, positive, strict=True)
        if is_positive
        for low, is_other in zip(scores, positive, strict=True)
        if not is_other
    ]
    return sum(pairs) / len(pairs)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([-3.5, 0, 0.25, 1, 2, 1e30]), st.booleans()), min_size=2, max_size=40))
def test_the_auc_is_the_share_of_ordered_pairs(rows):
    scores, positive = zip(*rows, strict=True)
    if len(set(positive)) == 2:
        assert auc(np.array(scores), np.array(positive)) == pytest.approx(auc_by_pairs(scores, positive))


@settings(deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 5), max_size=3), st.integers(0, 1)), min_size=2, max_size=30))
def test_means_of_ids_come_from_the_other_half(rows):
    lists, values = zip(*rows, strict=True)
    ids = np.array([[*ids, *[PAD] * 3][:3] for ids in lists])
    mean = np.mean(values[::2])

    def mean_of(key: int | str) -> float:
        hits = [
            value
            for ids, value in zip(lists[::2], values[::2], strict=True)
            for held in (ids or ["nothing"])
            if held == key
        ]
        return (sum(hits) + PRIOR_ROWS * mean) / (len(hits) + PRIOR_ROWS)

    expected = [np.mean([mean_of(key) for key in (ids or ["nothing"])]) for ids in lists[1::2]]
    codes, fitted = encode(ids), np.array(values[::2], np.float64)[np.newaxis]
    sums, counts = (Sums(part).by_code(codes[::2], int(codes.max()) + 1) for part in (fitted, np.ones(fitted.shape)))
    means = code_means(sums, counts, fitted.mean(axis=1, keepdims=True))
    np.testing.assert_allclose(row_means(means, codes[1::2])[0], expected)


def test_bins_are_about_equally_full():
    numbers = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    counts = np.bincount(bins_of(numbers)[:, 0])
    assert len(counts) == 100 and counts.min() >= 99 and counts.max() <= 101
    repeated = np.float32([0, 0, 0, 0, 0, 0, 1, 1, 2])
    assert len(set(bins_of(repeated)[:, 0].tolist())) == len(set(repeated.tolist()))


def labels(seed: int = 0) -> dict[str, np.ndarray]:
    """[ROWS] each: a click, a purchase in a quarter of the clicks, an amount that is known in most rows, a class."""
    rng = np.random.default_rng(seed)
    click = rng.random(ROWS) < 0.3
    return {
        "click": click,
        "buy": click & (rng.random(ROWS) < 0.25),
        "spend": np.where(rng.random(ROWS) < 0.1, np.nan, rng.normal(size=ROWS)),
        "kind": rng.choice(4, ROWS, p=[0.5, 0.2, 0.2, 0.1]),
    }


def leaks(
    columns: dict[str, np.ndarray],
    *,
    onehot: np.ndarray | None = None,
    multihot: np.ndarray | None = None,
    numerical: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> list[Leak]:
    """What is found in rows with these labels and one feature of each kind given."""
    inputs = {"onehot_categorical": onehot, "multihot_categorical": multihot, "numerical": numerical}
    used = {channel: values for channel, values in inputs.items() if values is not None} or {"numerical": None}
    features: dict[str, dict[str, Any]] = {name: LABELS[name] for name in columns}
    features |= {channel: {} if channel == "numerical" else {"cardinality": 10**6} for channel in used}
    if multihot is not None:
        features["multihot_categorical"]["max_hotness"] = multihot.shape[1]
    features["importance"] = {"role": "sample_weight"}
    chunk = {"type": "parquet", "features": list(features), "files": ["part.parquet"]}
    document = {
        "feature_spec": features,
        "source_spec": {"train": [chunk], "test": [chunk]},
        "channel_spec": {channel: [channel] for channel in used} | {"label": list(columns)},
    }
    rows = len(next(iter(columns.values())))
    batch = Batch(
        onehot=np.zeros((rows, 0), np.int32) if onehot is None else onehot[:, np.newaxis].astype(np.int32),
        id_lists=empty_lists(rows, 0)
        if multihot is None
        else from_padded(multihot.astype(np.int32), [multihot.shape[1]]),
        number_lists=empty_lists(rows, 0, np.float32),
        numerical=np.zeros((rows, 0), np.float32) if numerical is None else numerical[:, np.newaxis].astype(np.float32),
        vectors=np.zeros((rows, 0), np.float32),
        labels=np.stack(list(columns.values()), axis=1).astype(np.float32),
        weights=np.ones(rows, np.float32) if weights is None else weights.astype(np.float32),
        group=None,
        rows=np.arange(rows),
    )
    return list(find_leaks(FeatureSpec.from_dict(document, Path(".")), batch))


def told_by_definition(kind: str, values: np.ndarray, label: np.ndarray, known: np.ndarray, task: str) -> float | str:
    """The measure of a feature and a label, row by row and pair by pair; "equal" for a copy, 0 where nothing counts."""
    rows = np.flatnonzero(known)
    if len(set(label[rows].tolist())) < 2:
        return 0.0
    if kind != "multihot" and np.array_equal(values[rows], label[rows]):
        return "equal"
    top = 1 if task == "binary" else max(sorted(set(label[rows].tolist())), key=label[rows].tolist().count)
    wanted = label if task == "regression" else (label == top).astype(float)
    fitted, held_out = (rows[rows % 2 == half] for half in (0, 1))
    fewest = len(held_out) if task == "regression" else min(wanted[held_out].sum(), (1 - wanted[held_out]).sum())
    if fewest < 10 or not len(fitted):
        return 0.0
    codes = bins_of(values)[:, 0] if kind == "numerical" else values
    lists = [[code for code in np.atleast_1d(code) if code != PAD] or ["nothing"] for code in codes]

    def mean_of(code: int | str) -> float:
        hits = [wanted[row] for row in fitted for held in lists[row] if held == code]
        return (sum(hits) + PRIOR_ROWS * wanted[fitted].mean()) / (len(hits) + PRIOR_ROWS)

    means = {code: mean_of(code) for code in {code for row in held_out for code in lists[row]}}
    scores = [np.array([np.mean([means[code] for code in lists[row]]) for row in held_out])]
    if kind == "numerical":
        scores += [values[held_out], -values[held_out]]
    if task == "regression":
        with np.errstate(invalid="ignore"):
            return max(float(np.nan_to_num(np.corrcoef(score, wanted[held_out])[0, 1])) for score in scores)
    return max(auc_by_pairs(score.tolist(), (wanted[held_out] == 1).tolist()) for score in scores)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([60, 121]),
    st.sampled_from(["onehot", "multihot", "numerical"]),
    st.sampled_from(["click", "buy", "spend", "kind"]),
    st.sampled_from([0.0, 0.02, 0.3, 3.0]),
    st.booleans(),
)
@example(1, 121, "numerical", "click", 0.02, False)
@example(2, 121, "numerical", "spend", 0.02, False)
@example(3, 121, "numerical", "buy", 0.02, True)
@example(4, 121, "onehot", "click", 0.02, False)
@example(5, 121, "multihot", "kind", 0.02, False)
def test_all_labels_at_once_give_what_each_gives(seed, rows, kind, source, noise, is_sparse):
    rng = np.random.default_rng(seed)
    columns = {
        "click": (rng.random(rows) < 0.6).astype(float),
        "buy": (rng.random(rows) < 0.5).astype(float),
        "spend": np.where(rng.random(rows) < 0.2, np.nan, rng.normal(size=rows).astype(np.float32)),
        "kind": rng.choice(4, rows, p=[0.5, 0.2, 0.2, 0.1]).astype(float),
    }
    hint = np.nan_to_num(columns[source]) + noise * rng.normal(size=rows)
    hint = np.where(rng.random(rows) < 0.7, 0, hint) if is_sparse else hint
    values = {
        "numerical": hint.astype(np.float32),
        "onehot": (np.abs(hint) * 4).astype(int),
        "multihot": np.stack([(np.abs(hint) * 4).astype(int), np.where(rng.random(rows) < 0.5, 50, PAD)], axis=1),
    }[kind]
    known = {name: ~np.isnan(column) for name, column in columns.items()}
    known["buy"] &= columns["click"] == 1
    expected = {
        name: told_by_definition(kind, values, columns[name], known[name], LABELS[name].get("task", "binary"))
        for name in columns
    }
    least = {"spend": LEAK_CORRELATION}
    found = {leak.label: leak for leak in leaks(columns, **{kind: values})}
    for name, value in expected.items():
        if value == "equal":
            assert found[name].measure == "equal"
        elif value >= least.get(name, LEAK_AUC) + 1e-9:
            assert found[name].value == pytest.approx(value, abs=1e-9)
            assert found[name].rows == known[name].sum()
        elif value < least.get(name, LEAK_AUC) - 1e-9:
            assert name not in found


def summary(found: list[Leak]) -> list[tuple[str, str]]:
    return [(leak.label, leak.measure) for leak in found]


NOISE = np.random.default_rng(1).normal(size=ROWS)
CLICK = labels()["click"]
TELLING_CLICK = {
    "rising": {"numerical": CLICK + 0.05 * NOISE},
    "falling": {"numerical": -3 * CLICK + 0.05 * NOISE},
    "in the middle": {"numerical": np.where(CLICK, 0.1 * NOISE, np.sign(NOISE) * (2 + np.abs(NOISE)))},
    "at one value": {"numerical": np.where(CLICK, 0, np.where(NOISE == 0, 1, NOISE))},
    "an id": {"onehot": np.where(CLICK, 7, 3)},
    "some ids": {"onehot": (np.abs(NOISE) * 20).astype(int) * 2 + CLICK},
    "an id in a list": {"multihot": np.stack([np.abs(NOISE) * 5, np.where(CLICK, 90, 80)], axis=1).astype(int)},
    "an empty list": {"multihot": np.where(CLICK, (np.abs(NOISE) * 5).astype(int), PAD)[:, np.newaxis]},
}


@pytest.mark.parametrize("feature", TELLING_CLICK.values(), ids=TELLING_CLICK)
def test_a_feature_that_nearly_determines_a_label_is_named(feature):
    (leak,) = leaks({"click": CLICK}, **feature)
    assert (leak.feature.removesuffix("_categorical"), leak.label, leak.measure) == (*feature, "click", "AUC")
    assert 0.99 <= leak.value <= 1
    assert leak.rows == ROWS


HARMLESS = {
    "a strong signal": {"numerical": CLICK + 0.5 * NOISE},
    "ids that are each in one row": {"onehot": np.arange(ROWS)},
    "ids that are each in a positive and a negative row": {
        "onehot": np.argsort(np.argsort(CLICK, kind="stable")) % (ROWS // 3)
    },
    "random lists": {"multihot": np.random.default_rng(2).integers(PAD, 50, (ROWS, 4))},
    "a constant": {"numerical": np.zeros(ROWS)},
}


@pytest.mark.parametrize("feature", HARMLESS.values(), ids=HARMLESS)
def test_a_feature_that_does_not_is_let_be(feature):
    assert leaks(labels(), **feature) == []


def test_auc_of_the_held_out_half():
    values = CLICK + 0.25 * NOISE
    (leak,) = leaks({"click": CLICK}, numerical=values)
    scores = values[1::2].astype(np.float32)
    assert leak.value == pytest.approx(auc_by_pairs(scores.tolist(), CLICK[1::2].tolist()), abs=2e-3)
    assert leak.value >= auc_by_pairs(scores.tolist(), CLICK[1::2].tolist()) - 1e-12


@pytest.mark.parametrize("positives", [9, 10])
def test_too_few_positives_prove_nothing(positives):
    rare = np.zeros(ROWS, bool)
    rare[1 : 2 * positives : 2] = True
    assert len(leaks({"click": rare}, numerical=2.0 * rare)) == (positives >= 10)


def test_a_copy_is_called_equal_even_of_a_rare_label():
    rare = np.arange(ROWS) == 77
    assert summary(leaks({"click": rare}, numerical=rare)) == [("click", "equal")]
    assert summary(leaks({"click": CLICK}, onehot=CLICK)) == [("click", "equal")]
    assert leaks({"click": np.zeros(ROWS)}, numerical=np.zeros(ROWS)) == []


def test_a_label_is_looked_at_in_its_sample_space():
    columns = labels()
    among_clicks = np.where(columns["click"], columns["buy"], np.abs(NOISE) > 0.5)
    assert summary(leaks(columns, onehot=among_clicks + 5)) == [("buy", "AUC")]
    known = np.where(np.isnan(columns["spend"]), 9, columns["spend"])
    assert summary(leaks(columns, numerical=known)) == [("spend", "equal")]


@pytest.mark.parametrize("factor", [-2.0, 0.001])
def test_regression_by_correlation(factor):
    amount = np.random.default_rng(3).normal(size=ROWS)
    (leak,) = leaks({"spend": amount}, numerical=factor * (amount + 0.05 * NOISE) + 1)
    assert (leak.label, leak.measure) == ("spend", "correlation")
    assert leak.value == pytest.approx(np.corrcoef(amount, amount + 0.05 * NOISE)[0, 1], abs=1e-3)
    assert leaks({"spend": amount}, numerical=amount + 0.2 * NOISE) == []


@pytest.mark.parametrize("unit", [1, 4e37])
def test_regression_by_ids(unit):
    ids = np.random.default_rng(4).integers(0, 50, ROWS)
    amount = unit * (np.sqrt(ids * 7919 % 50) + 1e-3 * NOISE)
    assert summary(leaks({"spend": amount}, onehot=ids)) == [("spend", "correlation")]
    assert leaks({"spend": NOISE}, onehot=ids) == []


def test_multiclass_label_by_its_frequent_class():
    kind = labels()["kind"]
    assert summary(leaks({"kind": kind}, numerical=np.array([5, 1, 7, 3])[kind])) == [("kind", "AUC")]
    assert summary(leaks({"kind": kind}, onehot=(kind == 0) + 3)) == [("kind", "AUC")]
    assert leaks({"kind": kind}, onehot=(kind == 3) + 3) == []


def test_a_copy_of_the_sample_weight_is_named():
    weights = np.abs(NOISE) + 0.5
    assert summary(leaks({"click": CLICK}, numerical=weights, weights=weights)) == [("importance", "equal")]
    assert leaks({"click": CLICK}, numerical=np.ones(ROWS), weights=np.ones(ROWS)) == []
    assert leaks({"click": CLICK}, numerical=weights + 1, weights=weights) == []


def test_leak_warning(tmp_path):
    frame = random_rows(500)
    frame["price"], frame["age"] = frame["click"], 7 - 3 * frame["click"]
    spec, _ = write_dataset(tmp_path, [[200, 300]], frame=frame)
    report = inspect_labels(spec, "train")
    assert not report.problems
    assert len(report.warnings) == 2
    assert "price: equals click in all 500 sampled rows" in report.warnings[0]
    assert "age: alone predicts click with AUC 1.0000 in 500 sampled rows" in report.warnings[1]
    assert all("remove it from channel_spec" in warning for warning in report.warnings)
