"""The results folder of a run: log, arguments and final metrics, and messages on stdout."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress

from data.storage.files import is_out_of_room, write_whole
from trainer.config import Options
from trainer.logging.gate_records import KEY_PARTS
from trainer.logging.log import Board, RunLog, Step, to_plain, warn
from trainer.logging.profiling import StepProfiler
from trainer.logging.tensorboard import TensorBoard
from trainer.logging.trackers import open_trackers
from trainer.metrics.calibration import CURVE, UNCALIBRATED_CURVE
from trainer.outputs import ARGUMENTS, METRICS, SLICES
from trainer.slice_table import SLICES_KEY, as_csv, as_records
from trainer.tasks.evaluation import SliceResult, metrics_by_name

METRIC_UNITS = {
    "loss": None,
    **{name: metric.unit for name, metric in metrics_by_name().items()},
    **dict.fromkeys(KEY_PARTS),
    CURVE: None,
    SLICES_KEY: None,
    UNCALIBRATED_CURVE: None,
    "train_throughput": "samples/s",
    "validation_throughput": "samples/s",
    "batch_samplesps": "samples/s",
}


class Results:
    """The results folder of a run. Only rank 0 writes to it.

    Args:
        options: options of the run.
        rank: rank of this worker.

    Attributes:
        log: log of this worker, which discards all records on other ranks than 0.
        board: TensorBoard writer of this worker, for data that does not go into the log, such as histograms.

    Raises:
        DataError: if the log cannot be written.
    """

    def __init__(self, options: Options, rank: int) -> None:
        self._data, self._run, self._is_first = options.data, options.run, rank == 0
        self.board = TensorBoard(options.run.tensorboard_dir if self._is_first else None)
        if not self._is_first:
            self.log = RunLog(None)
            return
        append = options.run.use_checkpoint or not options.run.trains
        arguments = options.as_dict()
        boards: list[Board] = [self.board, *open_trackers(options.run.trackers, self._data.results_dir, arguments)]
        self.log = RunLog(self._data.results_dir / self._data.log_filename, append, boards)
        self._write_json(ARGUMENTS, arguments)
        self.log.parameters(arguments)
        for metric, unit in {**METRIC_UNITS, **dict.fromkeys(options.run.ranking_metrics)}.items():
            self.log.metadata(metric, {"unit": unit})

    def say(self, text: str) -> None:
        """Print a line on rank 0."""
        if self._is_first:
            print(text, flush=True)

    def profiler(self) -> StepProfiler:
        """Return a profiler of the steps in --profile_steps, which traces on rank 0 only."""
        steps = self._run.profiled_steps if self._is_first else range(0)
        return StepProfiler(steps, self._run.tensorboard_dir or self._data.results_dir, self.say)

    def conclude(self, metrics: dict[str, float]) -> None:
        """Write the final metrics to the log and to the metrics file.

        Raises:
            OSError: if they cannot be written. A full disk raises only if the run trains nothing, as metrics are then
                its only result; otherwise it prints a warning.
        """
        self.log.log([], metrics)
        if self._is_first:
            self._write_json(METRICS, to_plain(metrics), is_product=not self._run.trains)

    def record_slices(self, step: Step, slices: Sequence[SliceResult]) -> None:
        """Write the metrics of the slices of an evaluation to the log, and as a table that replaces the last one.

        Args:
            step: step of the log record.
            slices: the slices; nothing is written if there are none.

        Raises:
            OSError: if the table cannot be written, as in `conclude`.
        """
        if slices:
            self.log.log(step, {SLICES_KEY: as_records(slices)})
            if self._is_first:
                self._write(SLICES, as_csv(slices), is_product=not self._run.trains)

    def _write_json(self, name: str, values: Mapping[str, object], is_product: bool = False) -> None:
        self._write(name, json.dumps(values, indent=2) + "\n", is_product)

    def _write(self, name: str, text: str, is_product: bool) -> None:
        path = self._data.results_dir / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, text)
        except OSError as error:
            if is_product or not is_out_of_room(error):
                raise OSError(error.errno, error.strerror, str(path)) from error
            # A file left from an earlier run must not be mistaken for this run's.
            with suppress(OSError):
                path.unlink(missing_ok=True)
            warn(f"{path} could not be written: {error.strerror}")
