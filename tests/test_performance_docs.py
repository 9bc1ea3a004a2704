"""docs/performance.md says what was measured, and the benchmarks behind it count right."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.embedding_step import CASES, limit_bytes, limit_of, over_turns, write_case
from benchmarks.embedding_worker import batch_of, layout_of
from benchmarks.exchange_bytes import CountingComm
from benchmarks.harness import fill, read_lines, write_lines
from benchmarks.performance import COMMANDS, GPU_LINES, LINES, PAGE, in_order, lines_shown
from benchmarks.performance_tables import FIGURES, all_tables
from benchmarks.side_process import SideProcess, peak_bytes
from benchmarks.step_speed import step_flops
from benchmarks.synthetic_rows import write_rows
from data.loading.loader import ParquetLoader
from tests.helpers import ROOT, environment
from tests.trainer.local_workers import run_workers

STEP = {
    "benchmark": "training step over bare products",
    "machine": "a machine",
    "versions": {"python": "3.11", "tensorflow": "2.21.0"},
    "command": "python -m benchmarks.step_speed",
    "variant": "float32",
    "samples_per_second": 12345,
    "ratio": 0.84,
    "ratio_spread": [0.8, 0.9],
}


def test_page_contains_the_tables_of_its_lines():
    page = PAGE.read_text()
    assert page == fill(page, all_tables(lines_shown())), "python -m benchmarks.performance --tables"
    assert sorted(re.findall(r"<!-- table: (\w+) -->", page)) == sorted(all_tables([]))


def test_every_line_says_where_and_how_it_was_measured():
    lines = read_lines(LINES)
    assert all(line["benchmark"] == "gpu" and not line["small"] for line in read_lines(GPU_LINES))
    for line in lines:
        assert line["benchmark"] and line["machine"] and {"python", "numpy"} <= line["versions"].keys()
        assert line["command"] in COMMANDS.values()
    shown = [figure.what for figure in FIGURES if figure.lines(lines)]
    assert len(shown) == len(FIGURES) - all_tables(lines)["figures"].count("not measured") > 0


@pytest.mark.parametrize(("ratio", "holds"), [(0.84, "**no**"), (0.85, "yes")])
def test_row_of_the_figures(ratio, holds):
    (row,) = [row for row in all_tables([STEP | {"ratio": ratio}])["figures"].splitlines() if "0.8 to" in row]
    assert row.split(" | ")[1:] == ["≥ 0.85", f"{ratio:g} (0.8 to 0.9)", holds, "1", f"`{STEP['command']}` |"]


def test_smaller_figures_apply_to_smaller_requests():
    line = STEP | {"benchmark": "memory over its estimate, all", "configurations": 8, "largest_deviation": 0.16}
    assert "| ≤ 0.15 | 0.16 | **no** |" in all_tables([line])["figures"]
    assert "| ≤ 0.15 | 0.15 | yes |" in all_tables([line | {"largest_deviation": 0.15}])["figures"]


def test_machines_differ_and_missing_figures_are_named():
    tables = all_tables([STEP, STEP | {"machine": "another"}])
    assert tables["machines"].splitlines()[2:] == [
        "| 1 | a machine | python 3.11, tensorflow 2.21.0 |",
        "| 2 | another | python 3.11, tensorflow 2.21.0 |",
    ]
    assert [row[-5:] for row in tables["step"].splitlines()[2:]] == ["| 1 |", "| 2 |"]
    assert tables["step"].count("12,345") == 2
    assert tables["figures"].count("not measured") == len(FIGURES) - 1


def test_lines_of_removed_benchmarks_are_dropped(tmp_path):
    memory = STEP | {"command": COMMANDS["memory"]}
    lines = [memory, STEP | {"command": "python -m benchmarks.gone"}, STEP]
    write_lines(tmp_path / "lines.jsonl", in_order(lines))
    assert read_lines(tmp_path / "lines.jsonl") == [STEP, memory]


@pytest.mark.slow
def test_a_benchmark_prints_lines_of_json():
    command = [sys.executable, "-m", "benchmarks.loader_speed", "--rows", "3000", "--batch", "256", "--repeats", "2"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert all({"benchmark", "machine", "versions", "command"} <= line.keys() for line in lines)
    first = lines[0]
    assert first["command"] == "python " + " ".join(command[1:])
    assert first["rows"] == 3000 and first["ratio_spread"][0] <= first["ratio"] <= first["ratio_spread"][1]


def test_grown_dataset_keeps_widths_and_skew(tmp_path):
    means = []
    for growth in (1, 4):
        folder = tmp_path / str(growth)
        folder.mkdir()
        spec = write_rows(folder, 4096, test_rows=512, growth=growth, width_divisor=2)
        assert [feature.embedding_dim for feature in (*spec.onehot, *spec.multihot)] == [64, 64, 10, 64, 64] + [32] * 11
        cardinalities = np.array([feature.cardinality for feature in spec.onehot])
        (batch,) = ParquetLoader(spec, "train", global_batch_size=4096, shuffle=False).epoch(0)
        means.append((batch.onehot / cardinalities).mean(axis=0))
        test = ParquetLoader(spec, "test", global_batch_size=512, shuffle=False, with_group=True)
        assert len(next(iter(test.epoch(0))).group) == 512
    assert spec.features["ad_id"].cardinality == 4 * 250_000
    # The mean of uniform ** 3 is 1/4; a small cardinality (platform's 4) rounds it down.
    assert np.abs(means[0] - 0.25)[[0, 1, 3]].max() < 0.02
    assert np.abs(means[0] - means[1])[[0, 1, 3]].max() < 0.03


def test_flops_of_a_step():
    # A product of [8, 5] and [5, 3] takes 2 * 8 * 5 * 3 FLOPs, and so do the gradients of its two factors.
    assert step_flops(8, (5, 3, 1)) == 3 * (2 * 8 * 5 * 3) + 3 * (2 * 8 * 3 * 1)


def test_bytes_of_an_embedding_step():
    ids = np.array(
        [[[7], [0]], [[7], [1]], [[2], [7]]]
    )  # 6 ids: 7 and 2 of the first feature, 0, 1 and 7 of the second
    looked_up = 6 * (4 + 1)  # values: rows of width 4 and a wide weight for each id; gradients take as many
    updated, state = 5 * (4 + 1), 5 * (4 + 1 + 2)
    assert limit_bytes(ids, width=4) == 4 * (6 + looked_up + looked_up + updated + state)


def test_share_of_the_limit():
    steps = np.array([1.0, 2.0, 4.0])
    limits = np.array([[0.25, 0.0001], [0.25, 0.0002], [0.5, 0.0001]])  # seconds of the products and per byte, by turn
    found = limit_of(CASES["criteo"], 2500, steps, limits)
    assert (found["share_of_limit"], found["share_of_limit_spread"]) == (0.38, [0.19, 0.5])  # of 1/2, 3/8, 3/16
    assert (found["bare_ms"], found["moved_ms"]) == (250, 250)
    assert over_turns("ratio", steps) == {"ratio": 2, "ratio_spread": [1, 4]}


def test_both_sides_train_on_the_same_lists(tmp_path):
    rows_file, shape_file = write_case(CASES["lists"], tmp_path)
    rows, shape = dict(np.load(rows_file)), json.loads(shape_file.read_text())
    ids = rows["ids"][0]
    assert ids.shape == (4096, 20, 8) and ids.min() >= 0 and ids.max() < 50_000 == shape["cardinalities"][0]
    layout = layout_of(shape["cardinalities"], shape["width"], numbers=0, max_hotness=100)
    found = batch_of(ids, rows["numbers"][0], rows["labels"][0], has_lists=True).ids
    assert found.onehot.shape == (4096, 0) and len(layout.categorical) == 20
    for index in range(20):
        lists = found.id_lists.select([index])
        assert (lists.lengths == 8).all()
        np.testing.assert_array_equal(lists.values.reshape(-1, 8), ids[:, index])


def test_side_that_ends_early_is_named():
    program = (
        "import json; print(json.dumps({'ready': 1}), flush=True); print(json.loads(input())['steps'] + 1, flush=True)"
    )
    with SideProcess("a side", [sys.executable, "-c", program]) as side:
        assert side.ready == {"ready": 1} and side.peak_gb() > 0
        assert side.ask(steps=2) == 3
        with pytest.raises(RuntimeError, match="a side ended with 0"):
            side.ask(steps=2)


def test_bytes_sent_are_those_of_a_ring():
    import tensorflow as tf

    def work(worker):
        comm = CountingComm(worker)
        comm.sum_tensors([tf.zeros((4, 5)), tf.zeros(2)])
        gathered = comm.gather_tensors([tf.ones((worker.rank + 1, 2), tf.int32)])
        return comm.total(), comm.size, gathered[0].shape.as_list()

    totals, sizes, shapes = zip(*run_workers(3, work), strict=True)
    assert sizes == (3, 3, 3) and shapes == ([6, 2],) * 3
    for rank, total in enumerate(totals):
        # A ring of 3: reduced and spread in 2 rounds each, a third of 22 floats per round; own rows go to 2 others.
        assert total == pytest.approx({"sum": 4 * 22 / 3 * 4, "gather": 2 * (rank + 1) * 2 * 4})


def test_unknown_collective_is_counted():
    def work(worker):
        with pytest.raises(AttributeError, match="scatter_rows.*add 'scatter'"):
            worker.scatter_rows = lambda rows: rows
            CountingComm(worker).scatter_rows([1])

    run_workers(1, work)


def test_peak_memory_of_a_command_is_its_own():
    """Not that of the process that measures it, which Linux would count as the command's."""
    held = np.ones(100_000_000)  # 800 MB
    assert 200e6 < peak_bytes([sys.executable, "-c", "bytearray(200_000_000)"]) < 300e6
    assert held[-1] == 1
