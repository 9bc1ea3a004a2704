"""Specifications as the public DLRM recipe writes them: read where they mean the same, explained where they do not."""

import textwrap
from pathlib import Path

import numpy as np
import pytest

import check_dataset
import gen_csv
import transcode
from data.loading.parquet import ParquetReader
from data.spec.feature_spec import FeatureSpec, FeatureSpecError

# The order of keys, the alias and the indentation are those of yaml.dump.
DUMPED = textwrap.dedent(
    """
    channel_spec:
      {categorical}:
      - cat_0.bin
      - cat_1.bin
      label:
      - label
      numerical: &id001
      - num_0
      - num_1
    feature_spec:
      cat_0.bin:
        cardinality: 40
        dtype: int32
      cat_1.bin:
        cardinality: 5
        dtype: int8
      label:
        dtype: bool
      num_0:
        dtype: float16
      num_1:
        dtype: float16
    metadata: {{}}
    source_spec:
      test:
      - features: *id001
        files:
        - test/numerical.bin
        type: {kind}
      - features:
        - label
        files:
        - test/label.bin
        type: {kind}
      - features:
        - cat_0.bin
        - cat_1.bin
        files:
        - test/cat.bin
        type: {kind}
      train:
      - features: *id001
        files:
        - train/numerical.bin
        type: {kind}
      - features:
        - label
        - cat_0.bin
        - cat_1.bin
        files:
        - train/rest.bin
        type: {kind}
    """
)


def write(folder: Path, categorical: str, kind: str) -> Path:
    path = folder / "feature_spec.yaml"
    path.write_text(DUMPED.format(categorical=categorical, kind=kind))
    return path


def test_dumped_specification_is_read(tmp_path: Path) -> None:
    spec = FeatureSpec.read(write(tmp_path, "onehot_categorical", "csv"))
    assert spec.sources["train"][0].features == spec.sources["test"][0].features == ("num_0", "num_1")
    assert spec.channels["numerical"] == ("num_0", "num_1")
    assert [feature.dtype for feature in spec.labels] == ["bool"]
    spec.write(tmp_path / "again.yaml")
    assert FeatureSpec.read(tmp_path / "again.yaml") == spec


def test_foreign_words_are_explained(tmp_path: Path) -> None:
    with pytest.raises(FeatureSpecError) as caught:
        FeatureSpec.read(write(tmp_path, "categorical", "split_binary"))
    assert caught.value.problems == [
        "source_spec: split_binary files, which the DLRM recipe writes, are not supported; write the columns as "
        "parquet, or name the CSV files that they were generated from (type: csv) and run transcode.py",
        "channel_spec.categorical: unknown channel; write onehot_categorical where rows have one id, "
        "multihot_categorical where they have lists",
    ]


def test_rows_from_csv_to_the_loader(tmp_path: Path) -> None:
    path = write(tmp_path, "onehot_categorical", "csv")
    raw, out = tmp_path / "raw", tmp_path / "out"
    assert gen_csv.main(["--feature_spec_in", str(path), "--output", str(raw), "--size", "50"]) == 0
    assert transcode.main(["--input", str(raw), "--output", str(out)]) == 0
    assert check_dataset.main([str(out)]) == 0
    reader = ParquetReader(FeatureSpec.read(out / "feature_spec.yaml"), "train")
    rows = np.concatenate([decoded(reader, unit, size) for unit, size in enumerate(reader.row_group_rows.tolist())])
    written = [line.split(",")[0] for line in (raw / "train/rest.bin").read_text().splitlines()]
    assert rows.tolist() == [{"true": 1.0, "false": 0.0}[cell] for cell in written]
    assert 0 < rows.sum() < 50


def decoded(reader: ParquetReader, unit: int, rows: int) -> np.ndarray:
    batch = reader.allocate(rows)
    reader.decode(unit, 0, rows, batch)
    return batch.labels[:, 0]
