"""Reading YAML: what is refused, and where the message says it is."""

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from data.errors import DataError
from data.spec import yaml_reader


@pytest.fixture(params=["with the C library", "without it"])
def reader(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The module as it is where PyYAML has its C library and where it has not."""
    if request.param == "with the C library":
        yield yaml_reader
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(yaml, "CSafeLoader", raising=False)
        yield importlib.reload(yaml_reader)
    importlib.reload(yaml_reader)


def message(reader: ModuleType, folder: Path, content: str | bytes) -> str:
    path = folder / "spec.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError) as caught:
        reader.read_yaml(path)
    assert str(caught.value).startswith(str(path))
    return str(caught.value).removeprefix(str(path))


REFUSED = {
    "a key twice": ("a: 1\nb: 2\na: 3", ", line 3, column 1: key 'a' is there twice (first on line 1); keep one"),
    "a key twice further down": ("x:\n  - {a: 1,\n     a: 2}", ", line 3, column 6: key 'a' is there twice"),
    "two spellings of one truth value": ("no: 1\noff: 2", ", line 2, column 1: key 'off' is there twice"),
    "an alias without an anchor": ("a: *there", ", line 1, column 4: alias *there has no anchor &there above it"),
    "an alias before its anchor": ("a: *b\nb: &b 1", ", line 1, column 4: alias *b has no anchor &b above it"),
    "a list in itself": ("a: &a [1, [*a]]", ", line 1, column 12: alias *a is within what it stands for"),
    "an anchor twice": ("a: &x 1\nb: &x 2", ", line 2, column 4: anchor &x is there twice (first on line 1); rename"),
    "a merge key of an alias": ("a: &a {b: 1}\nc:\n  <<: *a", ", line 3, column 3: merge keys (<<) are not supported"),
    "an alias of a list as key": ("a: &a [1]\n? *a\n: 2", ", line 1, column 4: a list or mapping cannot be a key"),
    "a key twice, once by alias": ("? &k a\n: 1\n? *k\n: 2", ", line 1, column 3: key 'a' is there twice"),
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
    "an octal number": ("a: 010", ", line 1, column 4: YAML reads 010 as an octal or base-60 number"),
    "a number in base 60": ("a: 1:30", ", line 1, column 4: YAML reads 1:30 as an octal or base-60 number"),
    "a number without digits": ("a: 0x_", ", line 1, column 4: cannot read '0x_'"),
    "a very long number": ("a: " + "9" * 5000, ", line 1, column 4: a number of 5000 characters; put it in quotes"),
    "a day that does not exist": ("a: 2024-02-31", ", line 1, column 4: cannot read '2024-02-31' (day is out of range"),
    "an equals sign": ("a: =", ", line 1, column 4: not valid YAML: could not determine a constructor"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_told_with_its_line_and_column(
    reader: ModuleType, content: str | bytes, words: str, tmp_path: Path
) -> None:
    assert message(reader, tmp_path, content).startswith(words)


TAKEN = {
    "plain values": (
        "a: 1\nb: [x, 2.5, true, null]\nc: {d: }",
        {"a": 1, "b": ["x", 2.5, True, None], "c": {"d": None}},
    ),
    "a byte order mark": ("\ufeffa: 1", {"a": 1}),
    "line ends of Windows": ("a: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
    "other scripts": ("größe: 大きさ \U0001f600", {"größe": "大きさ \U0001f600"}),
    "a zero, a fraction and a quoted octal": ("a: 0\nb: 0.5\nc: '010'", {"a": 0, "b": 0.5, "c": "010"}),
    "nesting at the limit": ("a: " + "[" * 19 + "]" * 19, None),
    "a list used twice": ("a: &id001\n- x\n- 1\nb: *id001\n", {"a": ["x", 1], "b": ["x", 1]}),
    "values and mappings used twice": (
        "a: &a {b: &b 2.5, c: &c x}\nd: [*a, *b, *c]",
        {"a": {"b": 2.5, "c": "x"}, "d": [{"b": 2.5, "c": "x"}, 2.5, "x"]},
    ),
    "aliases of aliases": ("a: &a [1]\nb: &b [*a, *a]\nc: [*b]", {"a": [1], "b": [[1], [1]], "c": [[[1], [1]]]}),
    "an anchor without an alias": ("a: &a 1", {"a": 1}),
    "a document end": ("a: 1\n...\n", {"a": 1}),
}


@pytest.mark.parametrize(("content", "expected"), TAKEN.values(), ids=TAKEN)
def test_plain_documents_are_read_as_safe_load_reads_them(
    reader: ModuleType, content: str, expected: dict | None, tmp_path: Path
) -> None:
    path = tmp_path / "spec.yaml"
    path.write_bytes(content.encode())
    assert reader.read_yaml(path) == yaml.safe_load(content)
    if expected is not None:
        assert reader.read_yaml(path) == expected


def test_a_tab_in_the_line_of_a_mistake_is_pointed_out(tmp_path: Path) -> None:
    told = message(yaml_reader, tmp_path, "a:\n\tb: 1")
    assert told.endswith("there is a tab in this line: indent with blanks")
    assert "tab" not in message(yaml_reader, tmp_path, "a:\t1\nb: [\nc: 2")


def test_a_file_of_more_than_one_mebibyte_is_refused_and_one_of_just_that_is_read(tmp_path: Path) -> None:
    content = "a: 1 #".ljust(2**20, "x")
    assert message(yaml_reader, tmp_path, content + "x") == (
        ": is larger than 1 MiB; expected a YAML file such as feature_spec.yaml"
    )
    (tmp_path / "spec.yaml").write_text(content)
    assert yaml_reader.read_yaml(tmp_path / "spec.yaml") == {"a": 1}


def test_a_missing_file_a_folder_and_a_pipe_are_told_apart(tmp_path: Path) -> None:
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
            yaml_reader.read_yaml(tmp_path / name)
        assert words in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_told(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.touch(mode=0)
    with pytest.raises(DataError, match="cannot be read: .*Permission denied"):
        yaml_reader.read_yaml(path)
