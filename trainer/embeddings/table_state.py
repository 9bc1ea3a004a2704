"""Rows of a table and of its optimizer state: on the device, or in host memory behind a cache on the device."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

import tensorflow as tf

from trainer.variables import initial_value

WEIGHT = "weight"  # name of the rows of the table itself among those of its state
HOST = "/CPU:0"
NOBODY = 2**63 - 1  # a place that belongs to no row
# Batches without its owner that a place outlives at most, while other rows of these batches would take it.
MOST_CREDITS = 8


class TableState(Protocol):
    """The rows of a table and of its optimizer state, which a step reads and overwrites."""

    def read(self, rows: tf.Tensor, names: Iterable[str]) -> dict[str, tf.Tensor]:
        """Return rows of some variables by name, [n, ...] each; rows [n] int64 need not be distinct."""

    def write(self, rows: tf.Tensor, values: Mapping[str, tf.Tensor]) -> None:
        """Overwrite distinct rows [n] int64 of every variable; values are [n, ...], by name."""


class DeviceState:
    """Rows of variables on the device.

    Args:
        variables: the variables by name, [rows, ...] each.
    """

    def __init__(self, variables: Mapping[str, tf.Variable]):
        self._variables = variables

    def read(self, rows: tf.Tensor, names: Iterable[str]) -> dict[str, tf.Tensor]:
        """Return rows [n] int64 of some variables by name, [n, ...] each."""
        return {name: tf.gather(self._variables[name], rows) for name in names}

    def write(self, rows: tf.Tensor, values: Mapping[str, tf.Tensor]) -> None:
        """Overwrite distinct rows [n] int64 of every variable; values are [n, ...], by name."""
        for name, own in values.items():
            scatter(self._variables[name], rows, own)


class CacheUse(NamedTuple):
    """How well a cache has served so far, in rows that it was told to keep.

    Attributes:
        rows: all of them.
        hits: those that were in the cache already.
        evictions: those that have taken the place of another row.
    """

    rows: int
    hits: int
    evictions: int


class HostState:
    """Rows of variables in host memory, of which a cache on the device has a copy of the frequent ones.

    Row r may be in place r % places. Reads take the rows that are there from the device, and fetch the others from the
    host, in one copy for each variable. Writes go to both: the variables always hold the current rows, so nothing has
    to be flushed before they are saved or evaluated. What else assigns to them between two steps has to `forget` the
    copies.

    A place changes hands when rows are written (or, of a variable that is only read, when they are read). It gets a
    credit from every batch that has its owner, and loses one to every batch that lacks the owner and has other rows for
    the place. Without credit, it goes to the first of these rows: rows are numbered by falling frequency. So frequent
    rows stay, and what is in the cache depends on nothing but the batches.

    Which rows are where is found out on the host, which has to know the missing ones. The work depends on the rows of
    the batch, not on those of the table or of the cache.

    Args:
        variables: the variables by name, [rows, ...] each, in host memory.
        places: number of rows that the cache holds.
        read_only: whether the rows are never written.
    """

    def __init__(self, variables: Mapping[str, tf.Variable], places: int, *, read_only: bool = False):
        self._variables, self._places, self._read_only = variables, places, read_only
        self._cached = {name: _empty((places, *own.shape[1:]), own.dtype) for name, own in variables.items()}
        with tf.device(HOST):
            self._owners = tf.Variable(tf.fill([places], tf.constant(NOBODY, tf.int64)), trainable=False)
            self._credits = tf.Variable(tf.zeros([places], tf.int64), trainable=False)
            self._use = tf.Variable(tf.zeros(len(CacheUse._fields), tf.int64), trainable=False)

    @property
    def use(self) -> CacheUse:
        """How well the cache has served so far."""
        return CacheUse(*self._use.numpy().tolist())

    def forget(self) -> None:
        """Empty the cache."""
        with tf.device(HOST):
            self._owners.assign(tf.fill([self._places], tf.constant(NOBODY, tf.int64)))
            self._credits.assign(tf.zeros([self._places], tf.int64))

    def read(self, rows: tf.Tensor, names: Iterable[str]) -> dict[str, tf.Tensor]:
        """Return rows [n] int64 of some variables by name, [n, ...] each, from the cache where it has them."""
        with tf.device(HOST):
            rows = tf.identity(rows)
            places = rows % self._places
            is_cached = tf.gather(self._owners, places) == rows
            hits, missing = places[is_cached], rows[~is_cached]
            # The position of each row among the cached ones followed by the missing ones.
            ones = tf.cast(is_cached, tf.int64)
            order = tf.where(
                is_cached,
                tf.cumsum(ones, exclusive=True),
                tf.reduce_sum(ones) + tf.cumsum(1 - ones, exclusive=True),
            )
            fetched = {name: tf.gather(self._variables[name], missing) for name in names}
        values = {
            name: tf.gather(tf.concat([tf.gather(self._cached[name], hits), own], axis=0), order)
            for name, own in fetched.items()
        }
        if self._read_only:
            self._keep(rows, values)
        return values

    def write(self, rows: tf.Tensor, values: Mapping[str, tf.Tensor]) -> None:
        """Overwrite distinct rows [n] int64 on the host and in the cache; values are [n, ...], by name."""
        with tf.device(HOST):
            rows = tf.identity(rows)
            for name, own in values.items():
                scatter(self._variables[name], rows, own)
        self._keep(rows, values)

    def _keep(self, rows: tf.Tensor, values: Mapping[str, tf.Tensor]) -> None:
        """Put rows into the cache: those that have a place there, and those that take one over."""
        with tf.device(HOST):
            places = rows % self._places
            owners = tf.gather(self._owners, places)
            was_cached = owners == rows
            self._take_over(places, rows, was_cached)
            is_cached = tf.gather(self._owners, places) == rows
            is_evicting = is_cached & ~was_cached & (owners != NOBODY)
            counts = [tf.ones_like(is_cached), was_cached, is_evicting]
            self._use.assign_add(tf.stack([tf.math.count_nonzero(own) for own in counts]))
            kept = tf.where(is_cached)[:, 0]
            places = tf.gather(places, kept)
        for name, own in values.items():
            scatter(self._cached[name], places, tf.gather(own, kept))

    def _take_over(self, places: tf.Tensor, rows: tf.Tensor, was_cached: tf.Tensor) -> None:
        """Settle the credits of the places [n] of rows [n], and who owns them from now on."""
        own, wanted = places[was_cached], places[~was_cached]
        # Of several rows for a place, all write the same credits, in whatever order.
        scatter(self._credits, own, tf.minimum(tf.gather(self._credits, own) + 1, MOST_CREDITS))
        credits = tf.gather(self._credits, wanted)  # at least 1 where the owner is in the batch
        is_free = credits == 0
        scatter(self._credits, wanted, tf.where(is_free, tf.ones_like(credits), credits - 1))
        free = wanted[is_free]
        scatter(self._owners, free, tf.fill(tf.shape(free), tf.constant(NOBODY, tf.int64)))
        first = rows[~was_cached][is_free]
        tf.raw_ops.ResourceScatterMin(resource=self._owners.handle, indices=free, updates=first)


def _empty(shape: tuple[int, ...], dtype: tf.DType) -> tf.Variable:
    return tf.Variable(initial_value(shape, 0.0, overwritten=True, dtype=dtype.name), trainable=False)


def scatter(variable: tf.Variable, rows: tf.Tensor, values: tf.Tensor) -> None:
    """Overwrite rows [n] int64 of a variable by values [n, ...]."""
    tf.raw_ops.ResourceScatterUpdate(resource=variable.handle, indices=rows, updates=values)
