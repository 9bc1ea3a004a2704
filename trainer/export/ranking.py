"""Ranking requests in exports: the inputs of a request once, those of its candidates as lists.

The inputs of the request have one row, the others a row for each candidate (see `InputSchema.sides`). The outputs are
those of row-wise predictions, with a row for each candidate.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import tensorflow as tf

from data.encoding.encoders import CrossedIds
from trainer.checkpoint.load_model import LoadedModel
from trainer.export.comparison import Arrays, expected_predictions
from trainer.export.graph import matrices
from trainer.export.ports import inputs_of
from trainer.export.raw import RawEncoding
from trainer.export.raw_columns import NotFromRaw, RawInput, RawLayout, columns_of
from trainer.export.rows import ComparedRows, random_raw_rows
from trainer.layout import InputSchema, ModelInputs
from trainer.tasks.score import predicted_in_graph

Features = Mapping[str, tf.Tensor]


def can_rank(layout: InputSchema) -> bool:
    """Return whether some inputs are the candidates' and others the request's, as the specification states."""
    return all(side.has_inputs for side in layout.sides)


@dataclass(frozen=True)
class RawSides:
    """The raw columns of a ranking request.

    Attributes:
        request: what is encoded once; its columns are those of the request.
        candidates: what is encoded for each candidate. Crosses among it may read columns of the request, too.
    """

    request: RawLayout
    candidates: RawLayout

    @classmethod
    def of(cls, saved: LoadedModel, whole: RawLayout) -> "RawSides":
        """Divide the raw columns of a model.

        Args:
            saved: the model.
            whole: layout of all of its raw columns.

        Raises:
            NotFromRaw: if a column would have to be both the request's and the candidates'.
        """
        request, candidates = (
            RawLayout.of(side, saved.encoders, saved.raw_spec, whole.columns) for side in saved.layout.sides
        )
        for port in inputs_of(candidates.model):
            encoder = candidates.encoders[port.name]
            both = request.columns.keys() & set(columns_of(encoder))
            if both and not isinstance(encoder, CrossedIds):
                raise NotFromRaw(
                    f"the column {min(both)} is read for {port.name}, which is the candidate's, and for features of "
                    "the request; state `side: candidate` for these, too"
                )
        sides = cls(request, candidates)
        if not sides.of_candidates:
            raise NotFromRaw("all features of the candidates are crosses of columns of the request")
        return sides

    @property
    def of_candidates(self) -> dict[str, RawInput]:
        """The columns that have a row for each candidate, by name."""
        return {name: own for name, own in self.candidates.columns.items() if name not in self.request.columns}


def find_raw_sides(saved: LoadedModel, whole: RawLayout, what: str) -> RawSides | None:
    """Return the raw columns of ranking requests, or None and print the reason if there are none.

    Args:
        saved: the model.
        whole: layout of all of its raw columns.
        what: what an export then lacks, for the message.
    """
    if not can_rank(saved.layout):
        return None
    try:
        return RawSides.of(saved, whole)
    except NotFromRaw as reason:
        print(f"export.py: ranking requests of encoded features only, no {what}: {reason}")
        return None


def rank_function(saved: LoadedModel, *, checked: bool = True) -> tf.types.experimental.PolymorphicFunction:
    """Create the function that predicts for the candidates of a request from encoded features.

    Args:
        saved: the model.
        checked: whether inputs with a wrong number of rows are named, which ONNX has no operation for.

    Returns:
        A tf.function with an input signature, from a dictionary of the inputs in `inputs_of`, [1, width] for those of
        the request and [candidates, width] for the others, to a dictionary of the outputs in `outputs_of`.
    """
    request, candidates = saved.layout.sides
    ports = {port.name: (port.width, port.dtype) for port in inputs_of(saved.layout)}
    own = {port.name for port in inputs_of(candidates)}

    def serve(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        features = _with_checked_rows(features, own) if checked else features
        sides = (
            matrices(side, {port.name: features[port.name] for port in inputs_of(side)})
            for side in (request, candidates)
        )
        return _ranked(saved, *sides)

    return tf.function(serve, input_signature=[_signature(ports, own, checked=checked)], autograph=False)


def raw_rank_function(
    saved: LoadedModel, sides: RawSides, encoding: RawEncoding
) -> tf.types.experimental.PolymorphicFunction:
    """Create the function that predicts for the candidates of a request from raw columns.

    Args:
        saved: the model.
        sides: the raw columns.
        encoding: the encoders of all columns, whose lookup tables are used.

    Returns:
        Like that of `rank_function`, but from raw columns.
    """
    own = sides.of_candidates
    columns = {name: (column.width, column.dtype) for name, column in (sides.request.columns | own).items()}
    of_request, of_candidates = (RawEncoding(layout, encoding.tables) for layout in (sides.request, sides.candidates))
    crossed = sides.candidates.columns.keys() - own.keys()

    def serve(raw: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        raw = _with_checked_rows(raw, own)
        candidates = {name: raw[name] for name in own}
        rows = tf.shape(next(iter(candidates.values())))[0]
        candidates |= {name: tf.repeat(raw[name], rows, axis=0) for name in crossed}
        request = {name: raw[name] for name in sides.request.columns}
        return _ranked(saved, of_request.matrices(request), of_candidates.matrices(candidates))

    return tf.function(serve, input_signature=[_signature(columns, own, checked=True)], autograph=False)


def _ranked(saved: LoadedModel, request: ModelInputs, candidates: ModelInputs) -> dict[str, tf.Tensor]:
    """Predict for the candidates of a request from the input matrices of both sides."""
    logits = saved.model.rank(request, candidates)
    once, each = request.numerical, candidates.numerical
    joined = tf.concat([tf.broadcast_to(once, [tf.shape(each)[0], once.shape[1]]), each], axis=1)
    numerical = tf.gather(joined, saved.layout.numerical_places, axis=1)
    return predicted_in_graph(saved.tasks, saved.score, logits, numerical)


def _signature(
    inputs: Mapping[str, tuple[int | None, str]], own: Collection[str], *, checked: bool
) -> dict[str, tf.TensorSpec]:
    """Return the types of inputs, given their widths and types and the names of those that candidates have.

    If the graph checks the rows, it must not know how many there are: TensorFlow would remove the check.
    """
    return {
        name: tf.TensorSpec([None if checked or name in own else 1, width], dtype, name=name)
        for name, (width, dtype) in inputs.items()
    }


def _with_checked_rows(features: Features, own: Collection[str]) -> dict[str, tf.Tensor]:
    """Return the inputs of a request, after a check that it has one row and all inputs of candidates as many.

    Args:
        features: the inputs by name.
        own: names of the inputs that have a row for each candidate.
    """
    names = sorted(features, key=lambda name: (name not in own, features[name].dtype.name))
    # One operation for all inputs of a type: a request with many features has many small operations as it is.
    shapes = [
        tf.stack(tf.shape_n([features[name] for name in some]))
        for _, some in groupby(names, key=lambda name: features[name].dtype)
    ]
    counts = tf.concat(shapes, axis=0)[:, 0]
    wanted = tf.where(tf.constant([name in own for name in names]), counts[0], 1)
    wrong = tf.argmax(tf.cast(counts != wanted, tf.int32))  # the first one
    name, count, expected = (tf.gather(own, wrong) for own in (tf.constant(names), counts, wanted))
    why = "inputs of the request have one row, and those of candidates one for each candidate, as in"
    message = ["the input", name, "has", count, "rows; expected", expected, why, names[0]]
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(counts == wanted), message)]):
        # With as many rows in all, no operation fails before the check and hides the name.
        rows = tf.reduce_min(counts[: len(own)])
        return {name: values[: rows if name in own else 1] for name, values in features.items()}


def ranked_rows(saved: LoadedModel, rows: ComparedRows) -> ComparedRows:
    """Return a request, and the model's row-wise predictions of its candidates.

    Args:
        saved: the model.
        rows: encoded rows: the request is that of the first one, and each is a candidate.
    """
    of_request = {port.name for port in inputs_of(saved.layout.sides[0])}
    repeated = {
        name: np.repeat(own[:1], len(own), axis=0) if name in of_request else own for name, own in rows.inputs.items()
    }
    inputs = matrices(saved.layout, {name: tf.constant(own) for name, own in repeated.items()})
    expected = expected_predictions(saved.tasks, saved.model(*inputs).numpy())
    once = _once(rows.inputs, of_request)
    return ComparedRows(once, expected, "candidates", saved.score, inputs.numerical.numpy())


def ranked_raw_rows(saved: LoadedModel, whole: RawLayout, sides: RawSides, rows: int) -> ComparedRows:
    """Return a random request of raw columns, and the model's row-wise predictions of its candidates.

    Args:
        saved: the model.
        whole: layout of all raw columns.
        sides: the raw columns of the request and of the candidates.
        rows: number of candidates.
    """
    found = random_raw_rows(saved, whole, rows, shared=sides.request.columns)
    return replace(found, inputs=_once(found.inputs, sides.request.columns), kind="raw candidates")


def _once(inputs: Arrays, of_request: Collection[str]) -> dict[str, np.ndarray]:
    return {name: own[:1] if name in of_request else own for name, own in inputs.items()}
