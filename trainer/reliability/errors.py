"""How a run can end before its last step, other than by wrong input."""


class StoppedBySignal(Exception):
    """A signal asked for a stop; all workers stopped after the same step, and what they did is saved (exit code 75)."""


class WorkersDiffer(RuntimeError):
    """Workers hold different values where all must hold the same."""
