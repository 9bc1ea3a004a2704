import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.spec.embedding_sizes import default_dim, embedding_dims, unused_widths
from data.spec.feature_spec import FeatureSpec
from tests.data.sample_specs import changed


@pytest.fixture
def spec(tmp_path: Path) -> FeatureSpec:
    """Two categorical features: `user` with 100 ids and `genres` with 8."""
    return FeatureSpec.from_dict(changed({}), tmp_path)


def with_dim(spec: FeatureSpec, feature: str, width: int) -> FeatureSpec:
    return FeatureSpec.from_dict(changed({f"feature_spec.{feature}.embedding_dim": width}), spec.folder)


def sizes_file(folder: Path, content: Any, name: str = "sizes.json") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


@pytest.mark.parametrize(
    ("cardinality", "width"),
    [(1, 2), (2, 2), (4, 3), (100, 21), (1000, 77), (8_500, 254), (8_700, 256), (300_000, 256), (2**31 - 1, 256)],
)
def test_default_width(cardinality: int, width: int) -> None:
    assert default_dim(cardinality) == width


def test_default_width_without_files(spec: FeatureSpec) -> None:
    assert embedding_dims(spec) == {"user": default_dim(100), "genres": default_dim(8)}


def test_file_beside_the_specification(spec: FeatureSpec) -> None:
    sizes_file(spec.folder, {"genres": 5}, "embedding_sizes.json")
    assert embedding_dims(spec) == {"user": default_dim(100), "genres": 5}


def test_specification_over_the_file_beside_it(spec: FeatureSpec) -> None:
    sizes_file(spec.folder, {"user": 4, "genres": 5}, "embedding_sizes.json")
    assert embedding_dims(with_dim(spec, "user", 32)) == {"user": 32, "genres": 5}


def test_explicit_file_over_everything(spec: FeatureSpec) -> None:
    sizes_file(spec.folder, {"user": 4, "genres": 5}, "embedding_sizes.json")
    explicit = sizes_file(spec.folder, {"user": 7})
    assert embedding_dims(with_dim(spec, "user", 32), explicit) == {"user": 7, "genres": 5}


def test_unknown_names_are_ignored(spec: FeatureSpec) -> None:
    explicit = sizes_file(spec.folder, {"age": 3, "nobody": 9, "user": 1, "genres": 4096})
    assert embedding_dims(spec, explicit) == {"user": 1, "genres": 4096}


def test_file_without_any_known_feature(spec: FeatureSpec) -> None:
    explicit = sizes_file(spec.folder, {"usr": 8, "age": 3})
    with pytest.raises(DataError) as caught:
        embedding_dims(spec, explicit)
    assert str(caught.value) == (
        f"{explicit}: names none of the categorical features; it has widths for 'usr' (did you mean 'user'?), 'age', "
        "and the features are user, genres"
    )
    with pytest.raises(DataError, match="names none of the categorical features; it is empty, and"):
        embedding_dims(spec, sizes_file(spec.folder, {}))


def test_specification_without_categorical_features(tmp_path: Path) -> None:
    shipped = FeatureSpec.read(Path(__file__).parents[2] / "feature_specs" / "no_categorical.yaml")
    assert embedding_dims(shipped, sizes_file(tmp_path, {})) == {}
    assert embedding_dims(shipped, sizes_file(tmp_path, {"ad_id": 4})) == {}


def test_warning_of_unused_widths(spec: FeatureSpec) -> None:
    explicit = sizes_file(spec.folder, {"user": 1, "genrse": 2, "age": 3, "users": 4})
    beside = sizes_file(spec.folder, {"userr": 1, "geners": 5, "genres": 6}, "embedding_sizes.json")
    tail = "; the specification has no such categorical feature, and these widths are not used"
    assert list(unused_widths(spec, explicit)) == [
        f"{explicit}: has widths for 'genrse' (did you mean 'genres'?), 'age', 'users'{tail}",
        f"{beside}: has widths for 'userr' (did you mean 'user'?), 'geners'{tail}",
    ]
    beside.unlink()
    assert not list(unused_widths(spec, sizes_file(spec.folder, {"user": 1, "genres": 2})))


