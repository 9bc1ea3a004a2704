"""Validates and encodes an application's training data and writes it as a dataset for the trainer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import numpy as np
import pandas as pd

from data.encoding.encoders import Encoder
from data.encoding.keys import as_numbers
from data.encoding.splits import draw_mappings
from data.errors import DataError
from data.preprocess.prepared import embedding_sizes, encoded_features, write_prepared
from data.spec.feature_spec import FeatureSpec
from data.spec.features import LABEL, MAP, MULTIHOT, NUMERICAL, ONEHOT, TEST, TRAIN, VALID, Feature, name_mistake
from data.spec.task_types import TASK_TYPES, LabelKind
from trainer.recommender.columns import (
    KINDS,
    RawColumn,
    fit_encoder,
    read_column,
    require_columns,
    require_frame,
    require_mapping,
)
from trainer.recommender.entities import Entities, RawEntities
from trainer.tasks.group import GroupTask
from trainer.tasks.task import task_type

# Labels that are one number, and that rows without groups can teach.
TASK_KINDS = [
    name
    for name, kind in TASK_TYPES.items()
    if kind is not LabelKind.CLASS and not issubclass(task_type(name), GroupTask)
]
TASKS_EXAMPLE = f"{{'liked': '{TASK_KINDS[0]}', 'rating': '{TASK_KINDS[1]}'}}"
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class Interactions:
    """Interactions between users and items, with the features of both.

    Attributes:
        frame: one row per interaction.
        user: column of the raw user ids.
        item: column of the raw item ids.
        tasks: maps each label column to its task type: "binary", "regression" or another one for numbers.
        context: further feature columns of `frame`.
        users: user features, one row per user, with the raw id in the column `user`.
        items: item features, one row per item, with the raw id in the column `item`.
        kinds: maps feature columns to "categorical", "numerical" or "multihot".

    Raises:
        DataError: if a table is not a data frame, a column is missing, duplicated or has a name that datasets do not
            allow, or a label column holds values that are invalid for its task.
    """

    frame: pd.DataFrame
    user: str
    item: str
    tasks: Mapping[str, str]
    context: Sequence[str] = ()
    users: pd.DataFrame | None = None
    items: pd.DataFrame | None = None
    kinds: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        require_frame(self.frame, "interactions")
        require_mapping(self.tasks, "tasks", TASKS_EXAMPLE)
        require_columns(self.frame, [self.user, self.item, *self.tasks, *self.context], "interactions")
        if not len(self.frame):
            raise DataError("interactions has no rows")
        if not self.tasks:
            raise DataError(f"tasks names no column; give the type of each label, as in {TASKS_EXAMPLE}")
        features = [*self.context, *self._known_features("users", self.user), *self._known_features("items", self.item)]
        names = [self.user, self.item, *self.tasks, *features]
        for name in names:
            if mistake := name_mistake(name):
                raise DataError(f"columns: {mistake}")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"columns {', '.join(twice)} have two roles; rename or drop one of each")
        kinds = self.kinds or {}
        require_mapping(kinds, "kinds", f"{{'age': '{KINDS[0]}'}}")
        for name, kind in kinds.items():
            if kind not in KINDS or name not in features:
                raise DataError(
                    f"kinds: {name!r}: {kind!r}; expected a feature's column, and one of {', '.join(KINDS)}"
                )
        for name, kind in self.tasks.items():
            _check_label(self.frame[name], kind)

    def _known_features(self, argument: str, key: str) -> list[str]:
        """Returns the feature columns of `users` or `items`, that is, all but the id column."""
        table = getattr(self, argument)
        if table is None:
            return []
        require_frame(table, argument)
        require_columns(table, [key, *table.columns], f"{argument}, the table of {key!r},")
        return [name for name in table if name != key]

    def write(self, folder: Path, *, validation: float, seed: int) -> tuple[Entities, Entities]:
        """Writes a dataset whose encoders are fitted on its training rows.

        Args:
            folder: an empty folder.
            validation: fraction of the rows that go to the mapping `valid` instead of `train`.
            seed: seed of the random split.

        Returns:
            The encoded users and the encoded items.

        Raises:
            DataError: if values cannot be encoded, or the fraction leaves no rows for training or for validation.
        """
        in_train = self._in_train(validation, seed)
        kinds = self.kinds or {}
        sides = [
            RawEntities(self.user, self.frame[self.user], self.users, kinds),
            RawEntities(self.item, self.frame[self.item], self.items, kinds),
        ]
        encoders: dict[str, Encoder] = {}
        columns: list[RawColumn] = []
        for side in sides:
            # Each entity's features are stored once but weigh as often as it occurs in training rows. The last entry,
            # for unknown ids, has weight 0.
            weights = np.bincount(side.rows[in_train], minlength=len(side.keys) + 1)
            encoders |= {column.name: fit_encoder(column, weights) for column in side.columns}
            columns += side.columns
        context = [read_column(self.frame, name, kinds) for name in self.context]
        encoders |= {column.name: fit_encoder(column, in_train.astype(np.int64)) for column in context}
        hotness = {column.name: _longest(column) for column in [*columns, *context] if column.kind == "multihot"}
        users, items = (side.encoded(encoders) for side in sides)
        features = {column.name: encoders[column.name].encode(column.values) for column in context}
        for raw, entities in zip(sides, (users, items), strict=True):
            features |= {name: values[raw.rows] for name, values in entities.features.items()}
        rows = pd.DataFrame(features | self._labels())
        held_out = [rows[~in_train]]  # validates; a dataset must have a mapping `test`, too
        mappings = {TRAIN: [rows[in_train]], VALID: held_out, TEST: held_out}
        spec = self._specification(encoders, hotness, folder)
        write_prepared(folder, spec, mappings, encoders, embedding_sizes(encoders))
        return users, items

    def _in_train(self, validation: float, seed: int) -> np.ndarray:
        if not isinstance(validation, Real) or not 0 < validation < 1:
            raise DataError(f"validation is {validation!r}; expected a fraction of the rows, above 0 and below 1")
        rows = np.arange(len(self.frame))
        # Drawn by row number and seed, so that the split is reproducible.
        in_train = draw_mappings(rows, seed=seed, test_fraction=validation, validation_fraction=0.0) == TRAIN
        if in_train.all() or not in_train.any():
            raise DataError(
                f"validation {validation} of {len(rows)} rows leaves one side empty; choose another fraction"
            )
        return in_train

    def _labels(self) -> dict[str, np.ndarray]:
        return {name: as_numbers(name, self.frame[name]).astype(np.float32) for name in self.tasks}

    def _specification(self, encoders: Mapping[str, Encoder], hotness: Mapping[str, int], folder: Path) -> FeatureSpec:
        features = encoded_features(encoders, hotness)
        numerical = [name for name, feature in features.items() if feature.cardinality is None]
        channels = {
            ONEHOT: tuple(name for name in features if name not in hotness and name not in numerical),
            MULTIHOT: tuple(hotness),
            NUMERICAL: tuple(numerical),
            LABEL: tuple(self.tasks),
            MAP: (),
        }
        for name, kind in self.tasks.items():
            # Rows without a label are ignored for that task only.
            missing = "ignore" if self.frame[name].isna().any() else "error"
            features[name] = Feature(name=name, dtype="float32", task=kind, missing=missing)
        return FeatureSpec(folder, features, {}, channels, {"dataset": "recommender"})


def _check_label(labels: pd.Series, kind: str) -> None:
    if kind not in TASK_KINDS:
        raise DataError(f"tasks: {labels.name!r}: {kind!r}; expected one of {', '.join(TASK_KINDS)}")
    numbers = as_numbers(str(labels.name), labels)
    known = numbers[~np.isnan(numbers)]
    if not len(known):
        raise DataError(f"column {labels.name!r} is a label without values; remove the task")
    valid, expected = {
        LabelKind.BINARY: (np.isin(known, [0, 1]), "0, 1 or null (a number is a regression)"),
        LabelKind.NUMBER: (np.abs(known) <= LARGEST, "numbers of float32 or null"),
        LabelKind.AMOUNT: ((known >= 0) & (known <= LARGEST), "numbers of float32 of at least 0, or null"),
    }[TASK_TYPES[kind]]
    wrong = known[~valid]
    if len(wrong):
        raise DataError(f"column {labels.name!r} is a {kind} label and holds {wrong[0]:g}; expected {expected}")


def _longest(column: RawColumn) -> int:
    return max(1, *(len(entry) for entry in column.values if entry is not None))
