"""The settings that `--recipe auto` chooses by the data. Imports no TensorFlow.

Each is a default: a flag that is given wins. They depend on the rows of the training mapping and on the model, never on
the number of workers, so that a run gives the same model on any machine. docs/quality.md justifies them.
"""

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.checks.sample import draw_sample, max_read
from data.errors import DataError
from data.loading.parquet import ParquetReader, open_files
from data.spec.feature_spec import FeatureSpec
from data.spec.features import LABEL
from trainer.config import DataOptions, ModelOptions, Options

# Steps per epoch that the batch size aims at, and its limits. Below the smaller one a step is mostly overhead, above
# the larger one a GPU is no faster.
STEPS_PER_EPOCH = 150
BATCH_SIZES = (256, 65_536)
# Standard deviation of the normal prior of an embedding value. The most probable weights minimize
# sum of losses + sum w^2 / (2 PRIOR_STD^2), so the mean loss of N rows goes with a factor of 1 / (2 N PRIOR_STD^2). On
# fewer than 300,000 rows, that is more than is good: LARGEST_L2 limits it.
PRIOR_STD, LARGEST_L2 = 0.04, 0.001
# Where ids are rare, a narrower prior is better, provided that hidden layers are normalized and that numbers do not
# outweigh embeddings: they are scaled to NUMBERS_OVER_PRIOR times its standard deviation. The prior widens from
# SMALL_ROWS rows on. On few rows, LARGEST_SMALL_L2 limits its factor, as long as the prior is no wider than
# WIDEST_SMALL_STD.
SMALL_STD, WIDEST_SMALL_STD, LARGEST_SMALL_L2, SMALL_ROWS = 0.013, 0.02, 0.02, 600_000
NUMBERS_OVER_PRIOR, LEAST_INFORMATION = 2.5, 0.001
HELD_OUT_SHARE = 0.05
# Training rows per id, over all categorical features, from which dropout does more harm than good. Rows with a rare
# positive label count less (see `TrainingData.information`).
ROWS_PER_ID = 100
WIDE_DEEP, DOT, ADAM, MANY_ROWS = "wide_deep", "dot", "adam", 10_000_000


# The flags of training that `choose` may choose; those of the model are flags of its options.
CHOSEN = (
    "global_batch_size",
    "num_epochs",
    "early_stopping_patience",
    "optimizer",
    "deep_learning_rate",
    "deep_schedule",
    "l2_reg_embedding",
    "output_bias",
)
INHERITED, RESUMED = "as in the model that the run starts from", "as before, in the run that is resumed"


class TrainingData(NamedTuple):
    """What the choices depend on.

    Attributes:
        rows: number of rows of the training mapping, at least 1.
        ids: number of ids of all embedding tables.
        has_numbers: whether there are numbers or vectors beside the ids.
        information: how much a row tells, in (0, 1]: 4 p (1 - p) for a binary label that is 1 in a share p of the
            rows, summed over the labels, at most 1.
        left_out: mean factor in the weights of the rows that `--negatives logit` leaves out; 1 without the flag.
    """

    rows: int
    ids: int
    has_numbers: bool
    information: float
    left_out: float = 1.0


class Choice(NamedTuple):
    """A setting that was chosen by the data.

    Attributes:
        flag: name of the flag without dashes.
        value: its value.
        reason: why, for the user.
    """

    flag: str
    value: Any
    reason: str


def choose(given: Mapping[str, Any]) -> list[Choice]:
    """Return the settings that fit the data of a training run, without those that are given.

    Args:
        given: values of flags by name, with `dataset_path`.

    Returns:
        The choices; none if the dataset cannot be read, which is reported when it is opened.
    """
    with suppress(DataError):
        return [choice for choice in _choices(given, _training_data(given)) if choice.flag not in given]
    return []


def _choices(given: Mapping[str, Any], data: TrainingData) -> list[Choice]:
    rows, ids, has_numbers, information, left_out = data
    batch = batch_size_for(rows)
    optimizer = given.get("optimizer", ADAM)
    usual_rate = "Adam's usual rate" + ("" if optimizer.startswith(ADAM) else f"; {optimizer} may need another one")
    are_well_known = rows * information >= ROWS_PER_ID * ids
    # XLA cannot compile the sums over workers that batch normalization makes within the forward pass.
    is_normalized = given.get("batch_norm", not given.get("xla"))
    # The dot products of small embeddings would vanish beside the numbers' vector.
    has_dots = given.get("interaction", ModelOptions.interaction) == DOT
    are_small = is_normalized and not are_well_known and not has_dots
    l2 = l2_for(rows, are_small=are_small)
    stopping = "training ends when the validation loss no longer falls"
    found = [
        Choice("global_batch_size", batch, f"{-(-rows // batch):,} steps per epoch for {rows:,} rows"),
        Choice("num_epochs", 40, f"at most; {stopping}"),
        Choice("early_stopping_patience", 2, stopping),
        Choice("optimizer", ADAM, "its steps fit rare and frequent ids alike"),
        Choice("deep_learning_rate", 0.001, usual_rate),
        Choice("deep_schedule", "plateau", "a tenth of the rate when the validation loss no longer falls"),
        # Without weights, a positive row has a larger share of the mean loss; the prior keeps pace with it.
        Choice("l2_reg_embedding", _two_digits(l2 * left_out), f"for {rows:,} rows: rare ids keep small embeddings"),
        Choice("embedding_init_std", 0.01, "embeddings start with little influence"),
        Choice("output_bias", "base_rate", "the first prediction is the mean of the labels"),
    ]
    is_wide_deep = given.get("model", ModelOptions.model) == WIDE_DEEP
    if are_small and has_numbers:
        found.append(Choice("numerical_scale", scale_for(rows, l2), "numbers do not outweigh the small embeddings"))
    if are_well_known:
        well_known = f"{rows:,} rows for {ids:,} ids leave little to overfit"
        found.append(Choice("deep_dropout", 0.0, well_known))
        if is_wide_deep and rows < MANY_ROWS:
            found.append(Choice("deep_hidden_units", (400, 400, 400), well_known))
    else:
        found.append(Choice("deep_dropout", 0.2, f"{rows:,} rows for {ids:,} ids: against overfitting"))
        if is_wide_deep and rows < MANY_ROWS:
            found.append(Choice("deep_hidden_units", (256, 128), f"enough for fewer than {MANY_ROWS:,} rows"))
    if is_normalized:
        found.append(Choice("batch_norm", True, "hidden layers learn faster and generalize better"))
    return found


