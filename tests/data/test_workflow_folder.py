"""What of a dataset's workflow may become part of a model: what its manifest lists, and nothing from elsewhere."""

import os
from pathlib import Path

import pytest

import check_dataset
from data.encoding.encoder_files import load_encoders, save_encoders
from data.encoding.encoders import HashedIds
from data.encoding.workflow_folder import workflow_files
from data.errors import DataError
from data.spec.embedding_sizes import embedding_dims
from data.storage.checksummed_dir import write_manifest
from tests.data.sample_data import write_dataset
from tests.manifests import file_entry, rewrite_manifest

SECRET = b"-----BEGIN PRIVATE KEY-----"


@pytest.fixture
def dataset(tmp_path) -> Path:
    """A dataset's folder with a workflow, and a private file outside of it."""
    folder = tmp_path / "data"
    folder.mkdir()
    save_encoders({"user": HashedIds("user_id", 5)}, folder / "workflow")
    (tmp_path / "key").write_bytes(SECRET)
    return folder


def add_to_manifest(workflow: Path, name: str, content: bytes) -> None:
    rewrite_manifest(workflow, lambda manifest: manifest["files"].update({name: file_entry(content)}))


def refusal(dataset: Path) -> str:
    with pytest.raises(DataError) as caught:
        workflow_files(dataset)
    return str(caught.value)


def test_only_what_the_manifest_lists_is_named(dataset):
    (dataset / "workflow" / "id_rsa").symlink_to(dataset.parent / "key")
    (dataset / "workflow" / "notes.txt").write_text("private")
    assert set(workflow_files(dataset)) == {"workflow/manifest.json", "workflow/encoders.json"}


def test_a_workflow_without_a_manifest_gives_nothing(dataset):
    (dataset / "workflow" / "manifest.json").unlink()
    assert workflow_files(dataset) == {}


def test_a_dataset_without_a_workflow_gives_nothing(tmp_path):
    assert workflow_files(tmp_path) == {}


def test_files_in_folders_of_a_workflow_are_named(tmp_path):
    (tmp_path / "workflow" / "tables").mkdir(parents=True)
    (tmp_path / "workflow" / "tables" / "x.parquet").write_bytes(b"x")
    write_manifest(tmp_path / "workflow", {})
    found = workflow_files(tmp_path)
    assert set(found) == {"workflow/manifest.json", "workflow/tables/x.parquet"}
    assert found["workflow/tables/x.parquet"].read_bytes() == b"x"


@pytest.mark.parametrize("name", ["key", "folder/key"])
def test_a_listed_link_that_leads_out_is_rejected(name, dataset):
    """Also with its right checksum, and where a folder on the way is the link."""
    workflow = dataset / "workflow"
    (workflow / name.partition("/")[0]).symlink_to(dataset.parent if "/" in name else dataset.parent / "key")
    add_to_manifest(workflow, name, SECRET)
    assert "is a link that leads out of the folder" in refusal(dataset)
    assert f"workflow/{name}" in workflow_files(dataset, allow_outside_paths=True)


def test_a_workflow_that_is_a_link_out_is_rejected(dataset):
    (dataset / "workflow").rename(dataset.parent / "elsewhere")
    (dataset / "workflow").symlink_to(dataset.parent / "elsewhere")
    assert "workflow: is a link that leads out of the folder" in refusal(dataset)
    assert workflow_files(dataset, allow_outside_paths=True)


def test_links_within_the_dataset_are_followed(dataset):
    (dataset / "workflow").rename(dataset / "fitted")
    (dataset / "workflow").symlink_to("fitted")
    os.link(dataset / "fitted" / "encoders.json", dataset / "hard")
    (dataset / "fitted" / "encoders.json").unlink()
    os.link(dataset / "hard", dataset / "fitted" / "encoders.json")
    (dataset / "fitted" / "manifest.json").rename(dataset / "list")
    (dataset / "fitted" / "manifest.json").symlink_to("../list")
    assert len(workflow_files(dataset)) == 2


@pytest.mark.parametrize("name", ["../../key", "/etc/passwd", "a/../../../key", "a\0b"])
def test_a_manifest_that_lists_a_path_out_is_rejected(name, dataset):
    add_to_manifest(dataset / "workflow", name, SECRET)
    assert "is not a file of this folder" in refusal(dataset)


def test_changed_missing_and_other_files_are_rejected(dataset):
    path = dataset / "workflow" / "encoders.json"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"user_id", b"user_ie"))
    assert "encoders.json: its checksum differs" in refusal(dataset)
    path.unlink()
    assert "encoders.json: No such file" in refusal(dataset)
    os.mkfifo(path)
    assert "encoders.json: is a pipe" in refusal(dataset)


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"version": 1, "files": {}}'])
def test_a_manifest_of_another_form_is_rejected(text, dataset):
    (dataset / "workflow" / "manifest.json").write_text(text)
    assert "manifest.json: " in (told := refusal(dataset)) and "prepare the dataset again" in told


@pytest.mark.parametrize("files", [[], {"x": 1}, {"x": {"bytes": "1"}}])
def test_a_manifest_of_other_types_is_rejected(files, dataset):
    rewrite_manifest(dataset / "workflow", lambda manifest: manifest.update(files=files))
    assert "manifest.json: manifest.files" in refusal(dataset)


def test_a_declared_size_is_not_allocated(dataset):
    rewrite_manifest(dataset / "workflow", lambda manifest: manifest["files"]["encoders.json"].update(bytes=10**18))
    with pytest.raises(DataError, match="encoders.json: has [0-9]+ bytes, expected 1,000,000"):
        load_encoders(dataset / "workflow")


def test_widths_beside_a_specification_stay_in_its_folder(tmp_path):
    (tmp_path / "data").mkdir()
    spec, _ = write_dataset(tmp_path / "data", [[3]])
    (tmp_path / "widths.json").write_text('{"user": 3}')
    (tmp_path / "data" / "embedding_sizes.json").symlink_to(tmp_path / "widths.json")
    with pytest.raises(DataError, match=r"embedding_sizes.json: is a link that leads out of the folder"):
        embedding_dims(spec)
    assert embedding_dims(spec, allow_outside_paths=True)["user"] == 3


def test_check_dataset_finds_what_lies_elsewhere(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    spec, _ = write_dataset(tmp_path / "data", [[3]])
    spec.write(tmp_path / "data" / "feature_spec.yaml")
    (tmp_path / "widths.json").write_text('{"user": 3}')
    (tmp_path / "data" / "embedding_sizes.json").symlink_to(tmp_path / "widths.json")
    (tmp_path / "data" / "workflow").symlink_to(tmp_path)
    assert check_dataset.main([str(tmp_path / "data")]) == 1
    found = capsys.readouterr().out
    assert "embedding widths that cannot be used" in found and "workflow that cannot be used" in found
    assert found.count("is a link that leads out of the folder") == 2
    check_dataset.main([str(tmp_path / "data"), "--allow_outside_paths"])
    assert "cannot be used" not in capsys.readouterr().out
