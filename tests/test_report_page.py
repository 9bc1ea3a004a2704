"""The page of report.py: well-formed, self-contained, with the runs' figures, and safe against HTML injection."""

import html.parser
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import report
from tests.test_report import TWO_EPOCHS, evaluation, training, write_run
from trainer.importance_file import SCHEMA, Effect, FeatureEffects, Importance, TaskImportance
from trainer.report.curves import Chart, Curve, learning_charts, top_of
from trainer.report.page import page
from trainer.report.plots import MAX_POINTS, Key, chart_svg, draw_chart
from trainer.report.runs import read_run

VOID = {"meta", "br", "wbr", "hr", "img", "link", "input"}
HOSTILE = "<script>alert('x')</script>\"'&<img src=https://evil.example/x onerror=alert(1)>"


class Reader(html.parser.HTMLParser):
    """Parses a page into tags, attributes and texts; fails if tags are not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._continues = False
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._continues = tag == "wbr"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        self._continues = False
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self._continues:
            self.words[-1] += data
        elif self.open and self.open[-1] != "style":
            self.words.append(data)

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] or "" for _, attributes in self.tags if name in attributes]

    def headings(self) -> list[str]:
        joined = "\n".join(self.words)
        return [name for name in SECTIONS if f"\n{name}\n" in joined]


SECTIONS = (
    "Learning curves", "Metrics", "Calibration", "Slices", "Throughput", "Step breakdown", "Gates and experts",
    "Configuration",
)  # fmt: skip


def curve(step: int, **of_task: list[list[float]]) -> tuple:
    """A record of calibration curves: by task, weight, prediction and label of each bin."""
    columns = ("weight", "prediction", "label")
    return [step], {
        f"calibration_curve/{task}": dict(zip(columns, lists, strict=True)) for task, lists in of_task.items()
    }


def slices(step: int, *lines: tuple[str, str, str, dict, dict]) -> tuple:
    """A record of slices: column, value, task, metrics and standard errors of each; a thousand rows, no positives."""
    names = ("column", "value", "task", "metrics", "standard_errors")
    records = [dict(zip(names, line, strict=True)) | {"rows": 1000, "positives": None} for line in lines]
    return [step], {"slices": records}


def gates(step: int, task: str, lead: float) -> tuple:
    weights = {f"gate_weight/{task}/1": lead, f"gate_weight/{task}/2": 1 - lead}
    shares = {f"gate_argmax_share/{task}/1": 0.75, f"gate_argmax_share/{task}/2": 0.25}
    more = {f"gate_entropy/{task}": 0.83, "expert_similarity/1/2": 0.31, "dead_units/1": 0.0, "dead_units/2": 0.17}
    return evaluation(step, step // 20, **weights, **shares, **more)


FULL = [
    *TWO_EPOCHS[:6],
    curve(40, click=[[10.0, 20.0], [0.125, 0.625], [0.25, 0.5]]),
    slices(20, ("country", "earlier", "click", {"auc_roc": 0.5}, {})),
    slices(40, ("country", "DE", "click", {"auc_roc": 0.8125, "loss_val": None}, {"auc_roc": 0.0314})),
    gates(20, "click", 0.6),
    gates(40, "click", 0.71),
    TWO_EPOCHS[6],
]
BENCHMARK = [([1, step], {"batch_samplesps": 1000.0 + step}) for step in range(1, 9)] + [
    (
        [],
        {
            "train_throughput": 1004.0,
            "compute_ms": 30.0,
            "communicate_ms": 6.0,
            "update_ms": 3.0,
            "wait_for_data_ms": 1,
        },
    )
]


def read_page(*runs: Path) -> Reader:
    return Reader(page([read_run(folder, folder.name) for folder in runs]))


def test_page_has_all_sections_and_figures(tmp_path):
    reader = read_page(write_run(tmp_path / "run", FULL))
    assert reader.headings() == [name for name in SECTIONS if name != "Step breakdown"]
    words = " ".join(reader.words)
    for figure in ("0.50000", "0.70000", "0.75000 at epoch 1", "0.65000", "0.71", "0.29", "0.31", "0.17", "num_epochs"):
        assert figure in words, figure
    assert "country, click" in words and "0.81250 \N{PLUS-MINUS SIGN} 0.031" in words and "1,000" in words
    assert "earlier" not in words
    assert "click: 0.125, 0.25" not in words and "run: 0.125, 0.25" in words and "run: 0.625, 0.5" in words


def test_benchmark_shows_its_step_breakdown(tmp_path):
    reader = read_page(write_run(tmp_path / "run", BENCHMARK))
    assert {"Step breakdown", "Throughput"} <= set(reader.headings())
    assert "forward and backward pass: 30 ms, 75.0%" in reader.attributes("title")
    assert "run, benchmark: 40 ms" in reader.words


def test_training_shows_its_step_breakdown(tmp_path):
    times = [(50.0, 1.0, 9.0), (40.0, 2.0, 10.0), (400.0, 3.0, 300.0)]  # medians 50, 2 and 10
    records = [training(step, 0.5) for step in (1, 10, 20, 30)]
    for (_, values), (whole, data, exchange) in zip(records[1:], times, strict=True):
        values |= {"step_ms": whole, "wait_for_data_ms": data, "communicate_ms": exchange}
    reader = read_page(write_run(tmp_path / "run", records))
    assert "run, training: 50 ms" in reader.words
    assert [title for title in reader.attributes("title") if "%" in title] == [
        "waiting for data: 2 ms, 4.0%", "exchange between workers: 10 ms, 20.0%", "everything else: 38 ms, 76.0%",
    ]  # fmt: skip


def test_runs_side_by_side_show_differences_first(tmp_path):
    runs = [write_run(tmp_path / name, FULL) for name in ("one", "two")]
    for folder, seed in zip(runs, (1, 2), strict=True):
        (folder / "args.json").write_text(f'{{"seed": {seed}, "model": "mmoe"}}')
    reader = read_page(*runs, write_run(tmp_path / "three", BENCHMARK))
    words = reader.words
    assert {"one", "two", "three"} <= set(words)
    assert words.index("--seed") < words.index("--num_epochs")
    reader = read_page(*runs)
    words = reader.words
    assert words.index("--seed") < words.index("2 flags that are equal in all runs") < words.index("--num_epochs")


@pytest.mark.parametrize("several", [False, True])
def test_names_and_values_are_escaped(tmp_path, several):
    task = HOSTILE.replace("/", "")  # a key is taken apart at slashes
    records = [
        training(20, 0.5),
        evaluation(20, 1, **{f"auc_roc/{task}": 0.5, f"loss_val/{task}": 0.4, HOSTILE.replace("/", "|"): 1.0}),
        curve(20, **{task: [[1.0], [0.5], [0.5]]}),
        gates(20, task, 0.6),
        ([], {f"auc_roc/{task}": 0.5, "compute_ms": 1.0}),
    ]
    folder = write_run(tmp_path / "run", records)
    log = folder / "log.json"
    log.write_text(log.read_text().replace('"num_epochs"', '"\\ud800\\u0000 flag"'))
    run = read_run(folder, HOSTILE)
    run.parameters |= {HOSTILE: [HOSTILE], "model": HOSTILE, "dataset_path": HOSTILE}
    effects = FeatureEffects(HOSTILE, {HOSTILE: Effect(-0.5, None), "auc_roc": Effect(None, None)})
    important = TaskImportance(HOSTILE, {HOSTILE: 0.75, "auc_roc": None}, [effects])
    run.importance = Importance(SCHEMA, HOSTILE, HOSTILE, 9, 9, 20, 0, [important])
    runs = [run, read_run(folder, "plain")] if several else [run]
    made = page(runs)
    made.encode("utf-8")
    reader = Reader(made)
    assert not {tag for tag, _ in reader.tags} & {"script", "img", "link", "iframe", "object", "base"}
    assert not [name for _, attributes in reader.tags for name in attributes if name.startswith("on")]
    assert any(HOSTILE in word for word in reader.words)
    assert self_contained(reader, made)


def self_contained(reader: Reader, made: str) -> bool:
    """Whether the page loads nothing: no URLs in attributes or styles, no imports."""
    addresses = [value for name in ("src", "href", "action", "data", "poster") for value in reader.attributes(name)]
    style = made[made.index("<style>") : made.index("</style>")]
    return all(address.startswith("#") for address in addresses) and not re.search(r"url\(|@import|https?:", style)


def test_page_is_written_and_self_contained(tmp_path, capsys):
    runs = [write_run(tmp_path / name, FULL) for name in ("a", "b")]
    assert report.main(["--results_dir", *map(str, runs), "--output", str(tmp_path / "out")]) == 0
    assert f"wrote {tmp_path / 'out' / 'report.html'}" in capsys.readouterr().out
    made = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    reader = Reader(made)
    assert self_contained(reader, made) and not re.search(r"https?://", made)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in reader.tags
    links = {attributes["href"].removeprefix("#") for tag, attributes in reader.tags if tag == "a"}
    assert links <= set(reader.attributes("id")) and len(links) == 7


def test_nearly_empty_runs_have_a_page(tmp_path):
    assert read_page(write_run(tmp_path / "stopped", TWO_EPOCHS[:1])).headings() == [
        "Learning curves", "Throughput", "Configuration",
    ]  # fmt: skip
    assert "0.75000" in read_page(write_run(tmp_path / "evaluated", [([], {"auc_roc": 0.75})])).words
    nothing = [training(20, None), evaluation(20, 1, auc_roc=None, loss_val=1e300), curve(20, x=[[], [], []])]
    read_page(write_run(tmp_path / "nothing", nothing))


def test_malformed_slices_are_skipped(tmp_path):
    good = {"column": "c", "value": "v\n", "task": "t", "rows": 3, "metrics": {"x": 1, "y": "2"}, "standard_errors": {}}
    odd = [3, None, {}, good | {"value": 3}, good | {"metrics": [1]}, good | {"rows": -1, "positives": True}]
    for records in ("none", {"column": "c"}, [*odd, good]):
        run = read_run(write_run(tmp_path, [*TWO_EPOCHS, ([20], {"slices": records})]), "run")
    line = {"column": "c", "value": "v\\n", "task": "t", "metrics": {"x": 1.0}, "standard_errors": {}}
    assert run.slices == [line, line | {"rows": 3}]
    read_page(tmp_path)


def test_malformed_calibration_curves_are_skipped(tmp_path):
    odd = [
        (
            [20],
            {
                "calibration_curve/a": 3,
                "calibration_curve/b": {"weight": [1]},
                "calibration_curve/c": {"weight": ["x"]},
            },
        ),
        ([20], {"calibration_curve/d": {"weight": [1.0], "prediction": [None], "label": [True]}}),
        curve(20, e=[[1.0, 1.0], [0.5], [0.25]]),
    ]
    run = read_run(write_run(tmp_path, [*TWO_EPOCHS, *odd]), "run")
    assert run.calibration == {"e": {"weight": [1.0], "prediction": [0.5], "label": [0.25]}}
    assert run.final == {"loss_val": 0.5, "auc_roc": 0.7}


def test_times_of_records_are_read(tmp_path):
    run = read_run(write_run(tmp_path, TWO_EPOCHS), "run")
    times = [point.at for point in run.training]
    assert None not in times and times == sorted(times) and times[0] > 1e9


def drawn(chart: Chart) -> tuple[Reader, list[list[list[str]]]]:
    """A chart, and the path of each of its curves: a list of segments, each a list of "x y" points."""
    svg = chart_svg(chart, Key(["run"]))
    paths = re.findall(r'<path d="([^"]*)" clip-path="[^"]*" style="fill: none; stroke: #0072b2', svg)
    return Reader(svg), [[re.findall(r"[\d.]+ [\d.]+", part) for part in path.split("M")[1:]] for path in paths]


def test_gaps_stay_gaps_and_markers_show_values():
    curve = Curve("run", "", False, [1, 2, 3, 4, 5], [0.5, 0.7, float("nan"), 0.2, 0.9])
    reader, (path,) = drawn(Chart("Title", [curve]))
    assert [len(segment) for segment in path] == [2, 2]
    heights = [float(point.split()[1]) for segment in path for point in segment]
    assert sorted(range(4), key=lambda index: -heights[index]) == [2, 0, 1, 3]
    assert [word for word in reader.words if word.startswith("run: ")] == [
        "run: 1, 0.5", "run: 2, 0.7", "run: 4, 0.2", "run: 5, 0.9",
    ]  # fmt: skip
    assert "Title" in reader.words


def curve_of(task: str, values: list[float], *, is_training: bool = True, every: int = 1) -> Curve:
    return Curve("run", task, is_training, [every * (index + 1) for index in range(len(values))], values)


def test_high_losses_of_the_first_steps_are_cut_off():
    settled = [1.0 - 0.002 * step for step in range(100)]
    evaluations = curve_of("", [0.95, 0.85], is_training=False, every=50)
    assert top_of([curve_of("", settled), evaluations]) == np.inf
    assert top_of([curve_of("", [90.0] * 10 + settled[10:]), evaluations]) == pytest.approx(0.98)
    assert top_of([curve_of("", [90.0] * 20 + settled[20:]), evaluations]) == np.inf, "that is more than a start"
    early = curve_of("", [40.0, 1.0], is_training=False, every=5)
    assert top_of([curve_of("", [90.0] * 10 + settled[10:]), early]) == np.inf, "evaluations are always shown"
    assert top_of([curve_of("", [np.nan])]) == top_of([curve_of("", [])]) == np.inf


def test_high_training_losses_are_clipped():
    training = Curve("run", "", True, [1, 2, 3], [90.0, 0.5, 0.25])
    reader, _ = drawn(Chart("Loss", [training, Curve("run", "", False, [1, 3], [0.5, 1.0])], y_max=1.0))
    assert "1.0" in reader.words and not {"20", "40", "60", "80"} & set(reader.words)
    assert "run: 3, 1" in reader.words


def test_mean_of_one_task_is_not_drawn(tmp_path):
    lone = {"auc_roc/click": 0.7, "auc_roc/mean": 0.7}
    both = {"loss_val/click": 0.5, "loss_val/spend": 1.5, "loss_val/mean": 1.0}
    trained = training(20, 2.0)
    trained[1].update({"loss/click": 0.5, "loss/spend": 1.5})
    charts, _ = learning_charts([read_run(write_run(tmp_path, [trained, evaluation(20, 1, **lone, **both)]), "run")])
    loss, auc = charts
    assert [curve.task for curve in auc.curves] == ["click"]
    evaluated = [curve.task for curve in loss.curves if not curve.is_training]
    assert [(curve.task, curve.y) for curve in loss.curves if curve.is_training] == [
        ("", [2.0]), ("click", [0.5]), ("spend", [1.5]),
    ]  # fmt: skip
    assert evaluated == ["click", "spend", "mean"]


def test_long_curves_are_drawn_as_means():
    axis = Figure().subplots()
    draw_chart(axis, Chart("Loss", [Curve("run", "", True, range(10_000), range(10_000))]), Key(["run"]))
    x, y = axis.lines[0].get_data()
    assert MAX_POINTS / 2 < len(x) <= MAX_POINTS and list(x[:2]) == list(y[:2]) == [16.5, 50.5]


def test_page_is_reproducible(tmp_path):
    """No dates, no random identifiers, and no identifier twice unless for the same shape."""
    run = read_run(write_run(tmp_path / "run", FULL), "run")
    made = page([run])
    assert page([run]) == made
    shapes: dict[str, str] = {}
    for shape in re.findall(r'<(?:path|clipPath) id="[^"]*".*?(?:/>|</clipPath>)', made, re.DOTALL):
        name = re.search(r'id="([^"]*)"', shape).group(1)
        assert shapes.setdefault(name, shape) == shape
    assert shapes
