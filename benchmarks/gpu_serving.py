"""A model trained by main.py on a GPU, and served: a JSON line per part. gpu.py starts this.

    python -m benchmarks.gpu_serving --dataset D --folder F [--parts predict savedmodel onnx] [--flags ...]

    predict      main.py trains an epoch, and then predicts the test rows (--predict)
    savedmodel   export.py writes a SavedModel; it is loaded on the GPU, and predicts the first rows once more
    onnx         likewise an ONNX file, with onnxruntime on the CPU

`largest_difference` of a probability from that of --predict has to be at most `limit`. Products are float32's, without
TF32, if the environment has NVIDIA_TF32_OVERRIDE=0, with which gpu.py starts this.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.gpu_parts import Skipped, parser_of_parts, run_parts
from benchmarks.harness import ROOT, Line
from data.loading.loader import ParquetLoader
from data.spec.embedding_sizes import embedding_dims
from data.spec.feature_spec import FeatureSpec
from data.spec.features import PREDICTION_COLUMN
from trainer.export import FORMATS
from trainer.layout import input_schema

LIMIT = 1e-4
PARTS = ["predict", "savedmodel", "onnx"]


class Served:
    """A model and its exports.

    Args:
        dataset: a prepared dataset.
        folder: an existing folder for the model, its predictions and its exports.
        batch: rows of a step, and the number of rows that an export predicts.
        flags: further flags of main.py.
    """

    def __init__(self, dataset: Path, folder: Path, batch: int, flags: list[str]):
        self._dataset, self._folder, self._batch, self._flags = dataset, folder, batch, flags
        self._model, self._predictions = folder / "model", folder / "predictions.parquet"

    def predict(self) -> Line:
        """Train and predict."""
        paths = ["--dataset_path", self._dataset, "--model_dir", self._model, "--results_dir", self._folder / "results"]
        batch = ["--eval_batch_size", str(self._batch)]
        training = ["--recipe", "published", "--num_epochs", "1", "--global_batch_size", str(self._batch)]
        run_program("main.py", *paths, *batch, *training, *self._flags)
        run_program("main.py", *paths, *batch, "--predict", self._predictions)
        predicted = self._probabilities()
        shares = {name: round(float(own.mean()), 4) for name, own in predicted.items()}
        return {"rows": len(next(iter(predicted.values()))), "mean_probability": shares}

    def export(self, name: str) -> Line:
        """Export to a format and compare the predictions of the export."""
        if missing := [package for package in FORMATS[name].packages if find_spec(package) is None]:
            raise Skipped(f"not installed: {', '.join(missing)}")
        output = self._folder / name
        run_program("export.py", "--model_dir", self._model, "--output", output, "--format", name)
        # These import TensorFlow, which takes memory of the GPU that the programs above need.
        from trainer.export.ports import named_inputs
        from trainer.export.rows import first_rows

        spec = FeatureSpec.read(self._dataset / "feature_spec.yaml")
        layout = input_schema(spec, embedding_dims(spec, None))
        loader = ParquetLoader(spec, "test", global_batch_size=self._batch, shuffle=False)
        inputs = named_inputs(layout, first_rows(loader, layout))
        predict = loaded(name, output)
        found = predict(inputs)  # traces
        started = time.perf_counter()
        predict(inputs)
        seconds = time.perf_counter() - started
        expected = {task: own[: len(found[task])] for task, own in self._probabilities().items()}
        difference = max(float(np.abs(found[task][:, 0] - own).max()) for task, own in expected.items())
        return {
            "rows": len(next(iter(found.values()))),
            "samples_per_second": round(len(next(iter(found.values()))) / seconds),
            "largest_difference": difference,
            "limit": LIMIT,
            "passed": difference <= LIMIT,
        }

    def _probabilities(self) -> dict[str, np.ndarray]:
        """Return the predictions of --predict by task, [rows] each."""
        table = pq.read_table(self._predictions)
        names = [name for name in table.column_names if name.startswith(PREDICTION_COLUMN)]
        return {name.removeprefix(PREDICTION_COLUMN): table[name].to_numpy() for name in names}


def loaded(name: str, folder: Path) -> Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]:
    """Return the prediction function of an export."""
    if name == "onnx":
        from trainer.export.onnx_file import MODEL_FILE, load_onnx

        return load_onnx(folder / MODEL_FILE)
    from trainer.export.saved_model_folder import ENCODED, load_signatures

    return load_signatures(folder)[ENCODED]


def run_program(*arguments: str | Path) -> None:
    """Run a program of the project; raise RuntimeError with its last lines if it fails."""
    ended = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    if ended.returncode:
        last = " | ".join(ended.stderr.strip().splitlines()[-3:])
        raise RuntimeError(f"{arguments[0]} ended with {ended.returncode}: {last}")


def main(argv: list[str] | None = None) -> int:
    parser = parser_of_parts(__doc__, PARTS)
    parser.add_argument("--folder", type=Path, required=True, help="existing folder for what is written")
    arguments = parser.parse_args(argv)
    served = Served(arguments.dataset, arguments.folder, arguments.batch, arguments.flags)
    exports = {name: partial(served.export, name) for name in ("savedmodel", "onnx")}
    run_parts({"predict": served.predict, **exports}, arguments.parts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
