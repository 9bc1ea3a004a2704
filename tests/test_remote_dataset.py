"""main.py on a dataset in an object store: the same numbers as on local files, and errors that end all workers."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from data.storage import remote
from main import main
from tests.helpers import ROOT, losses, make_dataset, metrics, must, run_program, words
from tests.object_store import SECRET, Faults, proxy

FLAGS = words(
    "--deep_hidden_units 16 --global_batch_size 64 --eval_batch_size 100 --num_epochs 2 --recipe published --cpu "
    "--deterministic --log_every 1"
)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("local"), ROOT / "feature_specs" / "tiny.yaml", rows=400)


@pytest.fixture
def url(store, local, monkeypatch):
    """Returns the URL of a copy of the dataset, in a folder of its own."""
    for name in ("RECIPE_CACHE_DIR", "RECIPE_CACHE_LIMIT"):
        monkeypatch.setenv(name, "")  # restored afterwards: the flags set them
        del os.environ[name]
    remote.push_folder(local, store, "feature_spec.yaml")
    return store


def folders(path: Path) -> list[str]:
    return ["--model_dir", str(path / "models"), "--results_dir", str(path / "results")]


def flags_of(url: str, path: Path) -> list[str]:
    cache = ["--cache_dir", str(path / "cache"), "--cache_limit", "1MiB"]
    return ["--dataset_path", url, *cache, *folders(path)]


def weights_of(path: Path) -> dict[str, bytes]:
    """The content of the files of the last checkpoint."""
    last = max((path / "models" / "checkpoints").iterdir(), key=lambda step: int(step.name[5:]))
    arrays = {str(file.relative_to(last)): file.read_bytes() for file in last.rglob("*.bin")}
    arrays |= {str(file.relative_to(last)): file.read_bytes() for file in last.rglob("*.npy")}
    assert arrays
    return arrays


def predictions(path: Path) -> list[np.ndarray]:
    return [column.to_numpy() for column in pq.read_table(path / "p.parquet").columns]


def assert_same(path: Path, other: Path) -> None:
    assert losses(path / "results") == losses(other / "results")
    assert metrics(path / "results") == metrics(other / "results")
    assert weights_of(path) == weights_of(other)


def test_training_evaluation_and_prediction_equal_those_on_local_files(url, local, tmp_path, capfd):
    near, far = tmp_path / "near", tmp_path / "far"
    for path, data in ((near, ["--dataset_path", str(local), *folders(near)]), (far, flags_of(url, far))):
        must(main([*data, *FLAGS]))
        must(main([*data, *FLAGS, "--evaluate"]))
        must(main([*data, *FLAGS, "--predict", str(path / "p.parquet")]))
    assert_same(near, far)
    for one, other in zip(predictions(near), predictions(far), strict=True):
        np.testing.assert_array_equal(one, other)
    must(main([*flags_of(url, far), *FLAGS, *words("--benchmark --benchmark_steps 3 --benchmark_warmup_steps 1")]))
    printed = capfd.readouterr()
    assert f"data: {url}  checkpoints:" in printed.out
    assert SECRET not in printed.out + printed.err
    assert json.loads((far / "results" / "args.json").read_text())["dataset_path"] == url
    written = [path for path in far.rglob("*") if path.is_file()]
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    # Row groups alone were downloaded, into the folder that the flag names.
    assert not list((far / "cache" / "s3").rglob("*.parquet"))
    assert list((far / "cache" / "row_groups").iterdir())
    assert not (tmp_path / "other_cache").exists()


def test_urls_in_files_of_a_local_specification(url, local, tmp_path, capfd):
    """With the flags that the data choose, for which labels are read before training."""
    spec = yaml.safe_load((local / "feature_spec.yaml").read_text())
    spec["source_spec"]["train"][0]["files"] = [f"{url}/train_*.parquet"]
    spec["source_spec"]["test"][0]["files"] = [f"{url}/{name}" for name in spec["source_spec"]["test"][0]["files"]]
    (tmp_path / "urls").mkdir()
    (tmp_path / "urls" / "feature_spec.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    near, far, more = tmp_path / "near", tmp_path / "far", [*FLAGS, "--recipe", "auto", "--output_bias", "base_rate"]
    arguments = [*flags_of(str(tmp_path / "urls"), far), *more]
    assert main(arguments) == 2
    error = capfd.readouterr().err
    assert "source_spec.train[0].files[0]: " in error and "is a URL; write a path relative to" in error
    assert "or pass --allow_outside_paths" in error
    must(main([*arguments, "--allow_outside_paths"]))
    must(main(["--dataset_path", str(local), *folders(near), *more]))
    assert_same(near, far)
    # A checkpoint knows its rows, wherever they are.
    must(main([*flags_of(url, far), *more, "--use_checkpoint", "--num_epochs", "3"]))


@pytest.mark.horovod
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", "error", "cut"])
def test_two_workers_equal_those_on_local_files(url, server, local, tmp_path, kind):
    near, far, faults = tmp_path / "near", tmp_path / "far", Faults(kind)
    done = run_program(["main.py", "--dataset_path", local, *folders(near), *FLAGS], workers=2)
    assert done.returncode == 0, done.stderr
    with proxy(server, faults) as variables:
        done = run_program(["main.py", *flags_of(url, far), *FLAGS], workers=2, **variables)
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert_same(near, far)
    assert bool(faults.hit) == bool(kind)


@pytest.mark.horovod
@pytest.mark.slow
def test_an_object_replaced_in_training_ends_all_workers(url, local, tmp_path):
    """The first worker replaces the training file, and empties the cache, when all files are open."""
    train = "train_0.parquet"
    assert (local / train).exists()
    (tmp_path / "other").write_bytes((local / train).read_bytes()[::-1])
    done = tmp_path / "replaced"
    (tmp_path / "replace.py").write_text(
        f"""
