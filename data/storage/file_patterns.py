"""The files that an entry of `files:` stands for: a path, a folder, or a pattern such as `train/date=*/*.parquet`.

The folder of a specification is local, or the local copy of a folder in a store (`data.storage.remote.mirror_of`); then
the store lists the files. Both give the same names. Nothing is read but names.
"""

import os
import posixpath
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

from data.errors import DataError, listed, shown
from data.storage import remote
from data.storage.files import find_escape

# Names that hold no rows, such as _SUCCESS, .part-0.crc and the specification.
SKIPPED_PREFIXES = (".", "_")
SKIPPED_SUFFIXES = (".yaml", ".yml", ".json", ".md", ".crc")
ANY = ""
_PARQUET = re.compile(r"\.(parquet|pq)$", re.IGNORECASE)
_TEXT = re.compile(r"\.(csv|tsv|txt)(\.\w+)?$", re.IGNORECASE)
_WILDCARD = re.compile(r"[*?[]")
_ROOT_OF_URL = re.compile(r"[^:/]+://[^/]*")


def has_wildcard(name: str) -> bool:
    """Return whether a name contains `*`, `?` or `[`."""
    return _WILDCARD.search(name) is not None


def is_pattern(entry: str) -> bool:
    """Return whether an entry stands for files to be found: it has a wildcard, or ends with a slash as a folder."""
    return has_wildcard(entry) or entry.endswith("/")


def located(folder: Path, name: str) -> Path:
    """Return the path of a file that a specification in `folder` names; that of its local copy for a URL."""
    return remote.mirror_of(name) if remote.is_url(name) else folder / name


def find_files(entry: str, folder: Path, kind: str = ANY, *, allow_outside_paths: bool = False) -> list[str]:
    """Return the names of the files that an entry stands for, sorted; none if there are none.

    A path stands for itself, also if it contains `*`, `?` or `[`, and a folder for all files below it. In a pattern,
    `**` stands for any number of folders, and what it matches may be folders, too. Below folders, and where a pattern
    ends with `*`, only files of the kind count; names that begin with "." or "_" do so only where the entry writes that
    out.

    Args:
        entry: path or pattern, relative to `folder`, absolute, or a URL.
        folder: folder of the specification.
        kind: "csv" or "parquet", to leave out files whose names say that they are of the other kind; ANY for both.
        allow_outside_paths: whether the entry, and links, may lead out of the folder.

    Returns:
        Names relative to the folder, with forward slashes, or absolute, or URLs, as the entry is.

    Raises:
        DataError: The entry, or a link that it leads to, is outside of the folder, or a link leads to a folder that
            contains it.
        RemoteError: The store cannot be read.
    """
    base, wild = _split(_normal(entry))
    tree = _tree(folder, base, allow_outside_paths=allow_outside_paths)
    tree.check(base)
    literal = _joined(base, "/".join(wild))
    if not entry.endswith("/") and tree.is_file(literal):
        found = {literal}
    elif wild and tree.is_folder(literal):
        found = set(_below(tree, literal, kind))
    else:
        found = set(_matching(tree, base, wild, kind))
    for name in found:
        tree.check(name)
    return sorted(found)


def files_there(folder: Path, entry: str) -> str:
    """Return what is where an entry found nothing, to be appended to an error message."""
    normal = _normal(entry)
    if (url := remote.url_of(located(folder, _split(normal)[0]))) is not None:
        found = [file.url.removeprefix(url).lstrip("/") for file in remote.list_files(url)]
        return f"; below {url} are {listed(found, len(found))}" if found else f"; there are no files below {url}"
    there = folder / _split(posixpath.dirname(normal))[0]
    if not there.is_dir():
        there = folder
    if not there.is_dir():
        return "; there is no such folder"
    names, what = sorted(os.listdir(there)), "the folder" if there == folder else str(there)
    return f"; {what} holds {listed(names, len(names))}" if names else f"; {what} is empty"


class _Tree(Protocol):
    """Folders and files by name, as an entry writes them; "" is the folder of the specification."""

    def check(self, name: str) -> None:
        """Raise a DataError if a name leads out of the folder and may not."""

    def is_file(self, name: str) -> bool:
        """Return whether there is a file of this name."""

    def is_folder(self, name: str) -> bool:
        """Return whether there is a folder of this name."""

    def entries(self, name: str) -> dict[str, bool]:
        """Return whether each name in a folder is a folder; nothing if there is no such folder."""


