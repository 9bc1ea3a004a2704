"""--tensorboard_dir, --profile_steps and --horovod_timeline in a training with two workers."""

import json
from pathlib import Path

import pytest

import report
from tests.helpers import ROOT, make_dataset, must, run_program
from tests.trainer.logging.test_tensorboard import events, values
from trainer.logging.log import read_log
from trainer.report.runs import read_run

pytestmark = pytest.mark.horovod
TASKS = ("click", "conversion", "click+conversion")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A training of two epochs of eight steps."""
    folder = tmp_path_factory.mktemp("logging")
    data = make_dataset(folder, ROOT / "feature_specs" / "two_labels.yaml", rows=2000)
    flags = ["--dataset_path", data, "--model_dir", folder / "model", "--results_dir", folder / "results"]
    flags += ["--model", "mmoe", "--num_experts", "3", "--expert_hidden_units", "16", "--tower_hidden_units", "8"]
    flags += ["--global_batch_size", "256", "--num_epochs", "2", "--log_every", "2", "--cpu", "--recipe", "published"]
    flags += ["--tensorboard_dir", folder / "board", "--profile_steps", "3:5"]
    flags += ["--horovod_timeline", folder / "timelines" / "timeline.json"]
    done = run_program([ROOT / "main.py", *flags], workers=2, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


def test_scalars_equal_the_log(folder):
    shown = {
        key: value.simple_value for key, value in values(folder / "board").items() if value.HasField("simple_value")
    }
    records = [record for record in read_log(folder / "results" / "log.json") if record["type"] == "LOG"]
    of_steps = [record for record in records if isinstance(record["step"], list) and record["step"]]
    logged = {
        (key, record["step"][0]): value
        for record in of_steps
        for key, value in record["data"].items()
        if isinstance(value, (int, float))
    }
    assert {("loss", 16), ("learning_rate", 16), ("samples_per_second", 16), ("auc_roc/mean", 16)} <= logged.keys()
    known = {key: value for key, value in shown.items() if value == value}
    assert known == pytest.approx(logged, rel=1e-6)
    assert len(list((folder / "board").glob("events.*"))) == 1, "only the first worker writes"


def test_gate_histograms_and_graph_are_written(folder):
    histograms = {key: value.histo.num for key, value in values(folder / "board").items() if value.HasField("histo")}
    tags = [f"gate/{task}/{expert}" for task in TASKS[:2] for expert in (1, 2, 3)]
    assert set(histograms) == {(tag, step) for tag in tags for step in (8, 16)}
    assert set(histograms.values()) == {histograms[tags[0], 8]} and histograms[tags[0], 8] > 100
    assert sum(bool(event.graph_def) for event in events(folder / "board")) == 1


def test_steps_are_profiled(folder):
    (trace,) = (folder / "board" / "plugins" / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000


def test_timeline_shows_the_exchange(folder):
    text = (folder / "timelines" / "timeline.json").read_text().rstrip().rstrip(",")
    entries = json.loads(text if text.endswith("]") else f"{text}]")
    assert any("ALLREDUCE" in str(entry.get("name")) for entry in entries)


def test_calibration_curves_are_on_the_page(folder):
    run = read_run(folder / "results", "run")
    assert set(run.calibration) == set(TASKS)
    for task, curve in run.calibration.items():
        expected = sum(weight * mean for weight, mean in zip(curve["weight"], curve["prediction"], strict=True))
        actual = sum(weight * mean for weight, mean in zip(curve["weight"], curve["label"], strict=True))
        assert expected / actual == pytest.approx(run.evaluations[-1].values[f"calibration/{task}"], rel=1e-12)
    must(report.main(["--results_dir", str(folder / "results")]))
    page = (folder / "results" / "report.html").read_text()
    assert all(f"Mean label of {task}" in page for task in TASKS)
