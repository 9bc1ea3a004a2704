"""CONTRIBUTING's table of where to add code: one new file, and at most one line elsewhere.

A copy of the project gets a toy one of each kind, and nothing else is changed. It then trains, evaluates and exports.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.helpers import ROOT, run_program

pytestmark = pytest.mark.long
RUN_ALL = ROOT / "tests" / "distributed" / "programs" / "run_all.py"

PREPARE = '''
"""A dataset of three columns: `python -m data.toy.prepare OUTPUT`."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

ROWS = 64
SPECIFICATION = {
    "feature_spec": {
        "item": {"dtype": "int64", "cardinality": 8},
        "price": {"dtype": "float32"},
        "click": {"dtype": "float32"},
        "visits": {"dtype": "float32", "task": "count"},
    },
    "source_spec": {
        name: [{"type": "parquet", "features": ["item", "price", "click", "visits"], "files": [f"{name}.parquet"]}]
        for name in ("train", "test")
    },
    "channel_spec": {"onehot_categorical": ["item"], "numerical": ["price"], "label": ["click", "visits"]},
}

if __name__ == "__main__":
    output = Path(sys.argv[1])
    output.mkdir()
    for seed, name in enumerate(SPECIFICATION["source_spec"]):
        random = np.random.default_rng(seed)
        item, price = random.integers(0, 8, ROWS), random.normal(size=ROWS).astype(np.float32)
        click, visits = (price + random.normal(size=ROWS) > 0), random.poisson(np.exp(price))
        columns = {"item": item, "price": price, "click": click.astype("f4"), "visits": visits.astype("f4")}
        pq.write_table(pa.table(columns), output / f"{name}.parquet")
    (output / "feature_spec.yaml").write_text(yaml.safe_dump(SPECIFICATION))
'''

BRIER_SCORE = '''
"""The Brier score of binary tasks."""

import numpy as np

from trainer.metrics.calibration import probability
from trainer.metrics.metric import Collectives, Direction, Metric, weighted_mean
from trainer.metrics.rows import Rows


class BrierScore(Metric):
    """Weighted mean of (p - y)^2, with probability p and label y of each row."""

    name = "brier"
    title = "Brier score"
    direction = Direction.SMALLER
    headline = 1

    def result(self, rows: Rows, comm: Collectives) -> float:
        return weighted_mean(rows, comm, lambda block: np.square(probability(block.logits) - block.labels))
'''

COUNT = '''
"""Poisson regression of counts."""

from dataclasses import dataclass

import numpy as np

from trainer.metrics.losses import MeanLoss
from trainer.tasks.task import Task


class CountLoss(MeanLoss):
    name, title = "loss_val", "Loss"
    headline = 1

    def per_row(self, rows):
        logits = rows.logits.astype(np.float64)
        return np.exp(logits) - rows.labels * logits


@dataclass(frozen=True)
class CountTask(Task):
    """The logit is the logarithm of the expected count."""

    metrics = (CountLoss,)

    def loss(self, logits, labels):
        import tensorflow as tf

        return tf.nn.log_poisson_loss(labels, logits[:, 0])

    def activation(self, logits):
        import tensorflow as tf

        return tf.exp(logits)

    def predictions(self, logits):
        return np.exp(logits.astype(np.float64))
'''

WORST_TASK = '''
class WorstTask(LossWeighting):
    """Twice the loss of the worst task, and 0 for the others."""

    def total(self, shares, weights, factors, workers):
        return 2 * tf.reduce_max(factors * shares)

    def end_epoch(self, losses):
        print(f"loss of the worst task: {max(losses)}")


