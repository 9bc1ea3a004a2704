"""Export of a model as an ONNX file, and of its tables in a second file if they are large."""

import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import onnxruntime
import tensorflow as tf
import tf2onnx

from data.storage.arrays import row_ranges
from trainer.checkpoint.load_model import LoadedModel
from trainer.export.comparison import Check, Predict
from trainer.export.graph import encoded_function
from trainer.export.rows import ComparedRows
from trainer.export.table_dtype import StoredTable, reading_from, tables_of
from trainer.variables import rows_of

# Released in September 2022; supported by onnxruntime since 1.14 and Triton since 23.02.
OPSET = 17
MODEL_FILE, TABLES_FILE = "model.onnx", "model.onnx.data"
# Largest tables, in bytes, that are in the model file. It is a protocol buffer: limited to 2 GiB, and in memory several
# times while it is written and read.
MAX_EMBEDDED_BYTES = 2**28
# Where arrays may start in the file of tables, so that every system can map it into memory.
ALIGNMENT = 2**16


def write(folder: Path, saved: LoadedModel, rows: ComparedRows) -> Iterator[Check]:
    """Write DIR/model.onnx and, if the tables are large, DIR/model.onnx.data."""
    write_onnx(folder / MODEL_FILE, saved)
    yield rows.check(MODEL_FILE, load_onnx(folder / MODEL_FILE))


def write_onnx(
    path: Path, saved: LoadedModel, function: tf.types.experimental.PolymorphicFunction | None = None
) -> None:
    """Write a forward pass.

    Tables of more than MAX_EMBEDDED_BYTES are written, block by block, to a file beside it; all other weights are
    embedded.

    Args:
        path: the file to write.
        saved: the model.
        function: a function of named tensors with an input signature; the default is that of `encoded_function`.
    """
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    function, tables = _function_of_tables(saved, function or encoded_function(saved))
    model, _ = tf2onnx.convert.from_function(function, input_signature=function.input_signature, opset=OPSET)
    constants = _captured_constants(function) | tables
    size = sum(math.prod(array.shape) * array.dtype.size for array in tables.values())
    large = tables if size > MAX_EMBEDDED_BYTES else {}
    if large:
        with (path.parent / TABLES_FILE).open("wb") as file:
            model.graph.initializer.extend(_write_array(file, name, array) for name, array in large.items())
    embedded = {name for node in model.graph.node for name in node.input} & constants.keys() - large.keys()
    model.graph.initializer.extend(onnx.numpy_helper.from_array(constants[name].numpy(), name) for name in embedded)
    inputs = [entry for entry in model.graph.input if entry.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    onnx.save_model(model, path)
    onnx.checker.check_model(str(path))


def share_onnx(path: Path, folder: Path) -> None:
    """Make the files of a written model appear in another folder: as hard links, else as copies."""
    _share(path, folder)
    share_tables(path, folder)


def share_tables(path: Path, folder: Path) -> None:
    """Make the file of tables beside a written model, if there is one, appear in another folder, as `share_onnx` does.

    One that is there is replaced: it has the same bytes for all functions of a model.
    """
    if path.with_name(TABLES_FILE).exists():
        (folder / TABLES_FILE).unlink(missing_ok=True)
        _share(path.with_name(TABLES_FILE), folder)


def _share(file: Path, folder: Path) -> None:
    try:
        os.link(file, folder / file.name)
    except OSError:  # a file system without hard links
        shutil.copyfile(file, folder / file.name)


def load_onnx(path: Path) -> Predict:
    """Load an ONNX file into onnxruntime, as a server would, and return its prediction function."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def predict(features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, dict(features)), strict=True))

    return predict


def _function_of_tables(
    saved: LoadedModel, function: tf.types.experimental.PolymorphicFunction
) -> tuple[tf.types.experimental.PolymorphicFunction, dict[str, tf.Variable]]:
    """Return a function with the arrays of the model's tables as further inputs, and these by name.

    The converter would copy captured tables several times.
    """
    tables = tables_of(saved.model)
    # No feature has a tensor name with a dot.
    specs = [
        [tf.TensorSpec(array.shape, array.dtype, f"table.{number}.{part}") for part, array in enumerate(table.arrays)]
        for number, table in enumerate(tables.values())
    ]
    arrays = {
        spec.name: array
        for of_table, table in zip(specs, tables.values(), strict=True)
        for spec, array in zip(of_table, table.arrays, strict=True)
    }

    def serve(features: dict[str, tf.Tensor], of_tables: list[list[tf.Tensor]]) -> dict[str, tf.Tensor]:
        given = {
            path: StoredTable(own[0], own[1] if len(own) > 1 else None, table.unit)
            for (path, table), own in zip(tables.items(), of_tables, strict=True)
        }
        with reading_from(saved.model, given):
            return function.python_function(features)

    return tf.function(serve, input_signature=[*function.input_signature, specs], autograph=False), arrays


def _captured_constants(function: tf.types.experimental.PolymorphicFunction) -> dict[str, tf.Tensor]:
    """Return the constants that a function captures, by name. The converter turns them into inputs."""
    captures = function.get_concrete_function().graph.captures
    return {inside.name: value for value, inside in captures if value.dtype != tf.resource}


def _write_array(file: BinaryIO, name: str, array: tf.Variable) -> onnx.TensorProto:
    """Append an array to the file of tables, in blocks of rows, and return its description."""
    file.write(bytes(-file.tell() % ALIGNMENT))
    start, dtype = file.tell(), np.dtype(array.dtype.as_numpy_dtype)
    for block in row_ranges(array.shape, dtype):
        file.write(rows_of(array, *block).numpy().data)
    described = onnx.TensorProto(
        name=name,
        data_type=onnx.helper.np_dtype_to_tensor_dtype(dtype),
        dims=array.shape,
        data_location=onnx.TensorProto.EXTERNAL,
    )
    for key, value in (("location", TABLES_FILE), ("offset", start), ("length", file.tell() - start)):
        described.external_data.add(key=key, value=str(value))
    return described
