"""Types, names and single values: each mistake is reported once, with its location and a fix."""

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.spec.feature_spec import FeatureSpec
from tests.data.sample_specs import GONE, changed, check_only_problem, document, problems_of

WRONG_VALUES = [
    # Sections.
    ("feature_spec", GONE, "this section is missing"),
    ("source_spec", GONE, "this section is missing"),
    ("channel_spec", GONE, "this section is missing"),
    ("feature_spec", ["user"], "is a list; write a mapping"),
    ("source_spec", "train.csv", "is the string 'train.csv'; write a mapping"),
    ("channel_spec", 3, "is the number 3; write a mapping"),
    ("metadata", "notes", "is the string 'notes'; write a mapping"),
    # Features.
    ("feature_spec.user", [1], "is a list; write a mapping, such as {dtype: int64}"),
    ("feature_spec.age", "float32", "is the string 'float32'; write a mapping"),
    ("feature_spec.user.cardinalty", 3, "unknown key of a feature; did you mean 'cardinality'?"),
    ("feature_spec.note.colour", 3, "unknown key of a feature; expected dtype, cardinality, max_hotness,"),
    ("feature_spec.age.dtype", "float31",
     "is the string 'float31'; write one of int8, int16, int32, int64, float16, float32, float64"),
    ("feature_spec.age.dtype", "float", "is the string 'float'; write one of int8"),
    ("feature_spec.age.dtype", "torch.complex64", "is the string 'torch.complex64'; write one of int8"),
    ("feature_spec.age.dtype", 32, "is the number 32; write one of"),
    ("feature_spec.age.dtype", date(2024, 1, 1), "is date datetime.date(2024, 1, 1); write one of"),
    ("feature_spec.age.dtype", None, "is empty; write one of"),
    ("feature_spec.user.cardinality", "100",
     "is the string '100'; write a whole number from 1 to 2147483647, without quotes"),
    ("feature_spec.user.cardinality", 100.0, "is the number 100.0; write a whole number"),
    ("feature_spec.user.cardinality", True, "is the boolean True; write a whole number"),
    ("feature_spec.user.cardinality", [100], "is a list; write a whole number"),
    ("feature_spec.user.cardinality", None, "is empty; write a whole number"),
    ("feature_spec.user.cardinality", 0, "is the number 0; write a whole number from 1 to 2147483647"),
    ("feature_spec.user.cardinality", -5, "is the number -5; write a whole number from 1 to 2147483647"),
    ("feature_spec.user.cardinality", 2**31, "is the number 2147483648; write a whole number from 1 to 2147483647"),
    ("feature_spec.genres.max_hotness", 0, "is the number 0; write a whole number from 1"),
    ("feature_spec.user.embedding_dim", 0, "is the number 0; write a whole number from 1 to 4096"),
    ("feature_spec.user.embedding_dim", 4097, "is the number 4097; write a whole number from 1 to 4096"),
    ("feature_spec.user.unseen_id", -1, "is the number -1; write a whole number from 0 to 2147483646, without quotes"),
    ("feature_spec.user.null_id", "1", "is the string '1'; write a whole number from 0 to 2147483646, without quotes"),
    ("feature_spec.click.task", "clicks", "write one of binary, multiclass, regression"),
    ("feature_spec.click.task", ["binary"], "is a list; write one of binary, multiclass, regression"),
    ("feature_spec.click.loss_weight", 0, "is the number 0; write a finite number above 0"),
    ("feature_spec.click.loss_weight", -0.5, "is the number -0.5; write a finite number above 0"),
    ("feature_spec.click.loss_weight", float("nan"), "is the number nan; write a finite number above 0"),
    ("feature_spec.click.loss_weight", float("inf"), "is the number inf; write a finite number above 0"),
    ("feature_spec.click.loss_weight", 10**400, "write a finite number above 0"),
    ("feature_spec.click.loss_weight", True, "is the boolean True; write a finite number above 0"),
    ("feature_spec.click.loss_weight", "1e-3",
     "is the string '1e-3'; write a finite number above 0, without quotes"),
    ("feature_spec.click.positive_weight", 0.0, "is the number 0.0; write a finite number above 0"),
    ("feature_spec.click.tweedie_power", 2, "is the number 2; write a number between 1 and 2, such as 1.5"),
    ("feature_spec.click.tweedie_power", 1.0, "is the number 1.0; write a number between 1 and 2"),
    ("feature_spec.click.missing", "drop", "is the string 'drop'; write one of error, ignore"),
    ("feature_spec.buy.given", True, "this name is the boolean True; a name is a string: put it in quotes"),
    ("feature_spec.weight.role", "weight", "is the string 'weight'; write one of sample_weight"),
    ("feature_spec.weight.negative_rate", 0, "is the number 0; write a fraction above 0, such as 0.1"),
    ("feature_spec.weight.negative_rate", 1.5, "is the number 1.5; write a fraction above 0, such as 0.1"),
    # Mappings and chunks.
    ("source_spec.valid", [], "is an empty list; write a list of chunks, each beginning with '- ', with type,"),
    ("source_spec.valid", None, "is an empty list; write a list of chunks"),
    ("source_spec.valid", "d.csv", "is the string 'd.csv'; write a list of chunks"),
    ("source_spec.valid", {"type": "csv"}, "is a mapping; write a list of chunks, each beginning with '- '"),
    ("source_spec.valid[0]", "d.csv", "is the string 'd.csv'; write a mapping with type, features, files"),
    ("source_spec.valid[0].type", GONE, "is missing; a chunk has type, features and files"),
    ("source_spec.valid[0].features", GONE, "is missing; a chunk has type, features and files"),
    ("source_spec.valid[0].files", GONE, "is missing; a chunk has type, features and files"),
    ("source_spec.valid[0].file", "d.csv", "unknown key of a chunk; did you mean 'files'?"),
    ("source_spec.valid[0].type", "orc", "is the string 'orc'; write one of parquet, csv"),
    ("source_spec.valid[0].features", [], "is an empty list; write a list, such as ["),
    ("source_spec.valid[0].features", "user", "is the string 'user'; write a list, such as [age, price]"),
    ("source_spec.valid[0].files", "d.csv", "is the string 'd.csv'; write a list, such as [train_0.csv, train_1.csv]"),
    ("source_spec.valid[0].files", [], "is an empty list; write a list, such as ["),
    ("source_spec.valid[0].files", None, "is empty; write a list"),
    ("source_spec.valid[0].files[0]", 7, "is the number 7; write the path of a file in quotes"),
    ("source_spec.valid[0].files[0]", "", "is the string ''; write the path of a file"),
    ("source_spec.valid[0].files[0]", "a\0b", "is the string 'a\\x00b'; write the path of a file in quotes, without"),
    # Channels.
    ("channel_spec.numeric", [], "unknown channel; did you mean 'numerical'?"),
    ("channel_spec.label", "click", "is the string 'click'; write a list, such as ["),
    ("channel_spec.map", {"session": 1}, "is a mapping; write a list"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "words"), WRONG_VALUES)
