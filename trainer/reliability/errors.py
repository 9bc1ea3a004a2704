"""How a run can end before its last step, other than by wrong input. All workers raise these at the same step."""

from data.errors import DataError


class StoppedBySignal(Exception):
    """A signal asked for a stop; what was done up to this step is saved (exit code 75)."""


class WorkersDiffer(RuntimeError):
    """Workers hold different values where all must hold the same."""


class NotFinite(RuntimeError):
    """The loss, or a weight, is no longer a number."""


def how_to_stay_finite(*, is_float16: bool = False) -> str:
    """What to do about a loss or a weight that is no number.

    Args:
        is_float16: the run computes in float16.
    """
    if is_float16:
        return (
            "The run computes in float16, in which nothing beyond 65,504 is finite. Use --amp_dtype bfloat16 or leave "
            "--amp out; or scale the numerical features and regression labels that check_dataset.py warns of; or "
            "lower --deep_learning_rate."
        )
    return (
        "Lower --deep_learning_rate or --linear_learning_rate, or scale numerical features and regression labels of "
        "extreme values (check_dataset.py warns of those beyond 65,504)."
    )


class RejectedByAll(DataError):
    """Input that one worker has looked at and all reject together, with the same message."""
