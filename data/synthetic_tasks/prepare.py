"""Generate the MMoE paper's synthetic tasks: python -m data.synthetic_tasks.prepare --output DIR --correlation P.

Besides the dataset, it writes `tasks.json` with the parameters of the labels: weights, alpha, beta and the standard
deviation of the noise, whose square, 0.01, is the lowest mean squared error that a model can achieve.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from data.command_line import Parser, whole_number
from data.errors import DataError
from data.files.new_dataset import new_dataset
from data.preprocess.encoders import Encoder, Numerical
from data.preprocess.prepared import Progress, encoded_features, write_prepared
from data.preprocess.splits import TEST, TRAIN
from data.preprocess.tabular.prepare import run_prepare
from data.spec.feature_spec import FeatureSpec
from data.spec.features import LABEL, MAP, NUMERICAL, Feature
from data.synthetic_tasks.tasks import INPUTS, NOISE, Tasks, draw_rows, draw_tasks

NAMES = tuple(f"x_{number}" for number in range(INPUTS))
LABELS = ("y1", "y2")
LEAST_TEST_ROWS = 1000
TASKS_FILE = "tasks.json"


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
    progress = Progress("synthetic_tasks")
    tasks = draw_tasks(correlation, seed)
    # The default encoders keep the inputs unchanged; these are standard normal already.
    encoders: dict[str, Encoder] = {name: Numerical(name) for name in NAMES}
    features = encoded_features(encoders, {})
    features |= {name: Feature(name=name, dtype="float32", task="regression") for name in LABELS}
    sizes = {TRAIN: rows, TEST: max(LEAST_TEST_ROWS, rows // 10)}
    with new_dataset(output) as draft:
        metadata = {"dataset": "synthetic_tasks", "correlation": float(correlation), "seed": seed}
        channels = {NUMERICAL: NAMES, LABEL: LABELS, MAP: ()}
        spec = FeatureSpec(draft, features, {}, channels, metadata)
        (draft / TASKS_FILE).write_text(json.dumps(_described(tasks, correlation), indent=2) + "\n")
        mappings = {
            mapping: _frames(tasks, number, mapping, size, seed, progress)
            for number, (mapping, size) in enumerate(sizes.items())
        }
        write_prepared(draft, spec, mappings, encoders, {})
    progress.tell(f"done: {output}")


def _frames(
    tasks: Tasks, number: int, mapping: str, rows: int, seed: int, progress: Progress
) -> Iterator[pd.DataFrame]:
    told, done = progress.stage(mapping, rows), 0
    for inputs, labels in draw_rows(tasks, number, rows, seed):
        yield pd.DataFrame(np.hstack([inputs, labels]), columns=[*NAMES, *LABELS])
        done += len(inputs)
        told(done)


def _described(tasks: Tasks, correlation: float) -> dict[str, object]:
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
            "Makes a parquet dataset of two regression tasks over 100 normal inputs, as related as --correlation says "
            "(Ma et al., KDD 2018, section 3.2), with its feature specification."
        ),
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the dataset, made if missing")
    add("--correlation", type=float, default=0.5, help="cosine of the tasks' weights, -1 to 1")
    add("--rows", type=whole_number(1), default=1_000_000, help="training rows; test has a tenth, at least 1000")
    add("--seed", type=whole_number(0), default=0, help="of everything drawn")
    return run_prepare("synthetic_tasks", prepare, parser.parse(argv))


if __name__ == "__main__":
    sys.exit(main())
