"""The device that this process computes on, and the arithmetic units of its CPU.

Importing this module does not import TensorFlow.
"""

from functools import cache
from pathlib import Path

from trainer.lazy import tf

# Flags in /proc/cpuinfo that indicate native multiplication in a dtype; any one of them suffices.
_UNITS = {"bfloat16": {"avx512_bf16", "amx_bf16"}, "float16": {"avx512_fp16", "amx_fp16"}}


def has_units(dtype: str, flags: frozenset[str]) -> bool:
    """Return whether a CPU with the given flags multiplies natively in a dtype, without converting each number.

    float32 and wider dtypes need no flag. A CPU without any flags (of another architecture) is assumed to have support.
    """
    return not flags or dtype not in _UNITS or bool(_UNITS[dtype] & flags)


@cache
def own_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the flags of this machine's CPU; empty if the file or its line of flags does not exist."""
    if not cpuinfo.exists():
        return frozenset()
    lines = (line.partition(":") for line in cpuinfo.read_text().splitlines())
    return next((frozenset(value.split()) for key, _, value in lines if key.strip() == "flags"), frozenset())


def on_gpu() -> bool:
    """Return whether this process computes on a GPU. With --cpu, `runtime.prepare` hides all GPUs."""
    return bool(tf.config.get_visible_devices("GPU"))


def gpu_memory() -> int | None:
    """Return the bytes that TensorFlow may allocate on this process's GPU, of which it leaves some to other libraries.

    None if TensorFlow has no GPU, as where a program only builds what it would build for one.
    This initializes the GPU, which ends the time to configure it.
    """
    from tensorflow.python.client.device_lib import list_local_devices  # TensorFlow has no public function for it

    limits = [device.memory_limit for device in list_local_devices() if device.device_type == "GPU"]
    return min(limits, default=None)


def compiles_passes(xla: bool) -> bool:
    """Return whether XLA compiles whole parts of a step: the passes, and what follows for dense gradients.

    Only done on GPUs: on CPUs, XLA's matrix products and random number generation are several times slower than
    TensorFlow's. XLA compiles a function once for every size of its arguments, even of those that it does not use, so
    these must not depend on the ids of a batch.

    Args:
        xla: whether --xla is set.
    """
    return xla and on_gpu()
