"""Checkpoints in an object store: what is saved there comes back on another machine, whatever fails on the way."""

import os
import random
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data.storage import remote
from data.storage.arrays import ArraySource
from data.storage.checksummed_dir import MANIFEST, StorageError
from data.storage.remote import join, mirror_of
from tests.helpers import ROOT, environment
from tests.object_store import BUCKET, SECRET, Faults, proxy, use
from trainer.checkpoint import mirror
from trainer.checkpoint.model_folder import open_model, write_model
from trainer.checkpoint.store import CheckpointStore, NoCheckpointError, probe
from trainer.lifecycle.run_lock import RunLock


@pytest.fixture
def url(store):
    return f"{store}/run"


def arrays_of(step: int) -> dict[str, np.ndarray]:
    return {"table": np.full((1000, 16), step, np.float32), "step": np.array(step)}


def save(store: CheckpointStore, step: int, **options) -> None:
    store.save(step, [ArraySource.from_array(*item) for item in arrays_of(step).items()], {"step": step}, **options)


def opened(url: str, which: str = "last", warn=lambda text: None):
    """What a process that has just started opens."""
    store = CheckpointStore(mirror_of(url), warn=warn)
    store.refresh(which)
    checkpoint = store.open(which)
    for name, array in arrays_of(checkpoint.step).items():
        np.testing.assert_array_equal(checkpoint.read(name), array)
    return checkpoint


def wipe() -> None:
    """Makes this another machine."""
    shutil.rmtree(remote.cache_dir())


def stored_steps(url: str) -> set[str]:
    folder = join(url, "checkpoints")
    return {file.url[len(folder) + 1 :].split("/")[0] for file in remote.list_files(folder)}


def overwrite(url: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "content").write_bytes(content)
    remote.put(tmp_path / "content", url)


def test_another_machine_opens_the_last_and_the_best(url):
    store = CheckpointStore(mirror_of(url), keep=2)
    for step in (1, 2, 3, 4):
        save(store, step)
        store.amend(step, {"step": step}, best=step == 1)
    assert stored_steps(url) == {"step-1", "step-3", "step-4"}, "the two newest and the best are kept"
    wipe()
    assert (opened(url).step, opened(url, "best").step) == (4, 1)
    assert opened(url, str(mirror_of(url) / "checkpoints" / "step-3")).step == 3
    assert opened(url).state == {"step": 4}
    # The run goes on there: what is only a manifest in its mirror is neither uploaded nor lost.
    wipe()
    store = CheckpointStore(mirror_of(url), keep=2)
    store.refresh(locked=True)
    save(store, 5)
    wipe()
    assert stored_steps(url) == {"step-1", "step-4", "step-5"}
    assert [opened(url, which).step for which in ("last", "best")] == [5, 1]


def test_a_differential_checkpoint_returns_with_its_full_one(url):
    store = CheckpointStore(mirror_of(url))
    save(store, 1)
    rows = [ArraySource.from_array(*item) for item in {"table": np.full((2, 16), 2, np.float32)}.items()]
    rows.append(ArraySource.from_array("rows", np.array([3, 5])))
    store.save(2, rows, {}, full=1, row_numbers={"table": "rows"})
    wipe()
    store = CheckpointStore(mirror_of(url))
    store.refresh()
    found = store.open("last").read("table")
    expected = arrays_of(1)["table"]
    expected[[3, 5]] = 2
    np.testing.assert_array_equal(found, expected)


def test_only_the_opened_checkpoint_is_downloaded(url):
    store = CheckpointStore(mirror_of(url), keep=3)
    for step in (1, 2):
        save(store, step)
    wipe()
    opened(url)
    files = {path.relative_to(mirror_of(url)).as_posix() for path in mirror_of(url).rglob("*") if path.is_file()}
    assert {name for name in files if name.startswith("checkpoints/step-1")} == {f"checkpoints/step-1/{MANIFEST}"}
    assert any(name.startswith("checkpoints/step-2/arrays/") for name in files)


def test_a_stale_mirror_never_wins(url, monkeypatch, tmp_path):
    save(CheckpointStore(mirror_of(url)), 1)
    save(CheckpointStore(mirror_of(url)), 2)
    monkeypatch.setenv("RECIPE_CACHE_DIR", str(tmp_path / "other machine"))
    store = CheckpointStore(mirror_of(url))
    store.refresh(locked=True)
    # The other machine starts over from step 1, and saves another step 2, and 3.
    arrays = [ArraySource.from_array("table", np.full((1000, 16), 7, np.float32))]
    store.save(2, arrays, {"of": "the other"})
    monkeypatch.setenv("RECIPE_CACHE_DIR", str(tmp_path / "cache"))
    store = CheckpointStore(mirror_of(url))
    assert store.open("last").state == {"step": 2}, "the mirror is stale"
    store.refresh()
    checkpoint = store.open("last")
    assert checkpoint.state == {"of": "the other"}
    assert (checkpoint.read("table") == 7).all()
    # Steps that the store no longer has are gone, too.
    remote.delete_folder(join(url, "checkpoints/step-2"), MANIFEST)
    assert opened(url).step == 1


