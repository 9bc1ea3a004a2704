"""What --xla compiles on a GPU, compiled on a CPU: the passes of every model, against a CPU's without XLA."""

from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.gpu_audit import as_if_on_gpu
from tests.helpers import left_to_all
from tests.trainer.small_models import VECTORS, WEIGHTED, Rows, make_batches, make_model, make_step, part, run
from tests.trainer.test_sequences import encoded_by, make_rows
from trainer.evaluate import Forward
from trainer.layout import InputSchema
from trainer.models import MODELS
from trainer.models.interactions import INTERACTIONS
from trainer.models.sequences import ENCODERS

pytestmark = pytest.mark.long

ROWS, SHORT = 16, 11  # of a batch, and of the last batch of an epoch, which the loader pads


class Case(NamedTuple):
    """A model: its flags, its inputs, and how the losses of its tasks are combined."""

    flags: dict[str, object]
    layout: InputSchema = WEIGHTED
    loss_weighting: str = "static"


CASES = {
    **{name: Case({"model": name}) for name in MODELS},
    **{f"interaction {name}": Case({"interaction": name}) for name in INTERACTIONS},
    **{f"sequences {name}": Case({}, encoded_by(name)) for name in ENCODERS},
    **{name: Case({"model": "mmoe"}, loss_weighting=name) for name in ("uncertainty", "gradnorm", "pcgrad")},
    "vectors": Case({"vector_norm": "layer", "vector_units": 4}, VECTORS),
    "normalized": Case({"batch_norm": True, "activation": "gelu"}),
}
USUAL = ("wide_deep", "mmoe")


def batches_of(case: Case) -> list[Rows]:
    whole = make_rows(3, ROWS, layout=case.layout) if case.layout.sequences else make_batches(3, ROWS, tasks=2)
    short = part(whole[-1], slice(0, SHORT))
    padded = [tf.pad(own, [[0, ROWS - SHORT], *[[0, 0]] * (own.shape.rank - 1)]) for own in short]
    return [*whole[:-1], Rows(*padded)]


def passes(case: Case, dtype: str = "float32", *, gpu: bool, xla: bool) -> list[dict[str, np.ndarray]]:
    """What the passes over each batch compute, by name, with dropout and a loss scale; no step changes a weight."""
    batches, found = batches_of(case), []
    tasks = ("click", "buy")[: batches[0].labels.shape[1]]
    with as_if_on_gpu() if gpu else nullcontext():
        flags = {"dropout": 0.3, "expert_dropout": 0.2, "embedding_init_std": 0.5} | case.flags
        model = make_model(layout=case.layout, tasks=tasks, compute_dtype=dtype, **flags)
        # The loss scale is dynamic: 2 ** 15 at first.
        step = make_step(model, compute_dtype="float16", xla=xla, batch_rows=ROWS, loss_weighting=case.loss_weighting)
        forward = Forward(model, ROWS, xla=xla)
        for number, batch in enumerate(batches, start=1):
            rows = batch.input(model)
            own = step.forward_backward(rows, tf.constant(number), step.row_counts(rows))
            results = {f"gradient of {name}": getattr(value, "values", value) for name, value in own.by_name.items()}
            results |= {f"of tasks {place}": value for place, value in enumerate(own.per_task)}
            results |= {f"moment {place}": value for place, value in enumerate(own.moments)}
            results |= {"losses": own.losses}
            results |= {"logits": forward.run(forward.packing.pack((rows.lookups, rows.values)))}
            found.append({name: value.numpy() for name, value in results.items()})
    return found


def assert_close(found: list[dict[str, np.ndarray]], expected: list[dict[str, np.ndarray]], tolerance: float) -> None:
    """Each value, relative to the largest of its tensor."""
    for number, (own, other) in enumerate(zip(found, expected, strict=True), start=1):
        assert own.keys() == other.keys()
        for name, value in other.items():
            largest = np.abs(value).max(initial=0)
            np.testing.assert_allclose(
                own[name], value, rtol=0, atol=tolerance * largest, err_msg=f"{name} of batch {number}"
            )


@pytest.mark.parametrize("name", left_to_all(CASES, USUAL))
def test_compiled_passes_equal_uncompiled_ones(name):
    plain = passes(CASES[name], gpu=False, xla=False)
    assert_close(passes(CASES[name], gpu=True, xla=True), plain, 1e-5)
    scaled = [np.abs(value).max(initial=0) for own, value in plain[0].items() if own.startswith("gradient")]
    assert max(scaled) > 100  # the loss scale was on


@pytest.mark.parametrize("name", left_to_all(MODELS, ("wide_deep",)))
def test_compiled_float16_passes_are_close_to_uncompiled_ones(name):
    """XLA may leave out roundings between the operations that it fuses."""
    case = CASES[name]
    exact = passes(case, gpu=False, xla=False)
    plain, compiled = (passes(case, "float16", gpu=True, xla=xla) for xla in (False, True))
    for own in (plain, compiled):
        assert_close(own, exact, 2**-6)
    assert_close(compiled, plain, 2**-6)
    assert not np.array_equal(plain[0]["logits"], exact[0]["logits"])


def test_compiled_steps_equal_uncompiled_ones():
    """Whole steps, with the update by dense gradients that XLA compiles, too."""
    losses = []
    for gpu in (False, True):
        with as_if_on_gpu() if gpu else nullcontext():
            step = make_step(make_model(dropout=0.3, layout=WEIGHTED), xla=gpu, batch_rows=ROWS)
            batches = make_batches(6, ROWS)
            losses.append([run(step, batch, number).item() for number, batch in enumerate(batches, start=1)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
