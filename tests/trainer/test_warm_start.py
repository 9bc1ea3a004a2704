"""Warm starts: main.py --warm_start against --use_checkpoint, and against look-ups by raw value in plain Python."""

import json
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

import preprocess
from data.encoding.encoder_files import load_encoders
from data.encoding.encoders import CrossedIds, Vocabulary
from main import main
from tests.helpers import losses, must, words
from trainer.checkpoint.store import Checkpoint, CheckpointStore

pytestmark = pytest.mark.long

SPEC = {
    "feature_spec": {
        "click": {"dtype": "float32"},
        "item": {"encode": {"vocabulary": {"oov_buckets": 2}}, "embedding_dim": 4},
        "seen": {"encode": {"vocabulary_of": "item"}, "separator": " ", "max_hotness": 3, "table": "item"},
        "shop": {"embedding_dim": 3},
        "site": {"encode": {"hash": 20}, "embedding_dim": 3},
        "price": {"encode": [{"fill": "median"}, "standardize"]},
    },
    "source_spec": {"logs": [{"type": "csv", "header": True, "files": ["logs.csv"]}]},
    "split": {"from": "logs", "random": {"test": 0.2}},
    "channel_spec": {
        "onehot_categorical": ["item", "shop", "site"],
        "multihot_categorical": ["seen"],
        "numerical": ["price"],
        "label": ["click"],
    },
}
ROWS = 600
FLAGS = words(
    "--deep_hidden_units 8 --global_batch_size 64 --eval_batch_size 200 --deep_dropout 0.2 --num_epochs 1 --cpu "
    "--recipe published --deterministic --deep_schedule constant --deep_warmup_epochs 0 --deep_learning_rate 0.01 "
    "--checkpoint_every 3 --keep_checkpoints 99 --log_every 1"
)


def make_day(
    folder: Path,
    first_item: int,
    *more: str,
    seed: int = 0,
    spec: Mapping = SPEC,
    items: int = 400,
    rows: int = ROWS,
) -> Path:
    """A dataset of random rows, whose items are numbers from `first_item` on, as text; `more` is for preprocess.py."""
    rng = np.random.default_rng(seed)
    names = [f"i{first_item + number}" for number in range(items)]
    (raw := folder / "raw").mkdir(parents=True)
    lines = ["click,item,seen,shop,site,price,place,tag"]
    for _ in range(rows):
        item, seen = rng.choice(names, 2), " ".join(rng.choice(names, rng.integers(1, 4)))
        shop, site, place = rng.integers(5, size=3)
        tag, click, price = rng.integers(60), int(rng.random() < 0.3), f"{rng.random():.3f}"
        lines.append(f"{click},{item[0]},{seen},s{shop},w{site},{price},p{place},t{tag}")
    (raw / "logs.csv").write_text("\n".join(lines) + "\n")
    (raw / "raw.yaml").write_text(yaml.safe_dump(dict(spec), sort_keys=False))
    places = {"--input": raw, "--feature_spec_in": raw / "raw.yaml", "--output": folder / "data"}
    must(preprocess.main([*(str(part) for place in places.items() for part in place), *more]))
    return folder / "data"


