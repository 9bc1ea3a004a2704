"""Wrong arguments on the command line of every tool."""

import pytest

from data.command_line import Parser


@pytest.fixture
def parser() -> Parser:
    parser = Parser("tool.py", "A tool.")
    parser.add_argument("--input", default=".", metavar="DIR", help="a folder")
    parser.add_argument("--exclude", nargs="+", default=[], help="names")
    return parser


def refused(parser: Parser, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        parser.parse(list(words))
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input=--"], "tool.py: error: --input has no value; write one after it"),
        (["--exclude=--"], "tool.py: error: --exclude has no value; write one after it"),
        (["--inptu", "x"], "unrecognized arguments: --inptu x; did you mean --input?"),
        (["--inp", "x"], "did you mean --input?"),
        (["--zzz", "x"], "unrecognized arguments: --zzz x"),
        (["--input", "a\0b"], r"the argument 'a\x00b' is not text in UTF-8; rename the file, or correct the argument"),
        (["--input", "\udcff"], r"is not text in UTF-8"),
    ],
)
def test_wrong_arguments(parser, capsys, words, message):
    assert message in refused(parser, capsys, *words)


def test_arguments_are_read_and_defaults_stay(parser, monkeypatch):
    assert vars(parser.parse(["--exclude", "a", "b"])) == {"input": ".", "exclude": ["a", "b"]}
    monkeypatch.setattr("sys.argv", ["tool.py", "--input", "here"])
    assert vars(parser.parse(None)) == {"input": "here", "exclude": []}


def test_help_shows_defaults(parser):
    assert "a folder (default: .)" in parser.format_help()
