"""Sides of features in ranking requests: what a specification may state, and what a raw one makes of it."""

from pathlib import Path
from typing import Any

import pytest

import preprocess
from data.spec.feature_spec import FeatureSpec
from data.spec.raw.reader import raw_spec_from_dict
from tests.data.raw_spec_samples import raw_problems, sequential_raw
from tests.data.sample_specs import changed, check_only_problem, problems_of
from tests.data.test_raw_training_only import write_raw
from tests.helpers import must

F = "feature_spec"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({f"{F}.user.side": "item"}, "is the string 'item'; write one of request, candidate"),
        ({f"{F}.click.side": "candidate"}, "is only for inputs and the feature is in label; remove it"),
        ({f"{F}.session.side": "candidate"}, "is only for inputs and the feature is in map; remove it"),
        ({f"{F}.weight.side": "candidate"}, "is only for inputs and the feature is the sample_weight of"),
        ({f"{F}.age.side": "candidate", f"{F}.age.serve": 3}, "has no meaning for a feature with `serve`"),
        ({f"{F}.note.side": "candidate", f"{F}.genres.weights": "note"},
         "is that of 'genres', whose weights these are; state it there"),
    ],
)  # fmt: skip
def test_misplaced_sides(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    check_only_problem(problems_of(changed(changes), tmp_path), next(iter(changes)), words)


def test_a_vector_is_on_the_side_of_its_ids(tmp_path: Path) -> None:
    text = {"pretrained": "a.parquet", "of": "user", "dimension": 4, "side": "candidate"}
    wrong = changed({f"{F}.text": text, "channel_spec.vector": ["text"]})
    check_only_problem(problems_of(wrong, tmp_path), f"{F}.text.side", "is that of 'user', whose ids")


@pytest.mark.parametrize(
    ("path", "changes", "words"),
    [
        (f"{F}.bought_age.side", {f"{F}.bought_age.side": "candidate"},
         "is candidate, and request for 'bought' of the same sequence; write the same for both"),
        (f"{F}.item_rate.side", {f"{F}.item.side": "candidate", f"{F}.item_by_slot.side": "candidate"},
         "is request, and candidate for 'item', which reads the same column; write the same for both"),
        (f"{F}.price_group.side", {f"{F}.price.side": "candidate", f"{F}.price_group.side": "request"},
         "is candidate, and request for 'price_group', which reads the same column"),
        (f"{F}.site_by_hour.side", {f"{F}.hour.side": "candidate"},
         "is request, and 'hour' is the candidate's; write candidate"),
        (f"{F}.item_by_slot.side",
         {f"{F}.item.side": "candidate", f"{F}.item_rate.side": "candidate"},
         "is request, and 'item' is the candidate's; write candidate"),
    ],
)  # fmt: skip
def test_raw_features_of_two_sides(path: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    if "price_group" in path:
        path = f"{F}.price.side"
    check_only_problem(raw_problems(changed(changes, sequential_raw()), tmp_path), path, words)


def test_a_raw_specification_of_two_sides_is_valid(tmp_path: Path) -> None:
    # The hour is the request's, and crossed with the site of a candidate.
    names = ("item", "item_rate", "item_by_slot", "site_by_hour", "price", "price_group")
    document = changed({f"{F}.{name}.side": "candidate" for name in names}, sequential_raw())
    spec = raw_spec_from_dict(document, tmp_path)
    assert {name for name, raw in spec.features.items() if raw.feature.side == "candidate"} == set(names)


def test_a_dataset_has_the_sides_of_its_raw_specification(tmp_path: Path) -> None:
    pages = {"encode": [{"fill": 0}, "log1p"], "indicator": "no_pages", "serve": None}
    raw = write_raw(tmp_path / "raw", item={"side": "candidate"}, pages=pages | {"side": "candidate"})
    text = (raw / "feature_spec.yaml").read_text()
    text = text.replace("    serve: null\n", "").replace("- pages", "- pages\n  - no_pages")
    (raw / "feature_spec.yaml").write_text(text)
    must(preprocess.main(["--input", str(raw), "--output", str(tmp_path / "data")]))
    spec = FeatureSpec.read(tmp_path / "data" / "feature_spec.yaml")
    assert [feature.name for feature in spec.inputs if feature.side == "candidate"] == ["item", "pages", "no_pages"]
