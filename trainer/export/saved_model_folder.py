"""Export of a model as a TensorFlow SavedModel."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from trainer.checkpoint.load_model import LoadedModel
from trainer.export.comparison import Check, Predict
from trainer.export.graph import encoded_function
from trainer.export.ranking import (
    RawSides,
    can_rank,
    find_raw_sides,
    rank_function,
    ranked_raw_rows,
    ranked_rows,
    raw_rank_function,
)
from trainer.export.raw import RawEncoding, raw_function
from trainer.export.raw_columns import NotFromRaw, RawLayout
from trainer.export.rows import ComparedRows, random_raw_rows
from trainer.export.table_dtype import exported_variables
from trainer.variables import release

# Scope names that TensorFlow accepts when it saves a variable.
SCOPE_NAME = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*")
ENCODED, RAW = "serving_default", "serving_raw"
RANK, RANK_RAW = "serving_rank", "serving_rank_raw"


class _Servable(tf.Module):
    """Holds the weights and vocabularies that the functions of a SavedModel read."""

    def __init__(self, saved: LoadedModel, encoding: RawEncoding | None):
        super().__init__()
        self.weights = exported_variables(saved.model)
        for number, weight in enumerate(self.weights):
            if not SCOPE_NAME.fullmatch(weight.name.removesuffix(":0")):
                # A table is named after its feature, and there is no public API to rename a variable.
                weight._handle_name = f"embeddings/table_{number}:0"
        self.encoding = encoding


def write(folder: Path, saved: LoadedModel, rows: ComparedRows) -> Iterator[Check]:
    """Write a SavedModel with a signature for encoded features and, if the model has encoders, one for raw columns.

    The model loses its weights, which would otherwise be in memory twice once the SavedModel is loaded.
    """
    encoding, compared = None, {ENCODED: rows}
    if can_rank(saved.layout):
        compared[RANK] = ranked_rows(saved, rows)
    try:
        encoding = RawEncoding(RawLayout.of(saved.layout, saved.encoders, saved.raw_spec))
        compared[RAW] = random_raw_rows(saved, encoding.layout, rows.number)
    except NotFromRaw as reason:
        print(f"export.py: encoded features only, no signature {RAW}: {reason}")
    sides = None if encoding is None else find_raw_sides(saved, encoding.layout, f"signature {RANK_RAW}")
    if encoding is not None and sides is not None:
        compared[RANK_RAW] = ranked_raw_rows(saved, encoding.layout, sides, rows.number)
    write_saved_model(folder, saved, encoding, sides)
    for weight in exported_variables(saved.model):
        release(weight)
    signatures = load_signatures(folder)
    for name, of_signature in compared.items():
        yield of_signature.check(f"signature {name}", signatures[name])


def write_saved_model(
    folder: Path, saved: LoadedModel, encoding: RawEncoding | None, sides: RawSides | None = None
) -> None:
    """Write a SavedModel. If the layout tells which features are the candidates', it also takes ranking requests.

    Args:
        folder: an existing empty folder.
        saved: the model.
        encoding: encoders of raw columns, which add the signature RAW; None for encoded features only.
        sides: the raw columns of ranking requests, which add the signature RANK_RAW; None without it.

    Raises:
        OSError: if the SavedModel cannot be written.
    """
    signatures = {ENCODED: encoded_function(saved).get_concrete_function()}
    if encoding is not None:
        signatures[RAW] = raw_function(saved, encoding).get_concrete_function()
    if can_rank(saved.layout):
        signatures[RANK] = rank_function(saved).get_concrete_function()
    if encoding is not None and sides is not None:
        signatures[RANK_RAW] = raw_rank_function(saved, sides, encoding).get_concrete_function()
    try:
        tf.saved_model.save(_Servable(saved, encoding), str(folder), signatures=signatures)
    except tf.errors.OpError as error:
        raise OSError(f"{folder}: the SavedModel cannot be written: {error.message}") from error


def load_signatures(folder: Path) -> dict[str, Predict]:
    """Load a SavedModel, as a server would, and return its prediction functions by signature name."""
    loaded = tf.saved_model.load(str(folder))  # noqa: TID251
    return {name: _Signature(loaded, name) for name in loaded.signatures}


class _Signature:
    """A prediction function that keeps a reference to the loaded object, which owns the weights."""

    def __init__(self, loaded: tf.Module, name: str):
        self._loaded, self._function = loaded, loaded.signatures[name]

    def __call__(self, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self._function(**{name: tf.constant(array) for name, array in features.items()})
        return {name: tensor.numpy() for name, tensor in found.items()}
