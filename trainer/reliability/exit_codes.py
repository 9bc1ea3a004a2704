"""Exit codes of the recipe's programs."""

DONE = 0
FAILURE = 1
WRONG_INPUT = 2
NO_CHECKPOINT = 4
HANG = 70
STOPPED = 75
"""Stopped by a signal after all progress was saved. EX_TEMPFAIL in sysexits.h: the command can be retried."""
