"""Generates random rows for a feature specification, with labels that optionally depend on the features.

Ids are skewed as in click logs: a few are frequent, most are rare. Every label has a latent value

    latent = signal * score + noise,    noise ~ Logistic(0, 1)

where the score sums the effects of all feature values (an id, a number, a vector, or the items of a list) and has a
variance of about 1, half of which is common to all labels. In a sequence with a target, items have no effects of their
own: what counts is the step most similar to the target, wherever it is in the list (see `_similarities`), alike for all
labels.

Or else the score sums the effects of all pairs of ids of one-hot features. The effect of a pair is the product of two
numbers of mean 0, so that no id has an effect of its own: a linear model needs crosses of the features.

A binary label is latent > 0, which is 1 with probability sigmoid(signal * score); a class is
floor(classes * sigmoid(latent)); a regression label is the latent value; an amount is max(latent, 0).
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Literal

import numpy as np
import pyarrow as pa

from data.spec.columns import Column, describe_column, is_list
from data.spec.feature_spec import FeatureSpec
from data.spec.features import LABEL, MAP, SAMPLE_WEIGHT, SEQUENCE, VECTOR, Feature, FeatureSequence

BLOCK_ROWS = 65_536
SKEW = 3  # an id is floor(cardinality * uniform ** SKEW)
INTEGERS = 100  # integers without a cardinality lie in [0, INTEGERS)
SAMPLE_ROWS = 4096  # of random rows from which the usual similarity of steps and targets is known
MISSING_RATE = 0.1  # of labels with `missing: ignore`
GROUP_ROWS = (2, 12)  # minimum and maximum number of rows that share a value of the map feature

SignalOf = Literal["values", "pairs"]


def random_tables(
    spec: FeatureSpec,
    mapping: str,
    rows: int,
    *,
    seed: int = 0,
    signal: float = 0.0,
    signal_of: SignalOf = "values",
    block_rows: int = BLOCK_ROWS,
) -> Iterator[pa.Table]:
    """Yield random rows of a mapping, with all its columns in their stored types, block by block.

    A group of the map feature is two to twelve consecutive rows, at least one of them a positive of the first binary
    label. The same arguments give the same rows. The effects of ids and numbers on the labels depend only on the seed,
    so they are the same in all mappings.

    Args:
        spec: specification with the types, the cardinalities, and the labels' `task`, `given` and `missing`.
        mapping: name of the mapping whose columns to generate.
        rows: number of rows.
        seed: seed of all random numbers, at least 0.
        signal: standard deviation of the labels' log odds over the rows; 0 makes labels independent of the features.
        signal_of: what has effects on the labels: the values of all features, or the pairs of ids of `paired_features`,
            of which there must be two.
        block_rows: maximum number of rows per table.
    """
    names = [name for chunk in spec.chunks(mapping) for name in chunk.features]
    columns = {name: describe_column(spec, name) for name in names}
    rng = np.random.default_rng([seed, zlib.crc32(mapping.encode())])
    # ceil(rows / block_rows) blocks of about equal size.
    bounds = np.linspace(0, rows, -(-rows // block_rows) + 1).astype(int)
    effects = _Effects(spec, seed, signal, signal_of)
    for first_row, end in zip(bounds[:-1], bounds[1:], strict=True):
        block = _Block(int(first_row), int(end - first_row), rng)
        yield _table(spec, columns, block, effects)


def paired_features(spec: FeatureSpec) -> tuple[Feature, ...]:
    """Return the features whose pairs of ids may have effects: one-hot ones with embeddings, which interactions see."""
    return tuple(feature for feature in spec.onehot if feature.wide != "only")


@dataclass(frozen=True)
class _Block:
    """A block of consecutive rows to generate.

    Attributes:
        first_row: position of the block's first row in the mapping.
        rows: number of rows in the block.
        rng: random generator, shared by all blocks of the mapping.
    """

    first_row: int
    rows: int
    rng: np.random.Generator


def _table(spec: FeatureSpec, columns: dict[str, Column], block: _Block, effects: "_Effects") -> pa.Table:
    arrays = _inputs({name: column for name, column in columns.items() if column.kind not in (LABEL, MAP)}, block)
    latents = effects.latents(columns, arrays, block)
    group_column = next((column for column in columns.values() if column.kind == MAP), None)
    starts = None
    if group_column is not None:
        starts = _group_starts(block)
        arrays[group_column.name] = _group_ids(group_column, block.first_row + starts)
    for name, labels in _labels(spec, latents, starts, block.rng).items():
        arrays[name] = _to_arrow(labels, columns[name].type)
    return pa.table([arrays[name] for name in columns], names=list(columns))


def _inputs(columns: dict[str, Column], block: _Block) -> dict[str, pa.Array]:
    """Return random values of columns that are neither labels nor the map feature."""
    arrays = {name: _values(column, block) for name, column in columns.items() if column.aligned_with is None}
    # The others have as many items as these.
    return arrays | {
        name: _aligned_lists(column, arrays.get(column.aligned_with.name), block)
        for name, column in columns.items()
        if column.aligned_with is not None
    }


def _values(column: Column, block: _Block) -> pa.Array:
    """Return random values for a column that is neither a label nor the map feature."""
    rng, stored, limit = block.rng, column.type, column.feature.cardinality
    if is_list(stored):
        longest = column.longest or 0
        lengths = rng.integers(longest if column.kind == VECTOR else 0, longest + 1, block.rows)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), _items(column, int(offsets[-1]), rng))
    if pa.types.is_string(stored):
        return pa.array([f"text {number}" for number in rng.integers(0, INTEGERS, block.rows)], stored)
    if pa.types.is_integer(stored):
        ids = _skewed_ids(limit, block.rows, rng) if limit else rng.integers(0, INTEGERS, block.rows)
        return pa.array(ids, stored)
    least = 0.5 if column.kind == SAMPLE_WEIGHT else 0.0
    return _to_arrow(least + rng.random(block.rows), stored)


def _aligned_lists(column: Column, others: pa.ListArray | None, block: _Block) -> pa.ListArray:
    """Return lists as long as the others, which are empty if the mapping does not hold the others."""
    offsets = pa.array(np.zeros(block.rows + 1), pa.int32()) if others is None else others.offsets
    return pa.ListArray.from_arrays(offsets, _items(column, offsets[-1].as_py(), block.rng))


def _items(column: Column, count: int, rng: np.random.Generator) -> pa.Array:
    """Return random items of the lists in a column: ids, weights in [0, 1], numbers of vectors or other numbers."""
    stored, limit = column.type.value_type, column.feature.cardinality
    if column.kind == SEQUENCE and limit is None and pa.types.is_integer(stored):
        return pa.array(rng.integers(0, INTEGERS, count), stored)
    if column.kind == VECTOR:
        return _to_arrow(rng.standard_normal(count), stored)
    if not column.has_ids and (column.kind == SEQUENCE or column.aligned_with is not None):
        return _to_arrow(rng.random(count), stored)
    return pa.array(_skewed_ids(limit or INTEGERS, count, rng), stored)


def _skewed_ids(limit: int, count: int, rng: np.random.Generator) -> np.ndarray:
    return _ids_of(limit, rng.random(count))


def _ids_of(limit: int, uniform: np.ndarray) -> np.ndarray:
    return (limit * uniform**SKEW).astype(np.int64)


def _to_arrow(numbers: np.ndarray, stored: pa.DataType) -> pa.Array:
    """Convert float64 numbers to a stored type; NaN becomes null, and values of integer types are rounded."""
    missing = np.isnan(numbers)
    filled = np.where(missing, 0, numbers)
    dtype = stored.to_pandas_dtype()
    return pa.array((np.rint(filled) if pa.types.is_integer(stored) else filled).astype(dtype), stored, mask=missing)


def _group_starts(block: _Block) -> np.ndarray:
    """Draw group sizes; return the position in the block at which each row's group starts, [rows] int64."""
    least, most = GROUP_ROWS
    sizes = block.rng.integers(least, most + 1, block.rows // least + 1)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    starts = starts[starts < block.rows]
    # The last group may be cut off by the end of the block: extend it to the minimum size at the expense of the group
    # before it, or merge the two.
    if len(starts) > 1 and block.rows - starts[-1] < least:
        starts[-1] = block.rows - least
        if starts[-1] - starts[-2] < least:
            starts = starts[:-1]
    return np.repeat(starts, np.diff(np.append(starts, block.rows)))


def _group_ids(column: Column, starts: np.ndarray) -> pa.Array:
    """Return group ids: the group's first row in the mapping, modulo the cardinality or the largest integer."""
    limit = column.feature.cardinality or np.iinfo(column.type.to_pandas_dtype()).max
    return pa.array(starts % limit, column.type)


class _Effects:
    """The effects of the features on the labels: a pure function of the seed.

    Args:
        spec: specification of the features and labels.
        seed: seed of the effects.
        signal: standard deviation of the labels' log odds; 0 for no effects.
        signal_of: what has effects.
    """

    def __init__(self, spec: FeatureSpec, seed: int, signal: float, signal_of: SignalOf) -> None:
        self._spec = spec
        self._seed = seed
        self._signal = signal
        self._paired = paired_features(spec) if signal_of == "pairs" else ()

    def latents(self, columns: dict[str, Column], arrays: dict[str, pa.Array], block: _Block) -> dict[str, np.ndarray]:
        """Return {label: [rows] float64 latent values}, as defined at the top of this module."""
        noise = {label.name: block.rng.logistic(size=block.rows) for label in self._spec.labels}
        if self._signal == 0:
            return noise
        if self._paired:
            common, own = self._score_of_pairs(arrays, ""), {name: self._score_of_pairs(arrays, name) for name in noise}
            return {name: self._signal * (common + own[name]) / np.sqrt(2) + noise[name] for name in noise}
        compared = {name for sequence in self._compared for name in sequence.features}
        inputs = [(columns[each.name], arrays[each.name]) for each in self._spec.inputs if each.name not in compared]
        similar = sum((self._similarity(sequence, arrays) for sequence in self._compared), np.zeros(block.rows))
        # Two independent scores of variance 1, divided by sqrt(2): half of the variance is common to all labels.
        common = self._score(inputs, arrays, "")
        own = {name: self._score(inputs, arrays, name) for name in noise}
        return {name: self._signal * ((common + own[name]) / np.sqrt(2) + similar) + noise[name] for name in noise}

    def _score(self, inputs: list[tuple[Column, pa.Array]], arrays: dict[str, pa.Array], label: str) -> np.ndarray:
        effects = [self._effect(column, values, label) for column, values in inputs]
        effects += [self._effect_of_vectors(own, arrays[str(own.of)], label) for own in self._spec.pretrained]
        return np.asarray(sum(effects)) / np.sqrt(len(self._spec.inputs) + len(self._spec.pretrained))

    def _score_of_pairs(self, arrays: dict[str, pa.Array], label: str) -> np.ndarray:
        """Return the sum of the effects of all pairs of ids, [rows] float64 with a mean of 0 and a variance of 1."""
        numbers = []
        for feature in self._paired:
            key, ids = zlib.crc32(f"{self._seed}/{label}/{feature.name}".encode()), arrays[feature.name].to_numpy()
            usual = _effect_of_ids(_ids_of(feature.cardinality or 1, (np.arange(SAMPLE_ROWS) + 0.5) / SAMPLE_ROWS), key)
            numbers.append((_effect_of_ids(ids, key) - usual.mean()) / (usual.std() or 1.0))
        products = [one * other for one, other in combinations(numbers, 2)]
        return np.asarray(sum(products)) / np.sqrt(len(products))

    @cached_property
    def _compared(self) -> list[FeatureSequence]:
        """The sequences with a target."""
        return [sequence for sequence in self._spec.sequences if sequence.target]

    @cached_property
    def _usual(self) -> dict[str, tuple[float, float]]:
        """{name of a sequence with a target: mean and standard deviation of the similarities in random rows}."""
        usual = {}
        for sequence in self._compared:
            names = (*sequence.features, *sequence.target)
            rng = np.random.default_rng([self._seed, zlib.crc32(sequence.name.encode())])
            drawn = _inputs({name: describe_column(self._spec, name) for name in names}, _Block(0, SAMPLE_ROWS, rng))
            found = _similarities(self._spec, sequence, drawn)
            usual[sequence.name] = float(found.mean()), float(found.std()) or 1.0
        return usual

    def _similarity(self, sequence: FeatureSequence, arrays: dict[str, pa.Array]) -> np.ndarray:
        """Return the part that a sequence with a target has in the score, [rows] float64: that of all its features."""
        mean, deviation = self._usual[sequence.name]
        share = np.sqrt(len(sequence.features) / len(self._spec.inputs))
        return share * (_similarities(self._spec, sequence, arrays) - mean) / deviation

    def _effect(self, column: Column, values: pa.Array, label: str) -> np.ndarray:
        """Return the effect of one feature, [rows] float64 with a mean of about 0 and a variance of about 1."""
        key = zlib.crc32(f"{self._seed}/{label}/{column.name}".encode())
        items = values.values if is_list(column.type) else values
        numbers = items.to_numpy(zero_copy_only=False)
        if column.has_ids:
            effects = _effect_of_ids(numbers, key)
        elif column.kind == VECTOR:
            # The product with a vector of signs: unlike the sum, it survives the normalization of vectors.
            signs = 2 * np.random.default_rng(key).integers(0, 2, column.longest) - 1
            effects = (numbers.astype(np.float64).reshape(-1, len(signs)) * signs).reshape(-1)
        else:
            span = INTEGERS if pa.types.is_integer(items.type) else 1
            sign = 1 if key % 2 else -1
            # A uniform number on [0, 1) has the variance 1/12.
            effects = sign * (numbers / span - 0.5) * np.sqrt(12)
        return _sums_of_lists(effects, values) if is_list(column.type) else effects

    def _effect_of_vectors(self, feature: Feature, values: pa.Array, label: str) -> np.ndarray:
        """Return the effect of a pretrained vector, given the ids that it is looked up by, like that of others."""
        ids = (values.values if is_list(values.type) else values).to_numpy(zero_copy_only=False)
        key = zlib.crc32(f"{self._seed}/{label}/{feature.name}".encode())
        signs = 2 * np.random.default_rng(key).integers(0, 2, feature.dimension) - 1
        effects = random_vectors(feature, ids, self._seed) @ signs / np.sqrt(len(signs))
        return _sums_of_lists(effects, values) if is_list(values.type) else effects


def random_vectors(feature: Feature, ids: np.ndarray, seed: int) -> np.ndarray:
    """Return the pretrained vectors of ids, of mean 0 and variance 1: a pure function of the seed, feature and id.

    Args:
        feature: a feature with `pretrained`.
        ids: [n] integers.
        seed: seed of the vectors.

    Returns:
        [n, dimension] float64.
    """
    dimension = feature.dimension or 1
    numbers = ids.astype(np.int64)[:, np.newaxis] * dimension + np.arange(dimension)
    return _effect_of_ids(numbers, zlib.crc32(f"{seed}/vectors/{feature.name}".encode()))


def _sums_of_lists(effects: np.ndarray, lists: pa.ListArray) -> np.ndarray:
    """Sum the effects of the items of each list by differences of the running sum.

    They are divided by sqrt(length), which keeps the variance at 1.
    """
    sums = np.concatenate([[0], np.cumsum(effects)])
    offsets = lists.offsets.to_numpy()
    return np.diff(sums[offsets]) / np.sqrt(np.maximum(np.diff(offsets), 1))


def _similarities(spec: FeatureSpec, sequence: FeatureSequence, arrays: dict[str, pa.Array]) -> np.ndarray:
    """Return how similar the most similar step of each row is to the target, [rows] float64; 0 without steps.

    The similarity of a step is the number of target features whose id it has, times 1 minus the mean of its numbers,
    as fractions of their range: of two steps with the same ids, that with the smaller numbers, such as the age of a
    click, is more similar.
    """
    offsets = arrays[sequence.features[0]].offsets.to_numpy()
    rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    items = {name: arrays[name].values.to_numpy(zero_copy_only=False) for name in sequence.features}
    table_of = {name: spec.features[name].table or name for name in (*sequence.features, *sequence.target)}
    of_table = {table_of[name]: items[name] for name in sequence.features if spec.features[name].cardinality}
    same = np.zeros(len(rows))
    for name in sequence.target:
        same += of_table[table_of[name]] == arrays[name].to_numpy(zero_copy_only=False)[rows]
    numbers = [
        items[name] / (INTEGERS if np.issubdtype(items[name].dtype, np.integer) else 1)
        for name in sequence.features
        if spec.features[name].cardinality is None
    ]
    similarities = np.zeros(len(offsets) - 1)
    np.maximum.at(similarities, rows, same * (1 - (np.mean(numbers, axis=0) if numbers else 0)))
    return similarities


def _effect_of_ids(ids: np.ndarray, key: int) -> np.ndarray:
    """Hash ids and a key to uniform numbers with mean 0 and variance 1, using the finalizer of SplitMix64."""
    bits = ids.astype(np.uint64) + np.uint64(key * 0x9E3779B97F4A7C15 % 2**64)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    # The upper 53 bits, as many as float64 holds, give a number in [0, 1).
    return ((bits >> np.uint64(11)) * 2.0**-53 - 0.5) * np.sqrt(12)


def _labels(
    spec: FeatureSpec, latents: dict[str, np.ndarray], starts: np.ndarray | None, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Draw all labels from their latent values.

    Args:
        spec: specification of the labels.
        latents: {label: [rows] float64}.
        starts: [rows] position at which each row's group starts, or None without a map feature.
        rng: random generator for missing values.

    Returns:
        {label: [rows] float64}, NaN where missing, and 0 where the label's `given` is not 1.
    """
    drawn = {label.name: _draw(label, latents[label.name], rng) for label in spec.labels}
    first = next((label for label in spec.labels if label.is_binary), None)
    # MAP needs a positive in every group: set the first binary label, and the labels it is given, in the row with the
    # highest latent value.
    if starts is not None and first is not None:
        positive = _with_given(spec, drawn, first.name) == 1
        rows = _best_rows_of_groups_without(positive, starts, latents[first.name])
        name: str | None = first.name
        while name is not None:
            drawn[name][rows] = 1
            name = spec.features[name].given
    return {name: _with_given(spec, drawn, name) for name in drawn}


def _draw(label: Feature, latent: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    values = latent.copy()
    if label.is_binary:
        values = (latent > 0).astype(np.float64)
    elif label.is_class:
        classes = label.cardinality or 2
        values = np.minimum(np.floor(classes / (1 + np.exp(-latent))), classes - 1)
    elif label.is_amount:
        values = np.maximum(latent, 0)
    if label.missing == "ignore":
        values[rng.random(len(values)) < MISSING_RATE] = np.nan
    return values


def _with_given(spec: FeatureSpec, drawn: dict[str, np.ndarray], name: str) -> np.ndarray:
    given = spec.features[name].given
    return drawn[name] if given is None else np.where(_with_given(spec, drawn, given) == 1, drawn[name], 0)


def _best_rows_of_groups_without(positive: np.ndarray, starts: np.ndarray, latent: np.ndarray) -> np.ndarray:
    """Return the row with the highest latent value of every group without a positive row."""
    by_group = np.lexsort((latent, starts))  # sorted by group, then by latent value
    is_last = np.append(np.diff(starts[by_group]) > 0, True)
    best = by_group[is_last]
    return best[~np.isin(starts[best], starts[positive])]
