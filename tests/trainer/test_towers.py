"""Towers of different shapes and widths, and how their units are given."""

import numpy as np
import pytest
import tensorflow as tf

from data.errors import DataError
from tests.trainer.small_models import make_batches, make_model, make_step, run
from trainer.cli import parse
from trainer.models.layers import DenseConfig, Towers
from trainer.models.multitask import MultiTaskOptions
from trainer.tasks.binary import BinaryTask
from trainer.tasks.multiclass import MulticlassTask
from trainer.tasks.task import logit_columns

TASKS = (BinaryTask("click"), MulticlassTask("rank", num_classes=3), BinaryTask("buy"), BinaryTask("stay"))
UNITS = [(5,), (5,), (), (5,)]


@pytest.mark.parametrize("shape", [(7, 6), (4, 7, 6)])
def test_each_task_has_its_own_tower(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    towers = Towers(TASKS, UNITS, DenseConfig("relu"), name="towers")
    found = towers(tf.constant(x)).numpy()
    assert found.shape == (7, 6)
    # Groups of one shape, in the order of their first task: click and stay, rank, buy.
    index_in_group = {0: (0, 0), 3: (0, 1), 1: (1, 0), 2: (2, 0)}
    for task, columns in enumerate(logit_columns(TASKS)):
        group, position = index_in_group[task]
        h = x if x.ndim == 2 else x[task]
        for layer in (*towers.hidden[group].dense, towers.logits[group]):
            h = h @ layer.kernel.numpy()[position] + layer.bias.numpy()[position]
            h = h if layer is towers.logits[group] else np.maximum(h, 0)
        np.testing.assert_allclose(found[:, columns], h, atol=1e-5)


@pytest.mark.parametrize("model", ["mmoe", "esmm", "aitm"])
def test_models_take_towers_per_task(model):
    towers = {"click": (4,), "buy": (6, 3)}
    net, batches = make_model(model=model, tasks=("click", "buy"), tower_hidden_units=towers), make_batches(2, tasks=2)
    step = make_step(net)
    assert all(np.isfinite(run(step, batch, 1)).all() for batch in batches)
    assert net.network.towers.hidden[1].dense[-1].units == 3


def options(*words: str) -> MultiTaskOptions:
    return parse(["--model", "mmoe", *words], 1).model


def test_units_from_command_line_or_yaml(tmp_path):
    assert options("--tower_hidden_units", "64", "32").tower_units("click") == (64, 32)
    assert options("--tower_hidden_units").tower_units("click") == ()
    (tmp_path / "towers.yaml").write_text("click: [64]\nbuy: []\n")
    read = options("--tower_hidden_units", str(tmp_path / "towers.yaml"))
    assert read.tower_units("click") == (64,) and read.tower_units("buy") == ()
    read.check_labels(["buy", "click"])
    with pytest.raises(DataError, match="towers for click, buy, and the labels are click"):
        read.check_labels(["click"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["many"], "expects whole numbers, or one YAML file"),
        (["0"], "must be at least 1"),
        (["-3"], "takes whole numbers|expected|-3"),
    ],
)
def test_invalid_units_are_rejected(words, message):
    with pytest.raises(DataError, match=message):
        options("--tower_hidden_units", *words)


@pytest.mark.parametrize("text", ["[1, 2]\n", "click: 64\n", "click: [a]\n", "click: [true]\n", "click: [0]\n"])
def test_invalid_units_file_is_rejected(tmp_path, text):
    (tmp_path / "towers.yaml").write_text(text)
    with pytest.raises(DataError, match=r"expected a list of whole numbers|must be at least 1|expected a mapping"):
        options("--tower_hidden_units", str(tmp_path / "towers.yaml"))
