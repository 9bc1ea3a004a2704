"""preprocess.py from and to an object store: the same bytes as on the local disk, whatever the store does."""

import random
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import preprocess
import transcode
from data.storage import remote, working_copy
from tests.helpers import ROOT
from tests.object_store import BUCKET, Faults, proxy, use

SPEC = """
feature_spec:
  click: {dtype: float32}
  item: {encode: {vocabulary: {min_count: 2}}}
  hour: {dtype: int64, cardinality: 24, encode: identity}
  user: {encode: {hash: 50}}
  ts: {dtype: timestamp, unit: s}
  seen: {history: {of: item, by: user, order: ts, where: click, last: 3}, encode: {vocabulary_of: item}}
  price: {encode: [{fill: median}, standardize]}
  picture: {pretrained: pictures.parquet, of: item}
source_spec:
  logs: [{type: csv, header: true, files: [logs/]}]
split: {from: logs, time: day, test_from: 2026-01-03}
keep: [day]
channel_spec:
  onehot_categorical: [item, hour, user]
  multihot_categorical: [seen]
  numerical: [price]
  vector: [picture]
  label: [click]
"""
KILLED_AFTER = """
import os, signal, sys
import preprocess
from data.storage import remote
put, left = remote.put, [int(sys.argv[1])]
def counted(path, url):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    put(path, url)
remote.put = counted
sys.exit(preprocess.main(sys.argv[2:]))
"""


def write_raw(folder: Path, days: list[str], seed: int, spec: str = SPEC) -> Path:
    draws = random.Random(seed)
    for day in days:
        for hour in (9, 10):
            lines = [
                f"{draws.randint(0, 1)},i{draws.randint(0, 9)},u{draws.randint(0, 5)},{seed * 1000 + row},{row / 4}\n"
                for row in range(20)
            ]
            path = folder / f"logs/day={day}/hour={hour}/part-0.csv"
            path.parent.mkdir(parents=True)
            path.write_text("click,item,user,ts,price\n" + "".join(lines))
    (folder / "logs/_SUCCESS").write_text("")
    vectors = np.random.default_rng(0).random((10, 4)).astype("float32")
    keys = [f"i{number}" for number in range(10)]
    pq.write_table(pa.table({"item": keys, "picture": vectors.tolist()}), folder / "pictures.parquet")
    (folder / "feature_spec.yaml").write_text(spec)
    return folder


def run(*arguments: object) -> int:
    return preprocess.main([str(argument) for argument in arguments])


def content(folder: Path | str, tmp_path: Path) -> dict[str, bytes]:
    """Returns the files of a local folder, or of one in the store, by name."""
    if isinstance(folder, str):
        files, copy = remote.list_files(folder), tmp_path / secrets.token_hex(4)
        for file in files:
            remote.fetch(file.url, copy / file.url.removeprefix(f"{folder}/"))
        folder = copy
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def upload(folder: Path, url: str) -> None:
    for name, path in sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*")):
        if path.is_file():
            remote.put(path, f"{url}/{name}")


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """raw, next and data, continued, encoded: the datasets of these two on the local disk."""
    folder = tmp_path_factory.mktemp("local")
    write_raw(folder / "raw", ["2026-01-01", "2026-01-02", "2026-01-03"], 1)
    write_raw(folder / "next", ["2026-01-02", "2026-01-03"], 2)
    workflow = folder / "data/workflow"
    assert run("--input", folder / "raw", "--output", folder / "data") == 0
    assert run("--extend", workflow, "--input", folder / "next", "--output", folder / "continued") == 0
    assert run("--workflow", workflow, "--input", folder / "next/logs", "--output", folder / "encoded") == 0
    return folder


@pytest.fixture
def store(server, local, monkeypatch, tmp_path):
    """Returns the URL of a folder that has raw/."""
    use(monkeypatch, server, tmp_path / "cache")
    url = f"s3://{BUCKET}/{secrets.token_hex(4)}"
    upload(local / "raw", f"{url}/raw")
    return url


def test_hive_keys_split_by_time(local):
    spec_rows = {mapping: pq.read_table(local / f"data/{mapping}_0.parquet") for mapping in ("train", "test")}
    assert {mapping: table.num_rows for mapping, table in spec_rows.items()} == {"train": 80, "test": 40}
    assert set(spec_rows["train"].column("hour").to_pylist()) == {9, 10}


