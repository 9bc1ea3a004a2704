import functools
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.storage import arrays, files
from data.storage import checksummed_dir as writer
from data.storage.arrays import DTYPES, ArraySource, is_array_name
from data.storage.checksummed_dir import (
    ChecksummedDir,
    DamagedError,
    Manifest,
    StorageError,
    _checksummed_text,
    read_manifest,
)
from tests.faults.matrix import tries
from tests.manifests import rewrite_manifest
from trainer.checkpoint import store as checkpoints
from trainer.checkpoint.model_folder import open_model, write_model
from trainer.checkpoint.store import CheckpointStore, NoCheckpointError, probe

STATE = {"epoch": 3, "metrics": {"auc_roc": 0.8125, "loss": float("-inf")}, "seeds": [1, 2**100], "note": "é\n"}


def tensors(step: int) -> dict[str, np.ndarray]:
    table = np.arange(12, dtype=np.float32).reshape(6, 2) + step
    return {
        "deep/ad_id/table": table,
        "deep/ad_id/rmsprop_mean_square": -table,
        "step": np.array(step),
    }


def sources(values: dict[str, np.ndarray]) -> list[ArraySource]:
    return [ArraySource.from_array(name, array) for name, array in values.items()]


def save(store: CheckpointStore, step: int, **options) -> Path:
    return store.save(step, sources(tensors(step)), {"step": step}, **options)


