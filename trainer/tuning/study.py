"""An Optuna study over flags of main.py, kept in a folder so that it can be resumed."""

import importlib
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.errors import DataError
from trainer.lifecycle.run_lock import LockedFolder, RunLock
from trainer.logging.log import warn
from trainer.metrics.metric import Direction
from trainer.tuning.request import MODELS, RESULTS, TuningRequest
from trainer.tuning.trials import TrialFailed, run_trial

STUDY, TRIALS = "study.db", "trials"
SETTINGS = "settings"
OUTPUT_DIR = LockedFolder(".tuning.lock", "--output", "another study is running there")
MOST_FAILURES = 3  # consecutive trials
PRUNERS = ("median", "none")


def import_optuna() -> Any:
    """Return the package optuna. Raise a DataError if it is not installed."""
    try:
        return importlib.import_module("optuna")
    except ImportError as error:
        raise DataError(
            f"tune.py needs the package optuna, which cannot be imported ({error}): python -m pip install optuna"
        ) from error


class Tuning:
    """A study in a folder: study.db, and a folder per trial with its output, results and (for the best) models.

    Args:
        request: what to search.
        output: folder of the study, created if it does not exist.
        pruner: median ends a trial whose best value so far is worse than the median of earlier trials at that epoch;
            none runs all trials to their end.
        seed: seed of the sampler.
        say: called with a line after each trial.

    Raises:
        DataError: Optuna is not installed.
    """

    def __init__(self, request: TuningRequest, output: Path, *, pruner: str, seed: int, say: Callable[[str], None]):
        self._request, self._output, self._pruner, self._seed, self._say = request, output, pruner, seed, say
        self._optuna = import_optuna()
        self._failures = 0
        self._lock: int | None = None

    def run(self, trials: int) -> bool:
        """Run trials until the study has so many, including earlier ones, and print the best.

        Returns:
            Whether the study is complete; False if trials kept failing.

        Raises:
            DataError: the folder holds another study, or something else.
            FolderInUse: another study is running in the folder.
        """
        with RunLock(self._output, warn, kind=OUTPUT_DIR) as lock:
            self._lock = lock.descriptor
            study = self._open()
            left = trials - sum(trial.state.is_finished() for trial in study.trials)
            if left > 0:
                study.optimize(self._objective, n_trials=left, catch=(TrialFailed,), callbacks=[self._after_trial])
        self._tell_best(study)
        return self._failures < MOST_FAILURES

    def _open(self) -> Any:
        """Open the study of the folder, or start one."""
        optuna, path = self._optuna, self._output / STUDY
        foreign = [file.name for file in self._output.iterdir() if file.name != OUTPUT_DIR.file]
        if not path.exists() and foreign:
            raise DataError(f"--output {self._output}: holds {foreign[0]} and no study; choose a new folder")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        pruner = optuna.pruners.MedianPruner() if self._pruner == "median" else optuna.pruners.NopPruner()
        study = optuna.create_study(
            storage=f"sqlite:///{path.absolute()}",
            study_name="main.py",
            direction="maximize" if self._request.direction is Direction.LARGER else "minimize",
            load_if_exists=True,
            pruner=pruner,
        )
        self._check_settings(study)
        # Trials of a process that was killed; nobody else runs any, as the folder is locked.
        for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        # With the same seed, a resumed study would draw the values of its first trials again.
        study.sampler = optuna.samplers.TPESampler(seed=self._seed + len(study.trials))
        return study

    def _check_settings(self, study: Any) -> None:
        """Raise a DataError if the trials of a resumed study cannot be compared with those to come."""
        request = self._request
        settings = {
            "--search": [search.text for search in request.searches],
            "flags of main.py": list(request.flags),
            "metric": request.metric,
            "files of the dataset": list(request.data),
        }
        stored = study.user_attrs.get(SETTINGS)
        if stored is None:
            study.set_user_attr(SETTINGS, settings)
            return
        for name, value in settings.items():
            if stored.get(name) != value:
                raise DataError(
                    f"--output {self._output}: holds a study with other {name}: {json.dumps(stored.get(name))}, now "
                    f"{json.dumps(value)}; repeat the command that started it, or choose another folder"
                )

    def _objective(self, trial: Any) -> float:
        request, folder = self._request, self._output / TRIALS / str(trial.number)
        words = [word for search in request.searches for word in search.words(search.suggest(trial))]
        self._say(f"trial {trial.number}: {shlex.join(words)}")

        def on_epoch(epoch: int, value: float) -> None:
            trial.report(value, epoch)
            if trial.should_prune():
                raise self._optuna.TrialPruned(f"after epoch {epoch}, with {request.metric} {value:.5f}")

        try:
            return run_trial(
                request.command(folder, words), folder, folder / RESULTS, request.metric, on_epoch, self._lock
            )
        except self._optuna.TrialPruned as pruned:
            self._say(f"trial {trial.number}: ended {pruned}")
            raise
        except TrialFailed as failed:
            self._say(f"trial {trial.number}: failed: {failed}")
            raise

    def _after_trial(self, study: Any, trial: Any) -> None:
        state = self._optuna.trial.TrialState
        self._failures = self._failures + 1 if trial.state == state.FAIL else 0
        if trial.state == state.COMPLETE:
            self._say(f"trial {trial.number}: {self._request.metric} {trial.value:.5f}")
        best = self._best(study)
        for models in (self._output / TRIALS).glob(f"*/{MODELS}"):
            if best is None or models.parent.name != str(best.number):
                shutil.rmtree(models, ignore_errors=True)
        if self._failures >= MOST_FAILURES:
            self._say(f"{MOST_FAILURES} trials in a row have failed; ending")
            study.stop()

    def _best(self, study: Any) -> Any:
        complete = study.get_trials(states=[self._optuna.trial.TrialState.COMPLETE])
        return study.best_trial if complete else None

    def _tell_best(self, study: Any) -> None:
        best = self._best(study)
        if best is None:
            self._say("no trial has run to its end")
            return
        words = [word for search in self._request.searches for word in search.words(best.params[search.name])]
        folder = self._output / TRIALS / str(best.number)
        self._say(
            f"best of {len(study.trials)} trials: trial {best.number}, {self._request.metric} {best.value:.5f}: "
            f"{shlex.join(words)}\nits model: {folder / MODELS}, its log: {folder / RESULTS}"
        )
