"""No output of a command replaces its inputs or foreign files; this is checked before TensorFlow is imported."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import export
import gen_csv
import gen_embedding_sizes
import report
import transcode
from data.errors import DataError
from data.files.new_dataset import new_dataset
from data.loading.identity import DataIdentity
from data.spec.embedding_sizes import embedding_dims
from data.spec.feature_spec import FeatureSpec
from data.storage.arrays import ArraySource
from data.storage.checksummed_dir import StorageError, check_replaceable
from data.storage.files import create_new, replacing, temporary_beside, write_whole
from main import main
from tests.helpers import ROOT, make_dataset, words
from trainer.checkpoint.model_folder import write_model
from trainer.checkpoint.run_state import EarlyStoppingState, Identity, Position, RunState
from trainer.checkpoint.schema import ModelSchema
from trainer.checkpoint.store import CheckpointStore
from trainer.cli import parse
from trainer.lifecycle.records import WorkerRecord, prepare_records
from trainer.lifecycle.run_lock import RunLock
from trainer.process.worker_env import WorkerEnv

MINE = "a user's own file"
SMALL = words("--deep_hidden_units 8 --global_batch_size 64 --eval_batch_size 64 --cpu --recipe published")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("dataset"), ROOT / "feature_specs" / "tiny.yaml", rows=400)


@pytest.fixture
def data(dataset, tmp_path) -> Path:
    """A copy that tests may change, with encoders and embedding sizes."""
    copy = shutil.copytree(dataset, tmp_path / "data")
    (copy / "workflow").mkdir()
    (copy / "workflow" / "notes.json").write_text("{}")
    (copy / "embedding_sizes.json").write_text("{}")
    return copy


def arrays() -> list[ArraySource]:
    return [ArraySource.from_array("table", np.arange(6, dtype=np.float32).reshape(3, 2))]


def run_state(data: Path) -> dict[str, Any]:
    """The state that a run saves in its first checkpoint besides arrays."""
    spec, options = FeatureSpec.read(data / "feature_spec.yaml"), parse([*SMALL], 1)
    facts = RunState(
        identity=Identity(0, 64, "train", DataIdentity(1, 100, "", ""), "weights"),
        position=Position(steps=1, losses=[0.5]),
        stopping=EarlyStoppingState("auc_roc"),
        schema=ModelSchema.of(spec, embedding_dims(spec)),
        options=options.as_dict(),
        metrics={},
        logit_maps={},
    )
    return asdict(facts)


def snapshot(folder: Path) -> dict[str, str]:
    """Every file, link and folder with its content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = os.readlink(path) if path.is_symlink() else None if path.is_dir() else path.read_bytes()
        found[str(path.relative_to(folder))] = hashlib.sha256(repr(content).encode()).hexdigest()
    return found


def train(data: Path, folder: Path, *more: str) -> list[str]:
    places = {"--dataset_path": data, "--model_dir": folder / "models", "--results_dir": folder / "results"}
    return [*(str(part) for place in places.items() for part in place), *SMALL, *more]


def check_rejected(capsys, folder: Path, command: Callable[[list[str]], int], arguments: list[str], *said: str) -> None:
    """Asserts that a command ends with code 2 and one error, and changes no file."""
    before = snapshot(folder)
    try:
        code = command([str(argument) for argument in arguments])
    except SystemExit as error:
        code = error.code
    message = capsys.readouterr().err
    assert code == 2, message
    assert "Traceback" not in message
    for text in said:
        assert text in message, message
    assert snapshot(folder) == before


# Foreign files where a run writes


