"""TensorFlow setup that must precede its first operation: devices, threads, seeds, determinism."""

import os
from contextlib import suppress
from dataclasses import dataclass

import tensorflow as tf

from trainer.config import TrainingOptions
from trainer.process.worker_env import WorkerEnv


@dataclass(frozen=True)
class Runtime:
    """The device and dtype that a run computes with.

    Attributes:
        device: "CPU", or the name of the GPU.
        compute_dtype: "float32", "float16" or "bfloat16".
    """

    device: str
    compute_dtype: str


def prepare(launch: WorkerEnv, options: TrainingOptions) -> Runtime:
    """Configures TensorFlow for this worker.

    A worker that sees several GPUs uses the one of its local rank; with hvd_wrapper.sh it sees only one.

    Args:
        launch: rank and size of this worker.
        options: training options; determine device, seed, determinism and mixed precision.
    """
    gpus = [] if options.cpu else tf.config.list_physical_devices("GPU")
    gpu = gpus[launch.local_rank % len(gpus)] if gpus else None
    tf.config.set_visible_devices([gpu] if gpu else [], "GPU")
    if gpu:
        tf.config.experimental.set_memory_growth(gpu, True)  # TensorFlow would reserve all GPU memory at start
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
    return Runtime(_name(gpu), _compute_dtype(options.amp, options.amp_dtype, gpu is not None))


def _sharing(launch: WorkerEnv, cores: int) -> int:
    """Returns the number of workers that share this worker's cores: one if it is bound to a subset of all cores."""
    return launch.local_size if cores == os.cpu_count() else 1


def _compute_dtype(amp: bool, amp_dtype: str, on_gpu: bool) -> str:
    if not amp:
        return "float32"
    if amp_dtype != "auto":
        return amp_dtype
    return "float16" if on_gpu else "bfloat16"


def _name(gpu: object) -> str:
    if gpu is None:
        return "CPU"
    return str(tf.config.experimental.get_device_details(gpu).get("device_name", "GPU"))
