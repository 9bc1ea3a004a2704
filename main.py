"""Trains, evaluates and measures a recommender model. `python main.py --help` lists the flags."""

import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence

from data.errors import DataError
from data.loading.loader import ParquetLoader
from trainer.checkpoints import NoCheckpointError
from trainer.cli import parse
from trainer.inputs import Inputs, check_folders, check_labels, open_inputs
from trainer.launcher import Launch, read_launch
from trainer.models import MODELS
from trainer.options import Options
from trainer.quiet_import import import_tensorflow
from trainer.reliability.exit_codes import FAILURE, NO_CHECKPOINT, WRONG_INPUT
from trainer.sealed.errors import CheckpointError


def main(argv: list[str] | None = None) -> int:
    """Runs one worker; returns its exit code.

    All that can be checked without TensorFlow is checked before it is imported.
    """
    launch = Launch()
    try:
        launch = read_launch(os.environ)
        options = parse(argv, launch.size, tuple(MODELS), reads_checkpoint=launch.rank == 0)
        inputs = open_inputs(options, launch)
        check_folders(options, launch)
        warnings = check_labels(options, inputs.spec, launch)
    except DataError as error:
        return _refuse(error, launch, NO_CHECKPOINT if isinstance(error, NoCheckpointError) else WRONG_INPUT)
    if launch.rank == 0:
        data = options.data
        print(f"data: {data.dataset_path}  checkpoints: {data.model_dir}  results: {data.results_dir}", flush=True)
        _warn([*warnings, *_short_epochs(inputs.training)])
    import_tensorflow()
    return _execute(options, inputs, launch)


def _execute(options: Options, inputs: Inputs, launch: Launch) -> int:
    from trainer.loop import LossError
    from trainer.run import execute

    try:
        execute(options, inputs, launch)
    except NoCheckpointError as error:
        return _fail(str(error), NO_CHECKPOINT)
    except DataError as error:
        return _fail(str(error), WRONG_INPUT)
    except (LossError, CheckpointError, FloatingPointError, OSError) as error:
        return _fail(str(error), FAILURE)
    return 0


def _refuse(error: DataError, launch: Launch, code: int) -> int:
    """All workers refuse the same arguments and files: one per host says so, the others wait to be stopped.

    What the label lint refuses, the first worker refuses alone; the launcher stops the others.
    """
    if launch.local_rank != 0:
        time.sleep(5)
        return code
    return _fail(str(error), code)


def _fail(message: str, code: int) -> int:
    print(f"main.py: error: {message}", file=sys.stderr, flush=True)
    return code


def _warn(warnings: Sequence[str]) -> None:
    for text in warnings:
        print(f"warning: {text}", file=sys.stderr, flush=True)


def _short_epochs(loader: ParquetLoader | None) -> Iterator[str]:
    if loader is not None and loader.steps_per_epoch < 50:
        yield (
            f"an epoch has {loader.steps_per_epoch} step(s) for {loader.rows:,} rows; a smaller --global_batch_size "
            "gives the optimizers more of them"
        )


if __name__ == "__main__":
    try:
        code = main()
    except Exception:
        traceback.print_exc()
        code = FAILURE
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        # Without waiting for threads or for workers that wait for this one: the launcher then stops them all.
        os._exit(code)
    sys.exit(0)
