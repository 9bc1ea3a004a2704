"""Validates and encodes an application's training data and writes it as a dataset for the trainer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.encoding.encoders import Encoder
from data.encoding.keys import as_numbers
from data.encoding.splits import draw_mappings
from data.errors import DataError
from data.preprocess.prepared import embedding_sizes, encoded_features, write_prepared
from data.spec.feature_spec import FeatureSpec
from data.spec.features import LABEL, MAP, TEST, TRAIN, VALID, Feature, name_mistake
from data.spec.task_types import TASK_TYPES, LabelKind
from trainer.recommender.columns import (
    VECTOR,
    RawColumn,
    encode_column,
    fit_encoders,
    read_column,
    require_columns,
    require_frame,
    require_mapping,
)
from trainer.recommender.entities import Entities, RawEntities
from trainer.recommender.roles import Roles, find_roles
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
        kinds: maps feature columns to their kinds; those of others are inferred from their values.
        sequences: maps the name of each sequence to its features, target, encoder and order.
        tables: maps categorical columns to the table that they share with others.

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
    sequences: Mapping[str, Mapping[str, Any]] | None = None
    tables: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        require_frame(self.frame, "interactions")
        require_mapping(self.tasks, "tasks", TASKS_EXAMPLE)
        require_columns(self.frame, [self.user, self.item, *self.tasks, *self.context], "interactions")
        if not len(self.frame):
            raise DataError("interactions has no rows")
        if not self.tasks:
            raise DataError(f"tasks names no column; give the type of each label, as in {TASKS_EXAMPLE}")
        names = [self.user, self.item, *self.tasks, *(str(name) for own in self._sources.values() for name in own)]
        for name in names:
            if mistake := name_mistake(name):
                raise DataError(f"columns: {mistake}")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"columns {', '.join(twice)} have two roles; rename or drop one of each")
        for name, kind in self.tasks.items():
            _check_label(self.frame[name], kind)

    @cached_property
    def _sources(self) -> dict[str, pd.DataFrame]:
        """The columns of features by the argument that holds them."""
        found = {}
        for argument, table, key in (("users", self.users, self.user), ("items", self.items, self.item)):
            if table is not None:
                require_frame(table, argument)
                require_columns(table, [key, *table.columns], f"{argument}, the table of {key!r},")
                found[argument] = table.drop(columns=key)
        return found | {"context": self.frame[[*self.context]]}

    def _roles(self) -> Roles:
        """Return the roles of all features."""
        stated = self.kinds or {}, self.sequences or {}, self.tables or {}
        return find_roles((self.user, self.item), next(iter(self.tasks)), self._sources, *stated)

    def write(self, folder: Path, *, validation: float, seed: int) -> tuple[Entities, Entities]:
        """Write a dataset whose encoders are fitted on its training rows.

        Args:
            folder: an empty folder.
            validation: fraction of the rows that go to the mapping `valid` instead of `train`.
            seed: seed of the random split.

        Returns:
            The encoded users and the encoded items.

        Raises:
            DataError: if kinds, sequences or tables are invalid, values cannot be encoded, or the fraction leaves no
                rows for training or for validation.
        """
        in_train, roles = self._in_train(validation, seed), self._roles()
        sides = [
            RawEntities(self.user, self.frame[self.user], self.users, roles.kinds, roles.steps),
            RawEntities(self.item, self.frame[self.item], self.items, roles.kinds, roles.steps),
        ]
        context = [
            read_column(self.frame[name], roles.kinds[name], is_step=name in roles.steps) for name in self.context
        ]
        # Each entity's features are stored once but weigh as often as it occurs in training rows. The last entry, for
        # unknown ids, has weight 0.
        weights = [np.bincount(side.rows[in_train], minlength=len(side.keys) + 1) for side in sides]
        weighted = [(column, own) for side, own in zip(sides, weights, strict=True) for column in side.columns]
        weighted += [(column, in_train.astype(np.int64)) for column in context]
        encoders = fit_encoders(weighted, roles.tables)
        users, items = (side.encoded(encoders, roles.dimensions) for side in sides)
        features = {
            column.name: encode_column(encoders[column.name], column.values, roles.dimensions.get(column.name))
            for column in context
        }
        for raw, entities in zip(sides, (users, items), strict=True):
            features |= {name: values[raw.rows] for name, values in entities.features.items()}
        rows = pd.DataFrame(features | self._labels())
        held_out = [rows[~in_train]]  # validates; a dataset must have a mapping `test`, too
        mappings = {TRAIN: [rows[in_train]], VALID: held_out, TEST: held_out}
        spec = self._specification(roles, encoders, [column for column, _ in weighted], folder)
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

    def _specification(
        self, roles: Roles, encoders: Mapping[str, Encoder], columns: Sequence[RawColumn], folder: Path
    ) -> FeatureSpec:
        hotness = {column.name: column.longest for column in columns if column.is_list and column.kind != VECTOR}
        features, of_items = (
            encoded_features(encoders, hotness),
            {self.item, *(() if self.items is None else self.items)},
        )
        for name, feature in features.items():
            features[name] = replace(
                feature,
                table=roles.tables.get(name),
                dimension=roles.dimensions.get(name),
                side="candidate" if name in of_items else "request",
            )
        channels = roles.channels(features) | {LABEL: tuple(self.tasks), MAP: ()}
        sequences = tuple(replace(own, length=hotness[own.features[0]]) for own in roles.sequences)
        for name, kind in self.tasks.items():
            # Rows without a label are ignored for that task only.
            missing = "ignore" if self.frame[name].isna().any() else "error"
            features[name] = Feature(name=name, dtype="float32", task=kind, missing=missing)
        return FeatureSpec(folder, features, {}, channels, {"dataset": "recommender"}, sequences)


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
