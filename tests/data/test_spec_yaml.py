"""Reading YAML: what is refused, and where the message says it is."""

import os
from pathlib import Path
from typing import Any

import pytest

from data.errors import DataError
from data.spec.yaml_reader import read_yaml


def message(folder: Path, content: str | bytes) -> str:
    path = folder / "spec.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(str(path))
    return str(caught.value).removeprefix(str(path))


REFUSED = {
    "a key twice": ("a: 1\nb: 2\na: 3", ', line 3, column 1: found duplicate key "a"; keep one'),
    "a key twice further down": ("x:\n  - {a: 1,\n     a: 2}", ', line 3, column 6: found duplicate key "a"'),
    "two spellings of one number": ("1: 1\n0x1: 2", ', line 2, column 1: found duplicate key "1"'),
    "an alias without an anchor": ("a: *there", ", line 1, column 4: alias *there has no anchor &there above it"),
    "an alias before its anchor": ("a: *b\nb: &b 1", ", line 1, column 4: alias *b has no anchor &b above it"),
    "a list in itself": ("a: &a [1, [*a]]", ", line 1, column 12: alias *a is inside its own anchor"),
    "an anchor twice": ("a: &x 1\nb: &x 2", ", line 2, column 4: anchor &x occurs twice (first on line 1); rename"),
    "a merge key of an alias": ("a: &a {b: 1}\nc:\n  <<: *a", ", line 3, column 3: merge keys (<<) are not supported"),
    "an alias of a list as key": ("a: &a [1]\n? *a\n: 2", ", line 2, column 3: a list or mapping cannot be a key"),
    "a key twice, once by alias": ("? &k a\n: 1\n? *k\n: 2", ', line 1, column 3: found duplicate key "a"'),
    "a tag behind an anchor": ("a: &x !!python/name:os.system ''", ", line 1, column 4: tags are not supported"),
    "a merge key": ("a: 1\n<<: {b: 2}", ", line 2, column 1: merge keys (<<) are not supported; write the keys out"),
    "a tag of Python": ("a: !!python/object/apply:os.getcwd []", ", line 1, column 4: tags are not supported (found !"),
    "a harmless tag": ("a: !!str 1", ", line 1, column 4: tags are not supported (found !!str); write plain values"),
    "a list as key": ("? [1]\n: 2", ", line 1, column 3: a list or mapping cannot be a key; write a name"),
    "deep nesting": ("[" * 21, ", line 1, column 21: nested deeper than 20 levels"),
    "very deep nesting": ("{a: " * 100_000, ", line 1, column 81: nested deeper than 20 levels"),
    "deep nesting in blocks": ("- " * 21 + "a", ", line 1, column 41: nested deeper than 20 levels"),
    "an open bracket": ("a: 1\nb: {c: [}", ", line 2, column 9: not valid YAML: while parsing a flow node"),
    "wrong indentation": ("a: 1\n b: 2", ", line 2, column 3: not valid YAML: mapping values are not allowed"),
    "a tab": ("a:\n\tb: 1", ", line 2, column 1: not valid YAML: while scanning for the next token, found character"),
    "two documents": ("---\na: 1\n---\nb: 2", ", line 3, column 1: not valid YAML: expected a single document"),
    "nothing": ("", ": is empty; expected YAML with a mapping (`key: value`) at its root"),
    "only a comment": ("# nothing\n", ": is empty"),
    "a list at the root": ("- a\n- b", ": the root is a list; expected a mapping (`key: value`)"),
    "a text at the root": ("feature_spec", ": the root is a single value; expected a mapping"),
    "a control character": ("a: 1\nb: \x07", ", line 2: control character '\\x07'; expected plain text"),
    "text that is not UTF-8": ("a: 1\nb: é".encode("latin-1"), ", line 2: not UTF-8 (byte 8); save the file as UTF-8"),
    "UTF-16": ("a: 1".encode("utf-16"), ", line 1: not UTF-8 (byte 0); save the file as UTF-8"),
    "half a character": ('a: "\\ud800"', ", line 1, column"),
    "a number without digits": ("a: 0x_", ", line 1, column 4: cannot read '0x_'"),
    "a very long number": ("a: " + "9" * 5000, ", line 1, column 4: a number of 5000 characters; put it in quotes"),
    "a day that does not exist": ("a: 2024-02-31", ", line 1, column 4: cannot read '2024-02-31' (day is out of range"),
    "an equals sign": ("a: =", ", line 1, column 4: '=' is reserved; put it in quotes"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "words"), REFUSED.values(), ids=REFUSED)
