"""MLflow and Weights & Biases: fake packages record the calls, fail or hang; training never notices."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data.errors import DataError
from main import main
from tests.helpers import ROOT, environment, make_dataset, must, words
from trainer.logging import trackers
from trainer.logging.log import read_log
from trainer.logging.trackers import Tracker, check_trackers, open_trackers

RECORDER = """
import json, pathlib

def note(name, *values):
    with open(pathlib.Path(__file__).with_name("calls.jsonl"), "a") as file:
        file.write(json.dumps([name, *values]) + "\\n")
"""
MLFLOW = """
def set_experiment(name): note("experiment", name)
def start_run(run_name): note("start", run_name)
def log_params(params): note("params", params)
def log_metrics(values, step): note("log", step, values)
def end_run(): note("end")
"""
WANDB = """
class Run:
    def log(self, values, step): note("log", step, values)
    def finish(self): note("end")

def init(project, name, config, settings):
    note("start", project, name, config)
    return Run()
"""
FAILING = {
    "mlflow": RECORDER + MLFLOW.replace('note("log", step, values)', "raise OSError('no route')"),
    "wandb": RECORDER + 'def init(**_): raise SystemExit("no key")\n',
}


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Installs fake packages by their code, and removes them afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))

    def install(**code: str) -> None:
        for name, text in code.items():
            folder = tmp_path / "packages" / name
            folder.mkdir(parents=True)
            (folder / "__init__.py").write_text(text)

    yield install
    for name in trackers.PACKAGES:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("trackers"), ROOT / "feature_specs" / "two_labels.yaml", rows=300)


def calls(folder: Path, package: str) -> list[list]:
    text = (folder / "packages" / package / "calls.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def train(data: Path, folder: Path, *more: str) -> list[dict]:
    """Trains two epochs and returns the records of the log."""
    flags = [
        "--dataset_path",
        str(data),
        "--model_dir",
        str(folder / "models"),
        "--results_dir",
        str(folder / "clicks"),
    ]
    flags += words("--deep_hidden_units 4 --global_batch_size 100 --num_epochs 2 --log_every 1 --cpu")
    must(main([*flags, *more]))
    records = read_log(folder / "clicks" / "log.json")
    return [record for record in records if record["type"] == "LOG"]


def test_trackers_get_the_flags_and_the_numbers_of_the_log(data, tmp_path, packages):
    packages(mlflow=RECORDER + MLFLOW, wandb=RECORDER + WANDB)
    parameters, *records = train(data, tmp_path, "--mlflow", "ads", "--wandb", "team ads")
    logged: dict[int, dict[str, float]] = {}
    for record in records:
        if record["step"]:
            numbers = {key: value for key, value in record["data"].items() if isinstance(value, int | float)}
            logged.setdefault(record["step"][0], {}).update(numbers)
    flags = parameters["data"]

    first, start, *more, end = calls(tmp_path, "mlflow")
    assert (first, start, end) == (["experiment", "ads"], ["start", f"{tmp_path.name}/clicks"], ["end"])
    sent = {}
    for _, part in (call for call in more if call[0] == "params"):
        assert len(part) <= 100
        sent |= part
    assert sent == flags and flags["mlflow"] == "ads"
    found: dict[int, dict[str, float]] = {}
    for _, step, values in (call for call in more if call[0] == "log"):
        found.setdefault(step, {}).update(values)
    assert len(found) >= 6
    assert found == {
        step: {key.replace("+", "_"): value for key, value in values.items()} for step, values in logged.items()
    }

    start, *more, end = calls(tmp_path, "wandb")
    assert (start, end) == (["start", "team ads", f"{tmp_path.name}/clicks", flags], ["end"])
    steps = [step for _, step, _ in more]
    assert steps == sorted(steps), "Weights & Biases drops values of earlier steps"
    found = {}
    for _, step, values in more:
        found.setdefault(step, {}).update(values)
    assert found == logged


def test_failing_trackers_warn_once_and_training_goes_on(data, tmp_path, packages, capfd):
    packages(**FAILING)
    records = train(data, tmp_path, "--mlflow", "ads", "--wandb", "ads")
    assert [record["step"] for record in records][-1] == []
    said = [line for line in capfd.readouterr().err.splitlines() if "is incomplete" in line]
    assert sorted(said) == [
        "warning: --mlflow: MLflow is incomplete, training goes on: OSError: no route",
        "warning: --wandb: Weights & Biases is incomplete, training goes on: SystemExit: no key",
    ]


def test_missing_package_is_reported_before_tensorflow_loads(data, tmp_path):
    for name in ("mlflow", "wandb"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("importlib.util.find_spec", lambda _: None)
            with pytest.raises(DataError, match=f"--{name} needs the package {name} .*python -m pip install {name}"):
                check_trackers({name: "ads"})
    program = (
        "import importlib.util, sys; from main import main; importlib.util.find_spec = lambda _: None; "
        "code = main(sys.argv[1:]); print('tensorflow' in sys.modules, code)"
    )
    folders = ["--dataset_path", data, "--model_dir", tmp_path, "--results_dir", tmp_path]
    command = [sys.executable, "-c", program, *map(str, folders), "--mlflow", "ads"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "2"]
    assert "--mlflow needs the package mlflow of MLflow, which is not installed" in done.stderr


class Slow:
    """A run of a tracker whose server answers when it is allowed to."""

    def __init__(self):
        self.answers = threading.Event()
        self.steps: list[int] = []

    def log(self, step, values):
        self.answers.wait(30)
        self.steps.append(step)

    def end(self):
        self.steps.append(-1)


def test_a_slow_server_does_not_hold_up_training(monkeypatch, capsys):
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.05)
    slow = Slow()
    tracker = Tracker("mlflow", lambda: slow)
    started = time.monotonic()
    for step in range(1000):
        tracker.scalars(step, {"loss": 1.0})
    tracker.close()
    assert time.monotonic() - started < 5
    assert "values were still to be sent after 0.05 s" in capsys.readouterr().err
    slow.answers.set()
    tracker._thread.join(10)
    assert slow.steps == [*range(1000), -1]


def test_full_queue_drops_values(monkeypatch, capsys):
    monkeypatch.setattr(trackers, "MAX_WAITING", 3)
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.05)
    slow = Slow()
    tracker = Tracker("wandb", lambda: slow)
    for step in range(10):
        tracker.scalars(step, {"loss": 1.0})
    assert capsys.readouterr().err.count("3 records are waiting to be sent") == 1
    slow.answers.set()
    while not tracker._waiting.empty():
        time.sleep(0.01)
    tracker.close()
    assert slow.steps[0] == 0 and slow.steps[-1] == -1 and 4 <= len(slow.steps) <= 6


def test_values_that_are_no_numbers_are_left_out(tmp_path, packages):
    packages(wandb=RECORDER + WANDB)
    (tracker,) = open_trackers({"wandb": "ads"}, tmp_path / "run", {})
    tracker.scalars(3, {"loss": float("nan"), "auc_roc": 0.5, "rate": float("inf")})
    tracker.close()
    assert calls(tmp_path, "wandb")[1] == ["log", 3, {"auc_roc": 0.5}]
