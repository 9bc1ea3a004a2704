"""What a warm start makes of the weights where features and tasks differ, by the predictions of both models."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import left_to_all, words
from trainer.checkpoint.run_state import Origin
from trainer.checkpoint.schema import FeatureEntry, ModelSchema, SequenceEntry, TaskEntry
from trainer.checkpoint.starting_model import StartingModel
from trainer.checkpoint.state import TrainState
from trainer.checkpoint.warm_start import WarmSource
from trainer.cli import parse
from trainer.config import Options
from trainer.layout import InputSchema, input_schema
from trainer.models import build_model
from trainer.models.ranking import RankingModel
from trainer.optimizers.optimizer import Optimizer, ParameterGroup
from trainer.optimizers.rules import Adagrad, AdamW
from trainer.optimizers.schedules import Constant
from trainer.tasks.task import logit_columns, tasks_of
from trainer.variables import TableRows, assign_rows

ONEHOT, MULTIHOT, NUMERICAL = "onehot_categorical", "multihot_categorical", "numerical"
FEATURES = (
    FeatureEntry("item", ONEHOT, 40, 4),
    FeatureEntry("shop", ONEHOT, 7, 3),
    FeatureEntry("place", ONEHOT, 9, 4, wide="no"),
    FeatureEntry("country", ONEHOT, 5, wide="only", width=2),
    FeatureEntry("tags", MULTIHOT, 12, 3, max_hotness=3),
    FeatureEntry("age", NUMERICAL),
    FeatureEntry("price", NUMERICAL),
    FeatureEntry("stay", NUMERICAL, serve=0.5),
    FeatureEntry("browser", ONEHOT, 6, serve=1.0),
    FeatureEntry("title", "vector", dimension=3),
    FeatureEntry("picture", "vector", dimension=5, of="item", trained=True),
    FeatureEntry("clicked", "sequence", 40, 4, table="item"),
)
NEW = (FeatureEntry("brand", ONEHOT, 11, 3), FeatureEntry("words", MULTIHOT, 8, 4, max_hotness=2))
SEQUENCES = (SequenceEntry("clicks", ("clicked",), ("item",), "din", "newest_last", 3),)
CLICK, BUY = TaskEntry("click", "binary"), TaskEntry("buy", "binary", given="click")
KIND = TaskEntry("kind", "multiclass", classes=3)
ROWS = 50

SMALL = "--deep_hidden_units 8 --expert_hidden_units 6 --tower_hidden_units 4 --num_experts 3 --recipe published"
VARIANTS = {
    "wide_deep": "--batch_norm",
    "wide_deep_linear": "--training_only_hidden_units",
    "cross": "--interaction cross --cross_layers 2",
    "cross_rank": "--interaction cross --cross_layers 2 --cross_rank 2",
    "dot": "--interaction dot --numerical_hidden_units 4",
    "fm": "--interaction fm --vector_units 2",
    "shared_bottom": "--model shared_bottom --wide_part",
    "omoe": "--model omoe",
    "mmoe": "--model mmoe --gate_hidden_units 5 --batch_norm",
    "cgc": "--model cgc --interaction cross",
    "ple": "--model ple",
    "esmm": "--model esmm",
    "aitm": "--model aitm",
}
USUAL = ("wide_deep", "cross", "dot", "fm", "mmoe", "cgc", "aitm", "esmm")


@dataclass(frozen=True)
class Built:
    """A model with random weights, and what it was built for."""

    schema: ModelSchema
    layout: InputSchema
    model: RankingModel
    config: Options

    @property
    def weights(self) -> dict[str, np.ndarray]:
        sources = TrainState(self.model.weights_by_name).sources()
        return {source.name: np.concatenate(list(source.blocks())) for source in sources}

    def predictions(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The logits of each task for rows with values by feature, outside training."""
        layout = self.layout
        ids = np.concatenate([rows[one.name] for one in layout.categorical], axis=1)
        vectors = [rows[one.name] for one in layout.vectors]
        numerical = np.concatenate([np.empty((ROWS, 0)), *(rows[name] for name in layout.numerical)], axis=1)
        logits = self.model(
            ids.astype(np.int32),
            numerical.astype(np.float32),
            None,
            None,
            np.concatenate(vectors, axis=1).astype(np.float32) if vectors else None,
        ).numpy()
        columns = logit_columns(self.model.tasks)
        return {task.name: logits[:, own] for task, own in zip(self.model.tasks, columns, strict=True)}

    def zero(self, *names: str) -> None:
        """Sets the weights of arrays to 0."""
        for name in names:
            if name in self.model.weights_by_name:
                table = cast(TableRows, self.model.weights_by_name[name])
                assign_rows(table.variable, table.own(0, table.rows).start, np.zeros(table.shape, np.float32))


