"""What must become of raw tables, by the definitions, in plain Python; helpers to run the shipped specifications."""

import gzip
import statistics
from collections import Counter
from collections.abc import Sequence
from math import log
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

import preprocess
from data.encoding.encoder_files import load_encoders
from data.encoding.encoders import encode_columns
from data.spec.feature_spec import FeatureSpec
from data.spec.features import MULTIHOT, ONEHOT
from tests.data.scalar_hash import scalar_hash, scalar_row_hash
from tests.helpers import ROOT, must

Raw = dict[str, list]  # column -> values, None where unknown


def ids(train: list, values: list, oov_buckets: int) -> list[int]:
    """0 padding, 1 null, hashed ids of unseen values, then values by falling count, equal counts by value."""
    counts = Counter(value for value in train if value is not None)
    known = {value: 2 + oov_buckets + rank for rank, value in enumerate(sorted(counts, key=lambda v: (-counts[v], v)))}
    unseen = {value: 2 + scalar_hash(value) % oov_buckets for value in values if value is not None}
    return [1 if value is None else (unseen | known)[value] for value in values]


def numbers(train: list, values: list, *, heavy_tailed: bool = False) -> np.ndarray:
    """Unknown ones are the training median; log(1 + x) of heavy-tailed ones; then standardized, if they vary."""
    median = statistics.median(value for value in train if value is not None)

    def scaled(raw: list) -> list[float]:
        filled = [median if value is None else value for value in raw]
        return [log(1 + value) for value in filled] if heavy_tailed else [float(value) for value in filled]

    mean, deviation = statistics.fmean(scaled(train)), statistics.stdev(scaled(train))
    return np.array([(value - mean) / (deviation or 1.0) for value in scaled(values)])


def in_training_order(rows: Sequence[int], seed: int) -> list[int]:
    return sorted(rows, key=lambda row: scalar_row_hash(seed, 2, row))


def taken(raw: Raw, rows: Sequence[int]) -> Raw:
    return {name: [values[row] for row in rows] for name, values in raw.items()}


def check_features(
    dataset: Path,
    mapping: str,
    train: Raw,
    expected: Raw,
    *,
    onehot: Sequence[str],
    numerical: Sequence[str],
    heavy_tailed: Sequence[str],
    oov_buckets: int,
) -> None:
    """The stored features of a mapping, and those of the stored encoders, are the ones of the raw rows `expected`."""
    rows = rows_of(dataset, mapping)
    spec = FeatureSpec.read(dataset / "feature_spec.yaml")
    assert sorted(feature.name for feature in spec.onehot) == sorted(onehot)
    assert sorted(feature.name for feature in spec.numerical) == sorted([*numerical, *heavy_tailed])
    encoded = encode_columns(load_encoders(dataset / "workflow"), expected)
    for name in onehot:
        assert rows[name].tolist() == ids(train[name], expected[name], oov_buckets), name
        assert spec.features[name].cardinality == 2 + oov_buckets + len(set(train[name]) - {None}), name
    for name in (*numerical, *heavy_tailed):
        wanted = numbers(train[name], expected[name], heavy_tailed=name in heavy_tailed)
        np.testing.assert_allclose(rows[name], wanted, rtol=2e-6, atol=2e-6, err_msg=name)
    for name in (*onehot, *numerical, *heavy_tailed):
        assert encoded[name].tolist() == rows[name].tolist(), name


def rows_of(folder: Path, mapping: str) -> pd.DataFrame:
    spec = FeatureSpec.read(folder / "feature_spec.yaml")
    return pd.concat([pd.read_parquet(path) for path in spec.files(mapping)], ignore_index=True)


def labels_of(folder: Path) -> list[tuple[str, str, str | None]]:
    spec = FeatureSpec.read(folder / "feature_spec.yaml")
    return [(label.name, label.task, label.given) for label in spec.labels]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_lines(path: Path, lines: Sequence[str]) -> Path:
    """A text file; compressed if its name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(f"{line}\n" for line in lines).encode("latin-1")
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path.parent


def shipped(name: str) -> Path:
    """Path of a raw specification that comes with the project."""
    return ROOT / "feature_specs" / f"{name}_raw.yaml"


def preprocessed(name: str, raw: Path, output: Path, *, oov_buckets: int | None = None, **changes: object) -> Path:
    """Run preprocess.py on a shipped specification, with other buckets for unseen values and other sections."""
    must(preprocess.main(_arguments(name, raw, output, oov_buckets, changes)))
    return output


def refusal(name: str, raw: Path, output: Path, capsys, **changes: object) -> str:
    """Return what preprocess.py says on refusing: exit code 2, and nothing left in the output."""
    code = preprocess.main(_arguments(name, raw, output, None, changes))
    stderr = capsys.readouterr().err
    assert code == 2, stderr
    assert not output.exists()
    return stderr


def _arguments(name: str, raw: Path, output: Path, oov_buckets: int | None, changes: dict[str, object]) -> list[str]:
    path = shipped(name)
    if changes or oov_buckets is not None:
        document = yaml.safe_load(path.read_text()) | changes
        channels = document["channel_spec"]
        for feature in (*channels.get(ONEHOT, ()), *channels.get(MULTIHOT, ())) if oov_buckets is not None else ():
            document["feature_spec"][feature]["encode"] = {"vocabulary": {"oov_buckets": oov_buckets}}
        path = output.with_name(f"{output.name}.yaml")
        path.write_text(yaml.safe_dump(document, sort_keys=False))
    return ["--input", str(raw), "--feature_spec_in", str(path), "--output", str(output)]
