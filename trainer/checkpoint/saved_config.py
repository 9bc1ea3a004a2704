"""Reads the flags of a checkpoint that a run takes over from it. Imports no TensorFlow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.errors import DataError
from trainer.checkpoint.run_state import RunState
from trainer.checkpoint.store import CheckpointStore, NoCheckpointError
from trainer.models import model_flags, model_options


def saved_model_flags(given: Mapping[str, Any], model_dir: Path, which: str) -> dict[str, Any]:
    """Return the model flags of a checkpoint by name, and the formula of its score unless one is given.

    Args:
        given: flags of the command line; any model flags among them must equal the checkpoint's.
        model_dir: folder that contains the checkpoints.
        which: "last", "best" or a path.

    Raises:
        NoCheckpointError: there is no such checkpoint, or its flags are invalid.
        DataError: a given model flag differs from the checkpoint's.
    """
    # No warnings here: they are printed when the checkpoint is restored.
    store = CheckpointStore(model_dir, warn=lambda text: None)
    store.refresh(which)
    checkpoint = store.open(which, verify=False)
    try:
        state = RunState.of(checkpoint)
        saved = from_json(state.options)
        model_options(**saved)
    except NoCheckpointError:
        raise
    except DataError as error:
        raise NoCheckpointError(f"{checkpoint.path}: {error}; it is not a checkpoint of this program") from error
    different = [name for name, value in saved.items() if given.get(name, value) != value]
    if different:
        changes = ", ".join(f"--{name} {_shown(saved[name])}, not {_shown(given[name])}" for name in different)
        raise DataError(
            f"{checkpoint.path} was trained with {changes}. Omit the model's flags (they are taken from the "
            "checkpoint), or give another --model_dir or --checkpoint."
        )
    return saved if state.score is None or "score" in given else saved | {"score": state.score}


def from_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Select the model flags among JSON values and convert them to their types.

    Raises:
        DataError: a value does not have the type of its flag.
    """
    return {name: flag.read(values[name]) for name, flag in model_flags().items() if name in values}


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
