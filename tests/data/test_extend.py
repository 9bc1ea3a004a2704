"""preprocess.py --extend from day to day: what goes on, what stays, and what mistakes say."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import check_dataset
import preprocess
from data.encoding.encoder_files import load_encoders
from data.preprocess.engine import Resources
from tests.data.test_preprocess import content, read_mapping, run
from tests.helpers import ROOT

SPEC = """
feature_spec:
  click: {dtype: float32}
  user: {encode: vocabulary}
  item_id: {column: item, encode: {vocabulary: {min_count: 2}}}
  code: {dtype: int64, cardinality: 100, encode: identity}
  ts: {dtype: timestamp, unit: s}
  last: {history: {of: code, by: user, order: ts, where: click, last: 3}, encode: identity, cardinality: 100}
  seen: {count: {of: item, by: user, order: ts}}
  both: {encode: {cross: [user, item_id], vocabulary: {}}}
  price: {encode: [{fill: median}, standardize]}
  rate: {column: item, encode: {target: {label: click, folds: 2, outputs: [rate_mean, rate_count]}}}
source_spec:
  logs: [{type: csv, header: true, files: ["*.csv"]}]
split: {from: logs, last: {test: 0.25}}
keep: [item]
channel_spec:
  onehot_categorical: [user, item_id, code, both]
  multihot_categorical: [last]
  numerical: [price, rate_mean, rate_count, seen]
  label: [click]
