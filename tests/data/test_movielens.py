import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from data.encoding.encoder_files import load_encoders
from data.encoding.encoders import encode_columns
from data.movielens.prepare import main, prepare
from data.spec.embedding_sizes import embedding_dims
from data.spec.feature_spec import FeatureSpec
from tests.data.movielens_sample import Expected, make_sample, raw_columns, split, write_1m, write_100k
from tests.helpers import ROOT, environment, real_data

pytestmark = pytest.mark.filterwarnings("ignore:Initializing an NVTabular Dataset in CPU mode")

SAMPLE = make_sample()
SEED, OOV_BUCKETS = 7, 3
NUMBERS = ("movie_year", "movie_count", "user_count", "movie_mean", "user_mean")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """The small sample, prepared."""
    folder = tmp_path_factory.mktemp("movielens")
    prepare(write_1m(folder / "raw", SAMPLE), folder / "out", seed=SEED, oov_buckets=OOV_BUCKETS)
    return folder / "out"


def rows_of(folder, mapping):
    spec = FeatureSpec.read(folder / "feature_spec.yaml")
    return pd.concat([pd.read_parquet(path) for path in spec.files(mapping)], ignore_index=True)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("mapping", ["train", "test"])
def test_every_feature_is_what_its_definition_says(dataset, mapping):
    ratings = split(SAMPLE, seed=SEED)[mapping]
    expected = Expected(SAMPLE, seed=SEED, oov_buckets=OOV_BUCKETS).rows(mapping, ratings)
    rows = rows_of(dataset, mapping)
    for name, values in expected.items():
        if name == "user_id" and mapping == "train":
            assert name not in rows
        elif name in NUMBERS:
            np.testing.assert_allclose(rows[name], values, rtol=1e-6, atol=1e-6, err_msg=name)
        else:
            assert [np.asarray(value).tolist() for value in rows[name]] == values, name


def test_the_small_sample_has_every_hard_case(dataset):
    test = rows_of(dataset, "test")
    train_ids = [1, *range(2 + OOV_BUCKETS, 100)]
    assert (~test["movie"].isin(train_ids)).any(), "a test movie unseen in training"
    for name in ("gender", "occupation", "zip_prefix"):
        assert (test[name] == 1).any(), f"a null {name}"
    assert (test["genres"].map(len) == 0).any()
    assert any(year is None for year in raw_columns(SAMPLE, split(SAMPLE, seed=SEED)["test"])["movie_year"])


@pytest.mark.parametrize("mapping", ["train", "test"])
def test_stored_encoders_match_nvtabular(dataset, mapping):
    encoders = load_encoders(dataset / "workflow")
    encoded = encode_columns(encoders, raw_columns(SAMPLE, split(SAMPLE, seed=SEED)[mapping]))
    rows = rows_of(dataset, mapping)
    for name, values in encoded.items():
        if name.endswith("_mean") and mapping == "train":
            continue  # out of fold there, by intention
        assert [np.asarray(value).tolist() for value in rows[name]] == [np.asarray(value).tolist() for value in values]


def test_specification_matches_the_files(dataset):
    spec = FeatureSpec.read(dataset / "feature_spec.yaml")
    assert [feature.name for feature in spec.onehot] == ["user", "movie", "gender", "age", "occupation", "zip_prefix"]
    assert [feature.name for feature in spec.numerical] == list(NUMBERS)
    assert [feature.name for feature in spec.labels] == ["liked"]
    assert spec.map_feature.name == "user_id"
    encoders = load_encoders(dataset / "workflow")
    for feature in spec.onehot + spec.multihot:
        assert feature.cardinality == encoders[feature.name].cardinality
    assert spec.features["genres"].max_hotness == max(len(genres) for _, _, genres in SAMPLE.movies.values())
    schema = pq.read_schema(spec.files("test")[0])
    for name in schema.names:
        item = schema.field(name).type.value_type if name == "genres" else schema.field(name).type
        assert str(item).replace("float", "float32") == spec.features[name].dtype
    assert set(embedding_dims(spec)) == {feature.name for feature in spec.onehot + spec.multihot}
    assert embedding_dims(spec)["user"] == 32


def test_result_ignores_order_and_format_of_raw_files(dataset, tmp_path):
    turned = type(SAMPLE)(SAMPLE.users, SAMPLE.movies, SAMPLE.ratings[::-1])
    write_1m(tmp_path / "raw", turned, compress=True, as_csv=True)
    prepare(tmp_path / "raw", tmp_path / "out", seed=SEED, oov_buckets=OOV_BUCKETS)
    assert contents(tmp_path / "out") == contents(dataset)


def test_the_100k_form_gives_the_same_dataset(dataset, tmp_path):
    prepare(write_100k(tmp_path / "raw", SAMPLE), tmp_path / "out", seed=SEED, oov_buckets=OOV_BUCKETS)
    assert contents(tmp_path / "out") == contents(dataset)


