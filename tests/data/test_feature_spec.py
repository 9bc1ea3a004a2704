import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.spec.feature_spec import FeatureSpec, FeatureSpecError
from data.spec.features import CHANNELS, LABEL, MAP, MULTIHOT, NUMERICAL, ONEHOT, Chunk, Feature
from tests.data.sample_specs import changed, check_only_problem, problems_of

DOCUMENT = """
feature_spec:
  clicked: {dtype: torch.float32, positive_weight: 3}
  bought: {given: clicked, missing: ignore, loss_weight: 0.5}
  user_gender:
    dtype: torch.int8
    cardinality: 3  # M, F, other
  user_id: {dtype: torch.long, cardinality: 2655, embedding_dim: 16}
  genres: {cardinality: 18, max_hotness: 6}
  user_age: {dtype: torch.int8}
  session: {dtype: int64}
  row_weight: {role: sample_weight}
  item_name:
source_spec:
  train:
    - type: csv
      features: [user_gender, user_age, row_weight]
      files: [train_0_0.csv, parts/train_0_1.csv]
    - {type: csv, features: [user_id, genres, bought, clicked], files: [train_1.csv]}
  test:
    - type: csv
      features: [user_id, genres, clicked, bought, user_gender, user_age, session, row_weight, item_name]
      files: [test.csv]
channel_spec:
  numerical: [user_age]
  onehot_categorical: [user_id, user_gender]
  multihot_categorical: [genres]
  label: [clicked, bought]
  map: [session]
metadata:
  source: by hand
"""


def write(folder: Path, text: str = DOCUMENT) -> Path:
    path = folder / "feature_spec.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def spec(tmp_path: Path) -> FeatureSpec:
    return FeatureSpec.read(write(tmp_path))


def names(features: tuple[Feature, ...]) -> list[str]:
    return [feature.name for feature in features]


def test_features_have_the_stated_values(spec: FeatureSpec) -> None:
    assert spec.features["user_gender"] == Feature(name="user_gender", dtype="int8", cardinality=3)
    assert spec.features["user_id"] == Feature(name="user_id", dtype="int64", cardinality=2655, embedding_dim=16)
    assert spec.features["genres"] == Feature(name="genres", cardinality=18, max_hotness=6)
    assert spec.features["clicked"] == Feature(name="clicked", dtype="float32", positive_weight=3.0)
    assert spec.features["bought"] == Feature(name="bought", given="clicked", missing="ignore", loss_weight=0.5)
    assert spec.features["item_name"] == Feature(name="item_name")


def test_features_keep_the_order_of_the_file(spec: FeatureSpec) -> None:
    order = "clicked bought user_gender user_id genres user_age session row_weight item_name"
    assert list(spec.features) == order.split()


def test_channels_keep_their_order(spec: FeatureSpec) -> None:
    assert names(spec.onehot) == ["user_id", "user_gender"]
    assert names(spec.multihot) == ["genres"]
    assert names(spec.numerical) == ["user_age"]
    assert names(spec.labels) == ["clicked", "bought"]
    assert names(spec.inputs) == ["user_id", "user_gender", "genres", "user_age"]
    assert names(spec.channel("label")) == ["clicked", "bought"]


def test_map_feature_and_sample_weight(spec: FeatureSpec) -> None:
    assert spec.map_feature == Feature(name="session", dtype="int64")
    assert spec.sample_weight == Feature(name="row_weight", role="sample_weight")


def test_absent_channels_are_empty(tmp_path: Path) -> None:
    text = """
feature_spec: {age: {}, clicked: {}}
source_spec:
  train: [{type: csv, features: [age, clicked], files: [a.csv]}]
  test: [{type: csv, features: [age, clicked], files: [b.csv]}]
channel_spec: {numerical: [age], label: [clicked], map: , multihot_categorical: []}
"""
    spec = FeatureSpec.read(write(tmp_path, text))
    assert tuple(spec.channels) == CHANNELS
    assert (spec.onehot, spec.multihot, spec.map_feature, spec.sample_weight) == ((), (), None, None)
    assert spec.metadata == {}


def test_files_are_absolute_and_in_order(spec: FeatureSpec, tmp_path: Path) -> None:
    expected = ("train_0_0.csv", "parts/train_0_1.csv", "train_1.csv")
    assert spec.files("train") == tuple(tmp_path / name for name in expected)
    assert spec.chunks("test")[0].files == ("test.csv",)


def test_specification_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert FeatureSpec.read(Path("feature_spec.yaml")).files("test") == (tmp_path / "test.csv",)


def test_unknown_mapping(spec: FeatureSpec) -> None:
    with pytest.raises(DataError, match=r"no mapping 'trian' in source_spec; expected one of train, test;.*'train'\?"):
        spec.chunks("trian")


def test_other_sources_keep_everything_else(spec: FeatureSpec, tmp_path: Path) -> None:
    chunk = Chunk("parquet", tuple(spec.features), ("part_0.parquet",))
    moved = spec.with_sources({"train": [chunk], "test": [chunk]}, tmp_path / "parquet")
    assert moved.folder == tmp_path / "parquet"
    assert moved.sources == {"train": (chunk,), "test": (chunk,)}
    assert (moved.features, moved.channels, moved.metadata) == (spec.features, spec.channels, spec.metadata)


