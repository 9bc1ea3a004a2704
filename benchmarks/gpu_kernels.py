"""Lists the kernels that the installed TensorFlow has for GPUs, as JSON. gpu_audit.py runs this with the GPU build.

The output maps each operation to its kernels, in the order in which TensorFlow tries them: `types` holds the dtypes
that a kernel takes for each type attribute that it restricts, and `host` the names of its inputs and outputs in host
memory. Kernels are registered when TensorFlow is loaded, whether there is a GPU or not.
"""

import json
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # has to precede the import

import tensorflow as tf
from tensorflow.python.framework import kernels


def registered_kernels() -> dict[str, object]:
    """Return the version of TensorFlow, and its kernels by operation."""
    found = [own for own in kernels.get_all_registered_kernels().kernel if own.device_type in ("GPU", "DEFAULT")]
    # Kernels of all devices are used where there is none of the GPU itself. Those with a label have to be asked for.
    found = sorted((own for own in found if not own.label), key=lambda own: (own.device_type != "GPU", -own.priority))
    by_operation: dict[str, list[dict[str, object]]] = {}
    for own in found:
        types = {
            constraint.name: [tf.as_dtype(dtype).name for dtype in constraint.allowed_values.list.type]
            for constraint in own.constraint
            if constraint.allowed_values.list.type
        }
        by_operation.setdefault(own.op, []).append({"types": types, "host": sorted(own.host_memory_arg)})
    return {"tensorflow": tf.__version__, "kernels": by_operation}


if __name__ == "__main__":
    print(json.dumps(registered_kernels()))
