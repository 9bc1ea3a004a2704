import copy
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.checks.dataset import MappingSummary, check_mapping
from data.outbrain import transform
from data.spec.feature_spec import FeatureSpec
from tests.data.outbrain.sample_data import DAY_MS, SampleTables, make_sample, write_sample
from tests.data.outbrain.test_preproc import RECIPES, prepared, rows
from tests.data.scalar_hash import scalar_hash
from tests.manifests import file_entry, rewrite_manifest

SAMPLE = make_sample(60, seed=2)
SAMPLE.tables["promoted_content"] = SAMPLE.tables["promoted_content"][2:]
DESCRIPTION = "manifest.json"
FEATURES = 29


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    return write_sample(tmp_path_factory.mktemp("raw"), SAMPLE)


@pytest.fixture(scope="module")
def datasets(raw, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("datasets")
    return {recipe: prepared(raw, folder / recipe, "--recipe", recipe) for recipe in RECIPES}


@pytest.fixture(scope="module", params=RECIPES)
def dataset(datasets, request) -> Path:
    return datasets[request.param]


@pytest.fixture
def copied(datasets, tmp_path) -> Path:
    """A dataset whose workflow a test may damage."""
    shutil.copytree(datasets["leak_free"], tmp_path / "dataset")
    return tmp_path / "dataset"


def arguments(workflow: Path, new: Path, output: Path, *flags: str) -> list[str]:
    return ["--workflow", str(workflow), "--input", str(new), "--output", str(output), *flags]


def transformed(dataset: Path, new: Path, output: Path, *flags: str) -> pd.DataFrame:
    assert transform.main(arguments(dataset / "workflow", new, output, *flags)) == 0
    return rows(output, "rows")


def refusal(capsys, workflow: Path, new: Path, output: Path, *flags: str) -> str:
    """The one line that tells why nothing was made; nothing is left either."""
    capsys.readouterr()
    assert transform.main(arguments(workflow, new, output, *flags)) == 2
    assert not output.exists()
    *progress, line = capsys.readouterr().err.splitlines()
    assert line.startswith("outbrain: ") and all(" s  " in message for message in progress)
    return line.removeprefix("outbrain: ")


def assert_equal_rows(found: pd.DataFrame, wanted: pd.DataFrame, names: list[str]) -> None:
    assert len(found) == len(wanted)
    for name in names:
        left, right = (
            [cell.tolist() if isinstance(cell, np.ndarray) else cell for cell in frame[name]]
            for frame in (found, wanted)
        )
        assert left == right, name


def by_display(frame: pd.DataFrame) -> pd.DataFrame:
    """Within a display, rows are in the order of their ads already."""
    return frame.sort_values("display_id", kind="stable")


def only(sample: SampleTables, *names: str) -> SampleTables:
    return SampleTables({name: sample.tables[name] for name in names})


def validation(dataset: Path) -> pd.DataFrame:
    return by_display(rows(dataset, "valid"))


@pytest.mark.parametrize("tables", ["all", "clicks and events"])
def test_the_same_raw_rows_get_the_same_features(dataset, raw, tmp_path, tables):
    new = raw if tables == "all" else write_sample(tmp_path / "new", only(SAMPLE, "clicks_train", "events"))
    found, wanted = transformed(dataset, new, tmp_path / "out"), validation(dataset)
    assert len(found) == len(SAMPLE.tables["clicks_train"])
    spec = FeatureSpec.read(dataset / "feature_spec.yaml")
    assert len(spec.inputs) >= FEATURES
    chosen = found[found["display_id"].isin(wanted["display_id"])]
    assert_equal_rows(by_display(chosen), wanted, [feature.name for feature in spec.inputs] + ["clicked", "display_id"])


def test_rows_to_predict_have_no_label_but_their_ads(dataset, raw, tmp_path):
    sample = copy.deepcopy(SAMPLE)
    wanted = validation(dataset)
    held_out = set(wanted["display_id"])
    pairs = [row[:2] for row in SAMPLE.tables["clicks_train"] if row[0] in held_out]
    sample.tables["clicks_test"] = pairs[::-1]
    new = write_sample(tmp_path / "new", only(sample, "clicks_test", "events"))
    found = by_display(transformed(dataset, new, tmp_path / "out"))
    spec = FeatureSpec.read(tmp_path / "out" / "feature_spec.yaml")
    assert_equal_rows(found, wanted, [feature.name for feature in spec.inputs])
    assert found["clicked"].isna().all()
    assert list(zip(found["display_id"], found["raw_ad_id"], strict=True)) == sorted(pairs)
    assert spec.features["clicked"].missing == "ignore"


def test_the_table_of_clicks_can_be_chosen(dataset, raw, tmp_path):
    found = transformed(dataset, raw, tmp_path / "out", "--clicks", "clicks_test")
    pairs = sorted(zip(found["display_id"], found["raw_ad_id"], strict=True))
    assert pairs == sorted(SAMPLE.tables["clicks_test"])


@pytest.mark.parametrize("clicks", ["clicks_train", "clicks_test"])
def test_specification_of_new_rows(dataset, raw, tmp_path, clicks):
    transformed(dataset, raw, tmp_path / "out", "--clicks", clicks)
    trained, spec = (FeatureSpec.read(folder / "feature_spec.yaml") for folder in (dataset, tmp_path / "out"))
    assert spec.channels == trained.channels and spec.metadata == trained.metadata
    assert set(spec.features) == set(trained.features) | {"raw_ad_id"}
    for feature in spec.inputs:
        assert feature == trained.features[feature.name]
    assert spec.features["clicked"].missing == ("error" if clicks == "clicks_train" else "ignore")
    for mapping in ("train", "test"):
        summary = MappingSummary()
        assert [finding for finding in check_mapping(spec, mapping, summary) if not finding.is_warning] == []
        assert summary.rows == len(SAMPLE.tables[clicks])
    sizes = [(folder / "embedding_sizes.json").read_bytes() for folder in (dataset, tmp_path / "out")]
    assert sizes[0] == sizes[1]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"feature_spec.yaml", "embedding_sizes.json", "rows"}


