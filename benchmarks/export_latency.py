"""How long one prediction takes on the CPU: the live model, its SavedModel and its ONNX file side by side.

    python -m benchmarks.export_latency --model_dir M [M2 ...]

Prints a JSON line per model and batch size with the median and the 95th percentile of milliseconds for each of them,
arrays in and arrays out, in one process. The three take turns, so that what else the machine does meets all of them.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.harness import report
from trainer.checkpoint.model_folder import MODEL_FOLDER
from trainer.export.comparison import Predict
from trainer.process.startup import import_tensorflow

if TYPE_CHECKING:
    from trainer.checkpoint.load_model import LoadedModel

BATCHES = (1, 64, 4096)
WARM_UP, CALLS = 20, 300


def main() -> int:
    """Export, measure, print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_dir", type=Path, nargs="+", required=True, help="--model_dir of a run, or of several")
    parser.add_argument("--calls", type=int, default=CALLS, help="calls of each (default: %(default)s)")
    arguments = parser.parse_args()
    import_tensorflow()
    for model_dir in arguments.model_dir:
        with tempfile.TemporaryDirectory() as folder:
            _measure(model_dir, Path(folder), arguments.calls)
    return 0


def _measure(model_dir: Path, folder: Path, calls: int) -> None:
    from trainer.checkpoint.load_model import load_model
    from trainer.export.ports import named_inputs
    from trainer.export.rows import random_rows

    saved = load_model(model_dir / MODEL_FOLDER)
    ways = {"live": _live(saved)} | _exported(model_dir, folder)
    about = {
        "onnxruntime": version("onnxruntime"),
        "model_dir": str(model_dir),
        "model": saved.model.name,
        "parameters": saved.model.parameters,
    }
    for rows in BATCHES:
        inputs = named_inputs(saved.layout, random_rows(saved.layout, rows))
        report(about | {"batch": rows, "calls": calls} | _milliseconds(ways, inputs, calls))


def _live(saved: "LoadedModel") -> Predict:
    from trainer.export.graph import encoded_function

    function = encoded_function(saved)

    def predict(features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: tensor.numpy() for name, tensor in function(dict(features)).items()}

    return predict


def _exported(model_dir: Path, folder: Path) -> dict[str, Predict]:
    import export
    from trainer.export.onnx_file import load_onnx
    from trainer.export.saved_model_folder import ENCODED, load_signatures

    for name in ("savedmodel", "onnx"):
        code = export.main(["--model_dir", str(model_dir), "--output", str(folder / name), "--format", name])
        if code:
            sys.exit(code)
    return {
        "savedmodel": load_signatures(folder / "savedmodel")[ENCODED],
        "onnx": load_onnx(folder / "onnx" / "model.onnx"),
    }


def _milliseconds(ways: Mapping[str, Predict], inputs: Mapping[str, np.ndarray], calls: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for call in range(WARM_UP + calls):
        for name, predict in ways.items():
            start = time.perf_counter()
            predict(inputs)
            if call >= WARM_UP:
                taken[name].append(1000 * (time.perf_counter() - start))
    figures = {}
    for name, times in taken.items():
        median, slow = np.percentile(times, [50, 95]).round(3).tolist()
        figures |= {f"{name}_median_ms": median, f"{name}_p95_ms": slow}
    return figures


if __name__ == "__main__":
    sys.exit(main())
