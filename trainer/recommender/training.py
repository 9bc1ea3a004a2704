"""Training inside an application's process, with the trainer's own configuration and a single worker."""

import contextlib
import io
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from data.errors import DataError, nearest
from trainer.cli import parse
from trainer.config import TrainingOptions
from trainer.inputs import open_inputs
from trainer.models import model_flags
from trainer.process.startup import import_tensorflow
from trainer.process.worker_env import WorkerEnv

# Names of the options of `Recommender` that differ from the trainer's flags.
FLAGS = {"epochs": "num_epochs", "batch_size": "global_batch_size", "learning_rate": "deep_learning_rate"}
# The application decides which CPU cores it uses.
_FIXED = ("--affinity", "disabled")


def arguments(options: Mapping[str, Any]) -> list[str]:
    """Converts options to command line flags, without those for paths.

    Args:
        options: values by a name from FLAGS, or by the name of a model or training flag without dashes. Options that
            are None or False are omitted.

    Raises:
        DataError: if an option is unknown or has an invalid value.
    """
    known = {*model_flags(), *(item.name for item in fields(TrainingOptions))}
    known = known - {"affinity", *FLAGS.values()} | set(FLAGS)
    for name in options:
        if name not in known:
            near = nearest(name, known)
            hint = f"; did you mean {near}?" if near else ""
            raise DataError(f"Recommender has no option {name!r}{hint} (there are {', '.join(sorted(known))})")
    stated = [(f"--{FLAGS.get(name, name)}", value) for name, value in options.items()]
    flags = [part for flag, value in stated for part in _argument(flag, value)]
    parse(flags, 1)
    return flags


def train(flags: list[str], dataset: Path, folder: Path, *, verbose: bool) -> Path:
    """Trains on a dataset, evaluating after each epoch, and returns the folder of the best model.

    Args:
        flags: command line flags from `arguments`.
        dataset: folder of the dataset.
        folder: existing folder for checkpoints and results.
        verbose: whether to show the output of main.py.

    Raises:
        DataError: if the flags do not match the data.
    """
    places = {"--dataset_path": dataset, "--model_dir": folder / "models", "--results_dir": folder / "results"}
    stated = [str(part) for place in places.items() for part in place]
    config, env = parse([*flags, *_FIXED, *stated], 1), WorkerEnv()
    data = open_inputs(config, env)
    import_tensorflow()
    from trainer.build import start_worker
    from trainer.trainer import Trainer

    with contextlib.ExitStack() as stack:
        if not verbose:
            silent = io.StringIO()
            stack.enter_context(contextlib.redirect_stdout(silent))
            stack.enter_context(contextlib.redirect_stderr(silent))
        trainer = stack.enter_context(contextlib.closing(Trainer(config, data, start_worker(config, env))))
        trainer.fit()
    return folder / "models" / "model"


def _argument(flag: str, value: Any) -> list[str]:
    if value is None or value is False:
        return []
    if value is True:
        return [flag]
    return [flag, *map(str, value)] if isinstance(value, list | tuple) else [flag, str(value)]
