"""Every example of a kind of feature in docs/features.md, from rows to a trained model."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import preprocess
from data.spec.feature_spec import FeatureSpec
from data.spec.yaml_reader import read_yaml
from tests.helpers import ROOT, left_to_all, make_dataset, metrics, must
from tests.trainer.small_runs import run

Document = dict[str, Any]

ROWS = 240
USUAL = ("Crosses", "Sequences 2")  # scripts/test.sh --all trains on the others, too


def examples() -> dict[str, str]:
    """The YAML of the kinds of features, by the heading above it."""
    page, found = (ROOT / "docs" / "features.md").read_text().split("\n## Raw specifications")[0], dict[str, str]()
    for heading, section in re.findall(r"\n###? ([^\n]+)\n(.*?)(?=\n###? |\Z)", page, flags=re.DOTALL):
        blocks = re.findall(r"```yaml\n(feature_spec:.*?)```", section, flags=re.DOTALL)
        found |= {f"{heading} {number}" if len(blocks) > 1 else heading: text for number, text in enumerate(blocks, 1)}
    return found


EXAMPLES = examples()


def is_raw(document: Document) -> bool:
    """Whether an example is of a raw specification."""
    raw_keys = {"encode", "separator", "history"}
    return any(raw_keys & keys.keys() for keys in document["feature_spec"].values())


def completed(document: Document) -> Document:
    """The example with what it leaves out: other features that its channels name, channels, and a label."""
    features, channels = document["feature_spec"], document.setdefault("channel_spec", {})
    channels["label"] = ["click"]
    named = {name for names in channels.values() if isinstance(names, list) for name in names}
    named |= {name for each in channels.get("sequence", {}).values() for name in each["features"]}
    for name in named - features.keys():
        features[name] = {} if name == "click" else {"cardinality": 50}
    if len(channels) == 1:  # the label
        lists = {name for name, keys in features.items() if "max_hotness" in keys}
        ids = {name for name, keys in features.items() if "cardinality" in keys}
        numbers = features.keys() - ids - {"click"}
        split = {"multihot_categorical": lists, "onehot_categorical": ids - lists, "numerical": numbers}
        channels |= {channel: sorted(names) for channel, names in split.items()}
    return document


def write_raw(folder: Path, document: Document) -> None:
    """Writes rows with all columns of the raw examples, vectors of items, and the specification."""
    rng = np.random.default_rng(0)

    def texts(separator: str, values: list[str], lengths: np.ndarray) -> list[str]:
        return [separator.join(rng.choice(values, length)) for length in lengths]

    ids, numbers, many, few = list("abcdefgh"), ["0.5", "1", "2"], rng.integers(0, 6, ROWS), rng.integers(0, 4, ROWS)
    columns = {
        "click": rng.integers(0, 2, ROWS),
        "user": rng.choice(ids, ROWS),
        "user_id": rng.choice(ids, ROWS),
        "item": rng.choice(ids, ROWS),
        "price": rng.random(ROWS),
        "ts": pd.date_range("2026-01-01", periods=ROWS, freq="h").strftime("%Y-%m-%dT%H:%M:%S"),
        "bought": texts(" ", ids, many),
        "bought_age": texts(" ", numbers, many),
        "tag": texts("|", ids, few),
        "tag_confidence": texts("|", numbers, few),
    }
    folder.mkdir()
    pd.DataFrame(columns).to_csv(folder / "logs.csv", index=False)
    pq.write_table(
        pa.table({"item": ids, "vector": rng.random((len(ids), 4)).tolist()}), folder / "item_vectors.parquet"
    )
    document["source_spec"] = {"logs": [{"type": "csv", "header": True, "files": ["logs.csv"]}]}
    document["split"] = {"from": "logs", "last": {"test": 0.25}}
    (folder / "feature_spec.yaml").write_text(yaml.safe_dump(document, sort_keys=False))


def dataset(folder: Path, document: Document) -> Path:
    """A dataset of random rows for an example."""
    if is_raw(document):
        write_raw(folder / "raw", document)
        must(preprocess.main(["--input", str(folder / "raw"), "--output", str(folder / "data")]))
        return folder / "data"
    columns = [name for name, keys in document["feature_spec"].items() if "pretrained" not in keys]
    for mapping in ("train", "test"):
        chunk = {"type": "csv", "features": columns, "files": [f"{mapping}.csv"]}
        document.setdefault("source_spec", {})[mapping] = [chunk]
    path = folder / "example.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return make_dataset(folder, path, rows=ROWS)


def test_every_kind_has_an_example_of_about_ten_lines():
    kinds = ("Shared tables", "Weighted lists 1", "Sequences 1", "Vectors", "Vectors of a file", "Crosses")
    assert {*kinds, "Features known only in training", "The sides of a ranking request"} <= EXAMPLES.keys()
    assert max(len(text.splitlines()) for text in EXAMPLES.values()) <= 13


@pytest.mark.parametrize("example", left_to_all(EXAMPLES, USUAL))
def test_an_example_makes_a_model(example, tmp_path):
    (tmp_path / "shown.yaml").write_text(EXAMPLES[example])
    document = completed(read_yaml(tmp_path / "shown.yaml"))
    data = dataset(tmp_path, document)
    spec = FeatureSpec.read(data / "feature_spec.yaml")
    shown = {name for channel, names in document["channel_spec"].items() if channel != "sequence" for name in names}
    shown |= {name for each in document["channel_spec"].get("sequence", {}).values() for name in each["features"]}
    assert shown <= spec.features.keys()
    must(run(data, tmp_path, "--num_epochs", "1"))
    assert np.isfinite(metrics(tmp_path / "results")["loss_val"])
