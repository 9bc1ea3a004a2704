"""Plain YAML, read safely: small documents of text, numbers, lists and mappings, every mistake with its place."""

import re
from pathlib import Path
from typing import Any

import yaml

from data.errors import DataError
from data.specification.problems import shown
from data.specification.small_file import read_small_text

MAX_MEBIBYTES = 1
MAX_DEPTH = 20
# Texts, numbers, lists and mappings in all: twice what a thousand features in a thousand files per mapping need.
MAX_VALUES = 40_000
MAX_NUMBER_LENGTH = 40

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NOT_TEXT = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_OLD_NUMBER = re.compile(r"[-+]?0[0-9_]+|.*:.*")
_INTEGER_TAG = "tag:yaml.org,2002:int"
_FLOAT_TAG = "tag:yaml.org,2002:float"
_MERGE_TAG = "tag:yaml.org,2002:merge"


class _Refused(Exception):
    """A mistake in the document, with the mark of its place (line and column from 0) or None."""

    def __init__(self, message: str, mark: Any) -> None:
        super().__init__(message)
        self.message = message
        self.mark = mark


class _PlainLoader(_Loader):
    """PyYAML's safe loader, without duplicate keys and numbers that YAML 1.1 reads unexpectedly."""

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
    """Read a YAML file whose root is a mapping, with the semantics of `yaml.safe_load`.

    Refused are also: duplicate keys, anchors and aliases, tags, merge keys, octal and base-60
    numbers, nesting deeper than 20, more than 40,000 values, more than 1 MiB.

    Raises:
        DataError: naming the file and, where there is one, line and column (from 1).
    """
    text = read_small_text(path, "a YAML file such as feature_spec.yaml", MAX_MEBIBYTES)
    _check_characters(path, text)
    try:
        _check_events(text)
        document = yaml.load(text, Loader=_PlainLoader)
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
    """YAML has no place for control characters."""
    if bad := _NOT_TEXT.search(text):
        line = text.count("\n", 0, bad.start()) + 1
        raise DataError(f"{path}, line {line}: control character {bad.group()!r}; expected plain text")


def _check_events(text: str) -> None:
    """Walk the document without building anything, so that depth, size and aliases are known to be harmless."""
    depth = values = 0
    event: Any
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _Refused("anchors (&) and aliases (*) are not supported; write the value out", event.start_mark)
        if getattr(event, "tag", None) is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")[:60]
            raise _Refused(f"tags are not supported (found {tag}); write plain values", event.start_mark)
        values += isinstance(event, yaml.NodeEvent)
        if values > MAX_VALUES:
            raise _Refused(
                f"more than {MAX_VALUES:,} texts, numbers, lists and mappings; write fewer", event.start_mark
            )
        if isinstance(event, yaml.ScalarEvent) and _SURROGATE.search(event.value):
            raise _Refused("text with half a character (a surrogate escape); write the character", event.start_mark)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise _Refused(f"nested deeper than {MAX_DEPTH} levels; a specification needs 5", event.start_mark)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _check_number(node: Any) -> None:
    """Refuse numbers that are not what they look like: 010 is 8 and 1:30 is 90 in YAML 1.1."""
    text = node.value
    if len(text) > MAX_NUMBER_LENGTH:
        raise _Refused(f"a number of {len(text)} characters; put it in quotes if it is text", node.start_mark)
    if _OLD_NUMBER.fullmatch(text):
        what = f"YAML reads {text} as an octal or base-60 number; write it in decimal, or in quotes if it is text"
        raise _Refused(what, node.start_mark)


def _syntax_mistake(error: yaml.MarkedYAMLError, mark: Any, text: str) -> str:
    """The parser's words, and the mend where the cause is a common one."""
    what = ", ".join(part for part in (error.context, error.problem) if part)
    lines = text.split("\n")
    if mark is not None and mark.line < len(lines) and "\t" in lines[mark.line]:
        what += "; there is a tab in this line: indent with blanks"
    return what


def _place(mark: Any) -> str:
    return "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
