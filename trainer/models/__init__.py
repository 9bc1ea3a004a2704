"""The models by name. A new model is one module here and one line below."""

import importlib
from typing import TYPE_CHECKING

from trainer.flags.model_options import ModelOptions
from trainer.layout import InputLayout

if TYPE_CHECKING:
    from trainer.embeddings.shards import Shards
    from trainer.models.ranking import RankingModel
    from trainer.tasks import Task

# Names only: the modules import Keras, which takes seconds, and flags are checked before that.
MODELS = {
    "wide_deep": ("trainer.models.wide_deep", "WideDeep"),
    "esmm": ("trainer.models.esmm", "Esmm"),
    "aitm": ("trainer.models.aitm", "Aitm"),
    **{name: ("trainer.models.multitask", "MultiTask") for name in ("shared_bottom", "omoe", "mmoe", "cgc", "ple")},
}


def build_model(
    options: ModelOptions,
    layout: InputLayout,
    tasks: tuple["Task", ...],
    *,
    compute_dtype: str,
    seed: int,
    shards: "Shards | None" = None,
) -> "RankingModel":
    """The model that `options` names, with its weights created.

    Args:
        options: the model's flags.
        layout: its inputs.
        tasks: what is predicted; each has one logit, or one per class.
        compute_dtype: float32, float16 or bfloat16; weights, logits and loss are float32 in any case.
        seed: of the initial weights.
        shards: how large tables are dealt to workers; None where every worker has all rows.
    """
    module, name = MODELS[options.model]
    model: RankingModel = getattr(importlib.import_module(module), name)(
        options, layout, tasks, compute_dtype=compute_dtype, seed=seed, shards=shards
    )
    return model.created()