# New to training: an ad, two pages, and a topic. Their source is that of most ads' pages.
AD, PAGE, OTHER_PAGE, TOPIC = 77_777, 66_666, 66_667, 5_555
SOURCES = {row["document_id"]: row["source_id"] for row in SAMPLE.rows("documents_meta")}
[(SOURCE, _)] = Counter(
    SOURCES[row["document_id"]]
    for row in SAMPLE.rows("promoted_content")
    if SOURCES.get(row["document_id"]) is not None
).most_common(1)


def new_sample() -> SampleTables:
    topics = [(PAGE, TOPIC, 0.9), (PAGE, 1, 0.5), (OTHER_PAGE, 1, 0.01), (OTHER_PAGE, TOPIC, 0.001)]
    return SampleTables(
        {
            "clicks_test": [(500, AD), (501, AD)],
            "events": [
                (500, "u", PAGE, 5 * DAY_MS, 2, "US"),
                (501, "u", SAMPLE.tables["documents_topics"][0][0], 5 * DAY_MS, 2, "US"),
            ],
            "promoted_content": [(AD, OTHER_PAGE, 1, 1)],
            "documents_meta": [(PAGE, SOURCE, None, "2016-06-10 00:00:00"), (OTHER_PAGE, SOURCE, 2, None)],
            "documents_topics": topics,
        }
    )


