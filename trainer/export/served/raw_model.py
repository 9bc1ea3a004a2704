"""Serves model.onnx with Triton's Python backend for raw columns; needs onnxruntime and NumPy.

The columns are encoded in the same process: another model of the server would have to be asked over shared memory,
which takes longer than to encode a row.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).parent))  # where raw_encoding.py lies

from raw_encoding import NULL_INTEGER, Arrays, RawEncoder

# What represents null, and pads lists.
NULL = {"string": b"", "int64": NULL_INTEGER, "float64": np.nan}


def _reads_numpy() -> bool:
    """Return whether Triton's Python backend was built for this version of NumPy; otherwise it misreads arrays."""
    probe = pb_utils.Tensor("probe", np.arange(4, dtype=np.int64))
    # From Triton's own memory, as requests are: a tensor made of an array returns that array.
    again = pb_utils.Tensor.from_dlpack("again", probe.to_dlpack())
    return np.array_equal(again.as_numpy(), np.arange(4))


class TritonPythonModel:
    """The interface that Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model version that Triton serves, and its encoders."""
        if not _reads_numpy():
            raise pb_utils.TritonModelException(
                f"this server's Python backend does not read NumPy {np.__version__}: install the version that it was "
                "built for, such as 'numpy<2'"
            )
        config = json.loads(args["model_config"])
        self._outputs = [entry["name"] for entry in config["output"]]
        folder = Path(args["model_repository"]) / args["model_version"]
        self._encoder = RawEncoder(folder / "encoders")
        self._session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer all requests of a dynamic batch in one forward pass, or one by one if that fails."""
        rows = [self._rows(request) for request in requests]
        try:
            features = self._encoder.encode(self._merged(rows))
            predictions = dict(zip(self._outputs, self._session.run(self._outputs, features), strict=True))
        except Exception as error:  # Triton needs a response to every request
            if len(rows) == 1:
                return [pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))]
            # An id out of range in one request must not fail the others.
            return [self.execute([request])[0] for request in requests]
        ends = np.cumsum([len(next(iter(one.values()))) for one in rows])
        return [self._response(predictions, start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def _rows(self, request: Any) -> Arrays:
        return {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._encoder.inputs}

    def _merged(self, rows: Sequence[Arrays]) -> Arrays:
        """Join the rows of requests; lists are padded to the longest one."""
        if len(rows) == 1:
            return rows[0]
        for one in rows:
            self._encoder.check_lengths(one)  # which the padding changes
        return {name: np.concatenate(self._padded(name, [one[name] for one in rows])) for name in rows[0]}

    def _padded(self, name: str, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        if name not in self._encoder.lists:
            return arrays
        width, null = max(array.shape[1] for array in arrays), NULL[self._encoder.inputs[name]]
        return [np.pad(one, ((0, 0), (0, width - one.shape[1])), constant_values=null) for one in arrays]

    def _response(self, predictions: Arrays, start: int, end: int) -> Any:
        tensors = [pb_utils.Tensor(name, array[start:end]) for name, array in predictions.items()]
        return pb_utils.InferenceResponse(output_tensors=tensors)
