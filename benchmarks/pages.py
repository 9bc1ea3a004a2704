"""Pages of docs/ whose tables are made of lines that were measured."""

import json
import re
from pathlib import Path
from typing import Any

Line = dict[str, Any]
System = tuple[str, str]

MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def read_lines(file: Path) -> list[Line]:
    """The lines that are kept in a file, none where there is no file."""
    return [json.loads(text) for text in file.read_text().splitlines()] if file.exists() else []


def write_lines(file: Path, lines: list[Line]) -> None:
    """Keeps lines in a file."""
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def fill(page: str, tables: dict[str, str]) -> str:
    """The page with the tables between its marks.

    Raises:
        KeyError: it marks a place for a table that there is not.
    """
    return MARKED.sub(lambda match: f"{match[1]}{tables[match[2]]}\n{match[3]}", page)


def markdown(headings: list[str], rows: list[list[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (headings, ["---"] * len(headings), *rows))


def system_of(line: Line) -> System:
    """Machine and versions with which a line was measured."""
    return line["machine"], ", ".join(f"{package} {version}" for package, version in line["versions"].items())


def systems_of(lines: list[Line]) -> list[System]:
    """Each system once; a table tells its number, counted from 1."""
    return list(dict.fromkeys(map(system_of, lines)))


def machines_table(systems: list[System]) -> str:
    """The systems by their numbers."""
    return markdown(["", "machine", "versions"], [[str(index), *system] for index, system in enumerate(systems, 1)])
