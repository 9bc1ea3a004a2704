"""A valid specification for the tests, and ways to spoil it."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from data.spec.feature_spec import FeatureSpec, FeatureSpecError

GONE = object()
COLUMNS = ["user", "genres", "age", "click", "buy", "weight", "note"]


def document() -> dict[str, Any]:
    """A valid specification that uses everything, fresh at every call."""
    return {
        "feature_spec": {
            "user": {"dtype": "int32", "cardinality": 100},
            "genres": {"dtype": "int64", "cardinality": 8, "max_hotness": 3},
            "age": {"dtype": "float32"},
            "click": {"task": "binary"},
            "buy": {"given": "click"},
            "weight": {"role": "sample_weight"},
            "note": {},
            "session": {"dtype": "int64"},
        },
        "source_spec": {
            "train": [
                {"type": "csv", "features": COLUMNS[:3], "files": ["a_0.csv", "a_1.csv"]},
                {"type": "csv", "features": COLUMNS[3:], "files": ["b.csv"]},
            ],
            "test": [{"type": "csv", "features": [*COLUMNS, "session"], "files": ["c.csv"]}],
            "valid": [{"type": "csv", "features": [*COLUMNS], "files": ["d.csv"]}],
        },
        "channel_spec": {
            "onehot_categorical": ["user"],
            "multihot_categorical": ["genres"],
            "numerical": ["age"],
            "label": ["click", "buy"],
            "map": ["session"],
        },
        "metadata": {"origin": "a test"},
    }


def changed(changes: dict[str, Any]) -> Any:
    """The valid document with other values at some places, such as `source_spec.train[0].files[1]`.

    GONE takes a value away, an index just past the end of a list appends.
    """
    root: Any = {"": document()}
    for place, value in changes.items():
        steps = ["", *(int(step) if step.isdigit() else step for step in re.findall(r"[^.\[\]]+", place))]
        parent = root
        for step in steps[:-1]:
            parent = parent[step]
        if value is GONE:
            del parent[steps[-1]]
        elif isinstance(parent, list) and steps[-1] == len(parent):
            parent.append(value)
        else:
            parent[steps[-1]] = copy.deepcopy(value)
    return root[""]


def problems_of(wrong: Any, folder: Path) -> list[str]:
    """What is told about a document that breaks rules."""
    with pytest.raises(FeatureSpecError) as caught:
        FeatureSpec.from_dict(wrong, folder)
    return caught.value.problems


def check_only_problem(problems: list[str], place: str, words: str) -> None:
    """There is one problem, at this place, told in these words."""
    assert len(problems) == 1 and problems[0].startswith(f"{place}: ") and words in problems[0], problems
