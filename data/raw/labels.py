"""Labels, weights and other columns of a dataset that are no inputs of a model."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.encoding.encoders import FILL, Step, apply_steps
from data.encoding.fitting import plain_step
from data.encoding.hashing import hash_values
from data.errors import DataError, nearest, shown
from data.raw.cells import first_true
from data.raw.rows import COMPARE
from data.spec.features import Feature
from data.spec.raw.spec import LabelMapRule, NumberStep, RawFeature, ThresholdRule

RowName = Callable[[int], str]


def label_values(raw: RawFeature, values: pa.Array, row_name: RowName) -> pa.Array:
    """Return the values of a label.

    Args:
        raw: the label.
        values: [rows] raw values: strings (a dictionary array) for a map, else numbers.
        row_name: returns the location of a row for messages, such as "logs.csv, row 17".

    Returns:
        [rows] float64, null where the raw value is null and the label states `missing: ignore`.

    Raises:
        DataError: if a value is not one of the map, is null, or is not what the task type expects.
    """
    rule = raw.rule
    if isinstance(rule, LabelMapRule):
        numbers = _mapped(raw.feature, rule.values, values, row_name)
    elif isinstance(rule, ThresholdRule):
        # Floats are compared as they are read: 0.1 equals 0.1 in float32, too. Integers may have any constant.
        read = values if pa.types.is_floating(values.type) else values.cast(pa.float64(), safe=False)
        numbers = COMPARE[rule.comparison](read, pa.scalar(rule.value, read.type)).cast(pa.float64())
    else:
        numbers = values.cast(pa.float64())
    _check(raw.feature, numbers, row_name)
    return numbers


def check_list_weights(
    ids: tuple[str, pa.Array], weights: tuple[str, pa.Array], steps: Sequence[NumberStep], row_name: RowName
) -> None:
    """Check that there is a weight for each item of a list, and that the encoding makes numbers of at least 0 of them.

    Args:
        ids: name of a raw column, and its [rows] lists, in which null is an empty list.
        weights: the same of the column with the weights, which are numbers.
        steps: encoding of the weights, which scales nothing. Every step but a fill is ascending.
        row_name: returns the location of a row for messages.

    Raises:
        DataError: if a row has more or fewer weights than ids, or a weight is missing, infinite or below 0.
    """
    expected, lengths = (pc.fill_null(pc.list_value_length(lists), 0) for _, lists in (ids, weights))
    if (row := first_true(pc.not_equal(expected, lengths))) is not None:
        raise DataError(
            f"{row_name(row)}: column {ids[0]!r} has {expected[row]} items and column {weights[0]!r}, with their "
            f"weights, {lengths[row]}; expected a weight for each item: correct the row, or leave it out with `where`"
        )
    numbers = weights[1].flatten().cast(pa.float64()).to_numpy(zero_copy_only=False)
    # A fitted fill lies between encoded weights, so it is at least 0 if all of these are.
    is_fitted = any(isinstance(step.fill, str) for step in steps)
    fixed = [_fixed_step(step) for step in steps if not isinstance(step.fill, str)]
    with np.errstate(all="ignore"):
        encoded = apply_steps(fixed, numbers)
    wrong = ~((encoded >= 0) & np.isfinite(encoded)) & ~(np.isnan(numbers) & is_fitted)
    if wrong.any():
        item = int(np.argmax(wrong))
        row = int(np.searchsorted(np.cumsum(lengths.to_numpy()), item, side="right"))
        found = "a missing weight" if np.isnan(numbers[item]) else f"the weight {numbers[item]:g}"
        fix = "{fill: 1}" if np.isnan(numbers[item]) else "{clip: [0, null]}"
        raise DataError(
            f"{row_name(row)}: column {weights[0]!r} has {found}; expected finite numbers of at least 0: say what "
            f"replaces it, as with `encode: [{fix}]`"
        )


def check_steps(columns: Sequence[tuple[str, pa.Array]], row_name: RowName) -> None:
    """Check that the lists of a sequence are equally long.

    Args:
        columns: name of each raw column, and its [rows] lists, in which null is an empty list.
        row_name: returns the location of a row for messages.

    Raises:
        DataError: if the lists of a row differ in length.
    """
    first, *others = ((name, pc.fill_null(pc.list_value_length(lists), 0)) for name, lists in columns)
    for name, lengths in others:
        if (row := first_true(pc.not_equal(first[1], lengths))) is not None:
            raise DataError(
                f"{row_name(row)}: column {first[0]!r} has {first[1][row]} items and column {name!r}, of the same "
                f"sequence, {lengths[row]}; expected as many: correct the row, or leave it out with `where`"
            )


def check_vectors(column: str, vectors: pa.Array, dimension: int, row_name: RowName) -> None:
    """Check that vectors have as many numbers as their dimension says, of which none is missing.

    Args:
        column: name of the raw column.
        vectors: its [rows] lists of finite numbers, in which null is an empty list.
        dimension: number of values of each vector.
        row_name: returns the location of a row for messages.

    Raises:
        DataError: if a vector has more or fewer numbers, or a missing one.
    """
    lengths = pc.fill_null(pc.list_value_length(vectors), 0)
    if (row := first_true(pc.not_equal(lengths, dimension))) is not None:
        raise DataError(
            f"{row_name(row)}: column {column!r} has a vector of {lengths[row]} numbers; expected {dimension}, as its "
            "`dimension` says: correct the row or the dimension, or leave the row out with `where`"
        )
    if (item := first_true(vectors.flatten().is_null())) is not None:
        raise DataError(
            f"{row_name(item // dimension)}: column {column!r} has a vector with a missing number; expected finite "
            "numbers: correct the row, or leave it out with `where`"
        )


def check_given(labels: Mapping[str, tuple[Feature, pa.Array]], row_name: RowName) -> None:
    """Raise a DataError if a label is positive outside of its sample space (`given`)."""
    for name, (feature, values) in labels.items():
        if feature.given is not None and feature.given in labels:
            outside = pc.and_(pc.not_equal(values, 0), pc.equal(labels[feature.given][1], 0))
            row = first_true(outside)
            if row is not None:
                raise DataError(
                    f"{row_name(row)}: {name} is {values[row].as_py():g}, expected 0 where {feature.given} is 0; "
                    f"correct the row, or remove `given: {feature.given}`"
                )


def weight_values(values: pa.Array, column: str, row_name: RowName) -> pa.Array:
    """Return the sample weights of rows, [rows] float64.

    Raises:
        DataError: if a weight is null, negative or not finite.
    """
    weights = values.cast(pa.float64())
    valid = pc.and_(pc.is_finite(weights), pc.greater_equal(weights, 0))
    row = first_true(pc.invert(pc.fill_null(valid, False)))
    if row is not None:
        raise DataError(
            f"{row_name(row)}: the sample weight {column} is {shown(weights[row].as_py())}; expected a number of at "
            "least 0"
        )
    return weights


def group_values(values: pa.Array, column: str, row_name: RowName) -> pa.Array:
    """Return the map feature of rows, [rows] int64: integers as they are, strings as their 64-bit hash.

    Raises:
        DataError: if a value is null.
    """
    row = first_true(pc.is_null(values))
    if row is not None:
        raise DataError(f"{row_name(row)}: the map feature {column} is missing; every row needs a group")
    if not pa.types.is_dictionary(values.type):
        return values.cast(pa.int64())
    hashes = hash_values(values.dictionary.to_numpy(zero_copy_only=False)).view(np.int64)
    return pc.take(pa.array(hashes), values.indices)


def is_negative(labels: Mapping[str, tuple[Feature, pa.Array]], rows: int) -> np.ndarray:
    """Return whether all binary labels of a row are 0, [rows] bool; a missing label counts as 0."""
    negative = np.ones(rows, bool)
    for feature, values in labels.values():
        if feature.is_binary:
            negative &= pc.fill_null(pc.equal(values, 0), True).to_numpy(zero_copy_only=False)
    return negative


def _fixed_step(step: NumberStep) -> Step:
    return (FILL, step.fill) if isinstance(step.fill, float) else plain_step(step)


def _mapped(feature: Feature, allowed: Mapping[str, float], values: pa.Array, row_name: RowName) -> pa.Array:
    texts = values.dictionary if pa.types.is_dictionary(values.type) else values
    codes = pc.index_in(texts, pa.array(list(allowed), texts.type))
    numbers = pc.take(pa.array(list(allowed.values()), pa.float64()), codes)
    if pa.types.is_dictionary(values.type):
        numbers = pc.take(numbers, values.indices)
    row = first_true(pc.and_(pc.is_valid(values), pc.is_null(numbers)))
    if row is not None:
        found = values[row].as_py()
        near = nearest(found, allowed)
        hint = f"did you mean {near!r}?" if near else f"expected one of {', '.join(map(repr, list(allowed)[:20]))}."
        fix = f"add the text to feature_spec.{feature.name}.encode.map"
        if found == feature.name:
            fix = "if the row is the header of a CSV file, write `header: true` and drop `features`"
        raise DataError(f"{row_name(row)}: the label {feature.name} is {shown(found)}; {hint} Otherwise, {fix}")
    return numbers


def _check(feature: Feature, numbers: pa.Array, row_name: RowName) -> None:
    row = first_true(pc.is_null(numbers, nan_is_null=True))
    if row is not None and feature.missing != "ignore":
        raise DataError(
            f"{row_name(row)}: the label {feature.name} is missing; remove such rows with `where`, or write "
            "`missing: ignore` to leave them out of this label's loss"
        )
    if feature.is_binary:
        wrong = pc.invert(pc.is_in(numbers, pa.array([0.0, 1.0])))
        fix = (
            'expected 0 or 1; write `encode: {threshold: ">= X"}` with the least positive value, `task: regression` to '
            "predict the number, or `task: multiclass` for classes"
        )
    elif feature.is_class:
        inside = pc.and_(pc.greater_equal(numbers, 0), pc.less(numbers, feature.num_classes))
        wrong = pc.invert(pc.and_(inside, pc.equal(numbers, pc.floor(numbers))))
        fix = f"expected a class in [0, {feature.num_classes})"
    elif feature.is_amount:
        wrong = pc.invert(pc.and_(pc.is_finite(numbers), pc.greater_equal(numbers, 0)))
        fix = "expected a finite number of at least 0; write `task: regression` for numbers of any sign"
    else:
        wrong, fix = pc.invert(pc.is_finite(numbers)), "expected a finite number"
    row = first_true(pc.and_(pc.is_valid(numbers), wrong))
    if row is not None:
        raise DataError(f"{row_name(row)}: the label {feature.name} is {numbers[row].as_py():g}; {fix}")
