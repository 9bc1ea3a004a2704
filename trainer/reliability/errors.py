"""How a run can end before its last step, other than by wrong input. All workers raise these at the same step."""

from data.errors import DataError


class StoppedBySignal(Exception):
    """A signal asked for a stop; what was done up to this step is saved (exit code 75)."""


class WorkersDiffer(RuntimeError):
    """Workers hold different values where all must hold the same."""


class NotFinite(RuntimeError):
    """The loss, or a weight, is no longer a number."""


class RejectedByAll(DataError):
    """Input that one worker has looked at and all reject together, with the same message."""
