"""A load test of exports: one request with many candidates, as rows and as a ranking request, side by side.

    python -m benchmarks.serving [--tritonserver FOLDER] [--candidates 300] [--clients 2]

The model is Criteo-like: 13 numbers and 26 texts per row, of which 20 are the request's and 19 each candidate's, with
random weights. It is asked in TensorFlow's runtime, in this process, and by HTTP in a Triton server: FOLDER is where

    pip install --no-deps --require-hashes --target FOLDER -r requirements/tritonserver.txt

has installed one. All ways take turns, so that what else the machine does meets all of them. Prints a table with the
requests per second of all clients together and percentiles of the milliseconds of a request, as a client sees them:
from arrays, or for Triton from the bytes of a request, to predictions. The last column is the median over that of rows.
"""

import argparse
import http.client
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np

from benchmarks.criteo_like import CARDINALITIES, LABEL, NUMBERS, TEXTS
from benchmarks.harness import about, command
from benchmarks.triton_server import serving
from data.encoding.encoder_files import save_encoders
from data.encoding.encoders import Encoder, Numerical, Vocabulary
from data.encoding.workflow_folder import workflow_files
from data.spec.feature_spec import FeatureSpec
from trainer.process.startup import import_tensorflow

if TYPE_CHECKING:
    from trainer.export.comparison import Arrays

# Features of the candidates: every second text, and the last six numbers.
CANDIDATES = (*TEXTS[::2], *NUMBERS[7:])
# Texts that a vocabulary knows at most, for a quick export, and the width of all embeddings, that of DLRM on Criteo.
LARGEST, WIDTH = 10_000, 128
ROWS, RANKED = "rows", "ranked"
WARM_UP = 10


@dataclass
class Way:
    """A way to ask for predictions.

    Attributes:
        runtime: what computes them.
        inputs: "encoded" or "raw".
        request: ROWS or RANKED.
        ask: sends a request and waits for the predictions, in any thread.
        seconds: how long each request took.
        busy: how long the clients were busy, in seconds.
    """

    runtime: str
    inputs: str
    request: str
    ask: Callable[[], object]
    seconds: list[float] = field(default_factory=list)
    busy: float = 0.0


