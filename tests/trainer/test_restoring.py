"""What a checkpoint restores has no initial values before."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from export import main as export
from main import main
from tests.helpers import ROOT, make_dataset, metrics, must, words
from trainer.checkpoint.state import TrainState
from trainer.checkpoint.store import CheckpointStore
from trainer.embeddings.initialization import NormalTable
from trainer.variables import assign_rows, initial_value, rows_of

FLAGS = words(
    "--deep_hidden_units 8 --global_batch_size 64 --eval_batch_size 64 --cpu --recipe published --deterministic"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("restoring"), ROOT / "feature_specs" / "tiny.yaml", rows=400)


def run(data: Path, folder: Path, *more: str) -> None:
    places = {"--dataset_path": data, "--model_dir": folder / "models", "--results_dir": folder / "results"}
    must(main([*(str(part) for place in places.items() for part in place), *FLAGS, *more]))


def arrays(folder: Path) -> dict[str, np.ndarray]:
    checkpoint = CheckpointStore(folder / "models").open("last")
    return {name: checkpoint.read(name) for name in checkpoint.arrays}


def test_restored_runs_set_no_initial_values(data, tmp_path, monkeypatch):
    """Evaluation, prediction, export and a resumed run start from memory full of NaN instead."""
    run(data, tmp_path, "--num_epochs", "2", "--keep_checkpoints", "9")
    whole, trained = arrays(tmp_path), metrics(tmp_path / "results")
    first, last = sorted((tmp_path / "models" / "checkpoints").iterdir(), key=lambda path: int(path.name[5:]))

    def broken(shape: tuple[int, ...], value: float, *, overwritten: bool, dtype: str = "float32") -> tf.Tensor:
        assert overwritten, "a slot or table was given an initial value"
        return tf.fill(shape, tf.constant(np.nan, dtype))

    for module in ("embeddings.tables", "optimizers.optimizer"):
        monkeypatch.setattr(f"trainer.{module}.initial_value", broken)
    monkeypatch.setattr(NormalTable, "draw", lambda self, block: pytest.fail("an initial value was drawn"))
    run(data, tmp_path, "--evaluate", "--checkpoint", str(last))
    assert metrics(tmp_path / "results").items() <= trained.items()
    run(data, tmp_path, "--predict", str(tmp_path / "predictions.parquet"))
    must(export([f"--model_dir={tmp_path / 'models'}", f"--output={tmp_path / 'out'}", "--format=savedmodel"]))
    run(data, tmp_path, "--use_checkpoint", "--checkpoint", str(first), "--num_epochs", "2")
    resumed = arrays(tmp_path)
    for name, array in whole.items():
        np.testing.assert_array_equal(resumed[name], array, err_msg=name)


@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (1000, 3), (50, 17, 2)])
def test_variables_are_restored_in_blocks_by_several_threads(tmp_path, monkeypatch, shape):
    monkeypatch.setattr("data.storage.arrays.BLOCK_BYTES", 1 << 10)
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    CheckpointStore(tmp_path).save(1, TrainState({"table": tf.Variable(values)}).sources(), {})
    restored = tf.Variable(initial_value(shape, 0.0, overwritten=True))
    TrainState({"table": restored}).restore(CheckpointStore(tmp_path).open("last"))
    np.testing.assert_array_equal(restored.numpy(), values)


def test_a_block_that_is_read_stays_as_it_was():
    variable = tf.Variable(np.arange(12, dtype=np.float32).reshape(6, 2))
    variable.sparse_read([1])  # as a lookup does, after which TensorFlow updates the variable in place
    block, source = rows_of(variable, 2, 4), TrainState({"table": variable}).sources()[0]
    copies = list(source.blocks())
    assign_rows(variable, 3, np.float32([[-1, -1]]))
    np.testing.assert_array_equal(block.numpy(), [[4, 5], [6, 7]])
    np.testing.assert_array_equal(np.concatenate(copies), np.arange(12).reshape(6, 2))
    np.testing.assert_array_equal(variable.numpy()[2:4], [[4, 5], [-1, -1]])