@pytest.fixture(scope="module")
def days(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("days")
    return make_day(folder / "one", 0), make_day(folder / "two", 100, seed=1)


def run(data: Path, folder: Path, *more: str) -> int:
    places = {"--dataset_path": data, "--model_dir": folder / "models", "--results_dir": folder / "results"}
    return main([*(str(part) for place in places.items() for part in place), *FLAGS, *more])


def last(folder: Path) -> Checkpoint:
    return CheckpointStore(folder / "models").open("last")


def at(folder: Path, step: int) -> Checkpoint:
    return Checkpoint(folder / "models" / "checkpoints" / f"step-{step}")


def assert_same_arrays(one: Checkpoint, other: Checkpoint) -> None:
    assert one.step == other.step and one.arrays.keys() == other.arrays.keys()
    for name in one.arrays:
        np.testing.assert_array_equal(one.read(name), other.read(name), err_msg=name)


VARIANTS = {
    "rmsprop": [],
    "adam": words("--optimizer adam --l2_reg_embedding 0.001 --ema_momentum 0.9 --batch_norm"),
    "adamw": words("--optimizer adamw"),
    "adagrad": words("--optimizer adagrad --amp --amp_dtype float16"),
    "sgd": words("--optimizer sgd"),
    "mmoe": words("--model mmoe --num_experts 2 --expert_hidden_units 8 --tower_hidden_units 4 --wide_part"),
}


@pytest.mark.parametrize(
    "variant", [name if name in ("adam",) else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]
)
def test_same_data_equals_resuming(days, tmp_path, variant):
    """One epoch, then another one: by --use_checkpoint, and by a warm start whose flags come from the first run."""
    flags = VARIANTS[variant]
    must(run(days[0], tmp_path / "first", *flags))
    shutil.copytree(tmp_path / "first", tmp_path / "resumed")
    must(run(days[0], tmp_path / "resumed", *flags, "--num_epochs", "2", "--use_checkpoint"))
    must(run(days[0], tmp_path / "warm", *flags, "--warm_start", str(tmp_path / "first" / "models")))
    done, resumed, warm = last(tmp_path / "first").step, last(tmp_path / "resumed"), last(tmp_path / "warm")
    assert resumed.step == 2 * done
    assert_same_arrays(resumed, warm)
    expected = losses(tmp_path / "resumed" / "results")
    assert losses(tmp_path / "warm" / "results") == {step: loss for step, loss in expected.items() if step > done}
    # A run that resumes after its warm start is exact, too: from within the epoch, without --warm_start or with it.
    for number, more in enumerate(([], ["--warm_start", str(tmp_path / "first" / "models")])):
        folder = tmp_path / f"again-{number}"
        (folder / "models" / "checkpoints").mkdir(parents=True)
        start = f"step-{next(step for step in CheckpointStore(tmp_path / 'warm' / 'models').steps() if step > done)}"
        assert start != f"step-{2 * done}"
        shutil.copytree(tmp_path / "warm" / "models" / "checkpoints" / start, folder / "models" / "checkpoints" / start)
        must(run(days[0], folder, *flags, "--use_checkpoint", *more))
        assert_same_arrays(warm, last(folder))


def ids_by_value(data: Path, feature: str) -> dict[str, int]:
    """The ids of a vocabulary, from its values and the layout of ids alone."""
    encoder = load_encoders(data / "workflow")[feature]
    encoder = encoder.encoder if isinstance(encoder, CrossedIds) else encoder
    assert isinstance(encoder, Vocabulary)
    values = enumerate(encoder.values.to_pylist())
    return {value: 2 + encoder.oov_buckets + at for at, value in values if value is not None}


# The rate is so small that no weight changes: what the first checkpoint holds is what the run has started from.
STILL = words("--deep_learning_rate 1e-30 --linear_learning_rate 1e-30 --deep_dropout 0")


@pytest.fixture(scope="module")
def yesterday(days, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("yesterday")
    must(run(days[0], folder, *words("--optimizer adam --l2_reg_embedding 0.001")))
    return folder


def test_rows_are_matched_by_raw_value(days, yesterday, tmp_path, capfd):
    more = words("--optimizer adam --checkpoint_every 1")
    must(run(days[1], tmp_path, *more, *STILL, "--warm_start", str(yesterday / "models")))
    shown = capfd.readouterr().out
    before = last(yesterday)
    start = at(tmp_path, before.step + 1)
    # FTRL computes weights from its state and the rate at every update, so only rows without one are compared.
    untouched = start.read("embeddings/deep.item.last_step") <= before.step
    assert sum(untouched[row] for value, row in ids_by_value(days[1], "item").items()) > 50
    new_ids, old_ids = ids_by_value(days[1], "item"), ids_by_value(days[0], "item")
    old_encoder = load_encoders(days[0] / "workflow")["item"]
    unseen = {value: int(old_encoder.encode([value])[0]) for value in new_ids.keys() - old_ids.keys()}
    assert 0 < len(unseen) < len(new_ids) and set(unseen.values()) == {2, 3}
    for name in ("deep.item", "wide.item", "wide.seen"):
        old, new = before.read(f"embeddings/{name}"), start.read(f"embeddings/{name}")
        expected = [old[row] for row in range(4)]
        by_id = sorted(new_ids.items(), key=lambda pair: pair[1])
        expected += [old[old_ids[value] if value in old_ids else unseen[value]] for value, _ in by_id]
        np.testing.assert_array_equal(new[untouched], np.array(expected)[untouched], err_msg=name)
    # Feature by feature as many ids as before, by their meaning: hashes by id.
    np.testing.assert_array_equal(start.read("embeddings/deep.site"), before.read("embeddings/deep.site"))
    assert last(tmp_path).step == 2 * before.step
    line = next(line.split() for line in shown.splitlines() if line.startswith("item "))
    known, new, gone = (len(part) for part in (new_ids.keys() & old_ids, unseen, old_ids.keys() - new_ids))
    assert line[1:5] == [str(4 + len(new_ids)), str(4 + known), str(new), str(gone)]


def test_state_of_new_rows_is_cold_and_that_of_others_goes_on(days, yesterday, tmp_path):
    """In the first step, so that most rows are untouched since the warm start."""
    more = words("--optimizer adam --l2_reg_embedding 0.001 --checkpoint_every 1")
    must(run(days[1], tmp_path, *more, *STILL, "--warm_start", str(yesterday / "models")))
    before, done = last(yesterday), last(yesterday).step
    first = at(tmp_path, done + 1)
    new_ids, old_ids = ids_by_value(days[1], "item"), ids_by_value(days[0], "item")
    untouched = first.read("embeddings/deep.item.last_step") <= done
    slots = [name for name in before.arrays if name.startswith("embeddings/deep.item.") and "last_step" not in name]
    assert len(slots) == 2
    seen = {"new": 0, "known": 0}
    for value, row in new_ids.items():
        if not untouched[row]:
            continue
        kind = "known" if value in old_ids else "new"
        seen[kind] += 1
        for name in slots:
            expected = before.read(name)[old_ids[value]] if kind == "known" else 0
            np.testing.assert_array_equal(first.read(name)[row], np.broadcast_to(expected, (4,)), err_msg=name)
        missed = before.read("embeddings/deep.item.last_step")[old_ids[value]] if kind == "known" else done
        assert first.read("embeddings/deep.item.last_step")[row] == missed
    assert seen["known"] and seen["new"]


def described(data: Path) -> str:
    """The rows, files and date of the training rows of a dataset, as an error states them."""
    files = list(data.glob("train_*.parquet"))
    newest = datetime.fromtimestamp(max(int(path.stat().st_mtime) for path in files), UTC)
    rows = sum(pq.read_metadata(path).num_rows for path in files)
    return f"{rows:,} rows in {len(files):,} file(s), the newest of {newest:%Y-%m-%dT%H:%M:%S}+00:00"


def test_other_data_cannot_be_resumed(days, yesterday, tmp_path, capfd):
    shutil.copytree(yesterday, tmp_path / "run")
    # The same names, row groups and features, and other rows.
    other = make_day(tmp_path / "other", 0, seed=7)
    assert {path.name for path in other.glob("*.parquet")} == {path.name for path in days[0].glob("*.parquet")}
    flags = words("--optimizer adam --l2_reg_embedding 0.001 --use_checkpoint --num_epochs 2")
    assert run(other, tmp_path / "run", *flags) == 2
    shown = capfd.readouterr().err
    assert "feature 'item' was onehot_categorical, cardinality" in shown
    assert "start a new run with --warm_start and another --model_dir" in shown
    # The same features, too.
    fewer = shutil.copytree(days[0], tmp_path / "fewer")
    pq.write_table(pq.read_table(fewer / "train_0.parquet").slice(10), fewer / "train_0.parquet")
    assert run(fewer, tmp_path / "run", *flags) == 2
    shown = capfd.readouterr().err
    assert f": {described(days[0])} then, {described(fewer)} now. Restore the files" in shown
    assert f"--warm_start {tmp_path}/run/models and another --model_dir" in shown
    moved = shutil.copytree(days[0], tmp_path / "moved")
    must(run(moved, tmp_path / "run", *flags))


def test_mistakes(days, yesterday, tmp_path, capfd):
    models = str(yesterday / "models")
    for more, code, text in (
        (["--warm_start", str(tmp_path / "nothing")], 4, "nothing"),
        (["--warm_start", models, "--warm_start_checkpoint", "step-7"], 4, "step-7"),
        (["--warm_start", str(tmp_path / "models")], 2, "another --model_dir"),
        (["--warm_start", models, "--evaluate"], 2, "--evaluate"),
        (["--warm_start_checkpoint", "best"], 2, "--warm_start MODEL"),
    ):
        assert run(days[1], tmp_path, *more) == code, more
        assert text in capfd.readouterr().err
    assert json.loads((yesterday / "results" / "args.json").read_text())["warm_start"] is None
