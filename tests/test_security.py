"""Hostile files are rejected with a message, quickly, without running or writing anything."""

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import transcode
from data.encoding.encoder_files import load_encoders, save_encoders
from data.encoding.encoders import Numerical, Vocabulary
from data.encoding.keys import KeyTable
from data.errors import DataError
from data.outbrain.recipes import load_workflow
from data.spec.feature_spec import FeatureSpec
from data.storage.arrays import ArraySource
from data.storage.checksummed_dir import StorageError, read_manifest
from main import main
from tests.data.csv_documents import GOOD_LINE, document, write_csv_dataset
from tests.helpers import ROOT, environment, make_dataset
from tests.manifests import replace_file, rewrite_manifest
from trainer.checkpoint.store import CheckpointStore
from trainer.cli import parse
from trainer.recommender import Recommender

SECONDS = 3.0


def error_of(job: Callable[[], object]) -> str:
    """Returns the message with which a job rejects its input, and checks that it does so quickly."""
    start = time.process_time()
    with pytest.raises((DataError, StorageError)) as caught:
        job()
    assert time.process_time() - start < SECONDS
    return str(caught.value)


# What the code does not do


def test_model_names_are_looked_up_in_a_table():
    with pytest.raises(DataError, match="--model 'os.system' is not one of"):
        parse(["--model", "os.system"], 1)


@pytest.mark.parametrize("lock", ["cpu.txt", "gpu.txt"])
def test_locked_versions_have_no_known_vulnerabilities(lock):
    versions = dict(re.findall(r"^([a-z0-9-]+)==([0-9.]+)", (ROOT / "requirements" / lock).read_text(), re.MULTILINE))
    at_least = {"keras": (3, 13, 2), "pyarrow": (14, 0, 1)}
    for name, least in at_least.items():
        assert tuple(map(int, versions[name].split("."))) >= least


def test_wrong_input_is_reported_before_tensorflow_import(tmp_path):
    data = make_dataset(tmp_path / "made", ROOT / "feature_specs" / "tiny.yaml", rows=40)
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / "feature_spec.yaml").write_text("feature_spec: 1\n")
    lines = [["--num_epochs", "x"], ["--dataset_path", str(wrong)], ["--dataset_path", str(data), "--evaluate"]]
    program = (
        "import sys, json; from main import main\n"
        "for words in json.loads(sys.argv[1]): print(main(words), 'tensorflow' in sys.modules)"
    )
    command = [sys.executable, "-c", program, json.dumps(lines)]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["2 False", "2 False", "4 False"]


# Terminal escape sequences

ESCAPE = "\x1b]0;owned\x07\x1b[2J"


