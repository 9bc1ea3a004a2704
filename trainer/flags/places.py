"""The default folders of a run's dataset and outputs."""

import os
from collections.abc import Sequence
from pathlib import Path

# The folders of the public recipe, used if they exist and are writable, and those in the current directory otherwise.
DEFAULT_PLACES = {
    "dataset_path": ("/outbrain/data", "outbrain/data"),
    "model_dir": ("/outbrain/checkpoints", "outbrain/checkpoints"),
    "results_dir": ("/results", "results"),
}


def default_place(name: str) -> Path:
    """Return the default folder of a flag."""
    public, local = DEFAULT_PLACES[name]
    return Path(public) if os.access(public, os.W_OK) else Path(local)


def place_in(words: Sequence[str], name: str) -> Path:
    """Return the folder that a command passes for a flag, or the default.

    The command's other words are not parsed, since they may be invalid.

    Args:
        words: a command line that ends with flags of main.py.
        name: name of the flag without dashes, a key of DEFAULT_PLACES.
    """
    flag, found = f"--{name}", None
    for position, word in enumerate(words):
        if word.startswith(f"{flag}="):
            found = word.partition("=")[2]
        elif word == flag and position + 1 < len(words):
            found = words[position + 1]
    return default_place(name) if found is None else Path(found)
