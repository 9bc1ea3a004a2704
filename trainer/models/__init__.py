"""Registry of models by name. To add one, write a module in this package and an entry in `MODELS`."""

import importlib
from typing import TYPE_CHECKING

from trainer.config import ModelOptions
from trainer.layout import InputSchema

if TYPE_CHECKING:
    from trainer.embeddings.shards import Shards
    from trainer.models.ranking import RankingModel
    from trainer.tasks.task import Task

# Names rather than classes: importing Keras takes seconds, and flags are validated before it is loaded.
MODELS = {
    "wide_deep": ("trainer.models.wide_deep", "WideDeep"),
    "esmm": ("trainer.models.esmm", "Esmm"),
    "aitm": ("trainer.models.aitm", "Aitm"),
    **{name: ("trainer.models.multitask", "MultiTask") for name in ("shared_bottom", "omoe", "mmoe", "cgc", "ple")},
}


def build_model(
    options: ModelOptions,
    layout: InputSchema,
    tasks: tuple["Task", ...],
    *,
    compute_dtype: str,
    seed: int,
    shards: "Shards | None" = None,
) -> "RankingModel":
    """Builds the model that `options` selects and creates its weights.

    Args:
        options: model flags.
        layout: layout of the model's inputs.
        tasks: prediction tasks; each has one logit, or one per class.
        compute_dtype: float32, float16 or bfloat16; weights, logits and loss are always float32.
        seed: seed of the initial weights.
        shards: how large tables are sharded across workers; None if every worker holds all rows.
    """
    module, name = MODELS[options.model]
    model: RankingModel = getattr(importlib.import_module(module), name)(
        options, layout, tasks, compute_dtype=compute_dtype, seed=seed, shards=shards
    )
    return model.created()
