"""Ranking requests: the logits of candidates are those of whole rows, and what candidates share is computed once."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from data.spec.feature_spec import FeatureSpec
from tests.trainer.small_models import HISTORY, make_model
from trainer.export.ports import inputs_of, named_inputs
from trainer.export.rows import random_rows
from trainer.layout import (
    CategoricalInput,
    InputSchema,
    ModelInputs,
    PretrainedInput,
    SequenceInput,
    TrainingOnly,
    VectorInput,
    input_schema,
)
from trainer.models import MODELS
from trainer.models.network import Network
from trainer.models.parts import Parts, side_by_side
from trainer.models.ranking import RankingModel

CANDIDATES = 7
# Of both sides: ids, lists, weights, numbers, vectors and vectors that are looked up; features of one table; and a
# sequence of candidates beside those of the request.
FEATURES = (
    *(own for own in HISTORY.categorical if not own.multihot),
    CategoricalInput("day", 0, 1, False, 7, 4),
    CategoricalInput("place", 0, 1, False, 11, 3, wide="only"),
    *(replace(own, weights="tag_share") for own in HISTORY.categorical if own.name == "tags"),
    CategoricalInput("words", 0, 3, True, 40, 6, combiner="mean"),
    CategoricalInput("topics", 0, 2, True, 90, 6, "item", weights="topic_share"),
    *(own for own in HISTORY.categorical if own.sequence),
    CategoricalInput("steps_of_item", 0, 3, True, 30, 4, sequence="item_steps"),
)
STARTS = np.cumsum([0, *(own.hotness for own in FEATURES)]).tolist()
LAYOUT = InputSchema(
    categorical=tuple(replace(own, start=start) for own, start in zip(FEATURES, STARTS, strict=False)),
    numerical=("price", "age_of_user", "rank"),
    sequences=(*HISTORY.sequences, SequenceInput("item_steps", 3, "sum", ("steps_of_item",), ("step_rank",))),
    vectors=(VectorInput("title", 7), VectorInput("query", 5), VectorInput("score", 1)),
    pretrained=(PretrainedInput("image", "item", 5, True), PretrainedInput("face", "user", 3)),
    candidates=frozenset(
        ("item", "shop", "tags", "tag_share", "words", "steps_of_item", "step_rank", "price", "rank", "title", "score")
    ),
)
FEW = InputSchema(
    categorical=(CategoricalInput("user", 0, 1, False, 9, 4), CategoricalInput("item", 1, 1, False, 8, 4)),
    numerical=(),
    candidates=frozenset({"item"}),
)


def with_random_weights(model: RankingModel) -> RankingModel:
    """The model with weights that all matter, those that start as zeros or ones, too."""
    rng = np.random.default_rng(2)
    for variable in model.variables:
        values = rng.normal(size=variable.shape) * 0.2
        variable.assign(rng.uniform(0.5, 1.5, variable.shape) if "variance" in variable.path else values)
    return model


def request_of(layout: InputSchema, rows: int = CANDIDATES) -> tuple[ModelInputs, ModelInputs, ModelInputs]:
    """Random candidates of one request: whole rows, and the inputs of the request and of the candidates alone."""
    named = named_inputs(layout, random_rows(layout, rows))
    whole = {
        name: own if name in layout.candidates else np.repeat(own[:1], rows, axis=0) for name, own in named.items()
    }
    sides = [joined(side, {port.name: whole[port.name] for port in inputs_of(side)}) for side in layout.sides]
    return joined(layout, whole), ModelInputs(*(matrix[:1] for matrix in sides[0])), sides[1]


def joined(layout: InputSchema, named: dict[str, np.ndarray]) -> ModelInputs:
    """The matrices of a layout, put together by hand."""

    def beside(names: list[str], dtype: type) -> np.ndarray:
        empty = np.zeros((len(next(iter(named.values()))), 0), dtype)
        return np.concatenate([empty, *(named[name] for name in names)], axis=1)

    return ModelInputs(
        beside([own.name for own in layout.categorical], np.int32),
        beside([*layout.numerical], np.float32),
        beside([own.weights for own in layout.weighted], np.float32),
        beside([*layout.sequence_numbers], np.float32),
        beside([own.name for own in layout.vectors], np.float32),
    )


def check_equal(model: RankingModel, layout: InputSchema) -> None:
    rows, request, candidates = request_of(layout)
    wanted, found = model(*rows).numpy(), model.rank(request, candidates).numpy()
    assert wanted.shape == (CANDIDATES, model.network.outputs) and wanted.std(axis=0).min() > 1e-3
    np.testing.assert_allclose(1 / (1 + np.exp(-found)), 1 / (1 + np.exp(-wanted)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_candidates_get_the_logits_of_rows(model, batch_norm):
    flags = {"model": model, "wide_part": True, "batch_norm": batch_norm, "gate_hidden_units": (5,) * batch_norm}
    check_equal(with_random_weights(make_model(layout=LAYOUT, tasks=("click", "buy"), **flags)), LAYOUT)


@pytest.mark.parametrize("interaction", ["cross", "dot", "fm"])
def test_interactions_join_both_sides(interaction):
    flags = {"interaction": interaction, "numerical_scale": 0.5, "vector_units": 3, "cross_rank": 2}
    check_equal(with_random_weights(make_model(layout=LAYOUT, **flags)), LAYOUT)


@pytest.mark.parametrize("encoder", ["mean", "din", "self_attention"])
@pytest.mark.parametrize("of_candidates", [("item", "shop"), ("shop",), ("clicked_kind", "age", "dwell")])
def test_sequences_and_targets_may_be_on_any_side(encoder, of_candidates):
    if "clicked_kind" in of_candidates:
        of_candidates = (*of_candidates, "clicked_item", "clicked_shop")
    sequences = tuple(replace(own, encoder=encoder) for own in HISTORY.sequences)
    layout = replace(HISTORY, sequences=sequences, candidates=frozenset(of_candidates))
    check_equal(with_random_weights(make_model(layout=layout)), layout)


@pytest.mark.parametrize("wide", ["too", "only"])
def test_a_side_may_have_one_feature(wide):
    user, item = FEW.categorical
    layout = replace(FEW, categorical=(user, replace(item, wide=wide)))
    check_equal(with_random_weights(make_model(layout=layout)), layout)


def test_features_known_only_in_training_have_their_constants():
    layout = replace(FEW, training_only=TrainingOnly(("position",), (5,), (2.0,)))
    check_equal(with_random_weights(make_model(layout=layout)), layout)


def test_a_request_may_have_no_candidates():
    model, (_, request, candidates) = make_model(layout=LAYOUT), request_of(LAYOUT, 1)
    assert model.rank(request, ModelInputs(*(tf.constant(matrix[:0]) for matrix in candidates))).shape == (0, 1)


def graph_of(model: RankingModel, layout: InputSchema) -> tf.Graph:
    """The graph of a ranking request with any number of candidates."""
    _, request, candidates = request_of(layout)
    specs = [
        ModelInputs(*(tf.TensorSpec([count, matrix.shape[1]], matrix.dtype) for matrix in side))
        for side, count in ((request, 1), (candidates, None))
    ]
    return tf.function(model.rank, autograph=False).get_concrete_function(*specs).graph


@pytest.mark.parametrize("model", ["wide_deep", "mmoe"])
def test_the_first_layer_multiplies_once_what_candidates_share(model):
    layout = replace(FEW, numerical=("age", "price", "rank"), candidates=frozenset({"item", "rank"}))
    graph = graph_of(make_model(layout=layout, model=model), layout)
    found = {tuple(op.inputs[0].shape.as_list()) for op in graph.get_operations() if op.type == "MatMul"}
    assert {(1, 4 + 2), (None, 4 + 1)} <= found  # an embedding, and numbers
    # Neither an input of the whole width nor a whole kernel, which every request would have to divide.
    shapes = [tensor.shape for op in graph.get_operations() for tensor in op.outputs]
    assert not any(2 * 4 + 3 in shape for shape in shapes if shape.rank is not None)


class Halved(Network):
    """A network that computes with its input itself, which layers do not see."""

    def build(self) -> None:
        from trainer.models.layers import Dense

        self.head = Dense(self.outputs, self.dense_config.logits, name="head")

    def call(self, x, context=None):
        return self.head(x[:, ::2], context=context)


def test_networks_get_whole_rows_unless_they_take_parts(monkeypatch):
    monkeypatch.setitem(MODELS, "halved", "tests.trainer.test_ranking_requests:Halved")
    check_equal(with_random_weights(make_model(layout=LAYOUT, model="halved")), LAYOUT)


def test_parts_have_their_places():
    own, shared = np.arange(6.0).reshape(3, 2), np.array([[7.0, 8.0]])
    parts = Parts(*map(tf.constant, (shared, own)), np.array([3, 1]), np.array([0, 2]))
    wanted = [[0, 8, 1, 7], [2, 8, 3, 7], [4, 8, 5, 7]]
    np.testing.assert_array_equal(parts.whole(), wanted)
    # Embeddings [rows, features, width] before numbers.
    deep = parts._replace(shared=parts.shared[:, :, None] + [0, 100], own=parts.own[:, :, None] + [0, 100])
    flat = np.stack([wanted, np.array(wanted) + 100], axis=2).reshape(3, 8)
    np.testing.assert_array_equal(
        side_by_side([deep, deep], parts).whole(), np.concatenate([flat, flat, wanted], axis=1)
    )


def test_sides_are_those_of_the_specification(tmp_path):
    features = {
        "user": {"cardinality": 9},
        "item": {"cardinality": 8, "side": "candidate"},
        "tags": {"cardinality": 5, "max_hotness": 2, "weights": "shares", "side": "candidate"},
        "shares": {},
        "seen": {"cardinality": 8, "max_hotness": 3, "table": "item"},
        "price": {"side": "candidate"},
        "age": {"side": "request"},
        "image": {"pretrained": "images.parquet", "of": "item", "dimension": 2},
        "click": {},
    }
    rows = [{"type": "parquet", "features": [name for name in features if name != "image"], "files": ["a.parquet"]}]
    channels = {
        "onehot_categorical": ["user", "item"],
        "multihot_categorical": ["tags"],
        "numerical": ["price", "age"],
        "sequence": {"clicks": {"features": ["seen"], "target": ["item"]}},
        "vector": ["image"],
        "label": ["click"],
    }
    document = {"feature_spec": features, "source_spec": {"train": rows, "test": rows}, "channel_spec": channels}
    spec = FeatureSpec.from_dict(document, tmp_path)
    assert FeatureSpec.from_dict(spec.to_dict(), tmp_path) == spec
    request, candidates = input_schema(spec, {"user": 2, "item": 3, "tags": 4, "seen": 3}).sides
    names = [[port.name for port in inputs_of(side)] for side in (request, candidates)]
    assert names == [["user", "seen", "age"], ["item", "tags", "shares", "price"]]
    assert [(own.start, own.stop) for own in candidates.categorical] == [(0, 1), (1, 3)]
    assert [[own.name for own in side.pretrained] for side in (request, candidates)] == [[], ["image"]]
