"""scripts/daily.sh: days in turn, a model that is not good enough, and runs that are killed and started again."""

import json
import os
import random
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from benchmarks.drifting_logs import draw_day, write_day
from data.storage import remote
from scripts.compare_models import decide
from scripts.compare_models import main as compare
from tests.helpers import ROOT, environment
from tests.object_store import SECRET

FLAGS = ["--num_epochs", "2", "--deep_hidden_units", "16", "8", "--global_batch_size", "512"]
STAGES = ("preprocessing", "training", "evaluating", "comparing", "exporting")


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Path:
    """Raw logs of three days."""
    folder = tmp_path_factory.mktemp("logs")
    for day in range(3):
        write_day(folder / f"day-{day}", draw_day(day, 3_000))
    return folder


def command(logs: Path, runs: Path, day: int, *options: str) -> list[str]:
    raw, following = logs / f"day-{day}", logs / f"day-{day + 1}"
    paths = ["--raw", str(raw), "--next", str(following), "--runs", str(runs)]
    return ["bash", str(ROOT / "scripts/daily.sh"), *paths, *options, "--", *FLAGS]


def run_day(logs: Path, runs: Path, day: int, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(logs, runs, day, *options), env=environment(), capture_output=True, text=True, timeout=600, check=False
    )


def results(day: Path) -> dict[str, bytes]:
    """What a day has produced, without logs, times and paths."""
    weights = {path.name: path.read_bytes() for path in sorted((day / "model/model/weights").glob("*.npy"))}
    names = ["decision.json", "evaluation/metrics.json", "data/workflow/encoders.json"]
    return weights | {name: (day / name).read_bytes() for name in names}


@pytest.mark.slow
def test_days_in_turn_and_a_killed_day_ends_like_an_uninterrupted_one(logs, tmp_path):
    runs, killed = tmp_path / "runs", tmp_path / "killed"
    first = run_day(logs, runs, 0)
    assert first.returncode == 0, first.stdout + first.stderr
    assert os.readlink(runs / "current") == "day-0"
    assert json.loads((runs / "day-0/decision.json").read_text())["previous"] is None
    shutil.copytree(runs, killed, symlinks=True)

    second = run_day(logs, runs, 1, "--tolerance", "9", "--extend", "--retire_after 7")
    assert second.returncode == 0, second.stdout + second.stderr
    assert os.readlink(runs / "current") == "day-1"
    assert (runs / "day-1/export").exists()

    for stage in STAGES:
        kill_at(stage, command(logs, killed, 1, "--tolerance", "9", "--extend", "--retire_after 7"))
    last = run_day(logs, killed, 1, "--tolerance", "9", "--extend", "--retire_after 7")
    assert last.returncode == 0, last.stdout + last.stderr
    assert os.readlink(killed / "current") == "day-1"
    assert results(killed / "day-1") == results(runs / "day-1")

    # The same command again, even that of an earlier day, changes nothing.
    again = run_day(logs, runs, 0)
    assert again.returncode == 0, again.stdout + again.stderr
    assert os.readlink(runs / "current") == "day-1"
    assert results(runs / "day-1") == results(killed / "day-1")