@pytest.fixture
def models(tmp_path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def add_file(place: Path) -> None:
    place.mkdir()
    (place / "thesis.txt").write_text(MINE)


def add_to_model(place: Path) -> None:
    write_model(place, arrays(), {"architecture.json": {}})
    (place / "weights" / "thesis.txt").write_text(MINE)


def replace_listed(place: Path) -> None:
    write_model(place, arrays(), {"architecture.json": {}})
    (place / "architecture.json").unlink()
    (place / "architecture.json").symlink_to("/etc/hostname")


def manifest_of_others(place: Path) -> None:
    place.mkdir()
    (place / "manifest.json").write_text('{"name": "a web site"}')


def link_to_folder(place: Path) -> None:
    write_model(place.with_name("elsewhere"), arrays(), {})
    place.symlink_to("elsewhere")


WAYS = [
    add_file,
    add_to_model,
    replace_listed,
    manifest_of_others,
    link_to_folder,
    lambda place: place.write_text(MINE),
    lambda place: place.symlink_to("nowhere"),
]
WAY_NAMES = ["file in", "file in ours", "link in ours", "manifest", "link", "plain file", "dangling link"]


@pytest.mark.parametrize("name", ["model", "model.replaced"])
@pytest.mark.parametrize("make", WAYS, ids=WAY_NAMES)
def test_training_leaves_others_model_folders(data, tmp_path, models, capsys, make, name):
    make(models / name)
    check_rejected(capsys, tmp_path, main, train(data, tmp_path), str(models / name))


@pytest.mark.parametrize("make", WAYS, ids=WAY_NAMES)
def test_saving_a_model_leaves_others_folders(tmp_path, make):
    place = tmp_path / "model"
    make(place)
    before = snapshot(tmp_path)
    with pytest.raises(StorageError, match="model"):
        write_model(place, arrays(), {})
    with pytest.raises(DataError, match="model"):
        check_replaceable(place)
    assert snapshot(tmp_path) == before


def test_our_own_folders_are_replaced(tmp_path):
    place = tmp_path / "model"
    place.mkdir()  # an empty folder may be replaced
    for number in range(3):
        write_model(place, arrays(), {"workflow/a/b.json": {"number": number}})
        assert json.loads((place / "workflow/a/b.json").read_text()) == {"number": number}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_checkpoint_with_a_damaged_manifest_is_ours(tmp_path):
    store = CheckpointStore(tmp_path)
    path = store.save(1, arrays(), {})
    for damage in (b"", b"{", (path / "manifest.json").read_bytes()[:-3]):
        (path / "manifest.json").write_bytes(damage)
        assert store.save(1, arrays(), {}) == path and store.open("last").step == 1
    (path / "manifest.json").unlink()
    check_replaceable(path)


def test_old_checkpoints_with_files_of_others_stay(tmp_path):
    warnings: list[str] = []
    store = CheckpointStore(tmp_path, keep=1, warn=warnings.append)
    notes = store.save(1, arrays(), {}) / "notes.txt"
    notes.write_text(MINE)
    for step in (2, 3, 4):
        store.save(step, arrays(), {})
    assert notes.read_text() == MINE and store.steps() == [1, 4]
    assert len(warnings) == 1 and "step-1" in warnings[0]


@pytest.mark.parametrize("name", [".step-3-0123456789ab.unfinished", "step-1.replaced"])
def test_leftovers_with_files_of_others_stay(tmp_path, name):
    store = CheckpointStore(tmp_path)
    store.save(1, arrays(), {})
    (store.folder / name).mkdir()
    (store.folder / name / "notes.txt").write_text(MINE)
    store.save(2, arrays(), {})
    assert (store.folder / name / "notes.txt").read_text() == MINE


def test_resuming_leaves_later_steps_of_others(data, tmp_path, models, capsys):
    store = CheckpointStore(models)
    store.save(1, arrays(), run_state(data))
    store.save(9, arrays(), run_state(data))
    (store.folder / "step-9" / "notes.txt").write_text(MINE)
    resume = train(data, tmp_path, "--use_checkpoint", "--checkpoint", str(store.folder / "step-1"))
    check_rejected(capsys, tmp_path, main, resume, "step-9/notes.txt", "was not written by this program")


def mounted(folder: Path, *mount: str) -> list[str]:
    """Runs a command with a mount that only it sees; skips the test if that is impossible."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    under = ["unshare", *user, "--mount", "sh", "-c", f'mount {" ".join(mount)} "$0" && exec "$@"', str(folder)]
    if subprocess.run([*under, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounts cannot be made here: it takes root, or user namespaces")
    return under


@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_mount_point_is_rejected_before_training(tmp_path, kind):
    place = tmp_path / "models" / "model"
    write_model(place, arrays(), {})
    script = (
        f"from pathlib import Path; from data.storage import checksummed_dir as writer; place = Path({str(place)!r})\n"
        "writer.check_replaceable(place); writer.check_can_be_renamed(place)"
    )
    mount = ["-t", "tmpfs", "none"] if kind == "tmpfs" else ["--bind", str(place)]
    command = [sys.executable, "-c", script]
    done = subprocess.run([*mounted(place, *mount), *command], capture_output=True, text=True, cwd=ROOT, check=False)
    assert "DataError" in done.stderr and "mount" in done.stderr and str(place) in done.stderr
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0


RESULTS = {
    "log.json": ["{}", "not a log\n"],
    "log.json.previous": ["{}"],
    "args.json": [MINE, '{"mine": 1}', "[1]"],
    "metrics.json": [MINE, '{"accuracy": 0.9}'],
    "slices.csv": [MINE, "column,value\n"],
}


@pytest.mark.parametrize("name,content", [(name, content) for name in RESULTS for content in RESULTS[name]])
def test_results_of_others_are_not_overwritten(data, tmp_path, capsys, name, content):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / name).write_text(content)
    arguments = train(data, tmp_path, "--slice", "user_id")
    check_rejected(capsys, tmp_path, main, arguments, f"results/{name}", "was not written by this command")


@pytest.mark.parametrize("name", list(RESULTS))
def test_results_are_not_written_through_links(data, tmp_path, capsys, name):
    (tmp_path / "results").mkdir()
    (tmp_path / "mine").write_text(MINE)
    (tmp_path / "results" / name).symlink_to(tmp_path / "mine")
    arguments = train(data, tmp_path, "--slice", "user_id")
    check_rejected(capsys, tmp_path, main, arguments, f"results/{name}", "is a link")


def test_a_lock_file_of_others_stays(tmp_path):
    lock = tmp_path / ".training.lock"
    lock.write_text(MINE)
    with pytest.raises(DataError, match="not a file of this program"), RunLock(tmp_path, print):
        pass
    assert lock.read_text() == MINE
    lock.rename(tmp_path / "mine")
    lock.symlink_to("mine")
    with pytest.raises(DataError, match="cannot be written"), RunLock(tmp_path, print):
        pass
    assert (tmp_path / "mine").read_text() == MINE


def test_worker_records_of_others_stay(tmp_path):
    folder = tmp_path / "workers"
    folder.mkdir()
    (tmp_path / "mine").write_text(MINE)
    (folder / "worker-0.json").symlink_to(tmp_path / "mine")
    (folder / "worker-7.json").write_text(MINE)
    prepare_records(tmp_path, "ab")
    record = WorkerRecord(tmp_path, WorkerEnv())
    record.begin()
    record.end(0)
    assert (folder / "worker-7.json").read_text() == MINE == (tmp_path / "mine").read_text()


# Outputs that are inputs


@pytest.fixture
def trained(data, models) -> Path:
    """The checkpoint and model folder of a run, written without TensorFlow."""
    CheckpointStore(models).save(1, arrays(), run_state(data), best=True)
    write_model(models / "model", arrays(), {"architecture.json": {}})
    return models


INPUTS = [
    "data/test_0.parquet",
    "data/train_0.parquet",
    "data/feature_spec.yaml",
    "data/embedding_sizes.json",
    "data/workflow/notes.json",
    "data/workflow/new.parquet",
    "sizes.json",
    "models/model/architecture.json",
    "models/model/new.parquet",
    "models/checkpoints/step-1/manifest.json",
    "models/checkpoints/new.parquet",
    "results/log.json",
    "results/metrics.json",
]


# Each file in one of these ways, and the first file in all of them.
HOW = ["itself", "a link", "a hard link"]
CASES = [(name, "itself", ["--predict"]) for name in INPUTS]
CASES += [(INPUTS[0], how, flag) for how in HOW for flag in (["--predict"], ["--evaluate", "--predictions_file"])][1:]


@pytest.mark.parametrize("name,how,flag", CASES)
def test_predictions_never_overwrite_an_input(data, trained, tmp_path, capsys, name, how, flag):
    (tmp_path / "sizes.json").write_text('{"user_id": 14}')  # as by default: the checkpoint fits
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "log.json").write_text("DLLL {}\n")
    (tmp_path / "results" / "metrics.json").write_text("{}")
    output = tmp_path / name
    if how != "itself":
        output = tmp_path / "out.parquet"
        output.symlink_to(tmp_path / name) if how == "a link" else output.hardlink_to(tmp_path / name)
    sizes = ["--embedding_sizes_file", str(tmp_path / "sizes.json")]
    arguments = train(data, tmp_path, *sizes, *flag, str(output))
    check_rejected(capsys, tmp_path, main, arguments, str(output), "choose another path")


def test_predictions_never_overwrite_other_files(data, trained, tmp_path, capsys):
    pq.write_table(pa.table({"row": [1], "mine": [2]}), tmp_path / "mine.parquet")
    check_rejected(
        capsys, tmp_path, main, train(data, tmp_path, "--predict", str(tmp_path / "mine.parquet")), "mine.parquet"
    )
    check_rejected(capsys, tmp_path, main, train(data, tmp_path, "--predict", "/dev/null"), "not a regular file")
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    "more",
    [
        ["--log_filename", "metrics.json"],
        ["--results_dir", "models/checkpoints", "--use_checkpoint"],
        ["--results_dir", "models/model"],
        ["--results_dir", "data", "--log_filename", "train_0.parquet"],
        ["--tensorboard_dir", "models/model/board"],
    ],
)
def test_outputs_of_a_run_never_overlap(data, trained, tmp_path, monkeypatch, capsys, more):
    monkeypatch.chdir(tmp_path)
    check_rejected(capsys, tmp_path, main, train(data, tmp_path, *more), "choose another path")


def test_model_dir_over_the_dataset_is_rejected(data, tmp_path, capsys):
    data.rename(tmp_path / "model")
    arguments = train(tmp_path / "model", tmp_path, "--model_dir", str(tmp_path))
    check_rejected(capsys, tmp_path, main, arguments, str(tmp_path / "model"))


# The other commands


def test_export_writes_no_folder_of_others(trained, tmp_path, capsys):
    base = ["--model_dir", str(trained), "--format", "savedmodel", "--output"]
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "file").write_text(MINE)
    for output, said in (("link", "already exists"), ("file", "already exists"), ("models/model/new", "lies in")):
        check_rejected(capsys, tmp_path, export.main, [*base, str(tmp_path / output)], output, said)


def test_report_overwrites_no_log_and_no_file_of_others(tmp_path, capsys):
    log = 'DLLL {"type": "LOG", "step": [1, 2], "data": {"loss": 1.0}}\n'
    (tmp_path / "log.json").write_text(log)
    (tmp_path / "report.html").write_text(log)
    base = ["--results_dir", str(tmp_path)]
    check_rejected(
        capsys, tmp_path, report.main, [*base, "--log_filename", "report.html"], "report.html", "is the same file"
    )
    check_rejected(capsys, tmp_path, report.main, base, "report.html", "was not written by this command")
    (tmp_path / "report.html").unlink()
    (tmp_path / "learning_curve.svg").write_text(MINE)
    check_rejected(capsys, tmp_path, report.main, base, "learning_curve.svg", "was not written by this command")
    (tmp_path / "learning_curve.svg").unlink()
    (tmp_path / "learning_curve.png").hardlink_to(tmp_path / "log.json")
    check_rejected(capsys, tmp_path, report.main, base, "learning_curve.png", "is the same file")
    (tmp_path / "learning_curve.png").unlink()
    assert report.main(base) == report.main(base) == 0  # its own files are replaced


def test_gen_embedding_sizes_overwrites_nothing(data, tmp_path, capsys):
    spec = data / "feature_spec.yaml"
    (tmp_path / "link").symlink_to(spec)
    for output in (spec, tmp_path / "link", data / "embedding_sizes.json"):
        output.exists() and (output.read_text() or output.write_text("{}"))
        arguments = ["--feature_spec_in", str(spec), "--output", str(output)]
        check_rejected(capsys, tmp_path, gen_embedding_sizes.main, arguments, str(output))


def test_gen_csv_and_transcode_replace_no_links(tmp_path, capsys):
    spec, csv, out = ROOT / "feature_specs" / "tiny.yaml", tmp_path / "csv", tmp_path / "out"
    csv.mkdir()
    out.mkdir()
    arguments = ["--feature_spec_in", str(spec), "--output", str(csv)]
    (csv / "feature_spec.yaml").symlink_to("nowhere")
    check_rejected(capsys, tmp_path, gen_csv.main, arguments, "feature_spec.yaml")
    (csv / "feature_spec.yaml").unlink()
    assert gen_csv.main(arguments) == 0
    first = next(csv.glob("*.csv"))
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / first.name).symlink_to("nowhere")
    capsys.readouterr()
    again = ["--feature_spec_in", str(spec), "--output", str(tmp_path / "again")]
    check_rejected(capsys, tmp_path, gen_csv.main, again, first.name)
    (out / "feature_spec.yaml").symlink_to("nowhere")
    check_rejected(capsys, tmp_path, transcode.main, ["--input", str(csv), "--output", str(out)], "feature_spec.yaml")


def test_a_dataset_leaves_drafts_of_others(tmp_path):
    notes = tmp_path / ".unfinished-my_notes" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text(MINE)
    with new_dataset(tmp_path) as draft:
        (draft / "feature_spec.yaml").write_text("")
    assert notes.read_text() == MINE
    assert sorted(path.name for path in tmp_path.iterdir()) == [".unfinished-my_notes", "feature_spec.yaml"]


# Temporary files


def test_new_file_follows_no_link_and_replaces_nothing(tmp_path):
    (tmp_path / "link").symlink_to("target")
    for name in ("link", "there"):
        (tmp_path / "there").touch()
        with pytest.raises(FileExistsError):
            create_new(tmp_path / name)
    assert not (tmp_path / "target").exists()


def test_names_of_temporary_files_cannot_be_guessed(tmp_path):
    names = {temporary_beside(tmp_path / "out.parquet").name for _ in range(100)}
    assert len(names) == 100 and all(str(os.getpid()) + "." not in name for name in names)
    # The longest name that a file system allows still has a temporary name.
    write_whole(tmp_path / ("n" * 255), "content")


def test_file_is_complete_or_unchanged(tmp_path):
    write_whole(tmp_path / "file", "old")
    with pytest.raises(KeyError), replacing(tmp_path / "file") as file:
        file.write(b"half")
        raise KeyError
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_save_needs_exactly_the_space_it_reports(tmp_path):
    """A save fits on a disk of exactly the required size; on one a page smaller it is rejected before writing."""
    page = 4096
    script = (
        "import re, sys; from pathlib import Path; import numpy as np\n"
        "from data.storage.arrays import ArraySource\nfrom data.storage.checksummed_dir import StorageError\n"
        "from data.storage.checksummed_dir import write_checksummed\n"
        "arrays = [ArraySource.from_array(f'table {i}', np.zeros((i * 1000, 3), np.float32)) for i in range(1, 20)]\n"
        "try:\n"
        "    write_checksummed(Path(sys.argv[1]) / 'saved',\n"
        "        arrays=arrays, files={'a/b.txt': b'x' * 5000}, metadata={'a': 'y' * 3000})\n"
        "except StorageError as error:\n"
        "    print(re.search('([0-9,]+) bytes are needed', str(error)).group(1).replace(',', ''))\n"
        "print(*Path(sys.argv[1]).iterdir())\n"
    )

    def save(size: int) -> list[str]:
        under = mounted(tmp_path, "-t", "tmpfs", "-o", f"size={size}", "none")
        command = [*under, sys.executable, "-c", script, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout.splitlines()

    needed = int(save(page * 4)[0])
    assert save(needed) == [str(tmp_path / "saved")]
    assert save(needed - page) == [str(needed), ""]
