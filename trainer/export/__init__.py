"""Exports a model for serving. A format is a module with a function `write`, registered in FORMATS."""

from dataclasses import dataclass

ONNX_PACKAGES = ("tf2onnx", "onnx", "onnxruntime")
# ONNX files are protocol buffers, which are limited to 2 GiB; leave room for the graph, and for tables that are small
# enough to be embedded (trainer/export/onnx_file.py).
MAX_ONNX_BYTES = 2**31 - 2**29


@dataclass(frozen=True)
class ExportFormat:
    """A format of export.py, known before TensorFlow is imported.

    Attributes:
        module: module with `write(folder, model, rows)`, which writes the export of a LoadedModel into an empty folder
            and yields a `trainer.export.comparison.Check` for everything in it that predicts. `rows` is the
            `trainer.export.rows.ComparedRows` on which the model's predictions are known.
        packages: packages that it needs besides the recipe's own (requirements/export.txt).
        max_bytes: largest size of the weights besides the embedding tables, None without a limit.
    """

    module: str
    packages: tuple[str, ...] = ()
    max_bytes: int | None = None


FORMATS = {
    "savedmodel": ExportFormat("trainer.export.saved_model_folder"),
    "onnx": ExportFormat("trainer.export.onnx_file", ONNX_PACKAGES, MAX_ONNX_BYTES),
    "triton": ExportFormat("trainer.export.triton_repository", ONNX_PACKAGES, MAX_ONNX_BYTES),
}
