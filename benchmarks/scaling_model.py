"""How fast training should be on several GPUs, calculated and not measured: JSON lines, one per configuration.

    python -m benchmarks.scaling_model [--spec FILE] [--embedding_sizes_file FILE] [--flags FLAG ...]

The counts of a step (benchmarks/step_counts.py) divided by the peaks of data sheets give

    step = overhead + (products + memory + sent) / efficiency + collectives * CYCLE

    products    FLOPs / peak of their type          sent   bytes / bandwidth of the links that they take
    memory      bytes / bandwidth of the memory     CYCLE  Horovod starts what is ready once per HOROVOD_CYCLE_TIME

Nothing overlaps, except that the next batch is copied to the GPU meanwhile. `efficiency` is the only number that is
fitted: one share of all peaks, for which one A100 trains as fast as the public recipe has published. `overhead` is what
a step takes whatever its rows (launches, Python, loader), and follows from another publication of that recipe: how fast
it evaluates batches of several sizes. Without it, a model of peaks cannot explain the recipe's own 8 GPUs.

Speeds are given with that overhead, and without any: that of this recipe is unknown until it has run on a GPU.
Without --spec: Outbrain's features with the published widths. `--flags` are those of main.py, after --recipe published.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.harness import Line, markdown, report
from benchmarks.step_counts import StepCounts
from benchmarks.synthetic_rows import OUTBRAIN, PUBLISHED_WIDTHS
from data.errors import DataError
from data.spec.embedding_sizes import embedding_dims
from data.spec.feature_spec import FeatureSpec
from trainer.cli import parse
from trainer.layout import InputSchema, input_schema
from trainer.tasks.task import Task, tasks_of


@dataclass(frozen=True)
class Gpu:
    """Peaks of a GPU and of the hosts of eight that it is sold in, without sparsity; FLOP/s and bytes/s.

    Attributes:
        name: its name.
        half: float16 products.
        single: float32 products, as TF32 where there is that.
        memory: its own memory.
        nvlink: all links to the other GPUs of the host, per direction.
        pcie: the link to the host, per direction.
        network: the link of each GPU to other hosts, per direction.
    """

    name: str
    half: float
    single: float
    memory: float
    nvlink: float
    pcie: float
    network: float

    def sending(self, sent: Mapping[str, float], workers: int) -> float:
        """Return the seconds that bytes sent by kind of collective take (see `StepCounts.sent`)."""
        if workers <= GPUS_PER_HOST:
            return sum(sent.values()) / self.nvlink
        # A ring passes from host to host over the links of all GPUs of a host at once.
        ring = min(self.nvlink, GPUS_PER_HOST * self.network)
        away = (workers - GPUS_PER_HOST) / (workers - 1)  # the share of an all-to-all that goes to other hosts
        swapped = max(away / self.network, (1 - away) / self.nvlink)
        return (sent["sum"] + sent["gather"]) / ring + sent["exchange"] * swapped


GPUS_PER_HOST = 8
# NVIDIA A100 80 GB SXM data sheet (2021): float16 312 and TF32 156 TFLOP/s, 2,039 GB/s, NVLink 600 and PCIe 4.0
# 64 GB/s in both directions together. DGX A100 data sheet: eight 200 Gbit/s InfiniBand adapters for eight GPUs.
A100 = Gpu("A100", 312e12, 156e12, 2039e9, 300e9, 32e9, 25e9)
# NVIDIA H200 SXM data sheet (2024): float16 1,979 and TF32 989 TFLOP/s with sparsity, half of that without; 4.8 TB/s,
# NVLink 900 and PCIe 5.0 128 GB/s. DGX H200 data sheet: eight 400 Gbit/s InfiniBand adapters.
H200 = Gpu("H200", 989.5e12, 494.5e12, 4800e9, 450e9, 64e9, 50e9)
# NVIDIA V100 SXM2 data sheet (2020): 125 TFLOP/s of tensor cores, float32 15.7 (there is no TF32), 900 GB/s, NVLink 300
# and PCIe 3.0 32 GB/s. DGX-1 data sheet: four 100 Gbit/s adapters for eight GPUs. Only for the check.
V100 = Gpu("V100", 125e12, 15.7e12, 900e9, 150e9, 16e9, 6.25e9)

# Seconds that Horovod waits between two looks at what is ready: HOROVOD_CYCLE_TIME of hvd_wrapper.sh, and of the public
# recipe's image.
CYCLE = 1e-4
# Samples/s of the public recipe: NVIDIA DeepLearningExamples, TensorFlow2/Recommendation/WideAndDeep, README.md of
# 2022, XLA, global batch 131,072. (GPU, AMP, GPUs) -> training.
PUBLIC_BATCH = 131_072
PUBLIC = {
    (A100, True, 1): 2_312_149.2,
    (A100, True, 8): 5_742_941.1,
    (A100, False, 1): 1_640_579.8,
    (A100, False, 8): 5_369_859.03,
    (V100, True, 1): 1_102_253.52,
    (V100, True, 8): 3_536_706.63,
    (V100, False, 1): 346_096.2,
    (V100, False, 8): 1_925_045.33,
}
# The same for its evaluation on one A100 with AMP: rows of a batch -> samples/s.
PUBLIC_EVALUATION = {
    4096: 634_058,
    8192: 1_087_416,
    16_384: 1_617_472,
    32_768: 2_122_617,
    65_536: 2_499_589,
    131_072: 2_852_853,
}
# The backward pass has two operations for each of the forward pass: gradients of its inputs and of its weights.
PASSES = 3
PUBLIC_FLAGS = ("--recipe", "published", "--table_exchange", "whole", "--shard_embeddings", "off", "--fp16_allreduce")

# How tables are exchanged -> flags.
EXCHANGES = {
    "dense": ("--table_exchange", "whole", "--shard_embeddings", "off", "--fp16_allreduce"),
    "sparse": ("--table_exchange", "rows", "--shard_embeddings", "off"),
    "sharded": ("--shard_embeddings", "on"),
}
WORKERS = (1, 2, 4, 8, 16)


@cache
def _features(spec_file: Path, sizes_file: Path | None) -> tuple[InputSchema, tuple[Task, ...]]:
    spec = FeatureSpec.read(spec_file)
    return input_schema(spec, embedding_dims(spec, sizes_file)), tasks_of(spec)


def counts_of(spec_file: Path, sizes_file: Path | None, flags: Sequence[str], workers: int) -> StepCounts:
    """Return the counts of a step on the features of a specification, whose data is not read."""
    return StepCounts(parse(flags, workers), *_features(spec_file, sizes_file), workers)


def published_counts(workers: int, *flags: str) -> StepCounts:
    """Return the counts of the published model."""
    return counts_of(OUTBRAIN, PUBLISHED_WIDTHS, flags, workers)


def seconds_at_peak(counts: StepCounts, gpu: Gpu) -> dict[str, float]:
    """Return what the parts of a step take at the peaks of a GPU."""
    return {
        "products": counts.flops / (gpu.half if counts.is_half else gpu.single),
        "memory": sum(counts.memory.values()) / gpu.memory,
        "sent": gpu.sending(counts.sent, counts.workers),
    }


def step_seconds(counts: StepCounts, gpu: Gpu, efficiency: float, overhead: float) -> float:
    """Return the seconds of a step.

    Args:
        counts: its counts.
        gpu: the GPU of each worker.
        efficiency: share of all peaks that is reached.
        overhead: seconds that a step takes whatever its rows.
    """
    working = overhead + sum(seconds_at_peak(counts, gpu).values()) / efficiency + counts.collectives * CYCLE
    return max(working, counts.copied / gpu.pcie / efficiency)


@cache
def public_overhead() -> float:
    """Return the seconds of a training step of the public recipe, whatever its rows, from its evaluation.

    Seconds of a batch are a line over its rows, whose value at 0 rows is what a forward pass takes.
    """
    rows = np.array(list(PUBLIC_EVALUATION))
    seconds = rows / np.array(list(PUBLIC_EVALUATION.values()))
    # Relative errors count, so that the small batches, which say most about it, are not outweighed.
    _, at_zero = np.polyfit(rows, seconds, 1, w=1 / seconds)
    return PASSES * float(at_zero)


def fitted_efficiency(overhead: float) -> float:
    """Return the share of all peaks at which one A100 trains as fast as the public recipe, with AMP."""
    at_peak = sum(seconds_at_peak(published_counts(1, *PUBLIC_FLAGS, "--amp"), A100).values())
    return at_peak / (PUBLIC_BATCH / PUBLIC[A100, True, 1] - overhead)


def public_check(overhead: float) -> list[Line]:
    """Compare the model with all training speeds that the public recipe has published."""
    efficiency, lines = fitted_efficiency(overhead), []
    for (gpu, amp, workers), published in PUBLIC.items():
        counts = published_counts(workers, *PUBLIC_FLAGS, *(["--amp"] if amp else []))
        speed = PUBLIC_BATCH / step_seconds(counts, gpu, efficiency, overhead)
        lines.append(
            {
                "benchmark": "scaling model, check",
                "gpu": gpu.name,
                "amp": amp,
                "gpus": workers,
                "published_samples_per_second": round(published),
                "samples_per_second": round(speed),
                "error": round(speed / published - 1, 3),
            }
        )
    return lines


def predictions(spec: Path, sizes: Path | None, flags: Sequence[str]) -> list[Line]:
    """Predict the speed of every GPU, precision, exchange and number of workers."""
    overhead, lines = public_overhead(), []
    efficiency = fitted_efficiency(overhead)
    for gpu in (A100, H200):
        for amp in (True, False):
            for exchange, own in EXCHANGES.items():
                for workers in WORKERS:
                    all_flags = ("--recipe", "published", *flags, *own, *(["--amp"] if amp else []))
                    counts = counts_of(spec, sizes, all_flags, workers)
                    lines.append(_prediction(counts, gpu, exchange, efficiency, overhead))
    return lines


def _prediction(counts: StepCounts, gpu: Gpu, exchange: str, efficiency: float, overhead: float) -> Line:
    parts = {name: 1e3 * seconds / efficiency for name, seconds in seconds_at_peak(counts, gpu).items()}
    slow, fast = (step_seconds(counts, gpu, efficiency, of_step) for of_step in (overhead, 0.0))
    rows = counts.options.training.global_batch_size
    return {
        "benchmark": "scaling model",
        "gpu": gpu.name,
        "amp": counts.is_half,
        "exchange": exchange,
        "gpus": counts.workers,
        "parameters": counts.parameters,
        "gflop": round(counts.flops / 1e9, 3),
        "memory_mb": {name: round(moved / 1e6, 1) for name, moved in counts.memory.items()},
        "sent_mb": {name: round(sent / 1e6, 2) for name, sent in counts.sent.items()},
        "collectives": counts.collectives,
        "copied_mb": round(counts.copied / 1e6, 1),
        "ms": {name: round(own, 2) for name, own in parts.items()},
        "samples_per_second": round(rows / slow),
        "samples_per_second_without_overhead": round(rows / fast),
    }


@cache
def scaling_tables() -> dict[str, str]:
    """Return the tables of docs/performance.md about the published model, by name, as markdown."""
    lines = predictions(OUTBRAIN, PUBLISHED_WIDTHS, [])
    return {
        "scaling_check": _check_table(public_check(public_overhead())),
        "scaling_counts": _counts_table(lines),
        "scaling": _speed_table(lines),
    }


def _check_table(lines: list[Line]) -> str:
    rows = [
        [
            line["gpu"],
            _precision(line),
            str(line["gpus"]),
            _millions(line["published_samples_per_second"]),
            _millions(line["samples_per_second"]),
            f"{100 * line['error']:+.0f} %" if number else "fitted",
        ]
        for number, line in enumerate(lines)
    ]
    return markdown(["GPU", "precision", "GPUs", "published, M samples/s", "model, M samples/s", "error"], rows)


def _counts_table(lines: list[Line]) -> str:
    rows = []
    for line in lines:
        if line["gpu"] == A100.name and line["amp"] and line["gpus"] in (1, 8):
            memory, sent = line["memory_mb"].values(), line["sent_mb"].values()
            counts = [line["gflop"], *memory, *sent, line["collectives"], line["copied_mb"]]
            rows.append([line["exchange"], str(line["gpus"]), *(f"{count:,.0f}" for count in counts)])
    memory = [f"{name}, MB" for name in lines[0]["memory_mb"]]
    sent = ["sums, MB", "gathered, MB", "exchanged, MB"]
    return markdown(["tables", "GPUs", "GFLOP", *memory, *sent, "collectives", "copied to the GPU, MB"], rows)


def _speed_table(lines: list[Line]) -> str:
    rows: dict[tuple[str, str, str], list[str]] = {}
    for line in lines:
        slow, fast = (line[f"samples_per_second{which}"] for which in ("", "_without_overhead"))
        of_row = rows.setdefault((line["gpu"], _precision(line), line["exchange"]), [])
        of_row.append(f"{_millions(slow)} to {_millions(fast)}")
    headings = ["GPU", "precision", "tables", *(f"{workers} GPU{'s' * (workers > 1)}" for workers in WORKERS)]
    return markdown(headings, [[*row, *speeds] for row, speeds in rows.items()])


def _precision(line: Line) -> str:
    single = "float32" if line["gpu"] == V100.name else "TF32"
    return "`--amp`" if line["amp"] else single


def _millions(samples_per_second: float) -> str:
    return f"{samples_per_second / 1e6:.2f}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", type=Path, default=OUTBRAIN, help="feature specification; its data is not read")
    parser.add_argument(
        "--embedding_sizes_file", type=Path, help="as main.py; default without --spec: published widths"
    )
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="flags of main.py; must come last")
    arguments = parser.parse_args(argv)
    sizes = arguments.embedding_sizes_file or (PUBLISHED_WIDTHS if arguments.spec == OUTBRAIN else None)
    try:
        lines = [*public_check(public_overhead()), *predictions(arguments.spec, sizes, arguments.flags)]
    except DataError as error:
        parser.error(str(error))
    for line in lines:
        report(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