@pytest.mark.parametrize("kind", ["", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("error", "cut"))])
def test_the_same_bytes_as_on_the_local_disk(server, local, store, monkeypatch, tmp_path, kind):
    faults = Faults(kind, every=10)
    upload(local / "next", f"{store}/next")
    with proxy(server, faults) as environment:
        use(monkeypatch, environment, tmp_path / "cache")
        assert run("--input", f"{store}/raw", "--output", f"{store}/data") == 0
        workflow = f"{store}/data/workflow"
        assert run("--extend", workflow, "--input", f"{store}/next", "--output", f"{store}/continued") == 0
        assert run("--workflow", workflow, "--input", f"{store}/next/logs", "--output", f"{store}/encoded") == 0
    assert faults.hit > 5 or not kind
    use(monkeypatch, server, tmp_path / "cache")
    for name in ("data", "continued", "encoded"):
        assert content(f"{store}/{name}", tmp_path) == content(local / name, tmp_path), name
    assert not list((tmp_path / "cache" / remote.DRAFTS).rglob("*.parquet"))


def without_pictures() -> str:
    return SPEC.replace("  picture: {pretrained: pictures.parquet, of: item}\n", "").replace(
        "  vector: [picture]\n", ""
    )


def test_local_and_remote_folders_mix(local, store, tmp_path):
    spec = f"{store}/spec.yaml"
    (tmp_path / "spec.yaml").write_text(without_pictures())
    remote.put(tmp_path / "spec.yaml", spec)
    glob = f"{store}/raw/logs/*/hour=*[09]/*.csv"
    assert run("--input", glob, "--feature_spec_in", spec, "--output", tmp_path / "globs") == 0
    assert run("--input", f"{store}/raw", "--feature_spec_in", spec, "--output", tmp_path / "folder") == 0
    assert content(tmp_path / "globs", tmp_path) == content(tmp_path / "folder", tmp_path)
    # Absolute URLs in a local specification.
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/feature_spec.yaml").write_text(without_pictures().replace("logs/", f"{store}/raw/logs/"))
    urls = ("--input", tmp_path / "raw", "--output", tmp_path / "urls")
    assert run(*urls) == 2
    assert run(*urls, "--allow_outside_paths") == 0
    for name, written in content(tmp_path / "urls", tmp_path).items():
        if name.endswith((".parquet", ".yaml")):
            assert written == content(tmp_path / "folder", tmp_path)[name]


def test_one_raw_file_is_on_the_disk_at_a_time(store, monkeypatch, tmp_path):
    fetch, fetched = working_copy.fetch, []

    def recording(url: str, path: Path) -> remote.RemoteFile:
        assert not any(before.exists() for before in fetched)
        fetched.append(path)
        return fetch(url, path)

    monkeypatch.setattr(working_copy, "fetch", recording)
    assert run("--input", f"{store}/raw", "--output", tmp_path / "data") == 0
    assert sum(path.name == "part-0.csv" for path in fetched) == 6
    assert not any(path.exists() for path in fetched)


def message(capsys, *arguments: object) -> str:
    capsys.readouterr()
    assert run(*arguments) == 2
    return capsys.readouterr().err


def test_mistakes(store, tmp_path, capsys):
    raw, out = f"{store}/raw", f"{store}/out"
    words = message(capsys, "--input", f"{store}/none", "--output", out)
    assert f"{store}/none/feature_spec.yaml: no such specification" in words
    spec = ("--feature_spec_in", f"{raw}/feature_spec.yaml", "--output", out)
    (tmp_path / "spec.yaml").write_text(without_pictures())
    words = message(capsys, "--input", f"{store}/none", "--feature_spec_in", tmp_path / "spec.yaml", "--output", out)
    assert f"{store}/none: no file matches 'logs/'; there are no files below {store}/none/logs" in words
    words = message(capsys, "--input", f"{raw}/logs/*.gz", *spec)
    assert (
        f"{raw}/logs/*.gz: does not exist, or holds no files; below {raw}/logs are _SUCCESS, day=2026-01-01/h" in words
    )
    assert remote.list_files(out) == []
    # What is in the store stays.
    for place, found in (
        (raw, "already contains a dataset"),
        (f"{raw}/logs", "already contains 7 files (_SUCCESS, ...)"),
    ):
        before = content(place, tmp_path)
        assert f"{place}: {found}" in message(capsys, "--input", raw, "--output", place)
        assert content(place, tmp_path) == before
    (tmp_path / "wrong.csv").write_text("click,item,user,ts,price\n1,i1,u1,5,0.5\n1,i1,u1,5,none\n")
    wrong = f"{raw}/logs/day=2026-01-03/hour=9/part-0.csv"
    remote.put(tmp_path / "wrong.csv", wrong)
    assert f"{wrong}, line 3: column 'price' is 'none'" in message(capsys, "--input", raw, "--output", out)


