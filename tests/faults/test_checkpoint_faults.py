"""Damaged checkpoints and killed saves: only intact checkpoints can be opened."""

import builtins
import io
import itertools
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.storage.arrays import ArraySource
from tests.faults.matrix import record, tries
from trainer.checkpoint.store import CheckpointStore, NoCheckpointError

STEPS = (10, 20, 30)


def tensors(step: int) -> dict[str, np.ndarray]:
    """Arrays of random values, different in every step; between multiples of 10, only some rows of the table are."""
    values = np.random.default_rng(step)
    if step % 10:
        found = tensors(step - step % 10)
        found["deep/table"][::step] = values.normal(size=found["deep/table"][::step].shape)
        return found | {"step": np.array(step)}
    return {
        "deep/table": values.normal(size=(300, 8)).astype(np.float32),
        "deep/table/mean_square": values.normal(size=(300, 8)).astype(np.float32),
        "deep/dense/bias": values.normal(size=7).astype(np.float32),
        "step": np.array(step),
    }


def save(store: CheckpointStore, step: int, **options) -> Path:
    """Saves a full checkpoint, or between multiples of 10 what has changed since the last one."""
    arrays = tensors(step)
    if step % 10:
        numbers = np.arange(0, 300, step)
        tables = {name: array[numbers] for name, array in arrays.items() if array.ndim == 2}
        arrays |= tables | {"numbers": numbers}
        options |= {"full": step - step % 10, "row_numbers": dict.fromkeys(tables, "numbers")}
    sources = [ArraySource.from_array(name, array) for name, array in arrays.items()]
    return store.save(step, sources, {"step": step}, **options)


def check_content(checkpoint, step: int) -> None:
    """Checks that every value is the saved one."""
    assert checkpoint.step == step and checkpoint.state["step"] == step
    assert set(checkpoint.arrays) == set(tensors(step))
    for name, array in tensors(step).items():
        assert checkpoint.read(name).tobytes() == array.tobytes(), name


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# Damage


def flip_a_bit(folder: Path, chosen: random.Random) -> None:
    path = chosen.choice(files_of(folder))
    content = bytearray(path.read_bytes())
    content[chosen.randrange(len(content))] ^= 1 << chosen.randrange(8)
    path.write_bytes(content)


def cut_a_file(folder: Path, chosen: random.Random) -> None:
    path = chosen.choice(files_of(folder))
    os.truncate(path, chosen.randrange(path.stat().st_size))


def empty_a_file(folder: Path, chosen: random.Random) -> None:
    os.truncate(chosen.choice(files_of(folder)), 0)


def delete_a_file(folder: Path, chosen: random.Random) -> None:
    chosen.choice(files_of(folder)).unlink()


def swap_two_files(folder: Path, chosen: random.Random) -> None:
    one, other = chosen.sample(files_of(folder), 2)
    exchange(one, other)


def swap_with_the_step_before(folder: Path, chosen: random.Random) -> None:
    path = chosen.choice(files_of(folder))
    before = folder.with_name(f"step-{STEPS[-2]}")
    exchange(path, before / path.relative_to(folder))


def exchange(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    os.rename(one, aside)
    os.rename(other, one)
    os.rename(aside, other)


# Damage -> its row in the table, and the last intact step afterwards.
DAMAGES: dict[Callable[[Path, random.Random], None], tuple[str, int]] = {
    flip_a_bit: ("a random bit flipped in a checkpoint", 20),
    cut_a_file: ("a file of a checkpoint cut", 20),
    empty_a_file: ("a file of a checkpoint emptied", 20),
    delete_a_file: ("a file of a checkpoint deleted", 20),
    swap_two_files: ("two files of a checkpoint swapped", 20),
    swap_with_the_step_before: ("a file swapped with an earlier checkpoint's", 10),
}


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory) -> Path:
    """A model folder with three good checkpoints."""
    model_dir = tmp_path_factory.mktemp("three steps")
    for step in STEPS:
        save(CheckpointStore(model_dir, keep=3), step)
    return model_dir


def outcome_of(model_dir: Path, last_intact: int | None) -> str | None:
    """Returns what went wrong when "last" was opened with a damaged newest checkpoint; None if nothing did."""
    warnings: list[str] = []
    store = CheckpointStore(model_dir, keep=3, warn=warnings.append)
    try:
        checkpoint = store.open("last")
    except NoCheckpointError as error:
        return None if last_intact is None and f"step-{STEPS[-1]}" in str(error) else f"rejected: {error}"
    if last_intact is None:
        return f"step {checkpoint.step} was accepted"
    check_content(checkpoint, last_intact)
    return None if f"step-{STEPS[-1]}" in "".join(warnings) else f"warned only of {warnings}"


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_never_accepted(three_steps, tmp_path, damage):
    fault, last_intact = DAMAGES[damage]
    number = tries(quick=8, whole=52)
    problems, seconds = [], []
    for seed in range(number):
        # Every second try has no earlier checkpoint to fall back on.
        expected = last_intact if seed % 2 else None
        model_dir = shutil.copytree(three_steps, tmp_path / str(seed))
        folder = model_dir / "checkpoints" / f"step-{STEPS[-1]}"
        damage(folder, random.Random(f"{damage.__name__} {seed}"))
        for step in STEPS[:-1] if expected is None else ():
            shutil.rmtree(folder.with_name(f"step-{step}"))
        started = time.perf_counter()
        problem = outcome_of(model_dir, expected)
        seconds.append(time.perf_counter() - started)
        if problem is not None:
            problems.append(f"try {seed}: {problem}")
        shutil.rmtree(model_dir)
    record(fault, number, number - len(problems), seconds)
    assert not problems, problems


