"""The flags that select what a run does."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data.errors import DataError
from trainer.flags.option import at_least, option, positive
from trainer.reliability.intervals import Interval, parse_interval

TIMELINE_VARIABLE = "HOROVOD_TIMELINE"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What the run does: train, evaluate, predict or measure."""

    evaluate: bool = option(False, "evaluate a checkpoint, without training")
    predict: Path | None = option(
        None, "parquet file for a checkpoint's predictions on --eval_mapping, without training; labels are not needed"
    )
    keep: tuple[str, ...] = option((), "columns of the mapping that are copied into the file of predictions")
    benchmark: bool = option(False, "measure throughput (of training, or of evaluation with --evaluate)")
    benchmark_warmup_steps: int = option(500, "steps before the measurement starts")
    benchmark_steps: int = option(1000, "steps in all, warm-up included")
    benchmark_seconds: float | None = option(None, "ends the measurement after so many seconds at the latest")
    use_checkpoint: bool = option(False, "go on from the last checkpoint in model_dir")
    checkpoint: str | None = option(None, "last, best or a path; default: last for going on, else best")
    keep_checkpoints: int = option(2, "newest checkpoints to keep, besides the best")
    checkpoint_every: str = option(
        "10m",
        "save besides after epochs: every so many steps, or seconds, minutes, hours (500, 90s, 10m, 2h); 0: never",
    )
    fingerprint_every: int = option(500, "steps between two comparisons of what the workers hold; 0: at saves only")
    hang_seconds: float | None = option(
        None,
        "end the job when no step has ended for so long; default: 20 times the longest step so far, 300 s at least",
    )
    predictions_file: Path | None = option(None, "parquet file for the predictions of --evaluate")
    disable_map_calculation: bool = option(False, "leave MAP@12 out (it is off by itself without a map feature)")
    num_auc_thresholds: int = option(0, "thresholds of a binned ROC AUC; 0 computes it exactly")
    log_every: int = option(100, "steps between two lines of the log")
    tensorboard_dir: Path | None = option(
        None, "folder for TensorBoard: scalars, histograms of the gates, the graph; of training"
    )
    profile_steps: str | None = option(
        None, "A:B traces these steps of the run with TensorFlow's profiler, into tensorboard_dir, else results_dir"
    )
    horovod_timeline: Path | None = option(None, "file for Horovod's timeline of what several workers exchange")

    def __post_init__(self) -> None:
        """Checks ranges and flags against each other. Raises a DataError if a check fails."""
        for name in ("benchmark_steps", "keep_checkpoints", "log_every"):
            at_least(name, getattr(self, name), 1)
        at_least("benchmark_warmup_steps", self.benchmark_warmup_steps, 0)
        if self.benchmark and self.benchmark_warmup_steps >= self.benchmark_steps:
            raise DataError(
                f"--benchmark_warmup_steps {self.benchmark_warmup_steps} leaves nothing of --benchmark_steps "
                f"{self.benchmark_steps} to measure; make the second larger"
            )
        if self.benchmark_seconds is not None and not self.benchmark_seconds > 0:
            raise DataError(f"--benchmark_seconds must be positive, got {self.benchmark_seconds}")
        if self.num_auc_thresholds < 0 or self.num_auc_thresholds == 1:
            raise DataError(f"--num_auc_thresholds must be 0 (exact) or at least 2, got {self.num_auc_thresholds}")
        if self.checkpoint is not None and self.trains and not self.use_checkpoint:
            raise DataError(
                "--checkpoint says which checkpoint to go on from: add --use_checkpoint, --evaluate or --predict"
            )
        at_least("fingerprint_every", self.fingerprint_every, 0)
        if self.hang_seconds is not None:
            positive("hang_seconds", self.hang_seconds)
        parse_interval("checkpoint_every", self.checkpoint_every)
        self._check_predictions()
        self._check_observation()

    def check_workers(self, workers: int, environ: Mapping[str, str]) -> None:
        """Checks --horovod_timeline against the launcher.

        Args:
            workers: number of workers.
            environ: environment variables of the process.

        Raises:
            DataError: there is only one worker, which writes no timeline, or the launcher has set another path.
        """
        file, announced = self.horovod_timeline, environ.get(TIMELINE_VARIABLE)
        if file is None:
            return
        if workers == 1:
            raise DataError("--horovod_timeline is of several workers, and this is one; start it with horovodrun -np N")
        if announced is not None and announced != str(file):
            raise DataError(
                f"--horovod_timeline {file} contradicts {TIMELINE_VARIABLE}={announced} of the environment (horovodrun "
                "--timeline-filename sets it); leave one of them out"
            )

    @property
    def profiled_steps(self) -> range:
        """The steps to profile, counted from 1 over the whole run; empty without --profile_steps."""
        return range(0) if self.profile_steps is None else _parse_steps(self.profile_steps)

    @property
    def save_interval(self) -> Interval:
        """The interval between saves within an epoch."""
        return parse_interval("checkpoint_every", self.checkpoint_every)

    @property
    def trains(self) -> bool:
        """Whether the run trains weights, including a benchmark of training."""
        return not self.evaluate and self.predict is None

    @property
    def restores(self) -> bool:
        """Whether the run restores a checkpoint."""
        return not self.benchmark and (self.use_checkpoint or not self.trains)

    @property
    def which_checkpoint(self) -> str:
        """The checkpoint to restore: --checkpoint, or by default the last one to train and the best one otherwise."""
        return self.checkpoint or ("last" if self.trains else "best")

    @property
    def predictions_path(self) -> Path | None:
        """The predictions file of --predict or --evaluate; None if the run writes none."""
        return self.predict or self.predictions_file

    def _check_predictions(self) -> None:
        if self.predict is not None and (self.evaluate or self.benchmark):
            raise DataError(
                "--predict computes no metrics and measures nothing: take --evaluate and --benchmark away "
                "(--evaluate --predictions_file FILE gives metrics and predictions)"
            )
        if self.predictions_file is not None and (self.benchmark or not self.evaluate):
            raise DataError("--predictions_file is written by --evaluate: add --evaluate (without --benchmark)")
        if self.keep and self.predictions_path is None:
            raise DataError(
                "--keep copies columns into a file of predictions: add --predict FILE, or --evaluate with "
                "--predictions_file FILE"
            )

    def _check_observation(self) -> None:
        wants = [name for name in ("tensorboard_dir", "profile_steps") if getattr(self, name) is not None]
        if wants and (self.benchmark or not self.trains):
            raise DataError(
                f"--{wants[0]} shows a training, and this run trains no model: take it away, or --evaluate, --predict "
                "and --benchmark"
            )
        if self.profile_steps is not None:
            _parse_steps(self.profile_steps)


def _parse_steps(text: str) -> range:
    first, _, last = text.partition(":")
    if not (_is_step(first) and _is_step(last) and 1 <= int(first) <= int(last)):
        raise DataError(
            f"--profile_steps {text!r}: expected A:B, the first and the last step, counted from 1, such as 100:110"
        )
    return range(int(first), int(last) + 1)


def _is_step(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 15
