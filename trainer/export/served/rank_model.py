"""Serves ranking requests with Triton's Python backend, which needs onnxruntime and NumPy.

The inputs of a request have one row, those of its candidates a row for each. Beside rank.onnx, a model of raw columns
has a folder `encoders`, with the encoders of the request and those of the candidates.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).parent))  # where raw_encoding.py lies

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
    then exchanged through DLPack, which has no strings.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model version that Triton serves, and its encoders if it takes raw columns."""
        self._reads_numpy = _reads_numpy()
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        self._inputs = [entry["name"] for entry in config["input"]]
        self._candidates = [entry["name"] for entry in config["input"] if int(entry["dims"][0]) < 0]
        self._outputs = [entry["name"] for entry in config["output"]]
        self._encode = self._encoding(folder / "encoders") if (folder / "encoders").is_dir() else dict
        self._session = onnxruntime.InferenceSession(folder / "rank.onnx", providers=["CPUExecutionProvider"])

    def _encoding(self, folder: Path) -> Callable[[Arrays], Arrays]:
        """Return what encodes raw columns."""
        if not self._reads_numpy:
            raise pb_utils.TritonModelException(
                f"this server's Python backend does not read NumPy {np.__version__}: install the version that it was "
                "built for, such as 'numpy<2'"
            )
        from raw_encoding import RequestEncoder

        encode: Callable[[Arrays], Arrays] = RequestEncoder(folder).encode
        return encode

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request by itself; one that cannot be answered gets an error that says why."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            features = {name: self._array(pb_utils.get_input_tensor_by_name(request, name)) for name in self._inputs}
            self._check_rows(features)
            predictions = self._session.run(self._outputs, self._encode(features))
        except Exception as error:  # of various types, and Triton needs a response to every request
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        make = pb_utils.Tensor if self._reads_numpy else pb_utils.Tensor.from_dlpack
        tensors = [make(name, array) for name, array in zip(self._outputs, predictions, strict=True)]
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def _array(self, tensor: Any) -> np.ndarray:
        array: np.ndarray = tensor.as_numpy() if self._reads_numpy else np.from_dlpack(tensor)
        return array

    def _check_rows(self, features: Arrays) -> None:
        """Raise a ValueError if the inputs of candidates differ in the number of rows; Triton checks the others."""
        first = self._candidates[0]
        for name in self._candidates:
            if len(features[name]) != len(features[first]):
                raise ValueError(
                    f"the input {name} has {len(features[name])} rows, and {first} {len(features[first])}; the inputs "
                    "of candidates need one row for each candidate"
                )
