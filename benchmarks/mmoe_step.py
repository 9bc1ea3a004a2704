"""What MMoE's step costs over that of one perceptron with the same products. One JSON line per case.

    python -m benchmarks.mmoe_step [--batch 16384] [--experts 8] [--tasks 2] [--repeats 9] [--amp]

MMoE has `experts` of 256 and 128 units and a gate per task; the perceptron (shared_bottom) has experts * 256 and 128
units, which are as many multiplications. Inputs are Outbrain's 29 features with the published cardinalities and widths;
towers, dropout and tables are the same on both sides, ids are made up and skewed. Steps take turns. `ratio` is the
median over the turns of time over time, `ratio_spread` its quartiles.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from benchmarks.harness import ROOT, parser_of, report
from data.loading.batch import Ids
from data.loading.lists import empty_lists, from_padded
from data.spec.embedding_sizes import embedding_dims
from data.spec.feature_spec import FeatureSpec
from trainer.build import make_training
from trainer.cli import parse
from trainer.comm import SingleWorker
from trainer.layout import InputSchema, RowValues, input_schema
from trainer.models import build_model
from trainer.packing import Packed
from trainer.process.runtime import compute_dtype
from trainer.step import StepInput, TrainStep
from trainer.tasks.binary import BinaryTask

UNITS = (256, 128)


def random_batch(step: TrainStep, batch: int) -> Packed:
    """Return the input of a step, rows whose ids are skewed: the density of an id falls with its square root."""
    model = step.model
    rng, layout, tasks = np.random.default_rng(0), model.layout, len(model.tasks)
    ids: dict[bool, list[np.ndarray]] = {
        False: [np.empty((batch, 0), np.int32)],
        True: [np.empty((batch, 0), np.int32)],
    }
    for columns in layout.categorical:
        drawn = columns.cardinality * rng.random((batch, columns.hotness)) ** 2
        ids[columns.multihot].append(drawn.astype(np.int32))
    onehot, lists = (np.concatenate(ids[multihot], axis=1) for multihot in (False, True))
    multihot = from_padded(lists, [columns.hotness for columns in layout.categorical if columns.multihot])
    numbers = rng.normal(size=(batch, len(layout.numerical))).astype(np.float32)
    rows = StepInput(
        lookups=model.embeddings.lookups(Ids(onehot, multihot, empty_lists(len(onehot), 0, np.float32))),
        values=RowValues(numbers, vectors=np.zeros((batch, 0), np.float32)),
        labels=(rng.random((batch, tasks)) < 0.2).astype(np.float32),
        weights=np.ones(batch, np.float32),
    )
    return step.packing.pack(rows)


def make_step(flags: list[str], layout: InputSchema, batch: int, tasks: int) -> TrainStep:
    config = parse([*flags, "--recipe", "published", "--global_batch_size", str(batch)], 1)
    names = tuple(BinaryTask(f"task_{number}") for number in range(tasks))
    dtype = compute_dtype(config.training)
    model = build_model(config.model, layout, names, compute_dtype=dtype, seed=0)
    return make_training(config, model, SingleWorker(), steps_per_epoch=100, batch_rows=batch).step


def seconds(run: Callable[..., object], batch: Packed, number: int) -> float:
    started = time.perf_counter()
    run(batch, tf.constant(number))
    tf.test.experimental.sync_devices()
    return time.perf_counter() - started


def forward_backward(step: TrainStep) -> Callable[..., object]:
    def run(packed: Packed, number: tf.Tensor) -> object:
        batch = step.packing.unpack(packed)
        return step.forward_backward(batch, number, step.row_counts(batch))

    return tf.function(run)


def main(argv: list[str] | None = None) -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--experts", type=int, default=8, help="of MMoE")
    parser.add_argument("--tasks", type=int, default=2, help="labels, each with a tower")
    parser.add_argument("--repeats", type=int, default=9, help="turns of each side")
    parser.add_argument("--amp", action="store_true", help="products in bfloat16")
    arguments = parser.parse_args(argv)
    spec = FeatureSpec.read(ROOT / "feature_specs" / "fspec_csv.yaml")
    layout = input_schema(spec, embedding_dims(spec, ROOT / "data" / "outbrain" / "embedding_sizes.json"))
    dtype = "bfloat16" if arguments.amp else "float32"
    precision = ["--amp", "--amp_dtype", "bfloat16"] if arguments.amp else []
    wide = [str(UNITS[0] * arguments.experts), str(UNITS[1])]
    sides = {
        "mmoe": ["--model", "mmoe", "--num_experts", str(arguments.experts)],
        "perceptron": ["--model", "shared_bottom", "--expert_hidden_units", *wide],
    }
    steps = {
        name: make_step([*flags, *precision], layout, arguments.batch, arguments.tasks) for name, flags in sides.items()
    }
    batch = random_batch(steps["mmoe"], arguments.batch)  # both models look up the same tables
    runs: dict[str, dict[str, Callable[..., object]]] = {
        "whole step": dict(steps),
        "forward and backward pass": {name: forward_backward(step) for name, step in steps.items()},
    }
    for what, own in runs.items():
        turns = [[seconds(run, batch, number) for run in own.values()] for number in range(1, arguments.repeats + 3)]
        times = np.array(turns[2:])  # the first two trace and warm up
        ratios = times[:, 0] / times[:, 1]
        result = {
            "benchmark": "mmoe over perceptron",
            "what": what,
            "dtype": dtype,
            "batch": arguments.batch,
            "experts": arguments.experts,
            "tasks": arguments.tasks,
            "ms": dict(zip(own, np.round(1000 * np.median(times, axis=0), 1).tolist(), strict=True)),
            "ratio": round(float(np.median(ratios)), 3),
            "ratio_spread": np.round(np.percentile(ratios, [25, 75]), 3).tolist(),
        }
        report(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
