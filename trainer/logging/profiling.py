"""Profiling: TensorFlow's profiler, Horovod's timeline, and NVTX ranges for NVIDIA's tools."""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import ModuleType, TracebackType

import tensorflow as tf

from data.errors import DataError
from data.storage.files import is_out_of_room
from trainer.config import TIMELINE_VARIABLE
from trainer.logging.log import warn
from trainer.process.device import on_gpu
from trainer.process.worker_env import WorkerEnv


class StepProfiler:
    """Traces some training steps. Used as a context manager around training, with `step` around each step.

    A failure to trace is reported but does not stop training.

    Args:
        steps: steps to trace, counted from 1 over the whole run; empty for none.
        folder: output folder; traces go to `plugins/profile/TIME/` in it, where TensorBoard's profiler finds them.
        say: prints a message for the user.
    """

    def __init__(self, steps: range, folder: Path, say: Callable[[str], None]) -> None:
        self._steps, self._folder, self._say = steps, folder, say
        self._traced: list[int] = []
        self._is_tracing = self._has_tried = False

    def __enter__(self) -> "StepProfiler":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End a running trace, and warn if none of the steps to trace was reached."""
        self._stop()
        if self._steps and not self._has_tried and error is None:
            self._say(
                f"warning: none of the steps {_range(self._steps)} of --profile_steps was trained; there is no trace"
            )

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Return a context manager for a step.

        Args:
            number: number of the step, counted from 1 over the whole run.
        """
        if number in self._steps and not self._has_tried:
            self._has_tried = True
            self._is_tracing = self._succeeds(lambda: tf.profiler.experimental.start(str(self._folder)))
        # With _r=1 the profiler treats the event as a step.
        marked = tf.profiler.experimental.Trace("train", step_num=number, _r=1) if self._is_tracing else nullcontext()
        with marked, nvtx_range(f"step {number}"):
            yield
        if self._is_tracing:
            self._traced.append(number)
            if number == self._steps[-1]:
                self._stop()

    def _stop(self) -> None:
        if self._is_tracing:
            self._is_tracing = False
            if self._succeeds(_write_trace) and self._traced:
                traced = range(self._traced[0], self._traced[-1] + 1)
                self._say(f"profile of the steps {_range(traced)}: {self._folder / 'plugins' / 'profile'}")

    def _succeeds(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except (OSError, RuntimeError, tf.errors.OpError) as error:
            self._say(f"warning: --profile_steps: no trace could be written to {self._folder}: {error}")
            return False
        return True


def _write_trace() -> None:
    tf.test.experimental.sync_devices()  # GPU kernels run asynchronously and may still be in flight
    tf.profiler.experimental.stop()


def _range(steps: range) -> str:
    return f"{steps[0]} to {steps[-1]}"


def start_timeline(file: Path | None, worker: WorkerEnv) -> None:
    """Enable Horovod's timeline. Must be called before Horovod is initialized.

    Horovod reads an environment variable that must be set to the same value on all workers; rank 0 writes the file.

    Args:
        file: path of the timeline file; None disables the timeline.
        worker: rank and size of this worker.

    Raises:
        DataError: on rank 0, if the file cannot be written for any reason but a full disk.
    """
    if file is None:
        return
    if worker.rank == 0:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.open("w").close()
        except OSError as error:
            if not is_out_of_room(error):
                raise DataError(
                    f"--horovod_timeline {file}: cannot be written ({error.strerror}); choose a writable path"
                ) from error
            warn(f"--horovod_timeline {file}: cannot be written: {error.strerror}")
    os.environ[TIMELINE_VARIABLE] = str(file)


def nvtx_range(name: str) -> AbstractContextManager[object]:
    """Return a context manager that marks a range for Nsight Systems; a no-op without a GPU or the nvtx package."""
    nvtx = _nvtx()
    return nullcontext() if nvtx is None else nvtx.annotate(name)


@functools.cache
def _nvtx() -> ModuleType | None:
    if not on_gpu():
        return None
    try:
        import nvtx
    except ImportError:
        return None
    return nvtx
