"""Serves the model.onnx in the same folder with Triton's Python backend, which needs onnxruntime and NumPy."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

Arrays = dict[str, np.ndarray]


def _reads_numpy() -> bool:
    """Return whether Triton's Python backend was built for this version of NumPy; otherwise it misreads arrays."""
    probe = pb_utils.Tensor("probe", np.arange(4, dtype=np.int64))
    # From Triton's own memory, as requests are: a tensor made of an array returns that array.
    again = pb_utils.Tensor.from_dlpack("again", probe.to_dlpack())
    return np.array_equal(again.as_numpy(), np.arange(4))


class TritonPythonModel:
    """The interface that Triton's Python backend calls.

    A backend built for NumPy 1 misreads arrays of NumPy 2: its `as_numpy` silently returns wrong numbers. Tensors are
    then exchanged through DLPack.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model version that Triton serves."""
        self._reads_numpy = _reads_numpy()
        config = json.loads(args["model_config"])
        self._inputs = [entry["name"] for entry in config["input"]]
        self._outputs = [entry["name"] for entry in config["output"]]
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer all requests of a dynamic batch in one forward pass, or one by one if that fails."""
        features = [self._features(request) for request in requests]
        merged = {name: np.concatenate([one[name] for one in features]) for name in self._inputs}
        try:
            predictions = self._predict(merged)
        except Exception as error:  # onnxruntime raises various types, and Triton needs a response to every request
            if len(features) == 1:
                return [pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))]
            # An id out of range in one request must not fail the others.
            return [self.execute([request])[0] for request in requests]
        ends = np.cumsum([len(one[self._inputs[0]]) for one in features])
        return [self._response(predictions, start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def _features(self, request: Any) -> Arrays:
        tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in self._inputs}
        return {
            name: tensor.as_numpy() if self._reads_numpy else np.from_dlpack(tensor) for name, tensor in tensors.items()
        }

    def _predict(self, features: Arrays) -> Arrays:
        return dict(zip(self._outputs, self._session.run(self._outputs, features), strict=True))

    def _response(self, predictions: Arrays, start: int, end: int) -> Any:
        make = pb_utils.Tensor if self._reads_numpy else pb_utils.Tensor.from_dlpack
        tensors = [make(name, array[start:end]) for name, array in predictions.items()]
        return pb_utils.InferenceResponse(output_tensors=tensors)
