"""The score: a formula of predictions and numerical features, and the named outputs that it is one of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data.errors import DataError
from data.spec.feature_spec import FeatureSpec
from data.spec.features import SCORE
from data.spec.score import NEGATIVE, Formula, FormulaError, find_mistake, parse_formula
from trainer.lazy import tf
from trainer.tasks.task import Task, logit_columns

# On float32 arrays and on tensors alike, these follow IEEE 754: 1 / 0 is infinite; the logarithm and the square root of
# a negative number, a negative number to a fractional power, and min and max with NaN are NaN.
_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": lambda left, right: left / right,
    NEGATIVE: lambda value: -value,
}
_OF_ARRAYS = _ARITHMETIC | {
    "**": np.power,
    "log": np.log,
    "exp": np.exp,
    "sqrt": np.sqrt,
    "abs": np.abs,
    "min": np.minimum,
    "max": np.maximum,
}


def _of_tensors() -> dict[str, Callable[..., Any]]:
    return _ARITHMETIC | {
        "**": tf.pow,
        "log": tf.math.log,
        "exp": tf.exp,
        "sqrt": tf.sqrt,
        "abs": tf.abs,
        "min": tf.minimum,
        "max": tf.maximum,
    }


@dataclass(frozen=True)
class Score:
    """A formula whose names are the predictions of a model's tasks and its numerical features, in float32.

    Attributes:
        formula: the formula.
        tasks: name in the formula -> position of the task.
        numerical: name in the formula -> position among the numerical features of a batch.
    """

    formula: Formula
    tasks: Mapping[str, int]
    numerical: Mapping[str, int]

    @classmethod
    def of(cls, spec: FeatureSpec) -> Score | None:
        """Return the score of a specification, whose tasks are those of `tasks_of`; None if it has none."""
        if spec.score is None:
            return None
        formula = parse_formula(spec.score)
        named = {name.text for name in formula.names}
        tasks, numerical = (
            {feature.name: position for position, feature in enumerate(features) if feature.name in named}
            for features in (spec.labels, spec.numerical)
        )
        return cls(formula, tasks, numerical)

    def numbers(self, numerical: Any) -> np.ndarray:
        """Return the numbers that the formula reads, [rows, numbers] float32.

        Args:
            numerical: the numerical features of a batch, [rows, numerical] float32.
        """
        return np.asarray(numerical)[:, list(self.numerical.values())]

    def __call__(self, predictions: Sequence[np.ndarray], numbers: np.ndarray) -> np.ndarray:
        """Compute the score of rows.

        Args:
            predictions: predictions of each task, [rows, width] each.
            numbers: [rows, numbers] float32, from `numbers`.

        Returns:
            [rows, 1] float32, which may be NaN or infinite.
        """
        values: dict[str, Any] = {name: predictions[own].astype(np.float32) for name, own in self.tasks.items()}
        values |= {name: numbers[:, column, np.newaxis] for column, name in enumerate(self.numerical)}
        with np.errstate(all="ignore"):
            return self.formula.evaluate(values, np.float32, _OF_ARRAYS)

    def in_graph(self, predictions: Sequence[tf.Tensor], numerical: tf.Tensor) -> tf.Tensor:
        """Compute the score of rows, [batch, 1] float32, as `__call__` does.

        Args:
            predictions: predictions of each task, [batch, width] float32 each.
            numerical: all numerical features, [batch, numerical] float32.
        """
        values = {name: predictions[position] for name, position in self.tasks.items()}
        values |= {name: numerical[:, column : column + 1] for name, column in self.numerical.items()}
        # A formula of a name alone must not be the same tensor as another output.
        return tf.identity(self.formula.evaluate(values, lambda number: tf.constant(number, tf.float32), _of_tensors()))


def with_score(spec: FeatureSpec, formula: str | None) -> FeatureSpec:
    """Return a specification with the formula of --score as its score, or unchanged without one.

    Raises:
        DataError: if the formula is malformed, or names what it cannot read.
    """
    if formula is None:
        return spec
    try:
        mistake = find_mistake(parse_formula(formula), spec.features.values(), spec.channel_of)
    except FormulaError as error:
        raise DataError(f"--score: {error}") from error
    if mistake:
        raise DataError(f"--score: {mistake}")
    return replace(spec, score=formula)


def predicted(
    tasks: Sequence[Task], score: Score | None, logits: np.ndarray, numbers: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Convert logits to the named outputs of a model.

    Args:
        tasks: the tasks.
        score: the score; None for none.
        logits: [rows, sum of widths] float32.
        numbers: the numbers that the score reads, from `Score.numbers`; None without a score.

    Returns:
        Predictions [rows, width] float64 by task name, in the order of the tasks, then the score [rows, 1] float32.
    """
    columns = zip(tasks, logit_columns(tasks), strict=True)
    found = {task.name: task.predictions(logits[:, of_task]) for task, of_task in columns}
    return found if score is None or numbers is None else found | {SCORE: score([*found.values()], numbers)}


def predicted_in_graph(
    tasks: Sequence[Task], score: Score | None, logits: tf.Tensor, numerical: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Convert logits to the named outputs of an exported model, as `predicted` does.

    Args:
        tasks: the tasks.
        score: the score; None for none.
        logits: [batch, sum of widths] float32.
        numerical: the numerical features, [batch, numerical] float32.

    Returns:
        Predictions [batch, width] float32 by task name, in the order of the tasks, then the score [batch, 1].
    """
    columns = zip(tasks, logit_columns(tasks), strict=True)
    found = {task.name: task.activation(logits[:, of_task]) for task, of_task in columns}
    return found if score is None else found | {SCORE: score.in_graph([*found.values()], numerical)}
