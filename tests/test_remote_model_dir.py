"""main.py and export.py with --model_dir, predictions and the export in an object store."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import export
from data.storage import remote
from data.storage.remote import join, mirror_of
from main import main
from tests.helpers import ROOT, make_dataset, metrics, must, run_program, words
from tests.object_store import SECRET
from tests.trainer.test_warm_start import make_day
from trainer.checkpoint.store import CheckpointStore
from trainer.cli import parse
from trainer.default_paths import path_in
from trainer.lifecycle.errors import DONE, NO_CHECKPOINT, WRONG_INPUT

FLAGS = words(
    "--deep_hidden_units 8 --global_batch_size 64 --eval_batch_size 100 --cpu --deterministic --recipe published "
    "--checkpoint_every 3 --deep_schedule constant --deep_learning_rate 0.01 --deep_warmup_epochs 0"
)


@pytest.fixture
def url(store):
    return f"{store}/run"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), ROOT / "feature_specs" / "tiny.yaml", rows=300)


def command(data: Path, model_dir: str | Path, results: Path, *more: str) -> list[str]:
    places = {"--dataset_path": data, "--model_dir": model_dir, "--results_dir": results}
    return [*(str(part) for place in places.items() for part in place), *FLAGS, *more]


def arrays(model_dir: Path) -> dict[str, np.ndarray]:
    checkpoint = CheckpointStore(model_dir).open("last")
    return {name: checkpoint.read(name) for name in checkpoint.arrays}


def wipe() -> None:
    shutil.rmtree(remote.cache_dir())


def assert_equal_runs(url: str, local: Path, results: tuple[Path, Path]) -> None:
    store = CheckpointStore(mirror_of(url))
    store.refresh()
    found, expected = arrays(mirror_of(url)), arrays(local)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert metrics(results[0]) == metrics(results[1])


def test_a_run_in_the_store_equals_a_local_one(url, data, tmp_path, capfd):
    local, results = tmp_path / "local", tmp_path / "results"
    must(main(command(data, local, tmp_path / "local results", "--num_epochs", "2")))
    # Two epochs with another machine in between.
    must(main(command(data, url, results, "--num_epochs", "1")))
    wipe()
    assert main(command(data, url, results, "--num_epochs", "2")) == WRONG_INPUT
    assert f"{url}/checkpoints holds the checkpoints of an earlier run" in capfd.readouterr().err
    other = make_dataset(tmp_path / "other", ROOT / "feature_specs" / "tiny.yaml", rows=200)
    assert main(command(other, url, results, "--num_epochs", "2", "--use_checkpoint")) == WRONG_INPUT
    assert f"in a new run, with --warm_start {url} and another --model_dir" in capfd.readouterr().err
    must(main(command(data, url, results, "--num_epochs", "2", "--use_checkpoint")))
    wipe()
    assert_equal_runs(url, local, (results, tmp_path / "local results"))
    assert json.loads((results / "args.json").read_text())["model_dir"] == url

    # Predictions by the run of the store, written to the store, on another machine; then again, over those.
    must(main(command(data, local, tmp_path / "r", "--predict", str(tmp_path / "local.parquet"))))
    for _ in range(2):
        wipe()
        must(main(command(data, url, tmp_path / "r", "--predict", join(url, "out.parquet"))))
    remote.fetch(join(url, "out.parquet"), tmp_path / "stored.parquet")
    assert (tmp_path / "stored.parquet").read_bytes() == (tmp_path / "local.parquet").read_bytes()
    assert not list(remote.cache_dir().rglob("out.parquet"))
    (tmp_path / "note").write_text("a note")
    remote.put(tmp_path / "note", join(url, "note.csv"))
    assert main(command(data, url, tmp_path / "r", "--predict", join(url, "note.csv"))) == WRONG_INPUT

    # Evaluation of a checkpoint that a URL names, and an export of the model.
    wipe()
    at_last = ["--checkpoint", join(url, "checkpoints"), "--evaluate"]
    must(main(command(data, url, tmp_path / "evaluated", *at_last)))
    at_last[1] = str(local)
    must(main(command(data, local, tmp_path / "evaluated locally", *at_last)))
    assert metrics(tmp_path / "evaluated") == metrics(tmp_path / "evaluated locally")
    wipe()
    flags = ["--model_dir", url, "--output", join(url, "served"), "--format", "savedmodel"]
    assert export.main(flags) == DONE
    names = {file.url[len(url) + 1 :] for file in remote.list_files(join(url, "served"))}
    assert {"served/saved_model.pb", "served/variables/variables.index", "served/export.json"} <= names
    assert export.main(flags) == WRONG_INPUT
    printed = capfd.readouterr()
    assert f"--output {url}/served: already exists; remove it" in printed.err
    # An upload that is killed before its last file.
    remote.delete(join(url, "served/export.json"))
    assert export.main(flags) == WRONG_INPUT
    again = capfd.readouterr()
    assert f"--output {url}/served: has files but no export.json, as an interrupted upload leaves it" in again.err
    assert SECRET not in "".join((*printed, *again))


@pytest.mark.parametrize(("part", "line"), [("", "warm start"), ("model", "no state of the optimizer")])
def test_a_warm_start_from_the_store_equals_a_local_one(url, tmp_path, capfd, part, line):
    """On another machine, from a run and from its model folder; rows are matched by the encoders in the store."""
    monday, tuesday = make_day(tmp_path / "monday", 0), make_day(tmp_path / "tuesday", 100, seed=1)
    must(main(command(monday, url, tmp_path / "r", "--num_epochs", "1")))
    must(main(command(monday, tmp_path / "first", tmp_path / "r", "--num_epochs", "1")))
    wipe()
    capfd.readouterr()
    for name, start in (("far", join(url, part) if part else url), ("near", tmp_path / "first" / part)):
        more = ["--num_epochs", "1", "--warm_start", str(start)]
        more += [] if part else ["--warm_start_checkpoint", f"{start}/checkpoints"]
        must(main(command(tuesday, tmp_path / name, tmp_path / f"{name} results", *more)))
    found, expected = arrays(tmp_path / "far"), arrays(tmp_path / "near")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert metrics(tmp_path / "far results") == metrics(tmp_path / "near results")
    raw = tmp_path / "tuesday/raw/logs.csv"
    remote.put(raw, join(url, "new/logs.csv"))
    for name, file in (("far", join(url, "new/logs.csv")), ("near", raw)):
        predict = ["--raw", str(file), "--predict", str(tmp_path / f"{name}.csv")]
        must(main(command(tuesday, tmp_path / name, tmp_path / "r", *predict)))
    assert (tmp_path / "far.csv").read_bytes() == (tmp_path / "near.csv").read_bytes()
    printed = capfd.readouterr()
    assert printed.out.count(line) == 2 and printed.out.count("item ") >= 2
    assert SECRET not in printed.out + printed.err


def test_a_warm_start_from_nothing_names_the_url(url, data, tmp_path, capfd):
    assert main(command(data, tmp_path / "m", tmp_path / "r", "--warm_start", url)) == NO_CHECKPOINT
    assert f"--warm_start {url}: has neither checkpoints of a run nor a model" in capfd.readouterr().err


def test_without_a_checkpoint_the_url_is_named(url, data, tmp_path, capfd):
    assert main(command(data, url, tmp_path / "results", "--evaluate")) == NO_CHECKPOINT
    assert f"no checkpoint in {url}/checkpoints" in capfd.readouterr().err


@pytest.mark.parametrize("flag", ["--results_dir", "--importance", "--tensorboard_dir", "--embedding_sizes_file"])
def test_what_stays_local_rejects_urls(flag):
    with pytest.raises(ValueError, match=f"{flag}: s3://b/x is a URL; expected a path of this machine"):
        parse([flag, "s3://b/x"], 1)


def test_urls_become_their_mirrors(monkeypatch, tmp_path):
    monkeypatch.setenv("RECIPE_CACHE_DIR", str(tmp_path))
    config = parse(["--model_dir", "s3://b/runs/1", "--dataset_path", "d"], 1)
    assert config.data.model_dir == tmp_path / "s3" / "b" / "runs" / "1"
    assert path_in(["--model_dir", "s3://b/runs/1"], "model_dir") == config.data.model_dir
    with pytest.raises(ValueError, match="user or password"):
        parse(["--model_dir", "s3://user:word@b/runs"], 1)


@pytest.mark.slow
def test_two_workers_train_into_the_store(url, data, tmp_path):
    flags = ["main.py", *command(data, url, tmp_path / "results", "--num_epochs", "1")]
    done = run_program(flags, workers=2)
    assert done.returncode == 0, done.stderr
    wipe()
    done = run_program([*flags[:-1], "2", "--use_checkpoint"], workers=2)
    assert done.returncode == 0, done.stderr
    local = ["main.py", *command(data, tmp_path / "local", tmp_path / "local results", "--num_epochs", "2")]
    assert run_program(local, workers=2).returncode == 0
    wipe()
    assert_equal_runs(url, tmp_path / "local", (tmp_path / "results", tmp_path / "local results"))
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.slow
def test_supervised_jobs_resume_from_the_store(url, data, tmp_path):
    first = run_program(["main.py", *command(data, url, tmp_path / "results", "--num_epochs", "1")])
    assert first.returncode == 0, first.stderr
    wipe()
    job = ["python", "main.py", *command(data, url, tmp_path / "results", "--num_epochs", "2")]
    done = run_program(["supervise.py", "--max_restarts", "1", "--", *job])
    assert done.returncode == 0, done.stderr
    assert "resuming after step" in done.stdout
