"""The file of --importance: how much each metric changes when a feature is permuted. Imports no TensorFlow."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from data.errors import DataError
from data.storage.files import read_small_text, write_whole
from data.storage.typed_json import read_typed

FILE = "importance.json"  # the name under which report.py finds it in a results folder
SCHEMA: Literal["feature importance 1"] = "feature importance 1"
MAX_MEBIBYTES = 64


@dataclass(frozen=True)
class Effect:
    """What permuting a feature does to a metric.

    Attributes:
        change: the metric with the feature permuted minus that of the intact rows; None if either is undefined.
        standard_error: standard error of the change; None if it is undefined.
    """

    change: float | None
    standard_error: float | None


@dataclass(frozen=True)
class FeatureEffects:
    """The effects of one feature on a task.

    Attributes:
        feature: name of the feature.
        effects: effect on each metric of the task, by its name.
    """

    feature: str
    effects: dict[str, Effect]


@dataclass(frozen=True)
class TaskImportance:
    """The effects of all features on a task.

    Attributes:
        task: name of the task.
        intact: value of each metric on the intact rows, by its name, the ranking metric first; None if undefined.
        features: the features, the one whose permutation worsens the ranking metric most first; those with an
            undefined change last.
    """

    task: str
    intact: dict[str, float | None]
    features: list[FeatureEffects]


@dataclass(frozen=True)
class Importance:
    """The content of the file, a JSON object with these keys.

    Attributes:
        schema: name and version of the format.
        checkpoint: folder of the checkpoint.
        mapping: name of the evaluated mapping.
        mapping_rows: number of rows of the mapping.
        rows: number of rows that the metrics were computed on.
        blocks: number of random blocks of rows that the standard errors are computed from.
        seed: seed of the choice of rows, of the blocks and of the permutations.
        tasks: the tasks, in the order of the label channel.
    """

    schema: Literal["feature importance 1"]
    checkpoint: str
    mapping: str
    mapping_rows: int
    rows: int
    blocks: int
    seed: int
    tasks: list[TaskImportance]


def write_importance(importance: Importance, path: Path) -> None:
    """Write the file atomically.

    Raises:
        OSError: if the file cannot be written.
    """
    write_whole(path, json.dumps(asdict(importance), indent=2, allow_nan=False) + "\n")


def read_importance(path: Path) -> Importance:
    """Read the file.

    Raises:
        DataError: if it is missing, cannot be read or has another content.
    """
    try:
        content = json.loads(read_small_text(path, "a file of main.py --importance", MAX_MEBIBYTES))
        importance: Importance = read_typed(Importance, content, "importance")
        _check_metrics(importance)
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: is not a file of main.py --importance ({error}); write it again, or move it"
        ) from error
    return importance


def _check_metrics(importance: Importance) -> None:
    """Raise a ValueError unless every task has metrics, and an effect on each of them for every feature."""
    for task in importance.tasks:
        if not task.intact or any(feature.effects.keys() != task.intact.keys() for feature in task.features):
            raise ValueError(f"the effects on task {task.task!r} are not those of its metrics")
    if not importance.tasks:
        raise ValueError("importance.tasks is empty")


def is_importance(path: Path) -> bool:
    """Return whether a file was written by `write_importance`."""
    try:
        read_importance(path)
    except DataError:
        return False
    return True