import os, shutil, sys, time
from pathlib import Path
from data.storage import remote
from main import main
from trainer.trainer import Trainer

def replace(trainer):
    if os.environ["HOROVOD_RANK"] == "0":
        remote.put(Path({str(tmp_path / "other")!r}), {url + "/" + train!r})
        for part in Path({str(tmp_path / "cache" / "row_groups")!r}).iterdir():
            part.unlink()
        Path({str(done)!r}).touch()
    while not Path({str(done)!r}).exists():
        time.sleep(0.01)
    return fit(trainer)

fit, Trainer.fit = Trainer.fit, replace
code = main()
sys.stdout.flush(), sys.stderr.flush()
os._exit(code)
"""
    )
    arguments = [tmp_path / "replace.py", *flags_of(url, tmp_path), *FLAGS]
    done = run_program(arguments, workers=2, timeout=200)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{url}/{train}: was replaced while it was in use" in done.stderr
    assert not list((tmp_path / "models" / "checkpoints").glob("step-*"))


@pytest.mark.parametrize(
    ("prepare", "code", "said"),
    [
        (lambda url: remote.delete(f"{url}/feature_spec.yaml"), 2, "feature_spec.yaml: no such object"),
        (lambda url: remote.delete(f"{url}/train_0.parquet"), 2, "train_0.parquet: no such object"),
    ],
)
def test_a_missing_object_is_wrong_input(url, tmp_path, capfd, prepare, code, said):
    prepare(url)
    assert main([*flags_of(url, tmp_path), *FLAGS]) == code
    assert f"{url}/{said}" in capfd.readouterr().err


def test_a_store_that_stalls_is_a_failure(url, server, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(remote, "REQUEST_TIMEOUT", 1.0)
    monkeypatch.setenv(remote.DEADLINE_VARIABLE, "2")
    with proxy(server, Faults("stall", 1)) as stalled:
        monkeypatch.setenv("AWS_ENDPOINT_URL", stalled["AWS_ENDPOINT_URL"])
        assert main([*flags_of(url, tmp_path), *FLAGS]) == 1
    error = capfd.readouterr().err
    assert f"{url}/feature_spec.yaml: cannot read after" in error
    assert SECRET not in error


def test_a_truncated_object_is_wrong_input(url, local, tmp_path, capfd):
    shutil.copy(local / "train_0.parquet", tmp_path / "cut")
    os.truncate(tmp_path / "cut", (tmp_path / "cut").stat().st_size - 500)
    remote.put(tmp_path / "cut", f"{url}/train_0.parquet")
    assert main([*flags_of(url, tmp_path), *FLAGS]) == 2
    assert f"{url}/train_0.parquet: cannot be read as parquet" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--dataset_path s3://user:secret@bucket/data", "contains a user or password before '@'"),
        ("--dataset_path s3://bucket/data --fspec_file ../other.yaml", "leads out of s3://bucket/data"),
        ("--cache_limit 20GB", "the cache limit '20GB' is no size"),
    ],
)
def test_mistakes_in_flags_are_reported(url, tmp_path, capfd, flags, said):
    assert main([*words(flags), *folders(tmp_path), *FLAGS]) == 2
    error = capfd.readouterr().err
    assert said in error
    assert "secret" not in error