def build(features: Sequence[FeatureEntry], tasks: Sequence[TaskEntry], flags: str, seed: int) -> Built:
    schema = ModelSchema(tuple(features), tuple(tasks), SEQUENCES if FEATURES[-1] in features else ())
    config = parse([*words(SMALL), *words(flags)], 1)
    spec = schema.spec()
    layout = input_schema(spec, schema.widths)
    model = build_model(config.model, layout, tasks_of(spec), compute_dtype="float32", seed=seed)
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        values = rng.normal(0, 0.5, variable.shape)
        variable.assign(abs(values) + 0.5 if "variance" in variable.path else values)
    return Built(schema, layout, model, config)


def starting_model(old: Built, steps: int = 0, arrays: dict[str, np.ndarray] | None = None, **options: Any) -> Any:
    arrays = old.weights if arrays is None else arrays
    weights = SimpleNamespace(
        path=Path("old"),
        arrays={name: (own.shape, own.dtype) for name, own in arrays.items()},
        read=arrays.__getitem__,
        read_rows=lambda name, start, stop: arrays[name][start:stop],
    )
    return StartingModel(cast(Any, weights), vars(old.config.model) | options, old.schema, Origin(steps), None)


def warm_started(old: Built, new: Built) -> list[str]:
    """Gives the new model the weights of the old one; returns the report."""
    state = TrainState(new.model.weights_by_name)
    shapes = {name: tuple(variable.shape) for name, variable in state.variables.items()}
    source = WarmSource(starting_model(old), new.config, new.schema.spec(), new.layout, shapes, shapes)
    state.start_from(source)
    return source.report


def random_rows() -> dict[str, np.ndarray]:
    """Values of all features, [ROWS, n] each."""
    rng, rows = np.random.default_rng(9), {}
    for entry in (*FEATURES, *NEW):
        hotness = 3 if entry.name == "clicked" else entry.max_hotness or 1
        if entry.cardinality:
            ids = rng.integers(entry.cardinality, size=(ROWS, hotness))
            kept = np.arange(hotness) < rng.integers(1, hotness + 1, size=(ROWS, 1))
            rows[entry.name] = np.where(kept, ids, -1)
        else:
            rows[entry.name] = rng.normal(size=(ROWS, entry.dimension or 1))
    return rows


def tasks_for(variant: str) -> list[TaskEntry]:
    """Tasks whose order does not matter to the model."""
    return [CLICK, BUY] if variant == "aitm" else [CLICK, BUY, KIND]


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray], names: Sequence[str]) -> None:
    for name in names:
        assert one[name].std() > 1e-2
        np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("variant", left_to_all(VARIANTS, USUAL))
