"""A fitted recommender: the model, the encoded users and items, and the items that each user has seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from data.encoding.encoders import Encoded
from data.encoding.keys import Values, key_array
from data.errors import DataError, nearest
from data.spec.features import SCORE
from trainer.checkpoint.load_model import LoadedModel
from trainer.layout import ModelInputs
from trainer.recommender.columns import encode_column, require_columns, require_frame, require_mapping
from trainer.recommender.entities import Entities
from trainer.recommender.scorer import Scorer


@dataclass(frozen=True, eq=False)
class Seen:
    """The items that each user has interacted with, in compressed sparse row form.

    Attributes:
        starts: [users + 2] int64; the items of user u are items[starts[u] : starts[u + 1]]. The last entry stands for
            unknown users, who have none.
        items: [interactions] int64, positions of items.
    """

    starts: np.ndarray
    items: np.ndarray

    @classmethod
    def of(cls, users: np.ndarray, items: np.ndarray, count: int) -> "Seen":
        """Group interactions by user.

        Args:
            users: [interactions] int64, position of the user of each interaction.
            items: [interactions], position of the item of each interaction.
            count: number of users.
        """
        order = np.argsort(users, kind="stable")
        counts = np.append(np.bincount(users, minlength=count), 0)
        return cls(np.concatenate([[0], np.cumsum(counts)]), items[order].astype(np.int64))

    def by(self, user: int) -> np.ndarray:
        """Return the positions of the items that a user has seen."""
        return self.items[self.starts[user] : self.starts[user + 1]]


@dataclass(frozen=True, eq=False)
class Fitted:
    """Everything needed for predictions.

    Attributes:
        saved: the trained model with its specification and encoders.
        users: the encoded users.
        items: the encoded items.
        seen: the items that each user has interacted with.
        context: columns required in every row to predict, in addition to user and item.
    """

    saved: LoadedModel
    users: Entities
    items: Entities
    seen: Seen
    context: tuple[str, ...]

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in the order of predictions."""
        return [task.name for task in self.saved.tasks]

    @property
    def outputs(self) -> list[str]:
        """Names of the columns of predictions: the tasks, then the score if there is one."""
        return self.tasks if self.saved.score is None else [*self.tasks, SCORE]

    @property
    def features(self) -> list[str]:
        """Names of all input features of the model."""
        return [feature.name for feature in self.saved.spec.inputs]

    def encode(self, frame: pd.DataFrame) -> dict[str, np.ndarray]:
        """Encode raw rows into features.

        Features that are columns of the frame are taken from there, all others from the known users and items.

        Raises:
            DataError: if `frame` is not a data frame, or a column is missing or of another type than in training.
        """
        require_frame(frame, "the frame")
        require_columns(frame, [self.users.column, self.items.column, *self.context], "the frame")
        encoded = self._side(self.users, frame, "the frame") | self._side(self.items, frame, "the frame")
        return {name: encoded[name] for name in self.features}

    def _side(self, entities: Entities, frame: pd.DataFrame, what: str) -> dict[str, np.ndarray]:
        """Encode the features of users and the context, or those of items, in raw rows of the frame `what`."""
        context = self.context if entities is self.users else ()
        known = [name for name in (*entities.features, *context) if name in frame]
        require_columns(frame, [entities.column, *context, *known], what)
        rows = entities.positions(frame[entities.column])
        of_rows = {name: values[rows] for name, values in entities.features.items() if name not in known}
        return of_rows | {name: self._encoded(name, frame[name]) for name in known}

    def predict_candidates(self, request: Mapping[str, Any], candidates: pd.DataFrame) -> np.ndarray:
        """Predict for the candidates of a request, whose part of the model is computed once.

        Args:
            request: value of the user's column, of each context column, and of any features of the user.
            candidates: raw rows with the item's column and any features of items.

        Returns:
            Predictions [candidates, tasks] float64.

        Raises:
            DataError: if a column is missing, is on the wrong side, or holds invalid values.
        """
        if not self.saved.layout.candidates:
            raise DataError(
                "this recommender was saved by an earlier version, which lacks what rank needs; fit it again"
            )
        require_mapping(request, "request", f"{{{self.users.column!r}: 1}}")
        of_request = [*self.users.features, *self.context]
        for name in request:
            if name not in of_request:
                near = nearest(name, of_request)
                hint = f"; did you mean {near!r}?" if near else f"; expected some of {', '.join(of_request)}"
                reason = "belongs to the candidates" if name in self.items.features else "is no feature of the request"
                raise DataError(f"request: {name!r} {reason}{hint}")
        if wrong := [name for name in of_request if name in candidates]:
            raise DataError(f"candidates: the column {wrong[0]!r} belongs to the request; state it there, once")
        frame = pd.DataFrame({name: pd.Series([value], dtype=object) for name, value in request.items()})
        once, each = self._side(self.users, frame, "request"), self._side(self.items, candidates, "candidates")
        return self.scorer.rank(once, each, len(candidates))

    def predict(self, features: Mapping[str, np.ndarray] | pd.DataFrame) -> np.ndarray:
        """Predict for encoded rows.

        Returns:
            Predictions [rows, outputs] float64.

        Raises:
            DataError: if a feature is missing, an id is out of range, or a number is not finite.
        """
        require_columns(features, self.features, "the frame")
        return self.scorer.predict(self.scorer.matrices(features, len(features[self.users.column])))

    def rank(
        self,
        user: Any,
        candidates: Sequence[Any] | None,
        context: Mapping[str, Any],
        *,
        exclude_seen: bool,
        weights: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rank items for a user by descending score.

        Args:
            user: raw user id.
            candidates: raw item ids; None for all items.
            context: value of each context column.
            exclude_seen: whether to exclude items that the user has interacted with.
            weights: [outputs] float64, weight of each output in the score of an item.

        Returns:
            The raw ids of the items [n] and their scores [n].

        Raises:
            DataError: if an id is null or of another type than in training, or the context columns differ from those in
                training.
        """
        (person,) = self.users.positions([user])
        if candidates is None:
            items, keys = np.arange(len(self.items.keys)), self.items.keys
        else:
            keys = key_array(self.items.column, candidates).unique().to_numpy(zero_copy_only=False)
            items = self.items.positions(keys)
        if exclude_seen:
            was_seen = np.zeros(len(self.items.keys) + 1, bool)  # the last entry stands for unknown items
            was_seen[self.seen.by(person)] = True
            keys, items = keys[~was_seen[items]], items[~was_seen[items]]
        # Item, user and context features occupy disjoint columns and are 0 elsewhere, so adding [n, width] item rows,
        # one [width] user row and one [1, width] context row yields the model's inputs.
        parts = zip(self._item_inputs, self._user_inputs, self._context_inputs(context), strict=True)
        inputs = ModelInputs(
            *(of_items[items] + of_users[person] + of_context for of_items, of_users, of_context in parts)
        )
        scores = self.scorer.predict(inputs) @ weights
        order = np.argsort(-scores, kind="stable")
        return keys[order], scores[order]

    def check_context(self, context: Mapping[str, Any]) -> None:
        """Raise a DataError unless `context` has a value for each context column and no others."""
        require_mapping(context, "context", "{'hour': 20}")
        if set(context) != set(self.context):
            raise DataError(f"context has {sorted(context)}; expected a value for each of {sorted(self.context)}")

    @cached_property
    def scorer(self) -> Scorer:
        """The compiled forward pass, created on first use."""
        return Scorer(self.saved)

    @cached_property
    def _item_inputs(self) -> ModelInputs:
        return self.scorer.matrices(self.items.features, len(self.items.keys) + 1)

    @cached_property
    def _user_inputs(self) -> ModelInputs:
        return self.scorer.matrices(self.users.features, len(self.users.keys) + 1)

    def _context_inputs(self, context: Mapping[str, Any]) -> ModelInputs:
        self.check_context(context)
        features = {name: self._encoded(name, [context[name]]) for name in self.context}
        return self.scorer.matrices(features, 1)

    def _encoded(self, name: str, values: Values) -> Encoded:
        """Encode values of a feature."""
        dimensions = {vector.name: vector.dimension for vector in self.saved.layout.vectors}
        return encode_column(self.saved.encoders[name], values, dimensions.get(name))
