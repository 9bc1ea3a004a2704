"""The public class. Everything heavy is imported when it is needed."""

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence, Set
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from data.errors import DataError
from data.specification.problems import nearest, shown
from trainer.process.quiet_import import import_tensorflow
from trainer.recommender.columns import frame_hint, require_mapping
from trainer.recommender.interactions import Interactions
from trainer.recommender.training import arguments, train

if TYPE_CHECKING:
    from trainer.recommender.fitted import Fitted


class Recommender:
    """Learns from raw interactions, predicts for users and items by their raw ids, and recommends items.

    Raw ids are integers or texts, as `data.encoding.keys` says. Those unseen in training share the id of unseen values.

    Args:
        model: architecture, as of main.py's --model.
        epochs: passes over the training part.
        batch_size: rows per step.
        learning_rate: of the deep part; None takes main.py's default for the model.
        verbose: show what main.py shows while it trains.
        options: any further flag of model and training by its name, as in `num_experts=4` or `seed=1`.

    Raises:
        DataError: an unknown option, or a value that it does not take.
    """

    def __init__(
        self,
        model: str = "mmoe",
        *,
        epochs: int = 10,
        batch_size: int = 1024,
        learning_rate: float | None = None,
        verbose: bool = False,
        **options: Any,
    ):
        self._options: dict[str, Any] = {
            "model": model,
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
        }
        self._options |= {"eval_batch_size": 16_384} | options
        self._flags = arguments(self._options)
        self._verbose = verbose
        self._state: Fitted | None = None

    def fit(
        self,
        interactions: pd.DataFrame,
        *,
        tasks: Mapping[str, str],
        user: str = "user_id",
        item: str = "item_id",
        users: pd.DataFrame | None = None,
        items: pd.DataFrame | None = None,
        context: Sequence[str] = (),
        kinds: Mapping[str, str] | None = None,
        validation: float = 0.1,
    ) -> "Recommender":
        """Learns anew. The weights are those of the best epoch on the validation part.

        Args:
            interactions: a row per interaction; other columns than those named here are not looked at.
            tasks: label column -> "binary" (0, 1) or "regression"; null where unknown.
            user, item: columns of raw ids.
            users, items: what is known of each, a row per id with the id in a column named as in `interactions`;
                all other columns are features.
            context: further columns of `interactions` that are features, and given with every prediction.
            kinds: of features: "categorical", "numerical" or "multihot" (a list of categories). Without, numbers and
                truth values are numerical, lists multi-hot, and all others categorical.
            validation: share of the interactions that is not trained on.

        Raises:
            DataError: input that cannot be learnt from; names the column.
        """
        if not isinstance(context, list | tuple):
            raise DataError(f"context is {shown(context)}; expected a list of columns, as in ['hour']")
        data = Interactions(interactions, user, item, tasks, tuple(context), users, items, kinds)
        seed = int(self._options.get("seed") or 0)
        with tempfile.TemporaryDirectory(prefix="recommender-") as folder:
            dataset = Path(folder) / "data"
            dataset.mkdir()
            known_users, known_items = data.write(dataset, validation=validation, seed=seed)
            model = train(self._flags, dataset, Path(folder), verbose=self._verbose)
            from trainer.recommender.fitted import Fitted, Seen
            from trainer.saved_model import load_model

            seen = Seen.of(
                known_users.positions(interactions[user]),
                known_items.positions(interactions[item]),
                len(known_users.keys),
            )
            self._state = Fitted(load_model(model), known_users, known_items, seen, tuple(context))
        return self

    @property
    def tasks(self) -> list[str]:
        """What is predicted."""
        return self._fitted.tasks

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the best epoch on the validation part, as main.py logs them."""
        return self._fitted.saved.metrics

    def predict(
        self,
        user: Any,
        item: Any = None,
        *,
        context: Mapping[str, Any] | None = None,
        encoded: bool = False,
    ) -> float | dict[str, float] | pd.DataFrame:
        """Probabilities, and values of regressions.

        Args:
            user: a raw id; or a frame of raw rows with user, item and context in their columns. Columns of features of
                users and items, where the frame has them, are taken instead of what is known of them.
            item: a raw id.
            context: a value for each context column.
            encoded: the frame holds features as `encode` gives them.

        Returns:
            For one pair a number per task by name (the number itself where there is one task); for a frame a
            frame with a column per task and the same index.

        Raises:
            DataError: a column is missing, or holds other values than it may.
        """
        if isinstance(user, pd.DataFrame):
            if item is not None or context is not None:
                raise DataError("predict(frame) reads items and context from the frame's columns; give the frame alone")
            return self._predict_rows(user, encoded=encoded)
        if item is None:
            hint = "" if isinstance(user, str | Real) else f": {frame_hint(user)}"
            raise DataError(
                "predict(user, item) needs the id of an item, or a pandas DataFrame of rows instead of a user; "
                f"got one {type(user).__name__} alone{hint}"
            )
        values = self.batch_predict([(user, item)], context=context).iloc[0]
        return float(values.iloc[0]) if len(values) == 1 else {task: float(values[task]) for task in self.tasks}

    def batch_predict(
        self, pairs: Iterable[tuple[Any, Any]] | np.ndarray, *, context: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        """Predictions of many pairs of a user and an item at once, a column per task.

        Args:
            pairs: raw ids; also an array [n, 2].
            context: a value for each context column, the same for all pairs.

        Raises:
            DataError: no pairs, or ids of another kind than in training.
        """
        context = context or {}
        self._fitted.check_context(context)
        names = [self._fitted.users.column, self._fitted.items.column]
        if isinstance(pairs, Set | Mapping):
            raise DataError(f"pairs is a {type(pairs).__name__}, whose order is not the rows'; write a list of pairs")
        try:
            # As objects: integers beside nulls would become floats.
            frame = pd.DataFrame(list(pairs), columns=names, dtype=object)
        except (TypeError, ValueError) as error:
            raise DataError(f"pairs: expected one of user and item each, as in [(1, 10), (1, 11)]: {error}") from error
        for name, value in context.items():
            frame[name] = pd.Series([value] * len(frame), dtype=object)
        return self._predict_rows(frame)

    def encode(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The features of raw rows, as `predict(..., encoded=True)` takes them.

        Raises:
            DataError: no data frame, a column is missing, or holds other values than it may.
        """
        return pd.DataFrame(self._fitted.encode(frame), index=frame.index)

    def recommend(
        self,
        user: Any,
        k: int = 10,
        *,
        candidates: Sequence[Any] | None = None,
        exclude_seen: bool = True,
        score: Mapping[str, float] | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> list[tuple[Any, float]]:
        """The best items for a user with their scores, the best first.

        Args:
            user: a raw id; an unknown one gets what suits users of whom nothing is known.
            k: how many; fewer come where there are not so many.
            candidates: raw ids to choose from; None for all items.
            exclude_seen: leave out the items of the user's interactions.
            score: task -> what its prediction counts; None takes the first task alone.
            context: a value for each context column.

        Raises:
            DataError: no such task, a score that is no number, or a k below 1.
        """
        if not isinstance(k, Integral) or k < 1:
            raise DataError(f"k is {k!r}; expected at least 1 item to recommend")
        if isinstance(candidates, str | Mapping | pd.DataFrame) or not isinstance(candidates, Iterable | None):
            raise DataError(f"candidates is {shown(candidates)}; expected a list of items, as in [10, 11]")
        items, scores = self._fitted.rank(
            user, candidates, context or {}, exclude_seen=exclude_seen, weights=self._weights(score)
        )
        return list(zip(items[:k].tolist(), scores[:k].tolist(), strict=True))

    def save(self, folder: str | Path) -> None:
        """Writes everything into a folder: JSON, YAML, .npy and parquet. Replaces what an earlier `save` has written.

        Raises:
            DataError: the folder is a link, a file, the working directory or above it, or holds something that this
                method has not written.
            CheckpointError: it could not be written.
        """
        from trainer.recommender.storage import save_fitted

        save_fitted(self._fitted, self._options, _new_folder(folder))

    @classmethod
    def load(cls, folder: str | Path) -> "Recommender":
        """The recommender that `save` wrote. Every byte is verified, and nothing in the folder is code.

        Raises:
            DataError: there is none, or it is damaged.
        """
        path = _path("load", folder)
        import_tensorflow()
        from trainer.recommender.storage import load_fitted
        from trainer.saved_model import foreign_is_refused

        state, options = load_fitted(path)
        with foreign_is_refused(path):
            loaded = cls(**options)
        loaded._state = state
        return loaded

    @property
    def _fitted(self) -> "Fitted":
        if self._state is None:
            raise DataError("this recommender has learnt nothing yet; call fit, or Recommender.load")
        return self._state

    def _predict_rows(self, frame: pd.DataFrame, *, encoded: bool = False) -> pd.DataFrame:
        features = frame if encoded else self._fitted.encode(frame)
        return pd.DataFrame(self._fitted.predict(features), index=frame.index, columns=self.tasks)

    def _weights(self, score: Mapping[str, float] | None) -> np.ndarray:
        chosen = {self.tasks[0]: 1.0} if score is None else score
        require_mapping(chosen, "score", "{'liked': 1.0}")
        for name, weight in chosen.items():
            if name not in self.tasks:
                near = nearest(name, self.tasks)
                hint = f"; did you mean {near!r}?" if near else ""
                raise DataError(f"score: {name!r} is not one of the tasks {', '.join(self.tasks)}{hint}")
            if not isinstance(weight, Real) or not np.isfinite(float(weight)):
                raise DataError(f"score: {name!r} counts {weight!r}; expected a number")
        if not chosen:
            raise DataError(f"score names no task; expected weights of {', '.join(self.tasks)}")
        return np.array([float(chosen.get(task, 0.0)) for task in self.tasks])


def _path(method: str, folder: Any) -> Path:
    if not isinstance(folder, str | os.PathLike):
        raise DataError(f"{method}: {folder!r} is no path; name a folder, as in {method}('movies')")
    return Path(folder).absolute()


def _new_folder(folder: str | Path) -> Path:
    """The absolute path of a folder to save into."""
    path = Path(os.path.normpath(_path("save", folder)))
    if Path.cwd().is_relative_to(path):
        raise DataError(f"{folder}: is the working directory or above it; name a folder inside, as in save('movies')")
    return path
