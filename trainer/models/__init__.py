"""The models, registered by name. To add one, write a file in this package and a line in `MODELS`.

A model's file holds its flags and its network, and imports TensorFlow only when the network is built: flags are parsed
before that, so that a mistake is reported within a second.
"""

import difflib
import pkgutil
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from data.errors import DataError
from trainer.config import Flag, ModelOptions, section_flags
from trainer.layout import InputSchema

if TYPE_CHECKING:
    from trainer.embeddings.placement import HostTables
    from trainer.embeddings.shards import Shards
    from trainer.models.network import Network
    from trainer.models.ranking import RankingModel
    from trainer.tasks.task import Task

# Name -> module:class of its network.
MODELS = {
    "wide_deep": "trainer.models.wide_deep:WideDeep",
    "esmm": "trainer.models.esmm:Esmm",
    "aitm": "trainer.models.aitm:Aitm",
    **dict.fromkeys(("shared_bottom", "omoe", "mmoe", "cgc", "ple"), "trainer.models.multitask:MultiTask"),
}


def network_class(name: str) -> "type[Network]":
    """Return the network of a model. Raise a DataError if no model has this name."""
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise DataError(f"--model {name!r} is not one of {', '.join(MODELS)}{hint}")
    found: type[Network] = pkgutil.resolve_name(MODELS[name])
    return found


def model_flags() -> dict[str, Flag]:
    """Return the flags of all models by name."""
    flags: dict[str, Flag] = {}
    for name in MODELS:
        flags |= section_flags(network_class(name).options_class)
    return flags


def model_options(**flags: Any) -> ModelOptions:
    """Return the options of the model that the flag `model` selects.

    Args:
        **flags: flags by name. Those that only other models have are checked, but have no effect.

    Raises:
        DataError: there is no such model, or a value is out of range.
        TypeError: no model has such a flag.
    """
    known = model_flags()
    if unknown := sorted(flags.keys() - known.keys()):
        raise TypeError(f"no model has the flags {', '.join(unknown)}")
    for name, value in flags.items():
        known[name].check(value)
    options = network_class(flags.get("model", ModelOptions.model)).options_class
    return options(**{item.name: flags[item.name] for item in fields(options) if item.name in flags})


def build_model(
    options: ModelOptions,
    layout: InputSchema,
    tasks: tuple["Task", ...],
    *,
    compute_dtype: str,
    seed: int,
    shards: "Shards | None" = None,
    host: "HostTables | None" = None,
    restored: bool = False,
) -> "RankingModel":
    """Build the model that `options` selects and create its weights. A collective if tables are sharded.

    Args:
        options: model flags.
        layout: layout of the model's inputs.
        tasks: prediction tasks; each has one logit, or one per class.
        compute_dtype: float32, float16 or bfloat16; weights, logits and loss are always float32.
        seed: seed of the initial weights.
        shards: how large tables are sharded across workers; None if every worker holds all rows.
        host: the groups of tables whose rows are in host memory; None if there are none.
        restored: whether a checkpoint overwrites the weights, so that tables have no initial values.
    """
    from trainer.models.layers import DenseConfig
    from trainer.models.ranking import RankingModel

    config = DenseConfig(options.activation, options.deep_dropout, options.batch_norm, compute_dtype, seed)
    network = network_class(options.model)(options, tasks, config)
    return RankingModel(network, layout, seed=seed, shards=shards, host=host, restored=restored)
