"""How long one prediction takes on the CPU: the live model, its SavedModel and its ONNX file side by side.

    python -m benchmarks.export_latency --model_dir M

Prints a JSON line per batch size with the median and the 95th percentile of milliseconds for each of them, arrays in
and arrays out, in one process. The three take turns, so that what else the machine does meets all of them.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks.reporting import report
from trainer.export.comparison import Predict
from trainer.model_folder import MODEL_FOLDER
from trainer.quiet_import import import_tensorflow

BATCHES = (1, 64, 4096)
WARM_UP, CALLS = 20, 300


def main() -> int:
    """Exports, measures, prints; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_dir", type=Path, required=True, help="--model_dir of a run")
    parser.add_argument("--calls", type=int, default=CALLS, help="calls of each (default: %(default)s)")
    arguments = parser.parse_args()
    import_tensorflow()
    from trainer.export.ports import named_inputs
    from trainer.export.rows import random_rows
    from trainer.saved_model import load_model

    saved = load_model(arguments.model_dir / MODEL_FOLDER)
    with tempfile.TemporaryDirectory() as folder:
        ways = _ways(arguments.model_dir, Path(folder))
        for rows in BATCHES:
            inputs = named_inputs(saved.layout, *random_rows(saved.layout, rows))
            taken = _milliseconds(ways, inputs, arguments.calls)
            report({"model": saved.model.name, "parameters": saved.model.parameters, "batch": rows} | taken)
    return 0


def _ways(model_dir: Path, folder: Path) -> dict[str, Predict]:
    import export
    from trainer.export.graph import encoded_function
    from trainer.export.onnx_file import load_onnx
    from trainer.export.saved_model_folder import ENCODED, load_signatures
    from trainer.saved_model import load_model

    for name in ("savedmodel", "onnx"):
        code = export.main(["--model_dir", str(model_dir), "--output", str(folder / name), "--format", name])
        if code:
            sys.exit(code)
    live = encoded_function(load_model(model_dir / MODEL_FOLDER))

    def predict(features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: tensor.numpy() for name, tensor in live(dict(features)).items()}

    return {
        "live": predict,
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
