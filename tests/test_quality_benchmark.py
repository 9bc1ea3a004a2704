"""benchmarks/quality.py: its metrics, its tables, and what it hands to the public programs."""

import math
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.quality import DEFAULTS, LEAST_PROBABILITY, MODELS, WIDE_DEEPS, census_income, log_loss, roc_auc
from benchmarks.quality_peer_worker import counts_of, padded
from benchmarks.quality_tables import advantage, best_on_valid, comparison_table, results_table
from data.spec.yaml_reader import read_yaml
from tests.helpers import ROOT

ROWS = st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=30).filter(
    lambda rows: len({label for label, _ in rows}) == 2
)


@settings(max_examples=30)
@given(ROWS)
def test_auc_is_the_share_of_ordered_pairs(rows):
    positive = [score for label, score in rows if label]
    negative = [score for label, score in rows if not label]
    pairs = [Fraction((high > low) * 2 + (high == low), 2) for high in positive for low in negative]
    labels, scores = (np.array(column, np.float64) for column in zip(*rows, strict=True))
    assert roc_auc(labels, scores) == pytest.approx(float(sum(pairs) / len(pairs)), abs=1e-12)


def test_log_loss_is_limited_where_a_prediction_is_certain_and_wrong():
    labels, scores = np.array([1.0, 0.0, 0.0]), np.array([0.25, 0.5, 1.0])
    expected = -(math.log(0.25) + math.log(0.5) + math.log(LEAST_PROBABILITY)) / 3
    assert log_loss(labels, scores) == pytest.approx(expected, rel=1e-8)


def run(model, seed, valid, test):
    return {"dataset": "d", "model": model, "seed": seed} | {
        mapping: dict(zip(("auc", "log_loss"), figures, strict=True))
        for mapping, figures in (("valid", valid), ("test", test))
    }


# Theirs: `b` has the best AUC of valid, `a` the lowest log loss of valid, and `c` is best on test rows only.
RUNS = [
    run("ours", 0, (0.7, 0.6), (0.81, 0.45)),
    run("ours", 1, (0.7, 0.6), (0.83, 0.47)),
    run("a", 0, (0.80, 0.30), (0.79, 0.44)),
    run("a", 1, (0.82, 0.32), (0.81, 0.44)),
    run("b", 0, (0.90, 0.40), (0.80, 0.50)),
    run("b", 1, (0.80, 0.40), (0.82, 0.50)),
    run("c", 0, (0.50, 0.90), (0.99, 0.01)),
    run("c", 1, (0.50, 0.90), (0.99, 0.01)),
]


def test_valid_rows_choose_the_best_model():
    models = ["a", "b", "c"]
    assert best_on_valid(RUNS, "d", models, "auc") == "b"
    assert best_on_valid(RUNS, "d", models, "log_loss") == "a"
    assert best_on_valid(RUNS, "another", models, "auc") is None


def test_advantage_and_its_standard_error():
    # Deviations of 0.01 * sqrt(2) from two runs each: variances of the means of 1e-4 on both sides.
    better, error = advantage([0.81, 0.83], [0.80, 0.82], more_is_better=True)
    assert better == pytest.approx(0.01) and error == pytest.approx(math.sqrt(2e-4))
    better, error = advantage([0.45, 0.47], [0.44], more_is_better=False)
    assert better == pytest.approx(-0.02) and error is None


def test_tables_have_a_line_per_model_and_per_metric():
    lines = results_table(RUNS, ["d", "another"], ["ours", "a", "absent"]).splitlines()[2:]
    assert lines == [
        "| d | ours | 0.8200 ± 0.0141 | 0.4600 ± 0.0141 | 2 |",
        "| d | a | 0.8000 ± 0.0141 | 0.4400 ± 0.0000 | 2 |",
    ]
    lines = comparison_table(RUNS, ["d", "another"], "ours", ["a", "b", "c"]).splitlines()[2:]
    assert lines == [
        "| d | AUC | 0.8200 ± 0.0141 | b | 0.8100 ± 0.0141 | +0.0100 | +0.7 |",
        "| d | log loss | 0.4600 ± 0.0141 | a | 0.4400 ± 0.0000 | -0.0200 | -2.0 |",
    ]


def test_lists_of_ids_become_columns():
    ids = padded(pa.array([[2, 1], [], [3, 3, 1]], pa.list_(pa.int32())), 2)
    assert ids.tolist() == [[2, 1], [0, 0], [3, 3]], "lists are cut to their first ids"
    assert counts_of(ids, 4).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 2]]
    sliced = pa.array([[9], [2, 1], [3]], pa.list_(pa.int32())).slice(1)
    assert padded(sliced, 3).tolist() == [[2, 1, 0], [3, 0, 0]]


def test_defaults_are_compared_without_flags_with_four_settings():
    assert not MODELS[DEFAULTS].flags
    assert len({str(model.settings) for model in WIDE_DEEPS.values()}) == 4


def test_census_has_one_task_and_the_features_of_group_1(tmp_path):
    document, group = read_yaml(census_income(tmp_path)), read_yaml(ROOT / "feature_specs" / "census_group1_raw.yaml")
    assert document["channel_spec"] == group["channel_spec"] | {"label": ["income"]}
    columns = {entry.get("column", name) for name, entry in document["feature_spec"].items()}
    assert "marital_status" not in columns, "it is no feature of group 1"
