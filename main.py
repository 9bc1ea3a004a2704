"""Trains, evaluates and benchmarks a recommender model. `python main.py --help` lists the flags."""

import os
import sys
import time
import traceback
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from data.errors import DataError, LostInputError
from data.storage.checksummed_dir import StorageError
from data.storage.remote import RemoteUnreachableError
from trainer.checkpoint.mirror import place
from trainer.checkpoint.store import NoCheckpointError
from trainer.cli import parse
from trainer.config import Options
from trainer.default_paths import path_in
from trainer.inputs import Inputs, agree_on_inputs, check_run, open_inputs
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
from trainer.memory_needed import describe_memory
from trainer.model_size import may_use_gpu
from trainer.process.startup import import_tensorflow, quick_imports, robust_stdio
from trainer.process.worker_env import WorkerEnv, read_worker_env
from trainer.raw_rows import check_raw, encode_for_all, encoded_rows, on_encoded
from trainer.recipe import describe_choices

if TYPE_CHECKING:
    # These import TensorFlow.
    from trainer.comm import Comm
    from trainer.trainer import Trainer

# Seconds to wait for the lock of a run that a supervisor restarts: the old one may still be shutting down.
LOCK_PATIENCE = 10.0
# Seconds a worker waits before it fails for a lost peer: the launcher reports the first failure as the cause.
PEER_GRACE_SECONDS = 0.5
# Seconds a worker waits after it has rejected its input, so that the launcher stops it and local rank 0 reports.
REJECTED_GRACE_SECONDS = 5.0


def main(argv: list[str] | None = None) -> int:
    """Run one worker and return its exit code, which is also written to the worker's record."""
    arguments = sys.argv[1:] if argv is None else argv
    results_dir = path_in(arguments, "results_dir")  # the record is written even if the arguments are invalid
    try:
        env = read_worker_env(os.environ)
    except DataError as error:
        return _reject(error, WorkerEnv(), WorkerRecord(results_dir, WorkerEnv()))
    with WorkerRecord(results_dir, env) as record, ExitStack() as resources:
        # Everything that can be checked without TensorFlow is checked before TensorFlow is imported.
        try:
            config, data = _parse_and_check(arguments, env, resources)
        except DataError as error:
            return _reject(error, env, record)
        except (FolderInUse, LostInputError) as error:
            return _fail(str(error), FAILURE, record)
        record.begin()
        trains = config.run.trains and not config.run.benchmark
        stop = resources.enter_context(StopRequest(record if trains else None))
        with quick_imports():
            import_tensorflow()
        from trainer.build import start_worker
        from trainer.trainer import Services, Trainer

        try:
            comm = start_worker(config, env)
            if data is None:
                config, data = _encode_and_open(config, env, comm, resources)
            config, data = agree_on_inputs(config, data, comm, env)
            with closing(Trainer(config, data, comm, Services(record, stop))) as trainer:
                _run(trainer, config, env)
        except Exception as error:
            return _report_failure(error, env, record)
        record.end(DONE)
        return DONE


def _run(trainer: "Trainer", config: Options, env: WorkerEnv) -> None:
    """Do what the flags ask for."""
    run = config.run
    if run.benchmark:
        trainer.benchmark()
    elif run.predict is not None:
        trainer.predict(run.predict)
    elif run.importance is not None:
        trainer.measure_importance(run.importance)
    elif run.evaluate:
        trainer.evaluate()
    else:
        trainer.fit()
        if env.rank == 0 and trainer.expert_monitor is not None:
            from trainer.report.gates import draw_gates_of_run  # matplotlib takes a second to import

            draw_gates_of_run(config.data.results_dir, config.data.log_filename)


