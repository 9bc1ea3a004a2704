"""Results of long benchmarks: a JSON line per run, so that one that was stopped goes on where it was."""

import json
from pathlib import Path
from typing import Any


class Results:
    """The runs that stand in a file.

    Args:
        file: made with its folder where it does not exist.
    """

    def __init__(self, file: Path):
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file
        self.runs: list[dict[str, Any]] = (
            [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        )

    def has(self, **about: Any) -> bool:
        """Whether a run with these entries stands there."""
        return any(about.items() <= run.items() for run in self.runs)

    def add(self, run: dict[str, Any]) -> None:
        """Adds a run at once."""
        self.runs.append(run)
        with self._file.open("a") as file:
            file.write(json.dumps(run) + "\n")