def test_a_store_that_stalls_is_a_failure(store, server, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(remote, "REQUEST_TIMEOUT", 1.0)
    with proxy(server, Faults("stall", 5)) as stalled:
        monkeypatch.setenv("AWS_ENDPOINT_URL", stalled["AWS_ENDPOINT_URL"])
        monkeypatch.setenv(remote.DEADLINE_VARIABLE, "30")
        assert run("--input", f"{store}/raw", "--output", tmp_path / "data") == 0  # the requests are repeated
    with proxy(server, Faults("stall", 1)) as stalled:
        monkeypatch.setenv("AWS_ENDPOINT_URL", stalled["AWS_ENDPOINT_URL"])
        monkeypatch.setenv(remote.DEADLINE_VARIABLE, "2")
        assert run("--input", f"{store}/raw", "--output", tmp_path / "more") == 1
    assert f"{store}/raw: cannot read after" in capsys.readouterr().err
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize(
    ("pattern", "written", "said"),
    [
        ("s3://b/x.csv", "spec.yaml", "--infer: reads local files; copy some of the raw files here"),
        ("x.csv", "s3://b/spec.yaml", "--write_spec: s3://b/spec.yaml is a URL; expected a path of this machine"),
    ],
)
def test_a_first_specification_is_local(capsys, pattern, written, said):
    with pytest.raises(SystemExit):
        run("--infer", pattern, "--label", "click", "--write_spec", written)
    assert said in capsys.readouterr().err


def test_credentials_are_not_printed(tmp_path, capsys):
    secret = "s3://me:hidden-key@bucket/raw"
    for arguments in (("--input", secret, "--output", "x"), ("--input", "x", "--output", secret)):
        with pytest.raises(SystemExit) as caught:
            run(*arguments)
        words = capsys.readouterr().err
        assert caught.value.code == 2
        assert "contains a user or password" in words and "hidden-key" not in words
    write_raw(tmp_path / "raw", ["2026-01-01"], 1, SPEC.replace("logs/", f"{secret}/*.csv"))
    for flags in ((), ("--allow_outside_paths",)):
        words = message(capsys, "--input", tmp_path / "raw", "--output", tmp_path / "data", *flags)
        assert "hidden-key" not in words and ("user or password" in words or "is a URL" in words)


@pytest.mark.parametrize(
    "uploaded", [3, pytest.param(1, marks=pytest.mark.slow), pytest.param(9, marks=pytest.mark.slow)]
)
def test_a_run_killed_while_it_uploads(local, store, tmp_path, uploaded, capsys):
    out = f"{store}/data"
    arguments = ["--input", str(local / "raw"), "--output", out]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AFTER, str(uploaded), *arguments], cwd=ROOT, capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = {file.url.removeprefix(f"{out}/") for file in remote.list_files(out)}
    assert 0 < len(left) <= uploaded and ".uploading.json" in left and "feature_spec.yaml" not in left
    # Nothing but what the killed run has uploaded is removed.
    (tmp_path / "mine").write_text("x")
    remote.put(tmp_path / "mine", f"{out}/mine")
    assert f"{out}: already contains 1 files (mine, ...)" in message(capsys, *arguments)
    assert remote.exists(f"{out}/mine")
    remote.delete(f"{out}/mine")
    assert run(*arguments) == 0
    assert content(out, tmp_path) == content(local / "data", tmp_path)
    assert not list((tmp_path / "cache" / remote.DRAFTS).rglob("*.parquet"))


def test_transcode_to_a_store(store, tmp_path):
    chunk = "[{type: csv, features: [click, item], files: [rows/*.csv]}]"
    document = f"""
feature_spec: {{click: {{}}, item: {{cardinality: 100}}}}
source_spec: {{train: {chunk}, test: {chunk}}}
channel_spec: {{onehot_categorical: [item], label: [click]}}
"""
    (tmp_path / "csv/rows").mkdir(parents=True)
    (tmp_path / "csv/feature_spec.yaml").write_text(document)
    for number in (1, 2):
        (tmp_path / f"csv/rows/{number}.csv").write_text(f"1,{number}\n0,{number + 10}\n")
    for output in (tmp_path / "local", f"{store}/transcoded"):
        assert transcode.main(["--input", str(tmp_path / "csv"), "--output", str(output)]) == 0
    assert content(f"{store}/transcoded", tmp_path) == content(tmp_path / "local", tmp_path)
