"""A checkpoint belongs to features and tasks by name: their order may change, everything else must match."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

import export
from main import main
from tests.helpers import ROOT, make_dataset, metrics, must, run_program
from trainer.checkpoint.store import CheckpointStore

EPOCHS, BATCH, ROWS, SAVE_EVERY = 2, 64, 400, 4
TRAINING = ["--global_batch_size", str(BATCH), "--num_epochs", str(EPOCHS), "--deterministic", "--wide_part"]
TRAINING += ["--checkpoint_every", str(SAVE_EVERY), "--keep_checkpoints", "99", "--deep_learning_rate", "0.01"]
TRAINING += ["--expert_hidden_units", "8", "--num_experts", "2", "--loss_weighting", "uncertainty"]
TRAINING += ["--interaction", "dot"]
MODELS = ("mmoe", "aitm")


def changed_spec(data: Path, name: str, change: Callable[[dict[str, Any]], object]) -> str:
    document = yaml.safe_load((data / "feature_spec.yaml").read_text())
    change(document)
    (data / name).write_text(yaml.safe_dump(document, sort_keys=False))
    return name


def reverse(document: dict[str, Any]) -> None:
    """Every order that a specification has: of features, of channels and within them, of columns."""
    for section in ("feature_spec", "channel_spec"):
        document[section] = dict(reversed(document[section].items()))
    for names in document["channel_spec"].values():
        names.reverse()
    for chunks in document["source_spec"].values():
        for chunk in chunks:
            chunk["features"].reverse()


class Work:
    """A dataset whose labels differ, and a training run of each model."""

    def __init__(self, folder: Path, models: list[str]):
        self.folder = folder
        self.data = make_dataset(folder, ROOT / "feature_specs" / "two_labels.yaml", rows=ROWS)
        self.reversed = changed_spec(self.data, "reversed.yaml", reverse)
        towers = folder / "towers.yaml"
        towers.write_text("click: [6]\nconversion: [8, 4]\n")
        for model in models:
            flags = ["--model", model, *TRAINING, *(["--tower_hidden_units", str(towers)] if model == "aitm" else [])]
            must(main(self.arguments(model, *flags, results="trained")))

    def arguments(self, model: str, *more: str, results: str, models: str = "") -> list[str]:
        places = ["--model_dir", str(self.models(models or model)), "--results_dir", str(self.results(model, results))]
        return [
            "--dataset_path",
            str(self.data),
            *places,
            "--cpu",
            "--recipe",
            "published",
            "--eval_batch_size",
            "128",
            *more,
        ]

    def models(self, model: str) -> Path:
        return self.folder / model / "models"

    def results(self, model: str, name: str) -> Path:
        return self.folder / model / name

    def step(self, model: str, step: int) -> str:
        return str(self.models(model) / "checkpoints" / f"step-{step}")


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Work:
    return Work(tmp_path_factory.mktemp("names"), list(MODELS))


@pytest.mark.parametrize("model", MODELS)
def test_another_order_evaluates_and_predicts_alike(work, model):
    for name in ("feature_spec.yaml", work.reversed):
        file = work.folder / f"{model}-{name}.parquet"
        more = ["--evaluate", "--fspec_file", name, "--predictions_file", str(file)]
        must(main(work.arguments(model, *more, results=name)))
    assert metrics(work.results(model, work.reversed)) == metrics(work.results(model, "feature_spec.yaml"))
    expected, found = (
        pq.read_table(work.folder / f"{model}-{name}.parquet") for name in ("feature_spec.yaml", work.reversed)
    )
    assert sorted(found.column_names) == sorted(expected.column_names)
    assert found.select(expected.column_names).equals(expected)


def test_a_resumed_run_in_another_order_ends_alike(work):
    resume = ["--use_checkpoint", "--checkpoint", work.step("mmoe", SAVE_EVERY), "--fspec_file", work.reversed]
    must(main(work.arguments("mmoe", *TRAINING, *resume, results="resumed", models="resumed")))
    whole, resumed = (CheckpointStore(work.models(name)).open("last") for name in ("mmoe", "resumed"))
    assert whole.step == resumed.step and whole.arrays == resumed.arrays
    for name in whole.arrays:
        np.testing.assert_array_equal(resumed.read(name), whole.read(name), err_msg=name)
    assert metrics(work.results("mmoe", "resumed")) == metrics(work.results("mmoe", "trained"))
    manifests = [(work.models(name) / "model" / "feature_spec.yaml") for name in ("mmoe", "resumed")]
    assert [yaml.safe_load(path.read_text())["channel_spec"] for path in manifests] == [
        yaml.safe_load((work.data / "feature_spec.yaml").read_text())["channel_spec"]
    ] * 2


def test_an_export_is_compared_on_a_reordered_dataset(work, tmp_path, capfd):
    shutil.copytree(work.data, tmp_path / "data")
    shutil.copyfile(tmp_path / "data" / work.reversed, tmp_path / "data" / "feature_spec.yaml")
    places = ["--model_dir", str(work.models("mmoe")), "--output", str(tmp_path / "out"), "--format", "savedmodel"]
    must(export.main([*places, "--dataset_path", str(tmp_path / "data")]))
    assert "rows of the dataset" in capfd.readouterr().out


@pytest.mark.slow
def test_all_workers_use_the_order_of_the_checkpoint(work):
    more = ["--evaluate", "--fspec_file", work.reversed]
    done = run_program(["main.py", *work.arguments("mmoe", *more, results="two")], workers=2)
    assert done.returncode == 0, done.stderr
    must(main(work.arguments("mmoe", "--evaluate", results="one")))
    one = metrics(work.results("mmoe", "one"))
    for name, value in metrics(work.results("mmoe", "two")).items():
        assert abs(value - one[name]) < 1e-6, name


def feature(name: str, **entries: Any) -> Callable[[dict[str, Any]], object]:
    def change(document: dict[str, Any]) -> None:
        document["feature_spec"][name] |= entries

    return change


def renamed(old: str, new: str) -> Callable[[dict[str, Any]], object]:
    def change(document: dict[str, Any]) -> None:
        document["feature_spec"][new] = document["feature_spec"].pop(old)
        for names in document["channel_spec"].values():
            names[:] = [new if name == old else name for name in names]
        for chunks in document["source_spec"].values():
            for chunk in chunks:
                chunk["features"] = [new if name == old else name for name in chunk["features"]]

    return change


def as_numbers(document: dict[str, Any]) -> None:
    document["channel_spec"]["onehot_categorical"].remove("platform")
    document["channel_spec"]["numerical"].append("platform")
    del document["feature_spec"]["platform"]["cardinality"]


def with_weights(document: dict[str, Any]) -> None:
    document["feature_spec"]["topic_id_list"]["weights"] = "confidence"
    document["feature_spec"]["confidence"] = {"dtype": "float32"}
    for chunks in document["source_spec"].values():
        chunks[0]["features"].append("confidence")


CHANGES = {
    "a renamed label": (renamed("conversion", "sale"), ["'conversion'", "'sale'", "absent"]),
    "another task": (feature("conversion", task="regression"), ["'conversion'", "binary", "regression"]),
    "another sample space": (
        lambda document: document["feature_spec"]["conversion"].pop("given"),
        ["'conversion'", "given click", "given none"],
    ),
    "a renamed feature": (renamed("ad_id_ctr", "ctr"), ["'ad_id_ctr'", "'ctr'", "absent"]),
    "another cardinality": (feature("platform", cardinality=5), ["'platform'", "cardinality 4", "cardinality 5"]),
    "another width": (feature("platform", embedding_dim=5), ["'platform'", "width 3", "width 5"]),
    "another table": (feature("platform", table="device"), ["'platform'", "width 3 and", "table device"]),
    "another part": (feature("platform", wide="no"), ["'platform'", "width 3 and", "wide no"]),
    "weights": (with_weights, ["'topic_id_list'", "weights confidence"]),
    "another channel": (as_numbers, ["'platform'", "onehot_categorical", "numerical"]),
    "two renamed alike": (
        lambda document: (renamed("ad_id_ctr", "x")(document), renamed("topic_id_list", "ad_id_ctr")(document)),
        ["'ad_id_ctr'", "'topic_id_list'", "'x'"],
    ),
}


@pytest.mark.parametrize(("change", "fragments"), CHANGES.values(), ids=CHANGES)
def test_other_features_and_tasks_are_rejected(work, change, fragments, capfd, monkeypatch):
    monkeypatch.setattr("main.import_tensorflow", lambda: pytest.fail("the checks were passed"))
    name = changed_spec(work.data, "changed.yaml", change)
    for action in (["--evaluate"], ["--predict", str(work.folder / "no.parquet")], [*TRAINING, "--use_checkpoint"]):
        assert main(work.arguments("mmoe", *action, "--fspec_file", name, results="rejected")) == 2
        message = capfd.readouterr().err
        assert message.count("main.py: error: ") == 1 and "changed.yaml" in message and "step-" in message
        for fragment in fragments:
            assert fragment in message


def test_more_ids_per_row_affect_only_training(work, capfd):
    name = changed_spec(work.data, "hotter.yaml", feature("topic_id_list", max_hotness=4))
    must(main(work.arguments("mmoe", "--evaluate", "--fspec_file", name, results="hotter")))
    assert main(work.arguments("mmoe", *TRAINING, "--use_checkpoint", "--fspec_file", name, results="rejected")) == 2
    assert "'topic_id_list'" in (message := capfd.readouterr().err)
    assert "max_hotness 3" in message and "max_hotness 4" in message