def test_misspelled_name_among_many(spec: FeatureSpec) -> None:
    widths = {f"x{number}": 1 for number in range(99)} | {"genre": 2}
    (text,) = unused_widths(spec, sizes_file(spec.folder, widths))
    assert "has widths for 'genre' (did you mean 'genres'?), 'x0', " in text and "(100 in all)" in text


def test_published_sizes_of_outbrain(tmp_path: Path) -> None:
    spec = FeatureSpec.read(Path(__file__).parents[2] / "feature_specs" / "fspec_csv.yaml")
    wide = ["ad_id", "document_id", "document_id_promo", "campaign_id"]
    sizes = {feature.name: 128 if feature.name in wide else 64 for feature in spec.onehot + spec.multihot}
    sizes["platform"] = 19
    dims = embedding_dims(spec, sizes_file(tmp_path, sizes))
    assert sum(dims.values()) == 1235
    assert list(dims) == [feature.name for feature in spec.onehot + spec.multihot]


WRONG = {
    "a width of 0": ({"user": 0}, ": 'user' is the number 0; expected whole numbers from 1 to 4096, without quotes"),
    "a negative width": ({"user": -1}, ": 'user' is the number -1; expected whole numbers"),
    "a width too large": ({"user": 4097}, ": 'user' is the number 4097; expected whole numbers"),
    "a fraction": ({"user": 16.5}, ": 'user' is the number 16.5; expected whole numbers"),
    "a text": ({"user": "16"}, ": 'user' is the string '16'; expected whole numbers"),
    "a truth value": ({"user": True}, ": 'user' is the boolean True; expected whole numbers"),
    "nothing": ({"user": None}, ": 'user' is empty; expected whole numbers"),
    "a list as width": ({"user": [16]}, ": 'user' is a list; expected whole numbers"),
    "two wrong widths": ({"user": 0, "nobody": "x"}, ": 'user' is the number 0, 'nobody' is the string 'x'; expected"),
    "a list": ([16], ': is a list; expected a JSON object such as {"ad_id": 128}'),
    "a number": (16, ": is the number 16; expected a JSON object"),
    "a comma too many": (b'{"user": 16,\n "genres": 8,}', ", line 2, column 14: not valid JSON: "),
    "nothing at all": (b"", ", line 1, column 1: not valid JSON: Expecting value"),
    "a name twice": (b'{"user": 16, "user": 8}', ": not a file of embedding widths: 'user' occurs twice; keep one"),
    "another encoding": ('{"größe": 1}'.encode("latin-1"), ", line 1: not UTF-8 (byte 4); save the file as UTF-8"),
    "very deep nesting": (b'{"user": ' + b"[" * 100_000, ": not a file of embedding widths: "),
    "a very long number": (b'{"user": ' + b"1" * 5000 + b"}", ": not a file of embedding widths: "),
    "not a number": (b'{"user": NaN}', ": 'user' is the number nan; expected whole numbers"),
}


@pytest.mark.parametrize("name", ["sizes.json", "embedding_sizes.json"])
@pytest.mark.parametrize(("content", "words"), WRONG.values(), ids=WRONG)
def test_wrong_files(content: Any, words: str, name: str, spec: FeatureSpec) -> None:
    path = sizes_file(spec.folder, content, name)
    with pytest.raises(DataError) as caught:
        embedding_dims(spec, path if name == "sizes.json" else None)
    assert str(caught.value).startswith(f"{path}{words}")


def test_explicit_file_must_exist(spec: FeatureSpec) -> None:
    with pytest.raises(DataError, match=r"nothing\.json: no such file; expected JSON with embedding widths"):
        embedding_dims(spec, spec.folder / "nothing.json")


def test_folder_in_place_of_a_file(spec: FeatureSpec) -> None:
    (spec.folder / "embedding_sizes.json").mkdir()
    with pytest.raises(DataError, match=r"embedding_sizes\.json: is a folder"):
        embedding_dims(spec)


@given(content=st.binary(max_size=30) | st.text('{}[]":,01-.eEnulltrfasN ', max_size=30).map(str.encode))
@settings(max_examples=200, deadline=None)
def test_any_content_gives_sizes_or_a_data_error(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    spec = FeatureSpec.from_dict(changed({}), folder)
    path = sizes_file(folder, content)
    try:
        assert embedding_dims(spec, path) == embedding_dims(spec)
    except DataError as error:
        assert str(error).startswith(str(path))