def check_content(checkpoint, step: int) -> None:
    assert checkpoint.step == step and checkpoint.state == {"step": step}
    assert set(checkpoint.arrays) == set(tensors(step))
    for name, array in tensors(step).items():
        np.testing.assert_array_equal(checkpoint.read(name), array)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """What is forced to disk, and when, has a test of its own; the others need not wait for it."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path, warnings) -> CheckpointStore:
    return CheckpointStore(tmp_path / "model dir é", warn=warnings.append)


# Round trips


@given(
    st.lists(
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3), st.integers(0, 2**32 - 1)),
        max_size=4,
    )
)
@settings(max_examples=60, deadline=None)
def test_arrays_round_trip_bit_for_bit(tmp_path_factory, described):
    values = {}
    for index, (dtype, shape, seed) in enumerate(described):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        data = np.random.default_rng(seed).bytes(size)
        values[f"part/{index}"] = np.frombuffer(data, np.uint8 if dtype == "bool" else dtype).reshape(shape)
        if dtype == "bool":
            values[f"part/{index}"] = values[f"part/{index}"] % 2 == 1
    store = CheckpointStore(tmp_path_factory.mktemp("model"))
    store.save(1, sources(values), {})
    checkpoint = store.open("last")
    assert checkpoint.arrays == {name: (array.shape, array.dtype) for name, array in values.items()}
    for name, array in values.items():
        read = checkpoint.read(name)
        assert read.tobytes() == array.tobytes() and read.shape == array.shape and read.dtype == array.dtype
        blocks = list(checkpoint.blocks(name))
        assert b"".join(block.tobytes() for block in blocks) == array.tobytes()
        assert all(block.shape[1:] == array.shape[1:] for block in blocks)


def test_files_are_plain_npy(store):
    folder = save(store, 7)
    found = [np.load(path, allow_pickle=False) for path in sorted((folder / "arrays").iterdir())]
    for array, expected in zip(found, tensors(7).values(), strict=True):
        np.testing.assert_array_equal(array, expected)


def test_tables_are_written_and_read_in_blocks(store, monkeypatch):
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 24)
    table = np.arange(22, dtype=np.float32).reshape(11, 2)
    source = ArraySource.from_array("table", table)
    assert [len(block) for block in source.blocks()] == [3, 3, 3, 2]
    store.save(1, [source], {})
    assert [len(block) for block in store.open("last").blocks("table")] == [3, 3, 3, 2]
    np.testing.assert_array_equal(np.concatenate(list(store.open("last").blocks("table"))), table)


def test_non_contiguous_blocks(store):
    table = np.arange(24, dtype=np.float32).reshape(6, 4)
    store.save(1, [ArraySource("t", (4, 6), np.float32, lambda: iter([table.T[:1], table.T[1:]]))], {})
    np.testing.assert_array_equal(store.open("last").read("t"), table.T)


def test_state_round_trips(store):
    store.save(2, [], STATE | {"rate": np.float32(0.5), "rows": np.int64(3), "pair": (1, 2)})
    assert store.open("last").state == STATE | {"rate": 0.5, "rows": 3, "pair": [1, 2]}


@pytest.mark.parametrize(
    ("state", "place"),
    [
        ({"a": {1: 2}}, "metadata.state.a"),
        ({"a": [0, object()]}, r"state.a\[1\]"),
        ({"w": np.ones(3)}, "state.w"),
    ],
)
def test_non_json_state_is_rejected_with_its_location(store, state, place):
    with pytest.raises(ValueError, match=place):
        store.save(1, [], state)
    assert store.steps() == []


@pytest.mark.parametrize(
    "blocks",
    [
        [np.zeros((3, 2), np.float32)],
        [np.zeros((5, 2), np.float32)],
        [np.zeros((4, 3), np.float32)],
        [np.zeros((4, 2), np.float64)],
        [np.zeros(8, np.float32)],
        [],
    ],
)
def test_wrong_blocks_are_rejected(store, blocks):
    save(store, 1)
    with pytest.raises(ValueError, match="'t' of shape"):
        store.save(2, [ArraySource("t", (4, 2), np.float32, lambda: iter(blocks))], {})
    assert [path.name for path in store.folder.iterdir()] == ["step-1"]


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "../a", "a/..", "a/./b", "a\nb", "a\0b", "x" * 401])
def test_unsafe_array_names_are_rejected(name):
    assert not is_array_name(name)
    with pytest.raises(ValueError, match="cannot name an array"):
        ArraySource.from_array(name, np.zeros(1))


def test_array_names_need_not_be_file_names(store):
    names = ["user id/é%", "Ad", "ad", "CON", "a b", "a-b", "x" * 400, ".hidden", "日本/語"]
    store.save(1, [ArraySource.from_array(name, np.array([n])) for n, name in enumerate(names)], {})
    checkpoint = store.open("last")
    assert [checkpoint.read(name)[0] for name in names] == list(range(len(names)))


def test_invalid_arguments_are_rejected(store):
    with pytest.raises(ValueError, match="dtype object"):
        ArraySource.from_array("a", np.array([object()]))
    with pytest.raises(ValueError, match="given twice: a"):
        store.save(1, [ArraySource.from_array("a", np.zeros(1))] * 2, {})
    with pytest.raises(ValueError, match="-1"):
        store.save(-1, [], {})
    with pytest.raises(ValueError, match="at least 1"):
        CheckpointStore(store.folder, keep=0)


def test_missing_array_is_named(store):
    save(store, 1)
    with pytest.raises(StorageError, match="no array 'wide'"):
        store.open("last").read("wide")


# Which are kept, and which are opened


def test_newest_and_best_are_kept(store):
    for step in range(1, 7):
        save(store, step, best=step in (1, 2))
    assert store.steps() == [2, 5, 6]
    assert store.best().step == 2
    check_content(store.open("best"), 2)
    check_content(store.open("last"), 6)


def test_without_a_best_the_newest_are_used(tmp_path, warnings):
    store = CheckpointStore(tmp_path, keep=3, warn=warnings.append)
    for step in range(1, 6):
        save(store, step)
    assert store.steps() == [3, 4, 5] and store.best() is None
    check_content(store.open("best"), 5)
    assert len(warnings) == 1 and "the last one, step 5, is used" in warnings[0]


def test_run_that_went_back_keeps_its_own_checkpoints(store):
    for step in (10, 20, 30):
        save(store, step, best=True)
    save(store, 15, best=True)
    check_content(store.open("last"), 15)
    check_content(store.open("best"), 15)
    save(store, 25)
    assert store.steps() == [15, 25]


def test_step_saved_again_is_replaced(store):
    save(store, 1)
    store.save(1, [ArraySource.from_array("other", np.ones(2))], {"again": True})
    assert store.steps() == [1] and store.open("last").state == {"again": True}
    assert [path.name for path in store.folder.iterdir()] == ["step-1"]


def test_open_by_path(store, tmp_path):
    for step in (1, 2):
        save(store, step)
    elsewhere = CheckpointStore(tmp_path / "elsewhere")
    check_content(elsewhere.open(str(store.folder / "step-1")), 1)
    check_content(elsewhere.open(str(store.folder)), 2)
    check_content(elsewhere.open(str(store.folder.parent)), 2)
    shutil.copytree(store.folder / "step-1", tmp_path / "my favourite")
    check_content(elsewhere.open(str(tmp_path / "my favourite")), 1)
    shutil.copytree(store.folder, tmp_path / "backup")
    check_content(elsewhere.open(str(tmp_path / "backup")), 2)


@pytest.mark.parametrize("which", ["last", "best", "nowhere", "x" * 5000, "/dev/null"])
def test_no_checkpoint_error_names_the_folder(store, which):
    with pytest.raises(NoCheckpointError, match="checkpoint") as error:
        store.open(which)
    assert isinstance(error.value, DataError)
    if which in ("last", "best"):
        assert str(store.folder) in str(error.value) and ("Train" in str(error.value))


def test_unfinished_saves_are_removed_by_the_next(store):
    path = save(store, 1)
    shutil.copytree(path, files.temporary_folder(store.folder / "step-9"))
    assert store.steps() == [1]
    check_content(store.open("last"), 1)
    save(store, 2)
    assert sorted(inner.name for inner in store.folder.iterdir()) == ["step-1", "step-2"]


# Damage


def damaged(store: CheckpointStore, folder: Path) -> str | None:
    """What `open` says about a folder; None where it took it."""
    try:
        store.open(str(folder))
    except NoCheckpointError as error:
        return str(error)
    return None


def test_every_flipped_bit_is_detected(store):
    folder = save(store, 5, best=True)
    chosen = random.Random(5)
    tried = 0
    for path in files_of(folder):
        content = path.read_bytes()
        for position in range(len(content)):
            changed = bytearray(content)
            changed[position] ^= 1 << chosen.randrange(8)
            path.write_bytes(changed)
            problem = damaged(store, folder)
            assert problem and path.name in problem, (path.name, position)
            tried += 1
        path.write_bytes(content)
    assert tried > 1000
    check_content(store.open(str(folder)), 5)


def test_damaged_files_are_detected(store):
    folder = save(store, 5)
    for path in files_of(folder):
        content = path.read_bytes()
        for changed in (*(content[:length] for length in range(0, len(content), 7)), content + b"\0", content + b" "):
            path.write_bytes(changed)
            assert path.name in damaged(store, folder)
        path.unlink()
        assert path.name in damaged(store, folder)
        path.mkdir()
        assert path.name in damaged(store, folder)
        path.rmdir()
        path.write_bytes(content)
    first, second, *_ = files_of(folder / "arrays")
    os.rename(first, folder / "aside")
    os.rename(second, first)
    os.rename(folder / "aside", second)
    assert damaged(store, folder)


@pytest.mark.parametrize("swapped", ["manifest.json", "arrays", "all"])
def test_files_swapped_between_steps_are_detected(store, tmp_path, swapped):
    first, second = save(store, 1), save(store, 2)
    one, two = (first, second) if swapped == "all" else (first / swapped, second / swapped)
    os.rename(one, tmp_path / "aside")
    os.rename(two, one)
    os.rename(tmp_path / "aside", two)
    assert damaged(store, first) and damaged(store, second)


def test_pipe_instead_of_a_file_does_not_block(store):
    folder = save(store, 1)
    path = files_of(folder / "arrays")[0]
    path.unlink()
    os.mkfifo(path)
    assert path.name in damaged(store, folder)


def array_entry(content: dict, **changes) -> None:
    content["arrays"]["deep/ad_id/table"].update(changes)


def file_entry(content: dict, **changes) -> None:
    next(iter(content["files"].values())).update(changes)


FORGERIES = {
    "another shape": lambda c: array_entry(c, shape=[2, 6]),
    "a huge shape": lambda c: array_entry(c, shape=[2**60, 2**60]),
    "a negative shape": lambda c: array_entry(c, shape=[-6, -2]),
    "a shape of truths": lambda c: array_entry(c, shape=[True, 12]),
    "no list for a shape": lambda c: array_entry(c, shape=12),
    "another dtype of the same width": lambda c: array_entry(c, dtype="int32"),
    "an object dtype": lambda c: array_entry(c, dtype="object"),
    "a list for a dtype": lambda c: array_entry(c, dtype=["float32"]),
    "a path upwards": lambda c: array_entry(c, file="../step-1/manifest.json"),
    "an absolute path": lambda c: array_entry(c, file="/etc/passwd"),
    "a path upwards in disguise": lambda c: array_entry(c, file="arrays/../../0000-x.npy"),
    "a number for a file": lambda c: array_entry(c, file=7),
    "text for a length": lambda c: file_entry(c, bytes="176"),
    "a fraction for a length": lambda c: file_entry(c, bytes=176.0),
    "a short checksum": lambda c: file_entry(c, sha256="abc"),
    "an unknown field": lambda c: array_entry(c, pickle="yes"),
    "a missing field": lambda c: c["arrays"]["deep/ad_id/table"].pop("dtype"),
    "an array name upwards": lambda c: c["arrays"].update({"../x": c["arrays"]["deep/ad_id/table"]}),
    "a list of arrays": lambda c: c.update(arrays=[]),
    "a number for an array": lambda c: c["arrays"].update(x=1),
    "a file upwards": lambda c: c["files"].update({"../x": {"bytes": 0, "sha256": "0" * 64}}),
    "an array in a file that is not listed": lambda c: array_entry(c, file="arrays/0009-x.npy"),
    "no metadata": lambda c: c.pop("metadata"),
    "a list of metadata": lambda c: c.update(metadata=[]),
    "another version": lambda c: c.update(version=1),
    "text for a step": lambda c: c["metadata"].update(step="1"),
    "another step": lambda c: c["metadata"].update(step=2),
    "no state": lambda c: c["metadata"].pop("state"),
    "a list for a state": lambda c: c["metadata"].update(state=[1]),
    "text for best": lambda c: c["metadata"].update(best="yes"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_manifest_is_rejected(store, forgery):
    folder = save(store, 1)
    rewrite_manifest(folder, FORGERIES[forgery])
    assert "manifest.json" in damaged(store, folder) or ".npy: holds" in damaged(store, folder)


def test_array_file_with_extra_bytes_is_rejected(store):
    folder = save(store, 1)
    path = files_of(folder / "arrays")[0]
    longer = path.read_bytes() + b"\0\0\0\0"
    path.write_bytes(longer)
    sums = {"bytes": len(longer), "sha256": hashlib.sha256(longer).hexdigest()}
    rewrite_manifest(folder, lambda content: content["files"][f"arrays/{path.name}"].update(sums))
    assert f"{path.name}: holds" in damaged(store, folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{",
        "[" * 100_000,
        '{"a":' * 100_000,
        "\xff",
        "1" * 5000,
        '{"manifest": {}, "sha256": ""}',
        "NaN",
    ],
)
def test_file_that_is_no_manifest_is_rejected(store, text):
    folder = save(store, 1)
    (folder / "manifest.json").write_bytes(text.encode("latin-1"))
    assert "manifest.json" in damaged(store, folder)


JSON_LEAVES = st.none() | st.integers() | st.text() | st.floats()
JSON = st.recursive(JSON_LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(JSON)
@settings(max_examples=100, deadline=None)
def test_manifest_of_random_types(tmp_path_factory, odd):
    folder = tmp_path_factory.mktemp("odd")
    for content in (odd, {"version": 2, "metadata": odd, "arrays": odd, "files": odd}):
        (folder / "manifest.json").write_text(_checksummed_text(content))
        try:
            manifest = read_manifest(folder)
        except DamagedError:
            continue
        assert odd == {} and manifest == Manifest(2, {}, {}, {})


def test_damaged_newest_is_skipped_with_a_warning(store, warnings):
    save(store, 1)
    newest = files_of(save(store, 2) / "arrays")[0]
    newest.write_bytes(newest.read_bytes()[:-1])
    check_content(store.open("last"), 1)
    assert len(warnings) == 1 and str(newest) in warnings[0] and "bytes" in warnings[0]


def test_unreadable_manifest_is_skipped_with_a_warning(store, warnings):
    save(store, 1)
    (save(store, 2) / "manifest.json").write_text("{")
    check_content(store.open("last"), 1)
    assert len(warnings) == 1 and "step-2" in warnings[0]


def test_error_names_all_damaged_checkpoints(store):
    for step in (1, 2):
        files_of(save(store, step) / "arrays")[0].write_bytes(b"")
    with pytest.raises(NoCheckpointError, match="(?s)step-2.*step-1"):
        store.open("last")


def test_damaged_best_is_an_error(store):
    best = files_of(save(store, 1, best=True) / "arrays")[0]
    save(store, 2)
    best.write_bytes(b"")
    with pytest.raises(NoCheckpointError, match="(?s)best.*damaged.*--checkpoint last"):
        store.open("best")


def test_damaged_checkpoint_does_not_replace_a_good_one(store):
    for step in (10, 20):
        save(store, step)
    files_of(store.folder / "step-20" / "arrays")[0].write_bytes(b"")
    check_content(store.open("last"), 10)
    save(store, 15)
    assert 10 in store.steps()
    files_of(store.folder / "step-15" / "arrays")[0].write_bytes(b"")
    check_content(store.open("last"), 10)


def test_warnings_go_to_stderr_by_default(tmp_path, capsys):
    store = CheckpointStore(tmp_path)
    save(store, 1)
    files_of(save(store, 2) / "arrays")[0].write_bytes(b"")
    store.open("last")
    assert "step-2" in capsys.readouterr().err


# Dying on the way


def test_files_are_synced_before_the_rename(store, monkeypatch):
    save(store, 1)
    events = []
    rename = os.rename

    def synced(descriptor):
        events.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))

    def renamed(source, target):
        events.append(("rename", Path(target).name))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    folder = save(store, 2)
    place = events.index(("rename", "step-2"))
    before = [re.sub(r"\.step-2-\w+\.unfinished", "step-2", path) for _, path in events[:place]]
    assert set(before) == {str(folder), str(folder / "arrays"), *map(str, files_of(folder))}
    assert before[-2:] == [str(folder / "manifest.json"), str(folder)]
    assert ("sync", str(store.folder)) in events[place:]


# A few of the lines in a usual run, every line in a run of all faults.
STRIDE = tries(quick=19, whole=1)


def killed_at_line(number: int, work) -> bool:
    """Runs `work` in a child that is killed when it comes to the n-th line of our code; False if it ended before."""
    child = os.fork()
    if child == 0:
        lines = 0

        def on_line(frame, event, argument):
            nonlocal lines
            if event == "line":
                lines += 1
                if lines == number:
                    os.kill(os.getpid(), signal.SIGKILL)
            return on_line

        def on_call(frame, event, argument):
            return on_line if frame.f_code.co_filename in (writer.__file__, checkpoints.__file__) else None

        sys.settrace(on_call)
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize(
    "again", [pytest.param(False, marks=pytest.mark.slow), True], ids=["a new step", "the same step again"]
)
def test_save_killed_at_any_line(tmp_path, warnings, again):
    prepared = tmp_path / "prepared"
    save(CheckpointStore(prepared, keep=1), 1)
    step = 1 if again else 2
    number, found = 0, set()
    killed = True
    while killed:
        number += STRIDE
        model_dir = tmp_path / "run"
        shutil.copytree(prepared, model_dir)
        store = CheckpointStore(model_dir, keep=1, warn=warnings.append)

        new_save = functools.partial(store.save, step, sources(tensors(step)), {"step": step, "new": True})
        killed = killed_at_line(number, new_save)

        assert len(store.steps()) == len(set(store.steps()))
        checkpoint = store.open("last")
        new = "new" in checkpoint.state
        found.add(new)
        for name, array in tensors(step if new else 1).items():
            np.testing.assert_array_equal(checkpoint.read(name), array)
        assert new or killed
        save(store, 3)
        assert [path.name for path in store.folder.iterdir()] == ["step-3"]
        shutil.rmtree(model_dir)
    assert number > 200 and found == {False, True} and not warnings


def test_amend_killed_at_any_line(tmp_path, warnings):
    prepared = tmp_path / "prepared"
    save(CheckpointStore(prepared), 1)
    number, found, killed = 0, set(), True
    while killed:
        number += STRIDE
        store = CheckpointStore(shutil.copytree(prepared, tmp_path / "run"), warn=warnings.append)
        killed = killed_at_line(number, functools.partial(store.amend, 1, {"step": 1, "new": True}, True))
        checkpoint = store.open("last")
        new = "new" in checkpoint.state
        assert (checkpoint.best, checkpoint.sequence) == (new, 1)
        found.add(new)
        for name, array in tensors(1).items():
            np.testing.assert_array_equal(checkpoint.read(name), array)
        assert new or killed
        save(store, 2)
        assert sorted(path.name for path in store.folder.iterdir()) == ["step-1", "step-2"]
        shutil.rmtree(tmp_path / "run")
    assert number > 20 and found == {False, True} and not warnings


def test_amended_checkpoint_becomes_the_best(store):
    save(store, 1, best=True)
    save(store, 2)
    save(store, 3)
    assert store.steps() == [1, 2, 3]
    store.amend(3, {"step": 3, "more": 1}, best=True)
    assert store.steps() == [2, 3] and store.open("best").state == {"step": 3, "more": 1}
    with pytest.raises(StorageError, match="step-9"):
        store.amend(9, {}, best=True)


def test_error_in_blocks_leaves_nothing_behind(store):
    save(store, 1)

    def blocks():
        yield np.zeros((1, 2), np.float32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.save(2, [ArraySource("t", (4, 2), np.float32, blocks)], {})
    assert [path.name for path in store.folder.iterdir()] == ["step-1"]


# No room, no permission


class FailingOs:
    """Makes the n-th call of any of the os functions that a save uses fail, once."""

    NAMES = ("fsync", "rename", "open", "mkdir")

    def __init__(self, monkeypatch, number: int) -> None:
        self.left = number
        for name in self.NAMES:
            monkeypatch.setattr(os, name, self.failing(getattr(os, name)))

    def failing(self, function):
        def call(*arguments, **options):
            self.left -= 1
            if self.left == 0:
                raise OSError(28, "No space left on device")
            return function(*arguments, **options)

        return call


def test_failing_system_calls(tmp_path, monkeypatch):
    failures = 0
    for number in range(1, 100):
        store = CheckpointStore(tmp_path / str(number), warn=lambda text: None)
        save(store, 1)
        with monkeypatch.context() as patched:
            failing = FailingOs(patched, number)
            try:
                save(store, 2)
            except StorageError as error:
                failures += 1
                assert str(store.folder / "step-2") in str(error)
                assert "No space left" in str(error) and "Free some room" in str(error)
        checkpoint = store.open("last")
        check_content(checkpoint, checkpoint.step)
        check_content(store.open(str(store.folder / "step-1")), 1)
        assert not list(store.folder.glob(".*"))
        if failing.left > 0:
            break
    assert failures > 8


def test_disk_full_during_a_save(store, tmp_path):
    save(store, 1)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            store.save(2, [ArraySource.from_array("t", np.zeros(1_000_000, np.uint8))], {})
            os._exit(3)
        except StorageError as error:
            os._exit(0 if "File too large" in str(error) and "step-2" in str(error) else 4)
        except BaseException:
            os._exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [path.name for path in store.folder.iterdir()] == ["step-1"]
    check_content(store.open("last"), 1)


def test_free_space_is_checked_first(store, monkeypatch):
    save(store, 1)
    full = {"f_frsize": 512, "f_blocks": 100, "f_bavail": 1, "f_files": 100, "f_favail": 100}
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(**full))
    with pytest.raises(StorageError, match=r"No space left on device \([0-9,]+ bytes are needed, 512 are free\)"):
        save(store, 2)
    full |= {"f_bavail": 100, "f_favail": 2}
    with pytest.raises(StorageError, match=r"[0-9]+ files and folders are needed, space for 2 is left"):
        save(store, 2)
    check_content(store.open("last"), 1)


def test_model_dir_that_cannot_be_created(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="--model_dir .*file/model: .*Not a directory"):
        probe(tmp_path / "file" / "model")


def test_read_only_model_dir(tmp_path, monkeypatch):
    def read_only(*arguments, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "mkdir", read_only)
    with pytest.raises(DataError, match="Read-only file system"):
        probe(tmp_path)


def test_probe_leaves_nothing_behind(tmp_path):
    probe(tmp_path / "new" / "model")
    assert not list((tmp_path / "new" / "model" / "checkpoints").iterdir())


# Model folders

FILES = {
    "architecture.json": {"model": "wide_deep", "units": [4, 2]},
    "feature_spec.yaml": "a: é\r\n",
    "workflow/encoders/vocabulary.ad id ü.json": {},
}


def test_model_folder_round_trips(tmp_path):
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 100_000)
    write_model(tmp_path / "model", sources(tensors(1)), FILES | {"workflow/binary.npy": tmp_path / "binary"})
    weights = open_model(tmp_path / "model")
    contents = {name: path.read_bytes() for name, path in weights.files.items()}
    assert contents.pop("workflow/binary.npy") == bytes(range(256)) * 100_000
    assert contents.pop("feature_spec.yaml").decode() == FILES["feature_spec.yaml"]
    assert {name: json.loads(text) for name, text in contents.items()} == {
        name: content for name, content in FILES.items() if isinstance(content, dict)
    }
    np.testing.assert_array_equal(weights.read("deep/ad_id/table"), tensors(1)["deep/ad_id/table"])
    assert json.loads((tmp_path / "model" / "architecture.json").read_text()) == FILES["architecture.json"]
    assert len(list((tmp_path / "model" / "weights").glob("*.npy"))) == 3


def test_model_folder_is_replaced_as_a_whole(tmp_path):
    write_model(tmp_path / "model", sources(tensors(1)), FILES)
    write_model(tmp_path / "model", sources(tensors(2)), {"architecture.json": {}})
    model = open_model(tmp_path / "model")
    assert list(model.files) == ["architecture.json"] and model.read("step") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_model_save_killed_between_renames(tmp_path):
    write_model(tmp_path / "model", sources(tensors(1)), FILES)
    shutil.copytree(tmp_path / "model", files.temporary_folder(tmp_path / "model"))
    os.rename(tmp_path / "model", tmp_path / "model.replaced")
    assert open_model(tmp_path / "model").read("step") == 1
    write_model(tmp_path / "model", sources(tensors(2)), FILES)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_damaged_model_folder_is_detected(tmp_path):
    write_model(tmp_path / "model", sources(tensors(1)), FILES)
    for path in files_of(tmp_path / "model"):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 4]))
        with pytest.raises(NoCheckpointError, match=path.name):
            open_model(tmp_path / "model")
        path.write_bytes(content)


def test_missing_model_folder(tmp_path):
    with pytest.raises(NoCheckpointError, match="no valid model in .*Train first"):
        open_model(tmp_path / "model")


@pytest.mark.parametrize("name", ["../x", "a/../x", "/x", "a/.x", "manifest.json", "", ".", "a\0", "a" * 256])
def test_unsafe_file_names_are_rejected(tmp_path, name):
    with pytest.raises(ValueError, match="cannot name a file"):
        write_model(tmp_path / "model", [], {name: ""})


def test_unreadable_source_file_keeps_the_old_model(tmp_path):
    write_model(tmp_path / "model", sources(tensors(1)), FILES)
    with pytest.raises(StorageError, match="cannot save .*model: No such file"):
        write_model(tmp_path / "model", sources(tensors(2)), {"gone": tmp_path / "gone"})
    assert open_model(tmp_path / "model").read("step") == 1


def test_array_truncated_after_verification(tmp_path):
    write_model(tmp_path / "model", sources(tensors(1)), {})
    folder = ChecksummedDir(tmp_path / "model")
    folder.verify()
    for path in files_of(tmp_path / "model" / "weights"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedError, match="ends too early"):
        folder.read("deep/ad_id/table")
