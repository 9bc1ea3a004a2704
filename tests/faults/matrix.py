"""How often each fault is tried, and a record of the outcomes."""

import json
import os
from collections.abc import Sequence


def tries(quick: int, whole: int) -> int:
    """How often to try a fault: `quick` in every test run, `whole` where RECIPE_FAULTS is "whole"."""
    return whole if os.environ.get("RECIPE_FAULTS") == "whole" else quick


def record(fault: str, tries: int, survived: int, seconds: Sequence[float] = ()) -> None:
    """Adds a line to the file that RECIPE_FAULTS_LOG names; does nothing if it is not set.

    Call it before asserting, so that failures are recorded too. Lines of one fault are added up.

    Args:
        fault: the row in the table of docs/reliability.md, in plain words.
        tries: how often it was injected.
        survived: how often the outcome was as promised.
        seconds: recovery or detection times, if of interest.
    """
    if log := os.environ.get("RECIPE_FAULTS_LOG"):
        line = {
            "fault": fault,
            "tries": tries,
            "survived": survived,
            "seconds": [round(float(value), 3) for value in seconds],
        }
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
