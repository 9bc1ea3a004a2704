"""What a process of the recipe exits with."""

DONE = 0
FAILURE = 1
WRONG_INPUT = 2
NO_CHECKPOINT = 4
HANG = 70
STOPPED = 75
"""By a signal, after all was saved. sysexits.h calls it a temporary failure: try again."""
