import json
import math
import re
import struct
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import report
from tests.helpers import ROOT, environment
from trainer.logging.gate_records import levels_in
from trainer.logging.log import RunLog
from trainer.report import curves
from trainer.report.curves import drawn_members, learning_charts
from trainer.report.runs import metric_keys, read_run, training_loss
from trainer.report.table import WIDEST, curve_table

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def training(step: int, loss: float | None, epoch: float = 0.5) -> tuple:
    return [step, 40], {"loss": loss, "learning_rate": 1e-4, "samples_per_second": 1e4, "epoch": epoch}


def evaluation(step: int, epoch: int, **metrics) -> tuple:
    return [step], metrics | {"epoch": epoch}


TWO_EPOCHS = [
    training(10, 0.7),
    training(20, 0.5),
    evaluation(20, 1, loss_val=0.55, auc_roc=0.75, streaming_map_val=0.625, validation_throughput=123_456.0),
    training(30, 0.5),
    training(40, 0.25),
    evaluation(40, 2, loss_val=0.5, auc_roc=0.7, streaming_map_val=0.65, validation_throughput=200_000.0),
    ([], {"loss_val": 0.5, "auc_roc": 0.7}),
]


def write_run(folder: Path, records: list[tuple]) -> Path:
    log = RunLog(folder / "log.json", append=False)
    log.parameters({"num_epochs": 2})
    log.metadata("auc_roc", {"unit": None})
    for step, data in records:
        log.log(step, data)
    return folder


def cells(table: str) -> list[list[str]]:
    return [line.split() for line in table.splitlines()]


