"""What a study is asked for, checked before the first trial: flags, data, and the metric to improve."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.errors import DataError
from data.spec.feature_spec import FeatureSpec
from trainer.cli import make_parser, parse
from trainer.config import Options
from trainer.early_stopping import main_metric
from trainer.inputs import Inputs, open_inputs
from trainer.metrics.metric import Direction
from trainer.process.worker_env import WorkerEnv
from trainer.tasks.evaluation import Evaluation, metric_of
from trainer.tasks.score import Score
from trainer.tasks.task import tasks_of
from trainer.tuning.space import Search

MAIN = Path(__file__).resolve().parents[2] / "main.py"
MODELS, RESULTS = "models", "results"  # folders of a trial
TEST = "test"
# Every trial has folders and a start of its own, and trains.
REJECTED = (
    "model_dir",
    "results_dir",
    "log_filename",
    "use_checkpoint",
    "checkpoint",
    "tensorboard_dir",
    "horovod_timeline",
)


@dataclass(frozen=True)
class TuningRequest:
    """A checked request.

    Attributes:
        searches: the flags to search.
        flags: the other flags of every trial, as words on the command line.
        workers: number of workers of a trial.
        metric: logged key of the metric to improve: the one that decides which checkpoint of a run is the best.
        direction: where this metric moves as a model gets better, LARGER or SMALLER.
        data: checksums that identify the rows that are trained on and evaluated.
    """

    searches: tuple[Search, ...]
    flags: tuple[str, ...]
    workers: int
    metric: str
    direction: Direction
    data: tuple[str, str]

    def command(self, folder: Path, words: Sequence[str]) -> list[str]:
        """Return the command that runs a trial.

        Args:
            folder: folder of the trial's models and results.
            words: the searched flags, as words on the command line.
        """
        places = ["--model_dir", str(folder / MODELS), "--results_dir", str(folder / RESULTS)]
        launcher = [horovodrun(), "-np", str(self.workers)] if self.workers > 1 else []
        return [*launcher, sys.executable, str(MAIN), *self.flags, *words, *places]


def check_request(searches: Sequence[Search], flags: Sequence[str], workers: int) -> TuningRequest:
    """Check a request against the flags of main.py and the dataset.

    Args:
        searches: the flags to search.
        flags: the other flags of every trial, as words on the command line.
        workers: number of workers of a trial.

    Raises:
        DataError: a flag or one of its searched values is wrong, the dataset cannot be read or evaluates on test rows,
            or the metric has no direction.
    """
    given = [name for name, value in vars(make_parser().parse(flags)).items() if value is not None]
    if wrong := [name for name in given if name in REJECTED]:
        raise DataError(f"--{wrong[0]} cannot be given to trials: each one starts in a new folder under --output")
    if twice := [search.name for search in searches if search.name in given]:
        raise DataError(f"--{twice[0]} is searched, and given to all trials; remove one of the two")
    config = parse(flags, workers, reads_checkpoint=False)
    if not config.run.trains or config.run.benchmark:
        raise DataError("trials train: remove --evaluate, --predict, --importance and --benchmark")
    for search in searches:
        for value in search.extremes:
            try:
                parse([*flags, *search.words(value)], workers, reads_checkpoint=False)
            except DataError as error:
                raise DataError(f"--search {search.text}: {error}") from error
    if workers > 1:
        horovodrun()
    inputs = open_inputs(config, WorkerEnv(size=workers, local_size=workers))
    _check_mapping(config, inputs)
    key, direction = _main_metric(config, inputs)
    data = inputs.train_loader.identity.checksum, inputs.eval_loader.identity.checksum
    return TuningRequest(tuple(searches), tuple(flags), workers, key, direction, data)


def _check_mapping(config: Options, inputs: Inputs) -> None:
    """Raise a DataError if trials would be compared on rows of the mapping test, or on those that they train on."""
    spec, mapping = inputs.spec, inputs.eval_mapping
    if inputs.holds_out:
        return
    if mapping == TEST:
        raise DataError(
            f"{spec.folder}: trials would be evaluated on the mapping 'test', whose rows must not choose anything. Add "
            "a mapping 'valid' to the specification, or name another one with --eval_mapping"
        )
    for other in dict.fromkeys((TEST, config.data.train_mapping)):
        if other in spec.sources and (shared := _files(spec, mapping) & _files(spec, other)):
            raise DataError(
                f"{sorted(shared)[0]}: is a file of the mappings {mapping!r} and {other!r}; trials must be evaluated "
                f"on other rows than those of {other!r}"
            )


def _files(spec: FeatureSpec, mapping: str) -> set[Path]:
    return {path.resolve() for path in spec.files(mapping)}


def _main_metric(config: Options, inputs: Inputs) -> tuple[str, Direction]:
    score = Score.of(inputs.spec)
    keys = Evaluation(tasks_of(inputs.spec), with_group=inputs.with_group, score=score).keys
    options = config.training
    key = main_metric(keys, options.early_stopping_metric, prefers_loss=options.recipe == "auto")
    direction = metric_of(key).direction
    if direction is Direction.NEAREST_1:
        raise DataError(f"--early_stopping_metric {key} is best at 1, and a study needs one that rises or falls")
    return key, direction


def horovodrun() -> str:
    """Return the path of horovodrun. Raise a DataError if it is not installed."""
    beside = Path(sys.executable).with_name("horovodrun")
    found = str(beside) if beside.exists() else shutil.which("horovodrun")
    if found is None:
        raise DataError("--workers needs horovodrun, which is not installed: scripts/setup.sh builds it")
    return found
