"""How a benchmark says what it found: a JSON line with the machine, the versions and the command that made it."""

import json
import os
import platform
import shlex
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trainer.process.worker_env import read_worker_env

# Package -> names of the distributions that hold it: with and without a GPU they differ.
PACKAGES = {
    "tensorflow": ("tensorflow", "tensorflow-cpu"),
    **{name: (name,) for name in ("keras", "horovod", "numpy", "pyarrow")},
}


def report(result: dict[str, Any]) -> None:
    """Prints a result as one line, with what `about` adds."""
    print(json.dumps(about(command()) | result), flush=True)


def about(command: str) -> dict[str, Any]:
    """What every line holds besides its result: machine, versions, command."""
    return {"machine": machine(), "versions": versions(), "command": command}


def command() -> str:
    """What to type in the project's folder to run this process again."""
    workers = read_worker_env(os.environ).size
    launcher = f"horovodrun -np {workers} " if workers > 1 else ""
    return launcher + shlex.join(["python", *sys.orig_argv[1:]])


@cache
def machine() -> str:
    """Processor, cores that this process may use, memory; and the GPU where TensorFlow is imported and sees one."""
    cores, gib = len(os.sched_getaffinity(0)), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return ", ".join([_processor(), f"{cores} cores", f"{gib:.0f} GiB", *_gpus()])


def versions() -> dict[str, str]:
    """Package -> version of what the figures depend on, as far as it is installed."""
    found = {"python": platform.python_version()}
    for package, distributions in PACKAGES.items():
        for distribution in distributions:
            with suppress(PackageNotFoundError):
                found[package] = version(distribution)
    return found


def _processor() -> str:
    """The name that Linux gives it, with family and model, which tell generations of one name apart."""
    info: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        info.setdefault(key.strip(), value.strip())
    return f"{info['model name']} (family {info['cpu family']}, model {info['model']})"


def _gpus() -> list[str]:
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None:
        return []
    details = tensorflow.config.experimental.get_device_details
    return [details(gpu).get("device_name", "GPU") for gpu in tensorflow.config.get_visible_devices("GPU")]