def test_a_damaged_copy_is_downloaded_again(url):
    save(CheckpointStore(mirror_of(url)), 1)
    (array,) = mirror_of(url).glob("checkpoints/step-1/arrays/*table.npy")
    content = bytearray(array.read_bytes())
    content[-1] ^= 1
    array.write_bytes(content)
    warnings = []
    assert opened(url, warn=warnings.append).step == 1
    assert warnings == []


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "manifest"])
def test_a_damaged_checkpoint_in_the_store_is_skipped(url, tmp_path, damage):
    store = CheckpointStore(mirror_of(url))
    save(store, 1)
    save(store, 2)
    files = [file.url for file in remote.list_files(join(url, "checkpoints/step-2"))]
    (hit,) = [name for name in files if name.endswith(MANIFEST if damage == "manifest" else "table.npy")]
    content = (mirror_of(url) / hit[len(url) + 1 :]).read_bytes()
    wipe()
    if damage == "missing":
        remote.delete(hit)
    else:
        changed = content[:-1] + bytes([content[-1] ^ 1]) if damage == "changed" else content[: len(content) // 2]
        overwrite(hit, changed, tmp_path)
    warnings = []
    assert opened(url, warn=warnings.append).step == 1
    assert len(warnings) == 1 and "skipping a damaged checkpoint" in warnings[0] and "step-2" in warnings[0]


def test_an_upload_without_its_manifest_does_not_exist_and_is_cleaned_up(url):
    store = CheckpointStore(mirror_of(url))
    save(store, 1)
    save(store, 2)
    remote.delete(join(url, f"checkpoints/step-2/{MANIFEST}"))
    assert opened(url).step == 1
    store = CheckpointStore(mirror_of(url))
    store.refresh(locked=True)
    save(store, 3)
    assert stored_steps(url) == {"step-1", "step-3"}


def test_a_failed_upload_is_made_up_for_by_the_next_save(url, monkeypatch):
    store = CheckpointStore(mirror_of(url), keep=2)
    save(store, 1)
    works = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("RECIPE_REMOTE_DEADLINE", "1")
    with pytest.raises(StorageError, match=f"{join(url, 'checkpoints')}.*cannot .*not all in the store"):
        save(store, 2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", works)
    assert stored_steps(url) == {"step-1"}
    save(store, 3)
    assert stored_steps(url) == {"step-2", "step-3"}
    wipe()
    assert opened(url).step == 3


def test_the_mirror_of_a_run_that_trains_is_left_alone(url):
    store = CheckpointStore(mirror_of(url))
    save(store, 1)
    remote.delete_folder(join(url, "checkpoints/step-1"), MANIFEST)  # as if it had not been uploaded yet
    with RunLock(mirror_of(url), print):
        assert opened(url).step == 1
    with pytest.raises(NoCheckpointError, match=f"no checkpoint in {url}/checkpoints"):
        opened(url)


def test_a_model_folder_returns_and_is_replaced(url):
    folder = mirror_of(url) / "model"
    for value in (1, 2):
        write_model(folder, [ArraySource.from_array("w", np.full(10, value))], {"architecture.json": {"n": value}})
    assert mirror.place(folder) == join(url, "model")
    wipe()
    model = open_model(folder)
    assert (model.read("w") == 2).all() and model.read_json("architecture.json") == {"n": 2}
    remote.delete(join(url, f"model/{MANIFEST}"))
    with pytest.raises(NoCheckpointError, match=f"no valid model in {url}/model"):
        open_model(folder)


def test_a_store_that_cannot_be_written_is_named_before_training(url, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("RECIPE_REMOTE_DEADLINE", "1")
    with pytest.raises(remote.RemoteError, match=f"{url}/checkpoints.*cannot write") as caught:
        probe(mirror_of(url))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "every", "saves"), [("error", 10, 6), ("cut", 10, 6), pytest.param("stall", 20, 3, marks=pytest.mark.slow)]
)
def test_a_failing_server_loses_nothing(server, monkeypatch, tmp_path, kind, every, saves):
    monkeypatch.setattr(remote, "REQUEST_TIMEOUT", 1.0)
    faults = Faults(kind, every)
    with proxy(server, faults) as variables:
        use(monkeypatch, variables, tmp_path / "cache")
        monkeypatch.setenv("RECIPE_REMOTE_DEADLINE", "30")
        url = f"s3://{BUCKET}/{secrets.token_hex(4)}"
        store, failed = CheckpointStore(mirror_of(url), keep=2), 0
        for step in range(1, saves + 1):
            try:
                save(store, step)
            except StorageError:
                failed += 1
        assert faults.hit > 1
        assert failed == 0
        wipe()
        assert opened(url).step == saves
        assert stored_steps(url) == {f"step-{saves - 1}", f"step-{saves}"}


KILLED = """
import sys
from pathlib import Path
import numpy as np
from data.storage.arrays import ArraySource
from data.storage.remote import mirror_of
from trainer.checkpoint.store import CheckpointStore

store = CheckpointStore(mirror_of(sys.argv[1]), keep=2)
store.refresh(locked=True)
step = max(store.steps(), default=0)
while True:
    step += 1
    print(step, flush=True)
    arrays = {"table": np.full((1000, 16), step, np.float32), "step": np.array(step)}
    store.save(step, [ArraySource.from_array(*item) for item in arrays.items()], {"step": step})
    print("saved", step, flush=True)
"""


@pytest.mark.parametrize("tries", [3, pytest.param(15, marks=pytest.mark.slow)])
def test_a_save_that_is_killed_while_it_uploads_keeps_a_checkpoint(url, tries):
    chosen = random.Random(tries)
    for _ in range(tries):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, url], cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True
        ) as process:
            lines = [process.stdout.readline(), process.stdout.readline()]
            process.stdout.readline()  # the next save has begun
            time.sleep(chosen.uniform(0, 0.15))
            process.kill()
            lines += process.stdout.read().splitlines()
        saved = int([line for line in lines if line.startswith("saved")][-1].split()[1])
        if chosen.random() < 0.5:
            wipe()
        assert opened(url).step in (saved, saved + 1), "what was reported as saved is there"
