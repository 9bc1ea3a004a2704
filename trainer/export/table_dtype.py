"""The types in which exports store the rows of embedding tables: float32, float16 or int8.

A stored row becomes float32 once it is looked up, so that no graph converts a whole table:

    float16: row = value * unit
    int8:    row = value * scale * unit

`scale`, float16, is a number per row that maps the row's largest magnitude to 127. `unit` is a power of two per
variable that keeps float16 within its range, whatever the magnitude of the rows. In rows of one or two numbers, int8
and its scale would take no less than float16, which therefore stores them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import keras
import numpy as np
import tensorflow as tf

from data.errors import DataError
from data.memory import check_fits
from data.parallel import in_parallel
from data.storage.arrays import row_ranges
from trainer.export.request import ExportDtype
from trainer.models.ranking import RankingModel
from trainer.variables import assign_rows, initial_value, release, rows_of

LARGEST_INT8 = 127
# A power of two below float16's maximum of 65,504. The smallest number with full precision is 2**29 times smaller.
LARGEST_FLOAT16 = 2.0**15
# Widest rows of which float16 takes no more than int8 and a float16 scale.
NARROW = 2


@dataclass(frozen=True)
class StoredTable:
    """The rows of a variable, as an export stores them.

    Attributes:
        values: [rows, width] float32, float16 or int8.
        scales: [rows, 1] float16, the scale of each row; None without.
        unit: factor of all values.
    """

    values: tf.Variable | tf.Tensor
    scales: tf.Variable | tf.Tensor | None = None
    unit: float = 1.0

    @property
    def arrays(self) -> tuple[tf.Variable | tf.Tensor, ...]:
        """The values and, if there are any, the scales."""
        return (self.values,) if self.scales is None else (self.values, self.scales)

    def read(self, numbers: tf.Tensor) -> tf.Tensor:
        """Return some rows, [*numbers, width] float32."""
        rows = tf.cast(tf.gather(self.values, numbers), tf.float32)
        if self.scales is not None:
            rows *= tf.cast(tf.gather(self.scales, numbers), tf.float32)
        return rows if self.unit == 1 else rows * self.unit


def store_tables(model: RankingModel, dtype: ExportDtype) -> None:
    """Convert the tables of a model, variable by variable, and free the converted ones.

    From then on, only calls of the model (and of graphs made of it) have its tables. Besides the tables, the rows of
    one variable are in memory in both types.

    Args:
        model: the model.
        dtype: the type of the rows. Nothing is done for float32, nor to rows that are float16 already.

    Raises:
        DataError: a table has values that are NaN or infinite, or there is not enough memory.
    """
    stored = {}
    for variable in _variables_of(model):
        narrowed = "float16" if dtype == "int8" and variable.shape[1] <= NARROW else dtype
        if narrowed not in ("float32", variable.dtype):
            stored[variable.path] = _converted(variable, narrowed)
            release(variable.value)
    model.embeddings.stored = stored


def tables_of(model: RankingModel) -> dict[str, StoredTable]:
    """Return all tables of a model as its exports store them, by the path of their variables."""
    tables = {}
    for variable in _variables_of(model):
        stored = model.embeddings.stored.get(variable.path)
        tables[variable.path] = stored if isinstance(stored, StoredTable) else StoredTable(variable.value)
    return tables


def exported_variables(model: RankingModel) -> list[tf.Variable]:
    """Return the variables that an export of a model consists of: its dense weights and the tables as stored."""
    tables = tables_of(model)
    dense = [variable.value for variable in model.variables if variable.path not in tables]
    return [*dense, *(array for table in tables.values() for array in table.arrays)]


@contextmanager
def reading_from(model: RankingModel, tables: Mapping[str, StoredTable]) -> Iterator[None]:
    """Let calls of a model read these tables, by the path of their variables, as long as the block lasts."""
    before = model.embeddings.stored
    model.embeddings.stored = tables
    try:
        yield
    finally:
        model.embeddings.stored = before


def _variables_of(model: RankingModel) -> Iterator[keras.Variable]:
    """Yield the variables that hold tables."""
    for _, variable in (*model.embeddings.group_variables, *model.embeddings.frozen_groups):
        yield variable


def _converted(variable: keras.Variable, dtype: str) -> StoredTable:
    """Return a copy of a variable's rows as float16 or int8."""
    rows, width = variable.shape
    blocks = row_ranges(variable.shape, np.dtype(np.float32))
    row_bytes = width + 2 if dtype == "int8" else 2 * width
    check_fits(rows * row_bytes, f"{variable.path} as {dtype}", "use a machine with more memory")
    largest = np.max(in_parallel(partial(_largest, variable), blocks), initial=0.0)
    if not np.isfinite(largest):
        raise DataError(
            f"{variable.path}: has values that are NaN or infinite, which --export_dtype cannot store; use "
            "--export_dtype float32, or export an earlier checkpoint"
        )
    unit = _unit(largest / LARGEST_INT8 if dtype == "int8" else largest)
    scales = _empty(rows, 1, "float16") if dtype == "int8" else None
    table = StoredTable(_empty(rows, width, dtype), scales, unit)
    in_parallel(partial(_convert, variable, table), blocks)
    return table


def _unit(largest: float) -> float:
    """Return the smallest power of two that, as a unit, lets float16 hold a magnitude; 1 for 0."""
    if not largest:
        return 1.0
    return float(max(2 ** np.ceil(np.log2(largest)) / LARGEST_FLOAT16, np.finfo(np.float32).tiny))


def _empty(rows: int, width: int, dtype: str) -> tf.Variable:
    """Return a variable whose values will be overwritten."""
    return tf.Variable(
        partial(initial_value, (rows, width), 0.0, overwritten=True, dtype=dtype),
        trainable=False,
        dtype=dtype,
        shape=(rows, width),
    )


def _read_block(variable: keras.Variable, block: tuple[int, int]) -> np.ndarray:
    rows: np.ndarray = rows_of(variable.value, *block).numpy().astype(np.float32)
    return rows


def _largest(variable: keras.Variable, block: tuple[int, int]) -> float:
    """Return the largest magnitude in a block of rows; NaN if there is any."""
    return float(np.max(np.abs(_read_block(variable, block)), initial=0))


def _convert(variable: keras.Variable, table: StoredTable, block: tuple[int, int]) -> None:
    """Write a block of rows in the types of a stored table."""
    rows = _read_block(variable, block) / np.float32(table.unit)
    if table.scales is None:
        assign_rows(table.values, block[0], rows.astype(np.float16))
        return
    scales = (np.max(np.abs(rows), axis=1, keepdims=True) / LARGEST_INT8).astype(np.float16)
    # A scale is 0 if all of its row is negligible beside the largest rows.
    divisors = np.where(scales == 0, 1, scales).astype(np.float32)
    steps = np.clip(np.rint(rows / divisors), -LARGEST_INT8, LARGEST_INT8)
    assign_rows(table.values, block[0], steps.astype(np.int8))
    assign_rows(table.scales, block[0], scales)
