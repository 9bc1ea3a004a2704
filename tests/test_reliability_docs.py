"""docs/reliability.md shows what the tests of faults have recorded."""

import json
import os
import re

import numpy as np
import pytest

from benchmarks import reliability
from benchmarks.harness import fill, read_lines
from benchmarks.reliability import COMMAND, LINES, PAGE, all_tables, merged
from benchmarks.reliability_overhead import unchecked
from benchmarks.synthetic_rows import write_rows
from data.errors import DataError
from data.loading.loader import ParquetLoader
from data.spec.feature_spec import FeatureSpec
from tests.faults.matrix import record, tries

ABOUT = {"machine": "a machine", "versions": {"python": "3.11"}, "command": COMMAND}


def line(fault: str, tries: int, survived: int, *seconds: float, **about: str) -> dict:
    return ABOUT | about | {"fault": fault, "tries": tries, "survived": survived, "seconds": list(seconds)}


def test_page_contains_the_tables_of_its_lines():
    page, lines = PAGE.read_text(), read_lines(LINES)
    assert page == fill(page, all_tables(lines)), "python -m benchmarks.reliability"
    assert sorted(re.findall(r"<!-- table: (\w+) -->", page)) == sorted(all_tables([]))
    assert all(line["command"] == COMMAND and line["tries"] >= line["survived"] for line in lines)


def test_counts_of_a_fault_are_added_up_per_machine():
    lines = [line("kill", 3, 3, 2.0, 1.0), line("cut", 10, 9), line("kill", 2, 2, 4.0), line("cut", 1, 1, machine="b")]
    assert all_tables(lines)["faults"].splitlines()[2:] == [
        "| kill | 5 | 5 | 2 (4) | 1 |",
        "| cut | 10 | **9** |  | 1 |",
        "| cut | 1 | 1 |  | 2 |",
    ]
    assert all_tables(lines)["machines"].splitlines()[2:] == [
        "| 1 | a machine | python 3.11 |",
        "| 2 | b | python 3.11 |",
    ]


def test_new_lines_replace_only_their_fault_and_machine():
    old = [line("kill", 3, 3), line("kill", 9, 9, machine="b"), line("cut", 10, 10)]
    new = [line("new", 1, 1), line("kill", 20, 19), line("kill", 1, 1)]
    assert merged(old, new) == [old[1], new[1], new[2], old[2], new[0]]


@pytest.mark.parametrize(("setting", "expected"), [(None, 3), ("", 3), ("quick", 3), ("whole", 20)])
def test_faults_are_tried_often_only_on_request(monkeypatch, setting, expected):
    monkeypatch.delenv("RECIPE_FAULTS", raising=False)
    if setting is not None:
        monkeypatch.setenv("RECIPE_FAULTS", setting)
    assert tries(quick=3, whole=20) == expected


def test_recorded_results_appear_on_the_page(tmp_path, monkeypatch):
    monkeypatch.delenv("RECIPE_FAULTS_LOG", raising=False)
    record("nobody asked", 1, 1)
    log, page = tmp_path / "log.jsonl", tmp_path / "page.md"
    monkeypatch.setenv("RECIPE_FAULTS_LOG", str(log))
    record("é cut", 2, 2, [0.12345])
    record("é cut", 1, 1)
    assert [json.loads(text)["seconds"] for text in log.read_text().splitlines()] == [[0.123], []]
    page.write_text("# Page\n<!-- table: faults -->\nold\n<!-- end -->\nby hand\n")
    monkeypatch.setattr(reliability, "PAGE", page)
    monkeypatch.setattr(reliability, "LINES", tmp_path / "lines.jsonl")
    for _ in range(2):
        assert reliability.main([str(log)]) == 0
        assert "| é cut | 3 | 3 | 0.123 (0.123) | 1 |\n<!-- end -->\nby hand" in page.read_text()
    assert len(read_lines(tmp_path / "lines.jsonl")) == 2


def test_cost_of_checks_is_relative_to_an_unchecked_loader(tmp_path):
    document = write_rows(tmp_path, 256).to_dict()
    document["feature_spec"]["ad_id"]["cardinality"] = 2
    loader = ParquetLoader(FeatureSpec.from_dict(document, tmp_path), "train", global_batch_size=256, shuffle=False)
    (file,) = tmp_path.glob("train*.parquet")
    content = file.read_bytes()
    with pytest.raises(DataError, match="ad_id"):
        list(loader.epoch(0))
    with unchecked():
        (before,) = loader.epoch(0)
    # A bit of the values, which the file's checksums cover and its decoder takes as they come.
    place = content.index(np.unique(before.numerical[:, 0])[0].tobytes())
    times = file.stat()
    file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(DataError, match="damaged|changed|checksum"):
        list(loader.epoch(0))
    with unchecked():
        (after,) = loader.epoch(0)
    assert (before.numerical != after.numerical).any() and (before.onehot == after.onehot).all()