def test_other_sources_are_checked(spec: FeatureSpec, tmp_path: Path) -> None:
    chunk = Chunk("parquet", ("user_id",), ("../part_0.parquet",))
    with pytest.raises(FeatureSpecError, match=r"source_spec\.train\[0\]\.files\[0\]"):
        spec.with_sources({"train": [chunk], "test": [chunk]}, tmp_path)


def test_round_trip(spec: FeatureSpec, tmp_path: Path) -> None:
    path = tmp_path / "again.yaml"
    spec.write(path)
    assert FeatureSpec.read(path) == spec


def test_written_file_is_plain_yaml_in_order(spec: FeatureSpec, tmp_path: Path) -> None:
    path = tmp_path / "again.yaml"
    spec.write(path)
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert list(document) == ["feature_spec", "source_spec", "channel_spec", "metadata"]
    assert list(document["feature_spec"]) == list(spec.features)
    assert document["feature_spec"]["user_id"] == {"dtype": "int64", "cardinality": 2655, "embedding_dim": 16}
    assert document["feature_spec"]["item_name"] == {}


def test_writing_leaves_no_other_file_behind(spec: FeatureSpec, tmp_path: Path) -> None:
    spec.write(tmp_path / "again.yaml")
    assert sorted(os.listdir(tmp_path)) == ["again.yaml", "feature_spec.yaml"]


def test_failed_write_keeps_the_old_file(spec: FeatureSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is gone")

    before = (tmp_path / "feature_spec.yaml").read_bytes()
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DataError, match=r"feature_spec\.yaml: cannot be written: the disk is gone"):
        spec.write(tmp_path / "feature_spec.yaml")
    assert (tmp_path / "feature_spec.yaml").read_bytes() == before
    assert os.listdir(tmp_path) == ["feature_spec.yaml"]


@pytest.mark.parametrize("path", ["nowhere/feature_spec.yaml", "x" * 300, "."])
def test_path_that_cannot_be_written(spec: FeatureSpec, tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError, match="cannot be written"):
        spec.write(tmp_path / path)
    assert os.listdir(tmp_path) == ["feature_spec.yaml"]


@pytest.mark.parametrize("text", ["a\x85b", "a\rb", "a\u2028b", "\ufeffa", "a\tb\n", "größe", "\0", "1e3", "no"])
def test_texts_in_metadata_are_preserved(spec: FeatureSpec, tmp_path: Path, text: str) -> None:
    spec.metadata["text"] = text
    spec.metadata[text] = [text]
    spec.write(tmp_path / "again.yaml")
    assert FeatureSpec.read(tmp_path / "again.yaml").metadata == spec.metadata


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", "x" * 2**20], ids=["object", "set", "bytes", "1 MiB"])
def test_metadata_that_yaml_cannot_represent(spec: FeatureSpec, tmp_path: Path, value: object) -> None:
    spec.metadata["value"] = value
    path = tmp_path / "again.yaml"
    with pytest.raises(DataError, match=r"again\.yaml: "):
        spec.write(path)
    assert os.listdir(tmp_path) == ["feature_spec.yaml"]


def test_invalid_specification_is_not_written(spec: FeatureSpec, tmp_path: Path) -> None:
    wrong = FeatureSpec(tmp_path, {}, spec.sources, spec.channels, {})
    with pytest.raises(FeatureSpecError):
        wrong.write(tmp_path / "wrong.yaml")
    assert not (tmp_path / "wrong.yaml").exists()


def test_shared_values_are_written_without_aliases(spec: FeatureSpec, tmp_path: Path) -> None:
    shared = ["a", "b"]
    spec.metadata.update(first=shared, second=shared)
    spec.write(tmp_path / "again.yaml")
    assert FeatureSpec.read(tmp_path / "again.yaml").metadata["second"] == ["a", "b"]


def test_specification_without_some_channels(tmp_path: Path) -> None:
    features = {"age": Feature(name="age"), "clicked": Feature(name="clicked")}
    chunks = (Chunk("csv", ("age", "clicked"), ("a.csv",)),)
    channels: dict[str, tuple[str, ...]] = {"numerical": ("age",), "label": ("clicked",)}
    spec = FeatureSpec(tmp_path, features, {"train": chunks, "test": chunks}, channels, {})
    spec.write(tmp_path / "feature_spec.yaml")
    assert spec.onehot == ()
    assert FeatureSpec.read(tmp_path / "feature_spec.yaml").numerical == (features["age"],)


# Round trip over whatever a specification may hold.

