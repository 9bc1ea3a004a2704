"""TensorBoard output of a run: scalars, gate histograms, and the graph of a training step.

tf.summary.scalar and tf.summary.histogram require the tensorboard package, which should only be needed for viewing the
files. Summaries are therefore built here as protocol buffers and written by tf.summary.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.logging.log import warn

BUCKETS = 30


class TensorBoard:
    """Writes event files. Each call flushes its events to the file before it returns.

    An unwritable folder or a full disk does not stop training: the first failure is reported on stderr, and later
    events are attempted again.

    Args:
        folder: folder of the event files, created if it does not exist; None disables writing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._writer: Any = None
        self._has_graph = self._has_warned = False

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write the scalars of a step, by key."""
        if self._folder is not None:
            summary = tf.compat.v1.Summary()
            for key, value in values.items():
                summary.value.add(tag=key, simple_value=value)
            self._write_summary(step, summary)

    def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Write histograms over [0, 1] for a step.

        Args:
            step: the step.
            values: shares between 0 and 1, [rows] each, by key; empty arrays are omitted.
        """
        if self._folder is not None:
            summary = tf.compat.v1.Summary()
            for key, shares in values.items():
                if shares.size:
                    _fill(summary.value.add(tag=key).histo, shares.astype(np.float64))
            self._write_summary(step, summary)

    def graph_of(self, function: Any, *arguments: Any) -> None:
        """Write the graph of a tf.function for the given arguments; only the first call has an effect."""
        if self._folder is not None and not self._has_graph:
            self._has_graph = True
            self._write(lambda: tf.summary.graph(function.get_concrete_function(*arguments).graph))

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._write(self._writer.close)

    def _write_summary(self, step: int, summary: Any) -> None:
        if summary.value:
            self._write(lambda: tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step=step))

    def _write(self, write: Callable[[], object]) -> None:
        try:
            if self._writer is None:
                self._writer = tf.summary.create_file_writer(str(self._folder))
            with self._writer.as_default():
                write()
                self._writer.flush()
        except (OSError, tf.errors.OpError) as error:
            if not self._has_warned:
                self._has_warned = True
                reason = getattr(error, "message", None) or error
                warn(f"the files in --tensorboard_dir {self._folder} are incomplete: {reason}")


def _fill(histogram: Any, values: np.ndarray) -> None:
    """Fill a HistogramProto with values in [0, 1]; `bucket_limit` holds the upper edge of each bucket."""
    counts, edges = np.histogram(values.clip(0, 1), BUCKETS, (0, 1))
    histogram.min, histogram.max, histogram.num = values.min(), values.max(), values.size
    histogram.sum, histogram.sum_squares = values.sum(), np.square(values).sum()
    histogram.bucket_limit.extend(edges[1:].tolist())
    histogram.bucket.extend(counts.tolist())