def test_new_side_tables_replace_stored_ones(datasets, tmp_path):
    new = write_sample(tmp_path / "new", new_sample())
    found = by_display(transformed(datasets["published"], new, tmp_path / "published")).iloc[0]
    assert found["ad_id"] == scalar_hash(AD) % 250_000
    assert found["document_id_promo"] == scalar_hash(OTHER_PAGE) % 100_000
    assert found["source_id"] == found["source_id_promo"] == scalar_hash(SOURCE) % 4000
    # A publisher that is missing is one more than the largest, and one more for each such page.
    assert found["publisher_id"] == scalar_hash(2 + 1 + 1) % 1000
    unseen, *known = found["topic_id_list"].tolist()
    assert unseen == scalar_hash(0) % 350 and len(known) == 1 and known[0] != unseen
    # A topic unseen in training has no weight, so both pages are about one and the same topic.
    assert found["document_id_document_id_promo_sim_topics"] == pytest.approx(1)
    assert found["document_id_document_id_promo_sim_entities"] == 0

    leak_free = by_display(transformed(datasets["leak_free"], new, tmp_path / "leak_free"))
    found, other = leak_free.iloc[0], leak_free.iloc[1]
    assert found["ad_id"] == found["document_id"] == found["document_id_promo"] == 2
    assert found["source_id"] == found["source_id_promo"] > 2 and found["publisher_id"] == 1
    assert found["topic_id_list"].tolist()[0] == 2 and found["topic_id_list"].tolist()[1] > 2
    known, unseen = found["topic_id_promo_list"].tolist()
    assert known > 2 and unseen == 2
    # The new topics know nothing of the page of the other display, the stored entities do.
    page = SAMPLE.tables["documents_topics"][0][0]
    entities = [row for row in SAMPLE.tables["documents_entities"] if row[0] == page]
    assert other["topic_id_list"].tolist() == [] and len(other["entity_id_list"]) == min(3, len(entities)) > 0


def test_sample_of_new_tables_is_new():
    assert AD not in {row[0] for row in SAMPLE.tables["promoted_content"]}
    assert not {PAGE, OTHER_PAGE} & {row[0] for row in SAMPLE.tables["documents_meta"]}
    topics = {row[1] for row in SAMPLE.tables["documents_topics"]}
    assert TOPIC not in topics and 1 in topics


@pytest.mark.parametrize("confidence", ["nan", "-0.5", "inf"])
def test_invalid_confidence_in_a_new_table(datasets, tmp_path, capsys, confidence):
    sample = new_sample()
    sample.tables["documents_topics"][0] = (PAGE, TOPIC, confidence)
    new = write_sample(tmp_path / "new", sample)
    message = refusal(capsys, datasets["leak_free"] / "workflow", new, tmp_path / "out")
    assert "documents_topics.csv" in message and "confidence_level" in message


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


