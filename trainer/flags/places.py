"""Where a run finds its dataset and keeps what comes out, as far as the command line does not say."""

import os
from collections.abc import Sequence
from pathlib import Path

# The public recipe's places, used where they exist and can be written; else the folders beside the caller.
DEFAULT_PLACES = {
    "dataset_path": ("/outbrain/data", "outbrain/data"),
    "model_dir": ("/outbrain/checkpoints", "outbrain/checkpoints"),
    "results_dir": ("/results", "results"),
}


def default_place(name: str) -> Path:
    """The folder of a flag that is not given."""
    public, local = DEFAULT_PLACES[name]
    return Path(public) if os.access(public, os.W_OK) else Path(local)


def place_in(words: Sequence[str], name: str) -> Path:
    """The folder that a command names, or the default, without a look at its other words: they may be wrong.

    Args:
        words: a command whose last words are main.py's flags.
        name: a name of DEFAULT_PLACES, without dashes.
    """
    flag, found = f"--{name}", None
    for position, word in enumerate(words):
        if word.startswith(f"{flag}="):
            found = word.partition("=")[2]
        elif word == flag and position + 1 < len(words):
            found = words[position + 1]
    return default_place(name) if found is None else Path(found)
