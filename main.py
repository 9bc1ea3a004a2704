"""Trains, evaluates and benchmarks a recommender model. `python main.py --help` lists the flags."""

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack

from data.errors import DataError, LostInputError
from data.loading.loader import ParquetLoader
from data.storage.checksummed_dir import StorageError
from trainer.checkpoint.store import NoCheckpointError
from trainer.cli import parse, path_in
from trainer.config import Options
from trainer.inputs import (
    Inputs,
    check_folders,
    check_labels,
    check_model,
    check_workflow,
    lints_labels,
    open_inputs,
)
from trainer.lifecycle.errors import (
    DONE,
    FAILURE,
    NO_CHECKPOINT,
    STOPPED,
    WRONG_INPUT,
    NotFinite,
    RejectedByAll,
    StoppedBySignal,
    WorkersDiffer,
)
from trainer.lifecycle.records import JOB_VARIABLE, PEER_GONE, WorkerRecord
from trainer.lifecycle.run_lock import FolderInUse, RunLock
from trainer.lifecycle.signals import StopRequest
from trainer.logging.log import warn
from trainer.process.startup import import_tensorflow, robust_stdio
from trainer.process.worker_env import WorkerEnv, read_worker_env
from trainer.report.outputs import draw_gates_of_run

FIRST_FAILURE_SECONDS = 0.5
"""Seconds a worker waits before it fails for a lost peer: the launcher reports the first failure as the cause."""


def main(argv: list[str] | None = None) -> int:
    """Runs one worker and returns its exit code, which is also written to the worker's record.

    Everything that can be checked without TensorFlow is checked before TensorFlow is imported.
    """
    arguments = sys.argv[1:] if argv is None else argv
    results_dir = path_in(arguments, "results_dir")  # the record is written even if the arguments are invalid
    try:
        launch = read_worker_env(os.environ)
    except DataError as error:
        return _refuse(error, WorkerEnv(), WorkerRecord(results_dir, WorkerEnv()))
    with WorkerRecord(results_dir, launch) as record, ExitStack() as until_the_end:
        try:
            options = parse(arguments, launch.size, reads_checkpoint=launch.rank == 0)
            inputs = open_inputs(options, launch)
            check_model(options, inputs, launch)
            is_training = options.run.trains and not options.run.benchmark
            if launch.rank == 0 and is_training:
                # Locked before the folders are checked, so that no other run changes them in between.
                until_the_end.enter_context(RunLock(options.data.model_dir, warn, _lock_patience()))
            check_folders(options, inputs.spec, launch)
            warnings = check_workflow(options, inputs.spec, launch)
            if launch.size == 1 and lints_labels(options):  # with several workers, only once they are connected
                warnings += check_labels(options, inputs.spec)
        except DataError as error:
            return _refuse(error, launch, record)
        except (FolderInUse, LostInputError) as error:
            return _fail(str(error), FAILURE, record)
        record.begin()
        stop = until_the_end.enter_context(StopRequest(record if is_training else None))
        if launch.rank == 0:
            data = options.data
            print(f"data: {data.dataset_path}  checkpoints: {data.model_dir}  results: {data.results_dir}", flush=True)
            for text in (*inputs.warnings, *warnings, *_short_epochs(inputs.training)):
                warn(text)
        import_tensorflow()
        return _execute(options, inputs, launch, record, stop)


def _lock_patience() -> float:
    """Returns the seconds to wait for the lock: before a supervised restart, the old run may still be shutting down."""
    return 10.0 if JOB_VARIABLE in os.environ else 0.0


def _execute(options: Options, inputs: Inputs, launch: WorkerEnv, record: WorkerRecord, stop: StopRequest) -> int:
    """Runs the command and maps every expected exception to an exit code, a message and the worker's record."""
    from tensorflow.errors import ResourceExhaustedError

    from trainer.comm import lost_peer
    from trainer.run import execute

    try:
        execute(options, inputs, launch, record, stop)
        if launch.rank == 0 and options.run.trains and not options.run.benchmark:
            draw_gates_of_run(options.data.results_dir, options.data.log_filename)
    except StoppedBySignal as error:
        if launch.rank == 0:
            print(f"main.py: {error}", file=sys.stderr, flush=True)
        record.end(STOPPED, str(error))
        return STOPPED
    except RejectedByAll as error:
        return _refuse(error, launch, record)
    except DataError as error:
        return _fail(str(error), _code_of(error), record)
    except (MemoryError, ResourceExhaustedError) as error:
        return _fail(f"out of memory: {error}; take smaller batches, or a smaller model", FAILURE, record)
    except (NotFinite, WorkersDiffer, StorageError, FloatingPointError, OSError) as error:
        return _fail(str(error), FAILURE, record)
    except Exception as error:
        if (said := lost_peer(error)) is None:
            raise
        # Let the worker that caused this fail first.
        time.sleep(FIRST_FAILURE_SECONDS)
        return _fail(f"{PEER_GONE} ({said})", FAILURE, record)
    record.end(DONE)
    return DONE


def _code_of(error: DataError) -> int:
    return NO_CHECKPOINT if isinstance(error, NoCheckpointError) else WRONG_INPUT


def _refuse(error: DataError, launch: WorkerEnv, record: WorkerRecord) -> int:
    """Reports wrong input once per host and returns the exit code.

    All workers find the same mistake. Local rank 0 reports it; the others wait for the launcher to stop them. Errors
    from the lock are raised on rank 0 alone.
    """
    code = _code_of(error)
    if launch.local_rank == 0:
        return _fail(str(error), code, record)
    record.end(code, str(error))
    time.sleep(5)
    return code


def _fail(message: str, code: int, record: WorkerRecord) -> int:
    record.end(code, message)
    print(f"main.py: error: {message}", file=sys.stderr, flush=True)
    return code


def _short_epochs(loader: ParquetLoader | None) -> Iterator[str]:
    if loader is not None and loader.steps_per_epoch < 50:
        yield (
            f"an epoch has {loader.steps_per_epoch} step(s) for {loader.rows:,} rows; a smaller --global_batch_size "
            "gives the optimizers more of them"
        )


if __name__ == "__main__":
    robust_stdio()
    try:
        code = main()
    except Exception:
        traceback.print_exc()
        code = FAILURE
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        # Exit without joining threads or waiting for peers that may be blocked on this worker: the launcher then
        # stops them all.
        os._exit(code)
    sys.exit(DONE)
