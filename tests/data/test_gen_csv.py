import csv
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gen_csv
from data.files.csv import read_csv_blocks, write_csv_chunks
from data.files.random_rows import random_tables
from data.files.values import find_violations
from data.spec.columns import describe_column
from data.spec.feature_spec import FeatureSpec
from tests.data.csv_documents import FEATURES, chunk, document, write_csv_dataset
from tests.helpers import ROOT

NAMES = list(FEATURES)
ENCODED_SPECS = sorted(path for path in (ROOT / "feature_specs").glob("*.yaml") if not path.stem.endswith("_raw"))


def table(spec, mapping="train", rows=1000, **options):
    return pa.concat_tables(random_tables(spec, mapping, rows, **options)).combine_chunks()


def values(table, name):
    return table.column(name).to_numpy()


def run(spec_path, output, *flags):
    return gen_csv.main(["--feature_spec_in", str(spec_path), "--output", str(output), *map(str, flags)])


def auc(scores, labels):
    """How often a positive outscores a negative, counted pair by pair."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    return np.mean(positive[:, None] > negative[None, :])


@given(rows=st.integers(1, 60), block_rows=st.integers(1, 60), seed=st.integers(0, 2**31 - 1), signal=st.floats(0, 5))
@settings(max_examples=60, deadline=None)
def test_rows_keep_the_rules_of_the_specification(tmp_path_factory, rows, block_rows, seed, signal):
    spec = FeatureSpec.from_dict(document(), tmp_path_factory.getbasetemp())
    drawn = table(spec, rows=rows, block_rows=block_rows, seed=seed, signal=signal)
    assert drawn.num_rows == rows
    for name in NAMES:
        column = describe_column(spec, name)
        assert drawn.schema.field(name).type == column.type
        assert not list(find_violations(column, drawn.column(name).combine_chunks()))
    for row in drawn.to_pylist():
        assert row["clicked"] == 1 or row["bought"] == 0
        assert len(row["genres"]) <= 3
        assert row["weight"] > 0


def test_groups_have_a_positive(tmp_path):
    spec = FeatureSpec.from_dict(document(), tmp_path)
    for seed in range(300):
        rows = 2 + seed % 40
        drawn = table(spec, rows=rows, block_rows=20 + seed % 7, seed=seed)
        groups, labels = values(drawn, "session"), values(drawn, "clicked")
        runs = np.split(np.arange(rows), np.flatnonzero(np.diff(groups)) + 1)
        assert len({groups[run[0]] for run in runs}) == len(runs)
        assert all(2 <= len(run) <= 12 for run in runs), (seed, rows)
        assert all(labels[run].max() == 1 for run in runs)


def test_labels_follow_their_tasks(tmp_path):
    features = {
        "buy": {"given": "click"}, "click": {}, "stars": {"task": "multiclass", "cardinality": 5, "dtype": "int64"},
        "spend": {"task": "regression"}, "seen": {"missing": "ignore"}, "x": {}, "user": {"cardinality": 9},
        "session": {}, "minutes": {"task": "ziln"}, "visits": {"task": "poisson", "dtype": "int32"},
    }  # fmt: skip
    sources = {mapping: [chunk(list(features), [f"{mapping}.csv"])] for mapping in ("train", "test")}
    labels = ["buy", "click", "stars", "spend", "seen", "minutes", "visits"]
    channels = {"label": labels, "numerical": ["x"], "onehot_categorical": ["user"], "map": ["session"]}
    spec = FeatureSpec.from_dict({"feature_spec": features, "source_spec": sources, "channel_spec": channels}, tmp_path)
    drawn = table(spec, rows=4000)
    assert set(values(drawn, "click")) == {0, 1}
    assert set(values(drawn, "stars")) == {0, 1, 2, 3, 4}
    assert np.isfinite(values(drawn, "spend")).all()
    assert len(set(values(drawn, "spend"))) > 3900
    for name in ("minutes", "visits"):
        assert values(drawn, name).min() == 0 < values(drawn, name).mean()
    assert 0.08 < drawn.column("seen").null_count / 4000 < 0.12
    bought = values(drawn, "buy") == 1
    assert values(drawn, "click")[bought].all()
    groups = values(drawn, "session")
    assert set(groups[bought]) == set(groups)


def test_signal_determines_the_auc(tmp_path):
    binary = FeatureSpec.from_dict(document(), tmp_path)
    regression = FeatureSpec.from_dict(
        document() | {"feature_spec": FEATURES | {"clicked": {"task": "regression"}, "bought": {}}}, tmp_path
    )
    # The same label without threshold, and so much signal that the noise is nothing.
    scores = values(table(regression, rows=6000, signal=1e6), "clicked") / 1e6
    assert abs(scores.std() - 1) < 0.3
    aucs = {signal: auc(scores, values(table(binary, "train", 6000, signal=signal), "clicked")) for signal in (0, 1, 4)}
    assert abs(aucs[0] - 0.5) < 0.03
    assert 0.66 < aucs[1] < 0.80
    assert 0.88 < aucs[4] < 0.97


def linear_auc(design, labels):
    """The AUC in the second half of the rows of the linear model that fits the first half best."""
    half = len(labels) // 2
    ridge = 3 * np.eye(design.shape[1])
    known = np.concatenate([labels[:half] - labels[:half].mean(), np.zeros(len(ridge))])
    weights, *_ = np.linalg.lstsq(np.concatenate([design[:half], ridge]), known, rcond=None)
    return auc(design[half:] @ weights, labels[half:])


def test_effects_of_pairs_are_found_by_crosses_alone(tmp_path):
    made = document()
    made["feature_spec"] = FEATURES | {"clicked": {}, "bought": {}, "item": {"cardinality": 20}}
    made["source_spec"] = {name: [chunk([*NAMES, "item"], [f"{name}.csv"])] for name in ("train", "test")}
    made["channel_spec"] = made["channel_spec"] | {"onehot_categorical": ["user", "item"], "map": []}
    spec = FeatureSpec.from_dict(made, tmp_path)
    drawn = table(spec, rows=12_000, signal=3, signal_of="pairs")
    users, items, labels = (values(drawn, name).astype(int) for name in ("user", "item", "clicked"))
    alone = np.column_stack([users[:, np.newaxis] == np.arange(50), items[:, np.newaxis] == np.arange(20)])
    assert linear_auc(alone.astype(float), labels) < 0.6
    crossed = (users * 20 + items)[:, np.newaxis] == np.arange(50 * 20)
    assert linear_auc(crossed.astype(float), labels) > 0.8


def test_effects_of_pairs_need_two_features(tmp_path, capsys):
    path = write_csv_dataset(tmp_path / "in", {}, document())
    assert run(path, tmp_path / "out", "--signal_of", "pairs") == 2
    assert f"{path}: --signal_of pairs needs two one-hot features" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_rule_learned_in_one_mapping_holds_in_another(tmp_path):
    spec = FeatureSpec.from_dict(document(), tmp_path)
    rates = []
    for mapping in ("train", "test"):
        drawn = table(spec, mapping, rows=40_000, signal=5)
        users, labels = values(drawn, "user"), values(drawn, "clicked")
        rates.append([labels[users == user].mean() for user in range(5)])
    assert np.ptp(rates[0]) > 0.2
    assert np.corrcoef(rates)[0, 1] > 0.9


def test_same_seed_gives_the_same_rows(tmp_path):
    spec = FeatureSpec.from_dict(document(), tmp_path)
    assert table(spec, seed=3).equals(table(spec, seed=3))
    assert not table(spec, seed=3).equals(table(spec, seed=4))
    assert not table(spec, "train").equals(table(spec, "test"))


@pytest.mark.parametrize("path", ENCODED_SPECS, ids=lambda path: path.stem)
def test_every_ready_specification_gets_files_that_keep_it(path, tmp_path, capsys):
    assert run(path, tmp_path / "out", "--size", 300, "--signal", 1) == 0
    spec = FeatureSpec.read(tmp_path / "out" / "feature_spec.yaml")
    assert spec.to_dict() == FeatureSpec.read(path).to_dict()
    for mapping, chunks in spec.sources.items():
        for part in chunks:
            columns = [describe_column(spec, name) for name in part.features]
            blocks = [block for file in part.files for block in read_csv_blocks(spec.folder / file, columns)]
            assert sum(block.table.num_rows for block in blocks) == 300
            assert not any(block.problems for block in blocks), mapping


def test_rows_are_spread_over_files(tmp_path):
    halves = [NAMES[:4], NAMES[4:]]
    chunks = [chunk(halves[0], ["a/0.csv", "a/1.csv", "a/2.csv"]), chunk(halves[1], ["b.csv"])]
    spec = FeatureSpec.from_dict(document({"train": chunks, "test": chunks}), tmp_path)
    drawn = table(spec, rows=100)
    write_csv_chunks(spec.chunks("train"), tmp_path, [drawn.slice(0, 50), drawn.slice(50, 1), drawn.slice(51)], 100)
    groups = []
    for part in chunks:
        files = [list(csv.reader((tmp_path / file).read_text().splitlines())) for file in part["files"]]
        counts = [len(lines) for lines in files]
        assert sum(counts) == 100
        assert max(counts) - min(counts) <= 1
        groups.append([line for lines in files for line in lines])
    for left, right, row in zip(*groups, drawn.to_pylist(), strict=True):
        cells = dict(zip(NAMES, left + right, strict=True))
        assert json.loads(cells["genres"]) == row["genres"]
        assert [int(cells[name]) for name in ("user", "session")] == [row["user"], row["session"]]
        assert np.float32(cells["age"]) == np.float32(row["age"])
        assert cells["bought"] == ("" if row["bought"] is None else f"{row['bought']:g}")
        assert cells["note"] == row["note"]


def test_lists_have_every_length_up_to_max_hotness(tmp_path):
    drawn = table(FeatureSpec.from_dict(document(), tmp_path))
    assert {len(ids) for ids in drawn.column("genres").to_pylist()} == {0, 1, 2, 3}


def test_existing_files_are_not_overwritten(tmp_path, capsys):
    path = write_csv_dataset(tmp_path, {"test.csv": "precious"}, document())
    assert run(path, tmp_path) == 2
    assert f"gen_csv: {tmp_path / 'test.csv'}: already exists" in capsys.readouterr().err
    assert (tmp_path / "test.csv").read_text() == "precious"
    assert not (tmp_path / "train.csv").exists()


def test_existing_specification_must_be_equal(tmp_path, capsys):
    path = write_csv_dataset(tmp_path, {}, document())
    before = path.read_text()
    assert run(path, tmp_path) == 0
    assert path.read_text() == before
    other = write_csv_dataset(tmp_path / "other", {}, document() | {"metadata": {"made": "otherwise"}})
    assert run(path, other.parent) == 2
    assert "differs from" in capsys.readouterr().err
    assert sorted(file.name for file in other.parent.iterdir()) == ["feature_spec.yaml"]


def test_nothing_is_left_when_writing_stops_half_way(tmp_path, monkeypatch):
    path = write_csv_dataset(tmp_path / "in", {}, document())

    def two_blocks(*args, **options):
        yield next(random_tables(*args, **options))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gen_csv, "random_tables", two_blocks)
    assert run(path, tmp_path / "out") == 1
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("sources", "flags", "message"),
    [
        ({"train": [chunk(NAMES, ["a.csv"])], "test": [chunk(NAMES, ["a.csv"])]}, [], "a.csv is listed 2 times"),
        (
            {"train": [chunk(NAMES, ["a.csv", "b.csv", "c.csv"])], "test": [chunk(NAMES, ["t.csv"])]},
            ["--size", "2"],
            "3 files cannot share 2 rows",
        ),
        (
            {name: [chunk(NAMES, [f"{name}.parquet"]) | {"type": "parquet"}] for name in ("train", "test")},
            [],
            "mapping 'train' has chunks of type parquet, expected csv",
        ),
    ],
)
def test_a_specification_that_cannot_be_filled_is_rejected(tmp_path, capsys, sources, flags, message):
    path = write_csv_dataset(tmp_path / "in", {}, document(sources))
    assert run(path, tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("gen_csv: ")
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags", [["--size", "0"], ["--size", "1e3"], ["--seed", "-1"], ["--signal", "nan"], ["--signal", "-1"], ["--no"]]
)
def test_wrong_arguments_end_with_exit_code_2(flags, capsys):
    with pytest.raises(SystemExit) as error:
        gen_csv.main(flags)
    assert error.value.code == 2
    assert flags[0] in capsys.readouterr().err
