"""The model's flags that a checkpoint was trained with. Imports no TensorFlow."""

import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.specification.problems import shown
from trainer.checkpoints import CheckpointStore
from trainer.flags.model_options import ModelOptions


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
    try:
        saved = from_json(checkpoint.state.get("options", {}))
        ModelOptions(**saved)
    except DataError as error:
        raise DataError(f"{checkpoint.path}: {error}; it is no checkpoint of this program") from error
    different = [name for name, value in saved.items() if stated.get(name, value) != value]
    if different:
        told = ", ".join(f"--{name} {_shown(saved[name])}, not {_shown(stated[name])}" for name in different)
        raise DataError(
            f"{checkpoint.path} was trained with {told}. Leave the model's flags away (they are taken from the "
            "checkpoint), or give another --model_dir or --checkpoint."
        )
    return saved


def from_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that are flags of the model, as ModelOptions takes them.

    Raises:
        DataError: a value is of another type than the flag.
    """
    if not isinstance(values, Mapping):
        raise DataError("the model's flags are no JSON object")
    hints = typing.get_type_hints(ModelOptions)
    flags = {name: _tupled(values[name]) for name in hints if name in values}
    wrong = [f"--{name} {shown(value)}" for name, value in flags.items() if not _fits(value, hints[name])]
    if wrong:
        raise DataError(f"not what the model's flags can be: {', '.join(wrong)}")
    return flags


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a flag's type."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is typing.Literal:
        return value in parts
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, parts[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, parts[1]) for item in value.values())
    return type(value) in (int, float) if hint is float else type(value) is hint


def _tupled(value: Any) -> Any:
    """Tuples for JSON's lists, also by label."""
    if isinstance(value, Mapping):
        return {name: _tupled(part) for name, part in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
