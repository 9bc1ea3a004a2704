"""Exports a model, and compares the export with the model before it appears under its final name."""

import glob
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import tensorflow as tf

from data.preprocess.encoders import encode_columns
from data.storage import files as draft_folder
from data.storage.checksummed_dir import remove_leftovers, temporary_name
from data.storage.files import sync_names
from trainer.checkpoint.load_model import LoadedModel, read_model
from trainer.export.comparison import Predict, expected_predictions, largest_difference
from trainer.export.ports import named_inputs, tensor_names
from trainer.export.raw import NotFromRaw, RawEncoding
from trainer.export.request import ONNX, ROWS, SAVED_MODEL, Request
from trainer.export.rows import first_rows, random_raw, random_rows, raw_inputs
from trainer.export.saved_model_folder import ENCODED, RAW, load_signatures, write_saved_model
from trainer.layout import InputSchema
from trainer.recommender.scorer import Scorer

Arrays = Mapping[str, np.ndarray]
# File written if names had to be changed: {name in the dataset: name of the tensor}.
TENSOR_NAMES = "tensor_names.json"


def export(request: Request) -> None:
    """Writes the export and prints the largest difference between its predictions and the model's.

    Raises:
        ExportDiffers: if the difference exceeds rounding errors; no output is written in this case.
        DataError: if the model folder has unknown content, or the rows to compare on are damaged.
        OSError: if the output cannot be written.
    """
    # Rounding differs on GPUs, so the comparison is made on the CPU.
    tf.config.set_visible_devices([], "GPU")
    saved, tensors = with_tensor_names(read_model(request.model))
    ids, numerical = random_rows(saved.layout, ROWS) if request.rows is None else first_rows(request.rows)
    kind = "random rows" if request.rows is None else "rows of the dataset"
    inputs, expected = named_inputs(saved.layout, ids, numerical), _expected(saved, ids, numerical)
    with _new_folder(request.output) as draft:
        if request.format == SAVED_MODEL:
            _export_saved_model(draft, saved, inputs, expected, kind)
        else:
            _export_onnx(request.format, draft, saved, inputs, expected, kind)
        if tensors:
            (draft / TENSOR_NAMES).write_text(json.dumps(tensors, indent=2) + "\n")
            print(f"export.py: {len(tensors)} tensors have other names than in the dataset: {TENSOR_NAMES} lists them")
    print(f"export.py: wrote {request.output}")


def with_tensor_names(saved: LoadedModel) -> tuple[LoadedModel, dict[str, str]]:
    """Renames features, tasks and raw columns to valid tensor names.

    Returns:
        The renamed model, and {name: tensor name} of the names that changed.
    """
    layout, columns = saved.layout, [encoder.column for encoder in saved.encoders.values()]
    features = [*(column.name for column in layout.categorical), *layout.numerical]
    name = tensor_names([*features, *(task.name for task in saved.tasks), *saved.encoders, *columns])
    layout = InputSchema(
        tuple(replace(column, name=name[column.name]) for column in layout.categorical),
        tuple(name[feature] for feature in layout.numerical),
    )
    tasks = tuple(replace(task, name=name[task.name]) for task in saved.tasks)
    encoders = {
        name[feature]: replace(encoder, column=name[encoder.column]) for feature, encoder in saved.encoders.items()
    }
    renamed = replace(saved, layout=layout, tasks=tasks, encoders=encoders)
    return renamed, {own: tensor for own, tensor in name.items() if own != tensor}


def _export_saved_model(draft: Path, saved: LoadedModel, inputs: Arrays, expected: Arrays, kind: str) -> None:
    encoding = None
    try:
        encoding = RawEncoding(saved)
    except NotFromRaw as reason:
        print(f"export.py: encoded features only, no signature {RAW}: {reason}")
    write_saved_model(draft, saved, encoding)
    signatures = load_signatures(draft)
    _compare(f"signature {ENCODED}", signatures[ENCODED], inputs, expected, kind)
    if encoding is not None:
        raw = random_raw(encoding.columns, encoding.encoders, ROWS)
        encoded = encode_columns(encoding.encoders, raw)
        expected = _expected(saved, *Scorer(saved).matrices(encoded, ROWS))
        _compare(f"signature {RAW}", signatures[RAW], raw_inputs(encoding.columns, raw), expected, "random raw rows")


def _export_onnx(format: str, draft: Path, saved: LoadedModel, inputs: Arrays, expected: Arrays, kind: str) -> None:
    from trainer.export.onnx_file import load_onnx, write_onnx
    from trainer.export.triton_repository import MODEL_FILE, write_repository

    if format == ONNX:
        files = [draft / MODEL_FILE]
        write_onnx(files[0], saved)
    else:
        example = named_inputs(saved.layout, *random_rows(saved.layout, 2))
        files = write_repository(draft, saved, example)
    for file in files:
        _compare(str(file.relative_to(draft)), load_onnx(file), inputs, expected, kind)


def _expected(saved: LoadedModel, ids: np.ndarray, numerical: np.ndarray) -> dict[str, np.ndarray]:
    return expected_predictions(saved.tasks, saved.model(ids, numerical).numpy())


def _compare(what: str, predict: Predict, inputs: Arrays, expected: Arrays, kind: str) -> None:
    difference = largest_difference(predict, inputs, expected)
    rows = len(next(iter(expected.values())))
    print(f"export.py: {what}: largest difference from the model {difference:.2g} on {rows:,} {kind}")


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """Yields a temporary folder that is renamed to `output` at the end, or removed on any exception."""
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output.parent, glob.escape(output.name))
    draft = temporary_name(output)
    draft.mkdir()
    try:
        draft_folder.mark(draft)
        yield draft
        draft_folder.unmark(draft)
        # Directory entries are synced before the rename, so that a crash cannot leave an output that lacks files.
        for path in [draft, *(path for path in draft.rglob("*") if path.is_dir())]:
            sync_names(path)
        os.rename(draft, output)
        sync_names(output.parent)
    finally:
        draft_folder.remove(draft)
