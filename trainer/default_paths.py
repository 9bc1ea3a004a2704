"""The folders of a run where no flag names them. Imports little, for programs that only watch a run."""

import os
from collections.abc import Sequence
from pathlib import Path

from data.storage.range_cache import CACHE_LIMIT_VARIABLE, parse_size
from data.storage.remote import CACHE_DIR_VARIABLE, is_url, mirror_of

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


def local_path(text: str) -> Path:
    """Return the path of a file or folder, which for one that a URL names is that of its local mirror.

    Raises:
        DataError: the URL is invalid.
    """
    return mirror_of(text) if is_url(text) else Path(text)


def path_in(words: Sequence[str], name: str) -> Path:
    """Return the folder that a command passes for a flag, or the default.

    The command's other words are not parsed, since they may be invalid.

    Args:
        words: a command line that ends with flags of main.py.
        name: name of the flag without dashes, a key of DEFAULT_PATHS.
    """
    found = _word_of(words, name)
    if found is None or (is_url(found) and name == "results_dir"):  # which is rejected once it is parsed
        return default_path(name)
    return local_path(found)


def set_cache(words: Sequence[str]) -> None:
    """Hand the --cache_dir and --cache_limit of a command to whatever reads remote files, here and in child processes.

    Args:
        words: a command line that ends with flags of main.py.

    Raises:
        DataError: the limit is no size.
    """
    for name, variable in (("cache_limit", CACHE_LIMIT_VARIABLE), ("cache_dir", CACHE_DIR_VARIABLE)):
        if (found := _word_of(words, name)) is not None:
            if variable == CACHE_LIMIT_VARIABLE:
                parse_size(found)
            os.environ[variable] = found


def _word_of(words: Sequence[str], name: str) -> str | None:
    """Return what follows a flag in a command, the last time that it is given; None if it is not."""
    flag, found = f"--{name}", None
    for index, word in enumerate(words):
        if word.startswith(f"{flag}="):
            found = word.partition("=")[2]
        elif word == flag and index + 1 < len(words):
            found = words[index + 1]
    return found