def test_wrong_values(path: str, value: Any, words: str, tmp_path: Path) -> None:
    check_only_problem(problems_of(changed({path: value}), tmp_path), path, words)


WRONG_NAMES = [
    (False, "False", "this name is the boolean False; a name is a string: put it in quotes"),
    (7, "7", "this name is the number 7; a name is a string: put it in quotes"),
    (None, "None", "this name is empty; a name is a string: put it in quotes"),
    ("", "''", "this name is empty; write a name"),
    (" x", " x", "the name ' x' begins or ends with a space"),
    ("x\u3000", r"'x\u3000'", "begins or ends with a space"),
    ("a/b", "a/b", "the name 'a/b' contains a slash or a control character"),
    ("a\0b", r"'a\x00b'", "contains a slash or a control character"),
    ("a\nb", r"'a\nb'", "contains a slash or a control character"),
    (".hidden", ".hidden", "the name '.hidden' begins or ends with a space, or begins with a dot; remove it"),
    ("..", "..", "the name '..' begins or ends with a space, or begins with a dot"),
    ("x" * 201, f"'{'x' * 27}...{'x' * 28}'", "this name has 201 characters; the maximum is 200"),
    ("大" * 67, "大" * 67, "this name has 201 bytes in UTF-8; the maximum is 200"),
]


