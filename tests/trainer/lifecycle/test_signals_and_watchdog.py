"""Signals and hangs, in separate processes and without TensorFlow."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.helpers import ROOT, environment
from trainer.lifecycle.records import WorkerRecord
from trainer.lifecycle.signals import ONE_REQUEST_SECONDS, StopRequest, StopSignals
from trainer.lifecycle.watchdog import LEAST_SECONDS, SLOW_SECONDS, Watchdog
from trainer.process.worker_env import WorkerEnv

WORKER = """
import sys, time
from pathlib import Path
from trainer.process.worker_env import WorkerEnv
from trainer.lifecycle.records import WorkerRecord
from trainer.lifecycle.signals import StopRequest
from trainer.lifecycle.watchdog import Watchdog

record = WorkerRecord(Path(sys.argv[1]), WorkerEnv())
record.begin()

def wait_for_the_others():
    time.sleep(60)

"""
STOPS = """
with StopRequest(record) as stop:
    stop.has_begun = {has_begun}
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    print("asked", flush=True)
    {then}
"""
HANGS = """
with Watchdog({limit}, record) as watchdog:
    print("ready", flush=True)
    watchdog.beat()
    for _ in range(5):
        time.sleep(0.1)
        watchdog.beat()
    {then}
print("ended by itself", flush=True)
"""


def start(code: str, results: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER + code, str(results)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def recorded(results: Path) -> dict:
    return json.loads((results / "workers" / "worker-0.json").read_text())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_first_signal_requests_and_later_one_kills(tmp_path, number):
    process = start(STOPS.format(has_begun=True, then="wait_for_the_others()"), tmp_path)
    process.send_signal(number)
    asked_at = time.monotonic()
    assert process.stdout is not None and process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGTERM)  # as timeout(1) does, or a launcher that passes signals on
    time.sleep(max(0.0, asked_at + ONE_REQUEST_SECONDS + 0.2 - time.monotonic()))
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(10) == 128 + number
    assert recorded(tmp_path)["code"] == 128 + number


def test_signals_of_the_first_second_are_one_request(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    signals = StopSignals()
    requests = []
    for clock[0] in (100.0, 100.01, 100.9, 101.0, 101.01):
        signals.add(signal.SIGTERM)
        requests.append(len(signals.requests))
    assert requests == [1, 1, 1, 2, 3]


def test_signal_before_training_exits_at_once(tmp_path):
    process = start(STOPS.format(has_begun=False, then="pass"), tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 75 == recorded(tmp_path)["code"]


def test_signal_handlers_are_restored_after_the_block(tmp_path):
    process = start(
        STOPS.format(has_begun=True, then="pass") + "\nprint('left', flush=True)\nwait_for_the_others()", tmp_path
    )
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["asked\n", "left\n"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM


def test_signals_of_applications_are_left_alone(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest(None):
        assert signal.getsignal(signal.SIGTERM) is before
    seen = []

    def elsewhere() -> None:
        with StopRequest(WorkerRecord(tmp_path, WorkerEnv())) as stop:
            seen.append((signal.getsignal(signal.SIGTERM) is before, stop.requested))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [(True, False)]


def test_hanging_worker_prints_stacks_and_exits_70(tmp_path):
    process = start(HANGS.format(limit=1.0, then="wait_for_the_others()"), tmp_path)
    begun = time.monotonic()
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 70 == recorded(tmp_path)["code"]
    assert time.monotonic() - begun < 30
    assert "watchdog: no progress for" in errors and "in wait_for_the_others" in errors
    assert "no progress for" in recorded(tmp_path)["cause"]
    assert "ended by itself" not in output


@pytest.mark.parametrize("then", ["pass", "watchdog.beat(allow=9); time.sleep(2)"])
def test_progressing_worker_is_left_alone(tmp_path, then):
    process = start(HANGS.format(limit=1.0, then=then), tmp_path)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0 and "ended by itself" in output and not errors


def test_limit_is_derived_from_the_longest_step(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    watchdog = Watchdog(None, None)
    for now in (1000.0, 1010.0, 1050.0, 1060.0):  # the first, which compiles, does not count
        clock[0] = now
        watchdog.beat()
    assert watchdog.limit == 20 * 40.0
    clock[0] = 1060.5
    quick = Watchdog(None, None)
    quick.beat()
    clock[0] = 1060.6
    quick.beat()
    assert quick.limit == LEAST_SECONDS < SLOW_SECONDS
    assert Watchdog(7.0, None).limit == 7.0


def test_no_descriptors_are_left_behind(tmp_path):
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    record, before = WorkerRecord(tmp_path, WorkerEnv()), count()
    for _ in range(20):
        with StopRequest(record):
            pass
    until = time.monotonic() + 10
    while count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert count() <= before
