"""Training inside an application's process, with a single worker."""

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import DataError, nearest
from trainer.cli import make_options
from trainer.config import Flag, TrainingOptions, section_flags
from trainer.inputs import open_inputs
from trainer.models import model_flags
from trainer.process.startup import import_tensorflow
from trainer.process.worker_env import WorkerEnv

# Names of the options of `Recommender` that differ from the flags of main.py.
FLAGS = {"epochs": "num_epochs", "batch_size": "global_batch_size", "learning_rate": "deep_learning_rate"}


def to_flags(options: Mapping[str, Any]) -> dict[str, Any]:
    """Convert options of the Recommender to flags of main.py, without those for paths.

    Args:
        options: values by a name from FLAGS, or by the name of a model or training flag without dashes. None stands for
            the flag's default.

    Returns:
        Values of the flags' types, by name without dashes.

    Raises:
        DataError: if an option is unknown or has an invalid value.
    """
    flags = model_flags() | section_flags(TrainingOptions)
    # The application decides which CPU cores it uses.
    known = flags.keys() - {"affinity", *FLAGS.values()} | FLAGS.keys()
    values = {}
    for name, value in options.items():
        if name not in known:
            near = nearest(name, known)
            hint = f"; did you mean {near}?" if near else ""
            raise DataError(f"Recommender has no option {name!r}{hint} (expected one of {', '.join(sorted(known))})")
        if value is not None:
            flag = FLAGS.get(name, name)
            values[flag] = _converted(flags[flag], value)
    make_options(values)  # checks the limits and the flags against each other
    return values


def train(flags: Mapping[str, Any], dataset: Path, folder: Path, *, verbose: bool) -> Path:
    """Train on a dataset, evaluating after each epoch, and return the folder of the best model.

    Args:
        flags: flags from `to_flags`.
        dataset: folder of the dataset.
        folder: existing folder for checkpoints and results.
        verbose: whether to show the output of training.

    Raises:
        DataError: if the flags do not match the data.
    """
    folders = {"dataset_path": dataset, "model_dir": folder / "models", "results_dir": folder / "results"}
    config, env = make_options({**flags, **folders, "affinity": "disabled"}), WorkerEnv()
    data = open_inputs(config, env)
    import_tensorflow()
    from trainer.build import start_worker
    from trainer.trainer import Trainer

    with contextlib.ExitStack() as stack:
        if not verbose:
            silent = io.StringIO()
            stack.enter_context(contextlib.redirect_stdout(silent))
            stack.enter_context(contextlib.redirect_stderr(silent))
        stack.enter_context(contextlib.closing(Trainer(config, data, start_worker(config, env)))).fit()
    return folder / "models" / "model"


def _converted(flag: Flag, value: Any) -> Any:
    """Return a value as the type of its flag. A single number stands for a list of one."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    parse = flag.field.metadata["parse"]
    if isinstance(value, str) and parse is not None:
        return parse([value])  # such as the path of a file with units per label
    with contextlib.suppress(DataError):
        return flag.read([value])
    return flag.read(value)
