"""Random rows as a prepared dataset: what the speed benchmarks read."""

import json
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT
from data.files.parquet import DatasetWriter, parquet_schema
from data.files.random_rows import random_tables
from data.spec.feature_spec import FeatureSpec

OUTBRAIN = ROOT / "feature_specs" / "fspec_csv.yaml"
PUBLISHED_WIDTHS = ROOT / "data" / "outbrain" / "embedding_sizes.json"
GROUP = "display_id"


def write_rows(
    folder: Path,
    rows: int,
    *,
    test_rows: int = 0,
    id_dtype: str = "int32",
    growth: int = 1,
    cardinality: int | None = None,
    width_divisor: int = 1,
) -> FeatureSpec:
    """Write a dataset of snappy parquet with page checksums, one file per mapping, and its specification.

    Ids are skewed as in click logs: an id is floor(cardinality * uniform ** 3), whatever the cardinality.

    Args:
        folder: an existing, empty folder.
        rows: of the mapping `train`.
        test_rows: of the mapping `test`, which has groups for MAP; with 0 it is the training file.
        id_dtype: as ids are stored.
        growth: factor of every cardinality. Widths stay as they are.
        cardinality: of every categorical feature, instead of its own times `growth`.
        width_divisor: the embedding widths are the published ones, divided by it and rounded up.
    """
    document = FeatureSpec.read(OUTBRAIN).to_dict()
    widths = json.loads(PUBLISHED_WIDTHS.read_text())
    for name, feature in document["feature_spec"].items():
        if "cardinality" in feature:
            feature["dtype"] = id_dtype
            feature["cardinality"] = cardinality or growth * feature["cardinality"]
            feature["embedding_dim"] = -(-widths[name] // width_divisor)
    if test_rows:
        _add_groups(document)
    return write_dataset(FeatureSpec.from_dict(document, folder), rows, test_rows)


def write_dataset(spec: FeatureSpec, rows: int, test_rows: int = 0) -> FeatureSpec:
    """Write random rows of a specification to its folder; without rows of its own, `test` has those of `train`.

    Returns:
        The specification of the written files.
    """
    chunks = {"train": write_mapping(spec, "train", rows)}
    chunks["test"] = write_mapping(spec, "test", test_rows) if test_rows else chunks["train"]
    spec = spec.with_sources({mapping: (chunk,) for mapping, chunk in chunks.items()}, spec.folder)
    spec.write(spec.folder / "feature_spec.yaml")
    return spec


def write_sequences(folder: Path, rows: int, steps: int, *, id_dtype: str = "int32") -> FeatureSpec:
    """Write a dataset of a one-hot feature and a sequence of three columns, two of ids and one of numbers.

    Args:
        folder: an existing, empty folder.
        rows: of the mapping `train`, which is `test`, too.
        steps: mean length of a row's sequence, which has any length from 0 to twice as many.
        id_dtype: as ids are stored.
    """
    item, category = ({"dtype": id_dtype, "cardinality": size} for size in (100_000, 500))
    longest = {"max_hotness": 2 * steps}
    features = {
        "click": {"dtype": "float32"},
        "item": item,
        "clicked_item": item | longest | {"table": "item"},
        "clicked_category": category | longest,
        "clicked_age": {"dtype": "float32"} | longest,
    }
    group = {"features": ["clicked_item", "clicked_category", "clicked_age"], "target": ["item"], "encoder": "din"}
    chunk = {"type": "csv", "features": list(features), "files": ["rows.csv"]}
    document = {
        "feature_spec": features,
        "source_spec": {"train": [chunk], "test": [chunk]},
        "channel_spec": {"onehot_categorical": ["item"], "sequence": {"clicks": group}, "label": ["click"]},
    }
    spec = FeatureSpec.from_dict(document, folder)
    chunks = (write_mapping(spec, "train", rows),)
    spec = spec.with_sources({"train": chunks, "test": chunks}, folder)
    spec.write(folder / "feature_spec.yaml")
    return spec


def _add_groups(document: dict[str, Any]) -> None:
    document["feature_spec"][GROUP] = {"dtype": "int64"}
    document["channel_spec"]["map"] = [GROUP]
    document["source_spec"]["test"][0]["features"].append(GROUP)


def write_mapping(spec: FeatureSpec, mapping: str, rows: int) -> Any:
    """Write random rows of a mapping, which has one chunk, beside the specification; return its stored chunk."""
    (chunk,) = spec.chunks(mapping)
    with DatasetWriter(spec.folder, mapping, parquet_schema(spec, chunk.features), rows_per_file=rows) as writer:
        for table in random_tables(spec, mapping, rows, signal=1.0):
            writer.write(table)
    return writer.chunk
