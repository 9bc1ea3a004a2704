import json
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from data.storage.typed_json import read_typed


@dataclass(frozen=True)
class Inner:
    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Outer:
    count: int
    share: float
    kind: Literal["a", "b"]
    by_name: dict[str, Inner]
    value: float | None
    flag: bool
    rest: Any = 3


GOOD = {
    "count": 3,
    "share": 1,
    "kind": "a",
    "by_name": {"x y": {"name": "n", "shape": [1, 2]}},
    "value": None,
    "flag": False,
    "rest": {"deep": [1]},
}


def test_what_is_written_comes_back():
    assert read_typed(Outer, json.loads(json.dumps(GOOD)), "file") == Outer(
        3, 1.0, "a", {"x y": Inner("n", (1, 2))}, None, False, {"deep": [1]}
    )


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"number": 1}', "file.number is not expected; file has count, share"),
        ('{"count": true}', "file.count is True"),
        ('{"count": 1.0}', "file.count is 1.0"),
        ('{"count": "1"}', "file.count is '1'"),
        (f'{{"count": {2**63}}}', "file.count is 9223372036854775808"),
        (f'{{"count": 1{"0" * 400}}}', "file.count is 1000"),
        (f'{{"share": 1{"0" * 400}}}', "file.share is 1000"),
        ('{"share": NaN}', "file.share is nan"),
        ('{"share": -Infinity}', "file.share is -inf"),
        ('{"share": 1e999}', "file.share is inf"),
        ('{"share": false}', "file.share is False"),
        ('{"kind": "c"}', "file.kind is 'c', expected 'a' or 'b'"),
        ('{"kind": ["a"]}', "file.kind"),
        ('{"by_name": []}', r"file.by_name is \[\]"),
        ('{"by_name": {"x": 1}}', "file.by_name.x is 1"),
        ('{"by_name": {"x": {"name": "n"}}}', "file.by_name.x.shape is missing"),
        ('{"by_name": {"x": {"name": "n", "shape": "12"}}}', "file.by_name.x.shape is '12'"),
        ('{"by_name": {"x": {"name": "n", "shape": [1, [2]]}}}', r"file.by_name.x.shape\[1\]"),
        ('{"by_name": {"\\u001b[2J": 1}}', r"file.by_name.'\\x1b\[2J'"),
        ('{"value": "x"}', "file.value is 'x', expected a finite number or null"),
        ('{"flag": 1}', "file.flag is 1"),
        ('{"flag": null}', "file.flag is None"),
    ],
)
def test_other_types_are_named_by_their_place(text, place):
    with pytest.raises(ValueError, match=place):
        read_typed(Outer, GOOD | json.loads(text), "file")


@pytest.mark.parametrize("value", [None, 7, "x", [1], [], float("nan")])
def test_an_object_is_nothing_else(value):
    with pytest.raises(ValueError, match="file is .*, expected an object"):
        read_typed(Outer, value, "file")


@pytest.mark.parametrize("name", GOOD)
def test_every_field_must_be_there(name):
    with pytest.raises(ValueError, match=f"file.{name} is missing"):
        read_typed(Outer, {key: value for key, value in GOOD.items() if key != name}, "file")
