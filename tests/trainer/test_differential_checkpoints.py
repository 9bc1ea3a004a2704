"""Checkpoints that hold only the rows that have changed since a full one."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from data.storage import arrays as storage_arrays
from data.storage.arrays import ArraySource
from data.storage.checksummed_dir import StorageError
from main import main
from tests.helpers import ROOT, losses, make_dataset, metrics, must
from tests.manifests import rewrite_manifest
from tests.trainer.local_workers import run_workers
from trainer.checkpoint import manager
from trainer.checkpoint.background_writer import Handover
from trainer.checkpoint.run_state import Position
from trainer.checkpoint.state import TrainState
from trainer.checkpoint.store import Checkpoint, CheckpointStore, NoCheckpointError
from trainer.comm import SingleWorker
from trainer.embeddings.groups import TableGroup
from trainer.embeddings.touched_rows import TouchedRows
from trainer.layout import CategoricalInput
from trainer.variables import TableRows

pytestmark = pytest.mark.long

ROWS = 40
TABLE, NUMBERS = "deep.ad_id", "row_numbers/ad_id"


def values(step: int) -> dict[str, np.ndarray]:
    """The arrays of a step: a multiple of 10 changes all rows, another step some of those of the multiple before."""
    chosen = np.random.default_rng(step)
    table = chosen.normal(size=(ROWS, 3)).astype(np.float32)
    if step % 10:
        changed, table = table, values(step - step % 10)[TABLE].copy()
        table[changed_rows(step)] = changed[changed_rows(step)]
    return {TABLE: table, "bias": chosen.normal(size=2)}


def changed_rows(step: int) -> np.ndarray:
    return np.flatnonzero(np.random.default_rng([step]).random(ROWS) < 0.2)


def save(store: CheckpointStore, step: int, *, best: bool = False) -> Path:
    found = values(step)
    if step % 10 == 0:
        return store.save(step, [ArraySource.from_array(*item) for item in found.items()], {}, best)
    numbers = changed_rows(step)
    found |= {TABLE: found[TABLE][numbers], NUMBERS: numbers}
    sources = [ArraySource.from_array(*item) for item in found.items()]
    return store.save(step, sources, {}, full=step - step % 10, row_numbers={TABLE: NUMBERS})


def check(checkpoint: Checkpoint, step: int) -> None:
    assert checkpoint.step == step
    assert checkpoint.arrays == {name: (array.shape, array.dtype) for name, array in values(step).items()}
    for name, array in values(step).items():
        np.testing.assert_array_equal(checkpoint.read(name), array)


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path, warnings) -> CheckpointStore:
    return CheckpointStore(tmp_path, warn=warnings.append)


# Reading and writing


@given(st.sets(st.integers(0, 29)), st.integers(0, 30), st.integers(0, 30), st.integers(0, 2**32 - 1))
@settings(max_examples=12, deadline=None)
def test_any_rows_of_a_difference_are_those_of_the_changed_table(tmp_path_factory, changed, start, stop, seed):
    random = np.random.default_rng(seed)
    before, numbers = random.normal(size=(30, 2)), np.array(sorted(changed), np.int64)
    after = before.copy()
    after[numbers] = random.normal(size=(len(numbers), 2))
    store = CheckpointStore(tmp_path_factory.mktemp("model"))
    store.save(1, [ArraySource.from_array(TABLE, before)], {})
    parts = [ArraySource.from_array(TABLE, after[numbers]), ArraySource.from_array(NUMBERS, numbers)]
    store.save(2, parts, {}, full=1, row_numbers={TABLE: NUMBERS})
    opened = store.open("last")
    start, stop = sorted((start, stop))
    np.testing.assert_array_equal(opened.read_rows(TABLE, start, stop), after[start:stop])
    np.testing.assert_array_equal(opened.read(TABLE), after)
    np.testing.assert_array_equal(store.open(str(store.folder / "step-1")).read(TABLE), before)


def test_a_difference_holds_what_has_changed(store):
    full, part = save(store, 10), save(store, 13)
    sizes = {path.name: path.stat().st_size for path in (part / "arrays").iterdir()}
    header = (full / "arrays" / "0000-deep.ad_id.npy").stat().st_size - 4 * 3 * ROWS
    assert sizes["0000-deep.ad_id.npy"] == header + 4 * 3 * len(changed_rows(13))
    check(store.open("last"), 13)
    # It can be saved elsewhere as a full one, block by block.
    elsewhere = CheckpointStore(store.folder / "elsewhere")
    opened = store.open("last")
    elsewhere.save(13, [opened.source(name) for name in opened.arrays], {})
    check(elsewhere.open("last"), 13)


def test_a_difference_needs_its_full_checkpoint(store, tmp_path):
    save(store, 10)
    shutil.copytree(save(store, 13), tmp_path / "alone" / "step-13")
    with pytest.raises(NoCheckpointError, match=r"changed since step 10, and is unusable without it: .*step-10"):
        store.open(str(tmp_path / "alone" / "step-13"))
    with pytest.raises(StorageError, match="step-20"):
        store.save(23, [], {}, full=20, row_numbers={})
    assert store.steps() == [10, 13]


FORGERIES = {
    "a step that is not before its own": lambda content: content["metadata"]["difference"].update(full=13),
    "text for a step": lambda content: content["metadata"]["difference"].update(full="10"),
    "no row numbers": lambda content: content["metadata"]["difference"].pop("row_numbers"),
    "an unknown array": lambda content: content["metadata"]["difference"]["row_numbers"].update(x=NUMBERS),
    "values for numbers": lambda content: content["metadata"]["difference"]["row_numbers"].update({TABLE: "bias"}),
    "numbers for other rows": lambda content: content["metadata"]["difference"]["row_numbers"].update(bias=NUMBERS),
    "another checksum": lambda content: content["metadata"]["difference"].update(content_sha256="0" * 64),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_difference_is_rejected(store, forgery):
    save(store, 10)
    folder = save(store, 13)
    rewrite_manifest(folder, FORGERIES[forgery])
    with pytest.raises(NoCheckpointError, match="step-13"):
        store.open(str(folder))
    check(store.open("last"), 10)


@pytest.mark.parametrize("numbers", [[3, 2], [2, 2], [-1, 2], [2, ROWS]])
def test_impossible_row_numbers_are_rejected(store, numbers):
    save(store, 10)
    parts = {TABLE: np.zeros((2, 3), np.float32), NUMBERS: np.array(numbers)}
    sources = [ArraySource.from_array(*item) for item in parts.items()]
    store.save(13, sources, {}, full=10, row_numbers={TABLE: NUMBERS})
    check(store.open("last"), 10)


# Damage, and which are kept


@pytest.mark.parametrize(("damaged", "left"), [((23,), 22), ((22, 23), 21), ((20,), 10), ((20, 21, 22, 23), 10)])
def test_damage_falls_back_to_what_is_intact(tmp_path, warnings, damaged, left):
    store = CheckpointStore(tmp_path, keep=9, warn=warnings.append)
    for step in (10, 20, 21, 22, 23):
        save(store, step)
    for step in damaged:
        path = store.folder / f"step-{step}" / "arrays" / "0000-deep.ad_id.npy"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    check(store.open("last"), left)
    assert len(warnings) == (4 if 20 in damaged else len(damaged))
    assert all("checksum differs" in warning for warning in warnings)


def test_damage_between_differences_does_not_spread(store, warnings):
    for step in (10, 11, 12):
        save(store, step)
    shutil.rmtree(store.folder / "step-11")
    check(store.open("last"), 12)
    assert not warnings


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=9), st.integers(1, 3))
@settings(max_examples=12, deadline=None)
def test_what_a_kept_difference_refers_to_is_kept(tmp_path_factory, saves, keep):
    store = CheckpointStore(tmp_path_factory.mktemp("model"), keep=keep, warn=pytest.fail)
    steps, full, best = [], 0, None
    for number, (is_full, is_best) in enumerate(saves, 1):
        full = 10 * number if is_full or not full else full
        step = full if is_full or not steps else full + number
        if step in steps:
            continue
        is_best = is_best and step == full
        save(store, step, best=is_best)
        steps.append(step)
        best = step if is_best else best
        expected = {*steps[-keep:], *[one for one in steps if one % 10 == 0][-keep:]} | ({best} - {None})
        assert store.steps() == [one for one in steps if one in expected]
        for one in expected:
            check(store.open(str(store.folder / f"step-{one}")), one)


def test_what_a_difference_with_a_file_of_somebody_else_refers_to_is_kept(tmp_path, warnings):
    store = CheckpointStore(tmp_path, keep=1, warn=warnings.append)
    save(store, 10)
    (save(store, 11) / "notes.txt").write_text("mine")
    for step in (20, 21, 30):
        save(store, step)
    assert store.steps() == [10, 11, 30] and len(warnings) == 1 and "step-11 is kept" in warnings[0]


def test_a_replaced_full_checkpoint_takes_its_differences_along(store, warnings):
    for step in (10, 11):
        save(store, step)
    store.save(10, [ArraySource.from_array(TABLE, values(20)[TABLE])], {})  # by a run that has gone back
    assert store.steps() == [10] and not (store.folder / "step-11").exists()
    np.testing.assert_array_equal(store.open("last").read(TABLE), values(20)[TABLE])
    assert not warnings


# What has changed


def features(*sizes: int) -> tuple[CategoricalInput, ...]:
    return tuple(CategoricalInput(f"f{index}", index, 1, False, size, 2) for index, size in enumerate(sizes))


@given(st.integers(1, 3), st.lists(st.sets(st.integers(0, 19)), max_size=6))
@settings(max_examples=12, deadline=None)
def test_rows_of_all_workers_are_found(workers, looked_up):
    """Worker n looks up every n-th set of rows of a group of two tables."""
    group = TableGroup(features(13, 7), "both")

    def work(comm):  # type: ignore[no-untyped-def]
        touched = TouchedRows([group])
        touched.add([np.arange(20)])
        touched.clear()
        for rows in looked_up[comm.rank :: workers]:
            touched.add([np.array(sorted(rows), np.int64)])
        return touched.of_all_workers(comm)

    union = set().union(*looked_up)
    for found in run_workers(workers, work):
        assert found["both/f0"].tolist() == sorted(row for row in union if row < 13)
        assert found["both/f1"].tolist() == sorted(row - 13 for row in union if row >= 13)


@pytest.mark.parametrize(("saved_by", "restored_by"), [(1, 2), (3, 1), (2, 3)])
def test_differences_do_not_depend_on_the_workers(tmp_path, monkeypatch, saved_by, restored_by):
    """Tables of 16 and 7 rows in one variable, with a slot per row, sharded over the workers."""
    monkeypatch.setattr(storage_arrays, "BLOCK_BYTES", 4 * 2 * 4)  # blocks of four rows
    before, after = np.arange(46, dtype=np.float32).reshape(23, 2), np.arange(46, dtype=np.float32).reshape(23, 2)
    chosen = {"first": np.array([0, 1, 5, 6, 7, 11, 15]), "second": np.array([], np.int64)}
    after[chosen["first"]] += 100

    def state_of(comm, table):  # type: ignore[no-untyped-def]
        own = {
            "": tf.Variable(table[comm.rank :: comm.size]),
            ".last_step": tf.Variable(table[comm.rank :: comm.size, 0]),
        }
        rows = {
            name + suffix: TableRows(variable, first, count, comm.rank, comm.size, name)
            for suffix, variable in own.items()
            for name, first, count in (("first", 0, 16), ("second", 16, 7))
        }
        return TrainState(rows | {"bias": tf.Variable(table[0])}, comm)

    def save_both(comm):  # type: ignore[no-untyped-def]
        store = CheckpointStore(tmp_path)
        for step, table, rows in ((1, before, None), (2, after, chosen)):
            state = state_of(comm, table)
            if comm.rank != 0:
                state.take_part_in_save(rows)
                continue
            refers = {} if rows is None else {"full": 1, "row_numbers": state.row_numbers}
            handover = Handover(state.sources(rows), collective=state.sharded)
            with ThreadPoolExecutor(1) as pool:
                saved = pool.submit(handover.save, lambda arrays: store.save(step, arrays, {}, **refers))  # noqa: B023
                handover.fill()
                saved.result()

    def restore(comm):  # type: ignore[no-untyped-def]
        state = state_of(comm, 0 * before)
        state.restore(CheckpointStore(tmp_path).open("last") if comm.rank == 0 else None)
        return {name: getattr(rows, "variable", rows).numpy() for name, rows in state.variables.items()}

    run_workers(saved_by, save_both)
    assert CheckpointStore(tmp_path).open("last").full is not None
    for worker, found in enumerate(run_workers(restored_by, restore)):
        np.testing.assert_array_equal(found["first"], after[worker::restored_by])
        np.testing.assert_array_equal(found["second.last_step"], after[worker::restored_by, 0])
        np.testing.assert_array_equal(found["bias"], after[0])


# Whole runs

BATCH, PER_EPOCH, EPOCHS, SAVE_EVERY = 64, 11, 2, 2
SAVED = [2, 4, 6, 8, 10, 11, 12, 14, 16, 18, 20, 22]
FULL = [2, 8, 11, 16, 22]  # at the end of an epoch, and each third within one


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    spec = ROOT / "feature_specs" / "two_labels.yaml"
    return make_dataset(tmp_path_factory.mktemp("differences"), spec, rows=BATCH * (PER_EPOCH - 1) + 20)


def train(data: Path, folder: Path, *more: str) -> None:
    """Trains lists and single ids with Adam, whose moments decay with the time since a row's last update, and FTRL."""
    places = {"--dataset_path": data, "--model_dir": folder / "models", "--results_dir": folder / "results"}
    flags = (
        f"--model wide_deep --deep_hidden_units 8 --optimizer adam --global_batch_size {BATCH} --eval_batch_size 512"
    )
    flags += (
        f" --num_epochs {EPOCHS} --cpu --recipe published --deterministic --log_every 1 --checkpoint_every {SAVE_EVERY}"
    )
    flags += " --keep_checkpoints 99"
    must(main([*(str(part) for place in places.items() for part in place), *flags.split(), *more]))