def describe_choices(options: Options) -> list[str]:
    """Return lines that say which settings were chosen by the data, and why; none without such settings."""
    if not options.reasons:
        return []
    values = options.as_dict()
    lines = [f"  {_flag(flag, values[flag])}: {reason}" for flag, reason in options.reasons.items()]
    return [
        "settings chosen by the data (a flag that is given wins; --recipe published for the public recipe's):",
        *lines,
    ]


def _flag(name: str, value: Any) -> str:
    """Return a flag with its value as it is typed."""
    values = value if isinstance(value, list) else [] if value is True else [value]
    return " ".join([f"--{name}", *map(str, values)])


def batch_size_for(rows: int) -> int:
    """Return the power of two that is nearest to `rows` / STEPS_PER_EPOCH, within BATCH_SIZES."""
    low, high = BATCH_SIZES
    wanted, size = rows / STEPS_PER_EPOCH, low
    while size < high and wanted / size > 2**0.5:
        size *= 2
    return size


def l2_for(rows: int, *, are_small: bool) -> float:
    """Return the factor of the embeddings' sum of squares in the mean loss, rounded to two digits.

    Args:
        rows: number of training rows.
        are_small: whether embeddings have the narrow prior instead of the wide one.
    """
    factor = min(LARGEST_L2, _l2_of_prior(rows, PRIOR_STD))
    if are_small:
        largest = max(LARGEST_SMALL_L2, _l2_of_prior(rows, WIDEST_SMALL_STD))
        small = min(largest, _l2_of_prior(rows, SMALL_STD)) * min(1.0, SMALL_ROWS / rows) ** 0.5
        factor = max(factor, small)
    return _two_digits(factor)


def _l2_of_prior(rows: int, std: float) -> float:
    return 1 / (2 * rows * std**2)


def scale_for(rows: int, l2: float) -> float:
    """Return the factor of numbers beside embeddings with a prior of this L2 factor, rounded to two digits."""
    # On few rows, numbers as small as the embeddings would be too small.
    return _two_digits(min(1.0, NUMBERS_OVER_PRIOR / math.sqrt(2 * rows * min(l2, LARGEST_SMALL_L2))))


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")


def _training_data(given: Mapping[str, Any]) -> TrainingData:
    """Read the specification of a dataset, the footers of its training files and a sample of their labels."""
    options = {name: given[name] for name in ("dataset_path", "fspec_file", "train_mapping") if name in given}
    data = DataOptions(**options, model_dir=Path(), results_dir=Path())
    outside = bool(given.get("allow_outside_paths"))
    spec = FeatureSpec.read(data.dataset_path / data.fspec_file, allow_outside_paths=outside)
    chunk = spec.chunks(data.train_mapping)[0]
    if chunk.type != "parquet":
        raise DataError("the training mapping is in CSV files")
    files = open_files([spec.path(file) for file in chunk.files])
    ids = {feature.table or feature.name: feature.cardinality or 0 for feature in spec.categorical}
    rows = max(1, sum(file.metadata.num_rows for file in files))
    has_numbers = bool(spec.numerical or spec.vectors or spec.sequences)
    sample = _label_sample(spec, data.train_mapping)
    left_out = _weight_left_out(spec, sample) if given.get("negatives") == "logit" else 1.0
    return TrainingData(rows, sum(ids.values()), has_numbers, _information(spec, sample), left_out)


def _label_sample(spec: FeatureSpec, mapping: str) -> np.ndarray:
    """Return the labels of some rows, [rows, labels]; NaN where they are unknown."""
    labels = spec.only(LABEL)
    return draw_sample(ParquetReader(labels, mapping), max_read=max_read(labels)).labels


def _information(spec: FeatureSpec, sample: np.ndarray) -> float:
    """Return `TrainingData.information`; 1 if not all labels are binary."""
    if not all(label.is_binary for label in spec.labels):
        return 1.0
    known = np.isfinite(sample)
    shares = np.sum(sample, axis=0, where=known) / np.maximum(known.sum(axis=0), 1)
    return min(1.0, max(LEAST_INFORMATION, float(np.sum(4 * shares * (1 - shares)))))


def _weight_left_out(spec: FeatureSpec, sample: np.ndarray) -> float:
    """Return `TrainingData.left_out` of a run with `--negatives logit`."""
    rate = spec.sample_weight.negative_rate if spec.sample_weight else None
    binary = [index for index, label in enumerate(spec.labels) if label.is_binary]
    positive = float(np.mean((sample[:, binary] > 0).any(axis=1)))
    return positive + (1 - positive) / (rate or 1.0)
