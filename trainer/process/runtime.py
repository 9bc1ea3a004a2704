"""TensorFlow setup that must precede its first operation: devices, threads, seeds, determinism."""

import os
from contextlib import suppress

import tensorflow as tf

from trainer.config import TrainingOptions
from trainer.process.device import on_gpu
from trainer.process.worker_env import WorkerEnv


def prepare(launch: WorkerEnv, options: TrainingOptions) -> str:
    """Configure TensorFlow for this worker.

    A worker that sees several GPUs uses the one of its local rank; with hvd_wrapper.sh it sees only one.

    Args:
        launch: rank and size of this worker.
        options: training options; determine device, seed and determinism.

    Returns:
        "CPU", or the name of the GPU.
    """
    gpus = [] if options.cpu else tf.config.list_physical_devices("GPU")
    gpu = gpus[launch.local_rank % len(gpus)] if gpus else None
    tf.config.set_visible_devices([gpu] if gpu else [], "GPU")
    if gpu:
        tf.config.experimental.set_memory_growth(gpu, True)  # TensorFlow would reserve all GPU memory at start
        if launch.size > 1:
            # A GPU adds the numbers of a segment in any order. Workers that sum the rows of a table that all of them
            # have gathered would get sums, and then weights, that differ in the last bits. TensorFlow reads this once.
            os.environ.setdefault("TF_USE_DETERMINISTIC_SEGMENT_REDUCTIONS", "1")
    else:
        # Several workers on one host would otherwise each start a thread per core.
        cores = len(os.sched_getaffinity(0))
        threads = max(1, cores // _sharing(launch, cores))
        if tf.config.threading.get_intra_op_parallelism_threads() != threads:
            # Inside an application TensorFlow may already be initialized, and then keeps its current threads.
            with suppress(RuntimeError):
                tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.random.set_seed(options.seed)
    if options.deterministic:
        tf.config.experimental.enable_op_determinism()
    return "CPU" if gpu is None else str(tf.config.experimental.get_device_details(gpu).get("device_name", "GPU"))


def compute_dtype(options: TrainingOptions) -> str:
    """Return the dtype of the forward and backward pass: "float32", or with --amp "float16" or "bfloat16"."""
    if not options.amp:
        return "float32"
    if options.amp_dtype != "auto":
        return options.amp_dtype
    return "float16" if on_gpu() else "bfloat16"


def _sharing(launch: WorkerEnv, cores: int) -> int:
    """Return the number of workers that share this worker's cores: one if it is bound to a subset of all cores."""
    return launch.local_size if cores == os.cpu_count() else 1
