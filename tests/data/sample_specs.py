"""A valid specification for the tests, and changes that make it invalid."""

import copy
import re
from collections.abc import Callable
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


def changed(changes: dict[str, Any], valid: Any = None) -> Any:
    """The valid document, or another one, with other values at some paths, such as `source_spec.train[0].files[1]`.

    GONE removes a value, an index just past the end of a list appends.
    """
    root: Any = {"": valid or document()}
    for path, value in changes.items():
        steps = ["", *(int(step) if step.isdigit() else step for step in re.findall(r"[^.\[\]]+", path))]
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


def problems_of(wrong: Any, folder: Path, read: Callable[[Any, Path], Any] = FeatureSpec.from_dict) -> list[str]:
    """The problems that reading an invalid document finds."""
    with pytest.raises(FeatureSpecError) as caught:
        read(wrong, folder)
    return caught.value.problems


def check_only_problem(problems: list[str], path: str, words: str) -> None:
    """Checks that there is one problem, at this path, in these words."""
    assert len(problems) == 1 and problems[0].startswith(f"{path}: ") and words in problems[0], problems