def test_rejected_documents(content: str | bytes, words: str, tmp_path: Path) -> None:
    assert message(tmp_path, content).startswith(words)


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth > 1 else []


ACCEPTED = {
    "plain values": (
        "a: 1\nb: [x, 2.5, true, null]\nc: {d: }",
        {"a": 1, "b": ["x", 2.5, True, None], "c": {"d": None}},
    ),
    "a byte order mark": ("\ufeffa: 1", {"a": 1}),
    "line ends of Windows": ("a: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
    "other scripts": ("größe: 大きさ \U0001f600", {"größe": "大きさ \U0001f600"}),
    "a zero, a fraction and a quoted octal": ("a: 0\nb: 0.5\nc: '010'", {"a": 0, "b": 0.5, "c": "010"}),
    "nesting at the limit": ("a: " + "[" * 19 + "]" * 19, {"a": nested(19)}),
    "words of YAML 1.1": ("a: [no, off, 010, 1:30]", {"a": ["no", "off", 10, "1:30"]}),
    "another version of YAML": ("%YAML 1.1\n---\na: [no, 010]", {"a": ["no", 10]}),
    "an exponent without a point": ("a: 1e-3", {"a": 0.001}),
    "a list used twice": ("a: &id001\n- x\n- 1\nb: *id001\n", {"a": ["x", 1], "b": ["x", 1]}),
    "values and mappings used twice": (
        "a: &a {b: &b 2.5, c: &c x}\nd: [*a, *b, *c]",
        {"a": {"b": 2.5, "c": "x"}, "d": [{"b": 2.5, "c": "x"}, 2.5, "x"]},
    ),
    "aliases of aliases": ("a: &a [1]\nb: &b [*a, *a]\nc: [*b]", {"a": [1], "b": [[1], [1]], "c": [[[1], [1]]]}),
    "an anchor without an alias": ("a: &a 1", {"a": 1}),
    "a document end": ("a: 1\n...\n", {"a": 1}),
}


@pytest.mark.parametrize(("content", "expected"), ACCEPTED.values(), ids=ACCEPTED)
def test_plain_documents(content: str, expected: dict, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_bytes(content.encode())
    assert read_yaml(path) == expected


def test_tab_in_the_line_of_a_mistake(tmp_path: Path) -> None:
    text = message(tmp_path, "a:\n\tb: 1")
    assert text.endswith("there is a tab in this line: use blanks")
    assert "tab" not in message(tmp_path, "a: '\t'\nb: [\nc: 2")


def test_file_size(tmp_path: Path) -> None:
    content = "a: 1 #".ljust(2**20, "x")
    assert message(tmp_path, content + "x") == (
        ": is larger than 1 MiB; expected a YAML file such as feature_spec.yaml"
    )
    (tmp_path / "spec.yaml").write_text(content)
    assert read_yaml(tmp_path / "spec.yaml") == {"a": 1}


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, words in {
        "nothing": "nothing: no such file; expected a YAML file",
        "no/where": "no/where: no such file",
        ".": "is a folder; expected a YAML file such as feature_spec.yaml",
        "pipe": "pipe: is a pipe; expected a YAML file",
        "loop": "loop: cannot be read",
        "a\0b": "cannot be read",
        "x" * 300: "cannot be read",
    }.items():
        with pytest.raises(DataError) as caught:
            read_yaml(tmp_path / name)
        assert words in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.touch(mode=0)
    with pytest.raises(DataError, match="cannot be read: .*Permission denied"):
        read_yaml(path)
