"""The folders of a run where no flag names them. Imports little, for programs that only watch a run."""

import os
from collections.abc import Sequence
from pathlib import Path

# The folders of the public recipe, used if they exist and are writable, and those in the current directory otherwise.
DEFAULT_PATHS = {
    "dataset_path": ("/outbrain/data", "outbrain/data"),
    "model_dir": ("/outbrain/checkpoints", "outbrain/checkpoints"),
    "results_dir": ("/results", "results"),
}


def default_path(name: str) -> Path:
    """Return the default folder of a flag, a key of DEFAULT_PATHS."""
    public, local = DEFAULT_PATHS[name]
    return Path(public) if os.access(public, os.W_OK) else Path(local)


def path_in(words: Sequence[str], name: str) -> Path:
    """Return the folder that a command passes for a flag, or the default.

    The command's other words are not parsed, since they may be invalid.

    Args:
        words: a command line that ends with flags of main.py.
        name: name of the flag without dashes, a key of DEFAULT_PATHS.
    """
    flag, found = f"--{name}", None
    for index, word in enumerate(words):
        if word.startswith(f"{flag}="):
            found = word.partition("=")[2]
        elif word == flag and index + 1 < len(words):
            found = words[index + 1]
    return default_path(name) if found is None else Path(found)
