"""A training run inside an application's process: the trainer's own flags, one worker."""

import contextlib
import io
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.specification.problems import nearest
from trainer.flags.cli import parse
from trainer.flags.model_options import ModelOptions
from trainer.flags.options import TrainingOptions
from trainer.inputs import check_model, open_inputs
from trainer.models import MODELS
from trainer.process.launcher import Launch
from trainer.process.quiet_import import import_tensorflow

# What an application calls some flags.
FLAGS = {"epochs": "num_epochs", "batch_size": "global_batch_size", "learning_rate": "deep_learning_rate"}
# The cores belong to the application.
_FIXED = ("--affinity", "disabled")


def arguments(options: Mapping[str, Any]) -> list[str]:
    """The command line of options by name, without places.

    Args:
        options: names of FLAGS, or of the flags of model and training without dashes; None and False say nothing.

    Raises:
        DataError: an unknown name, or a value that the flag does not take.
    """
    known = {item.name for group in (ModelOptions, TrainingOptions) for item in fields(group)}
    known = known - {"affinity", *FLAGS.values()} | set(FLAGS)
    for name in options:
        if name not in known:
            near = nearest(name, known)
            hint = f"; did you mean {near}?" if near else ""
            raise DataError(f"Recommender has no option {name!r}{hint} (there are {', '.join(sorted(known))})")
    stated = [(f"--{FLAGS.get(name, name)}", value) for name, value in options.items()]
    flags = [part for flag, value in stated for part in _argument(flag, value)]
    parse(flags, 1, tuple(MODELS))
    return flags


def train(flags: list[str], dataset: Path, folder: Path, *, verbose: bool) -> Path:
    """Trains on a dataset, evaluating after each epoch; returns the folder of the best model.

    Args:
        flags: of `arguments`.
        dataset: its folder.
        folder: an existing one, for checkpoints and results.
        verbose: show what main.py shows.

    Raises:
        DataError: flags and data do not fit each other.
    """
    places = {"--dataset_path": dataset, "--model_dir": folder / "models", "--results_dir": folder / "results"}
    stated = [str(part) for place in places.items() for part in place]
    options, launch = parse([*flags, *_FIXED, *stated], 1, tuple(MODELS)), Launch()
    inputs = open_inputs(options, launch)
    check_model(options, inputs, launch)
    import_tensorflow()
    from trainer.run import execute

    silent = io.StringIO()
    with contextlib.ExitStack() as stack:
        if not verbose:
            stack.enter_context(contextlib.redirect_stdout(silent))
            stack.enter_context(contextlib.redirect_stderr(silent))
        execute(options, inputs, launch)
    return folder / "models" / "model"


def _argument(flag: str, value: Any) -> list[str]:
    if value is None or value is False:
        return []
    if value is True:
        return [flag]
    return [flag, *map(str, value)] if isinstance(value, list | tuple) else [flag, str(value)]
