"""Exports a model, and compares the export with the model before it appears under its final name."""

import glob
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import tensorflow as tf

from data.encoding.encoders import CrossedIds, Encoder
from data.loading.loader import ParquetLoader
from data.spec.features import SCORE
from data.spec.raw.spec import RawSpec
from data.storage.checksummed_dir import remove_leftovers
from data.storage.files import draft_beside, sync, unmark_draft
from data.storage.remote import push_folder, url_of
from trainer.checkpoint.load_model import LoadedModel, read_model
from trainer.export import FORMATS
from trainer.export.change import converted
from trainer.export.comparison import expected_predictions, largest_difference
from trainer.export.ports import inputs_of, named_inputs, tensor_names
from trainer.export.raw_columns import columns_of
from trainer.export.request import REPORT_FILE, ROWS, ExportPolicy, Request
from trainer.export.rows import ComparedRows, first_rows, random_rows
from trainer.layout import SequenceInput

# File written if names had to be changed: {name in the dataset: name of the tensor}.
TENSOR_NAMES = "tensor_names.json"


def export(request: Request) -> None:
    """Write the export and print the largest difference between its predictions and the model's.

    Tables are first converted to the type of the export, and the change of the model's predictions is printed. The
    export is compared with the converted model.

    Raises:
        ExportDiffers: if the difference exceeds rounding errors, or the change what is allowed; no output is written in
            these cases.
        DataError: if the model folder has unknown content, its tables cannot be converted, or the rows to compare on
            are damaged.
        FloatingPointError: if the model's predictions of the dataset are NaN or infinite.
        OSError: if the output cannot be written.
    """
    # Rounding differs on GPUs, so the comparison is made on the CPU.
    tf.config.set_visible_devices([], "GPU")
    saved, tensors = with_tensor_names(replace(read_model(request.model), score=request.score))
    saved = with_oov_policy(saved, request.oov_policy)
    report = {"format": request.format, "export_dtype": request.dtype}
    if request.dtype != "float32":
        report |= converted(saved, request)
    rows = _compared_rows(saved, request.rows)
    write = import_module(FORMATS[request.format].module).write
    with _new_folder(request.output) as draft:
        for check in write(draft, saved, rows):
            count = len(next(iter(check.expected.values())))
            difference = largest_difference(check)
            print(
                f"export.py: {check.name}: largest difference from the model {difference:.2g} on {count:,} {check.kind}"
            )
        if tensors:
            (draft / TENSOR_NAMES).write_text(json.dumps(tensors, indent=2) + "\n")
            print(f"export.py: {len(tensors)} tensors have other names than in the dataset: {TENSOR_NAMES} lists them")
        (draft / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n")
    print(f"export.py: wrote {_upload(request.output)}")


def _upload(output: Path) -> str | Path:
    """Upload an export if its folder is the mirror of one in an object store; return where it is."""
    url = url_of(output)
    if url is None:
        return output
    push_folder(output, url, REPORT_FILE)
    shutil.rmtree(output, ignore_errors=True)
    return url


def _compared_rows(saved: LoadedModel, loader: ParquetLoader | None) -> ComparedRows:
    """Return the first rows of a dataset, or random ones without a dataset, with the model's predictions."""
    inputs = random_rows(saved.layout, ROWS) if loader is None else first_rows(loader, saved.layout)
    expected = expected_predictions(saved.tasks, saved.model(*inputs).numpy())
    kind = "random rows" if loader is None else "rows of the dataset"
    return ComparedRows(named_inputs(saved.layout, inputs), expected, kind, saved.score, inputs.numerical)


def with_tensor_names(saved: LoadedModel) -> tuple[LoadedModel, dict[str, str]]:
    """Rename features, tasks and raw columns to valid tensor names.

    Returns:
        The renamed model, and {name: tensor name} of the names that changed.
    """
    layout, columns = saved.layout, [name for encoder in saved.encoders.values() for name in columns_of(encoder)]
    features = [*(port.name for port in inputs_of(layout))]
    reserved = [] if saved.score is None else [SCORE]
    name = tensor_names([*features, *(task.name for task in saved.tasks), *saved.encoders, *columns], reserved)
    layout = replace(
        layout,
        categorical=tuple(
            replace(column, name=name[column.name], weights=name.get(column.weights, ""))
            for column in layout.categorical
        ),
        numerical=tuple(name[feature] for feature in layout.numerical),
        sequences=tuple(_with_features(sequence, name) for sequence in layout.sequences),
        vectors=tuple(replace(vector, name=name[vector.name]) for vector in layout.vectors),
        pretrained=tuple(replace(vector, of=name[vector.of]) for vector in layout.pretrained),
        candidates=frozenset(name[own] for own in layout.candidates),
    )
    tasks = tuple(replace(task, name=name[task.name]) for task in saved.tasks)
    encoders = {name[feature]: _with_names(encoder, name) for feature, encoder in saved.encoders.items()}
    raw_spec = None if saved.raw_spec is None else _with_keys(saved.raw_spec, name)
    renamed = replace(saved, layout=layout, tasks=tasks, encoders=encoders, raw_spec=raw_spec)
    return renamed, {own: tensor for own, tensor in name.items() if own != tensor}


def with_oov_policy(saved: LoadedModel, policy: ExportPolicy) -> LoadedModel:
    """Return a model whose exports fail on ids out of range, or take the ids of unseen values where there are some."""
    if policy == "error":
        columns = tuple(replace(column, unseen_id=None) for column in saved.layout.categorical)
        return replace(saved, layout=replace(saved.layout, categorical=columns))
    without = [column.name for column in saved.layout.categorical if column.unseen_id is None]
    if without:
        print(
            f"export.py: an id out of range fails a request in {', '.join(without)}: their specification states no "
            "unseen_id"
        )
    return saved


def _with_features(sequence: SequenceInput, name: Mapping[str, str]) -> SequenceInput:
    """Return a sequence with renamed features."""
    features, numbers, targets = (
        tuple(name.get(own, "") for own in names) for names in (sequence.features, sequence.numbers, sequence.targets)
    )
    return replace(sequence, features=features, numbers=numbers, targets=targets)


def _with_names(encoder: Encoder, name: Mapping[str, str]) -> Encoder:
    """Return an encoder that reads renamed columns."""
    if isinstance(encoder, CrossedIds):
        inputs = tuple(replace(entry, name=name[entry.name]) for entry in encoder.inputs)
        list_input = None if encoder.list_input is None else name[encoder.list_input]
        return replace(encoder, inputs=inputs, list_input=list_input)
    return replace(encoder, column=name[encoder.column])


def _with_keys(raw_spec: RawSpec, name: Mapping[str, str]) -> RawSpec:
    """Return a raw specification with renamed keys of readings and features; those without a tensor keep theirs."""
    readings = {name.get(key, key): reading for key, reading in raw_spec.readings.items()}
    features = {name.get(key, key): feature for key, feature in raw_spec.features.items()}
    return replace(raw_spec, readings=readings, features=features)


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `output` at the end, or removed on any exception."""
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output.parent, glob.escape(output.name))
    with draft_beside(output) as draft:
        yield draft
        unmark_draft(draft)
        # Directory entries are synced before the rename, so that a crash cannot leave an output that lacks files.
        for path in [draft, *(path for path in draft.rglob("*") if path.is_dir())]:
            sync(path)
        os.rename(draft, output)
        sync(output.parent)
