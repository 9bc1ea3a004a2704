"""The public `Recommender` class. TensorFlow and other heavy modules are imported on first use."""

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence, Set
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from data.errors import DataError, nearest, shown
from data.spec.features import SCORE
from trainer.process.startup import import_tensorflow
from trainer.recommender.columns import frame_hint, require_frame, require_mapping
from trainer.recommender.interactions import Interactions
from trainer.recommender.training import to_flags, train

if TYPE_CHECKING:
    from trainer.recommender.fitted import Fitted


class Recommender:
    """Trains on raw interactions, predicts for raw user and item ids, and recommends items.

    Raw ids are integers or strings (see `data.encoding.keys`). Ids that do not occur in training share the embedding
    of unseen values.

    Args:
        model: architecture, one of the values of main.py's --model.
        epochs: passes over the training data.
        batch_size: rows per training step.
        learning_rate: learning rate of the deep part; None uses main.py's default for the model.
        verbose: whether to show the output of main.py during training.
        **options: any other model or training flag by name, such as `num_experts=4` or `score="liked * rating"`.

    Raises:
        DataError: if an option is unknown or has an invalid value.
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
        self._flags = to_flags(self._options)  # raises for invalid options now rather than in `fit`
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
        sequences: Mapping[str, Mapping[str, Any]] | None = None,
        tables: Mapping[str, str] | None = None,
        validation: float = 0.1,
    ) -> "Recommender":
        """Train a new model and keep the weights of its best epoch on the validation data.

        Args:
            interactions: frame with one row per interaction; columns not named in the other arguments are ignored.
            tasks: maps each label column to "binary" (labels 0 and 1), "regression" or another task type for numbers
                (see docs/tasks.md); missing labels are null.
            user: column of the raw user ids.
            item: column of the raw item ids.
            users: user features, one row per user. The column `user` holds the id, all other columns are features.
            items: item features, one row per item. The column `item` holds the id, all other columns are features.
            context: further feature columns of `interactions`, whose values are needed for every prediction.
            kinds: maps feature columns to "categorical", "numerical", "multihot" (lists of categories) or "vector"
                (lists of equally many numbers). By default numbers and booleans are numerical, lists multi-hot, and all
                other values categorical. In a sequence, lists are "numerical" or "categorical"; by default,
                floating-point numbers are numerical and all other items categorical.
            sequences: maps the name of each sequence to its keys, as in a feature specification (see docs/features.md):
                `features`, columns of lists that are equally long in every row, all in `users`, all in `items` or all
                in `context`; and optionally `target`, `encoder` and `order`.
            tables: maps categorical columns to the embedding table that they share, and with it their vocabulary. The
                table of a column that is not named is called like the column, as in `{"clicked": "item_id"}`.
            validation: fraction of the interactions to hold out for validation.

        Returns:
            This recommender.

        Raises:
            DataError: if the input cannot be used for training; the message names the column.
        """
        if not isinstance(context, list | tuple):
            raise DataError(f"context is {shown(context)}; expected a list of columns, as in ['hour']")
        data = Interactions(interactions, user, item, tasks, tuple(context), users, items, kinds, sequences, tables)
        seed = int(self._options.get("seed") or 0)
        with tempfile.TemporaryDirectory(prefix="recommender-") as folder:
            dataset = Path(folder) / "data"
            dataset.mkdir()
            known_users, known_items = data.write(dataset, validation=validation, seed=seed)
            model = train(self._flags, dataset, Path(folder), verbose=self._verbose)
            # Imported only here: these modules import TensorFlow, which `train` does quietly.
            from trainer.checkpoint.load_model import load_model
            from trainer.recommender.fitted import Fitted, Seen

            seen = Seen.of(
                known_users.positions(interactions[user]),
                known_items.positions(interactions[item]),
                len(known_users.keys),
            )
            self._state = Fitted(load_model(model), known_users, known_items, seen, tuple(context))
        return self

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in the order of predictions."""
        return self._fitted.tasks

    @property
    def metrics(self) -> dict[str, float]:
        """Validation metrics of the best epoch, by the names that main.py logs."""
        return self._fitted.saved.metrics

    def predict(
        self,
        user: Any,
        item: Any = None,
        *,
        context: Mapping[str, Any] | None = None,
        encoded: bool = False,
    ) -> float | dict[str, float] | pd.DataFrame:
        """Predict the probability of binary tasks and the value of all others.

        Args:
            user: raw user id, or a frame of raw rows with columns for user, item and context. User and item feature
                columns present in the frame override the features known from training.
            item: raw item id; omitted if `user` is a frame.
            context: value of each context column.
            encoded: whether the frame holds encoded features as returned by `encode`.

        Returns:
            For a single pair, a dictionary of predictions by task, or a float if there is only one task and no score.
            For a frame, a frame with the same index and one column per task. With the option `score`, there is one more
            output, `score`.

        Raises:
            DataError: if a column is missing or holds invalid values.
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
        return (
            float(values.iloc[0]) if len(values) == 1 else {str(name): float(value) for name, value in values.items()}
        )

    def batch_predict(
        self, pairs: Iterable[tuple[Any, Any]] | np.ndarray, *, context: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        """Predict for many (user, item) pairs at once.

        Args:
            pairs: pairs of raw user and item ids, or an array of shape [n, 2].
            context: value of each context column, used for all pairs.

        Returns:
            A frame with one row per pair and one column per task, and `score` with the option of that name.

        Raises:
            DataError: if `pairs` does not consist of pairs, or ids are of another type than in training.
        """
        context = context or {}
        self._fitted.check_context(context)
        names = [self._fitted.users.column, self._fitted.items.column]
        if isinstance(pairs, Set | Mapping):
            raise DataError(f"pairs is a {type(pairs).__name__}, which has no order; pass a list of pairs")
        try:
            # dtype=object, since pandas would convert integers mixed with nulls to floats.
            frame = pd.DataFrame(list(pairs), columns=names, dtype=object)
        except (TypeError, ValueError) as error:
            raise DataError(f"pairs: expected one of user and item each, as in [(1, 10), (1, 11)]: {error}") from error
        for name, value in context.items():
            frame[name] = pd.Series([value] * len(frame), dtype=object)
        return self._predict_rows(frame)

    def encode(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Encode raw rows into the features expected by `predict(..., encoded=True)`.

        Raises:
            DataError: if `frame` is not a data frame, or a column is missing or holds invalid values.
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
        """Return the best items for a user as (item id, score) pairs, by descending score.

        Args:
            user: raw user id; an unknown id gets the recommendations of a user without known features.
            k: maximum number of items; fewer are returned if there are fewer candidates.
            candidates: raw ids of the items to choose from; None for all items.
            exclude_seen: whether to exclude items that the user has interacted with.
            score: maps tasks, and `score` if there is one, to the weights of their predictions in an item's score; None
                uses `score`, or else the first task only.
            context: value of each context column.

        Raises:
            DataError: if a task is unknown, a weight is not a finite number, or `k` is below 1.
        """
        if not isinstance(k, Integral) or k < 1:
            raise DataError(f"k is {k!r}; expected at least 1 item to recommend")
        if isinstance(candidates, str | Mapping | pd.DataFrame) or not isinstance(candidates, Iterable | None):
            raise DataError(f"candidates is {shown(candidates)}; expected a list of items, as in [10, 11]")
        items, scores = self._fitted.rank(
            user, candidates, context or {}, exclude_seen=exclude_seen, weights=self._weights(score)
        )
        return list(zip(items[:k].tolist(), scores[:k].tolist(), strict=True))

    def rank(self, request: Mapping[str, Any], candidates: pd.DataFrame | Mapping[str, Sequence[Any]]) -> pd.DataFrame:
        """Predict for the candidates of a ranking request: one user, one context, many items.

        The predictions are those of `predict` on rows with the request's values, but what the model computes from the
        request alone is computed once.

        Args:
            request: value of the user's column and of each context column; values of columns of `users` override those
                known from training.
            candidates: the items, a frame or a mapping of columns to equally long lists, with the item's column.
                Columns of `items` override those known from training; unknown columns are ignored.

        Returns:
            A frame with one row per candidate, in their order, and one column per task. With the option `score`, there
            is one more output, `score`.

        Raises:
            DataError: if a column is missing, belongs to the other side, or holds invalid values; the message names it.
        """
        frame = candidates if isinstance(candidates, pd.DataFrame) else _frame_of(candidates)
        require_frame(frame, "candidates")
        predicted = self._fitted.predict_candidates(request, frame)
        return pd.DataFrame(predicted, index=frame.index, columns=self._fitted.outputs)

    def save(self, folder: str | Path) -> None:
        """Save the recommender to a folder of JSON, YAML, .npy and parquet files, replacing an earlier save.

        Raises:
            DataError: if the path is a link, a file, the working directory or a parent of it, or a folder with content
                that was not written by this method.
            StorageError: if the folder cannot be written.
        """
        from trainer.recommender.storage import save_fitted

        save_fitted(self._fitted, self._options, _new_folder(folder))

    @classmethod
    def load(cls, folder: str | Path) -> "Recommender":
        """Load a recommender written by `save`. All checksums are verified, and no code is loaded from the folder.

        Raises:
            DataError: if there is no recommender in the folder, or it is damaged.
        """
        path = _path("load", folder)
        import_tensorflow()
        from trainer.checkpoint.load_model import reject_foreign
        from trainer.recommender.storage import load_fitted

        state, options = load_fitted(path)
        with reject_foreign(path):
            loaded = cls(**options)
        loaded._state = state
        return loaded

    @property
    def _fitted(self) -> "Fitted":
        if self._state is None:
            raise DataError("this recommender is not fitted; call fit, or Recommender.load")
        return self._state

    def _predict_rows(self, frame: pd.DataFrame, *, encoded: bool = False) -> pd.DataFrame:
        features = frame if encoded else self._fitted.encode(frame)
        return pd.DataFrame(self._fitted.predict(features), index=frame.index, columns=self._fitted.outputs)

    def _weights(self, score: Mapping[str, float] | None) -> np.ndarray:
        outputs = self._fitted.outputs
        chosen = {outputs[-1] if SCORE in outputs else outputs[0]: 1.0} if score is None else score
        require_mapping(chosen, "score", "{'liked': 1.0}")
        for name, weight in chosen.items():
            if name not in outputs:
                near = nearest(name, outputs)
                hint = f"; did you mean {near!r}?" if near else ""
                raise DataError(f"score: {name!r} is not one of the tasks {', '.join(outputs)}{hint}")
            if not isinstance(weight, Real) or not np.isfinite(float(weight)):
                raise DataError(f"score: the weight of {name!r} is {weight!r}; expected a number")
        if not chosen:
            raise DataError(f"score names no task; expected weights of {', '.join(outputs)}")
        return np.array([float(chosen.get(task, 0.0)) for task in outputs])


def _frame_of(columns: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """Return columns of equally long lists as a frame of objects."""
    require_mapping(columns, "candidates", "{'item_id': [10, 11]}")
    series = {}
    for name, values in columns.items():
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
            raise DataError(f"candidates: {name!r} is {shown(values)}; expected a list with a value per candidate")
        series[name] = pd.Series(list(values), dtype=object)
        first = next(iter(series))
        if len(series[name]) != len(series[first]):
            raise DataError(
                f"candidates: {name!r} has {len(series[name])} values, and {first!r} has {len(series[first])}; "
                "expected one per candidate"
            )
    return pd.DataFrame(series)


def _path(method: str, folder: Any) -> Path:
    if not isinstance(folder, str | os.PathLike):
        raise DataError(f"{method}: {folder!r} is not a path; pass a folder, as in {method}('movies')")
    return Path(folder).absolute()


def _new_folder(folder: str | Path) -> Path:
    """Return the absolute path of a folder to save to."""
    path = Path(os.path.normpath(_path("save", folder)))
    # A save replaces the folder as a whole, which must not pull the working directory away.
    if Path.cwd().is_relative_to(path):
        raise DataError(f"{folder}: is the working directory or above it; choose a folder inside, as in save('movies')")
    return path