# Kills

CALLS = ("mkdir", "rename", "replace", "fsync", "unlink", "rmdir")


class Deadly:
    """Counts this process's system calls that change files, and kills the process at the n-th.

    Args:
        number: the call before which the process dies; a write is half done first.
        output: file descriptor to which the name of that call is written first.
    """

    def __init__(self, number: int, output: int) -> None:
        self._left, self._output = number, output
        self._opened = open

    def install(self) -> None:
        for name in CALLS:
            setattr(os, name, self._counted(name, getattr(os, name)))
        builtins.open = self._open  # type: ignore[assignment]

    def count(self, name: str, last_act: Callable[[], object] = lambda: None) -> None:
        self._left -= 1
        if self._left == 0:
            last_act()
            os.write(self._output, name.encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def _counted(self, name: str, function: Callable) -> Callable:
        def call(*arguments, **options):
            self.count(name)
            return function(*arguments, **options)

        return call

    def _open(self, path, mode="r", *arguments, **options):
        if "x" not in mode and "w" not in mode:
            return self._opened(path, mode, *arguments, **options)
        self.count("open")
        return io.BufferedWriter(DeadlyFile(path, mode.replace("b", ""), self))


class DeadlyFile(io.FileIO):
    """A file whose write calls are counted."""

    def __init__(self, path: Path, mode: str, deadly: Deadly) -> None:
        super().__init__(path, mode)
        self._deadly = deadly

    def write(self, data) -> int:
        self._deadly.count("write", lambda: super(DeadlyFile, self).write(memoryview(data)[: len(data) // 2]))
        return super().write(data)


def killed_at_call(number: int, work: Callable[[], object]) -> str | None:
    """Runs `work` in a process that is killed at the n-th call that changes files.

    Returns:
        The call, or None if the process ended before.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            Deadly(number, writing).install()
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as output:
        call = output.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == (-signal.SIGKILL if call else 0)
    return call or None


def first_of_one(model_dir: Path) -> Callable[[], object]:
    """Saves a second checkpoint."""
    save(CheckpointStore(model_dir), 10)
    return lambda: save(CheckpointStore(model_dir), 20)


def instead_of_the_last(model_dir: Path) -> Callable[[], object]:
    """Saves the last checkpoint again as the best one, which removes the earlier best one."""
    store = CheckpointStore(model_dir, keep=1)
    save(store, 10, best=True)
    save(store, 20)
    return lambda: save(CheckpointStore(model_dir, keep=1), 20, best=True)


def instead_of_the_only(model_dir: Path) -> Callable[[], object]:
    """Saves the only checkpoint again."""
    save(CheckpointStore(model_dir), 20)
    return lambda: save(CheckpointStore(model_dir), 20)


def of_what_has_changed(model_dir: Path) -> Callable[[], object]:
    """Saves what has changed since a full checkpoint, which removes the differential one before."""
    store = CheckpointStore(model_dir, keep=1)
    save(store, 10)
    save(store, 13)
    return lambda: save(CheckpointStore(model_dir, keep=1), 17)


SAVES = [of_what_has_changed, instead_of_the_last, instead_of_the_only, first_of_one]


@pytest.mark.parametrize("saved", SAVES[: tries(quick=1, whole=4)], ids=lambda saved: saved.__name__)
def test_save_killed_at_any_call_keeps_a_checkpoint(tmp_path, saved):
    calls, found, seconds, problems = [], set(), [], []
    for number in itertools.count(1):
        model_dir = tmp_path / str(number)
        call = killed_at_call(number, saved(model_dir))
        if call is None:
            break
        calls.append(call)
        warnings: list[str] = []
        store = CheckpointStore(model_dir, warn=warnings.append)
        started = time.perf_counter()
        try:
            checkpoint = store.open("last")
            seconds.append(time.perf_counter() - started)
            check_content(checkpoint, checkpoint.step)
            found.add(checkpoint.sequence)
            save(store, 30)
            check_content(store.open("last"), 30)
        except (NoCheckpointError, AssertionError) as error:
            problems.append(f"call {number}, {call}: {error}")
        if left := [path.name for path in store.folder.iterdir() if not path.name.startswith("step-")]:
            problems.append(f"call {number}, {call}: {left} stay for ever")
        if warnings:
            problems.append(f"call {number}, {call}: {warnings}")
        shutil.rmtree(model_dir)
    record("kill -9 at every stage of a save", len(calls), len(calls) - len(problems), seconds)
    assert not problems, problems
    # Both the state before and the state after the save occurred, and every kind of call was hit.
    assert len(found) == 2
    assert {"mkdir", "open", "write", "fsync", "rename"} <= set(calls)
    assert saved is first_of_one or {"unlink", "rmdir"} <= set(calls)
