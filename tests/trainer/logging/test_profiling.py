import os
import sys
import types
from contextlib import contextmanager

import pytest
import tensorflow as tf

from data.errors import DataError
from trainer.cli import parse
from trainer.logging import profiling
from trainer.logging.profiling import StepProfiler, nvtx_range, start_timeline
from trainer.process.worker_env import WorkerEnv

MODELS = ("wide_deep",)


def train(profiler: StepProfiler, numbers: range) -> None:
    with profiler:
        for number in numbers:
            with profiler.step(number):
                tf.reduce_sum(tf.ones([50, 50])).numpy()


@pytest.mark.parametrize(
    ("trained", "shown"),
    [(range(1, 9), "3 to 5"), (range(4, 9), "4 to 5"), (range(1, 5), "3 to 4")],
    ids=["all", "resumed", "ended"],
)
def test_requested_steps_are_traced(tmp_path, trained, shown):
    lines: list[str] = []
    train(StepProfiler(range(3, 6), tmp_path, lines.append), trained)
    (trace,) = tmp_path.glob("plugins/profile/*/*.xplane.pb")
    marks = trace.read_bytes().count(b"train")
    assert marks >= 1 and lines == [f"profile of the steps {shown}: {tmp_path / 'plugins' / 'profile'}"]


def test_steps_that_are_not_trained_are_reported(tmp_path):
    lines: list[str] = []
    train(StepProfiler(range(30, 32), tmp_path, lines.append), range(1, 4))
    assert lines == ["warning: none of the steps 30 to 31 of --profile_steps was trained; there is no trace"]
    train(StepProfiler(range(0), tmp_path, lines.append), range(1, 4))
    assert len(lines) == 1 and not list(tmp_path.iterdir())


def test_failed_trace_is_reported(tmp_path, monkeypatch):
    lines: list[str] = []

    def fail(folder: str) -> None:
        raise tf.errors.AlreadyExistsError(None, None, "another profiler is running")

    monkeypatch.setattr(tf.profiler.experimental, "start", fail)
    train(StepProfiler(range(1, 3), tmp_path, lines.append), range(1, 5))
    assert len(lines) == 1 and "another profiler is running" in lines[0]


def test_error_in_a_step_ends_the_trace(tmp_path):
    lines: list[str] = []
    profiler = StepProfiler(range(1, 9), tmp_path, lines.append)
    with pytest.raises(RuntimeError, match="of the step"), profiler, profiler.step(1):
        raise RuntimeError("of the step")
    train(StepProfiler(range(1, 2), tmp_path / "next", lines.append), range(1, 3))
    assert list((tmp_path / "next").rglob("*.xplane.pb"))


def test_nvtx_ranges_need_a_gpu_and_nvtx(monkeypatch):
    seen: list[str] = []

    @contextmanager
    def annotate(name):
        seen.append(name)
        yield

    for on_gpu, expected in ((True, ["save"]), (False, ["save"])):
        profiling._nvtx.cache_clear()
        monkeypatch.setattr(profiling, "on_gpu", lambda on_gpu=on_gpu: on_gpu)
        monkeypatch.setitem(sys.modules, "nvtx", types.SimpleNamespace(annotate=annotate))
        with nvtx_range("save"):
            pass
        assert seen == expected
    profiling._nvtx.cache_clear()
    monkeypatch.setattr(profiling, "on_gpu", lambda: True)
    monkeypatch.setitem(sys.modules, "nvtx", None)  # importing it raises ImportError
    with nvtx_range("save"):
        pass
    profiling._nvtx.cache_clear()
    assert seen == ["save"]


def test_timeline_is_set_on_all_ranks_checked_on_rank_0(tmp_path, monkeypatch):
    monkeypatch.delenv("HOROVOD_TIMELINE", raising=False)
    start_timeline(None, WorkerEnv())
    assert "HOROVOD_TIMELINE" not in os.environ
    file = tmp_path / "deep" / "timeline.json"
    start_timeline(file, WorkerEnv(rank=1, size=2, local_rank=1, local_size=2))
    assert os.environ["HOROVOD_TIMELINE"] == str(file) and not file.exists()
    start_timeline(file, WorkerEnv(size=2, local_size=2))
    assert file.exists()
    with pytest.raises(DataError, match="--horovod_timeline .*cannot be written"):
        start_timeline(file / "below", WorkerEnv(size=2, local_size=2))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--profile_steps", "5"], "--profile_steps '5': expected A:B, the first and the last step"),
        (["--profile_steps", "5:4"], "such as 100:110"),
        (["--profile_steps", "0:4"], "counted from 1"),
        (["--profile_steps", "a:b"], "--profile_steps 'a:b'"),
        (["--profile_steps", "1:2:3"], "--profile_steps"),
        (["--profile_steps", "1:2", "--benchmark"], "--profile_steps only applies to training"),
        (["--tensorboard_dir", "x", "--predict", "y"], "--tensorboard_dir only applies to training"),
        (["--tensorboard_dir", "x", "--evaluate"], "--tensorboard_dir only applies to training"),
    ],
)
def test_flags_without_effect_are_rejected(flags, message):
    with pytest.raises(DataError, match=message):
        parse(flags, 1, reads_checkpoint=False)


def test_timeline_needs_workers_and_a_single_path(monkeypatch):
    monkeypatch.delenv("HOROVOD_TIMELINE", raising=False)
    asked = ["--horovod_timeline", "a.json", "--profile_steps", "3:3"]
    assert parse(asked, 2).run.profiled_steps == range(3, 4)
    with pytest.raises(DataError, match="--horovod_timeline needs several workers"):
        parse(asked, 1)
    monkeypatch.setenv("HOROVOD_TIMELINE", "a.json")
    parse(asked, 2)
    monkeypatch.setenv("HOROVOD_TIMELINE", "b.json")
    with pytest.raises(DataError, match=r"contradicts HOROVOD_TIMELINE=b\.json"):
        parse(asked, 2)
