"""A fitted recommender: the model, users and items encoded once, and what each user has seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from data.encoding.keys import as_keys, distinct_keys
from data.errors import DataError
from trainer.recommender.columns import require_columns, require_frame, require_mapping
from trainer.recommender.entities import Entities
from trainer.recommender.scorer import Scorer
from trainer.saved_model import SavedModel


@dataclass(frozen=True, eq=False)
class Seen:
    """The items of each user's interactions.

    Attributes:
        starts: [users + 2] int64; those of user u are items[starts[u] : starts[u + 1]]. An unknown user has none.
        items: positions among the items, int64.
    """

    starts: np.ndarray
    items: np.ndarray

    @classmethod
    def of(cls, users: np.ndarray, items: np.ndarray, count: int) -> "Seen":
        """From the positions of every interaction's user and item, for so many users."""
        order = np.argsort(users, kind="stable")
        counts = np.append(np.bincount(users, minlength=count), 0)
        return cls(np.concatenate([[0], np.cumsum(counts)]), items[order].astype(np.int64))

    def by(self, user: int) -> np.ndarray:
        """Positions of the items that a user has seen."""
        return self.items[self.starts[user] : self.starts[user + 1]]


@dataclass(frozen=True, eq=False)
class Fitted:
    """All that predictions need.

    Attributes:
        saved: the model.
        users, items: encoded.
        seen: what they had to do with each other.
        context: columns that every row to predict has besides its user and its item.
    """

    saved: SavedModel
    users: Entities
    items: Entities
    seen: Seen
    context: tuple[str, ...]

    @property
    def tasks(self) -> list[str]:
        """Their names."""
        return [task.name for task in self.saved.tasks]

    @property
    def features(self) -> list[str]:
        """Names of everything that the model reads."""
        return [feature.name for feature in self.saved.spec.inputs]

    def encode(self, frame: pd.DataFrame) -> dict[str, np.ndarray]:
        """Features of raw rows: from the frame's columns where it has them, else from what is known of user and item.

        Raises:
            DataError: no data frame, a column is missing, or holds another kind of values than in training.
        """
        require_frame(frame, "the frame")
        known = [name for name in self.features if name in frame]
        require_columns(frame, [self.users.column, self.items.column, *self.context, *known], "the frame")
        rows = {side.column: side.positions(frame[side.column]) for side in (self.users, self.items)}
        encoded = {}
        for name in self.features:
            if name in known:
                encoded[name] = self.saved.encoders[name].encode(frame[name])
                continue
            side = self.users if name in self.users.features else self.items
            encoded[name] = side.features[name][rows[side.column]]
        return encoded

    def predict(self, features: Mapping[str, np.ndarray] | pd.DataFrame) -> np.ndarray:
        """Predictions [rows, tasks] float64 of encoded rows.

        Raises:
            DataError: a feature is missing, an id is out of its range, or a number is not finite.
        """
        require_columns(features, self.features, "the frame")
        return self.scorer.predict(*self.scorer.matrices(features, len(features[self.users.column])))

    def rank(
        self,
        user: Any,
        candidates: Sequence[Any] | None,
        context: Mapping[str, Any],
        *,
        exclude_seen: bool,
        weights: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Items for a user by falling score, and the scores; in one pass over all of them.

        Args:
            user: raw id.
            candidates: raw ids; None for all items.
            context: a value for each of the context columns.
            exclude_seen: leave out the items of the user's interactions.
            weights: [tasks] float64, what each task's prediction counts in the score.

        Raises:
            DataError: an id is null or of another kind than in training, or the context is not what it was there.
        """
        (person,) = self.users.positions([user])
        if candidates is None:
            items, keys = np.arange(len(self.items.keys)), self.items.keys
        else:
            _, keys = distinct_keys(as_keys(self.items.column, candidates))
            items = self.items.positions(keys)
        if exclude_seen:
            was_seen = np.zeros(len(self.items.keys) + 1, bool)
            was_seen[self.seen.by(person)] = True
            keys, items = keys[~was_seen[items]], items[~was_seen[items]]
        inputs = [
            of_items[items] + of_users[person] + of_context
            for of_items, of_users, of_context in zip(
                self._item_inputs, self._user_inputs, self._context_inputs(context), strict=True
            )
        ]
        scores = self.scorer.predict(*inputs) @ weights
        order = np.argsort(-scores, kind="stable")
        return keys[order], scores[order]

    def check_context(self, context: Mapping[str, Any]) -> None:
        """Raises a DataError unless there is a value for each context column."""
        require_mapping(context, "context", "{'hour': 20}")
        if set(context) != set(self.context):
            raise DataError(f"context has {sorted(context)}; expected a value for each of {sorted(self.context)}")

    @cached_property
    def scorer(self) -> Scorer:
        """The compiled model."""
        return Scorer(self.saved)

    @cached_property
    def _item_inputs(self) -> tuple[np.ndarray, np.ndarray]:
        return self.scorer.matrices(self.items.features, len(self.items.keys) + 1)

    @cached_property
    def _user_inputs(self) -> tuple[np.ndarray, np.ndarray]:
        return self.scorer.matrices(self.users.features, len(self.users.keys) + 1)

    def _context_inputs(self, context: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        self.check_context(context)
        features = {name: self.saved.encoders[name].encode([context[name]]) for name in self.context}
        return self.scorer.matrices(features, 1)
