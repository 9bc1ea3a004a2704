"""Whether tables of one width should share a variable: lookup, pooling, gradient and update, both ways. JSON lines.

    python -m benchmarks.table_layout [--repeats 15]

separate: a variable per feature, as EmbeddingTables has them. fused: a variable per width, in which the features stand
one below the other, so that there is one gather, one sum of gradients and one update per width; features with one
id are reshaped into position instead of being sliced out. Both take turns on the same ids; `fused_over_separate` is
the ratio of the medians of their times.
"""

import argparse
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from benchmarks.harness import report
from trainer.embeddings.exchange import sum_by_row
from trainer.embeddings.tables import EmbeddingTables
from trainer.layout import CategoricalInput, InputSchema
from trainer.optimizers.optimizer import Optimizer, ParameterGroup
from trainer.optimizers.rules import RMSprop
from trainer.optimizers.schedules import Constant

Step = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
WARM_UP = 3


class Case(NamedTuple):
    """Features and a batch size.

    Attributes:
        features: (cardinality, hotness, width) each, those with one id first.
        batch: rows.
    """

    features: list[tuple[int, int, int]]
    batch: int


OUTBRAIN = [(250_000, 128), (300_000, 128), (100_000, 128), (4, 64), *[(4_000, 128)] * 5, *[(1_000, 64)] * 4]
CASES = {
    "46 tables of 50 rows, width 16": Case([(50, 1, 16)] * 46, 1_024),
    "46 tables of 20,000 rows, width 16": Case([(20_000, 1, 16)] * 46, 1_024),
    "46 tables of 20,000 rows, width 16, large batch": Case([(20_000, 1, 16)] * 46, 16_384),
    "Outbrain's 16 tables": Case([(rows, 1, width) for rows, width in OUTBRAIN] + [(10_000, 3, 64)] * 3, 16_384),
}


def layout_of(case: Case) -> InputSchema:
    starts = np.cumsum([0, *(hotness for _, hotness, _ in case.features)])
    return InputSchema(
        tuple(
            CategoricalInput(f"f{index}", int(start), hotness, hotness > 1, rows, width)
            for index, ((rows, hotness, width), (start, _)) in enumerate(
                zip(case.features, pairwise(starts), strict=True)
            )
        ),
        (),
    )


def skewed_ids(case: Case, seed: int) -> tf.Tensor:
    rng = np.random.default_rng(seed)
    drawn = [rows * rng.random((case.batch, hotness)) ** 3 for rows, hotness, _ in case.features]
    return tf.constant(np.concatenate(drawn, axis=1), tf.int32)


def optimizer_of(tables: dict[str, tf.Variable]) -> Optimizer:
    return Optimizer(ParameterGroup(RMSprop(), Constant(0.001), tables=tables))


def separate(case: Case) -> Step:
    embeddings = EmbeddingTables(layout_of(case), outputs=0, combiner="sum", seed=0)
    optimizer = optimizer_of({table.path: table.value for table in embeddings.tables})

    @tf.function
    def step(ids: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        rows = embeddings.gather(ids)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(rows)
            value = tf.reduce_sum(tf.square(tf.concat(embeddings.pool_deep(rows, ids), axis=1)))
        gradients = tape.gradient(value, rows.deep)
        for table, wanted, gradient in zip(embeddings.tables, embeddings.row_ids(ids), gradients, strict=True):
            flat = tf.reshape(gradient, [-1, table.shape[1]])
            optimizer.apply({table.path: sum_by_row(tf.reshape(wanted, [-1]), flat)}, number)
        return value

    return step


def fused(case: Case) -> Step:
    columns = layout_of(case).categorical
    widths = sorted({own.width for own in columns})
    groups = [[own for own in columns if own.width == width] for width in widths]
    totals = [sum(own.cardinality for own in group) for group in groups]
    tables = {
        f"w{width}": tf.Variable(0.01 * tf.random.normal((total, width)))
        for width, total in zip(widths, totals, strict=True)
    }
    optimizer = optimizer_of(tables)

    def pooled(rows: tf.Tensor, group: list[CategoricalInput], width: int) -> list[tf.Tensor]:
        singles = sum(own.hotness == 1 for own in group)
        pieces = tf.split(rows, [singles, *(own.hotness for own in group if own.hotness > 1)], axis=1)
        return [tf.reshape(pieces[0], [-1, singles * width]), *(tf.reduce_sum(piece, axis=1) for piece in pieces[1:])]

    @tf.function
    def step(ids: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        numbers = []
        for group in groups:
            starts = np.cumsum([0, *(own.cardinality for own in group)])[:-1]
            offsets = np.repeat(starts, [own.hotness for own in group])
            columns = np.concatenate([np.arange(own.start, own.stop) for own in group])
            numbers.append(tf.gather(ids, columns, axis=1) + tf.constant(offsets, tf.int32))
        rows = [tf.gather(table, wanted) for table, wanted in zip(tables.values(), numbers, strict=True)]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(rows)
            parts = [
                part
                for own, group, width in zip(rows, groups, widths, strict=True)
                for part in pooled(own, group, width)
            ]
            value = tf.reduce_sum(tf.square(tf.concat(parts, axis=1)))
        for name, wanted, gradient in zip(tables, numbers, tape.gradient(value, rows), strict=True):
            flat = tf.reshape(gradient, [-1, gradient.shape[2]])
            optimizer.apply({name: sum_by_row(tf.reshape(wanted, [-1]), flat)}, number)
        return value

    return step


def measure(name: str, repeats: int) -> dict[str, object]:
    case = CASES[name]
    batches = [skewed_ids(case, seed) for seed in range(4)]
    steps = {"separate": separate(case), "fused": fused(case)}
    seconds: dict[str, list[float]] = {side: [] for side in steps}
    for number in range(1, WARM_UP + repeats + 1):
        for side, step in steps.items():
            started = time.perf_counter()
            step(batches[number % 4], tf.constant(number)).numpy()
            tf.test.experimental.sync_devices()
            seconds[side].append(time.perf_counter() - started)
    medians = {side: float(np.median(own[WARM_UP:])) for side, own in seconds.items()}
    return {
        "benchmark": "table layout",
        "case": name,
        "batch": case.batch,
        "separate_ms": round(1000 * medians["separate"], 2),
        "fused_ms": round(1000 * medians["fused"], 2),
        "fused_over_separate": round(medians["fused"] / medians["separate"], 3),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="turns of each side")
    arguments = parser.parse_args(argv)
    for name in CASES:
        report(measure(name, arguments.repeats))
    return 0


if __name__ == "__main__":
    sys.exit(main())
