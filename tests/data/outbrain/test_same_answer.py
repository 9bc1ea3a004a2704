import copy
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.checks.dataset import MappingSummary, check_mapping
from data.outbrain import raw_tables
from data.spec.feature_spec import FeatureSpec
from tests.data.outbrain.sample_data import DAY_MS, SampleTables, make_sample, write_sample
from tests.data.outbrain.test_preproc import RECIPES, SEED, prepared
from tests.data.scalar_hash import scalar_hash, scalar_row_hash

# Widths of the published embeddings.
PUBLISHED_WIDTHS = {
    "ad_id": 128, "document_id": 128, "platform": 19, "document_id_promo": 128, "campaign_id": 128,
    "advertiser_id": 64, "source_id": 64, "geo_location": 64, "geo_location_country": 64, "geo_location_state": 64,
    "publisher_id": 64, "source_id_promo": 64, "publisher_id_promo": 64, "topic_id_list": 64, "entity_id_list": 64,
    "category_id_list": 64,
}  # fmt: skip
FURTHER_WIDTHS = {
    "hour": 8, "weekday": 4, "display_ads": 4, "topic_id_promo_list": 64, "entity_id_promo_list": 64,
    "category_id_promo_list": 64,
}  # fmt: skip


def gappy_world() -> SampleTables:
    """A small sample with every gap; two of its ads are not in promoted_content."""
    sample = make_sample(60, seed=2)
    sample.tables["promoted_content"] = sample.tables["promoted_content"][2:]
    return sample


SAMPLE = gappy_world()


def files(dataset: Path, mapping: str) -> list[Path]:
    return sorted((dataset / mapping).iterdir(), key=lambda path: int(path.stem.removeprefix("part_")))


def table_bytes(dataset: Path, mapping: str) -> bytes:
    """The whole table of a mapping, files in order, in Arrow's stream form."""
    table = pa.concat_tables([pq.read_table(path) for path in files(dataset, mapping)]).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def answer(dataset: Path) -> dict[str, bytes]:
    """Everything that must not depend on how it was made; the workflow's manifest has a checksum of all its files."""
    kept = ("workflow/manifest.json", "embedding_sizes.json", "manifest.json")
    tables = {mapping: table_bytes(dataset, mapping) for mapping in ("train", "valid")}
    return tables | {name: (dataset / name).read_bytes() for name in kept}


def assert_same(dataset: Path, reference: Path) -> None:
    found, wanted = answer(dataset), answer(reference)
    assert [name for name in wanted if found[name] != wanted[name]] == []


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    return write_sample(tmp_path_factory.mktemp("raw"), SAMPLE)