DAMAGES = {
    "its first byte flipped": lambda path: flip(path, 0),
    "a byte in the middle flipped": lambda path: flip(path, path.stat().st_size // 2),
    "its last byte flipped": lambda path: flip(path, -2 if path.suffix == ".json" else -1),
    "cut in half": cut,
    "a byte too many": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "emptied": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
    "a folder in its place": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_workflow_file_is_named(copied, raw, tmp_path, capsys, damage):
    files = sorted(path for path in (copied / "workflow").rglob("*") if path.is_file())
    assert len(files) > 40
    for path in files:
        data = path.read_bytes()
        DAMAGES[damage](path)
        message = refusal(capsys, copied / "workflow", raw, tmp_path / "out")
        # The description may be readable still, and tell of a file what is not so.
        assert message.startswith(str(path.parent if path.name == DESCRIPTION else path)), (path, message)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(data)
    transformed(copied, raw, tmp_path / "out")


def positions(path: Path) -> list[int]:
    """All over a file: at its beginning, every one of them."""
    size = path.stat().st_size
    recipe = path.read_bytes().index(b'"recipe"')
    line = range(recipe, path.read_bytes().index(b"\n", recipe))
    return [position for position in [*range(150), *range(150, size - 1, 211)] if position not in line]


def test_changed_byte_of_the_description_is_detected(copied, raw, tmp_path, capsys):
    path = copied / "workflow" / DESCRIPTION
    data = path.read_bytes()
    for position in positions(path):
        flip(path, position)
        assert str(copied / "workflow") in refusal(capsys, copied / "workflow", raw, tmp_path / "out"), position
        path.write_bytes(data)


WRONG_DESCRIPTIONS = {
    "another version": (lambda document: document.update(version=99), "version 99"),
    "no version": (lambda document: document.pop("version"), DESCRIPTION),
    "no files": (lambda document: document.pop("files"), DESCRIPTION),
    "files as a list": (lambda document: document.update(files=[1]), DESCRIPTION),
    "an entry without checksum": (lambda document: document["files"]["encoders/encoders.json"].pop("sha256"), "sha256"),
    "encoders that are not listed": (lambda document: document["files"].pop("encoders/manifest.json"), "manifest.json"),
    "a file that is not there": (
        lambda document: document["files"].update({"tables/more.parquet": file_entry(b"")}),
        "more.parquet",
    ),
    "a file outside": (lambda document: document["files"].update({"../x": file_entry(b"secret")}), "'../x'"),
    "a file outside by a way round": (
        lambda document: document["files"].update({"tables/../../x": file_entry(b"secret")}),
        "'tables/../../x'",
    ),
}


@pytest.mark.parametrize("wrong", WRONG_DESCRIPTIONS)
def test_a_description_that_is_not_right_is_rejected(copied, raw, tmp_path, capsys, wrong):
    change, message = WRONG_DESCRIPTIONS[wrong]
    (copied / "x").write_bytes(b"secret")
    rewrite_manifest(copied / "workflow", change)
    line = refusal(capsys, copied / "workflow", raw, tmp_path / "out")
    assert str(copied / "workflow") in line and message in line


def test_an_absolute_path_in_the_description_is_rejected(copied, raw, tmp_path, capsys):
    (tmp_path / "x").write_bytes(b"secret")
    rewrite_manifest(
        copied / "workflow", lambda document: document["files"].update({str(tmp_path / "x"): file_entry(b"secret")})
    )
    assert "not a file of this folder" in refusal(capsys, copied / "workflow", raw, tmp_path / "out")


@pytest.mark.parametrize(
    ("wrong", "change"),
    [
        ("no recipe", lambda document: document["metadata"].pop("recipe")),
        ("recipe as a list", lambda document: document["metadata"].update(recipe=["leak_free"])),
        ("another recipe's name", lambda document: document["metadata"].update(recipe="published")),
        (
            "no such recipe",
            lambda document: document["metadata"].update(recipe="leak_frde"),
        ),
        ("a name with a zero", lambda document: document["files"].update({"a\0b": file_entry(b"")})),
        ("an endless size", lambda document: document["files"]["encoders/encoders.json"].update(bytes=float("inf"))),
        ("tables that are not listed", lambda document: document["files"].pop("tables/documents_meta.parquet")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unusual_mistakes_in_the_description(copied, raw, tmp_path, capsys, wrong, change):
    rewrite_manifest(copied / "workflow", change)
    assert DESCRIPTION in refusal(capsys, copied / "workflow", raw, tmp_path / "out")


def test_a_folder_that_is_no_workflow_is_rejected(datasets, raw, tmp_path, capsys):
    for folder in (datasets["leak_free"], tmp_path / "nowhere", raw):
        assert str(folder / DESCRIPTION) in refusal(capsys, folder, raw, tmp_path / "out")


def test_a_workflow_without_its_dataset_is_enough(datasets, raw, tmp_path):
    shutil.copytree(datasets["leak_free"] / "workflow", tmp_path / "alone" / "workflow")
    found = transformed(tmp_path / "alone", raw, tmp_path / "out")
    assert len(found) == len(SAMPLE.tables["clicks_train"])


@pytest.mark.parametrize(
    ("missing", "message"),
    [(["clicks_train", "clicks_test"], "clicks_test.csv missing"), (["events"], "events.csv missing")],
)
def test_missing_table_is_reported(datasets, tmp_path, capsys, missing, message):
    sample = SampleTables({name: table for name, table in SAMPLE.tables.items() if name not in missing})
    new = write_sample(tmp_path / "new", sample)
    assert message in refusal(capsys, datasets["leak_free"] / "workflow", new, tmp_path / "out")


def test_failure_in_the_last_stage_keeps_the_output(datasets, tmp_path, capsys):
    sample = only(copy.deepcopy(SAMPLE), "clicks_train", "events")
    sample.tables["clicks_train"].append(sample.tables["clicks_train"][0])
    new, output = write_sample(tmp_path / "new", sample), tmp_path / "out"
    assert "twice" in refusal(capsys, datasets["leak_free"] / "workflow", new, output)
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    assert transform.main(arguments(datasets["leak_free"] / "workflow", new, output)) == 2
    assert [path.name for path in output.iterdir()] == ["notes.txt"]


def test_an_output_that_holds_a_dataset_is_rejected(datasets, raw, tmp_path, capsys):
    transformed(datasets["leak_free"], raw, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert transform.main(arguments(datasets["leak_free"] / "workflow", raw, tmp_path / "out")) == 2
    assert "already contains a dataset" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