def test_reproducible_without_tensorflow(dataset, tmp_path):
    raw = write_1m(tmp_path / "raw", SAMPLE)
    program = "import sys; from data.movielens.prepare import main; code = main(); print('tensorflow' in sys.modules); "
    program += "import importlib.util; print(importlib.util.find_spec('tensorflow') is not None); sys.exit(code)"
    flags = ["--raw", raw, "--output", tmp_path / "out", "--seed", str(SEED), "--oov_buckets", str(OOV_BUCKETS)]
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, flags)],
        cwd=ROOT, env=environment(PYTHONHASHSEED="99"), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "True"]
    assert all(line.startswith("movielens:") for line in done.stderr.splitlines()), done.stderr
    assert contents(tmp_path / "out") == contents(dataset)


def test_another_seed_gives_another_split(dataset, tmp_path):
    prepare(write_1m(tmp_path / "raw", SAMPLE), tmp_path / "out", seed=SEED + 1)
    pairs = [split(SAMPLE, seed=seed)["test"] for seed in (SEED, SEED + 1)]
    assert pairs[0] != pairs[1]
    assert rows_of(tmp_path / "out", "test")["user_id"].tolist() == [user for user, _, _ in pairs[1]]


def test_validation_fraction_and_second_label(tmp_path):
    raw, out = write_1m(tmp_path / "raw", SAMPLE), tmp_path / "out"
    flags = ["--validation_fraction", "0.25", "--labels", "rating", "liked", "--seed", str(SEED)]
    assert main(["--raw", str(raw), "--output", str(out), *flags]) == 0
    parts = split(SAMPLE, seed=SEED, valid=0.25)
    for mapping, ratings in parts.items():
        assert rows_of(out, mapping)["rating"].tolist() == [rating for _, _, rating in ratings]
    assert rows_of(out, "valid")["user_id"].tolist() == [user for user, _, _ in parts["valid"]]
    spec = FeatureSpec.read(out / "feature_spec.yaml")
    assert [(label.name, label.task) for label in spec.labels] == [("rating", "regression"), ("liked", "binary")]


def change_line(path, number, line):
    lines = path.read_text("latin-1").splitlines()
    lines[number - 1] = line
    path.write_text("\n".join(lines) + "\n", "latin-1")