def saved(folder: Path, step: int) -> Checkpoint:
    return Checkpoint(folder / "models" / "checkpoints" / f"step-{step}")


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    assert one.arrays == other.arrays and one.state["position"] == other.state["position"]
    for name in one.arrays:
        np.testing.assert_array_equal(one.read(name), other.read(name), err_msg=f"{name}, {one.path}")


@pytest.mark.slow
def test_resume_from_a_difference_equals_that_from_a_full_checkpoint(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(manager, "LEAST_SAVING", 0)
    full, whole, resumed = (tmp_path / name for name in ("full", "whole", "resumed"))
    train(data, full, "--full_checkpoint_every", "1")
    train(data, whole, "--full_checkpoint_every", "3")
    for step in SAVED:
        assert saved(full, step).full is None and (saved(whole, step).full is None) == (step in FULL), step
        assert_same(saved(whole, step), saved(full, step))
    save_of_store = CheckpointStore.save

    def fails_once(store, step, *more, **facts):  # type: ignore[no-untyped-def]
        if step == 18:
            raise StorageError("cannot save step 18: no room")
        return save_of_store(store, step, *more, **facts)

    monkeypatch.setattr(CheckpointStore, "save", fails_once)
    train(data, resumed, "--use_checkpoint", "--checkpoint", str(saved(whole, 14).path))
    assert "cannot save step 18" in capsys.readouterr().err
    # The first of a process is full, and so is the one after a failure.
    assert [saved(resumed, step).full is None for step in (16, 20, 22)] == [True, True, True]
    assert_same(saved(resumed, 22), saved(full, 22))
    assert losses(resumed / "results") == {at: loss for at, loss in losses(full / "results").items() if at > 14}
    assert metrics(resumed / "results") == metrics(full / "results")


def test_a_difference_has_to_be_much_smaller(tmp_path):
    """A checkpoint that would not be smaller by 64 MiB is full, and so is one that most rows would be in."""
    comm, options = SingleWorker(), SimpleNamespace(full_checkpoint_every=9, keep_checkpoints=2)
    config = SimpleNamespace(run=options, data=SimpleNamespace(model_dir=tmp_path))
    touched = TouchedRows([TableGroup(features(1 << 20), "large")])

    def chosen(width: int, rows: int):  # type: ignore[no-untyped-def]
        checkpoints = manager.CheckpointManager(config, None, SimpleNamespace(features=()), comm, None, {}, touched)
        checkpoints._full_step = 1
        touched.clear()
        touched.add([np.arange(rows)])
        table = SimpleNamespace(shape=(1 << 20, width), dtype=tf.float32)
        return checkpoints.rows_to_save(TrainState({"t": TableRows(table, 0, 1 << 20, key="large/f0")}), Position(0, 5))

    assert chosen(17, 1000)["large/f0"].tolist() == list(range(1000))  # of 68 MiB
    assert chosen(16, 1000) is None  # of 64 MiB
    assert chosen(200, 1 << 18) is not None and chosen(200, 1 << 19) is None