@pytest.fixture(scope="module")
def datasets(raw, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("datasets")
    return {recipe: prepared(raw, folder / recipe, "--recipe", recipe) for recipe in RECIPES}


@pytest.fixture(scope="module", params=RECIPES)
def dataset(datasets, request) -> tuple[str, Path]:
    return request.param, datasets[request.param]


def test_the_order_of_raw_rows_changes_nothing(dataset, tmp_path):
    recipe, reference = dataset
    sample = copy.deepcopy(SAMPLE)
    for name in ("clicks_train", "events"):
        np.random.default_rng(1).shuffle(rows := sample.tables[name])
        assert rows != SAMPLE.tables[name] and sorted(map(str, rows)) == sorted(map(str, SAMPLE.tables[name]))
    assert_same(prepared(write_sample(tmp_path / "raw", sample), tmp_path / "out", "--recipe", recipe), reference)


@pytest.mark.parametrize(
    ("recipe", "parts"), [("leak_free", 7), pytest.param("published", 3, marks=pytest.mark.slow), ("published", 1)]
)
def test_the_number_of_parts_changes_nothing(datasets, raw, tmp_path, monkeypatch, recipe, parts):
    asked = []
    monkeypatch.setattr("data.outbrain.pipeline.number_of_parts", lambda *given: asked.append(given) or parts)
    assert_same(prepared(raw, tmp_path / "out", "--recipe", recipe), datasets[recipe])
    assert len(asked) == 1


def test_the_size_of_blocks_changes_nothing(datasets, raw, tmp_path, monkeypatch):
    monkeypatch.setattr(raw_tables, "BLOCK_BYTES", 300)
    assert_same(prepared(raw, tmp_path / "out"), datasets["leak_free"])


@pytest.mark.parametrize("ending", [".csv.gz", ".csv.zip"])
def test_packed_tables_give_the_same(datasets, tmp_path, ending):
    raw = write_sample(tmp_path / "raw", SAMPLE, ending=ending)
    assert_same(prepared(raw, tmp_path / "out", "--recipe", "published"), datasets["published"])


def test_windows_line_ends_and_empty_cells(datasets, tmp_path):
    raw = write_sample(tmp_path / "raw", SAMPLE, null="")
    for path in raw.iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert_same(prepared(raw, tmp_path / "out"), datasets["leak_free"])


@pytest.mark.parametrize("number", [1, 3, 1000])
def test_the_number_of_files_changes_nothing_but_the_files(datasets, raw, tmp_path, number):
    out = prepared(raw, tmp_path / "out", "--recipe", "published", "--output_files", number)
    assert_same(out, datasets["published"])
    assert_files_are_equally_large(out, number)


def test_eight_files_are_made_by_default(dataset):
    assert_files_are_equally_large(dataset[1], 8)


def assert_files_are_equally_large(dataset: Path, most: int) -> None:
    for mapping in ("train", "valid"):
        rows = [pq.ParquetFile(path).metadata.num_rows for path in files(dataset, mapping)]
        each = -(-sum(rows) // most)
        assert rows[:-1] == [each] * (len(rows) - 1) and 1 <= rows[-1] <= each
        assert len(rows) == -(-sum(rows) // each) <= most


@pytest.mark.slow
def test_a_cluster_of_two_workers_gives_the_same(datasets, raw, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert_same(prepared(raw, tmp_path / "out", "--use_dask"), datasets["leak_free"])
    assert "into 2 parts" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        path.name for path in datasets["leak_free"].iterdir()
    )


def in_training(sample: SampleTables, seed: int) -> set[int]:
    """The training displays, from the split's statement."""
    clicked = {row["display_id"] for row in sample.rows("clicks_train")}
    return {
        row["display_id"]
        for row in sample.rows("events")
        if row["display_id"] in clicked
        and row["timestamp"] // DAY_MS <= 10
        and scalar_row_hash(seed, 0, row["display_id"]) >= 0.2 * 2**64
    }


@pytest.mark.parametrize("seed", [SEED, SEED + 1])
def test_rows_are_split_by_display_and_shuffled(tmp_path, seed):
    sample = make_sample(60, seed=3)
    # A landing page of its own for each display: hashed, it tells the display of a training row.
    sample.tables["events"] = [(row[0], row[1], 10_000 + row[0], *row[3:]) for row in sample.tables["events"]]
    shown = [(row["display_id"], row["ad_id"]) for row in sample.rows("clicks_train")]
    display_of = {scalar_hash(10_000 + display) % 300_000: display for display, _ in shown}
    ad_of = {scalar_hash(ad) % 250_000: ad for _, ad in shown}
    assert len(display_of) == 60
    raw, out = write_sample(tmp_path / "raw", sample), tmp_path / "out"
    prepared(raw, out, "--recipe", "published", "--seed", seed)
    found = {}
    for mapping in ("train", "valid"):
        table = pa.concat_tables([pq.read_table(path) for path in files(out, mapping)])
        pairs = zip(table["document_id"].to_pylist(), table["ad_id"].to_pylist(), strict=True)
        found[mapping] = [(display_of[display], ad_of[ad]) for display, ad in pairs]
        assert ("display_id" in table.column_names) == (mapping == "valid")
    assert table["display_id"].to_pylist() == [display for display, _ in found["valid"]]

    training = in_training(sample, seed)
    train, valid = ([pair for pair in shown if (pair[0] in training) == wanted] for wanted in (True, False))
    assert found["train"] == sorted(train, key=lambda pair: scalar_row_hash(seed, 2, *pair))
    assert found["valid"] == sorted(valid, key=lambda pair: (scalar_row_hash(seed, 2, pair[0]), pair[1]))
    assert Counter(found["train"]) + Counter(found["valid"]) == Counter(shown)
    neighbours = [first[0] == second[0] for first, second in zip(found["train"], found["train"][1:], strict=False)]
    assert len(neighbours) > 100 and np.mean(neighbours) < 0.1


def test_another_seed_gives_another_split():
    assert 20 < len(in_training(SAMPLE, SEED)) < 60
    assert in_training(SAMPLE, SEED) != in_training(SAMPLE, SEED + 1)


def test_the_manifest_counts_rows_and_what_no_table_has(dataset):
    recipe, folder = dataset
    manifest = json.loads((folder / "manifest.json").read_text())
    training, events = in_training(SAMPLE, SEED), {row["display_id"]: row for row in SAMPLE.rows("events")}
    promoted = {row["ad_id"]: row["document_id"] for row in SAMPLE.rows("promoted_content")}
    known = {row["document_id"] for row in SAMPLE.rows("documents_meta")}
    clicks = SAMPLE.rows("clicks_train")
    train = sum(row["display_id"] in training for row in clicks)
    ads = sum(row["ad_id"] not in promoted for row in clicks)
    landing = sum(events[row["display_id"]]["document_id"] not in known for row in clicks)
    promoting = sum(promoted.get(row["ad_id"]) not in known for row in clicks)
    assert manifest["rows"] == {"train": train, "valid": len(clicks) - train}
    assert manifest["unknown"] == {
        "promoted_content, ad_id": ads,
        "documents_meta, document_id": landing,
        "documents_meta, document_id_promo": promoting,
    }
    assert min(ads, landing) > 0 and promoting > ads
    assert (manifest["recipe"], manifest["seed"]) == (recipe, SEED)


def test_specification_matches_the_files(dataset):
    recipe, folder = dataset
    spec = FeatureSpec.read(folder / "feature_spec.yaml")
    assert spec.metadata == {"dataset": "outbrain", "recipe": recipe}
    for mapping, name in (("train", "train"), ("test", "valid")):
        assert list(spec.files(mapping)) == files(folder, name)
        summary = MappingSummary()
        assert list(check_mapping(spec, mapping, summary)) == []
        assert summary.rows == json.loads((folder / "manifest.json").read_text())["rows"][name]
    numerical = {feature.name for feature in spec.numerical}
    assert len(numerical) == 13 and len(spec.onehot) + len(spec.multihot) == (16 if recipe == "published" else 22)


def test_embedding_widths(dataset):
    recipe, folder = dataset
    widths = PUBLISHED_WIDTHS | (FURTHER_WIDTHS if recipe == "leak_free" else {})
    assert json.loads((folder / "embedding_sizes.json").read_text()) == widths


def test_nothing_is_left_but_the_dataset(dataset):
    names = {path.name for path in dataset[1].iterdir()}
    assert names == {"feature_spec.yaml", "embedding_sizes.json", "manifest.json", "train", "valid", "workflow"}
    assert {path.name for path in (dataset[1] / "workflow").iterdir()} == {"manifest.json", "encoders", "tables"}
