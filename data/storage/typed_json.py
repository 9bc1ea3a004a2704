"""Converts values to JSON, and validates untrusted JSON against the types of a dataclass before it is used.

The same rules hold for every manifest and record that this project reads: integers fit in 64 bits and are not booleans,
numbers are finite, and errors name the location of anything that is missing or of the wrong type.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np

from data.errors import shown

LARGEST_INTEGER = 2**63 - 1
# Evaluating the annotations of a class takes longer than reading an object.
_type_hints = functools.cache(typing.get_type_hints)


def read_typed(hint: Any, value: Any, location: str) -> Any:
    """Convert a decoded JSON value to an instance of a type.

    Args:
        hint: None, bool, int, float, str, Any, a Literal, a union, list[T], tuple[T, ...], dict[str, T], or a
            dataclass with fields of such types, which requires an object with exactly these keys.
        value: value as `json.loads` returns it.
        location: location of the value, for error messages.

    Raises:
        ValueError: Something is missing, unexpected or of the wrong type. The message names the location, what was
            found and what was expected.
    """
    if dataclasses.is_dataclass(hint):
        return _read_object(hint, value, location)
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _read_union(hint, parts, value, location)
    if origin in (list, tuple):
        items = _require(isinstance(value, list | tuple), hint, value, location)
        return origin(read_typed(parts[0], item, f"{location}[{index}]") for index, item in enumerate(items))
    if origin is dict:
        items = _require(isinstance(value, Mapping), hint, value, location)
        return {name: read_typed(parts[1], item, f"{location}.{_key(name)}") for name, item in items.items()}
    return _read_plain(hint, value, location)


def plain_json(value: Any, location: str) -> Any:
    """Convert a value to what a JSON round trip yields: tuples become lists, NumPy scalars Python numbers.

    Raises:
        ValueError: The value contains something that JSON cannot represent; the message names its location.
    """
    if isinstance(value, dict):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise ValueError(f"{location} has the key {wrong[0]!r}, which is not a string: JSON would convert it")
        return {key: plain_json(item, f"{location}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item, f"{location}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, np.generic):
        return plain_json(value.item(), location)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"{location} is a {type(value).__name__}, which JSON cannot hold; save it as an array")


def _read_object(hint: Any, value: Any, location: str) -> Any:
    _require(isinstance(value, Mapping), hint, value, location)
    kinds, found = _type_hints(hint), {}
    if unknown := [name for name in value if name not in kinds]:
        raise ValueError(f"{location}.{_key(unknown[0])} is not expected; {location} has {', '.join(kinds)}")
    for field in dataclasses.fields(hint):
        if field.name in value:
            found[field.name] = read_typed(kinds[field.name], value[field.name], f"{location}.{field.name}")
        else:
            raise ValueError(f"{location}.{field.name} is missing, expected {_described(kinds[field.name])}")
    return hint(**found)


def _read_union(hint: Any, parts: tuple[Any, ...], value: Any, location: str) -> Any:
    # The first member that accepts the value wins.
    for part in parts:
        try:
            return read_typed(part, value, location)
        except ValueError:
            continue
    return _require(False, hint, value, location)


def _read_plain(hint: Any, value: Any, location: str) -> Any:
    if hint is Any:
        return value
    if typing.get_origin(hint) is typing.Literal:
        return _require(value in typing.get_args(hint), hint, value, location)
    if hint is int:
        return _require(_is_integer(value), hint, value, location)
    if hint is float:
        return float(
            _require(_is_integer(value) or (type(value) is float and math.isfinite(value)), hint, value, location)
        )
    return _require(value is None if hint is type(None) else type(value) is hint, hint, value, location)


def _is_integer(value: Any) -> bool:
    # isinstance would accept bool, which is a subclass of int.
    return type(value) is int and abs(value) <= LARGEST_INTEGER


def _require(fits: bool, hint: Any, value: Any, location: str) -> Any:
    if not fits:
        raise ValueError(f"{location} is {shown(value)}, expected {_described(hint)}")
    return value


def _key(name: str) -> str:
    return name if name.isidentifier() and len(name) <= 60 else shown(name)


def _described(hint: Any) -> str:
    """Return a type in words, for error messages."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_described(part) for part in parts)
    if origin is typing.Literal:
        return " or ".join(map(repr, parts))
    if origin in (list, tuple):
        return f"a list ({_described(parts[0])} each)"
    if origin is dict or dataclasses.is_dataclass(hint):
        return "an object"
    words = {
        int: "a whole number of 64 bits",
        float: "a finite number",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }
    return words.get(hint, "a value")
