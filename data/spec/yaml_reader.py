"""Reads plain YAML 1.2 safely: small documents of strings, numbers, lists and mappings, with located error messages."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.constructor import DuplicateKeyError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import MappingNode, ScalarNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.resolver import VersionedResolver

from data.errors import DataError
from data.storage.files import read_small_text

MAX_MEBIBYTES = 1
MAX_DEPTH = 20
# Total number of strings, numbers, lists and mappings: twice what 1,000 features and 1,000 files per mapping need.
MAX_VALUES = 40_000
MAX_CHARACTERS = 2**20
MAX_NUMBER_LENGTH = 40

_SURROGATE = re.compile("[\ud800-\udfff]")
_TAG = "tag:yaml.org,2002:"


class _RejectedError(MarkedYAMLError):
    """A mistake in the document: what is wrong and what to write instead, with its position."""


class _Extent(NamedTuple):
    """The size of a node with its aliases expanded; `height` counts the nesting levels of lists and mappings."""

    values: int
    characters: int
    height: int


class _PlainComposer(Composer):
    """Composes documents without tags, merge keys and complex keys, and within the limits of this module.

    The limits count the expansion of every alias: a few nested aliases can expand to billions of values. They are
    checked as the document is read, before deep nesting overflows the stack.
    """

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader=loader)
        self.warn_double_anchors = False
        self._values = self._characters = self._depth = 0
        self._extents: dict[int, _Extent] = {}  # of the complete nodes, by id

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose the next node.

        Raises:
            _RejectedError: It is not plain, or a limit is exceeded.
        """
        event = self.parser.peek_event()
        mark = event.start_mark
        self._check_names(event, mark)
        if isinstance(event, AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._extents:
                raise _rejected(f"alias *{event.anchor[:60]} is inside its own anchor; write the value out", mark)
            extent = self._extents[id(node)]
            self._add(extent.values, extent.characters, extent.height, mark)
        else:
            before = self._values, self._characters
            is_scalar = hasattr(event, "value")
            self._add(1, len(event.value) if is_scalar else 0, 0 if is_scalar else 1, mark)
            self._depth += 1
            node = super().compose_node(parent, index)
            self._depth -= 1
            self._extents[id(node)] = self._extent(node, *before)
        if isinstance(node, ScalarNode):
            _check_scalar(node, mark)
        elif isinstance(parent, MappingNode) and index is None:
            raise _rejected("a list or mapping cannot be a key; write a name", mark)
        return node

    def _check_names(self, event: Any, mark: Any) -> None:
        """Check the tag and the anchor of an event."""
        if getattr(event, "tag", None) is not None:
            tag = str(event.tag).replace(_TAG, "!!")[:60]
            raise _rejected(f"tags are not supported (found {tag}); write plain values", mark)
        if event.anchor is None:
            return
        name, first = event.anchor[:60], self.anchors.get(event.anchor)
        if isinstance(event, AliasEvent) and first is None:
            raise _rejected(f"alias *{name} has no anchor &{name} above it; write the value out", mark)
        if not isinstance(event, AliasEvent) and first is not None:
            line = first.start_mark.line + 1
            raise _rejected(f"anchor &{name} occurs twice (first on line {line}); rename one", mark)

    def _add(self, values: int, characters: int, height: int, mark: Any) -> None:
        self._values += values
        self._characters += characters
        if self._values > MAX_VALUES:
            raise _rejected(f"more than {MAX_VALUES:,} strings, numbers, lists and mappings; write fewer", mark)
        if self._characters > MAX_CHARACTERS:
            raise _rejected(f"more than {MAX_CHARACTERS:,} characters once aliases are replaced; write fewer", mark)
        if height and self._depth + height > MAX_DEPTH:
            raise _rejected(f"nested deeper than {MAX_DEPTH} levels; a specification needs 5", mark)

    def _extent(self, node: Any, values: int, characters: int) -> _Extent:
        """Return the extent of a complete node, given the totals before it."""
        if isinstance(node, ScalarNode):
            return _Extent(1, len(node.value), 0)
        children = [child for pair in node.value for child in pair] if isinstance(node, MappingNode) else node.value
        height = 1 + max((self._extents[id(child)].height for child in children), default=0)
        return _Extent(self._values - values, self._characters - characters, height)


class _Resolver(VersionedResolver):
    """Reads YAML 1.2 whatever a %YAML directive says: in 1.1, 010 is 8, 1:30 is 90, and no is false."""

    @property
    def processing_version(self) -> tuple[int, int]:
        return 1, 2


class _LocatingConstructor(SafeConstructor):
    """A safe constructor whose errors have a position."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Construct a value.

        Raises:
            _RejectedError: It looks like a number or a date but is none, such as 2024-99-99.
        """
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, OverflowError) as error:
            message = f"cannot read {node.value!r} ({error}); put it in quotes if it is a string"
            raise _rejected(message, node.start_mark) from error


