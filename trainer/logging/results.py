"""Output of a run: log, arguments, final metrics and gate plots in the results folder, and messages on stdout."""

import json
import sys
from collections.abc import Mapping
from contextlib import suppress

from data.errors import DataError
from data.storage.files import is_out_of_room, write_whole
from trainer.config import Options
from trainer.expert_monitor import PARTS as HEALTH
from trainer.logging.log import NullLog, RunLog, to_plain
from trainer.logging.profiling import StepProfiler
from trainer.logging.tensorboard import LogOnBoard, TensorBoard
from trainer.metrics.calibration import CURVE
from trainer.outputs import ARGUMENTS, METRICS
from trainer.report.runs import read_run
from trainer.tasks.evaluation import metrics_by_name

METRIC_UNITS = {
    "loss": None,
    **{name: metric.unit for name, metric in metrics_by_name().items()},
    **dict.fromkeys(HEALTH),
    CURVE: None,
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
        log: log of this worker; a `NullLog` on other ranks than 0.
        board: TensorBoard writer of this worker, for data that does not go into the log, such as histograms.

    Raises:
        DataError: if the log cannot be written.
    """

    def __init__(self, options: Options, rank: int):
        self._data, self._run, self._is_first = options.data, options.run, rank == 0
        self.board = TensorBoard(options.run.tensorboard_dir if self._is_first else None)
        self.log: RunLog | NullLog = NullLog()
        if not self._is_first:
            return
        values = options.as_dict()
        goes_on = options.run.use_checkpoint or not options.run.trains
        self.log = LogOnBoard(self._data.results_dir / self._data.log_filename, goes_on, self.board)
        self._write_json(ARGUMENTS, values)
        self.log.parameters(values)
        for metric, unit in METRIC_UNITS.items():
            self.log.metadata(metric, {"unit": unit})

    def say(self, text: str) -> None:
        """Prints a line on rank 0."""
        if self._is_first:
            print(text, flush=True)

    def profiler(self) -> StepProfiler:
        """Returns a profiler of the steps in --profile_steps, which traces on rank 0 only."""
        steps = self._run.profiled_steps if self._is_first else range(0)
        return StepProfiler(steps, self._run.tensorboard_dir or self._data.results_dir, self.say)

    def conclude(self, metrics: dict[str, float]) -> None:
        """Writes the final metrics to the log and to the metrics file.

        Raises:
            OSError: if they cannot be written. A full disk raises only if the run trains nothing, as metrics are then
                its only result; otherwise it prints a warning.
        """
        self.log.log([], metrics)
        if self._is_first:
            self._write_json(METRICS, to_plain(metrics), is_product=not self._run.trains)

    def draw_gates(self) -> None:
        """Plots the gates of all epochs in the log. Failures are reported only, so that the trained model is kept."""
        if not self._is_first:
            return
        # Imported here, as importing matplotlib takes a second that only rank 0 of models with gates should spend.
        from trainer.report.gates import draw_gates

        try:
            for path in draw_gates(
                read_run(self._data.results_dir, "", self._data.log_filename), self._data.results_dir
            ):
                self.say(f"gates: {path}")
        except (DataError, OSError) as error:
            self.say(f"warning: the gates could not be drawn: {error}")

    def _write_json(self, name: str, values: Mapping[str, object], is_product: bool = False) -> None:
        path = self._data.results_dir / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(values, indent=2) + "\n")
        except OSError as error:
            if is_product or not is_out_of_room(error):
                raise OSError(error.errno, error.strerror, str(path)) from error
            # A file left from an earlier run must not be mistaken for this run's.
            with suppress(OSError):
                path.unlink(missing_ok=True)
            print(f"warning: {path} could not be written: {error.strerror}", file=sys.stderr, flush=True)
