"""Exceptions that end a run before its last step. All workers raise them at the same step."""

from data.errors import DataError


class StoppedBySignal(Exception):
    """The run was stopped by a signal; all progress up to this step is saved (exit code 75)."""


class WorkersDiffer(RuntimeError):
    """Workers hold different values for state that must be identical on all of them."""


class NotFinite(RuntimeError):
    """The loss or a weight is NaN or infinite."""


def how_to_stay_finite(*, is_float16: bool = False) -> str:
    """Return advice for the user about a non-finite loss or weight.

    Args:
        is_float16: whether the run computes in float16.
    """
    if is_float16:
        return (
            "The run computes in float16, whose largest finite number is 65,504. Use --amp_dtype bfloat16 or remove "
            "--amp; or scale the numerical features and regression labels that check_dataset.py warns of; or "
            "lower --deep_learning_rate."
        )
    return (
        "Lower --deep_learning_rate or --linear_learning_rate, or scale numerical features and regression labels with "
        "extreme values (check_dataset.py warns of those beyond 65,504)."
    )


class RejectedByAll(DataError):
    """Input that one worker has checked and all workers reject together, with the same message."""


DONE = 0
FAILURE = 1
WRONG_INPUT = 2
NO_CHECKPOINT = 4
HANG = 70
STOPPED = 75
"""Stopped by a signal after all progress was saved. EX_TEMPFAIL in sysexits.h: the command can be retried."""
