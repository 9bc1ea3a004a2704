"""A new model is one file and one line: this file is the model's, and `register` is the line."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from data.errors import DataError
from trainer.cli import make_parser, parse
from trainer.config import ModelOptions, option
from trainer.lazy import tf
from trainer.models import MODELS
from trainer.models.lazy import layers
from trainer.models.network import Network


@dataclass(frozen=True, kw_only=True)
class ToyOptions(ModelOptions):
    """Flags of the toy model."""

    toy_units: int = option(4, "units of the toy model", at_least=2)


class Toy(Network):
    """A hidden layer whose units are shifted by one, and the logits of all tasks."""

    options_class = ToyOptions
    options: ToyOptions

    def build(self) -> None:
        self.hidden = layers.Dense(self.options.toy_units, self.dense_config, name="hidden")
        self.head = layers.Dense(self.outputs, self.dense_config.logits, name="head")

    def call(self, x, context=None):
        return self.head(tf.add(self.hidden(x, context=context), 1))


@pytest.fixture(autouse=True)
def register(monkeypatch):
    monkeypatch.setitem(MODELS, "toy", f"{__name__}:Toy")


def test_toy_model_has_flags():
    assert "--toy_units" in make_parser().format_help()
    options = parse(["--model", "toy", "--toy_units", "3"], 1)
    assert options.model == ToyOptions(model="toy", toy_units=3)
    assert options.as_dict()["toy_units"] == 3 and options.deep_optimizer.rule == "adam"
    with pytest.raises(DataError, match="--toy_units must be at least 2, got 1"):
        parse(["--model", "toy", "--toy_units", "1"], 1)


def test_toy_model_is_trained_and_restored(tmp_path):
    from main import main
    from tests.helpers import ROOT, make_dataset, metrics, words

    data = make_dataset(tmp_path, ROOT / "feature_specs" / "tiny.yaml", rows=400)
    paths = ["--dataset_path", str(data), "--model_dir", str(tmp_path / "model")]
    small = words("--global_batch_size 100 --num_epochs 1 --cpu --recipe published --affinity disabled")
    train = [*paths, *small, "--results_dir", str(tmp_path / "trained"), "--model", "toy", "--toy_units", "3"]
    assert main(train) == 0
    # The checkpoint remembers the model and its flag.
    assert main([*paths, *small, "--results_dir", str(tmp_path / "evaluated"), "--evaluate"]) == 0
    trained, evaluated = metrics(tmp_path / "trained"), metrics(tmp_path / "evaluated")
    np.testing.assert_allclose(evaluated["loss_val"], trained["loss_val"], rtol=1e-6)
    # A warm start on the same features and tasks needs no `axes`.
    warm = ["--dataset_path", str(data), "--model_dir", str(tmp_path / "warm"), *small, "--deep_learning_rate", "1e-30"]
    results = ["--results_dir", str(tmp_path / "warm_results")]
    assert main([*warm, *results, "--warm_start", str(tmp_path / "model")]) == 0
    np.testing.assert_allclose(metrics(tmp_path / "warm_results")["loss_val"], trained["loss_val"], rtol=1e-6)
