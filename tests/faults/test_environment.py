"""Training in unusual environments: the same metrics as usual, or one clear error and nothing lost."""

import json
import locale
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.faults.matrix import record, tries
from tests.helpers import ROOT, environment, make_dataset, metrics
from trainer.checkpoint.model_folder import open_model
from trainer.checkpoint.store import CheckpointStore
from trainer.logging.log import read_log

FLAGS = "--deep_hidden_units 8 --global_batch_size 64 --eval_batch_size 64 --num_epochs 2 --log_every 1 --cpu"
FLAGS += " --recipe published"
STEPS_PER_EPOCH = 7
ODD = "a b 'c' \"d\" $HOME * é 日本 " + "x" * 200
# Variables that the interpreter reads when it starts, by the name of the environment.
INTERPRETERS = {
    "ascii": {"LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "utf-8": {"LC_ALL": "C.UTF-8"},
    "C": {"LC_ALL": "C"},
    "decimal comma": {"LC_ALL": "de_DE.UTF-8"},
}


class ForkedMain:
    """The program forked_main, started with given environment variables and with its own small disk.

    Args:
        folder: for the output of the program and the mount point of the disk.
        variables: environment variables of the program.

    Attributes:
        disk: mount point of a 1 MiB disk that only the program sees; None if it cannot be mounted.
    """

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self.disk: Path | None = folder / "disk"
        self.disk.mkdir()
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        mount = ["unshare", *user, "--mount", "sh", "-c", 'mount -t tmpfs -o size=1m none "$0" && exec "$@"']
        if subprocess.run([*mount, self.disk, "true"], capture_output=True, check=False).returncode:
            self.disk, mount = None, []
        self._errors = folder / "errors"
        with open(self._errors, "wb") as errors:
            self._process = subprocess.Popen(
                [*mount, *([self.disk] if self.disk else []), sys.executable, "-m", "tests.faults.forked_main"],
                cwd=ROOT,
                env=environment(**variables),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def run(self, **request) -> int:
        """Returns the exit code of main.py; see `Request`."""
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, self._errors.read_text()
        return int(answer)

    def seen(self, path: Path) -> Path:
        """Returns a path to what the program sees under this path."""
        return Path(f"/proc/{self._process.pid}/root{path}") if self.disk else path

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("dataset"), ROOT / "feature_specs" / "tiny.yaml", rows=400)


@pytest.fixture(scope="module")
def plain_run(dataset, tmp_path_factory) -> Iterator[subprocess.Popen]:
    """A run as users start it, in parallel to the others."""
    folder = tmp_path_factory.mktemp("plain")
    with open(folder / "printed", "wb") as printed:
        process = subprocess.Popen(
            [sys.executable, "main.py", *arguments(dataset, folder / "model", folder / "results")],
            cwd=ROOT,
            env=environment(),
            stdout=printed,
            stderr=printed,
        )
    process.folder = folder  # type: ignore[attr-defined]
    yield process
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def interpreters(plain_run, tmp_path_factory) -> Iterator[dict[str, ForkedMain]]:
    """Programs by interpreter; each is started on first use."""

    class Started(dict):
        def __missing__(self, name: str) -> ForkedMain:
            self[name] = ForkedMain(tmp_path_factory.mktemp(name), INTERPRETERS[name])
            return self[name]

    started = Started()
    yield started
    for program in started.values():
        program.close()


@pytest.fixture
def same_metrics(plain_run):
    """Compares with the metrics of the plain run."""

    def check(found: dict[str, float]) -> None:
        assert plain_run.wait(timeout=300) == 0, (plain_run.folder / "printed").read_text()
        assert found == pytest.approx(metrics(plain_run.folder / "results"), rel=1e-6)

    return check


def arguments(dataset: Path, model_dir: Path, results_dir: Path) -> list[str]:
    places = ["--dataset_path", str(dataset), "--model_dir", str(model_dir), "--results_dir", str(results_dir)]
    return [*places, *FLAGS.split(), "--deterministic"]


@dataclass(frozen=True)
class Case:
    """The environment of one run; the names are those of tests/faults/forked_main.py.

    Attributes:
        row: row of the table in docs/reliability.md.
        folder: parent of model_dir and results_dir.
        read_only_dataset, linked_dataset: whether the dataset's folder is read-only, or a link.
        interpreter: key in INTERPRETERS.
    """

    row: str
    conditions: tuple[str, ...] = ()
    after_first_save: tuple[str, ...] = ()
    environment: dict[str, str | None] = field(default_factory=dict)
    folder: str = "run"
    read_only_dataset: bool = False
    linked_dataset: bool = False
    interpreter: str = "utf-8"


@dataclass(frozen=True)
class Outcome:
    code: int
    stdout: str
    stderr: str
    model_dir: Path
    results_dir: Path


def run(
    case: Case,
    program: ForkedMain,
    dataset: Path,
    tmp_path: Path,
    on_disk: tuple[str, ...] = (),
    more: tuple[str, ...] = (),
) -> Outcome:
    """Runs a case.

    Args:
        on_disk: which of model_dir and results_dir are on the small disk.
        more: additional flags.
    """
    folder = tmp_path / case.folder
    folder.mkdir(exist_ok=True)
    # Arrow opens no path that Python cannot decode: such a dataset is rejected.
    copy = (tmp_path if case.interpreter == "ascii" else folder) / "dataset"
    dataset = copy if copy.exists() else shutil.copytree(dataset, copy)
    if case.read_only_dataset:
        for path in (*dataset.iterdir(), dataset):
            path.chmod(0o555 if path.is_dir() else 0o444)
    if case.linked_dataset:
        (tmp_path / "link").symlink_to(dataset, target_is_directory=True)
        dataset = tmp_path / "link"
    places = {name: (program.disk if name in on_disk else folder) / name for name in ("model_dir", "results_dir")}
    code = program.run(
        arguments=[*arguments(dataset, **places), *more],
        stdout=str(tmp_path / "stdout"),
        stderr=str(tmp_path / "stderr"),
        conditions=case.conditions,
        after_first_save=case.after_first_save,
        environment=case.environment,
    )
    printed = [(tmp_path / name).read_text(errors="replace") for name in ("stdout", "stderr")]
    assert not [line for text in printed for line in text.splitlines() if "Traceback" in line], printed[1]
    return Outcome(code, *printed, *(program.seen(place) for place in places.values()))


def newest_step(model_dir: Path) -> int:
    """Returns the step of the last checkpoint, after verifying its bytes and that no other is damaged."""
    warnings: list[str] = []
    step = CheckpointStore(model_dir, warn=warnings.append).open("last").step
    assert not warnings
    return step


# Runs that complete


STREAMS, FOLDERS = "a run whose standard streams are closed, full or without a reader", "folders that vanish in a run"
LOCALE, PATHS = "a run under another locale, umask or time zone, without HOME or TMPDIR", "odd paths, read-only data"
ODD_VARIABLES: dict[str, str | None] = {"HOME": None, "TMPDIR": "/nowhere/at/all", "TZ": "Nowhere/Odd:+25"}
ALL_AT_ONCE = Case(
    LOCALE,
    ("closed_stdin", "closed_stdout", "no_terminal", "umask_077", "permissions_count"),
    (),
    ODD_VARIABLES,
    folder=ODD,
    read_only_dataset=True,
    linked_dataset=True,
    interpreter="ascii",
)
NO_OUTPUTS = Case(
    STREAMS,
    ("stdout_without_reader", "closed_stderr", "umask_000"),
    ("model_dir_vanishes", "results_dir_vanishes"),
    interpreter="ascii",
)
# Every test run tries as much as possible at once; a full run also tries each alone.
COMPLETES = {
    "all at once": ALL_AT_ONCE,
    "nothing to hold on to": NO_OUTPUTS,
    "all at once, C": replace(ALL_AT_ONCE, interpreter="C"),
    "all at once, decimal comma": replace(ALL_AT_ONCE, interpreter="decimal comma"),
    "printing é in ascii": Case(LOCALE, folder="é", interpreter="ascii"),
    "stdin closed": Case(STREAMS, ("closed_stdin",)),
    "stdout closed": Case(STREAMS, ("closed_stdout",)),
    "stderr closed": Case(STREAMS, ("closed_stderr",)),
    "all closed": Case(STREAMS, ("closed_stdin", "closed_stdout", "closed_stderr")),
    "stdout without a reader": Case(STREAMS, ("stdout_without_reader",)),
    "stdout full": Case(STREAMS, ("full_stdout",)),
    "no terminal": Case(STREAMS, ("no_terminal",)),
    "umask 077": Case(LOCALE, ("umask_077",)),
    "umask 000": Case(LOCALE, ("umask_000",)),
    "no HOME": Case(LOCALE, environment={"HOME": None}),
    "no TMPDIR": Case(LOCALE, environment={"TMPDIR": "/nowhere"}),
    "odd TZ": Case(LOCALE, environment={"TZ": "Nowhere/Odd:+25"}),
    "odd paths": Case(PATHS, folder=ODD),
    "read-only dataset": Case(PATHS, ("permissions_count",), read_only_dataset=True),
    "linked dataset": Case(PATHS, linked_dataset=True),
    "model_dir vanishes": Case(FOLDERS, after_first_save=("model_dir_vanishes",)),
    "results_dir vanishes": Case(FOLDERS, after_first_save=("results_dir_vanishes",)),
}


@pytest.mark.parametrize("name", list(COMPLETES)[: tries(quick=2, whole=len(COMPLETES))])
def test_a_run_completes_with_the_same_metrics(interpreters, dataset, tmp_path, same_metrics, name):
    case = COMPLETES[name]
    if case.interpreter == "decimal comma" and not has_locale(INTERPRETERS[case.interpreter]["LC_ALL"]):
        pytest.skip(f"no locale {INTERPRETERS[case.interpreter]['LC_ALL']} on this machine")
    survived = 0
    try:
        outcome = run(case, interpreters[case.interpreter], dataset, tmp_path)
        assert outcome.code == 0, outcome.stderr
        same_metrics(metrics(outcome.results_dir))
        assert newest_step(outcome.model_dir) == 2 * STEPS_PER_EPOCH
        open_model(outcome.model_dir / "model")
        check_log(outcome.results_dir, whole="results_dir_vanishes" not in case.after_first_save)
        check_streams(case, outcome)
        survived = 1
    finally:
        record(case.row, 1, survived)


def has_locale(name: str) -> bool:
    before = locale.setlocale(locale.LC_ALL)
    try:
        locale.setlocale(locale.LC_ALL, name)
    except locale.Error:
        return False
    finally:
        locale.setlocale(locale.LC_ALL, before)
    return True


def check_log(results_dir: Path, whole: bool) -> None:
    """Checks that the log has complete lines for all steps, or for those of the second epoch."""
    lines = (results_dir / "log.json").read_text().splitlines()
    records = read_log(results_dir / "log.json")
    assert len(lines) == len(records)
    steps = [record["step"][0] for record in records if "loss" in record.get("data", {})]
    assert steps == list(range(1 if whole else STEPS_PER_EPOCH + 1, 2 * STEPS_PER_EPOCH + 1))


def check_streams(case: Case, outcome: Outcome) -> None:
    """Checks that what can be printed is printed, and that the umask is respected."""
    if not {"closed_stdout", "stdout_without_reader", "full_stdout"} & set(case.conditions):
        assert "wide_deep: 977 parameters" in outcome.stdout
    if "closed_stderr" not in case.conditions:
        assert "epoch 2/2" in outcome.stderr
    modes = {path.stat().st_mode & 0o077 for path in outcome.model_dir.rglob("*") if path.is_file()}
    if "umask_077" in case.conditions:
        assert modes == {0}


# Runs that end with one error


NO_ROOM, READ_ONLY = "a disk that is full or a file that cannot grow, in a run", "read-only folders"
# Case, folders on the small disk, and expected message.
ENDS: dict[str, tuple[Case, tuple[str, ...], str]] = {
    "full disk": (
        Case(NO_ROOM, after_first_save=("model_disk_is_full", "results_disk_is_full"), interpreter="ascii"),
        ("model_dir", "results_dir"),
        r"cannot save .*step-14: No space left on device.* bytes are needed",
    ),
    "files cannot grow": (
        Case(NO_ROOM, after_first_save=("files_cannot_grow",)),
        (),
        r"cannot save .*step-14: File too large",
    ),
    "model_dir becomes read-only": (
        Case(READ_ONLY, ("permissions_count",), ("model_dir_becomes_read_only",)),
        (),
        r"cannot save .*step-14: Permission denied",
    ),
}


@pytest.mark.parametrize("name", list(ENDS)[: tries(quick=1, whole=len(ENDS))])
def test_failed_save_keeps_the_last_good_checkpoint(interpreters, dataset, tmp_path, name):
    case, on_disk, message = ENDS[name]
    program, survived = interpreters[case.interpreter], 0
    if on_disk and program.disk is None:
        pytest.skip("cannot mount a small disk: this needs root or user namespaces")
    try:
        outcome = run(case, program, dataset, tmp_path, on_disk)
        assert outcome.code == 1, outcome.stderr
        check_error(outcome, message)
        assert newest_step(outcome.model_dir) == (7 if "step-14" in message else 14)
        assert ("the log" in outcome.stderr) == ("results_dir" in on_disk or name == "files cannot grow")
        survived = 1
    finally:
        record(case.row, 1, survived)
        if program.disk is not None:
            for path in program.seen(program.disk).iterdir():
                shutil.rmtree(path)


@pytest.mark.parametrize("moment", ["from the start", "in the run"][: tries(quick=1, whole=2)])
def test_full_results_disk_only_causes_warnings(interpreters, dataset, tmp_path, same_metrics, moment):
    program, survived = interpreters["ascii"], 0
    if program.disk is None:
        pytest.skip("cannot mount a small disk: this needs root or user namespaces")
    board = ("--tensorboard_dir", str(program.disk / "results_dir" / "board"))
    try:
        if moment == "from the start":
            with open(program.seen(program.disk) / "filling", "wb", buffering=0) as file, suppress(OSError):
                while file.write(bytes(4096)):
                    pass
            first = run(Case(NO_ROOM, interpreter="ascii"), program, dataset, tmp_path, ("results_dir",), board)
        else:
            case = Case(NO_ROOM, after_first_save=("results_disk_is_full",), interpreter="ascii")
            first = run(case, program, dataset, tmp_path, ("results_dir",), board)
        check_warnings(first)
        assert newest_step(first.model_dir) == 2 * STEPS_PER_EPOCH
        # The model folder contains the metrics of the best epoch.
        same_metrics(json.loads((first.model_dir / "model" / "architecture.json").read_text())["metrics"])
        again = ("--use_checkpoint", "--num_epochs", "3", *board)
        resumed = run(Case(NO_ROOM, interpreter="ascii"), program, dataset, tmp_path, ("results_dir",), again)
        check_warnings(resumed)
        assert newest_step(resumed.model_dir) == 3 * STEPS_PER_EPOCH
        survived = 1
    finally:
        record(NO_ROOM, 1, survived)
        for path in program.seen(program.disk).iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def check_warnings(outcome: Outcome) -> None:
    """Checks that the run succeeded with a warning per missing file, and left no partial file."""
    assert outcome.code == 0, outcome.stderr
    assert outcome.stderr.count("warning: the log") == 1
    assert outcome.stderr.count("metrics.json could not be written: No space left on device") == 1
    assert not (outcome.results_dir / "metrics.json").exists()
    assert not list(outcome.results_dir.glob(".*"))


@pytest.mark.parametrize("place", ["model_dir", "results_dir"])
def test_read_only_folder_is_rejected_before_training(interpreters, dataset, tmp_path, place):
    interpreter = "ascii" if tries(quick=0, whole=1) == 0 else "utf-8"
    (tmp_path / "run" / place).mkdir(parents=True, mode=0o555)
    survived = 0
    try:
        outcome = run(Case(READ_ONLY, ("permissions_count",)), interpreters[interpreter], dataset, tmp_path)
        assert outcome.code == 2, outcome.stderr
        check_error(outcome, rf"{place}.*Permission denied|Permission denied.*{place}")
        assert not list((tmp_path / "run" / place).iterdir())
        survived = 1
    finally:
        record(READ_ONLY, 1, survived)


def check_error(outcome: Outcome, message: str) -> None:
    """Checks that one line reports the error."""
    assert outcome.stderr.count("main.py: error: ") == 1
    assert re.search(rf"(?s)main.py: error: .*{message}", outcome.stderr), outcome.stderr