def test_predictions_stay(variant):
    """Before the first step, whatever has been reordered, added or removed around what they depend on."""
    flags, tasks, rows = VARIANTS[variant], tasks_for(variant), random_rows()
    old = build(FEATURES, tasks, flags, 1)
    expected, names = old.predictions(rows), [task.name for task in tasks]

    reordered = build(FEATURES[::-1], tasks[::-1], flags, 2)
    assert not np.allclose(reordered.predictions(rows)["click"], expected["click"])
    report = warm_started(old, reordered)
    assert report[1:] == [line for line in report[1:] if "model folder" in line or "rows that they had" in line]
    assert_equal(expected, reordered.predictions(rows), names)

    # Features whose values are 0 change nothing.
    extended = build((*NEW, *FEATURES), tasks, flags, 3)
    report = warm_started(old, extended)
    assert sorted(line for line in report if line.startswith("starts cold")) == [
        "starts cold: brand: it is new",
        "starts cold: words: it is new",
    ]
    extended.zero(*(f"embeddings/{part}.{entry.name}" for part in ("deep", "wide") for entry in NEW))
    assert_equal(expected, extended.predictions(rows), names)

    gone = ("shop", "tags", "age", "country")
    reduced = build([entry for entry in FEATURES if entry.name not in gone], tasks, flags, 4)
    warm_started(old, reduced)
    old.zero(*(f"embeddings/{part}.{name}" for part in ("deep", "wide") for name in gone))
    of_zeros = old.predictions(rows | {"age": np.zeros((ROWS, 1))})
    assert not np.allclose(of_zeros["click"], expected["click"])
    assert_equal(of_zeros, reduced.predictions(rows), names)

    if variant == "ple":  # the shared part of its lower level reads the experts of all tasks
        return
    more = TaskEntry("like", "binary", given="buy" if variant == "aitm" else None)
    with_task = build(FEATURES, (*tasks, more) if variant == "aitm" else (more, *tasks), flags, 5)
    warm_started(old, with_task)
    assert_equal(old.predictions(rows), with_task.predictions(rows), names)
    fewer = build(FEATURES, tasks[:1], flags, 6)
    warm_started(old, fewer)
    assert_equal(old.predictions(rows), fewer.predictions(rows), names[:1])


def test_experts_are_matched_by_their_task():
    """ple has, per level, two experts of each task and then two shared ones; gates of tasks, and then a shared one."""
    buy = replace(BUY, given=None)
    old, new = (build(FEATURES, tasks, "--model ple", seed) for seed, tasks in enumerate(([CLICK, buy], [buy])))
    warm_started(old, new)
    before, after = old.weights, new.weights
    for level in (1, 2):
        np.testing.assert_array_equal(
            after[f"ple/experts_{level}/layer_1/kernel"], before[f"ple/experts_{level}/layer_1/kernel"][2:]
        )
        gates = f"ple/gates_{level}/linear/kernel"
        np.testing.assert_array_equal(after[gates], before[gates][1:, :, 2:])


def test_what_starts_cold_is_listed():
    old = build(FEATURES, [CLICK], "", 1)
    changed = {
        "place": replace(FEATURES[2], width=5),
        "browser": replace(FEATURES[8], cardinality=8),
        "picture": replace(FEATURES[10], of="shop"),
    }
    new = build([changed.get(entry.name, entry) for entry in FEATURES[:-1]], [CLICK], "", 2)
    cold = {line.split(": ")[1]: line for line in warm_started(old, new) if line.startswith("starts cold")}
    assert {"place", "picture"} <= cold.keys() and "width was 4 and is 5" in cold["place"]
    # A table of the tower of training-only features grows like any other.
    assert not any("browser" in name for name in cold)
    table = "wide_deep/training_only/id.browser"
    np.testing.assert_array_equal(new.weights[table][:6], old.weights[table])