def _parse_and_check(arguments: list[str], env: WorkerEnv, resources: ExitStack) -> tuple[Options, Inputs | None]:
    """Parse the arguments, open the data and check that the run can start; lock the model folder for training.

    Returns:
        The configuration and the inputs; None if several workers predict raw rows, which rank 0 has yet to encode.
    """
    config = parse(arguments, env.size, reads_checkpoint=env.rank == 0)
    if config.run.raw:
        if env.rank == 0:
            check_raw(config)
        if env.size > 1:
            return config, None
        config = on_encoded(config, resources.enter_context(encoded_rows(config)))
    data = open_inputs(config, env)
    if env.rank == 0 and config.run.trains and not config.run.benchmark:
        # Locked before the folders are checked, so that no other run changes them in between.
        patience = LOCK_PATIENCE if JOB_VARIABLE in os.environ else 0.0
        resources.enter_context(RunLock(config.data.model_dir, warn, patience))
    _check(config, data, env)
    return config, data


def _encode_and_open(config: Options, env: WorkerEnv, comm: "Comm", resources: ExitStack) -> tuple[Options, Inputs]:
    """Encode raw rows on rank 0, open them on all workers and check that the run can start. A collective."""
    config = encode_for_all(config, comm, resources)
    data = open_inputs(config, env)
    _check(config, data, env)
    return config, data


def _check(config: Options, data: Inputs, env: WorkerEnv) -> None:
    """Check that the run can start, and print its folders and warnings on rank 0."""
    warnings = check_run(config, data, env)
    if env.rank == 0:
        folders = config.data
        read = " ".join(map(place, config.run.raw)) or place(folders.dataset_path)
        print(f"data: {read}  checkpoints: {place(folders.model_dir)}  results: {folders.results_dir}", flush=True)
        for line in describe_choices(config):
            print(line, flush=True)
        if data.memory is not None:
            print(describe_memory(data.memory, env.size, on_gpu=may_use_gpu(config.training.cpu)), flush=True)
        for text in warnings:
            warn(text)


def _report_failure(error: Exception, env: WorkerEnv, record: WorkerRecord) -> int:
    """Report an error that ends the run and return its exit code; raise it again if it is none that is expected."""
    from tensorflow.errors import ResourceExhaustedError

    from trainer.comm import lost_peer

    if isinstance(error, StoppedBySignal):
        if env.rank == 0:
            print(f"main.py: {error}", file=sys.stderr, flush=True)
        record.end(STOPPED, str(error))
        return STOPPED
    if isinstance(error, RejectedByAll):
        return _reject(error, env, record)
    if isinstance(error, DataError):
        return _fail(str(error), _code_of(error), record)
    if isinstance(error, MemoryError | ResourceExhaustedError):
        return _fail(f"out of memory: {error}; use smaller batches or a smaller model", FAILURE, record)
    if isinstance(error, NotFinite | WorkersDiffer | StorageError | FloatingPointError | OSError):
        return _fail(str(error), FAILURE, record)
    reason = lost_peer(error)
    if reason is None:
        raise error
    time.sleep(PEER_GRACE_SECONDS)  # let the worker that caused this fail first
    return _fail(f"{PEER_GONE} ({reason})", FAILURE, record)


def _code_of(error: DataError) -> int:
    if isinstance(error, RemoteUnreachableError):
        return FAILURE
    return NO_CHECKPOINT if isinstance(error, NoCheckpointError) else WRONG_INPUT


def _reject(error: DataError, env: WorkerEnv, record: WorkerRecord) -> int:
    """Report wrong input once per host and return the exit code.

    All workers find the same mistake. Local rank 0 reports it; the others wait for the launcher to stop them. Errors
    from the lock are raised on rank 0 alone.
    """
    code = _code_of(error)
    if env.local_rank == 0:
        return _fail(str(error), code, record)
    record.end(code, str(error))
    time.sleep(REJECTED_GRACE_SECONDS)
    return code


def _fail(message: str, code: int, record: WorkerRecord) -> int:
    record.end(code, message)
    print(f"main.py: error: {message}", file=sys.stderr, flush=True)
    return code


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
