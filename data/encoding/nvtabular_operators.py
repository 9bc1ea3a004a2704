"""The NVTabular operator that fits and applies the encoders of a raw specification, for both pandas and cuDF.

It works on Arrow memory. Results are the same on GPU, on CPU and at serving time.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import pyarrow as pa

from data.encoding.earlier import Earlier
from data.encoding.encoders import CrossedIds, Encoded, Encoder, NumberEncoder, encode_feature
from data.encoding.fitting import FittedFeatures, Fitter, Scratch
from data.encoding.keys import as_arrow
from data.encoding.nvtabular_setup import ON_GPU, dispatch, global_dask_client, ops
from data.spec.raw.spec import RawSpec

# States of partitions to merge at a time.
FAN_IN = 8
# Bytes of the states of all features and of one, if nothing else is said.
STATE_BYTES, LEAST_STATE_BYTES = 2**29, 2**20


class FitFeatures(ops.StatOperator):
    """Fits the encoders of a raw specification on staged training rows, and encodes rows with them.

    Its input columns are `inputs`, in Arrow memory (see `to_frame`). Its outputs are the encoded features: int32 ids,
    float32 numbers, and Arrow lists of these.

    Args:
        spec: the raw specification.
        scratch: existing folder for what does not fit into memory during the fit.
        encoders: encoders of an earlier fit, by feature name; None before the fit.
        earlier: encoders of an earlier dataset, which those that are fitted continue, or None.
        memory: bytes of the states of all features to keep in memory during the fit.
        threads: number of features to work on at a time; None for one per CPU.

    Attributes:
        is_training: whether the rows to transform are the training rows, whose target statistics leave out their fold.
    """

    def __init__(
        self,
        spec: RawSpec,
        scratch: Path,
        encoders: Mapping[str, Encoder] | None = None,
        *,
        earlier: Earlier | None = None,
        memory: int = STATE_BYTES,
        threads: int | None = None,
    ) -> None:
        super().__init__()
        self._spec, self._earlier = spec, earlier
        self._features = FittedFeatures(spec, encoders, earlier)
        self._scratch = Scratch(scratch, max(LEAST_STATE_BYTES, memory // max(1, len(spec.features))))
        self._threads = threads or len(os.sched_getaffinity(0))
        self._ddf: Any = None
        self.fitted = encoders is not None
        self.is_training = False

    @property
    def encoders(self) -> dict[str, Encoder]:
        """Fitted encoders by feature name, including features that rules add; empty before the fit."""
        return self._features.encoders

    @property
    def inputs(self) -> list[str]:
        """Names of the columns that the operator reads."""
        return self._features.inputs

    def fit(self, col_selector: Any, ddf: Any) -> Any:
        """Return a Dask task for the states of all features but crosses of encoded ones."""
        self._ddf = ddf
        return _fit_task(self._features.fitters(self._scratch), ddf, self._threads)

    def fit_finalize(self, states: dict[str, Any]) -> None:
        """Make the encoders; crosses of encoded features take further passes over the rows."""
        fitters = self._features.fitters(self._scratch)
        while fitters:
            finish = partial(_finish, fitters, states)
            self._features.add(dict(zip(fitters, in_threads(finish, fitters, self._threads), strict=True)))
            fitters = self._features.fitters(self._scratch)
            if fitters:
                # As NVTabular computes: with Dask's client if there is one, else in this thread.
                scheduler = None if global_dask_client() else "synchronous"
                (states,) = dask.compute(_fit_task(fitters, self._ddf, self._threads), scheduler=scheduler)
        self._ddf = None

    def transform(self, col_selector: Any, df: Any) -> Any:
        """Return the encoded features, in the same row order."""
        table, encoders = to_table(df), self.encoders
        columns = dict(zip(table.column_names, table.columns, strict=True))

        def encode(name: str) -> Encoded:
            means = self._features.out_of_fold.get(name) if self.is_training else None
            encoder = encoders[name]
            return encoder.encode(columns[encoder.column]) if means is None else means.encode(table)

        single = [name for name, encoder in encoders.items() if not isinstance(encoder, CrossedIds)]
        encoded = dict(zip(single, in_threads(encode, single, self._threads), strict=True))
        for name in encoders:
            encode_feature(name, encoders, columns, encoded)
        result = to_frame(pa.table({name: _stored(encoded[name], encoders[name]) for name in encoders}))
        result.index = df.index
        return result

    def column_mapping(self, col_selector: Any) -> dict[str, list[str]]:
        return {name: list(col_selector.names) for name in self._features.names}

    def clear(self) -> None:
        self._features, self.fitted = FittedFeatures(self._spec, earlier=self._earlier), False

    def __getstate__(self) -> dict[str, Any]:
        # The training rows are needed only where the fit was started.
        return {**self.__dict__, "_ddf": None, "_earlier": None}


def to_frame(table: pa.Table) -> Any:
    """Return a frame of Arrow memory: pandas columns of `pd.ArrowDtype` without a copy, or a cuDF frame on a GPU."""
    return dispatch.cudf.DataFrame.from_arrow(table) if ON_GPU else table.to_pandas(types_mapper=pd.ArrowDtype)


def to_table(frame: Any) -> pa.Table:
    """Return the columns of a pandas or cuDF frame as an Arrow table, without a copy where they are in Arrow memory."""
    if hasattr(frame, "to_arrow"):
        return frame.to_arrow(preserve_index=False)
    columns = {name: as_arrow(frame[name]) for name in frame.columns}
    return pa.table({name: pa.array(frame[name]) if column is None else column for name, column in columns.items()})


def in_threads(function: Callable[[Any], Any], items: Iterable[Any], threads: int) -> list[Any]:
    """Apply a function to items in parallel; Arrow and NumPy let threads run at the same time."""
    if threads == 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))


def _fit_task(fitters: dict[str, Fitter], ddf: Any, threads: int) -> Any:
    """Return a Dask task for the states of fitters, by feature name, over all partitions of a frame."""
    # Bound to functions, so that Dask does not look for tasks in the fitters.
    part, merge = partial(_part_states, fitters, threads), partial(_merged_states, fitters, threads)
    states = [dask.delayed(part, pure=False)(partition) for partition in ddf.to_delayed()]
    while len(states) > 1:
        groups = [states[first : first + FAN_IN] for first in range(0, len(states), FAN_IN)]
        states = [dask.delayed(merge, pure=False)(group) for group in groups]
    return states[0]


def _part_states(fitters: Mapping[str, Fitter], threads: int, frame: Any) -> dict[str, Any]:
    table = to_table(frame)
    return dict(zip(fitters, in_threads(lambda name: fitters[name].part(table), fitters, threads), strict=True))


def _merged_states(fitters: Mapping[str, Fitter], threads: int, states: list[dict[str, Any]]) -> dict[str, Any]:
    def merge(name: str) -> Any:
        return fitters[name].merge([state[name] for state in states])

    return dict(zip(fitters, in_threads(merge, fitters, threads), strict=True))


def _finish(fitters: Mapping[str, Fitter], states: Mapping[str, Any], name: str) -> Any:
    return fitters[name].finish(states[name])


def _stored(values: Encoded, encoder: Encoder) -> pa.Array:
    """Return encoded values as they are stored: int32 ids, float32 numbers, or lists of these."""
    item = pa.float32() if isinstance(encoder, NumberEncoder) else pa.int32()
    if isinstance(values, np.ndarray):
        return pa.array(values).cast(item)
    offsets = values.offsets.cast(pa.int32())
    return pa.ListArray.from_arrays(offsets, values.values.cast(item))
