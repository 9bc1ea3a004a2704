"""Parsers given damaged input accept it, or reject it with a message, quickly."""

import contextlib
import io
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import check_dataset
import gen_csv
import gen_embedding_sizes
import main
import report
import transcode
from data.errors import DataError
from data.files.csv import count_lines, read_csv_blocks
from data.spec.columns import Column, describe_column
from data.spec.feature_spec import FeatureSpec
from tests.data.csv_documents import FEATURES, GOOD_LINE, document, write_csv_dataset
from tests.data.spec_strategies import ODD, damaged_documents, damaged_files
from tests.faults.matrix import record, tries
from tests.faults.mutations import Tries, damaged_arguments, damaged_bytes
from tests.helpers import ROOT, make_dataset
from trainer.cli import make_parser

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
ODD_BYTES = [*(piece.encode() for piece in ODD), b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x1b[31m", b"- " * 30, b"[" * 40]


def hypothesis_tries(count: int) -> settings:
    """Returns settings that give the same examples in every run."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=checks)


def reading(path: Path, content: bytes) -> Callable[[], object]:
    """Reads a specification; an error names the file and contains no control character."""

    def job() -> None:
        path.write_bytes(content)
        try:
            FeatureSpec.read(path)
        except DataError as error:
            assert str(error).startswith(str(path)) and not CONTROL.search(str(error)), repr(str(error))
            raise

    return job


def test_damaged_specifications(tmp_path: Path) -> None:
    outcome, path = Tries(DataError), tmp_path / "feature_spec.yaml"
    FeatureSpec.read(ROOT / "feature_specs" / "tiny.yaml")

    @given(st.binary(max_size=100) | damaged_files() | damaged_documents())
    @hypothesis_tries(tries(150, 6000))
    def drawn(content: bytes) -> None:
        outcome.attempt(content, reading(path, content))

    drawn()
    shipped = [file.read_bytes() for file in sorted((ROOT / "feature_specs").glob("*.yaml"))]
    dice = random.Random(1)
    while len(outcome.seconds) < tries(600, 20_000):
        content = damaged_bytes(dice, dice.choice(shipped), ODD_BYTES)
        outcome.attempt(content, reading(path, content))
    record("a damaged specification", len(outcome.seconds), outcome.survived)
    outcome.check()


ODD_CSV = [
    *(
        b'"',
        b'""',
        b'"""',
        b"\0",
        b"\xef\xbb\xbf",
        b"\r\n",
        b"\r",
        b"\n\n",
        b",",
        b",,,",
        b"\xff\xfe",
        b"\xc3",
        b"\x1b[2J",
    ),
    *(b"1e999", b"-1e999", b"nan", b"inf", b"0x1F", b"9" * 30, b"-1", b"300", b"1_0", b"\xd9\xa3", b"x" * 2**20),
    *(b"9" * 2**20, b'"' + b"[" * 50 + b"]" * 50 + b'"', b'"[[1], [2]]"', b'"[1,,2]"', b"[1, 2]", b'"[' + b"1," * 5000),
    *(b"\xe2\x80\xa8", b"\xc2\x85", b"\x0b", b"\x0c", b" ", b"\t", b";", b"#", b"'", b"=cmd()", b"\xed\xa0\x80"),
]


def read_all(path: Path, columns: list[Column], content: bytes) -> None:
    """Reads a CSV file as transcoding does; DataError for the first block with a problem."""
    path.write_bytes(content)
    lines = count_lines(path)
    rows = 0
    for block in read_csv_blocks(path, columns):
        rows += block.table.num_rows
        for problem in block.problems:
            assert len(problem.rows) and problem.rows[-1] < block.table.num_rows
        if any(not problem.is_warning for problem in block.problems):
            raise DataError("the file has problems")
    assert rows == lines


def test_damaged_csv_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = (GOOD_LINE + "\n").encode() * 5
    spec_path = write_csv_dataset(tmp_path / "csv", {"train.csv": good, "test.csv": good}, document())
    spec = FeatureSpec.read(spec_path)
    columns = [describe_column(spec, name) for name in FEATURES]
    outcome, dice = Tries(DataError), random.Random(2)
    read_all(tmp_path / "warm.csv", columns, good)

    def transcoded() -> None:
        output = tmp_path / f"output{len(outcome.seconds)}"
        code = transcode.main(["--input", str(spec_path.parent), "--output", str(output)])
        message = capsys.readouterr().err
        assert code in (0, 2) and not CONTROL.search(message), message
        assert code == 0 or (str(spec_path.parent) in message and not output.exists())

    whole = tries(200, 5000)
    for number in range(whole):
        content = damaged_bytes(dice, good, ODD_CSV)
        if number % 20:
            outcome.attempt(content[:2000], lambda content=content: read_all(tmp_path / "a.csv", columns, content))
        else:
            (spec_path.parent / "train.csv").write_bytes(content)
            outcome.attempt(content[:2000], transcoded)
    record("a damaged CSV file", whole, outcome.survived)
    outcome.check()


class PastTheChecks(Exception):
    """Raised where TensorFlow would be imported."""


def test_damaged_command_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_dataset(tmp_path / "made", ROOT / "feature_specs" / "tiny.yaml", rows=40)
    monkeypatch.chdir(tmp_path)

    def stop() -> None:
        raise PastTheChecks

    monkeypatch.setattr(main, "import_tensorflow", stop)
    flags = [action.option_strings[-1] for action in make_parser()._actions]
    paths = ["--dataset_path", str(data), "--model_dir", "models", "--results_dir", "results"]
    starts = [
        [*paths, "--global_batch_size", "8", "--eval_batch_size", "8"],
        [*paths, "--model", "mmoe", "--num_experts", "4", "--deep_learning_rate", "0.01", "--amp", "--xla"],
        [*paths, "--evaluate", "--predictions_file", "p.parquet", "--keep", "user_id"],
    ]
    tools = {
        transcode._parse: ["--input", "a", "--output", "b", "--chunk_size", "5", "--minimum_partition_number", "2"],
        gen_csv._parse: ["--feature_spec_in", "a.yaml", "--size", "5", "--signal", "1.5", "--seed", "3"],
        gen_embedding_sizes._parse: ["--feature_spec_in", "a.yaml"],
        check_dataset._parse: ["data", "--max_findings", "3"],
        report._parser().parse_args: ["--results_dir", "a", "b"],
    }

    def running(job: Callable[[], object]) -> Callable[[], object]:
        """Exit code 0 is success; 2 and 4 are rejections with one message."""

        def attempt() -> None:
            code: object = 0
            errors = io.StringIO()
            with contextlib.suppress(PastTheChecks), contextlib.redirect_stderr(errors):
                try:
                    code = job()
                except SystemExit as error:
                    code = error.code
            message = errors.getvalue()
            assert code in (None, 0, 2, 4) or not isinstance(code, int), (code, message)
            if code in (2, 4):
                assert "error:" in message and "Traceback" not in message, message
                # Only main.py escapes what it quotes; the other tools use plain argparse.
                assert not message.startswith("main.py") or not CONTROL.search(message), message
                raise DataError(message)

        return attempt

    outcome, dice, whole = Tries(DataError), random.Random(3), tries(150, 1000)
    running(lambda: main.main(starts[0]))()
    for number in range(whole):
        if number % 4:
            words = damaged_arguments(dice, dice.choice(starts), flags)
            outcome.attempt(words, running(lambda words=words: main.main(words)))
        else:
            parse, valid = dice.choice(list(tools.items()))
            words = damaged_arguments(dice, valid, [word for word in valid if word.startswith("--")] or flags)
            outcome.attempt(words, running(lambda parse=parse, words=words: parse(words)))
    record("a damaged command line", whole, outcome.survived)
    outcome.check()
    # Runs that passed the checks have written their worker record and nothing else.
    assert not (tmp_path / "models").exists()
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"workers"}
