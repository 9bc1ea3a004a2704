"""Generate the MMoE paper's synthetic tasks: python -m data.synthetic_tasks.prepare --output DIR --correlation P.

Besides the dataset, it writes `tasks.json` with the parameters of the labels: weights, alpha, beta and the standard
deviation of the noise, whose square, 0.01, is the lowest mean squared error that a model can achieve.

With orthonormal u1, u2 in R^100, weights w1 = c u1 and w2 = c (p u1 + sqrt(1 - p^2) u2) whose cosine is the
correlation p, and phases shared by both tasks:

    y_k = w_k.x + sum over i of sin(alpha_i w_k.x + beta_i) + noise_k,    x ~ N(0, I), noise_k ~ N(0, 0.1^2)

c = 1, with ten sines and alpha_i, beta_i ~ N(0, 1). The paper does not specify alpha and beta; with these, models
differ as it reports from about a million rows on. The correlation of the labels grows with p, but is smaller.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from data.command_line import Parser, whole_number
from data.encoding.encoders import Encoder, Numerical
from data.encoding.splits import TEST, TRAIN
from data.errors import DataError
from data.files.new_dataset import new_dataset
from data.preprocess.prepared import StageLog, encoded_features, run_prepare, write_prepared
from data.spec.feature_spec import FeatureSpec
from data.spec.features import LABEL, MAP, NUMERICAL, Feature

INPUTS = 100
SINES = 10
SCALE = 1.0
NOISE = 0.1
ROWS_PER_BLOCK = 65_536
# Keys that, combined with the seed, give each generator its own random stream.
_DIRECTIONS, _PHASES, _INPUTS, _NOISE = range(4)
NAMES = tuple(f"x_{number}" for number in range(INPUTS))
LABELS = ("y1", "y2")
LEAST_TEST_ROWS = 1000
TASKS_FILE = "tasks.json"


@dataclass(frozen=True, eq=False)
class TaskParameters:
    """Parameters that relate inputs to labels.

    Attributes:
        weights: [2, INPUTS] float64 weights w1 and w2.
        alpha, beta: [SINES] float64 frequencies and phases of the sines, shared by both tasks.
    """

    weights: np.ndarray
    alpha: np.ndarray
    beta: np.ndarray

    def means(self, inputs: np.ndarray) -> np.ndarray:
        """Return the noise-free labels, [rows, 2] float64, of [rows, INPUTS] inputs: the optimal predictions."""
        projected = inputs.astype(np.float64) @ self.weights.T  # [rows, 2]; the sines below are [rows, 2, SINES]
        return projected + np.sin(projected[..., None] * self.alpha + self.beta).sum(axis=-1)


def draw_tasks(correlation: float, seed: int) -> TaskParameters:
    """Draw two tasks; their directions, frequencies and phases depend on the seed only.

    Args:
        correlation: cosine similarity of the tasks' weights, in [-1, 1].
        seed: seed of the draws, at least 0.
    """
    first, other = np.random.default_rng([_DIRECTIONS, seed]).standard_normal((2, INPUTS))
    first = first / np.linalg.norm(first)
    other = other - (other @ first) * first  # Gram-Schmidt
    other = other / np.linalg.norm(other)
    second = correlation * first + np.sqrt(1 - correlation**2) * other
    alpha, beta = np.random.default_rng([_PHASES, seed]).standard_normal((2, SINES))
    return TaskParameters(SCALE * np.stack([first, second]), alpha, beta)


def draw_rows(
    tasks: TaskParameters, mapping: int, rows: int, seed: int, rows_per_block: int = ROWS_PER_BLOCK
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Draw rows in blocks; inputs and noise depend on (seed, mapping), and fewer rows are a prefix of more.

    Args:
        tasks: parameters that relate inputs to labels.
        mapping: index of the mapping, which has its own random streams.
        rows: total number of rows.
        seed: seed of the draws, at least 0.
        rows_per_block: maximum number of rows per block; the rows do not depend on it.

    Yields:
        [block, INPUTS] float32 inputs and [block, 2] float32 labels, computed from the inputs after rounding.
    """
    input_generator = np.random.default_rng([_INPUTS, seed, mapping])
    noise_generator = np.random.default_rng([_NOISE, seed, mapping])
    for start in range(0, rows, rows_per_block):
        size = min(rows_per_block, rows - start)
        inputs = input_generator.standard_normal((size, INPUTS)).astype(np.float32)
        noise = NOISE * noise_generator.standard_normal((size, 2))
        yield inputs, (tasks.means(inputs) + noise).astype(np.float32)


