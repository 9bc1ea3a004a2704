"""Reads plain YAML safely: small documents of texts, numbers, lists and mappings, with located error messages."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data.errors import DataError, shown
from data.storage.files import read_small_text

MAX_MEBIBYTES = 1
MAX_DEPTH = 20
# Total number of texts, numbers, lists and mappings: twice what 1,000 features and 1,000 files per mapping need.
MAX_VALUES = 40_000
MAX_CHARACTERS = 2**20
MAX_NUMBER_LENGTH = 40

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NOT_TEXT = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_OLD_NUMBER = re.compile(r"[-+]?0[0-9_]+|.*:.*")
_INTEGER_TAG = "tag:yaml.org,2002:int"
_FLOAT_TAG = "tag:yaml.org,2002:float"
_MERGE_TAG = "tag:yaml.org,2002:merge"


class _Refused(Exception):
    """A mistake in the document.

    Attributes:
        message: what is wrong and what to write instead.
        mark: PyYAML mark of its location (line and column from 0), or None.
    """

    def __init__(self, message: str, mark: Any) -> None:
        super().__init__(message)
        self.message = message
        self.mark = mark


class _PlainLoader(_Loader):
    """PyYAML's safe loader, but refusing duplicate keys and numbers that YAML 1.1 reads in a surprising way."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        first_lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == _MERGE_TAG:
                raise _Refused("merge keys (<<) are not supported; write the keys out", key_node.start_mark)
            if not isinstance(key_node, yaml.ScalarNode):
                raise _Refused("a list or mapping cannot be a key; write a name", key_node.start_mark)
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if key in first_lines:
                what = f"key {shown(key_node.value)} is there twice (first on line {first_lines[key]}); keep one"
                raise _Refused(what, key_node.start_mark)
            first_lines[key] = line
        return super().construct_mapping(node, deep=deep)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        if node.tag in (_INTEGER_TAG, _FLOAT_TAG):
            _check_number(node)
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, OverflowError) as error:  # such as the date 2024-99-99
            what = f"cannot read {node.value!r} ({error}); put it in quotes if it is text"
            raise _Refused(what, node.start_mark) from error


