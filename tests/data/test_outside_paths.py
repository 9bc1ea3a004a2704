"""--allow_outside_paths: every tool that reads a specification has it, and says so where it is needed."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import check_dataset
import gen_csv
import gen_embedding_sizes
import transcode

COMMANDS = {
    "check_dataset": lambda folder: (check_dataset, [str(folder / "dataset")]),
    "transcode": lambda folder: (
        transcode,
        ["--input", str(folder / "dataset"), "--output", str(folder / "out")],
    ),
    "gen_csv": lambda folder: (
        gen_csv,
        ["--feature_spec_in", str(folder / "dataset/feature_spec.yaml"), "--output", str(folder / "out"), "--size=4"],
    ),
    "gen_embedding_sizes": lambda folder: (
        gen_embedding_sizes,
        ["--feature_spec_in", str(folder / "dataset/feature_spec.yaml"), "--output", str(folder / "sizes.json")],
    ),
}


def write_dataset(folder: Path, kind: str) -> None:
    """A dataset whose only file of each mapping lies beside its folder."""
    (folder / "dataset").mkdir()
    chunk = {"type": kind, "features": ["liked", "user"], "files": [f"../part.{kind}"]}
    document = {
        "feature_spec": {"liked": {}, "user": {"cardinality": 9}},
        "source_spec": {"train": [chunk], "test": [dict(chunk, files=[f"../test.{kind}"])]},
        "channel_spec": {"label": ["liked"], "onehot_categorical": ["user"]},
    }
    (folder / "dataset/feature_spec.yaml").write_text(json.dumps(document))


def write_rows(folder: Path, kind: str) -> None:
    for name in ("part", "test"):
        if kind == "csv":
            (folder / f"{name}.csv").write_text("0,1\n1,8\n")
        else:
            pq.write_table(pa.table({"liked": [0.0, 1.0], "user": [1, 8]}), folder / f"{name}.parquet")


@pytest.mark.parametrize("command", COMMANDS)
def test_outside_files_if_allowed(command: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    kind = "parquet" if command == "check_dataset" else "csv"
    write_dataset(tmp_path, kind)
    if command != "gen_csv":
        write_rows(tmp_path, kind)
    tool, arguments = COMMANDS[command](tmp_path)
    assert tool.main(arguments) == 2
    error = capsys.readouterr().err
    assert "leads out of the folder" in error and "or pass --allow_outside_paths" in error
    assert tool.main([*arguments, "--allow_outside_paths"]) == 0, capsys.readouterr()


def test_gen_csv_keeps_existing_outside_files(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_dataset(tmp_path, "csv")
    write_rows(tmp_path, "csv")
    tool, arguments = COMMANDS["gen_csv"](tmp_path)
    assert tool.main([*arguments, "--allow_outside_paths"]) == 2
    assert "already exists and is not overwritten" in capsys.readouterr().err
    assert (tmp_path / "part.csv").read_text() == "0,1\n1,8\n"
