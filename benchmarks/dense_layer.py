"""What a hidden layer costs beside its products: ours, and Keras' Dense and Dropout. JSON lines.

    python -m benchmarks.dense_layer [--batch 16384] [--inputs 1024] [--units 1024] [--repeats 7]

Each line is one case: forward and backward pass of one relu layer (gradients of input, kernel and bias), in a type,
with and without dropout. All sides take turns on the same numbers. `share_of_matmul` is the time of the three bare
products in that type over the layer's (`_xla`: with --xla), `over_keras` Keras' time over ours; medians over the
turns. Bare bfloat16 products are emulated on CPUs without units for them, and a layer that multiplies as float32 there
has a share above 1.
"""

import argparse
import sys
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from benchmarks.harness import parser_of, report
from trainer.models.layers import Dense, DenseConfig
from trainer.models.step_context import StepContext

Pass = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], list[tf.Tensor]]


def bare_products(kernel: tf.Variable, dtype: str) -> Pass:
    @tf.function
    def products(x: tf.Tensor, upstream: tf.Tensor, number: tf.Tensor) -> list[tf.Tensor]:
        weights = tf.cast(kernel, dtype)
        return [
            tf.linalg.matmul(x, weights),
            tf.linalg.matmul(upstream, weights, transpose_b=True),
            tf.linalg.matmul(x, upstream, transpose_a=True),
        ]

    return products


def differentiated(forward: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], weights: list[keras.Variable]) -> Pass:
    """Forward and backward pass of a layer, as a step takes them."""

    @tf.function
    def both(x: tf.Tensor, upstream: tf.Tensor, number: tf.Tensor) -> list[tf.Tensor]:
        values = [weight.value for weight in weights]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([x, *values])
            result = forward(x, number)
        return [result, *tape.gradient(result, [x, *values], output_gradients=upstream)]

    return both


def our_layer(inputs: int, units: int, dtype: str, rate: float, *, xla: bool) -> Pass:
    layer = Dense(units, DenseConfig("relu", rate, compute_dtype=dtype, seed=1), name="ours")
    layer.build((None, inputs))

    def forward(x: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        present = tf.ones(x.shape[:1])
        return layer(x, context=StepContext(tf.stack([0, number]), present, list, xla))

    return differentiated(forward, layer.trainable_variables)


def keras_layer(inputs: int, units: int, dtype: str, rate: float) -> Pass:
    policy = "float32" if dtype == "float32" else f"mixed_{dtype}"
    dense = keras.layers.Dense(units, "relu", dtype=policy)
    dropout = keras.layers.Dropout(rate, seed=1, dtype=policy)
    dense.build((None, inputs))
    return differentiated(lambda x, number: dropout(dense(x), training=True), dense.trainable_variables)


def seconds(run: Pass, *arguments: tf.Tensor) -> float:
    started = time.perf_counter()
    run(*arguments)
    tf.test.experimental.sync_devices()
    return time.perf_counter() - started


def measured(arguments: argparse.Namespace, dtype: str, rate: float) -> dict[str, object]:
    batch, inputs, units = arguments.batch, arguments.inputs, arguments.units
    rng = np.random.default_rng(0)
    kernel = tf.Variable(rng.normal(size=(inputs, units)), dtype=tf.float32)
    x, upstream = (tf.constant(rng.normal(size=(batch, width)), tf.as_dtype(dtype)) for width in (inputs, units))
    sides = {
        "matmul": bare_products(kernel, dtype),
        "ours": our_layer(inputs, units, dtype, rate, xla=False),
        "ours_xla": our_layer(inputs, units, dtype, rate, xla=True),
        "keras": keras_layer(inputs, units, dtype, rate),
    }
    turns: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(arguments.repeats + 2):
        for name, run in sides.items():
            turns[name].append(seconds(run, x, upstream, tf.constant(number)))
    times = {name: np.array(own[2:]) for name, own in turns.items()}  # the first two trace and warm up

    def ratio(first: str, second: str) -> float:
        return round(float(np.median(times[first] / times[second])), 3)

    return {
        "benchmark": "dense_layer",
        "dtype": dtype,
        "dropout": rate,
        "shape": [batch, inputs, units],
        "ms": {name: round(1000 * float(np.median(own)), 1) for name, own in times.items()},
        "share_of_matmul": ratio("matmul", "ours"),
        "share_of_matmul_xla": ratio("matmul", "ours_xla"),
        "over_keras": ratio("keras", "ours"),
    }


def main(argv: list[str] | None = None) -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--inputs", type=int, default=1024, help="width of the input")
    parser.add_argument("--units", type=int, default=1024, help="width of the output")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each side")
    parser.add_argument("--dtype", nargs="*", default=["float32", "bfloat16"], help="types of the products")
    arguments = parser.parse_args(argv)
    for dtype in arguments.dtype:
        for rate in (0.0, 0.1):
            report(measured(arguments, dtype, rate))
    return 0


if __name__ == "__main__":
    sys.exit(main())