def test_file_content_does_not_control_the_terminal(tmp_path, capsys):
    assert str(DataError(f"a{ESCAPE}\n b\u202e\udcff é")) == "a\\x1b]0;owned\\x07\\x1b[2J\n b\\u202e\\udcff é"
    line = GOOD_LINE.replace("0.5", ESCAPE)
    path = write_csv_dataset(tmp_path / "csv", {"train.csv": f"{line}\n", "test.csv": f"{GOOD_LINE}\n"}, document())
    assert transcode.main(["--input", str(path.parent), "--output", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "owned" in message and "\x1b" not in message and "\x07" not in message
    (tmp_path / "feature_spec.yaml").write_text(f"feature_spec: {{{json.dumps(ESCAPE)}: {{}}}}\n")
    message = error_of(lambda: FeatureSpec.read(tmp_path / "feature_spec.yaml"))
    assert "owned" in message and "\x1b" not in message


@pytest.mark.parametrize("word", ["a\0b", "a\udcffb"])
def test_argument_that_is_not_utf8_is_rejected(word):
    assert "is not text in UTF-8" in error_of(lambda: parse(["--model_dir", word], 1))


# Fitted encoders and workflows


def encoders_folder(folder: Path) -> Path:
    table = KeyTable(np.array(["a", "b"], object), np.array([0.1, 0.2]), default=0.25)
    fitted = {
        "user": Vocabulary.fit("user", [5, -7], [1, 1]),
        "rate": Numerical.standardized("shop", table),
        "age": Numerical.standardized("age"),
    }
    save_encoders(fitted, folder)
    return folder


def as_parquet(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


HOSTILE_SETTINGS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a number for a column": lambda features: features["user"].update(column=1),
    "a mean beyond numbers": lambda features: features["age"].update(steps=[["scale", 10**400, 1.0]]),
    "a default beyond numbers": lambda features: features["rate"]["table"].update(default=10**400),
    "endless ids": lambda features: features["user"].update(oov_buckets=10**30),
    "no id": lambda features: features["user"].update(oov_buckets=0),
    "a truth value for a count": lambda features: features["user"].update(oov_buckets=True),
    "a path for a file": lambda features: features["user"].update(file="/etc/passwd"),
    "a list for a file": lambda features: features["user"].update(file=[]),
    "an unknown kind": lambda features: features["age"].update(kind="pickle"),
    "NaN for a mean": lambda features: features["age"].update(steps=[["scale", float("nan"), 1.0]]),
    "text for a spread": lambda features: features["age"].update(steps=[["scale", 0.0, "1"]]),
    "an unknown step": lambda features: features["age"].update(steps=[["exec", 1.0]]),
    "infinity for a default": lambda features: features["rate"]["table"].update(default=float("inf")),
    "a list for a feature": lambda features: features.update(age=[]),
    "columns of another file": lambda features: features["user"].update(file="table.rate.parquet"),
}


@pytest.mark.parametrize("change", HOSTILE_SETTINGS.values(), ids=HOSTILE_SETTINGS)
def test_hostile_encoder_settings_are_rejected(change, tmp_path):
    folder = encoders_folder(tmp_path / "encoders")
    settings = json.loads((folder / "encoders.json").read_text())
    change(settings["features"])
    replace_file(folder, "encoders.json", json.dumps(settings).encode())
    assert str(folder) in error_of(lambda: load_encoders(folder))


@pytest.mark.parametrize("size", [10**400, 2**63, 2**40, -1, True, None, "3", [3]], ids=lambda size: repr(size)[:20])
def test_sizes_in_a_manifest_reserve_no_memory(size, tmp_path):
    folder = encoders_folder(tmp_path / "encoders")
    rewrite_manifest(folder, lambda manifest: manifest["files"]["encoders.json"].update(bytes=size))
    assert str(folder) in error_of(lambda: load_encoders(folder))


HOSTILE_FILES = {
    "deep JSON": ("encoders.json", b"[" * 200_000),
    "a list": ("encoders.json", b"[]"),
    "a long number": ("encoders.json", b'{"version": 1, "hash": ' + b"9" * 10_000 + b"}"),
    "no parquet": ("vocabulary.user.parquet", b"PAR1" * 100),
    "no columns": ("vocabulary.user.parquet", as_parquet(other=[1])),
    "lists for values": ("vocabulary.user.parquet", as_parquet(value=[[1], [2]], count=[1, 1], id=[3, 4])),
    "nulls for values": ("vocabulary.user.parquet", as_parquet(value=[1, None], count=[1, 1], id=[3, 4])),
    "nulls for counts": ("vocabulary.user.parquet", as_parquet(value=[1, 2], count=[1, None], id=[3, 4])),
    "texts for counts": ("vocabulary.user.parquet", as_parquet(value=[1, 2], count=["x", "y"], id=[3, 4])),
    "texts for numbers": ("table.rate.parquet", as_parquet(value=["a"], number=["x"])),
    "rows that fill the memory": (
        "vocabulary.user.parquet",
        as_parquet(value=np.zeros(10**7, np.int64), count=np.zeros(10**7, np.int64)),
    ),
}


@pytest.mark.parametrize(("name", "content"), HOSTILE_FILES.values(), ids=HOSTILE_FILES)
def test_hostile_encoder_files_are_rejected(name, content, tmp_path):
    folder = encoders_folder(tmp_path / "encoders")
    load_encoders(folder)
    replace_file(folder, name, content)
    assert str(folder) in error_of(lambda: load_encoders(folder))


NO_FILES: dict[str, Callable[[Path], object]] = {
    "a pipe": lambda path: os.mkfifo(path),
    "a device without end": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a folder": Path.mkdir,
}


@pytest.mark.parametrize("place", NO_FILES.values(), ids=NO_FILES)
def test_irregular_files_are_rejected_without_waiting(place, tmp_path):
    for name, reader in (("manifest.json", read_manifest), ("manifest.json", load_workflow)):
        (folder := tmp_path / reader.__name__).mkdir()
        place(folder / name)
        assert name in error_of(lambda reader=reader, folder=folder: reader(folder))
    folder = encoders_folder(tmp_path / "encoders")
    for name in ("encoders.json", "manifest.json"):
        (folder / name).unlink()
        place(folder / name)
        assert name in error_of(lambda: load_encoders(folder))


# Checkpoints and models

HOSTILE_OPTIONS: dict[str, Any] = {
    "a list": [1],
    "text": "x",
    "text for a number": {"num_experts": "8"},
    "a fraction for a count": {"num_experts": 2.5},
    "a truth value for a count": {"ple_levels": True},
    "texts for units": {"deep_hidden_units": ["a"]},
    "a number for units": {"deep_hidden_units": 5},
    "no unit": {"deep_hidden_units": [0]},
    "a function's name": {"activation": "os.system"},
    "a module's name": {"model": "os.system"},
    "NaN": {"gate_temperature": float("nan")},
    "a share of more than all": {"deep_dropout": 5},
    "an object for a name": {"model": {"class_name": "Lambda"}},
}


# State of a run in a checkpoint, besides the model's flags.
SOUND_STATE: dict[str, Any] = {
    "identity": {
        "seed": 0,
        "global_batch_size": 1,
        "train_mapping": "train",
        "training_data": {"files": 1, "rows": 1, "newest": "", "checksum": ""},
        "negatives": "",
    },
    "position": {"epoch": 0, "steps": 1, "losses": [0.5], "is_evaluated": True},
    "stopping": {"metric": "auc_roc", "best": None, "epochs_since_best": 0},
    "schema": {"features": [], "tasks": []},
    "metrics": {},
    "logit_maps": {},
    "options": {
        "num_epochs": 1,
        "deep_learning_rate": 0.1,
        "deep_schedule": "constant",
        "deep_warmup_epochs": 0.0,
        "linear_learning_rate": 0.1,
    },
}


@pytest.mark.parametrize("options", HOSTILE_OPTIONS.values(), ids=HOSTILE_OPTIONS)
def test_hostile_checkpoint_flags_are_rejected_early(options, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("main.import_tensorflow", lambda: pytest.fail("the checks were passed"))
    array = ArraySource.from_array("x", np.zeros(1, np.float32))
    state = SOUND_STATE | {"options": SOUND_STATE["options"] | options if isinstance(options, dict) else options}
    CheckpointStore(tmp_path / "models").save(1, [array], state, best=True)
    assert main(["--model_dir", str(tmp_path / "models"), "--dataset_path", str(tmp_path), "--evaluate"]) == 4
    message = capsys.readouterr().err
    assert message.count("main.py: error: ") == 1 and "step-1" in message


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    """The folder of a small untrained model, as a run writes it."""
    from data.spec.embedding_sizes import embedding_dims
    from trainer.checkpoint.model_folder import ARCHITECTURE, SIZES, SPECIFICATION, write_model
    from trainer.checkpoint.state import TrainState
    from trainer.layout import input_schema
    from trainer.models import build_model, model_options
    from trainer.tasks.task import tasks_of

    folder = tmp_path_factory.mktemp("models")
    spec = FeatureSpec.read(ROOT / "feature_specs" / "tiny.yaml")
    widths = embedding_dims(spec)
    options = model_options(deep_hidden_units=(4,))
    model = build_model(options, input_schema(spec, widths), tasks_of(spec), compute_dtype="float32", seed=0)
    documents: dict[str, Any] = {
        ARCHITECTURE: architecture(),
        SPECIFICATION: spec.to_yaml(),
        SIZES: widths,
    }
    write_model(folder / "model", TrainState(model.weights_by_name).sources(), documents)
    return folder / "model"


def architecture(**options: Any) -> dict[str, Any]:
    described = {"model": "wide_deep", "tasks": ["liked"], "step": 1, "metrics": {}, "logit_maps": {}}
    return described | {"options": {"model": "wide_deep", "deep_hidden_units": [4]} | options}


TINY = (ROOT / "feature_specs" / "tiny.yaml").read_text()
HOSTILE_DOCUMENTS: dict[str, dict[str, Any]] = {
    "deep JSON": {"architecture.json": "[" * 200_000},
    "a list": {"architecture.json": "[]"},
    "text": {"architecture.json": '"x"'},
    "no JSON": {"architecture.json": b"\xff\xfe"},
    "no options": {"architecture.json": {"metrics": {}}},
    "other tasks": {"architecture.json": architecture() | {"tasks": ["bought"]}},
    "text for tasks": {"architecture.json": architecture() | {"tasks": "liked"}},
    "a number beyond numbers": {"architecture.json": architecture() | {"metrics": {"auc_roc": 10**400}}},
    "a list for a metric": {"architecture.json": architecture() | {"metrics": {"auc_roc": [1]}}},
    "a truth value for a step": {"architecture.json": architecture() | {"step": True}},
    "text for a logit map": {"architecture.json": architecture() | {"logit_maps": {"liked": "x"}}},
    "unknown options": {"architecture.json": architecture(code="import os")},
    "an unknown model": {"architecture.json": architecture(model="os.system")},
    "a list for a model": {"architecture.json": architecture(model=["wide_deep"])},
    "an unknown activation": {"architecture.json": architecture(activation="lambda")},
    "layers that fill the memory": {"architecture.json": architecture(deep_hidden_units=[10**6, 10**6])},
    "a layer beyond numbers": {"architecture.json": architecture(deep_hidden_units=[10**30])},
    "experts that fill the memory": {"architecture.json": architecture(model="mmoe", num_experts=10**9)},
    "levels without end": {"architecture.json": architecture(model="ple", ple_levels=10**9)},
    "layers of another size": {"architecture.json": architecture(deep_hidden_units=[5])},
    "another model": {"architecture.json": architecture(model="esmm", expert_hidden_units=[4], tower_hidden_units=[4])},
    "tables that fill the memory": {"feature_spec.yaml": TINY.replace("cardinality: 50", "cardinality: 2147483647")},
    "no specification": {"feature_spec.yaml": "!!python/object/apply:os.system [id]"},
    "widths that fill the memory": {"embedding_sizes.json": {"user_id": 10**12}},
    "text for a width": {"embedding_sizes.json": {"user_id": "4"}},
    "deep widths": {"embedding_sizes.json": "[" * 200_000},
    "encoders without a manifest": {"workflow/encoders.json": {"version": 1}},
}  # fmt: skip


@pytest.fixture(scope="module")
def rewritten(model_folder, tmp_path_factory) -> Callable[[dict[str, Any]], Path]:
    """Rewrites the model folder with other files and matching checksums."""
    from trainer.checkpoint.model_folder import open_model, write_model

    def rewrite(changes: dict[str, Any]) -> Path:
        opened = open_model(model_folder)
        folder = tmp_path_factory.mktemp("hostile") / "model"
        documents = {name: content for name, content in (opened.files | changes).items() if content is not None}
        write_model(folder, [opened.source(name) for name in opened.arrays], documents)
        return folder

    return rewrite


def test_unmodified_model_folder_is_valid(rewritten):
    from trainer.checkpoint.load_model import load_model

    assert load_model(rewritten({})).model.variables


@pytest.mark.parametrize("documents", HOSTILE_DOCUMENTS.values(), ids=HOSTILE_DOCUMENTS)
def test_model_folder_with_hostile_files_is_rejected(documents, rewritten):
    from trainer.checkpoint.load_model import load_model

    folder = rewritten(documents)
    assert str(folder) in error_of(lambda: load_model(folder))


def test_model_folder_without_a_file_is_rejected(rewritten):
    from trainer.checkpoint.load_model import load_model

    for name in ("architecture.json", "feature_spec.yaml"):
        folder = rewritten({name: None})
        assert str(folder) in error_of(lambda folder=folder: load_model(folder))


def test_outside_files_can_be_allowed(rewritten):
    from trainer.checkpoint.load_model import load_model

    folder = rewritten({"feature_spec.yaml": TINY.replace("train.csv", "/elsewhere/train.csv")})
    assert load_model(folder).spec.files("train") == (Path("/elsewhere/train.csv"),)


@pytest.fixture(scope="module")
def recommender_folder(model_folder, tmp_path_factory) -> Path:
    from trainer.checkpoint.load_model import load_model
    from trainer.recommender.entities import Entities
    from trainer.recommender.fitted import Fitted, Seen
    from trainer.recommender.storage import save_fitted

    users = Entities("user", np.array([1, 2]), {"user_id": np.array([3, 4, 0])})
    items = Entities("item", np.array(["a", "b"], object), {"movie_age": np.array([0.5, 1.5, 0.0])})
    seen = Seen.of(np.array([0, 1]), np.array([1, 0]), 2)
    folder = tmp_path_factory.mktemp("recommender") / "fitted"
    save_fitted(Fitted(load_model(model_folder), users, items, seen, ()), {}, folder)
    return folder


SETTINGS: dict[str, Any] = {"version": 1, "user": "user", "item": "item", "context": [], "options": {}}
HOSTILE_RECOMMENDERS: dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]] = {
    "a list for settings": ({"recommender.json": "[]"}, {}),
    "deep settings": ({"recommender.json": "[" * 200_000}, {}),
    "no column": ({"recommender.json": {"version": 1}}, {}),
    "another version": ({"recommender.json": {"version": [1]}}, {}),
    "a list for a column": ({"recommender.json": SETTINGS | {"user": ["user"]}}, {}),
    "text for context": ({"recommender.json": SETTINGS | {"context": "hour"}}, {}),
    "a list for options": ({"recommender.json": SETTINGS | {"options": [1]}}, {}),
    "an unknown option": ({"recommender.json": SETTINGS | {"options": {"self": 1}}}, {}),
    "no parquet": ({"tables/users.parquet": b"PAR1"}, {}),
    "a table without keys": ({"tables/users.parquet": as_parquet(x=[1])}, {}),
    "rows that fill the memory": ({"tables/items.parquet": as_parquet(key=np.zeros(10**7, np.int64))}, {}),
    "items that there are not": ({}, {"seen/items": np.array([1, 7])}),
    "negative items": ({}, {"seen/items": np.array([1, -7])}),
    "starts beyond the end": ({}, {"seen/starts": np.array([0, 1, 10**15, 2])}),
    "starts that go back": ({}, {"seen/starts": np.array([0, 2, 1, 2])}),
    "starts of other users": ({}, {"seen/starts": np.array([0, 2])}),
    "fractions": ({}, {"seen/items": np.array([0.5, 0.5])}),
    "a single number": ({}, {"seen/starts": np.array(0)}),
}


@pytest.mark.parametrize(("documents", "arrays"), HOSTILE_RECOMMENDERS.values(), ids=HOSTILE_RECOMMENDERS)
def test_hostile_recommender_is_rejected(documents, arrays, recommender_folder, tmp_path):
    from trainer.checkpoint.model_folder import open_model, write_model

    opened = open_model(recommender_folder)
    Recommender.load(recommender_folder)
    sources = [opened.source(name) for name in opened.arrays if name not in arrays]
    sources += [ArraySource.from_array(name, array) for name, array in arrays.items()]
    write_model(tmp_path / "hostile", sources, opened.files | documents)
    assert str(tmp_path / "hostile") in error_of(lambda: Recommender.load(tmp_path / "hostile"))


def test_link_in_place_of_a_weight_leaks_nothing(recommender_folder, tmp_path):
    from trainer.checkpoint.model_folder import open_model, write_model

    opened = open_model(recommender_folder)
    write_model(tmp_path / "model", [opened.source(name) for name in opened.arrays], {"recommender.json": {}})
    (tmp_path / "secret").write_text("x" * 300)
    weight = sorted((tmp_path / "model" / "weights").iterdir())[0]
    weight.unlink()
    weight.symlink_to(tmp_path / "secret")
    message = error_of(lambda: open_model(tmp_path / "model"))
    assert weight.name in message and "xxx" not in message
