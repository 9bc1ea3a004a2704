"""Export of a model as an ONNX file."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import tensorflow as tf
import tf2onnx

from trainer.checkpoint.load_model import LoadedModel
from trainer.export.comparison import Check, Predict
from trainer.export.graph import encoded_function
from trainer.export.rows import ComparedRows

# Released in September 2022; supported by onnxruntime since 1.14 and Triton since 23.02.
OPSET = 17
MODEL_FILE = "model.onnx"


def write(folder: Path, saved: LoadedModel, rows: ComparedRows) -> Iterator[Check]:
    """Writes DIR/model.onnx."""
    write_onnx(folder / MODEL_FILE, saved)
    yield rows.check(MODEL_FILE, load_onnx(folder / MODEL_FILE))


def write_onnx(path: Path, saved: LoadedModel) -> None:
    """Writes the forward pass on encoded features (see `encoded_function`) with embedded weights."""
    write_function(path, encoded_function(saved))


def write_function(path: Path, function: tf.types.experimental.PolymorphicFunction) -> None:
    """Writes a function of named tensors, which has an input signature, with embedded weights."""
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    model, _ = tf2onnx.convert.from_function(function, input_signature=function.input_signature, opset=OPSET)
    _fill_in_constants(model.graph, function.get_concrete_function())
    onnx.checker.check_model(model)
    onnx.save_model(model, path)


def load_onnx(path: Path) -> Predict:
    """Loads an ONNX file into onnxruntime, as a server would, and returns its prediction function."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def predict(features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, dict(features)), strict=True))

    return predict


def _fill_in_constants(graph: onnx.GraphProto, function: tf.types.experimental.ConcreteFunction) -> None:
    """Stores the values of captured constants in the graph, as the converter turns these constants into inputs."""
    constants = {inside.name: value for value, inside in function.graph.captures if value.dtype != tf.resource}
    read = {name for node in graph.node for name in node.input}
    for name in constants.keys() & read:
        graph.initializer.append(onnx.numpy_helper.from_array(constants[name].numpy(), name))
    inputs = [entry for entry in graph.input if entry.name not in constants]
    del graph.input[:]
    graph.input.extend(inputs)
