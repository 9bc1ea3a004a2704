"""Model folders of small models whose weights all matter, and what they predict, worked out by hand."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from data.encoding.encoder_files import save_encoders
from data.encoding.encoders import Encoder
from data.encoding.workflow_folder import workflow_files
from data.spec.feature_spec import FeatureSpec
from data.storage.arrays import ArraySource, row_ranges
from trainer.checkpoint.load_model import LoadedModel, load_model
from trainer.checkpoint.model_folder import (
    ARCHITECTURE,
    MODEL_FOLDER,
    SIZES,
    SPECIFICATION,
    Architecture,
    write_model,
)
from trainer.checkpoint.state import TrainState
from trainer.layout import input_schema
from trainer.logging.log import to_plain
from trainer.models import build_model, model_options
from trainer.tasks.logit_map import LogitMap
from trainer.tasks.task import tasks_of

FEATURES = {
    "user": {"dtype": "int32", "cardinality": 500},
    "day": {"dtype": "int32", "cardinality": 7},
    "tags": {"dtype": "int32", "cardinality": 90, "max_hotness": 3},
    "tag_share": {"dtype": "float32"},
    "age": {"dtype": "float32"},
    "price": {"dtype": "float32"},
}
LABELS = {
    "click": {"dtype": "float32"},
    "spend": {"dtype": "float32", "task": "regression"},
    "topic": {"dtype": "int32", "task": "multiclass", "cardinality": 3},
}
CHANNELS = {"onehot_categorical": ["user", "day"], "multihot_categorical": ["tags"], "numerical": ["age", "price"]}
SMALL = {
    "deep_hidden_units": (32, 16),
    "expert_hidden_units": (16, 8),
    "tower_hidden_units": (8,),
    "num_experts": 4,
}


def specification(without: tuple[str, ...] = (), *, weighted: bool = False, candidates: tuple[str, ...] = ()) -> dict:
    """A specification of these features and labels, whose test rows have none; the tags may have weights."""
    without = without if weighted else (*without, "tag_share")
    channels = {channel: [name for name in names if name not in without] for channel, names in CHANNELS.items()}
    features = {name: entry for name, entry in FEATURES.items() if name not in without}
    features |= {name: features[name] | {"side": "candidate"} for name in candidates}
    if weighted:
        features["tags"] = features["tags"] | {"weights": "tag_share"}
    columns = {"train": [*features, *LABELS], "test": [*features]}
    return {
        "feature_spec": features | LABELS,
        "source_spec": {
            mapping: [{"type": "parquet", "features": names, "files": ["part.parquet"]}]
            for mapping, names in columns.items()
        },
        "channel_spec": channels | {"label": list(LABELS), "map": []},
    }


def write_run(
    folder: Path,
    *,
    without: tuple[str, ...] = (),
    weighted: bool = False,
    candidates: tuple[str, ...] = (),
    encoders: Mapping[str, Encoder] | None = None,
    logit_maps: Mapping[str, LogitMap] | None = None,
    score: str | None = None,
    **flags: object,
) -> LoadedModel:
    """Makes a model and writes it to `folder`/model as a run does; returns what is read back."""
    folder.mkdir(parents=True, exist_ok=True)
    document = specification(without, weighted=weighted, candidates=candidates)
    spec = FeatureSpec.from_dict(document | ({} if score is None else {"score": score}), folder)
    widths = {feature.name: 4 for feature in (*spec.onehot, *spec.multihot)}
    options = model_options(**(SMALL | flags))
    model = build_model(options, input_schema(spec, widths), tasks_of(spec), compute_dtype="float32", seed=1)
    rng = np.random.default_rng(0)
    for variable in model.variables:
        is_variance = "variance" in variable.path
        variable.assign(rng.uniform(0.5, 1.5, variable.shape) if is_variance else rng.normal(0, 0.3, variable.shape))
    if encoders:
        save_encoders(encoders, folder / "workflow")
    names = tuple(label.name for label in spec.labels)
    maps = dict(logit_maps or {})
    architecture = Architecture(options.model, names, to_plain(vars(options)), step=1, metrics={}, logit_maps=maps)
    documents = {
        ARCHITECTURE: asdict(architecture),
        SPECIFICATION: spec.to_yaml(),
        SIZES: widths,
        **workflow_files(folder),
    }
    write_model(folder / MODEL_FOLDER, TrainState(model.weights_by_name).sources(), documents)
    return load_model(folder / MODEL_FOLDER)


def write_large_run(folder: Path, rows: int, width: int) -> None:
    """Writes `folder`/model with a single table, [rows, width], whose rows are drawn while they are written."""
    chunks = [{"type": "parquet", "features": ["user", "click"], "files": ["part.parquet"]}]
    document = {
        "feature_spec": {"user": {"dtype": "int32", "cardinality": rows}, "click": {"dtype": "float32"}},
        "source_spec": dict.fromkeys(("train", "test"), chunks),
        "channel_spec": {"onehot_categorical": ["user"], "label": ["click"]},
    }
    folder.mkdir(parents=True)
    spec = FeatureSpec.from_dict(document, folder)
    options = model_options(model="wide_deep", deep_hidden_units=(8,))
    layout = input_schema(spec, {"user": width})
    # Restored: the tables of this model take no memory as long as nothing reads them.
    model = build_model(options, layout, tasks_of(spec), compute_dtype="float32", seed=1, restored=True)
    rng = np.random.default_rng(0)

    def drawn(source: ArraySource) -> ArraySource:
        if not source.name.startswith("embeddings/"):
            return source
        sizes = [stop - start for start, stop in row_ranges(source.shape, np.dtype(np.float32))]
        return replace(
            source, blocks=lambda: (rng.random((size, *source.shape[1:]), np.float32) - 0.5 for size in sizes)
        )

    sources = [drawn(source) for source in TrainState(model.weights_by_name).sources()]
    architecture = Architecture(options.model, ("click",), to_plain(vars(options)), step=1, metrics={}, logit_maps={})
    documents = {ARCHITECTURE: asdict(architecture), SPECIFICATION: spec.to_yaml(), SIZES: {"user": width}}
    write_model(folder / MODEL_FOLDER, sources, documents)


def draw_inputs(rows: int, without: tuple[str, ...] = (), *, weighted: bool = False) -> dict[str, np.ndarray]:
    """Encoded rows by feature name; multi-hot rows with every number of pads."""
    without = without if weighted else (*without, "tag_share")
    rng = np.random.default_rng(rows)
    pads = np.arange(3) >= rng.integers(0, 4, (rows, 1))
    drawn = {
        "user": rng.integers(0, 500, (rows, 1), np.int32),
        "day": rng.integers(0, 7, (rows, 1), np.int32),
        "tags": np.where(pads, -1, rng.integers(0, 90, (rows, 3))).astype(np.int32),
        "tag_share": 2 * rng.random((rows, 3), np.float32),
        "age": rng.normal(size=(rows, 1)).astype(np.float32),
        "price": rng.normal(size=(rows, 1)).astype(np.float32),
    }
    return {name: values for name, values in drawn.items() if name not in without}


def predicted(saved: LoadedModel, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the live model's predictions of encoded rows, float64."""
    rows = len(next(iter(inputs.values())))
    ids = [np.zeros((rows, 0), np.int32), *(inputs[name] for name in ("user", "day", "tags") if name in inputs)]
    numbers = [np.zeros((rows, 0), np.float32), *(inputs[name] for name in ("age", "price") if name in inputs)]
    weights = [inputs["tag_share"]] if "tag_share" in inputs else []
    logits = saved.model(np.concatenate(ids, axis=1), np.concatenate(numbers, axis=1), *weights).numpy().astype(float)
    classes = np.exp(logits[:, 2:5])
    return {
        "click": 1 / (1 + np.exp(-logits[:, :1])),
        "spend": logits[:, 1:2],
        "topic": classes / classes.sum(axis=1, keepdims=True),
    }