TRAPS = ["no", "null", "1e3", "010", "1:30", "2024-01-01", "~", "=", "<<", "a: b", "#x", "- a", "{", "é", "\U0001f600"]
WORDS = st.text(st.characters(categories=["L", "N", "P", "S"], exclude_characters="/"), min_size=1, max_size=10)
NAMES = st.sampled_from(TRAPS) | st.lists(WORDS, min_size=1, max_size=2).map(" ".join)
NAMES = NAMES.filter(lambda name: not name.startswith("."))  # a name must not
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
WEIGHTS = st.floats(1e-300, 1e300)
PLAIN_CHANNELS = (ONEHOT, MULTIHOT, NUMERICAL, LABEL)


def some_of(**values: st.SearchStrategy) -> st.SearchStrategy:
    return st.fixed_dictionaries({}, optional=values)


def entries(kind: str, labels: list[str]) -> st.SearchStrategy:
    """What `feature_spec` may hold for a feature of this kind."""
    ids = {"cardinality": st.integers(1, 2**31 - 1)}
    ids_optional = {"dtype": st.sampled_from(["int32", "torch.long"]), "embedding_dim": st.integers(1, 4096)}
    ids_optional |= {"null_id": st.just(0), "unseen_id": st.just(0)}
    if kind == "onehot_categorical":
        return st.fixed_dictionaries(ids, optional=ids_optional)
    if kind == "multihot_categorical":
        return st.fixed_dictionaries(ids | {"max_hotness": st.integers(1, 50)}, optional=ids_optional)
    if kind == "label":
        given_label = {"given": st.sampled_from(labels)} if labels else {}
        binary = some_of(positive_weight=WEIGHTS, loss_weight=WEIGHTS, missing=st.just("ignore"), **given_label)
        return binary | st.just({"dtype": "float64"})
    return some_of(dtype=st.sampled_from(["int8", "torch.float", "float64"]))


@st.composite
def chunks(draw: Any, columns: list[str]) -> list[dict[str, Any]]:
    """The columns in any order, cut into chunks."""
    columns = draw(st.permutations(columns))
    cuts = sorted(draw(st.sets(st.integers(1, len(columns) - 1), max_size=2)))
    groups = [columns[start:end] for start, end in zip([0, *cuts], [*cuts, len(columns)], strict=True)]
    files = st.lists(
        NAMES.filter(lambda name: name not in (".", "..") and not set("*?[") & set(name)),
        min_size=1,
        max_size=3,
        unique=True,
    )
    return [{"type": "csv", "features": group, "files": draw(files)} for group in groups]


@st.composite
def documents(draw: Any) -> dict[str, Any]:
    """Valid documents: every kind of feature, labels that depend on each other, columns cut into chunks."""
    names = draw(st.lists(NAMES, min_size=3, max_size=10, unique=True))
    kinds = ["label", "numerical", *(draw(st.sampled_from([*PLAIN_CHANNELS, "spare"])) for _ in names[2:])]
    features: dict[str, Any] = {}
    channels: dict[str, list[str]] = {channel: [] for channel in (*PLAIN_CHANNELS, MAP)}
    for name, kind in zip(names, kinds, strict=True):
        features[name] = draw(entries(kind, channels["label"]))
        channels.setdefault(kind, []).append(name)
    if spare := channels.pop("spare", []):
        channels["map"] = spare[:1]
        features[spare[0]] = {"dtype": "int64"}
        for name, weights in zip(channels["multihot_categorical"], spare[1:], strict=False):
            features[name]["weights"] = weights
    return {
        "feature_spec": features,
        "source_spec": {mapping: draw(chunks(names)) for mapping in ("train", "test", "valid")},
        "channel_spec": channels,
        "metadata": draw(st.dictionaries(NAMES, PLAIN, max_size=3)),
    }


@given(document=documents())
@settings(max_examples=40, deadline=None)
def test_round_trip_of_any_specification(document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    spec = FeatureSpec.from_dict(document, folder)
    spec.write(folder / "feature_spec.yaml")
    again = FeatureSpec.read(folder / "feature_spec.yaml")
    assert again == spec
    assert list(again.features) == list(document["feature_spec"])
    assert {channel: list(names) for channel, names in again.channels.items()} == document["channel_spec"] | {
        "sequence": [],
        "vector": [],
    }
    assert again.metadata == document["metadata"]


@pytest.mark.parametrize("file", ["/elsewhere/a.csv", "../a.csv", "x/../../a.csv", "link/a.csv", "a.csv"])
def test_files_outside_of_the_folder(file: str, tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    path = folder / "feature_spec.yaml"
    path.write_text(yaml.safe_dump(changed({"source_spec.train[0].files[1]": file})))
    spec = FeatureSpec.read(path, allow_outside_paths=True)
    assert spec.files("train")[1] == folder / file
    if file != "a.csv":
        with pytest.raises(DataError, match=r"train\[0\].files\[1\]: .*or pass --allow_outside_paths"):
            FeatureSpec.read(path)


def test_length_of_paths(tmp_path: Path) -> None:
    path = "source_spec.train[0].files[1]"
    FeatureSpec.from_dict(changed({path: "a" * 1000}), tmp_path)
    check_only_problem(problems_of(changed({path: "a" * 1001}), tmp_path), path, "1001 characters; the maximum is 1000")