LOSS_WEIGHTINGS: dict[str, type[LossWeighting]] = {
    "worst": WorstTask,'''

SIGN_SGD = '''
class SignSGD(UpdateRule):
    """w <- w - rate sign(g)."""

    def update(self, weight, gradient, slots, rate, elapsed, step):
        import tensorflow as tf

        return weight - rate * tf.sign(gradient), {}


OPTIMIZERS: dict[str, type[UpdateRule]] = {
    "sign_sgd": SignSGD,'''

ARRAYS = '''
"""Export of a model's weights as one NumPy file each."""

import numpy as np

from trainer.export.graph import predictions
from trainer.export.graph import matrices


def write(folder, model, rows):
    for number, weight in enumerate(model.model.variables):
        np.save(folder / f"{number}.npy", weight.numpy())

    def predict(inputs):
        return {name: value.numpy() for name, value in predictions(model, matrices(model.layout, inputs)).items()}

    yield rows.check("the weights", predict)
'''


class Project:
    """A copy of the project, to which files and lines are added."""

    def __init__(self, folder: Path):
        self.folder, self.output = folder, ""
        for name in ("data", "trainer"):
            shutil.copytree(ROOT / name, folder / name)  # with the bytecode, which is valid for unchanged files
        for name in ("main.py", "export.py", "check_dataset.py"):
            shutil.copy(ROOT / name, folder)

    def add(self, path: str, text: str) -> None:
        """Adds a file, which must not exist."""
        assert not (self.folder / path).exists()
        (self.folder / path).parent.mkdir(exist_ok=True)
        (self.folder / path).write_text(text.lstrip())

    def edit(self, path: str, line: str, replacement: str) -> None:
        """Replaces a line, which must occur once, by itself and more."""
        text = (self.folder / path).read_text()
        assert text.count(line) == 1, f"{path} has {text.count(line)} lines {line!r}"
        (self.folder / path).write_text(text.replace(line, replacement))

    def register(self, path: str, after: str, line: str) -> None:
        """Adds one line."""
        assert "\n" not in line
        self.edit(path, f"{after}\n", f"{after}\n{line}\n")

    def run(self, *arguments: str) -> str:
        """Runs a program of the copy, which must succeed; returns its stdout."""
        done = run_program(arguments, cwd=self.folder, PYTHONPATH=str(self.folder), TF_CPP_MIN_LOG_LEVEL="3")
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """The project with a toy one of each kind, after a short training."""
    project = Project(tmp_path_factory.mktemp("project"))
    project.add("data/toy/prepare.py", PREPARE)
    project.add("trainer/metrics/brier.py", BRIER_SCORE)
    project.register("trainer/tasks/binary.py", "        CalibrationError,", "        BrierScore,")
    project.edit(
        "trainer/tasks/binary.py",
        "from trainer.metrics.calibration import",
        "from trainer.metrics.brier import BrierScore\nfrom trainer.metrics.calibration import",
    )
    project.add("trainer/tasks/count.py", COUNT)
    project.register("data/spec/task_types.py", '    "regression": LabelKind.NUMBER,', '    "count": LabelKind.NUMBER,')
    table = "LOSS_WEIGHTINGS: dict[str, type[LossWeighting]] = {"
    project.edit("trainer/tasks/loss_weighting.py", table, WORST_TASK.strip())
    project.edit("trainer/optimizers/rules.py", "OPTIMIZERS: dict[str, type[UpdateRule]] = {", SIGN_SGD.strip())
    project.add("trainer/export/arrays.py", ARRAYS)
    project.register(
        "trainer/export/__init__.py", "FORMATS = {", '    "arrays": ExportFormat("trainer.export.arrays"),'
    )
    project.register(
        "trainer/config.py", '    """How it is trained."""', '    lucky_number: int = option(7, "changes nothing")'
    )
    project.run("-m", "data.toy.prepare", "dataset")
    arguments = "--dataset_path dataset --model_dir model --results_dir results --cpu --recipe published --num_epochs 2"
    model = "--model mmoe --num_experts 2 --expert_hidden_units 8 --tower_hidden_units 4 --global_batch_size 32"
    toys = "--optimizer sign_sgd --loss_weighting worst --lucky_number 13 --deep_learning_rate 0.01 --log_every 1"
    again = "--dataset_path dataset --model_dir model --results_dir again --cpu --evaluate --checkpoint last"
    again += " --predictions_file predictions.parquet"
    scenarios = [[*arguments.split(), *model.split(), *toys.split()], again.split()]
    (project.folder / "scenarios.json").write_text(json.dumps(scenarios))
    project.output = project.run(str(RUN_ALL), "scenarios.json")
    return project


def test_a_toy_dataset_is_valid(project):
    assert "no findings" in project.run("check_dataset.py", "dataset")


def test_a_toy_metric_is_logged(project):
    metrics = json.loads((project.folder / "results" / "metrics.json").read_text())
    rows = pq.read_table(project.folder / "predictions.parquet").to_pandas()
    click = rows["prediction_click"] - rows["label_click"]
    assert metrics["brier/click"] == pytest.approx(np.mean(click**2), rel=1e-6)
    assert "brier/visits" not in metrics


def test_a_toy_task_type_has_its_loss_and_predictions(project):
    metrics = json.loads((project.folder / "again" / "metrics.json").read_text())
    rows = pq.read_table(project.folder / "predictions.parquet").to_pandas()
    losses = rows["prediction_visits"] - rows["label_visits"] * np.log(rows["prediction_visits"])
    assert metrics["loss_val/visits"] == pytest.approx(losses.mean(), rel=1e-6)
    assert (rows["prediction_visits"] > 0).all()


def test_toy_flag_optimizer_and_weighting_are_used(project):
    flags = json.loads((project.folder / "results" / "args.json").read_text())
    assert (flags["lucky_number"], flags["optimizer"], flags["loss_weighting"]) == (13, "sign_sgd", "worst")
    assert project.output.count("loss of the worst task: ") == 2  # once per epoch


def test_a_toy_export_format_is_compared_and_written(project):
    project.run("export.py", "--model_dir", "model", "--output", "arrays", "--format", "arrays")
    assert list((project.folder / "arrays").glob("*.npy"))