def test_table_has_a_line_per_evaluation(tmp_path, capsys):
    assert report.main(["--results_dir", str(write_run(tmp_path / "run", TWO_EPOCHS))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "run"
    header, first, second = (line.split() for line in lines[2:5])
    assert header == ["step", "epoch", "loss", "loss_val", "auc_roc", "streaming_map_val", "validation_throughput"]
    assert first == ["20", "1", "0.60000", "0.55000", "0.75000*", "0.62500", "123k"]
    assert second == ["40", "2", "0.37500", "0.50000*", "0.70000", "0.65000*", "200k"]


def test_pictures_go_to_the_first_run_or_to_output(tmp_path, capsys):
    first, second = (write_run(tmp_path / name, TWO_EPOCHS) for name in ("a", "b"))
    assert report.main(["--results_dir", str(first), str(second)]) == 0
    assert report.main(["--results_dir", str(first), str(second), "--output", str(tmp_path / "new" / "place")]) == 0
    for folder in (first, tmp_path / "new" / "place"):
        png = (folder / "learning_curve.png").read_bytes()
        assert png.startswith(PNG_SIGNATURE) and struct.unpack(">I", png[16:20]) == (1280,)
        svg = ElementTree.parse(folder / "learning_curve.svg").getroot()
        assert svg.tag.endswith("svg")
        assert str(folder / "learning_curve.png") in capsys.readouterr().out or folder != first
    assert not (second / "learning_curve.png").exists()


def test_charts_have_the_curves_of_all_runs(tmp_path):
    runs = [read_run(write_run(tmp_path / name, TWO_EPOCHS), name) for name in ("a", "b")]
    charts, _ = learning_charts(runs)
    assert [chart.title for chart in charts] == ["Loss", "ROC AUC", "MAP@12"]
    assert [(curve.run, curve.is_training, curve.x, curve.y) for curve in charts[0].curves] == [
        ("a", True, [10, 20, 30, 40], [0.7, 0.5, 0.5, 0.25]),
        ("b", True, [10, 20, 30, 40], [0.7, 0.5, 0.5, 0.25]),
        ("a", False, [20, 40], [0.55, 0.5]),
        ("b", False, [20, 40], [0.55, 0.5]),
    ]


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"]])
@pytest.mark.parametrize("tasks", [[], ["click", "mean"]])
def test_different_curves_look_different(tmp_path, names, tasks):
    from trainer.report.plots import Key

    keys = [f"{key}/{task}" for key in ("auc_roc", "loss_val") for task in tasks] or ["auc_roc", "loss_val"]
    records = [*TWO_EPOCHS[:2], evaluation(20, 1, **dict.fromkeys(keys, 0.5))]
    runs = [read_run(write_run(tmp_path / name, records), name) for name in names]
    charts, _ = learning_charts(runs)
    key = Key.of(runs, charts)
    for chart in charts:
        assert len({str(sorted(key.style(curve).items())) for curve in chart.curves}) == len(chart.curves)
    labels = {handle.get_label() for handle in key.handles(charts)}
    assert labels >= {"training", "evaluation", *tasks, *(names if len(names) > 1 else [])}


def test_wide_tables_are_split(tmp_path):
    tasks, names = ("click", "purchase", "mean"), ("loss_val", "auc_roc", "rmse")
    metrics = {f"{name}/{task}": 0.5 for task in tasks for name in names}
    run = read_run(write_run(tmp_path, [evaluation(20, 1, **metrics), evaluation(40, 2, **metrics)]), "run")
    parts = curve_table(run).split("\n\n")
    assert len(parts) > 1
    assert all(len(line) <= WIDEST for part in parts for line in part.splitlines())
    shown = [name for part in parts for name in cells(part)[0]]
    assert [name for name in shown if name not in ("step", "epoch")] == list(metrics)
    assert all(cells(part)[1][:2] == ["20", "1"] for part in parts)


def test_repeated_steps_count_once(tmp_path):
    records = [*TWO_EPOCHS[:6], training(30, 0.4), training(40, 0.3), evaluation(40, 2, loss_val=0.45, auc_roc=0.8)]
    run = read_run(write_run(tmp_path, records), "run")
    losses = [(point.step, point.values["loss"]) for point in run.training]
    assert losses == [(10, 0.7), (20, 0.5), (30, 0.4), (40, 0.3)]
    assert [(point.step, point.values["auc_roc"]) for point in run.evaluations] == [(20, 0.75), (40, 0.8)]
    assert training_loss(run) == {20: pytest.approx(0.6), 40: pytest.approx(0.35)}


def test_missing_values_and_metrics(tmp_path, capsys):
    records = [
        training(20, None),
        evaluation(20, 1, auc_roc=None, streaming_map_val=None, loss_val=0.5),
        evaluation(40, 2, auc_roc=0.5, streaming_map_val=None, loss_val=0.5),
    ]
    run = read_run(write_run(tmp_path, records), "run")
    assert metric_keys([run]) == ["loss_val", "auc_roc"]
    assert cells(curve_table(run))[1:] == [["20", "1", "0.50000", "-"], ["40", "2", "0.50000", "0.50000"]]
    assert report.main(["--results_dir", str(tmp_path)]) == 0


def test_run_without_evaluation_shows_its_losses(tmp_path, capsys):
    assert report.main(["--results_dir", str(write_run(tmp_path, TWO_EPOCHS[:2]))]) == 0
    assert ["10", "0.5", "1.000e-04", "0.70000", "10k"] in cells(capsys.readouterr().out)
    assert (tmp_path / "learning_curve.png").exists()


def test_run_that_only_evaluated_draws_nothing(tmp_path, capsys):
    write_run(tmp_path, [([], {"auc_roc": 0.75})])
    assert report.main(["--results_dir", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert ["-", "-", "0.75000"] in cells(output) and "no picture" in output
    assert not (tmp_path / "learning_curve.png").exists()


def test_metrics_and_arguments_files_are_read(tmp_path):
    write_run(tmp_path, [])
    (tmp_path / "metrics.json").write_text(json.dumps({"auc_roc": 0.5, "loss_val": None}))
    (tmp_path / "args.json").write_text(json.dumps({"seed": 3}))
    run = read_run(tmp_path, "run")
    assert run.final["auc_roc"] == 0.5 and math.isnan(run.final["loss_val"])
    assert run.parameters == {"num_epochs": 2, "seed": 3}


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "no such log.*results_dir"),
        (lambda folder: folder.mkdir(), "no such log"),
        (lambda folder: write_run(folder, []), "no loss and no metric"),
        (lambda folder: (write_run(folder, []) / "log.json").write_bytes(b"\xff\0garbage"), "no loss and no metric"),
        (lambda folder: (write_run(folder, []) / "metrics.json").write_text("{"), "metrics.json.*JSON"),
    ],
)
def test_missing_or_broken_files_are_one_line_errors(tmp_path, capsys, prepare, message):
    prepare(tmp_path / "run")
    assert report.main(["--results_dir", str(tmp_path / "run")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("report.py: ") and captured.err.count("\n") == 1
    assert re.search(message, captured.err)


def test_malformed_records_are_skipped(tmp_path):
    folder = write_run(tmp_path, TWO_EPOCHS)
    odd = [
        {},
        {"type": "LOG"},
        {"type": "LOG", "step": [None], "data": {"auc": 1}},
        {"type": "LOG", "step": ["a"], "data": {"auc": 1}},
    ]
    odd += [{"type": "LOG", "step": [1], "data": [1]}, {"type": "LOG", "step": {}, "data": {}}]
    odd += [{"type": "LOG", "step": [60, 60], "data": {"loss": "high"}}]
    odd += [{"type": "LOG", "step": [50], "data": {"text": "x", "truth": True, "list": [1]}}]
    with open(folder / "log.json", "a") as file:
        file.writelines(f"DLLL {json.dumps(record)}\n" for record in odd)
    run = read_run(folder, "run")
    assert [point.step for point in run.training] == [10, 20, 30, 40]
    assert metric_keys([run]) == ["loss_val", "auc_roc", "streaming_map_val", "validation_throughput"]


LONG = int("9" * 400)
ODD_RECORDS = {
    "numbers": [
        ([30, 40], {"loss": LONG, "epoch": 1e308}),
        ([LONG], {"auc_roc": 0.5}),
        ([-1], {"auc_roc": 0.5}),
        ([True], {"auc_roc": 0.5}),
        ([60], {"auc_roc": LONG, "loss_val": -LONG, "pr_auc": 1e308, "epoch": LONG}),
        ([60], {"calibration_curve": {"weight": [1], "prediction": [LONG], "label": [0.5]}}),
        ([], {"auc_roc": LONG}),
        ("PARAMETER", {"seed": LONG}),
    ],
    "names": [
        ([60], {"auc_roc/\x1b]0;owned\x07": 0.5, "auc_roc/\ud800": 0.5, "line\nbreak": 1.0, "\u202eback": 1.0}),
        ([60], {"calibration_curve/\ud83d": {"weight": [1], "prediction": [0.5], "label": [0.5]}}),
        ([60], {"gate_entropy/\x9b1m": 0.5, "gate_weight/\x9b1m/\ud800": 0.5, "dead_units/\ud800": 0, "epoch": 1}),
        ("PARAMETER", {"\ud800": "\ud800", "model": "\x1b[31m"}),
    ],
    "an entropy alone": [([60], {"gate_entropy/click": 0.5, "epoch": 1})],
    "a weight alone": [([60], {"gate_weight/click/1": 0.5})],
    "experts alone": [([60], {"dead_units/1": 0.5, "expert_similarity/1/2": None})],
    "gates without values": [([60], {"gate_entropy/click": None, "dead_units/1": None, "epoch": None})],
    "keys of the wrong length": [([60], {"gate_entropy": 1, "gate_weight/a/b/c/d/e": 1, "dead_units/1/2/3": 1})],
    "a level that comes and goes": [
        ([60], {"gate_entropy/level_1/a": 0.5, "gate_entropy/level_2/a": 0.5, "dead_units/level_1/1": 0}),
        ([80], {"gate_entropy/level_1/a": 0.5, "dead_units/level_1/1": 0, "epoch": 2}),
    ],
}


@pytest.mark.parametrize("records", ODD_RECORDS.values(), ids=ODD_RECORDS)
def test_any_log_is_reported(tmp_path, capsys, records):
    folder = write_run(tmp_path / "run\x1b[2J", TWO_EPOCHS)
    with open(folder / "log.json", "a") as file:
        for step, data in records:
            file.write(f"DLLL {json.dumps({'type': 'LOG', 'step': step, 'data': data})}\n")
    assert report.main(["--results_dir", str(folder)]) == 0
    captured = capsys.readouterr()
    assert (captured.out + captured.err).replace("\n", "").isprintable()
    (folder / "report.html").read_text(encoding="utf-8")
    for picture in folder.glob("*.svg"):
        ElementTree.parse(picture)
    lines = captured.out.splitlines()
    assert ["20", "1"] in [line.split()[:2] for line in lines]


@pytest.fixture
def low_limits(monkeypatch):
    """Limits of what is drawn that take less time to reach."""
    for name in ("MAX_CHARTS", "MAX_TASKS", "MAX_GATES"):
        monkeypatch.setattr(curves, name, 4)


@pytest.mark.usefixtures("low_limits")
def test_first_of_many_curves_are_drawn(tmp_path, capsys):
    tasks = {f"auc_roc/task_{number}": 0.5 for number in range(300)}
    other = {f"metric_{number}": 0.5 for number in range(300)}
    records = [
        evaluation(20, 1, loss_val=0.5, **other),
        evaluation(40, 2, loss_val=0.5, **tasks, **{"auc_roc/mean": 0.5}),
    ]
    run = read_run(write_run(tmp_path, [*TWO_EPOCHS[:2], *records]), "run")
    charts, _ = learning_charts([run])
    assert len(charts) == 4 and charts[0].title == "Loss"
    report.main(["--results_dir", str(tmp_path)])
    output = capsys.readouterr().out
    notes = ["Only 4 of 302 tasks are drawn", "Only 4 of 302 metrics are drawn"]
    page = (tmp_path / "report.html").read_text()
    assert all(note in output and note in page for note in notes)
    assert "task_299" in output and "metric_299" in output
    assert page.count("<figure>") <= 4 + 3  # and throughput


@pytest.mark.usefixtures("low_limits")
def test_first_of_many_gates_are_drawn(tmp_path):
    names = [f"task_{number}" for number in range(130)]
    values = {f"gate_entropy/{name}": 0.5 for name in names} | {f"gate_weight/{name}/1": 0.5 for name in names}
    records = [*TWO_EPOCHS[:3], evaluation(20, 1, **values, **{"dead_units/1": 0.0, "dead_units/2": 0.0})]
    write_run(tmp_path, records)
    assert report.main(["--results_dir", str(tmp_path)]) == 0
    page, picture = (tmp_path / "report.html").read_text(), (tmp_path / "gates.svg").read_text()
    assert "Only 4 of 130 gates are drawn" in page
    assert page.count(">gate of task_") == 4
    width, height = struct.unpack(">II", (tmp_path / "gates.png").read_bytes()[16:24])
    assert (width, height < 1000) == (1280, True) and "<svg" in picture
    (level,) = levels_in(values | {"dead_units/1": 0.0})
    assert drawn_members(level)[0] == names[:4]


def test_unwritable_output_is_an_error(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    run = write_run(tmp_path / "run", TWO_EPOCHS)
    assert report.main(["--results_dir", str(run), "--output", str(tmp_path / "file")]) == 1
    assert "report.py: " in capsys.readouterr().err


def test_run_names_are_short_and_unique():
    folders = [Path("/x/a/results"), Path("/x/b/results"), Path("/y/c")]
    assert report.run_names(folders) == ["a/results", "b/results", "c"]
    assert report.run_names([Path("/a"), Path("/x/a")]) == ["/a", "x/a"]


def test_run_given_twice_is_shown_once(tmp_path, capsys, monkeypatch):
    write_run(tmp_path / "run", TWO_EPOCHS)
    monkeypatch.chdir(tmp_path)
    assert report.main(["--results_dir", "run", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.splitlines().count("run") == 1


def test_help_does_not_import_tensorflow():
    program = (
        "import atexit, sys, report; atexit.register(lambda: print('tensorflow' in sys.modules)); report.main(['-h'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    assert "learning_curve.png" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"


def test_gates_have_their_own_picture(tmp_path, capsys):
    def health(step: int, lead: float) -> tuple:
        gate = {"gate_weight/click/1": lead, "gate_weight/click/2": 1 - lead, "gate_entropy/click": None}
        shares = {"gate_argmax_share/click/1": lead, "gate_argmax_share/click/2": 1 - lead}
        return evaluation(step, step // 20, **gate, **shares, **{"dead_units/1": 0.5, "dead_units/2": 0.0})

    records = [*TWO_EPOCHS[:3], health(20, 0.6), *TWO_EPOCHS[3:6], health(40, 0.7), TWO_EPOCHS[6]]
    write_run(tmp_path / "plain", TWO_EPOCHS)
    write_run(tmp_path / "gated", records)
    # A resumed run does its second epoch again.
    write_run(tmp_path / "resumed", [*records[:-2], health(40, 0.2), *TWO_EPOCHS[5:6], health(40, 0.7), records[-1]])
    plain, gated, resumed = (read_run(tmp_path / name, name) for name in ("plain", "gated", "resumed"))
    assert curve_table(gated) == curve_table(plain) and metric_keys([gated]) == metric_keys([plain])
    assert [point.values["gate_weight/click/1"] for point in gated.gates] == [0.6, 0.7]
    assert [point.epoch for point in gated.gates] == [1, 2] and len(resumed.gates) == 2
    assert report.main(["--results_dir", str(tmp_path / "gated")]) == 0
    assert (tmp_path / "gated" / "gates.png").read_bytes().startswith(PNG_SIGNATURE)
    assert "gates.svg" in capsys.readouterr().out
    report.main(["--results_dir", str(tmp_path / "plain"), str(tmp_path / "gated")])
    assert not (tmp_path / "plain" / "gates.png").exists() and (tmp_path / "plain" / "gates_2.png").exists()
