"""The model's flags that a checkpoint was trained with. Imports no TensorFlow."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from data.errors import DataError
from trainer.checkpoints import CheckpointStore
from trainer.model_options import ModelOptions


def saved_model_flags(stated: Mapping[str, Any], model_dir: Path, which: str) -> dict[str, Any]:
    """The model's flags of a checkpoint, by name.

    Args:
        stated: the flags of the command line; those of the model must be the checkpoint's.
        model_dir: where the checkpoints are.
        which: last, best or a path.

    Raises:
        NoCheckpointError: there is no such checkpoint.
        DataError: a flag is stated and was another one in training.
    """
    checkpoint = CheckpointStore(model_dir).open(which, verify=False)
    saved = from_json(checkpoint.state.get("options", {}))
    different = [name for name, value in saved.items() if stated.get(name, value) != value]
    if different:
        told = ", ".join(f"--{name} {_shown(saved[name])}, not {_shown(stated[name])}" for name in different)
        raise DataError(
            f"{checkpoint.path} was trained with {told}. Leave the model's flags away (they are taken from the "
            "checkpoint), or give another --model_dir or --checkpoint."
        )
    return saved


def from_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that are flags of the model, as ModelOptions takes them."""
    names = [item.name for item in fields(ModelOptions) if item.name in values]
    return {name: _tupled(values[name]) for name in names}


def _tupled(value: Any) -> Any:
    """Tuples for JSON's lists, also by label."""
    if isinstance(value, Mapping):
        return {name: _tupled(part) for name, part in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
