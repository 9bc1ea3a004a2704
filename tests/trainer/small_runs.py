"""Small runs of main.py on random rows of a specification, and the models that they leave behind."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import tensorflow as tf

from data.loading.loader import ParquetLoader
from data.spec.feature_spec import FeatureSpec
from main import main
from tests.helpers import make_dataset, must, words
from trainer.checkpoint.load_model import LoadedModel, load_model
from trainer.layout import ModelInputs

FLAGS = words(
    "--deep_hidden_units 16 --global_batch_size 64 --eval_batch_size 100 --embedding_init_std 0.3 --num_epochs 2 "
    "--deep_learning_rate 0.01 --recipe published --cpu --deterministic"
)
ROWS = 300


@dataclass(frozen=True)
class SmallRun:
    """A finished run and its test rows.

    Attributes:
        folder: holds `models` and `results`.
        data: folder of the dataset, whose mappings have ROWS rows each.
        saved: the model folder.
        inputs: what the model is called with for the rows of the mapping test.
        labels: [rows] the label of these rows.
    """

    folder: Path
    data: Path
    saved: LoadedModel
    inputs: ModelInputs
    labels: np.ndarray

    def loss(self, inputs: ModelInputs) -> float:
        """The mean log loss of the model folder's weights on these inputs."""
        p = probabilities(self.saved, inputs).astype(float)
        return -np.mean(np.where(self.labels > 0.5, np.log(p), np.log1p(-p)))

    def predicted(self, folder: Path) -> np.ndarray:
        """The probabilities that --predict writes for the rows of the mapping test, in their order, [rows]."""
        must(run(self.data, self.folder, "--predict", str(folder / "predictions.parquet")))
        found = pq.read_table(folder / "predictions.parquet").to_pydict()
        assert found["row"] == list(range(ROWS))
        return np.array(found["prediction_click"])

    def resumed(self, folder: Path) -> LoadedModel:
        """The model of another run, in the folder, that resumes at the first checkpoint."""
        shutil.copytree(self.folder / "models", folder / "models")
        first = min((folder / "models" / "checkpoints").iterdir(), key=lambda path: int(path.name[5:]))
        must(run(self.data, folder, "--use_checkpoint", "--checkpoint", str(first)))
        return load_model(folder / "models" / "model")


def run(data: Path, folder: Path, *more: str) -> int:
    """Runs main.py with FLAGS and more; returns its exit code."""
    places = {"--dataset_path": data, "--model_dir": folder / "models", "--results_dir": folder / "results"}
    return main([*(str(part) for place in places.items() for part in place), *FLAGS, *more])


def train(spec: Path, folder: Path, *more: str) -> SmallRun:
    """Trains on random rows of a specification, with FLAGS and more."""
    data = make_dataset(folder, spec, rows=ROWS)
    must(run(data, folder, "--keep_checkpoints", "9", *more))
    saved = load_model(folder / "models" / "model")
    read = FeatureSpec.read(data / "feature_spec.yaml")
    (batch,) = ParquetLoader(read, "test", global_batch_size=ROWS, shuffle=False).epoch(0)
    inputs = saved.layout.model_inputs(batch.ids, batch.numerical, batch.vectors)
    return SmallRun(folder, data, saved, inputs, batch.labels[:, 0])


def probabilities(saved: LoadedModel, inputs: ModelInputs) -> np.ndarray:
    """The probabilities of a binary label, [rows]."""
    return tf.sigmoid(saved.model(*inputs)).numpy()[:, 0]
