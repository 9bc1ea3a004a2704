"""One precision of the default model in training and evaluation: a JSON line per part. gpu.py starts this.

    python -m benchmarks.gpu_training --dataset D [--parts memory losses ...] [--flags --amp --xla]

    memory       the GPU's peak in a few steps and an evaluation, and the estimate of trainer/memory_needed.py
    losses       of `--curve` steps without dropout, at a constant learning rate, and the metrics afterwards
    training     whole steps, from the parquet files
    step         the same steps on batches that are on the GPU already; TFLOP/s and GB/s of memory are those that
                 step_counts.py counts, over the time of a step
    evaluation   of all test rows, with its metrics, from the parquet files
    profile      what the GPU does in a step by TensorFlow's profiler, beside what gpu_graph.py counts in its graph
                 (`audit`) and the bytes of a batch by step_counts.py (`counted_mb`)

`memory` comes first, as later parts would add to the peak.
"""

import json
import sys
import tempfile
import time
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path

import tensorflow as tf

from benchmarks.evaluation_speed import seconds_of_parts
from benchmarks.gpu_graph import GpuKernels, count
from benchmarks.gpu_kernels import registered_kernels
from benchmarks.gpu_parts import Skipped, parser_of_parts, run_parts
from benchmarks.gpu_profile import read_profile
from benchmarks.harness import Line
from benchmarks.step_counts import StepCounts
from benchmarks.training_run import TrainingRun
from trainer.logging.profiling import StepProfiler
from trainer.memory_needed import memory_needed
from trainer.process.device import on_gpu

MEMORY_STEPS, PROFILED_STEPS, BATCHES_IN_HAND = 3, 5, 4


class Measurement:
    """The parts of one configuration.

    Args:
        dataset: a prepared dataset.
        batch: rows of a step, and of a batch of the evaluation.
        flags: further flags of main.py.
        curve: number of steps whose losses are compared.
        steps: number of steps that are timed, after a third as many.
    """

    def __init__(self, dataset: Path, batch: int, flags: list[str], curve: int, steps: int):
        self._dataset, self._batch, self._curve, self._steps = dataset, batch, curve, steps
        self._flags = ["--global_batch_size", str(batch), "--eval_batch_size", str(batch), *flags]

    @cached_property
    def _run(self) -> TrainingRun:
        return TrainingRun(self._dataset, *self._flags)

    def memory(self) -> Line:
        """Measure the peak of the memory, beside its estimate, in GB."""
        if not on_gpu():
            raise Skipped("no GPU; benchmarks/memory.py compares the memory of the host")
        self._run.seconds(MEMORY_STEPS)
        self._run.trainer.evaluator.run()
        try:
            peak = tf.config.experimental.get_memory_info("GPU:0")["peak"]
        except ValueError as error:
            raise Skipped(f"this allocator counts nothing (TF_GPU_ALLOCATOR): {error}") from error
        trainer = self._run.trainer
        size = trainer.data.size(trainer.config)
        needed = memory_needed(size, 1, sharded=False, on_gpu=True).where(on_device=True)
        return {
            "peak_gb": round(peak / 1e9, 3),
            "estimated_gb": round(needed.bytes / 1e9, 3),
            "peak_over_estimate": round(peak / needed.bytes, 3),
            "parts_gb": {part.name: round(part.bytes / 1e9, 3) for part in needed.parts},
        }

    def losses(self) -> Line:
        """Return the losses of a model of its own, and the metrics of the test rows on a GPU."""
        comparable = ["--deep_dropout", "0", "--deep_schedule", "constant"]  # dropout differs between devices
        run = TrainingRun(self._dataset, *self._flags, *comparable)
        losses = run.losses(self._curve)
        metrics = {} if run.trainer.config.training.cpu else run.trainer.evaluator.run()
        return {"compute_dtype": run.compute_dtype, "losses": losses, "metrics": metrics}

    def training(self) -> Line:
        """Measure the speed of whole steps."""
        self._run.seconds(max(2, self._steps // 3))
        return self._speed(self._run.seconds(self._steps))

    def step(self) -> Line:
        """Measure the speed of steps without the loader."""
        batches = self._run.batches(BATCHES_IN_HAND)
        self._run.seconds_of(islice(cycle(batches), max(2, self._steps // 3)))
        seconds = self._run.seconds_of(islice(cycle(batches), self._steps))
        counts, step_seconds = self._counts, seconds / self._steps
        return self._speed(seconds) | {
            "tflop_per_second": round(counts.flops / step_seconds / 1e12, 3),
            "memory_gb_per_second": round(sum(counts.memory.values()) / step_seconds / 1e9, 1),
        }

    def evaluation(self) -> Line:
        """Measure the speed of an evaluation."""
        evaluator = self._run.trainer.evaluator
        evaluator.run()
        started = time.perf_counter()
        evaluator.run()
        seconds = time.perf_counter() - started
        names = ("wait_for_data_ms", "forward_ms", "metrics_ms")
        batches = -(-evaluator.loader.rows // self._batch)
        parts = (round(1000 * own / batches, 2) for own in seconds_of_parts(evaluator))
        return {"samples_per_second": round(evaluator.loader.rows / seconds), **dict(zip(names, parts, strict=True))}

    def profile(self) -> Line:
        """Profile what the GPU does in a step."""
        audit = self._audit()
        self._run.seconds(2)
        with tempfile.TemporaryDirectory() as folder:
            steps = range(1, PROFILED_STEPS + 1)
            with StepProfiler(steps, Path(folder), lambda text: print(text, file=sys.stderr)) as profiler:
                for number in steps:
                    with profiler.step(number):
                        self._run.train(*self._run.batches(1))
            found = read_profile(Path(folder)).per_step(PROFILED_STEPS)
        return found | {"counted_mb": round(self._counts.copied / 1e6, 3), "audit": audit}

    def _audit(self) -> dict[str, int]:
        """Count the graph of a step, with the kernels of the TensorFlow that runs it."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "kernels.json"
            file.write_text(json.dumps(registered_kernels()))
            kernels = GpuKernels.read(file)
        return count(self._run.step.run.get_concrete_function().graph, self._batch, kernels).totals()

    @property
    def _counts(self) -> StepCounts:
        trainer = self._run.trainer
        return StepCounts(trainer.config, trainer.data.layout, trainer.tasks, workers=1)

    def _speed(self, seconds: float) -> Line:
        step_ms = round(1000 * seconds / self._steps, 3)
        return {"samples_per_second": round(self._batch * self._steps / seconds), "step_ms": step_ms}


PARTS = ["memory", "losses", "training", "step", "evaluation", "profile"]


def main(argv: list[str] | None = None) -> int:
    parser = parser_of_parts(__doc__, PARTS)
    parser.add_argument("--curve", type=int, default=48, help="steps whose losses are printed")
    parser.add_argument("--steps", type=int, default=60, help="steps that are timed")
    arguments = parser.parse_args(argv)
    own = Measurement(arguments.dataset, arguments.batch, arguments.flags, arguments.curve, arguments.steps)
    run_parts({part: getattr(own, part) for part in PARTS}, arguments.parts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
