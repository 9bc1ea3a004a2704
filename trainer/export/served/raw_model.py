"""Encodes raw columns and asks another model of the server for predictions, with Triton's Python backend and NumPy."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).parent))  # the folder of this file, where raw_encoding.py lies beside it

from raw_encoding import NULL_INTEGER, Arrays, RawEncoder

# What represents null, and pads lists.
NULL = {"string": b"", "int64": NULL_INTEGER, "float64": np.nan}


def _reads_numpy() -> bool:
    """Returns whether Triton's Python backend was built for this version of NumPy; otherwise it misreads arrays."""
    probe = np.arange(4, dtype=np.uint8)
    return np.array_equal(pb_utils.Tensor.from_dlpack("probe", probe).as_numpy(), probe)


class TritonPythonModel:
    """The interface that Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the encoders of the model version that Triton serves."""
        if not _reads_numpy():
            raise pb_utils.TritonModelException(
                f"this server's Python backend does not read NumPy {np.__version__}: install the version that it was "
                "built for, such as 'numpy<2'"
            )
        config = json.loads(args["model_config"])
        self._outputs = [entry["name"] for entry in config["output"]]
        # Names of models that predict from encoded features, in order of preference.
        self._models = config["parameters"]["encoded_models"]["string_value"].split()
        self._encoder = RawEncoder(Path(args["model_repository"]) / args["model_version"] / "encoders")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answers all requests of a dynamic batch in one forward pass, or one by one if that fails."""
        rows = [self._rows(request) for request in requests]
        try:
            predictions = self._predict(self._encoder.encode(self._merged(rows)))
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
        """Joins the rows of requests; lists are padded to the longest one."""
        if len(rows) == 1:
            return rows[0]
        return {name: np.concatenate(self._padded(name, [one[name] for one in rows])) for name in rows[0]}

    def _padded(self, name: str, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        width, null = max(array.shape[1] for array in arrays), NULL[self._encoder.inputs[name]]
        return [np.pad(one, ((0, 0), (0, width - one.shape[1])), constant_values=null) for one in arrays]

    def _predict(self, features: Arrays) -> Arrays:
        """Returns the predictions of the first model that the server has loaded."""
        response = None
        for model in self._models:
            inputs = [pb_utils.Tensor(name, values) for name, values in features.items()]
            request = pb_utils.InferenceRequest(model_name=model, requested_output_names=self._outputs, inputs=inputs)
            response = request.exec()
            if not response.has_error():
                self._models = [model]
                return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
        raise RuntimeError(response.error().message() if response else "no model for encoded features is configured")

    def _response(self, predictions: Arrays, start: int, end: int) -> Any:
        tensors = [pb_utils.Tensor(name, predictions[name][start:end]) for name in self._outputs]
        return pb_utils.InferenceResponse(output_tensors=tensors)