def test_averages_and_missed_steps_of_what_is_new():
    """A new row has missed no steps. A new average, of a row with its last update in step k, is (1 - momentum^k) w."""
    steps, momentum = 12, 0.9
    old = build(FEATURES[:6], [CLICK], "", 1)
    grown = [replace(entry, cardinality=45) if entry.name == "item" else entry for entry in FEATURES[:6]]
    new = build(grown, [CLICK], f"--ema_momentum {momentum}", 2)
    table, rng = "embeddings/deep.item", np.random.default_rng(0)
    state = {f"{table}.average": rng.random((40, 4), np.float32), f"{table}.last_step": np.arange(40, dtype=np.float32)}
    shapes = {name: tuple(own.shape) for name, own in new.model.weights_by_name.items()}
    shapes |= {f"{table}.average": (45, 4), f"{table}.last_step": (45,)}
    for same in (True, False):
        model = starting_model(old, steps, old.weights | state, ema_momentum=momentum if same else 0.5)
        source = WarmSource(model, new.config, new.schema.spec(), new.layout, shapes, new.model.weights_by_name)
        weights = source.read(table, 0, 45, new.weights[table])
        np.testing.assert_array_equal(weights, np.concatenate([old.weights[table], new.weights[table][40:]]))
        found = source.read(f"{table}.average", 0, 45, weights)
        known = state[f"{table}.average"] if same else weights[:40] * (1 - momentum ** np.arange(40)[:, np.newaxis])
        np.testing.assert_allclose(found[:40], known, rtol=1e-5)
        np.testing.assert_allclose(found[40:], weights[40:] * (1 - momentum**steps), rtol=1e-5)
        missed = source.read(f"{table}.last_step", 0, 45, np.zeros(45, np.float32))
        np.testing.assert_array_equal(missed, [*range(40), *[steps] * 5])


def test_known_features_come_first_and_tasks_stay():
    """A task between two others is between them in the chain of aitm, and may not move to its end."""
    old = ModelSchema(FEATURES[:2], (CLICK, KIND))
    spec = ModelSchema((NEW[0], *FEATURES[1::-1]), (CLICK, TaskEntry("cart", "binary"), KIND)).spec()
    ordered = ModelSchema.of(old.ordered(spec), {})
    assert [entry.name for entry in ordered.features] == ["item", "shop", "brand"]
    assert [task.name for task in ordered.tasks] == ["click", "cart", "kind"]


@pytest.mark.parametrize("rule", ["adamw", "adagrad"])
def test_decay_of_missed_steps(rule):
    """A row that no step has touched catches up on all steps since its last one, before and after the warm start."""
    steps, now, rate, factor, table = 30, 37, 0.01, 0.03, "embeddings/deep.item"
    old = build(FEATURES[:6], [CLICK], "", 1)
    grown = [replace(entry, cardinality=45) if entry.name == "item" else entry for entry in FEATURES[:6]]
    new = build(grown, [CLICK], f"--optimizer {rule}", 2)
    last_step = np.random.default_rng(0).integers(steps + 1, size=40).astype(np.float32)
    shapes = {name: tuple(own.shape) for name, own in new.model.weights_by_name.items()} | {f"{table}.last_step": (45,)}
    model = starting_model(old, steps, old.weights | {f"{table}.last_step": last_step}, optimizer=rule)
    source = WarmSource(model, new.config, new.schema.spec(), new.layout, shapes, new.model.weights_by_name)
    weights = source.read(table, 0, 45, new.weights[table])
    variable = tf.Variable(weights)
    decays = {"adamw": AdamW(weight_decay=factor), "adagrad": Adagrad()}[rule]
    l2 = {table: factor} if rule == "adagrad" else {}
    optimizer = Optimizer(ParameterGroup(decays, Constant(rate), {}, {table: variable}, l2))
    state = optimizer.table_state(table)[".last_step"]
    state.assign(source.read(f"{table}.last_step", 0, 45, state.numpy()))
    touched = np.arange(0, 45, 2)
    none = tf.IndexedSlices(tf.zeros((len(touched), 4)), tf.constant(touched), tf.constant([45, 4]))
    optimizer.apply({table: none}, tf.constant(now))
    missed = now - np.array([*last_step, *[steps] * 5], np.float64)
    kept = (1 - rate * factor) ** missed if rule == "adamw" else 1 - 2 * factor * rate / np.sqrt(0.1 + 1e-7) * missed
    expected = weights.astype(np.float64) * kept[:, np.newaxis]
    np.testing.assert_allclose(variable.numpy()[touched], expected[touched], rtol=1e-6)
    np.testing.assert_array_equal(variable.numpy()[1::2], weights[1::2])