def read_yaml(path: Path) -> dict[Any, Any]:
    """Read a YAML 1.2 file whose root is a mapping.

    Anchors and aliases are accepted: PyYAML writes them for a list that is used twice. Refused are duplicate keys,
    tags, merge keys, files larger than 1 MiB, and, with aliases expanded, nesting deeper than 20, more than 40,000
    values or 1,048,576 characters.

    Raises:
        DataError: The file cannot be read or is rejected; the message names the file and, if known, the line and column
            (from 1).
    """
    text = read_small_text(path, "a YAML file such as feature_spec.yaml", MAX_MEBIBYTES)
    yaml = YAML(typ="safe", pure=True)  # pure Python: the C parser implements YAML 1.1
    yaml.Composer, yaml.Resolver, yaml.Constructor = _PlainComposer, _Resolver, _LocatingConstructor
    try:
        document = yaml.load(text)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = text[error.position]
        raise DataError(f"{path}, line {line}: control character {character!r}; expected plain text") from error
    except MarkedYAMLError as error:
        raise DataError(f"{path}{_describe(error, text)}") from error
    except YAMLError as error:
        raise DataError(f"{path}: not valid YAML: {error}") from error
    if document is None:
        raise DataError(f"{path}: is empty; expected YAML with a mapping (`key: value`) at its root")
    if not isinstance(document, dict):
        kind = "a list" if isinstance(document, list) else "a single value"
        raise DataError(f"{path}: the root is {kind}; expected a mapping (`key: value`)")
    return document


def _rejected(message: str, mark: Any) -> _RejectedError:
    return _RejectedError(problem=message, problem_mark=mark)


def _check_scalar(node: ScalarNode, mark: Any) -> None:
    """Raise _RejectedError for half characters, overlong numbers, and what only YAML 1.1 gives a meaning."""
    kind = str(node.tag).removeprefix(_TAG)
    if _SURROGATE.search(node.value):
        raise _rejected("a string with an unpaired surrogate escape; write the character", mark)
    if kind in ("int", "float") and len(node.value) > MAX_NUMBER_LENGTH:
        raise _rejected(f"a number of {len(node.value)} characters; put it in quotes if it is a string", mark)
    if kind == "merge":
        raise _rejected("merge keys (<<) are not supported; write the keys out", mark)
    if kind == "value":
        raise _rejected(f"{node.value!r} is reserved; put it in quotes", mark)


def _describe(error: MarkedYAMLError, text: str) -> str:
    """Return the position and the message of an error, with the fix for common causes."""
    mark = error.problem_mark or error.context_mark
    position = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
    if isinstance(error, _RejectedError):
        return f"{position}: {error.problem}"
    if isinstance(error, DuplicateKeyError):
        return f"{position}: {error.problem.split(' with value ')[0][:200]}; keep one"
    what = ", ".join(part for part in (error.context, error.problem) if part)
    lines = text.split("\n")
    if mark is not None and mark.line < len(lines) and "\t" in lines[mark.line]:
        what += "; there is a tab in this line: use blanks"
    return f"{position}: not valid YAML: {what}"