def kill_at(stage: str, words: list[str]) -> None:
    """Starts a day and kills it, with all that it has started, within seconds of the beginning of a stage."""
    process = subprocess.Popen(
        words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("== ") and stage in line:
            break
    else:
        pytest.fail(f"the stage {stage!r} did not begin")
    delay = threading.Event()
    delay.wait(random.Random(stage).uniform(0.1, 6))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


@pytest.mark.slow
def test_a_worse_model_is_not_kept(logs, tmp_path):
    first = run_day(logs, tmp_path, 0, "--format", "none")
    assert first.returncode == 0, first.stdout + first.stderr
    metrics = tmp_path / "day-1/evaluation_previous/metrics.json"  # as if the previous model had been perfect
    metrics.parent.mkdir(parents=True)
    metrics.write_text(json.dumps({"loss_val": 0.0}))
    second = run_day(logs, tmp_path, 1, "--format", "none")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "the model of day-1 is not kept; day-0 stays the current one" in second.stdout
    assert os.readlink(tmp_path / "current") == "day-0"
    assert not (tmp_path / "day-1/export").exists()


@pytest.mark.slow
def test_raw_logs_in_a_store(logs, store, tmp_path):
    for day in (0, 1):
        remote.push_folder(logs / f"day-{day}", f"{store}/day-{day}", "feature_spec.yaml")
    paths = ["--raw", f"{store}/day-0/", "--next", f"{store}/day-1", "--runs", str(tmp_path / "far")]
    words = ["bash", str(ROOT / "scripts/daily.sh"), *paths, "--format", "none", "--", *FLAGS]
    far = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=600, check=False)
    assert far.returncode == 0, far.stdout + far.stderr
    assert SECRET not in far.stdout + far.stderr
    near = run_day(logs, tmp_path / "near", 0, "--format", "none")
    assert near.returncode == 0, near.stdout + near.stderr
    assert results(tmp_path / "far/day-0") == results(tmp_path / "near/day-0")


@pytest.mark.parametrize(
    ("metric", "new", "previous", "tolerance", "kept"),
    [
        ("loss_val", 0.51, 0.50, 0.0, False),
        ("loss_val", 0.51, 0.50, 0.02, True),
        ("loss_val", 0.50, 0.50, 0.0, True),
        ("auc_roc", 0.70, 0.71, 0.0, False),
        ("auc_roc", 0.70, 0.71, 0.02, True),
        ("calibration", 2.0, 0.5, 0.0, True),
        ("calibration", 2.0, 1.5, 0.4, False),
        ("auc_roc", None, 0.71, 0.5, False),
        ("auc_roc", 0.5, None, 0.0, True),
    ],
)
def test_decision(tmp_path, metric, new, previous, tolerance, kept):
    files = [tmp_path / "new.json", tmp_path / "previous.json"]
    for file, value in zip(files, (new, previous), strict=True):
        file.write_text(json.dumps({metric: value}))
    flags = ["--metric", metric, "--tolerance", str(tolerance), "--output", str(tmp_path / "decision.json")]
    assert compare(["--new", str(files[0]), "--previous", str(files[1]), *flags]) == 0
    found = json.loads((tmp_path / "decision.json").read_text())
    assert found == {"metric": metric, "previous": previous, "new": new, "tolerance": tolerance, "kept": kept}
    assert decide(metric, tolerance, files[0], None)["kept"]


@pytest.mark.parametrize(
    ("content", "metric", "message"),
    [
        ("{", "loss_val", "new.json: cannot be read"),
        ('{"auc_roc": 0.7}', "loss_val", "takes one of: auc_roc"),
        ('{"loss_val": "x"}', "loss_val", "expected a number"),
        ("{}", "speed", "unknown metric 'speed'"),
    ],
)
def test_wrong_metrics_are_reported(tmp_path, capsys, content, metric, message):
    (tmp_path / "new.json").write_text(content)
    output = tmp_path / "decision.json"
    assert compare(["--new", str(tmp_path / "new.json"), "--metric", metric, "--output", str(output)]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "needs --raw, --next and --runs"),
        (["--raw"], "--raw needs a value"),
        (["--raw", "a", "--next", "b", "--runs", "c", "--tolerance", "-1"], "--tolerance takes a number from 0 up"),
        (["--raw", "a", "--next", "b", "--runs", "c", "--workers", "two"], "--workers takes a number of workers"),
        (["--raw", "a", "--next", "b", "--runs", "c", "--format", "zip"], "--format takes"),
        (["--raw", "a", "--next", "b", "--runs", "s3://c"], "--runs s3://c: is a URL; give a folder of this machine"),
        (["--day", "a"], "unknown argument --day"),
    ],
)
def test_wrong_arguments_are_reported(tmp_path, options, message):
    found = subprocess.run(
        ["bash", str(ROOT / "scripts/daily.sh"), *options], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert found.returncode == 2
    assert message in found.stderr
    assert not list(tmp_path.iterdir())
