"""Export of a model as a model repository for NVIDIA Triton Inference Server.

DIR/recommender/config.pbtxt, 1/model.onnx                    for Triton's ONNX backend
    and, if the tables are large, 1/model.onnx.data in this and the following folders
DIR/recommender_python/config.pbtxt, 1/model.onnx, model.py   the same model for its Python backend
DIR/recommender_raw/config.pbtxt, 1/model.onnx, model.py, raw_encoding.py, encoders/
                                                              the same model of raw columns, for the Python backend
DIR/recommender_rank/config.pbtxt, 1/rank.onnx, model.py       ranking requests, for the Python backend; not without
                                                              features of candidates in the specification
DIR/recommender_rank_raw/config.pbtxt, 1/rank.onnx, model.py, raw_encoding.py, encoders/
                                                              ranking requests of raw columns, likewise
DIR/client.py, example*.json                                  HTTP client with sample input; ignored by Triton
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.checkpoint.load_model import LoadedModel
from trainer.export.comparison import Arrays, Check
from trainer.export.onnx_file import MODEL_FILE, load_onnx, share_onnx, share_tables, write_onnx
from trainer.export.ports import inputs_of, outputs_of, rows_of
from trainer.export.ranking import RawSides, can_rank, find_raw_sides, rank_function, ranked_raw_rows, ranked_rows
from trainer.export.raw_arrays import write_encoders
from trainer.export.raw_columns import NotFromRaw, RawLayout
from trainer.export.rows import ComparedRows, random_raw_rows
from trainer.export.served.raw_encoding import RawEncoder, RequestEncoder

NATIVE, PYTHON, RAW = "recommender", "recommender_python", "recommender_raw"
MAX_BATCH = 4096
# Maximum time that a request waits for others to be batched with it.
MAX_DELAY_MICROSECONDS = 500
TYPES = {
    "int32": "TYPE_INT32",
    "float32": "TYPE_FP32",
    "int64": "TYPE_INT64",
    "float64": "TYPE_FP64",
    "string": "TYPE_STRING",
}
# Folder of the files that are copied unchanged.
SERVED = Path(__file__).parent / "served"
ENCODERS = "encoders"
ON_CPU = "instance_group [ { kind: KIND_CPU } ]"
LATEST = "version_policy { latest { num_versions: 1 } }"
RANK, RANK_RAW, RANK_FILE = "recommender_rank", "recommender_rank_raw", "rank.onnx"
# (name, type, shape): without the batch dimension of row-wise models, -1 for any.
Ports = Sequence[tuple[str, str, tuple[int, ...]]]


def write(folder: Path, saved: LoadedModel, rows: ComparedRows) -> Iterator[Check]:
    """Write the repository. The first rows become the sample input of the client."""
    inputs = [(port.name, port.dtype, (port.width,)) for port in inputs_of(saved.layout)]
    for name, backend in ((NATIVE, "onnxruntime"), (PYTHON, "python")):
        version = folder / name / "1"
        version.mkdir(parents=True)
        more = [ON_CPU] if backend == "python" else []
        (version.parent / "config.pbtxt").write_text(_config(backend, inputs, saved, more))
    native, python = (folder / name / "1" / MODEL_FILE for name in (NATIVE, PYTHON))
    write_onnx(native, saved)
    share_onnx(native, python.parent)
    shutil.copyfile(SERVED / "model.py", python.with_name("model.py"))
    shutil.copyfile(SERVED / "client.py", folder / "client.py")
    _write_example(folder / "example.json", rows.inputs)
    for file in (native, python):
        yield rows.check(str(file.relative_to(folder)), load_onnx(file))
    if can_rank(saved.layout):
        yield from _write_ranking(folder, saved, rows, native)
    yield from _write_raw(folder, saved, rows.number, native)


def _write_raw(folder: Path, saved: LoadedModel, rows: int, onnx_file: Path) -> Iterator[Check]:
    """Write the model of raw columns, if the features have encoders."""
    try:
        layout = RawLayout.of(saved.layout, saved.encoders, saved.raw_spec)
    except NotFromRaw as reason:
        print(f"export.py: encoded features only, no model {RAW}: {reason}")
        return
    version = folder / RAW / "1"
    (version / ENCODERS).mkdir(parents=True)
    write_encoders(version / ENCODERS, layout)
    shutil.copyfile(SERVED / "raw_model.py", version / "model.py")
    shutil.copyfile(SERVED / "raw_encoding.py", version / "raw_encoding.py")
    inputs = [(column.name, column.dtype, (column.width or -1,)) for column in layout.columns.values()]
    (version.parent / "config.pbtxt").write_text(_config("python", inputs, saved, [ON_CPU]))
    raw = random_raw_rows(saved, layout, rows)
    _write_example(folder / "example_raw.json", raw.inputs)
    share_onnx(onnx_file, version)
    encoder, predict = RawEncoder(version / ENCODERS), load_onnx(version / MODEL_FILE)

    def predict_raw(columns: Mapping[str, np.ndarray]) -> Arrays:
        return predict(encoder.encode(columns))

    yield raw.check(str((version / MODEL_FILE).relative_to(folder)), predict_raw)
    sides = find_raw_sides(saved, layout, f"model {RANK_RAW}")
    if sides is not None:
        yield _write_raw_ranking(folder, saved, layout, sides, rows)


def _write_ranking(folder: Path, saved: LoadedModel, rows: ComparedRows, onnx_file: Path) -> Iterator[Check]:
    """Write the model of ranking requests."""
    candidates = {port.name for port in inputs_of(saved.layout.sides[1])}
    inputs = [
        (port.name, port.dtype, (-1 if port.name in candidates else 1, port.width)) for port in inputs_of(saved.layout)
    ]
    file = _new_ranking_model(folder / RANK, inputs, saved)
    write_onnx(file, saved, rank_function(saved, checked=False))
    share_tables(onnx_file, file.parent)
    ranked = ranked_rows(saved, rows)
    _write_example(folder / "example_rank.json", ranked.inputs)
    yield ranked.check(str(file.relative_to(folder)), load_onnx(file))


def _write_raw_ranking(folder: Path, saved: LoadedModel, layout: RawLayout, sides: RawSides, rows: int) -> Check:
    """Write the model of ranking requests of raw columns."""
    own = sides.of_candidates
    inputs = [
        (column.name, column.dtype, (-1 if name in own else 1, column.width or -1))
        for name, column in (sides.request.columns | own).items()
    ]
    file = _new_ranking_model(folder / RANK_RAW, inputs, saved)
    for name, side in (("request", sides.request), ("candidates", sides.candidates)):
        (file.parent / ENCODERS / name).mkdir(parents=True)
        write_encoders(file.parent / ENCODERS / name, side)
    shutil.copyfile(SERVED / "raw_encoding.py", file.with_name("raw_encoding.py"))
    share_onnx(folder / RANK / "1" / RANK_FILE, file.parent)
    ranked = ranked_raw_rows(saved, layout, sides, rows)
    _write_example(folder / "example_rank_raw.json", ranked.inputs)
    encoder, predict = RequestEncoder(file.parent / ENCODERS), load_onnx(file)

    def predict_raw(columns: Mapping[str, np.ndarray]) -> Arrays:
        return predict(encoder.encode(columns))

    return ranked.check(str(file.relative_to(folder)), predict_raw)


def _new_ranking_model(folder: Path, inputs: Ports, saved: LoadedModel) -> Path:
    """Create the folder of a model of ranking requests; return where its ONNX file belongs."""
    (folder / "1").mkdir(parents=True)
    outputs = [(port.name, port.dtype, (-1, port.width)) for port in outputs_of(saved.tasks, saved.score)]
    lines = ['backend: "python"', "max_batch_size: 0", *_ports("input", inputs), *_ports("output", outputs)]
    (folder / "config.pbtxt").write_text("\n".join([*lines, LATEST, ON_CPU]) + "\n")
    shutil.copyfile(SERVED / "rank_model.py", folder / "1" / "model.py")
    return folder / "1" / RANK_FILE


def _write_example(path: Path, inputs: Arrays) -> None:
    """Write two rows as JSON, which has no NaN: a missing number becomes 0."""
    example = {name: _as_json(array) for name, array in rows_of(inputs, slice(2)).items()}
    path.write_text(json.dumps(example) + "\n")


def _as_json(array: np.ndarray) -> list[Any]:
    if array.dtype == object:
        return [[text.decode() if isinstance(text, bytes) else text for text in row] for row in array.tolist()]
    values: list[Any] = (np.nan_to_num(array) if array.dtype.kind == "f" else array).tolist()
    return values


def _config(backend: str, inputs: Ports, saved: LoadedModel, more: Sequence[str]) -> str:
    """Return a config.pbtxt. It sets no name, so that Triton uses the folder's name and the folder can be renamed."""
    outputs = [(port.name, port.dtype, (port.width,)) for port in outputs_of(saved.tasks, saved.score)]
    lines = [
        f'backend: "{backend}"',
        f"max_batch_size: {MAX_BATCH}",
        *_ports("input", inputs),
        *_ports("output", outputs),
        f"dynamic_batching {{ max_queue_delay_microseconds: {MAX_DELAY_MICROSECONDS} }}",
        LATEST,
        *more,
    ]
    return "\n".join(lines) + "\n"


def _ports(kind: str, ports: Ports) -> list[str]:
    """Return config lines of the inputs or outputs. `dims` excludes a batch dimension, which Triton adds."""
    entries = [
        f'  {{ name: "{name}", data_type: {TYPES[dtype]}, dims: [ {", ".join(map(str, shape))} ] }}'
        for name, dtype, shape in ports
    ]
    return [f"{kind} [", ",\n".join(entries), "]"]
