"""Specifications with damage, as hypothesis draws them."""

import copy
from collections.abc import Callable
from typing import Any

import yaml
from hypothesis import strategies as st

from tests.data.sample_specs import changed


def weighted_document() -> Any:
    """A valid specification whose lists have weights, with a sequence, a vector and one that is looked up."""
    changes: dict[str, Any] = {
        "feature_spec.genres.weights": "note",
        "feature_spec.seen": {"cardinality": 100, "table": "user", "max_hotness": 2},
        "feature_spec.ages": {},
        "feature_spec.embedding": {"dimension": 3},
        "score": "click * buy ** 0.5 / age",
        "feature_spec.text": {"pretrained": "texts.parquet", "of": "user", "trained": True, "dimension": 2},
        "channel_spec.vector": ["embedding", "text"],
        "channel_spec.sequence": {
            "views": {"features": ["seen", "ages"], "target": ["user"], "encoder": "din", "order": "newest_last"}
        },
    }
    for mapping, columns in (("train", 3), ("test", 8), ("valid", 7)):
        changes[f"source_spec.{mapping}[0].features[{columns}]"] = "seen"
        changes[f"source_spec.{mapping}[0].features[{columns + 1}]"] = "ages"
        changes[f"source_spec.{mapping}[0].features[{columns + 2}]"] = "embedding"
    return changed(changes)


VALID = yaml.safe_dump(weighted_document(), sort_keys=False)
ODD = ["&a", "*a", "<<: ", "!!int ", "? ", "- ", "[", "]", "{", "}", ": ", "\n", "\t", "#", "|\n", "'", '"', "%", "\\"]
ODD += [
    "no",
    "~",
    "1:30",
    "010",
    "0x_",
    "2024-02-31",
    "1e400",
    "9" * 400,
    ".nan",
    "=",
    "---\n",
    "...\n",
    "\ufeff",
    "\0",
]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates() | st.just(b"x")
VALUES = st.recursive(
    SCALARS | st.sampled_from(["user", "click", "csv", "train", "test", "../a", "label", "sample_weight"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@st.composite
def damaged_files(draw: Any) -> bytes:
    """The valid file with pieces taken out, put in or exchanged."""
    content = VALID.encode()
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = start + draw(st.integers(0, 30))
        piece = draw(st.binary(max_size=8) | st.sampled_from(ODD).map(str.encode) | st.just(content[end : end + 20]))
        content = content[:start] + piece + content[end:]
    return content


@st.composite
def damaged(
    draw: Any, valid: Callable[[], Any], values: st.SearchStrategy[Any], keys: st.SearchStrategy[Any] = SCALARS
) -> Any:
    """A valid document with other values, and keys, at some places."""
    document = valid()
    for _ in range(draw(st.integers(1, 4))):
        node: Any = document
        while True:
            key = draw(st.sampled_from(range(len(node)) if isinstance(node, list) else list(node)))
            if not isinstance(node[key], dict | list) or not node[key] or draw(st.integers(0, 3)) == 0:
                break
            node = node[key]
        change = draw(st.sampled_from(["replace", "remove", "rename", "copy"]))
        if change == "replace" or (change == "rename" and isinstance(node, list)):
            node[key] = copy.deepcopy(draw(values))
        elif change == "copy":
            node[key] = copy.deepcopy(draw(st.sampled_from(list(document.values()) or [None])))
        else:
            value = node.pop(key)
            if change == "rename":
                node[draw(keys)] = value
        if not document:
            break
    return document


def damaged_documents() -> st.SearchStrategy[bytes]:
    """The valid document with other values at some places, written as YAML."""
    return damaged(weighted_document, VALUES).map(
        lambda wrong: yaml.safe_dump(wrong, sort_keys=False, allow_unicode=True).encode()
    )