class _LocalTree:
    """Files of the local disk."""

    def __init__(self, folder: Path, *, allow_outside_paths: bool) -> None:
        self._folder, self._allows_outside = folder, allow_outside_paths
        self._root, self._resolved = os.path.realpath(folder), dict[str, str]()

    def check(self, name: str) -> None:
        if not self._allows_outside and name and (mistake := find_escape(name, self._root, self._resolved)):
            raise DataError(
                f"{remote.named(self._folder)}: {shown(remote.named(name))} {mistake}, or pass --allow_outside_paths"
            )

    def is_file(self, name: str) -> bool:
        path = self._folder / name
        return path.exists() and not path.is_dir()

    def is_folder(self, name: str) -> bool:
        return (self._folder / name).is_dir()

    def entries(self, name: str) -> dict[str, bool]:
        path = self._folder / name
        if not path.is_dir():
            return {}
        self.check(name)
        found = {}
        with os.scandir(path) as entries:
            for entry in entries:
                found[entry.name] = entry.is_dir()
                if found[entry.name] and entry.is_symlink():
                    self._check_ends(entry.path, path)
        return found

    def _check_ends(self, link: str, parent: Path) -> None:
        """Raise a DataError for a link to a folder that contains it, below which there is no end of folders."""
        real, above = os.path.realpath(link), os.path.realpath(parent)
        if os.path.commonpath([real, above]) == real:
            raise DataError(f"{link}: is a link to a folder that contains it; remove the link")


class _StoreTree:
    """Files of a store below one folder, listed once."""

    def __init__(self, folder: Path, base: str) -> None:
        self._folder, self._base = folder, base
        self._listing: dict[str, dict[str, bool]] | None = None

    def check(self, name: str) -> None:
        """Allow everything: a store has no links, and absolute names and URLs were checked before."""

    def is_file(self, name: str) -> bool:
        return remote.exists(self._url(name))

    def is_folder(self, name: str) -> bool:
        return name in self._folders()

    def entries(self, name: str) -> dict[str, bool]:
        return self._folders().get(name, {})

    def _folders(self) -> dict[str, dict[str, bool]]:
        if self._listing is None:
            self._listing = {}
            url = self._url(self._base)
            for file in remote.list_files(url):
                name, is_folder = _joined(self._base, file.url.removeprefix(url).lstrip("/")), False
                while name != self._base:
                    parent, _, last = name.rpartition("/")
                    self._listing.setdefault(parent, {})[last] = is_folder
                    name, is_folder = parent, True
        return self._listing

    def _url(self, name: str) -> str:
        return name if remote.is_url(name) else str(remote.url_of(self._folder / name))


def _tree(folder: Path, base: str, *, allow_outside_paths: bool) -> _Tree:
    local = _LocalTree(folder, allow_outside_paths=allow_outside_paths)
    if remote.url_of(located(folder, base)) is None:
        return local
    local.check(base)
    return _StoreTree(folder, base)


def _matching(tree: _Tree, at: str, parts: list[str], kind: str) -> Iterator[str]:
    """Yield the files that the remaining parts of a pattern match in the folder `at`, some repeatedly."""
    if not parts or parts == ["**"]:
        yield from _below(tree, at, kind)
        return
    part, rest = parts[0], parts[1:]
    if part == "**":
        yield from _matching(tree, at, rest, kind)
    for name, is_folder in tree.entries(at).items():
        path = _joined(at, name)
        if part == "**":
            if is_folder and _is_visible(name):
                yield from _matching(tree, path, parts, kind)
        elif _fits(name, part) and (rest or is_folder):
            if is_folder:
                yield from _matching(tree, path, rest, kind)
        elif _fits(name, part) and (not part.endswith("*") or _is_of_kind(name, kind)):
            yield path


def _below(tree: _Tree, folder: str, kind: str) -> Iterator[str]:
    for name, is_folder in tree.entries(folder).items():
        if is_folder and _is_visible(name):
            yield from _below(tree, _joined(folder, name), kind)
        elif not is_folder and _is_visible(name) and _is_of_kind(name, kind):
            yield _joined(folder, name)


def _fits(name: str, part: str) -> bool:
    return fnmatchcase(name, part) and (_is_visible(name) or part.startswith(name[0]))


def _is_visible(name: str) -> bool:
    return not name.startswith(SKIPPED_PREFIXES)


def _is_of_kind(name: str, kind: str) -> bool:
    other = {"csv": _PARQUET, "parquet": _TEXT}.get(kind)
    return not name.endswith(SKIPPED_SUFFIXES) and (other is None or other.search(name) is None)


def _normal(entry: str) -> str:
    """Return an entry without parts that mean nothing; "" for the folder itself."""
    normal = remote.checked_url(entry) if remote.is_url(entry) else posixpath.normpath(entry)
    return "" if normal == "." else normal


def _split(entry: str) -> tuple[str, list[str]]:
    """Return the leading folders of an entry without wildcards, and its other parts."""
    found = _ROOT_OF_URL.match(entry)
    root = found[0] if found else "/" if entry.startswith("/") else ""
    parts = [part for part in entry[len(root) :].split("/") if part]
    wild = next((index for index, part in enumerate(parts) if has_wildcard(part)), len(parts))
    return _joined(root, "/".join(parts[:wild])), parts[wild:]


def _joined(folder: str, name: str) -> str:
    if not folder or not name:
        return folder or name
    return f"{folder}{name}" if folder.endswith("/") else f"{folder}/{name}"
