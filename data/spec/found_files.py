"""The files of an encoded specification, found for the entries that are folders or patterns."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from data.errors import DataError, shown
from data.spec.document import Problem, path_of
from data.spec.features import Chunk
from data.storage.file_patterns import files_there, find_files, is_pattern
from data.storage.remote import checked_url, is_url


def find_sources(
    sources: Mapping[str, Sequence[Chunk]], folder: Path, *, allow_outside_paths: bool
) -> tuple[dict[str, tuple[Chunk, ...]], list[Problem]]:
    """Return valid mappings with the files that their entries stand for, and what is wrong with these.

    The files follow in the order of the entries, those of an entry sorted by path. A path that is no pattern need not
    exist yet.

    Args:
        sources: {mapping name: chunks}, valid.
        folder: folder of the specification.
        allow_outside_paths: whether files may lie outside of the folder.
    """
    problems: list[Problem] = []
    found = {
        mapping: tuple(
            _with_files(chunk, path_of("source_spec", mapping, index), folder, allow_outside_paths, problems)
            for index, chunk in enumerate(chunks)
        )
        for mapping, chunks in sources.items()
    }
    return found, problems


def _with_files(chunk: Chunk, path: str, folder: Path, allow_outside_paths: bool, problems: list[Problem]) -> Chunk:
    files: dict[str, str] = {}
    for number, entry in enumerate(chunk.files):
        place = f"{path}.files[{number}]"
        try:
            names = _names(entry, chunk.type, folder, allow_outside_paths)
        except (DataError, OSError) as error:
            problems.append(Problem(place, str(error)))
            continue
        for name in names:
            if name in files:
                problems.append(Problem(place, f"{shown(name)} is also in {files[name]}; keep one of them"))
            files.setdefault(name, place)
    return replace(chunk, files=tuple(files))


def _names(entry: str, kind: str, folder: Path, allow_outside_paths: bool) -> list[str]:
    if not is_pattern(entry):
        return [checked_url(entry) if is_url(entry) else entry]
    names = find_files(entry, folder, kind, allow_outside_paths=allow_outside_paths)
    if not names:
        raise DataError(f"{shown(entry)} matches no file{files_there(folder, entry)}")
    return names
