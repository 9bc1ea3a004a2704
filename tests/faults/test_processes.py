"""Workers that are killed, stopped or asked to end, under supervise.py and horovodrun: the result is the same.

Every run ends with bit-equal weights of an undisturbed run, and every step logs the same loss after every restart: no
step is lost or applied twice, and no row moves to another step.
"""

import json
import random
import signal
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.faults.jobs import SupervisedJob, last_arrays, logged_losses
from tests.faults.matrix import record, tries
from tests.helpers import ROOT, make_dataset, metrics, words
from trainer.lifecycle.errors import DONE, HANG, STOPPED
from trainer.lifecycle.processes import carries, start_time
from trainer.lifecycle.records import JOB_VARIABLE

pytestmark = pytest.mark.horovod

ROWS, BATCH, EPOCHS, SAVE_EVERY = tries(quick=4_000, whole=8_000), 64, 3, 20
STEPS = EPOCHS * -(-ROWS // BATCH)
HANG_SECONDS = 5.0


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A folder with a dataset and an undisturbed run of two workers."""
    folder = tmp_path_factory.mktemp("faults")
    make_dataset(folder, ROOT / "feature_specs" / "with_map.yaml", rows=ROWS)
    job = SupervisedJob(arguments(folder), folder / "undisturbed")
    assert job.finish() == DONE, job.output()[-3000:]
    return folder


def arguments(folder: Path, *more: str) -> list[str]:
    flags = ["--dataset_path", str(folder / "data"), "--global_batch_size", str(BATCH), "--num_epochs", str(EPOCHS)]
    flags += words("--deep_hidden_units 16 --deep_learning_rate 0.002 --cpu --recipe published --deterministic")
    return [*flags, "--log_every", "1", "--checkpoint_every", str(SAVE_EVERY), *more]


def targets(count: int, source: random.Random) -> list[int]:
    """Random steps in ascending order with some distance between them."""
    stretch = (STEPS - 20) // count
    return [index * stretch + source.randrange(5, stretch - SAVE_EVERY) for index in range(count)]


def assert_as_if_nothing_had_happened(folder: Path, job: SupervisedJob) -> None:
    undisturbed = folder / "undisturbed"
    step, arrays = last_arrays(job.models)
    expected_step, expected = last_arrays(undisturbed / "models")
    assert step == expected_step == STEPS
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    losses = dict(logged_losses(undisturbed / "results"))
    found = logged_losses(job.results)
    assert sorted({step for step, _ in found}) == sorted(losses)
    assert [losses[step] for step, _ in found] == [loss for _, loss in found]
    assert metrics(job.results) == metrics(undisturbed / "results")


def timeline(results: Path) -> list[dict]:
    return [json.loads(line) for line in (results / "supervise.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("run", range(tries(quick=1, whole=2)))
def test_restarted_runs_end_with_the_same_weights(work, run):
    kills = tries(quick=1, whole=10)
    source = random.Random(run)
    job = SupervisedJob(arguments(work), work / f"killed-{run}", restarts=kills)
    for target in targets(kills, source):
        job.wait_for_step(target)
        job.send(signal.SIGKILL, source.randrange(2))
        job.wait_for("a restart", lambda: not job.is_training())
    code = job.finish()
    pauses = [line["seconds_without_training"] for line in timeline(job.results) if line["event"] == "registered"]
    pauses = [seconds for seconds in pauses if seconds is not None]
    survived = code == DONE and len(pauses) == kills
    record("kill -9 of a random worker at a random step, restarted", kills, kills if survived else 0, pauses)
    assert code == DONE, job.output()[-3000:]
    steps = [step for step, _ in logged_losses(job.results)]
    recomputed = [before - after + 1 for before, after in pairwise(steps) if after <= before]
    # Those since the last checkpoint, and while it was being written.
    assert len(recomputed) <= kills and max(recomputed) <= 3 * SAVE_EVERY
    assert not job.orphans()
    assert_as_if_nothing_had_happened(work, job)


class Soak:
    """A job that is killed repeatedly and restarted with the same command at once.

    Args:
        work: holds the dataset.
        folder: of the run.
        source: of all that is random.
    """

    def __init__(self, work: Path, folder: Path, source: random.Random):
        self._work, self._folder, self._source = work, folder, source
        self._killed: set[tuple[int, int | None]] = set()
        self.jobs: set[str] = set()
        self.seconds: list[float] = []
        self.job = self._start()

    def _start(self) -> SupervisedJob:
        return SupervisedJob(arguments(self._work), self._folder, restarts=30)

    def is_up(self) -> bool:
        """Whether all workers of the latest start have begun, and none has ended."""
        workers = {(record["pid"], record["started"]) for record in self.job.records()}
        self.jobs |= {record["job"] for record in self.job.records()}
        return self.job.is_training() and not workers & self._killed

    def wait_for_step(self, step: int) -> None:
        self.job.wait_for(f"step {step}", lambda: self.is_up() and self.job.last_step() >= step)

    def kill_worker(self) -> None:
        self.job.wait_for("all workers", self.is_up)
        records = self.job.records()
        self.job.send(signal.SIGKILL, self._source.randrange(2))
        self._killed |= {(record["pid"], record["started"]) for record in records}

    def kill_supervisor(self) -> None:
        """Kills it, starts the same command at once, and waits until nothing is left of the killed one's job."""
        self._killed |= {(record["pid"], record["started"]) for record in self.job.records()}
        pids = [int(process.partition(":")[0]) for process in self.job.orphans()]
        left = {pid: start_time(pid) for pid in pids if pid != self.job.process.pid}
        self.job.process.kill()
        begun = time.monotonic()
        assert self.job.process.wait() == -signal.SIGKILL  # and had not ended before, with whatever code
        self.job = self._start()
        alive = {pid for pid, started in left.items() if started is not None}
        self.job.wait_for("an end of the old job", lambda: all(start_time(pid) != left[pid] for pid in alive))
        self.seconds.append(time.monotonic() - begun)

    def orphans(self) -> list[str]:
        """Processes that are left of any of the jobs."""
        marks = [f"{JOB_VARIABLE}={job}" for job in self.jobs]
        pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
        return self.job.orphans() + [str(pid) for pid in pids for mark in marks if carries(pid, mark)]


def soak_plan(source: random.Random) -> list[str]:
    """30 kills, 14 of them of the supervisor; 12 during training and the others while the job starts.

    A job is given up after three deaths of one cause without a new checkpoint, so three workers in a row are not
    killed while it starts.
    """
    plan = ["supervisor"] * 9 + ["worker"] * 9 + ["supervisor in training"] * 5 + ["worker in training"] * 7
    while any(plan[index : index + 3] == ["worker"] * 3 for index in range(len(plan))) or plan == sorted(plan):
        source.shuffle(plan)
    return plan


@pytest.mark.slow
def test_thirty_kills_do_not_change_the_result(work):
    source = random.Random(16)
    plan = soak_plan(source)
    soak = Soak(work, work / "soak", source)
    steps = iter(targets(sum("training" in kill for kill in plan), source))
    for kill in plan:
        if "training" in kill:
            soak.wait_for_step(next(steps))
        else:
            time.sleep(source.uniform(0.0, 5.0))
        if "supervisor" in kill:
            soak.kill_supervisor()
        else:
            soak.kill_worker()
    code = soak.job.finish()
    orphans = soak.orphans()
    survived = code == DONE and not orphans
    record("kill -9 of supervise.py or a worker, 30 in one run", len(plan), len(plan) * survived, soak.seconds)
    assert code == DONE, soak.job.output()[-3000:]
    assert not orphans
    assert_as_if_nothing_had_happened(work, soak.job)


def test_signals_stop_all_workers_at_one_saved_step(work):
    number, seconds = tries(quick=1, whole=10), []
    source = random.Random(7)
    for index, target in enumerate(targets(number, source)):
        job = SupervisedJob(arguments(work), work / "stopped")
        job.wait_for_step(target)
        begun, told_at = time.monotonic(), job.last_step()
        if index % 3 == 2:
            job.send(signal.SIGUSR1, source.randrange(2))
        else:
            job.process.send_signal(signal.SIGTERM if index % 3 == 0 else signal.SIGINT)
        job.wait_for("an end", lambda job=job: all(entry["code"] is not None for entry in job.records()))
        seconds.append(time.monotonic() - begun)
        assert job.finish() == STOPPED, job.output()[-3000:]
        ends = job.records()
        assert [entry["code"] for entry in ends] == [STOPPED, STOPPED]
        assert ends[0]["cause"] == ends[1]["cause"]
        step, _ = last_arrays(job.models)
        assert f"after step {step} of" in ends[0]["cause"]
        # The signal takes its way through the supervisor, which looks ten times a second.
        assert step == job.last_step() and step - told_at < 100
        assert not job.orphans()
    record("SIGTERM, SIGUSR1 or SIGINT", number, number, seconds)
    if number > 1:
        job = SupervisedJob(arguments(work), work / "stopped")
        assert job.finish() == DONE, job.output()[-3000:]
        assert_as_if_nothing_had_happened(work, job)


@pytest.mark.slow
def test_frozen_worker_is_found_and_job_ends(work):
    """Frozen between two saves: the watchdog allows half an hour for a save and the step after it, before which
    Gloo's own time-out of 30 seconds ends the job, as a failure."""
    number, seconds = tries(quick=1, whole=5), []
    source = random.Random(3)
    for target in targets(number, source):
        job = SupervisedJob(arguments(work, "--hang_seconds", str(HANG_SECONDS)), work / "frozen")
        job.wait_for_step(target - target % SAVE_EVERY + 3)
        frozen = source.randrange(2)
        job.send(signal.SIGSTOP, frozen)
        begun = time.monotonic()
        job.wait_for("an end", lambda job=job: any(entry["code"] is not None for entry in job.records()))
        seconds.append(time.monotonic() - begun)
        assert job.finish() == HANG, job.output()[-3000:]
        assert job.records()[1 - frozen]["code"] == HANG
        assert "watchdog: no progress for" in job.output() and 'trainer/trainer.py", line' in job.output()
        assert not job.orphans()
    record("SIGSTOP of a worker", number, sum(value <= HANG_SECONDS + 5 for value in seconds), seconds)
    assert max(seconds) <= HANG_SECONDS + 5
    if number > 1:
        job = SupervisedJob(arguments(work), work / "frozen")
        assert job.finish() == DONE, job.output()[-3000:]
        assert_as_if_nothing_had_happened(work, job)


@pytest.fixture(scope="module")
def without_dropout(work) -> SupervisedJob:
    """A run of two workers whose random numbers do not depend on their number."""
    job = SupervisedJob(arguments(work, "--deep_dropout", "0"), work / "without-dropout")
    assert job.finish() == DONE, job.output()[-3000:]
    return job


@pytest.mark.slow
@pytest.mark.parametrize("run", range(tries(quick=1, whole=3)))
def test_the_number_of_workers_may_change(work, without_dropout, run):
    """Two, one, two workers: the same samples in each step, so the same losses to rounding, and the same AUC."""
    exact, whole = arguments(work, "--deep_dropout", "0"), without_dropout
    source = random.Random(run)
    for workers, target in zip((2, 1), targets(2, source), strict=True):
        job = SupervisedJob(exact, work / f"changing-{run}", workers=workers)
        job.wait_for_step(target)
        job.process.send_signal(signal.SIGTERM)
        assert job.finish() == STOPPED, job.output()[-3000:]
    job = SupervisedJob(exact, work / f"changing-{run}")
    assert job.finish() == DONE, job.output()[-3000:]
    expected, found = dict(logged_losses(whole.results)), dict(logged_losses(job.results))
    difference = abs(metrics(job.results)["auc_roc"] - metrics(whole.results)["auc_roc"])
    record("2, then 1, then 2 workers", 1, int(difference < 1e-4))
    assert expected.keys() == found.keys()
    np.testing.assert_allclose(list(found.values()), [expected[step] for step in found], atol=1e-4)
    assert difference < 1e-4