def read_yaml(path: Path) -> dict[Any, Any]:
    """Reads a YAML file whose root is a mapping, with the semantics of `yaml.safe_load`.

    Anchors and aliases are accepted: PyYAML writes them for a list that is used twice. Refused are duplicate keys,
    tags, merge keys, octal and base-60 numbers, files larger than 1 MiB, and, with aliases expanded, nesting deeper
    than 20, more than 40,000 values or 1,048,576 characters.

    Raises:
        DataError: The file cannot be read or is refused; the message names the file and, if known, the line and column
            (from 1).
    """
    text = read_small_text(path, "a YAML file such as feature_spec.yaml", MAX_MEBIBYTES)
    _check_characters(path, text)
    try:
        # Checked before anything is built: deep nesting overflows the stack, and a few nested aliases can stand for
        # billions of values.
        _check_events(text)
        document = yaml.load(text, Loader=_PlainLoader)  # noqa: S506 - a subclass of the safe loader
    except _Refused as error:
        raise DataError(f"{path}{_place(error.mark)}: {error.message}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise DataError(f"{path}{_place(mark)}: not valid YAML: {_syntax_mistake(error, mark, text)}") from error
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not valid YAML: {error}") from error
    if document is None:
        raise DataError(f"{path}: is empty; expected YAML with a mapping (`key: value`) at its root")
    if not isinstance(document, dict):
        kind = "a list" if isinstance(document, list) else "a single value"
        raise DataError(f"{path}: the root is {kind}; expected a mapping (`key: value`)")
    return document


def _check_characters(path: Path, text: str) -> None:
    """Raises DataError for control characters, which YAML does not allow."""
    if bad := _NOT_TEXT.search(text):
        line = text.count("\n", 0, bad.start()) + 1
        raise DataError(f"{path}, line {line}: control character {bad.group()!r}; expected plain text")


def _check_events(text: str) -> None:
    """Parses the document without building it, and raises _Refused if its size, depth or aliases are not harmless."""
    extent = _Extent()
    event: Any
    for event in yaml.parse(text, Loader=_Loader):
        if getattr(event, "tag", None) is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")[:60]
            raise _Refused(f"tags are not supported (found {tag}); write plain values", event.start_mark)
        if isinstance(event, yaml.ScalarEvent) and _SURROGATE.search(event.value):
            raise _Refused("text with half a character (a surrogate escape); write the character", event.start_mark)
        extent.add(event)


@dataclass
class _Node:
    """The size of a node: a list or mapping that is still open, or the complete value of an anchor.

    Attributes:
        mark: location of the node's start.
        values: number of values in the node; while it is open, the total count before its start.
        characters: number of characters in the node; while it is open, the total count before its start.
        height: nesting levels of lists and mappings in the node, including itself.
        is_complete: whether the end of the node has been seen.
    """

    mark: Any
    values: int = 0
    characters: int = 0
    height: int = 0
    is_complete: bool = False


class _Extent:
    """Measures a document as if every alias were expanded, in time linear in the unexpanded document."""

    def __init__(self) -> None:
        self._values = self._characters = 0
        self._open: list[_Node] = []
        self._anchors: dict[str, _Node] = {}

    def add(self, event: Any) -> None:
        """Counts the next event.

        Raises:
            _Refused: A limit is exceeded, or an alias refers to no complete anchor above it.
        """
        if isinstance(event, yaml.AliasEvent):
            node = self._anchored(event)
            self._count(node.values, node.characters, node.height, event.start_mark)
        elif isinstance(event, yaml.ScalarEvent):
            node = _Node(event.start_mark, 1, len(event.value), 0, is_complete=True)
            self._name(event, node)
            self._count(1, len(event.value), 0, event.start_mark)
        elif isinstance(event, yaml.CollectionStartEvent):
            node = _Node(event.start_mark, self._values, self._characters, 1)
            self._name(event, node)
            self._count(1, 0, 1, event.start_mark)
            self._open.append(node)
        elif isinstance(event, yaml.CollectionEndEvent):
            node = self._open.pop()
            node.values, node.characters = self._values - node.values, self._characters - node.characters
            node.is_complete = True
            self._raise_height(node.height)

    def _count(self, values: int, characters: int, height: int, mark: Any) -> None:
        self._values += values
        self._characters += characters
        if self._values > MAX_VALUES:
            raise _Refused(f"more than {MAX_VALUES:,} texts, numbers, lists and mappings; write fewer", mark)
        if self._characters > MAX_CHARACTERS:
            raise _Refused(f"more than {MAX_CHARACTERS:,} characters once aliases are replaced; write fewer", mark)
        if height and len(self._open) + height > MAX_DEPTH:
            raise _Refused(f"nested deeper than {MAX_DEPTH} levels; a specification needs 5", mark)
        self._raise_height(height)

    def _raise_height(self, inner: int) -> None:
        if self._open:
            self._open[-1].height = max(self._open[-1].height, inner + 1)

    def _name(self, event: Any, node: _Node) -> None:
        if event.anchor is None:
            return
        if event.anchor in self._anchors:
            line = self._anchors[event.anchor].mark.line + 1
            what = f"anchor &{event.anchor[:60]} is there twice (first on line {line}); rename one"
            raise _Refused(what, event.start_mark)
        self._anchors[event.anchor] = node

    def _anchored(self, event: Any) -> _Node:
        node, name = self._anchors.get(event.anchor), event.anchor[:60]
        if node is None:
            raise _Refused(f"alias *{name} has no anchor &{name} above it; write the value out", event.start_mark)
        if not node.is_complete:
            raise _Refused(f"alias *{name} is within what it stands for; write the value out", event.start_mark)
        return node


def _check_number(node: Any) -> None:
    """Raises _Refused for numbers that are not what they look like: in YAML 1.1, 010 is 8 and 1:30 is 90."""
    text = node.value
    if len(text) > MAX_NUMBER_LENGTH:
        raise _Refused(f"a number of {len(text)} characters; put it in quotes if it is text", node.start_mark)
    if _OLD_NUMBER.fullmatch(text):
        what = f"YAML reads {text} as an octal or base-60 number; write it in decimal, or in quotes if it is text"
        raise _Refused(what, node.start_mark)


def _syntax_mistake(error: yaml.MarkedYAMLError, mark: Any, text: str) -> str:
    """Returns the parser's message, with the fix for a common cause (tabs)."""
    what = ", ".join(part for part in (error.context, error.problem) if part)
    lines = text.split("\n")
    if mark is not None and mark.line < len(lines) and "\t" in lines[mark.line]:
        what += "; there is a tab in this line: indent with blanks"
    return what


def _place(mark: Any) -> str:
    return "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
