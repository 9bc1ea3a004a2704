"""A specification with one feature of every kind, and rows for it, shared by the tests of the CSV tools."""

import json
from pathlib import Path
from typing import Any

FEATURES: dict[str, dict[str, Any]] = {
    "clicked": {"dtype": "int8"},
    "bought": {"given": "clicked", "missing": "ignore"},
    "user": {"dtype": "int32", "cardinality": 50},
    "genres": {"dtype": "int16", "cardinality": 8, "max_hotness": 3},
    "age": {"dtype": "float32"},
    "price": {"dtype": "float64"},
    "weight": {"role": "sample_weight"},
    "note": {},
    "session": {"dtype": "int64"},
}
CHANNELS = {
    "onehot_categorical": ["user"],
    "multihot_categorical": ["genres"],
    "numerical": ["age", "price"],
    "label": ["clicked", "bought"],
    "map": ["session"],
}
GOOD_LINE = '1,,49,"[0, 7]",0.5,1e-3,2,some text,7'


def document(sources: dict[str, list[dict[str, Any]]] | None = None) -> dict[str, Any]:
    """A specification with one chunk of all columns and one file per mapping, unless `sources` says otherwise."""
    return {
        "feature_spec": FEATURES,
        "source_spec": sources or {name: [chunk(list(FEATURES), [f"{name}.csv"])] for name in ("train", "test")},
        "channel_spec": CHANNELS,
        "metadata": {"made": "by hand"},
    }


def chunk(features: list[str], files: list[str]) -> dict[str, Any]:
    """A CSV chunk as source_spec has it."""
    return {"type": "csv", "features": features, "files": files}


def write_csv_dataset(folder: Path, files: dict[str, bytes | str], document: dict[str, Any]) -> Path:
    """Writes files and their specification; returns the specification's path."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    path = folder / "feature_spec.yaml"
    path.write_text(json.dumps(document))  # JSON is YAML
    return path
