"""The settings that `--recipe auto` chooses by the data. Imports no TensorFlow.

Each is a default: a flag that is given wins. They depend on the rows of the training mapping and on the model, never on
the number of workers, so that a run gives the same model on any machine. docs/quality.md justifies them.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from data.errors import DataError
from data.loading.parquet import open_files
from data.spec.feature_spec import FeatureSpec
from trainer.config import DataOptions, ModelOptions, Options

# Steps per epoch that the batch size aims at, and its limits. Below the smaller one a step is mostly overhead, above
# the larger one a GPU is no faster.
STEPS_PER_EPOCH = 150
BATCH_SIZES = (256, 65_536)
# Standard deviation of the normal prior of an embedding value. The most probable weights minimize
# sum of losses + sum w^2 / (2 PRIOR_STD^2), so the mean loss of N rows goes with a factor of 1 / (2 N PRIOR_STD^2). On
# fewer than 300,000 rows, that is more than is good: LARGEST_L2 limits it.
PRIOR_STD, LARGEST_L2 = 0.04, 0.001
HELD_OUT_SHARE = 0.05
# Training rows per id, over all categorical features, from which dropout does more harm than good.
ROWS_PER_ID = 100
WIDE_DEEP, MANY_ROWS = "wide_deep", 10_000_000


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
        return [choice for choice in _choices(given, *_rows_and_ids(given)) if choice.flag not in given]
    return []


def _choices(given: Mapping[str, Any], rows: int, ids: int) -> list[Choice]:
    batch = batch_size_for(rows)
    optimizer = "Adam's usual rate, lowered by the schedule"
    stopping = "training ends when the validation loss no longer falls"
    found = [
        Choice("global_batch_size", batch, f"{-(-rows // batch):,} steps per epoch for {rows:,} rows"),
        Choice("num_epochs", 40, f"at most; {stopping}"),
        Choice("early_stopping_patience", 2, stopping),
        Choice("optimizer", "adam", optimizer),
        Choice("deep_learning_rate", 0.001, optimizer),
        Choice("deep_schedule", "plateau", "a tenth of the rate when the validation loss no longer falls"),
        Choice("l2_reg_embedding", l2_for(rows), f"for {rows:,} rows: ids that few of them have keep small embeddings"),
    ]
    found += [
        Choice("embedding_init_std", 0.01, "embeddings start with little influence"),
        Choice("output_bias", "base_rate", "the first prediction is the mean of the labels"),
    ]
    is_wide_deep = given.get("model", ModelOptions.model) == WIDE_DEEP
    if rows >= ROWS_PER_ID * ids:
        well_known = f"{rows:,} rows for {ids:,} ids leave little to overfit"
        found.append(Choice("deep_dropout", 0.0, well_known))
        if is_wide_deep and rows < MANY_ROWS:
            found.append(Choice("deep_hidden_units", (400, 400, 400), well_known))
    else:
        found.append(Choice("deep_dropout", 0.2, f"{rows:,} rows for {ids:,} ids: against overfitting"))
        if is_wide_deep and rows < MANY_ROWS:
            found.append(Choice("deep_hidden_units", (256, 128), f"enough for fewer than {MANY_ROWS:,} rows"))
    if not given.get("xla"):
        # XLA cannot compile the sums over workers that batch normalization makes within the forward pass.
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


def l2_for(rows: int) -> float:
    """Return the factor of the embeddings' sum of squares in the mean loss, rounded to two digits."""
    return float(f"{min(LARGEST_L2, 1 / (2 * rows * PRIOR_STD**2)):.2g}")


def _rows_and_ids(given: Mapping[str, Any]) -> tuple[int, int]:
    """Return the number of rows of the training mapping, from the footers of its files, and that of all tables' ids."""
    options = {name: given[name] for name in ("dataset_path", "fspec_file", "train_mapping") if name in given}
    data = DataOptions(**options, model_dir=Path(), results_dir=Path())
    outside = bool(given.get("allow_outside_paths"))
    spec = FeatureSpec.read(data.dataset_path / data.fspec_file, allow_outside_paths=outside)
    chunk = spec.chunks(data.train_mapping)[0]
    if chunk.type != "parquet":
        raise DataError("the training mapping is in CSV files")
    files = open_files([spec.folder.absolute() / file for file in chunk.files])
    ids = {feature.table or feature.name: feature.cardinality or 0 for feature in spec.categorical}
    return max(1, sum(file.metadata.num_rows for file in files)), sum(ids.values())
