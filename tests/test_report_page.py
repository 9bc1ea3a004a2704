"""The page of report.py: whole, self-contained, with the runs' figures, and with nothing of theirs that is markup."""

import html.parser
import re
from pathlib import Path

import numpy as np
import pytest

import report
from tests.test_report import TWO_EPOCHS, evaluation, training, write_run
from trainer.report.chart import MOST_POINTS, Axis, Line, line_chart, ticks
from trainer.report.curves import Curve, panels_of, top_of
from trainer.report.markup import Markup, breakable, element, text
from trainer.report.page import page
from trainer.report.runs import read_run

VOID = {"meta", "br", "wbr", "hr", "img", "link", "input"}
HOSTILE = "<script>alert('x')</script>\"'&<img src=https://evil.example/x onerror=alert(1)>"


class Reader(html.parser.HTMLParser):
    """Reads a page and keeps what a browser would act on; fails where a tag is not closed in its turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._goes_on = False
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._goes_on = tag == "wbr"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        self._goes_on = False
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self._goes_on:
            self.words[-1] += data
        elif self.open and self.open[-1] != "style":
            self.words.append(data)

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] or "" for _, attributes in self.tags if name in attributes]

    def headings(self) -> list[str]:
        joined = "\n".join(self.words)
        return [name for name in SECTIONS if f"\n{name}\n" in joined]


SECTIONS = (
    "Learning curves", "Metrics", "Calibration", "Throughput", "Step breakdown", "Gates and experts", "Configuration",
)  # fmt: skip


def curve(step: int, **of_task: list[list[float]]) -> tuple:
    """A record of calibration curves: by task, weight, prediction and label of each bin."""
    columns = ("weight", "prediction", "label")
    return [step], {
        f"calibration_curve/{task}": dict(zip(columns, lists, strict=True)) for task, lists in of_task.items()
    }


def gates(step: int, task: str, lead: float) -> tuple:
    weights = {f"gate_weight/{task}/1": lead, f"gate_weight/{task}/2": 1 - lead}
    shares = {f"gate_argmax_share/{task}/1": 0.75, f"gate_argmax_share/{task}/2": 0.25}
    more = {f"gate_entropy/{task}": 0.83, "expert_similarity/1/2": 0.31, "dead_units/1": 0.0, "dead_units/2": 0.17}
    return evaluation(step, step // 20, **weights, **shares, **more)


FULL = [
    *TWO_EPOCHS[:6],
    curve(40, click=[[10.0, 20.0], [0.125, 0.625], [0.25, 0.5]]),
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


def test_the_page_of_a_run_has_all_its_parts_and_figures(tmp_path):
    reader = read_page(write_run(tmp_path / "run", FULL))
    assert reader.headings() == [name for name in SECTIONS if name != "Step breakdown"]
    words = " ".join(reader.words)
    for figure in ("0.50000", "0.70000", "0.75000 at epoch 1", "0.65000", "0.71", "0.29", "0.31", "0.17", "num_epochs"):
        assert figure in words, figure
    assert "click: 0.125, 0.25" not in words and "run: 0.125, 0.25" in words and "run: 0.625, 0.5" in words


def test_a_benchmark_shows_its_steps(tmp_path):
    reader = read_page(write_run(tmp_path / "run", BENCHMARK))
    assert {"Step breakdown", "Throughput"} <= set(reader.headings())
    assert "forward and backward pass: 30 ms, 75.0%" in reader.attributes("title")
    assert "run, benchmark: 40 ms" in reader.words


def test_a_training_shows_what_its_steps_wait_for(tmp_path):
    times = [(50.0, 1.0, 9.0), (40.0, 2.0, 10.0), (400.0, 3.0, 300.0)]  # medians 50, 2 and 10
    records = [training(step, 0.5) for step in (1, 10, 20, 30)]
    for (_, values), (whole, data, exchange) in zip(records[1:], times, strict=True):
        values |= {"step_ms": whole, "wait_for_data_ms": data, "communicate_ms": exchange}
    reader = read_page(write_run(tmp_path / "run", records))
    assert "run, training: 50 ms" in reader.words
    assert [title for title in reader.attributes("title") if "%" in title] == [
        "waiting for data: 2 ms, 4.0%", "exchange between workers: 10 ms, 20.0%", "all else: 38 ms, 76.0%",
    ]  # fmt: skip


def test_runs_side_by_side_have_their_names_and_what_differs_comes_first(tmp_path):
    runs = [write_run(tmp_path / name, FULL) for name in ("one", "two")]
    for folder, seed in zip(runs, (1, 2), strict=True):
        (folder / "args.json").write_text(f'{{"seed": {seed}, "model": "mmoe"}}')
    reader = read_page(*runs, write_run(tmp_path / "three", BENCHMARK))
    words = reader.words
    assert {"one", "two", "three"} <= set(words)
    assert words.index("--seed") < words.index("--num_epochs")
    reader = read_page(*runs)
    words = reader.words
    assert words.index("--seed") < words.index("2 flags that all runs have in common") < words.index("--num_epochs")


@pytest.mark.parametrize("several", [False, True])
def test_what_logs_and_names_hold_stays_text(tmp_path, several):
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
    runs = [run, read_run(folder, "plain")] if several else [run]
    made = page(runs)
    made.encode("utf-8")
    reader = Reader(made)
    assert not {tag for tag, _ in reader.tags} & {"script", "img", "link", "iframe", "object", "base"}
    assert not [name for _, attributes in reader.tags for name in attributes if name.startswith("on")]
    assert any(HOSTILE in word for word in reader.words)
    assert self_contained(reader, made)


def self_contained(reader: Reader, made: str) -> bool:
    """Whether nothing is fetched: no address in an attribute or in the style, no import."""
    addresses = [value for name in ("src", "href", "action", "data", "poster") for value in reader.attributes(name)]
    style = made[made.index("<style>") : made.index("</style>")]
    return all(address.startswith("#") for address in addresses) and not re.search(r"url\(|@import|https?:", style)


def test_report_writes_the_page_beside_the_pictures_and_it_needs_nothing_else(tmp_path, capsys):
    runs = [write_run(tmp_path / name, FULL) for name in ("a", "b")]
    assert report.main(["--results_dir", *map(str, runs), "--output", str(tmp_path / "out")]) == 0
    assert f"wrote {tmp_path / 'out' / 'report.html'}" in capsys.readouterr().out
    made = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    reader = Reader(made)
    assert self_contained(reader, made) and not re.search(r"https?://", made)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in reader.tags
    links = {address.removeprefix("#") for address in reader.attributes("href")}
    assert links == set(reader.attributes("id")) and len(links) == 6


def test_a_run_with_next_to_nothing_has_a_page(tmp_path):
    assert read_page(write_run(tmp_path / "stopped", TWO_EPOCHS[:1])).headings() == [
        "Learning curves", "Throughput", "Configuration",
    ]  # fmt: skip
    assert "0.75000" in read_page(write_run(tmp_path / "evaluated", [([], {"auc_roc": 0.75})])).words
    nothing = [training(20, None), evaluation(20, 1, auc_roc=None, loss_val=1e300), curve(20, x=[[], [], []])]
    read_page(write_run(tmp_path / "nothing", nothing))


def test_a_log_with_odd_curves_is_read(tmp_path):
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


def test_text_has_no_markup_and_markup_is_kept():
    assert text("<b>&\"'") == "&lt;b&gt;&amp;&quot;&#x27;"
    assert element("p", "<", Markup("<br>"), None, class_='"', data_x=None) == '<p class="&quot;">&lt;<br></p>'
    assert text("\x00\ud800\x1b") == "\ufffd" * 3
    assert breakable("a_b/<c>") == "a_<wbr>b/<wbr>&lt;c&gt;"


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.5, 0.5), (0, 0), (-3, 7), (1e-9, 2e-9), (0.998, 1.002), (0, 1e280), (-1e-300, 1e-300)]
)
def test_ticks_enclose_what_is_shown_and_are_few(low, high):
    values = ticks(low, high)
    assert 2 <= len(values) <= 8
    assert values[0] <= low + 1e-6 * (values[1] - values[0]) and values[-1] >= high - 1e-6 * (values[1] - values[0])
    assert np.diff(values) == pytest.approx([values[1] - values[0]] * (len(values) - 1), rel=1e-6)


def test_every_point_lies_within_the_chart_and_gaps_stay_gaps():
    line = Line("a", 0, [1, 2, 3, 4, 5], [0.5, 0.7, float("nan"), 0.2, 0.9])
    chart = Reader(line_chart("T", [line], Axis("x"), Axis()))
    pieces = [[tuple(map(float, point.split(","))) for point in piece.split()] for piece in chart.attributes("points")]
    assert [len(piece) for piece in pieces] == [2, 2]
    assert all(0 < x < 400 and 0 < y < 230 for piece in pieces for x, y in piece)
    heights = [y for piece in pieces for _, y in piece]
    assert sorted(range(4), key=lambda index: -heights[index]) == [2, 0, 1, 3]


def curve_of(task: str, values: list[float], *, is_training: bool = True, every: int = 1) -> Curve:
    return Curve("run", task, is_training, [every * (index + 1) for index in range(len(values))], values)


def test_high_losses_of_the_first_steps_do_not_squeeze_the_others():
    settled = [1.0 - 0.002 * step for step in range(100)]
    evaluations = curve_of("", [0.95, 0.85], is_training=False, every=50)
    assert top_of([curve_of("", settled), evaluations]) == np.inf
    assert top_of([curve_of("", [90.0] * 10 + settled[10:]), evaluations]) == pytest.approx(0.98)
    assert top_of([curve_of("", [90.0] * 20 + settled[20:]), evaluations]) == np.inf, "that is more than a start"
    early = curve_of("", [40.0, 1.0], is_training=False, every=5)
    assert top_of([curve_of("", [90.0] * 10 + settled[10:]), early]) == np.inf, "evaluations are always shown"
    assert top_of([curve_of("", [np.nan])]) == top_of([curve_of("", [])]) == np.inf


def test_a_line_that_leaves_a_chart_is_cut_off_and_marks_stay():
    thin = Line("a", 0, [1, 2, 3], [90.0, 0.5, 0.25], is_thin=True)
    chart = line_chart("T", [thin, Line("b", 1, [1, 3], [0.5, 1.0])], Axis("x"), Axis(top=1.0))
    reader = Reader(chart)
    assert "1.0" in reader.words and "90" not in reader.words
    window = chart[chart.index("<svg", chart.index("<svg") + 1) : chart.index("</svg>")]
    assert "thin" in window and "circle" not in window
    heights = [float(attributes["cy"]) for tag, attributes in reader.tags if tag == "circle"]
    assert all(10 <= height <= 190 for height in heights)


def test_the_mean_of_one_task_is_no_curve_of_its_own_and_tasks_have_their_losses(tmp_path):
    lone = {"auc_roc/click": 0.7, "auc_roc/mean": 0.7}
    both = {"loss_val/click": 0.5, "loss_val/spend": 1.5, "loss_val/mean": 1.0}
    trained = training(20, 2.0)
    trained[1].update({"loss/click": 0.5, "loss/spend": 1.5})
    panels = panels_of([read_run(write_run(tmp_path, [trained, evaluation(20, 1, **lone, **both)]), "run")])
    assert [curve.task for curve in panels["auc_roc"]] == ["click"]
    evaluated = [curve.task for curve in panels["loss"] if not curve.is_training]
    assert [(curve.task, curve.values) for curve in panels["loss"] if curve.is_training] == [
        ("", [2.0]), ("click", [0.5]), ("spend", [1.5]),
    ]  # fmt: skip
    assert evaluated == ["click", "spend", "mean"]


def test_long_lines_are_drawn_as_means():
    line = Line("a", 0, list(range(10_000)), list(range(10_000)), is_thin=True)
    (points,) = Reader(line_chart("T", [line], Axis("x"), Axis())).attributes("points")
    assert MOST_POINTS / 2 < len(points.split()) <= MOST_POINTS
    assert line_chart("T", [Line("a", 0, [], [])], Axis("x"), Axis()) is None


def test_labels_of_an_axis_do_not_run_into_each_other():
    for high in (1, 128, 2000, 123_456, 9e9):
        chart = line_chart("T", [Line("a", 0, [0, high], [0, high])], Axis("step"), Axis())
        labels = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="middle">(.*?)</text>', chart)
        highest = min(float(y) for _, y, _ in labels)  # below it stands the axis' own label
        centres = [(float(x), label) for x, y, label in labels if float(y) == highest]
        assert len(centres) >= 3
        for (x, label), (next_x, next_label) in zip(centres, centres[1:], strict=False):
            assert next_x - x > 6.8 * (len(label) + len(next_label)) / 2
