from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from data.errors import DataError
from data.spec.embedding_sizes import embedding_dims
from data.spec.feature_spec import FeatureSpec
from tests.helpers import ROOT
from tests.trainer.small_models import LAYOUT, make_batches, make_model
from trainer.layout import CategoricalInput, InputSchema, input_schema
from trainer.models import build_model, model_options
from trainer.tasks.binary import BinaryTask


def test_outbrain_has_published_number_of_parameters():
    spec = FeatureSpec.read(ROOT / "feature_specs" / "fspec_csv.yaml")
    layout = input_schema(spec, embedding_dims(spec, ROOT / "data" / "outbrain" / "embedding_sizes.json"))
    assert layout.width == 1248
    model = build_model(model_options(), layout, (BinaryTask("clicked"),), compute_dtype="float32", seed=0)
    assert model.count_params() == 91_777_245
    assert sum(variable.shape.num_elements() for variable in model.embeddings.deep_variables) == 85_616_076
    columns = layout.categorical[0]
    spread = np.std(model.embeddings.tables()[f"embeddings/deep.{columns.name}"].numpy()[:10_000])
    np.testing.assert_allclose(spread, np.sqrt(2 / (columns.cardinality + columns.width)), rtol=0.02)


@pytest.mark.parametrize(("combiner", "scale"), [("sum", 0.25), ("mean", 1.0)])
def test_logits_equal_the_formula_row_by_row(combiner, scale):
    model = make_model(combiner=combiner, numerical_scale=scale)
    rng = np.random.default_rng(3)
    for variable in model.variables:
        variable.assign(rng.normal(size=variable.shape) * 0.3)
    batch = make_batches(1)[0]
    logits = model(batch.ids, batch.numerical).numpy()
    weights = {
        name.split("/", 1)[1]: weight.numpy().astype(np.float64) for name, weight in model.weights_by_name.items()
    }
    user, day, wide_tags, wide_friends = (weights[f"wide.{feature.name}"][:, 0] for feature in LAYOUT.categorical)
    for ids, numbers, logit in zip(batch.ids.numpy(), batch.numerical.numpy(), logits[:, 0], strict=True):
        tags, friends = ([number for number in own if number >= 0] for own in (ids[2:5], ids[5:]))
        of_tags = sum((weights["deep.tags"][tag] for tag in tags), np.zeros(6))
        of_friends = sum((weights["deep.user"][friend] for friend in friends), np.zeros(8))  # the same table
        if combiner == "mean":
            of_tags, of_friends = of_tags / max(len(tags), 1), of_friends / max(len(friends), 1)
        # The deep input is ordered by width: day has 4 columns, tags 6, and user and friends 8.
        embeddings = [weights["deep.day"][ids[1]], of_tags, weights["deep.user"][ids[0]], of_friends]
        x = np.concatenate([*embeddings, scale * numbers])
        for layer in ("hidden/layer_1", "hidden/layer_2"):
            x = np.maximum(x @ weights[f"{layer}/kernel"] + weights[f"{layer}/bias"], 0)
        deep = x @ weights["head/kernel"] + weights["head/bias"]
        linear = user[ids[0]] + day[ids[1]] + wide_tags[tags].sum() + wide_friends[friends].sum()
        linear += numbers @ weights["wide_numerical"] + weights["wide_bias"]
        np.testing.assert_allclose(logit, (deep + linear).item(), rtol=1e-4, atol=1e-5)


def test_features_of_one_part_are_in_that_part():
    user, day, tags, friends = LAYOUT.categorical
    layout = InputSchema((replace(user, wide="only"), replace(day, wide="no"), tags, friends), LAYOUT.numerical)
    names = {name.removeprefix("embeddings/") for name in make_model(layout=layout).embeddings.tables()}
    # The only deep feature of the table that user shares is friends.
    assert names == {"deep.user", "deep.day", "deep.tags", "wide.user", "wide.tags", "wide.friends"}
    assert layout.width == LAYOUT.width - 8
    model_options().check_layout(layout)
    with pytest.raises(DataError, match="user: `wide: only`, and --model mmoe has no wide part; pass --wide_part"):
        model_options(model="mmoe").check_layout(layout)
    with pytest.raises(DataError, match="the deep part has no input"):
        model_options().check_layout(InputSchema((replace(user, wide="only"),), ()))


def test_wide_part_starts_at_zero():
    model = make_model()
    assert not any(variable.numpy().any() for variable in model.embeddings.wide_variables)
    assert not any(weight.numpy().any() for weight in model.wide_weights)


def test_weights_depend_on_the_seed_only():
    first, second, other = make_model(seed=5), make_model(seed=5), make_model(seed=6)
    for a, b in zip(first.variables, second.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert not np.array_equal(first.embeddings.deep_variables[0].numpy(), other.embeddings.deep_variables[0].numpy())


@pytest.mark.parametrize(
    "layout",
    [
        InputSchema((), ("age", "price")),
        InputSchema((CategoricalInput("user", 0, 1, False, 5, 3),), ()),
        InputSchema((CategoricalInput("tags", 0, 2, True, 5, 3),), ()),
        InputSchema((CategoricalInput("tag", 0, 1, True, 5, 3),), ("age",)),
    ],
)
def test_empty_channels_and_rows_without_ids(layout):
    model = make_model(layout=layout)
    ids = tf.fill((4, layout.id_columns), -1 if layout.id_columns and layout.categorical[0].multihot else 0)
    logits = model(ids, tf.ones((4, len(layout.numerical))))
    assert logits.shape == (4, 1)
    assert np.isfinite(logits.numpy()).all()


def test_each_label_has_a_head_and_a_wide_part():
    model = make_model(tasks=("click", "buy"))
    batch = make_batches(1)[0]
    logits = model(batch.ids, batch.numerical).numpy()
    assert logits.shape == (16, 2)
    assert not np.allclose(logits[:, 0], logits[:, 1])
    shapes = {name: table.shape for name, table in model.embeddings.tables().items() if "/wide." in name}
    assert shapes == {f"embeddings/wide.{columns.name}": (columns.cardinality, 2) for columns in LAYOUT.categorical}
