"""Copies of files in a store for as long as they are read."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.errors import DataError, LostInputError
from data.storage.remote import fetch, url_of


@contextmanager
def working_copy(path: Path, scratch: Path | None = None) -> Iterator[Path]:
    """Yield the path of a local file, and for the local copy of a URL that of a fresh download, removed at the end.

    Messages of errors inside of the block name the URL instead of the download.

    Args:
        path: a local path, or the path of the local copy of a URL, which need not exist.
        scratch: existing folder for the download; None for that of temporary files.

    Raises:
        RemoteNotFoundError: There is no such object.
        RemoteError: The store cannot be read.
    """
    url = url_of(path)
    if url is None:
        yield path
        return
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        copy = Path(folder) / path.name
        fetch(url, copy)
        try:
            yield copy
        except (DataError, LostInputError) as error:
            error.args = tuple(text.replace(str(copy), url) for text in error.args)
            raise