def main() -> int:
    """Export, measure, print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tritonserver", type=Path, metavar="FOLDER", help="an installed nvidia-pytriton")
    parser.add_argument("--candidates", type=int, default=300, help="candidates of a request (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=2, help="requests at the same time (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=400, help="requests of each way (default: %(default)s)")
    parser.add_argument("--units", type=int, nargs="+", default=[1024, 256], help="hidden layers (default: 1024 256)")
    arguments = parser.parse_args()
    import_tensorflow()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        write_model(folder / "run", tuple(arguments.units))
        ways = _in_tensorflow(folder, arguments.candidates)
        if arguments.tritonserver is not None:
            ways += stack.enter_context(_in_triton(folder, arguments.tritonserver.resolve(), arguments.candidates))
        measure(ways, arguments.requests, arguments.clients)
    print(json.dumps(about(command())))
    print("\n".join(table(ways)))
    return 0


def write_model(folder: Path, units: tuple[int, ...]) -> None:
    """Write a Criteo-like model with random weights and its encoders, as a run does.

    Args:
        folder: `--model_dir` of the run, which is created.
        units: units of the hidden layers.
    """
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
    from trainer.tasks.task import tasks_of

    folder.mkdir()
    encoders, widths = _encoders(), dict.fromkeys(TEXTS, WIDTH)
    features = {name: {"dtype": "float32"} for name in NUMBERS}
    features |= {name: {"dtype": "int32", "cardinality": encoders[name].cardinality, "unseen_id": 2} for name in TEXTS}
    features = {name: keys | {"side": "candidate"} if name in CANDIDATES else keys for name, keys in features.items()}
    chunk = {"type": "parquet", "features": [*features, LABEL], "files": ["none.parquet"]}
    document = {
        "feature_spec": features | {LABEL: {"dtype": "float32"}},
        "source_spec": {"train": [chunk], "test": [chunk]},
        "channel_spec": {"onehot_categorical": TEXTS, "numerical": NUMBERS, "label": [LABEL]},
    }
    spec, options = FeatureSpec.from_dict(document, folder), model_options(deep_hidden_units=units)
    model = build_model(options, input_schema(spec, widths), tasks_of(spec), compute_dtype="float32", seed=0)
    save_encoders(encoders, folder / "workflow")
    architecture = Architecture(options.model, (LABEL,), to_plain(vars(options)), step=1, metrics={}, logit_maps={})
    documents = {ARCHITECTURE: asdict(architecture), SPECIFICATION: spec.to_yaml(), SIZES: widths}
    documents |= workflow_files(folder)
    write_model(folder / MODEL_FOLDER, TrainState(model.weights_by_name).sources(), documents)


def _encoders() -> dict[str, Encoder]:
    texts: dict[str, Encoder] = {
        name: Vocabulary(
            name,
            np.array([f"{number:08x}" for number in range(min(size, LARGEST))], object),
            np.ones(min(size, LARGEST), np.int64),
        )
        for name, size in zip(TEXTS, CARDINALITIES, strict=True)
    }
    return texts | {name: Numerical.standardized(name, fill=0.0, mean=2.0, std=3.0) for name in NUMBERS}


def draw_rows(candidates: int) -> "dict[str, Arrays]":
    """Draw a request of encoded features and one of raw columns; those of the request have equal rows."""
    rng = np.random.default_rng(0)
    ids = {
        name: rng.integers(0, min(size, LARGEST), (candidates, 1))
        for name, size in zip(TEXTS, CARDINALITIES, strict=True)
    }
    numbers = {name: rng.normal(2, 3, (candidates, 1)) for name in NUMBERS}
    drawn = {
        name: own if name in CANDIDATES else np.repeat(own[:1], candidates, axis=0)
        for name, own in (ids | numbers).items()
    }
    texts = {name: np.array([[f"{number:08x}".encode()] for number in drawn[name][:, 0]], object) for name in ids}
    return {
        "encoded": {name: own.astype(np.int32 if name in ids else np.float32) for name, own in drawn.items()},
        "raw": texts | {name: drawn[name] for name in numbers},
    }


def _requests(candidates: int) -> "Iterator[tuple[str, str, Arrays]]":
    """Yield inputs, kind of request and arrays of the four requests."""
    for inputs, rows in draw_rows(candidates).items():
        yield inputs, ROWS, rows
        yield inputs, RANKED, {name: own if name in CANDIDATES else own[:1] for name, own in rows.items()}


def _export(folder: Path, name: str) -> Path:
    import export

    output = folder / name
    code = export.main(["--model_dir", str(folder / "run"), "--output", str(output), "--format", name])
    if code:
        sys.exit(code)
    return output


def _in_tensorflow(folder: Path, candidates: int) -> list[Way]:
    import tensorflow as tf

    from trainer.export.saved_model_folder import ENCODED, RANK, RANK_RAW, RAW

    loaded = tf.saved_model.load(str(_export(folder, "savedmodel")))  # noqa: TID251
    names = {("encoded", ROWS): ENCODED, ("encoded", RANKED): RANK, ("raw", ROWS): RAW, ("raw", RANKED): RANK_RAW}

    def way(inputs: str, request: str, arrays: "Arrays") -> Way:
        signature = loaded.signatures[names[inputs, request]]

        def ask() -> np.ndarray:
            found = signature(**{name: tf.constant(array) for name, array in arrays.items()})
            return found[LABEL].numpy()

        return Way("TensorFlow", inputs, request, ask)

    return [way(*one) for one in _requests(candidates)]


@contextmanager
def _in_triton(folder: Path, packages: Path, candidates: int) -> Iterator[list[Way]]:
    from trainer.export.triton_repository import PYTHON, RANK, RANK_RAW, RAW

    names = {("encoded", ROWS): PYTHON, ("encoded", RANKED): RANK, ("raw", ROWS): RAW, ("raw", RANKED): RANK_RAW}
    repository = _export(folder, "triton")
    (folder / "server").mkdir()
    with serving(packages, folder / "server", repository, [*names.values()]) as url:
        yield [
            Way("Triton", inputs, request, _asks(url, names[inputs, request], arrays))
            for inputs, request, arrays in _requests(candidates)
        ]


def _asks(url: str, model: str, arrays: "Arrays") -> Callable[[], bytes]:
    """Return a function that posts a request in Triton's binary format and returns the body of the answer."""
    header, blobs = {"inputs": list[object](), "outputs": [{"name": LABEL, "parameters": {"binary_data": True}}]}, b""
    types = {np.dtype(np.int32): "INT32", np.dtype(np.float32): "FP32", np.dtype(np.float64): "FP64"}
    for name, array in arrays.items():
        blob = array.tobytes()
        if array.dtype == object:
            blob = b"".join(len(text).to_bytes(4, "little") + text for text in array.reshape(-1).tolist())
        header["inputs"].append(
            {
                "name": name,
                "datatype": types.get(array.dtype, "BYTES"),
                "shape": array.shape,
                "parameters": {"binary_data_size": len(blob)},
            }
        )
        blobs += blob
    text = json.dumps(header).encode()
    headers = {"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"}

    clients = threading.local()  # each of which keeps its connection

    def ask() -> bytes:
        connection = getattr(clients, "connection", None)
        if connection is None:
            connection = clients.connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        connection.request("POST", f"/v2/models/{model}/infer", text + blobs, headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{model}: {body.decode()}")
        return body

    return ask


def measure(ways: list[Way], requests: int, clients: int, block: int = 20) -> None:
    """Send the requests of each way by several clients, in blocks that take turns."""

    def timed(way: Way) -> float:
        start = time.perf_counter()
        way.ask()
        return time.perf_counter() - start

    with ThreadPoolExecutor(clients) as pool:
        for way in ways:
            list(pool.map(timed, [way] * WARM_UP))
        for _ in range(-(-requests // block)):
            for way in ways:
                start = time.perf_counter()
                way.seconds += pool.map(timed, [way] * block)
                way.busy += time.perf_counter() - start


def table(ways: list[Way]) -> list[str]:
    """Return the lines of a table of what has been measured."""
    lines = [
        "| runtime | inputs | request | requests/s | p50 ms | p95 ms | p99 ms | over rows |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    of_rows: Mapping[tuple[str, str], float] = {
        (way.runtime, way.inputs): float(np.median(way.seconds)) for way in ways if way.request == ROWS
    }
    for way in ways:
        p50, p95, p99 = 1000 * np.percentile(way.seconds, [50, 95, 99])
        over = "" if way.request == ROWS else f"{p50 / 1000 / of_rows[way.runtime, way.inputs]:.2f}"
        figures = [f"{len(way.seconds) / way.busy:.0f}", *(f"{figure:.1f}" for figure in (p50, p95, p99)), over]
        lines.append(f"| {' | '.join([way.runtime, way.inputs, way.request, *figures])} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