"""
HEADER = "click,user,item,code,ts,price\n"


def write_day(folder: Path, day: int, spec: str | None = None, name: str = "log") -> None:
    draws = random.Random(day)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for row in range(80):
        user, item, price = draws.randint(day, day + 6), draws.randint(3 * day, 3 * day + 6), draws.randint(1, 9) * day
        lines.append(f"{draws.randint(0, 1)},u{user},i{item},{item},{1000 * day + row},{price}\n")
    (folder / f"{name}{day}.csv").write_text(HEADER + "".join(lines))
    if spec is not None:
        (folder / "feature_spec.yaml").write_text(spec)


@pytest.fixture(scope="module")
def days(tmp_path_factory) -> Path:
    """raw/1 to raw/3, and data/1 to data/3 of them; values unseen for a day are retired."""
    folder = tmp_path_factory.mktemp("days")
    for day in (1, 2, 3):
        write_day(folder / f"raw/{day}", day, SPEC if day == 1 else None)
    assert run("--input", folder / "raw/1", "--output", folder / "data/1") == 0
    for day in (2, 3):
        assert extend(folder, day, folder / f"data/{day}", "--retire_after", 1) == 0
    return folder


def extend(folder: Path, day: int, output: Path, *more: object) -> int:
    before = folder / f"data/{day - 1}/workflow"
    return run("--extend", before, "--input", folder / f"raw/{day}", "--output", output, *more)


def test_ids_of_days(days):
    first, second, third = (load_encoders(days / f"data/{day}/workflow") for day in (1, 2, 3))
    for old, new in ((first, second), (second, third)):
        values = new["item_id"].values.to_pylist()
        for place, value in enumerate(old["item_id"].values.to_pylist()):
            assert values[place] in (value, None)  # crossed: ids that became free stay so
        assert len(values) > len(old["item_id"].values)
        retired = sorted(set(old["item_id"].known_values.to_pylist()) - set(values))
        assert retired and set(new["item_id"].encode(retired).tolist()) == {2}
    for day in (2, 3):
        encoder = load_encoders(days / f"data/{day}/workflow")["item_id"]
        for mapping in ("train", "test"):
            table = read_mapping(days / f"data/{day}", mapping)
            assert table.column("item_id").to_pylist() == encoder.encode(table.column("item")).tolist()
            free = np.flatnonzero(np.asarray(encoder.values.is_null())) + encoder.first_known_id
            assert not set(table.column("item_id").to_pylist()) & set(free.tolist())


def test_datasets_are_valid_and_new_rows_are_encoded_alike(days, tmp_path):
    assert check_dataset.main([str(days / "data/3")]) == 0
    raw, data = days / "raw/3", days / "data/3"
    assert run("--workflow", data / "workflow", "--input", raw, "--output", tmp_path / "new") == 0
    new = read_mapping(tmp_path / "new", "test")
    for name in ("user", "item_id", "both", "code", "price", "rate_mean"):
        both = [read_mapping(data, mapping).column(name).to_pylist() for mapping in ("train", "test")]
        assert new.column(name).to_pylist() == both[0] + both[1], name


def test_blocks_change_no_bit(days, tmp_path, monkeypatch):
    monkeypatch.setattr(Resources, "block_rows", lambda *_: 7)
    monkeypatch.setattr(Resources, "state_bytes", lambda *_: 0)
    assert extend(days, 3, tmp_path / "data", "--retire_after", 1) == 0
    assert content(tmp_path / "data") == content(days / "data/3")


def test_histories_of_two_days_are_those_of_one_run(days, tmp_path):
    for day in (1, 2):
        write_day(tmp_path / "raw", day, SPEC)
    assert run("--input", tmp_path / "raw", "--output", tmp_path / "data") == 0
    for name in ("last", "seen"):
        together, apart = (
            pa.concat_tables(read_mapping(dataset, mapping).select([name]) for mapping in ("train", "test"))
            for dataset in (tmp_path / "data", days / "data/2")
        )
        assert together.slice(80).to_pylist() == apart.to_pylist()
        assert together.slice(0, 80).to_pylist() != apart.to_pylist()


def steps(dataset: Path, name: str) -> tuple:
    return load_encoders(dataset / "workflow")[name].steps


def test_scalers_and_target_statistics(days, tmp_path):
    first, kept, updated = days / "data/1", days / "data/2", tmp_path / "updated"
    assert extend(days, 2, updated, "--scalers", "update") == 0
    write_day(tmp_path / "raw", 2, SPEC)
    assert run("--input", tmp_path / "raw", "--output", tmp_path / "alone") == 0
    for name in ("price", "rate_mean", "rate_count"):
        assert steps(kept, name) == steps(first, name)
        assert steps(updated, name) == steps(tmp_path / "alone", name) != steps(first, name)
    statistics = load_encoders(first / "workflow")["rate_mean"]
    train = read_mapping(kept, "train")
    assert train.column("rate_mean").to_pylist() == statistics.encode(train.column("item")).tolist()
    fitted = [read_mapping(dataset, "train").column("rate_mean") for dataset in (updated, tmp_path / "alone")]
    assert fitted[0].equals(fitted[1])


def test_the_command_of_two_days(tmp_path):
    for day in (1, 2):
        write_day(tmp_path / f"raw/{day}", day, SPEC if day == 1 else None)
    outputs = []
    for arguments in (
        ["--input", "raw/1", "--output", "data/1"],
        ["--extend", "data/1/workflow", "--input", "raw/2/log2.csv", "--output", "data/2"],
    ):
        command = [sys.executable, str(ROOT / "preprocess.py"), *arguments]
        outputs.append(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True))
    old, new = (load_encoders(tmp_path / f"data/{day}/workflow")["user"] for day in (1, 2))
    known, values = old.values.to_pylist(), new.values.to_pylist()
    assert values[: len(known)] == known and len(values) > len(known)
    seen = sum(number == 0 for number in new.unseen_for[: len(known)])
    assert (
        f"vocabulary of user: {len(known)} known, {seen} of them seen again; {len(values) - len(known)} new, "
        f"0 of them on reused ids; 0 retired; {len(values)} in all, {len(values) + 3} ids"
    ) in outputs[1].stderr


def test_a_changed_specification(days, tmp_path, capsys):
    write_day(tmp_path / "raw", 2)
    spec = SPEC.replace("last: 3}", "last: 2}").replace("user: {encode: vocabulary}", "user: {encode: {hash: 9}}")
    spec = spec.replace("by: user, order: ts}}", "order: ts, by: item}}").replace("  both: ", "  pair: ")
    (tmp_path / "raw/feature_spec.yaml").write_text(spec.replace("code, both]", "code, pair]"))
    more = ("--extend", days / "data/1/workflow", "--input", tmp_path / "raw", "--output", tmp_path / "data")
    assert run(*more) == 0
    said = capsys.readouterr().err
    for line in (
        "user: its encoding or its input has changed; refitted",
        "pair: is new; refitted",
        "both: is no longer in the specification; dropped",
        "seen: has no earlier rows to continue from; begins with these rows",
    ):
        assert line in said
    assert "last: " not in said
    train = read_mapping(tmp_path / "data", "train")
    before = read_mapping(days / "data/2", "train")
    assert train.column("last").to_pylist() == [row[-2:] for row in before.column("last").to_pylist()]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--retire_after", "1"), "--retire_after: needs --extend DIR"),
        (("--scalers", "keep"), "--scalers: needs --extend DIR"),
        (("--extend", "x", "--workflow", "x"), "remove one of them"),
        (("--extend", "x", "--keep", "item"), "--keep is only for new rows"),
        (("--extend", "x", "--retire_after", "0"), "--retire_after"),
    ],
)
def test_flags_that_contradict(more, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        preprocess.main(["--input", str(tmp_path), "--output", str(tmp_path / "data"), *more])
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def copied(days: Path, tmp_path: Path) -> Path:
    workflow = tmp_path / "old/workflow"
    workflow.mkdir(parents=True)
    for path in (days / "data/1/workflow").iterdir():
        (workflow / path.name).write_bytes(path.read_bytes())
    return workflow


def test_mistakes_leave_nothing(days, tmp_path, capsys):
    output, workflow = tmp_path / "data", copied(days, tmp_path)

    def said(extended: Path, into: Path = output) -> str:
        assert run("--extend", extended, "--input", days / "raw/2", "--output", into) == 2
        return capsys.readouterr().err

    assert "holds no raw_spec.json; give the folder workflow/" in said(tmp_path / "nowhere")
    assert f"holds no raw_spec.json; write {workflow}" in said(workflow.parent)
    assert "which this run has read as --extend; choose another path" in said(workflow, workflow)
    assert "which this run has read as --extend; choose another path" in said(workflow, workflow.parent)
    for name in ("history.last.parquet", "vocabulary.user.parquet"):
        whole = (workflow / name).read_bytes()
        (workflow / name).write_bytes(whole[:-1])
        assert f"{workflow / name}: has {len(whole) - 1:,} bytes, expected {len(whole):,}" in said(workflow)
        (workflow / name).write_bytes(whole)
    (workflow / "raw_spec.json").unlink()
    assert "holds no raw_spec.json" in said(workflow)
    assert not output.exists() and not (workflow.parent / "feature_spec.yaml").exists()


def test_a_stored_specification_of_several_sources(tmp_path, capsys):
    several = (
        SPEC.split("source_spec:")[0]
        + """source_spec:
  train: [{type: csv, header: true, files: ["train*.csv"]}]
  test: [{type: csv, header: true, files: ["test*.csv"]}]
"""
        + SPEC[SPEC.index("keep:") :]
    )
    for day in (1, 2):
        write_day(tmp_path / f"raw/{day}", day, several if day == 1 else None, "train")
        write_day(tmp_path / f"raw/{day}", day, None, "test")
    assert run("--input", tmp_path / "raw/1", "--output", tmp_path / "data/1") == 0
    assert extend(tmp_path, 2, tmp_path / "data/2") == 0
    assert (
        read_mapping(tmp_path / "data/2", "train").num_rows == read_mapping(tmp_path / "data/2", "test").num_rows == 80
    )
    stored = json.loads((tmp_path / "data/2/workflow/raw_spec.json").read_text())
    assert set(stored["source_spec"]) == {"train", "test"}
    file = tmp_path / "raw/2/train2.csv"
    assert run("--extend", tmp_path / "data/1/workflow", "--input", file, "--output", tmp_path / "data/3") == 2
    assert "source_spec has train, test; give the folder of the files" in capsys.readouterr().err
