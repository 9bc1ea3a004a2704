"""What benchmarks/stability.py computes and draws."""

import itertools
import json
import struct
import xml.etree.ElementTree as ElementTree
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import stability
from benchmarks.kolmogorov_smirnov import ks_test
from benchmarks.results import Results

VALUES = st.lists(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 3.0]) | st.floats(-2, 2), min_size=1, max_size=5)


def distance(first: list[float], second: list[float]) -> Fraction:
    """The largest difference between two shares of values at or below any point."""
    return max(
        abs(
            Fraction(sum(value <= point for value in first), len(first))
            - Fraction(sum(value <= point for value in second), len(second))
        )
        for point in [*first, *second]
    )


@settings(max_examples=150, deadline=None)
@given(VALUES, VALUES)
def test_the_p_value_is_the_share_of_all_deals_of_the_values_that_are_as_far_apart(first, second):
    pooled, found = [*first, *second], distance(first, second)
    deals = list(itertools.combinations(range(len(pooled)), len(first)))
    as_far = 0
    for deal in deals:
        others = [value for place, value in enumerate(pooled) if place not in deal]
        as_far += distance([pooled[place] for place in deal], others) >= found
    test = ks_test(first, second)
    assert test.statistic == pytest.approx(float(found), abs=1e-15)
    assert test.p_value == pytest.approx(as_far / len(deals), abs=1e-12)


def test_samples_of_a_size_that_brute_force_cannot_reach():
    # Two samples of n that do not overlap: two of the deals are as far apart.
    assert ks_test(range(100), range(100, 200)).p_value == pytest.approx(
        2 / 90548514656103281165404177077484163874504589675413336841320
    )
    random = np.random.default_rng(1)
    first, second = random.normal(size=400), random.normal(0.3, size=300)
    test = ks_test(first, second)
    pooled = np.concatenate([first, second])
    as_far, deals = 0, 4000
    for _ in range(deals):
        dealt = random.permutation(pooled)
        points = np.sort(dealt)
        shares = [np.searchsorted(np.sort(part), points, "right") / len(part) for part in (dealt[:400], dealt[400:])]
        as_far += np.abs(shares[0] - shares[1]).max() >= test.statistic - 1e-12
    assert as_far / deals == pytest.approx(test.p_value, abs=5 * np.sqrt(test.p_value / deals) + 1e-3)


@pytest.mark.parametrize(("first", "second"), [([], [1.0]), ([1.0], [float("nan")])])
def test_samples_that_say_nothing_are_refused(first, second):
    with pytest.raises(ValueError, match="at least one value, and no NaN"):
        ks_test(first, second)


def runs_of(values: dict[tuple[str, int], list[float]]) -> list[dict]:
    return [
        {"mode": mode, "workers": workers, "seed": seed, "dataset": "d", "training": "t", "auc_roc": value}
        for (mode, workers), of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
    ]


RUNS = runs_of({("amp", 1): [0.75, 0.5, 0.25], ("float32", 2): [0.5, 1.0], ("float32", 1): [0.5, 0.625, 0.75]})


def test_the_table_tells_each_configuration_and_compares_it_with_float32_on_one_worker():
    lines = [[cell.strip() for cell in line.split("|")[2:-1]] for line in stability.table(RUNS).splitlines()[2:]]
    assert lines == [
        ["float32, 1 worker", "3", "0.62500", "0.12500", "0.50000", "0.75000", "", ""],
        ["float32, 2 workers", "2", "0.75000", "0.35355", "0.50000", "1.00000", "0.500", "0.8"],
        ["amp, 1 worker", "3", "0.50000", "0.25000", "0.25000", "0.75000", "0.333", "1"],
    ]


def test_the_picture_has_a_dot_per_run_and_a_curve_per_configuration(tmp_path):
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
    colours = {
        colour
        for colour in stability.COLORS
        for element in steps.iter()
        if f"stroke: {colour.lower()}" in element.get("style", "")
    }
    assert len(colours) == 3


def _groups(svg, name: str) -> ElementTree.Element:
    return next(element for element in ElementTree.parse(svg).getroot().iter() if element.get("id") == name)


def test_the_page_gets_table_and_picture_and_keeps_its_words(tmp_path, capsys):
    results = Results(tmp_path / "work" / "results.jsonl")
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


def test_runs_that_cannot_be_compared_are_not():
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
            Results(tmp_path / "results.jsonl").add(run["about"] | {"auc_roc": 0.5})
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