@pytest.mark.parametrize(("name", "shown", "words"), WRONG_NAMES)
def test_wrong_names(name: Any, shown: str, words: str, tmp_path: Path) -> None:
    wrong = document()
    wrong["feature_spec"][name] = {}
    check_only_problem(problems_of(wrong, tmp_path), f"feature_spec.{shown}", words)
    wrong = document()
    wrong["source_spec"][name] = wrong["source_spec"]["valid"]
    check_only_problem(problems_of(wrong, tmp_path), f"source_spec.{shown}", words)
    for path in ("channel_spec.label[2]", "source_spec.valid[0].features[7]", "feature_spec.buy.given"):
        check_only_problem(problems_of(changed({path: name}), tmp_path), path, words)


def test_no_problem_follows_from_a_wrong_name(tmp_path: Path) -> None:
    wrong = changed({"channel_spec.numerical[1]": "no", "source_spec.valid[0].features[7]": "no"})
    wrong["feature_spec"][False] = {}
    check_only_problem(problems_of(wrong, tmp_path), "feature_spec.False", "put it in quotes")


@pytest.mark.parametrize(("wrong", "words"), [([1], "is a list"), (None, "is empty"), ("x", "is the string 'x'")])
def test_document_is_a_mapping(wrong: Any, words: str, tmp_path: Path) -> None:
    fix = f"{words}; write a mapping with feature_spec, source_spec, channel_spec, metadata"
    check_only_problem(problems_of(wrong, tmp_path), "document", fix)


def test_unknown_sections(tmp_path: Path) -> None:
    problems = problems_of(document() | {"source_specs": {}, "zzz": 1, True: 2}, tmp_path)
    assert problems == [
        "document.source_specs: unknown section; did you mean 'source_spec'?",
        "document.zzz: unknown section; expected feature_spec, source_spec, channel_spec, metadata, score",
        "document.True: unknown section; expected feature_spec, source_spec, channel_spec, metadata, score",
    ]


ALLOWED = {
    "the largest cardinality": {"feature_spec.user.cardinality": 2**31 - 1},
    "the widest embedding": {"feature_spec.user.embedding_dim": 4096},
    "no dtypes": {f"feature_spec.{name}.dtype": GONE for name in ("user", "genres", "age", "session")},
    "a name with blanks and other scripts": {"feature_spec.größe in m²": {}},
    "the longest name": {"feature_spec." + "x" * 200: {}},
    "names that differ only in case": {"feature_spec.Note": {}, "feature_spec.NOTE": {}},
    "a feature without an entry": {"feature_spec.note": None},
    "empty metadata": {"metadata": None},
    "no metadata": {"metadata": GONE},
    "tuples and NumPy numbers from code": {
        "channel_spec.numerical": ("age",),
        "feature_spec.user.cardinality": np.int64(100),
        "feature_spec.click.loss_weight": np.float32(2),
    },
}


@pytest.mark.parametrize("changes", ALLOWED.values(), ids=ALLOWED)
def test_extreme_values_are_accepted(changes: dict[str, Any], tmp_path: Path) -> None:
    FeatureSpec.from_dict(changed(changes), tmp_path)


def test_numpy_numbers_become_python_numbers(tmp_path: Path) -> None:
    changes = {"feature_spec.user.cardinality": np.int64(100), "feature_spec.click.loss_weight": np.float32(2)}
    spec = FeatureSpec.from_dict(changed(changes), tmp_path)
    assert type(spec.features["user"].cardinality) is int
    assert type(spec.features["click"].loss_weight) is float


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ("torch.int8", "int8"),
        ("torch.float", "float32"),
        ("torch.half", "float16"),
        ("torch.double", "float64"),
        ("torch.short", "int16"),
        ("torch.int", "int32"),
        ("torch.long", "int64"),
        ("float16", "float16"),
    ],
)
def test_torch_dtypes_become_numpy_dtypes(stated: str, expected: str, tmp_path: Path) -> None:
    spec = FeatureSpec.from_dict(changed({"feature_spec.age.dtype": stated}), tmp_path)
    assert spec.features["age"].dtype == expected == np.dtype(expected).name
    assert spec.to_dict()["feature_spec"]["age"] == {"dtype": expected}