def prepare(output: Path, *, correlation: float = 0.5, rows: int = 1_000_000, seed: int = 0) -> None:
    """Write the dataset block by block, atomically.

    Args:
        output: folder for the dataset; must not contain one yet.
        correlation: cosine similarity of the two tasks' weights, in [-1, 1].
        rows: number of training rows; the number of test rows is a tenth of it, at least 1000.
        seed: seed of all draws. Inputs and noise do not depend on the correlation.

    Raises:
        DataError: if the correlation is out of range, or the dataset cannot be written to `output`.
    """
    if not -1 <= correlation <= 1:
        raise DataError(f"--correlation {correlation}: expected a number from -1 to 1, such as 0.5")
    log = StageLog("synthetic_tasks")
    tasks = draw_tasks(correlation, seed)
    # The default encoders keep the inputs unchanged; these are standard normal already.
    encoders: dict[str, Encoder] = {name: Numerical.standardized(name) for name in NAMES}
    features = encoded_features(encoders, {})
    features |= {name: Feature(name=name, dtype="float32", task="regression") for name in LABELS}
    sizes = {TRAIN: rows, TEST: max(LEAST_TEST_ROWS, rows // 10)}
    with new_dataset(output) as draft:
        metadata = {"dataset": "synthetic_tasks", "correlation": float(correlation), "seed": seed}
        channels = {NUMERICAL: NAMES, LABEL: LABELS, MAP: ()}
        spec = FeatureSpec(draft, features, {}, channels, metadata)
        (draft / TASKS_FILE).write_text(json.dumps(_described(tasks, correlation), indent=2) + "\n")
        mappings = {
            mapping: _frames(tasks, number, mapping, size, seed, log)
            for number, (mapping, size) in enumerate(sizes.items())
        }
        write_prepared(draft, spec, mappings, encoders, {})
    log.write(f"done: {output}")


def _frames(
    tasks: TaskParameters, number: int, mapping: str, rows: int, seed: int, log: StageLog
) -> Iterator[pd.DataFrame]:
    report, done = log.stage(mapping, rows), 0
    for inputs, labels in draw_rows(tasks, number, rows, seed):
        yield pd.DataFrame(np.hstack([inputs, labels]), columns=[*NAMES, *LABELS])
        done += len(inputs)
        report(done)


def _described(tasks: TaskParameters, correlation: float) -> dict[str, object]:
    return {
        "correlation": correlation,
        "noise": NOISE,
        "weights": tasks.weights.tolist(),
        "alpha": tasks.alpha.tolist(),
        "beta": tasks.beta.tolist(),
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0 success, 1 failure, 2 invalid input or arguments."""
    parser = Parser(
        prog="python -m data.synthetic_tasks.prepare",
        description=(
            "Creates a parquet dataset of two regression tasks over 100 normal inputs, correlated by --correlation "
            "(Ma et al., KDD 2018, section 3.2), with its feature specification."
        ),
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the dataset, created if missing")
    add("--correlation", type=float, default=0.5, help="cosine of the tasks' weights, -1 to 1")
    add("--rows", type=whole_number(1), default=1_000_000, help="training rows; test has a tenth, at least 1000")
    add("--seed", type=whole_number(0), default=0, help="seed of all random numbers")
    return run_prepare("synthetic_tasks", prepare, parser.parse(argv))


if __name__ == "__main__":
    sys.exit(main())
