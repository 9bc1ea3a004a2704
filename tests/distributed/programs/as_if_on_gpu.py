"""Run on every worker: a program that takes the paths of a GPU, on a CPU, which computes what is meant for the GPU.

usage: python -m tests.distributed.programs.as_if_on_gpu GROWTH_STEPS PROGRAM ARGUMENT ...
PROGRAM is a module, such as main. float16's loss scale doubles after GROWTH_STEPS finite steps, so that a short run
comes to gradients that overflow; 0 leaves it as it is.
"""

import runpy
import sys

from trainer.process import device


def become_a_gpu(growth_steps: int) -> None:
    """Makes modules that are imported from now on take the paths of a GPU."""
    device.on_gpu = lambda: True
    if growth_steps:
        from trainer.optimizers import loss_scale

        loss_scale.GROWTH_STEPS = growth_steps


if __name__ == "__main__":
    become_a_gpu(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