FIRST = SAMPLE.ratings[0]
MISTAKES = {
    "field missing": ("ratings.dat", 3, "1::2::3", r"ratings\.dat, line 3: 3 fields, expected 4 \(user_id::movie_id"),
    "text": ("ratings.dat", 5, "1::x::3::9", r"ratings\.dat, line 5: movie_id is 'x', expected a whole number"),
    "no rating": ("ratings.dat", 5, f"{FIRST[0]}::{FIRST[1]}::::9", r"line 5: rating is '', expected a whole number"),
    "six stars": ("ratings.dat", 2, f"{FIRST[0]}::{FIRST[1]}::6::9", r"line 2: rating is '6', expected 1 to 5"),
    "blank line": ("ratings.dat", 4, "", r"ratings\.dat, line 4: "),
    "stranger": ("ratings.dat", 9, "9999::1::3::9", r"line 9: user_id is '9999', expected one that users\.dat lists"),
    "no movie": ("ratings.dat", 9, f"{FIRST[0]}::3999::3::9", r"line 9: movie_id is '3999', .* movies\.dat lists"),
    "twice": ("ratings.dat", 9, f"{FIRST[0]}::{FIRST[1]}::1::9", r"line 9: .* again, after line 1"),
    "same user": ("users.dat", 40, f"{list(SAMPLE.users)[0]}::M::1::2::3", r"users\.dat, line 40: .* no line above"),
    "age": ("users.dat", 2, f"{list(SAMPLE.users)[1]}::M::old::2::3", r"users\.dat, line 2: age is 'old'"),
    "genres": ("movies.dat", 1, "1::Toy Story (1995)", r"movies\.dat, line 1: 2 fields, expected 3"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_line_is_named_and_nothing_is_left(tmp_path, capsys, mistake):
    file, number, line, message = MISTAKES[mistake]
    write_1m(tmp_path / "raw", SAMPLE)
    change_line(tmp_path / "raw" / file, number, line)
    assert main(["--raw", str(tmp_path / "raw"), "--output", str(tmp_path / "out")]) == 2
    stderr = capsys.readouterr().err
    assert re.search(message, stderr) and stderr.startswith("movielens: ") and stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("number", "line", "message"),
    [
        (4, "1,x,3", "line 4: movie_id is 'x'"),
        (4, "1,2", "line 4: 2 fields, expected 3"),
        (1, "userId,movieId,rating", "line 1: ['userId', 'movieId', 'rating'], expected a header that begins with"),
    ],
)
def test_csv_line_numbers_include_the_header(tmp_path, capsys, number, line, message):
    write_1m(tmp_path / "raw", SAMPLE, as_csv=True)
    change_line(tmp_path / "raw" / "ratings.csv", number, line)
    assert main(["--raw", str(tmp_path / "raw"), "--output", str(tmp_path / "out")]) == 2
    assert f"ratings.csv, {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("ratings.dat", r"no ratings file; looked for ratings\.dat, ratings\.csv, u\.data, each also with \.gz"),
        ("users.dat", r"no users file; looked for users\.dat"),
        ("movies.dat", r"no movies file; looked for movies\.dat"),
    ],
)
def test_a_missing_file_is_named_with_what_was_looked_for(tmp_path, capsys, missing, message):
    (write_1m(tmp_path / "raw", SAMPLE) / missing).unlink()
    assert main(["--raw", str(tmp_path / "raw"), "--output", str(tmp_path / "out")]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_unreadable_inputs_are_named(tmp_path, capsys):
    out = ["--output", str(tmp_path / "out")]
    assert main(["--raw", str(tmp_path / "nowhere"), *out]) == 2
    assert "nowhere: is not a folder" in capsys.readouterr().err
    path = write_1m(tmp_path / "raw", SAMPLE, compress=True) / "ratings.dat.gz"
    path.write_bytes(path.read_bytes()[:-20])
    assert main(["--raw", str(tmp_path / "raw"), *out]) == 2
    assert "ratings.dat.gz: is not a complete gzip file" in capsys.readouterr().err
    (tmp_path / "raw" / "ratings.dat").write_bytes(b"")
    assert main(["--raw", str(tmp_path / "raw"), *out]) == 2
    assert "ratings.dat: is empty" in capsys.readouterr().err


def test_an_existing_dataset_is_rejected_and_kept(dataset, tmp_path, capsys):
    before = contents(dataset)
    assert main(["--raw", str(write_1m(tmp_path / "raw", SAMPLE)), "--output", str(dataset)]) == 2
    assert "already contains a dataset" in capsys.readouterr().err
    assert contents(dataset) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--test_fraction", "1"], "--test_fraction 1.0: expected a number between 0 and 1"),
        (["--validation_fraction", "0.8"], "--validation_fraction 0.8: expected at least 0, and below 0.8"),
        (["--test_fraction", "0.001"], "test: no user has enough ratings"),
        (["--oov_buckets", "0"], "expected a whole number from 1"),
        (["--labels", "liked", "liked"], "each at most once"),
        (["--labels", "rating"], "the statistics are means of liked; add liked to the labels"),
    ],
)
def test_arguments_that_cannot_work_are_rejected(tmp_path, capsys, flags, message):
    raw = write_1m(tmp_path / "raw", SAMPLE)
    try:
        code = main(["--raw", str(raw), "--output", str(tmp_path / "out"), *flags])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_failure_after_the_first_rows_leaves_nothing(tmp_path, monkeypatch, capsys):
    from data.preprocess import engine

    def full_disk(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine, "save_encoders", full_disk)
    raw = write_1m(tmp_path / "raw", SAMPLE)
    assert main(["--raw", str(raw), "--output", str(tmp_path / "out")]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.real_data
def test_movielens_1m_has_the_published_counts(tmp_path):
    prepare(real_data("ml-1m"), tmp_path)
    train, test = rows_of(tmp_path, "train"), rows_of(tmp_path, "test")
    assert len(train) + len(test) == 801_576
    assert test["user_id"].nunique() == 4832 and not (test["user_id"] % 5 == 0).any()
    share = (train["liked"].sum() + test["liked"].sum()) / 801_576
    assert round(100 * share, 2) == 57.66
    per_user = test.groupby("user_id").size()
    assert 0.19 < len(test) / 801_576 < 0.21 and per_user.min() >= 4
    spec = FeatureSpec.read(tmp_path / "feature_spec.yaml")
    assert spec.features["genres"].max_hotness == 6
    # 0, null, unseen, and: 4,832 users; 2 genders; 7 ages; 21 occupations; 18 genres.
    sizes = {name: spec.features[name].cardinality - 3 for name in ("user", "gender", "age", "occupation", "genres")}
    assert sizes == {"user": 4832, "gender": 2, "age": 7, "occupation": 21, "genres": 18}
    for name in NUMBERS:
        assert train[name].mean() == pytest.approx(0, abs=1e-4) and train[name].std() == pytest.approx(1, abs=1e-4)


@pytest.mark.real_data
def test_movielens_100k_has_the_published_counts(tmp_path):
    prepare(real_data("ml-100k"), tmp_path)
    train, test = rows_of(tmp_path, "train"), rows_of(tmp_path, "test")
    assert len(train) + len(test) == 100_000
    assert round(100 * (train["liked"].sum() + test["liked"].sum()) / 100_000, 2) == 55.38
    spec = FeatureSpec.read(tmp_path / "feature_spec.yaml")
    assert spec.features["user"].cardinality == 3 + 943 and spec.features["occupation"].cardinality == 3 + 21
