"""Delimited text files in blocks of lines."""

import gzip

import pytest

from data.raw.text_tables import TextForm, read_text_blocks


@pytest.mark.parametrize("block_bytes", [1, 2, 7, 16, 1000])
@pytest.mark.parametrize("end", ["", "\n", "\r\n\n\n"])
@pytest.mark.parametrize("header", ["", "a,b\r\n"])
def test_lines_are_the_same_whatever_the_blocks(tmp_path, block_bytes, end, header):
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzip.compress(f"{header}1,one\r\n22,\n3,three hundred{end}".encode()))
    form = TextForm("x.csv", ",", ("a", "b"), has_header=bool(header))
    blocks = list(read_text_blocks(path, form, block_bytes))
    rows = [row for block in blocks for row in block.texts.to_pylist()]
    assert rows == [{"a": "1", "b": "one"}, {"a": "22", "b": ""}, {"a": "3", "b": "three hundred"}]
    lines = [block.line(row) for block in blocks for row in range(block.texts.num_rows)]
    assert lines == [number + bool(header) for number in (1, 2, 3)]
    assert len(blocks) == 1 or block_bytes < 30
