"""What benchmarks/stability.py computes and draws."""

import itertools
import json
import struct
import xml.etree.ElementTree as ElementTree
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import stability
from benchmarks.harness import RunsFile

VALUES = st.lists(st.integers(-40, 40), min_size=2, max_size=9, unique=True)


def distance(first: list[float], second: list[float]) -> Fraction:
    """The largest difference between the fractions of values at or below any point."""
    return max(
        abs(
            Fraction(sum(value <= point for value in first), len(first))
            - Fraction(sum(value <= point for value in second), len(second))
        )
        for point in [*first, *second]
    )


@settings(max_examples=50, deadline=None)
@given(VALUES, st.data())
def test_p_value_is_the_fraction_of_assignments(pooled, data):
    """The exact test of distinct values against an enumeration of all assignments to the two samples."""
    size = data.draw(st.integers(1, len(pooled) - 1))
    found = distance(pooled[:size], pooled[size:])
    assignments = list(itertools.combinations(range(len(pooled)), size))
    as_far = 0
    for chosen in assignments:
        others = [value for index, value in enumerate(pooled) if index not in chosen]
        as_far += distance([pooled[index] for index in chosen], others) >= found
    test = stability.ks_2samp(pooled[:size], pooled[size:], method="exact")
    assert test.statistic == pytest.approx(float(found), abs=1e-15)
    assert test.pvalue == pytest.approx(as_far / len(assignments), abs=1e-12)


def runs_of(values: dict[tuple[str, int], list[float]]) -> list[dict]:
    return [
        {"mode": mode, "workers": workers, "seed": seed, "dataset": "d", "training": "t", "auc_roc": value}
        for (mode, workers), of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
    ]


RUNS = runs_of({("amp", 1): [0.75, 0.5, 0.25], ("float32", 2): [0.5, 1.0], ("float32", 1): [0.5, 0.625, 0.75]})


def test_table_compares_configurations_with_reference():
    lines = [[cell.strip() for cell in line.split("|")[2:-1]] for line in stability.table(RUNS).splitlines()[2:]]
    assert lines == [
        ["float32, 1 worker", "3", "0.62500", "0.12500", "0.50000", "0.75000", "", ""],
        ["float32, 2 workers", "2", "0.75000", "0.35355", "0.50000", "1.00000", "0.500", "0.9"],
        ["amp, 1 worker", "3", "0.50000", "0.25000", "0.25000", "0.75000", "0.333", "1"],
    ]


def test_figure_has_a_dot_and_a_curve_per_run(tmp_path):
    png, svg = stability.draw(RUNS, tmp_path / "a")
    again = stability.draw(RUNS, tmp_path / "b")
    assert [path.read_bytes() for path in (png, svg)] == [path.read_bytes() for path in again]
    assert struct.unpack(">I", png.read_bytes()[16:20]) == (1280,)
    text = svg.read_text()
    assert all(f"<!-- {name} -->" in text for name in ("float32, 1 worker", "float32, 2 workers", "amp, 1 worker"))
    dots, steps = (_groups(svg, f"axes_{number}") for number in (1, 2))
    used = [
        element
        for element in dots.iter()
        if element.tag.endswith("use") and "fill-opacity: 0.55" in str(element.attrib)
    ]
    assert len(used) == len(RUNS)
    colors = {
        color
        for color in stability.COLORS
        for element in steps.iter()
        if f"stroke: {color.lower()}" in element.get("style", "")
    }
    assert len(colors) == 3


def _groups(svg, name: str) -> ElementTree.Element:
    return next(element for element in ElementTree.parse(svg).getroot().iter() if element.get("id") == name)


def test_page_gets_table_and_figure(tmp_path, capsys):
    results = RunsFile(tmp_path / "work" / "results.jsonl")
    for run in RUNS:
        results.add(run)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{stability.TABLE}\nold\n{stability.END}\nafter\n")
    assert stability.main(["--document", str(page), "--work", str(tmp_path / "work")]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert stability.table(RUNS) in text and stability.table(RUNS) in capsys.readouterr().out
    assert (tmp_path / "images" / "stability.png").is_file()
    stability.main(["--document", str(page), "--work", str(tmp_path / "work")])
    assert page.read_text() == text
    page.write_text("no place for it")
    with pytest.raises(SystemExit, match="which it lacks"):
        stability.main(["--document", str(page), "--work", str(tmp_path / "work")])


def test_runs_that_cannot_be_compared_are_rejected():
    with pytest.raises(SystemExit, match="several datasets or settings"):
        stability.table([*RUNS, RUNS[0] | {"training": "other"}])
    with pytest.raises(SystemExit, match="no run of float32, 1 worker"):
        stability.table(RUNS[:3])


def test_only_missing_seeds_are_trained(tmp_path, monkeypatch):
    launched = []

    def launch(command, **_):
        runs = json.loads((tmp_path / "runs.json").read_text())
        launched.append(
            (command[command.index("-np") + 1], [run["about"]["seed"] for run in runs], runs[0]["arguments"])
        )
        for run in runs:
            RunsFile(tmp_path / "results.jsonl").add(run["about"] | {"auc_roc": 0.5})
        return stability.subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(stability.subprocess, "run", launch)
    flags = ["--dataset_path", str(tmp_path / "data"), "--work", str(tmp_path)]
    for seeds in ("2", "3", "3"):
        stability.main([*flags, "--seeds", seeds, "--modes", "float32", "amp+xla", "--workers", "1"])
    assert [(workers, seeds) for workers, seeds, _ in launched] == [
        ("1", [0, 1]),
        ("1", [0, 1]),
        ("1", [2]),
        ("1", [2]),
    ]
    assert "--amp" not in launched[0][2] and {"--amp", "--xla"} <= set(launched[1][2])
    stability.main([*flags, "--seeds", "1", "--modes", "float32", "--workers", "2"])
    assert launched[-1][:2] == ("2", [0])
