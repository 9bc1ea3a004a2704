"""Export of a model as a model repository for NVIDIA Triton Inference Server.

DIR/recommender/config.pbtxt, 1/model.onnx                    for Triton's ONNX backend
DIR/recommender_python/config.pbtxt, 1/model.onnx, model.py   the same model for its Python backend
DIR/client.py, example.json                                   HTTP client with sample input; ignored by Triton
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from trainer.checkpoint.load_model import LoadedModel
from trainer.export.comparison import Check
from trainer.export.onnx_file import MODEL_FILE, load_onnx, write_onnx
from trainer.export.ports import Port, inputs_of, outputs_of, rows_of
from trainer.export.rows import ComparedRows

NATIVE, PYTHON = "recommender", "recommender_python"
MAX_BATCH = 4096
# Maximum time that a request waits for others to be batched with it.
MAX_DELAY_MICROSECONDS = 500
TYPES = {"int32": "TYPE_INT32", "float32": "TYPE_FP32"}
# Folder of the files that are copied unchanged.
SERVED = Path(__file__).parent / "served"


def write(folder: Path, saved: LoadedModel, rows: ComparedRows) -> Iterator[Check]:
    """Writes the repository. The first rows become the sample input of the client."""
    files = []
    for name, backend in ((NATIVE, "onnxruntime"), (PYTHON, "python")):
        version = folder / name / "1"
        version.mkdir(parents=True)
        (version.parent / "config.pbtxt").write_text(_config(backend, saved))
        files.append(version / MODEL_FILE)
    write_onnx(files[0], saved)
    shutil.copyfile(*files)
    shutil.copyfile(SERVED / "model.py", files[1].with_name("model.py"))
    shutil.copyfile(SERVED / "client.py", folder / "client.py")
    example = rows_of(rows.inputs, slice(2))
    (folder / "example.json").write_text(json.dumps({name: array.tolist() for name, array in example.items()}) + "\n")
    for file in files:
        yield rows.check(str(file.relative_to(folder)), load_onnx(file))


def _config(backend: str, saved: LoadedModel) -> str:
    """Returns a config.pbtxt. It sets no name, so that Triton uses the folder's name and the folder can be renamed."""
    lines = [
        f'backend: "{backend}"',
        f"max_batch_size: {MAX_BATCH}",
        *_ports("input", inputs_of(saved.layout)),
        *_ports("output", outputs_of(saved.tasks)),
        f"dynamic_batching {{ max_queue_delay_microseconds: {MAX_DELAY_MICROSECONDS} }}",
        "version_policy { latest { num_versions: 1 } }",
    ]
    if backend == "python":
        lines.append("instance_group [ { kind: KIND_CPU } ]")
    return "\n".join(lines) + "\n"


def _ports(kind: str, ports: tuple[Port, ...]) -> list[str]:
    """Returns config lines of the inputs or outputs. `dims` excludes the batch dimension, which Triton adds."""
    entries = [f'  {{ name: "{port.name}", data_type: {TYPES[port.dtype]}, dims: [ {port.width} ] }}' for port in ports]
    return [f"{kind} [", ",\n".join(entries), "]"]
