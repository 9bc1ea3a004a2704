"""What a launcher says of this process: its rank, and how many others it started.

horovodrun, mpirun and srun each use variables of their own; a pod of a Kubernetes operator has none of these
before one of them runs in it. This is the one place that reads them. It imports nothing heavy, so that the number of
workers is known while the arguments are checked.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from data.errors import DataError


class _Variables(NamedTuple):
    """The names under which a launcher tells a process its place."""

    launcher: str
    rank: str
    size: str
    local_rank: str
    local_size: str


# In the order in which they are believed. A launcher inside another one's job finds the outer variables beside its
# own: horovodrun comes first, and srun, by which mpirun starts its helpers on other hosts, after every mpirun.
_LAUNCHERS = (
    _Variables("horovodrun", "HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE"),
    _Variables(
        "mpirun (Open MPI)",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    _Variables("mpirun (MPICH, Intel MPI)", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    _Variables("a PMI launcher", "PMI_RANK", "PMI_SIZE", "PMI_LOCAL_RANK", "PMI_LOCAL_SIZE"),
    _Variables("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
)


@dataclass(frozen=True)
class Launch:
    """One process of a job.

    Attributes:
        rank: position among all workers, 0 to size - 1.
        size: number of workers of the job.
        local_rank: position among the workers of this host.
        local_size: number of workers on this host.
        launcher: who said so, for messages.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launcher: str = "no launcher"

    def __post_init__(self) -> None:
        """Refuses contradictory numbers."""
        if not (0 <= self.rank < self.size and 0 <= self.local_rank < self.local_size):
            raise DataError(
                f"{self.launcher} set rank {self.rank} of {self.size} and local rank {self.local_rank} of "
                f"{self.local_size}, which cannot be. Unset its variables, or start the job with horovodrun."
            )


def read_launch(environ: Mapping[str, str]) -> Launch:
    """The launch that the environment announces; a lone process without one.

    Raises:
        DataError: a variable is missing or no number, the numbers contradict each other, or this is one of several
            pods in which no launcher runs: each would train a model of its own.
    """
    for names in _LAUNCHERS:
        if names.local_rank in environ and _announces(names, environ):
            return _read(names, environ)
    for names in _LAUNCHERS:  # not everyone who speaks PMI tells the local rank
        if _announces(names, environ):
            return _read(names, environ)
    _refuse_lonely_pods(environ)
    return Launch()


def _announces(names: _Variables, environ: Mapping[str, str]) -> bool:
    if names.launcher == "srun":  # in a job step only: a batch script sees a rank too, and is one process
        return environ.get("SLURM_STEP_ID", "").isdigit() and names.size in environ
    if (names.rank in environ) != (names.size in environ):
        there, missing = sorted((names.rank, names.size), key=lambda name: name not in environ)
        raise DataError(
            f"the environment variable {there} is set and {missing} is not: how many workers there are is not known. "
            f"Unset {there}, or start the job with horovodrun."
        )
    return names.rank in environ


def _read(names: _Variables, environ: Mapping[str, str]) -> Launch:
    local_rank = _number(environ, names.local_rank) if names.local_rank in environ else 0
    local_size = local_rank + 1
    if names.launcher == "srun":
        local_size = _tasks_of_node(environ, names.local_size, local_size)
    elif names.local_size in environ:
        local_size = _number(environ, names.local_size)
    return Launch(_number(environ, names.rank), _number(environ, names.size), local_rank, local_size, names.launcher)


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "")
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise DataError(f"the environment variable {name} is {text!r}; a launcher sets it to a number")
    return int(text)


def _tasks_of_node(environ: Mapping[str, str], name: str, otherwise: int) -> int:
    """Reads SLURM's form of the tasks of all nodes: 2(x3),1 is three nodes of two and one of one."""
    tasks: list[int] = []
    for part in environ[name].split(",") if name in environ else []:
        found = re.fullmatch(r"([0-9]{1,6})(?:\(x([0-9]{1,6})\))?", part)
        if not found:
            raise DataError(f"the environment variable {name} is {environ[name]!r}; srun writes 2(x3),1 for 2, 2, 2, 1")
        tasks += [int(found[1])] * int(found[2] or 1)
    node = _number(environ, "SLURM_NODEID") if "SLURM_NODEID" in environ else 0
    return tasks[node] if node < len(tasks) else otherwise


def _refuse_lonely_pods(environ: Mapping[str, str]) -> None:
    """Kubernetes' operators start a process per pod and leave it to that process to find the others."""
    if environ.get("K_MPI_JOB_ROLE") == "worker":
        raise DataError(
            "this is a worker pod of an MPIJob (K_MPI_JOB_ROLE) in which no launcher started this process. A worker "
            "pod runs sshd; the job's command belongs to the launcher: see scripts/kubernetes.yaml."
        )
    try:
        cluster = json.loads(environ.get("TF_CONFIG", "{}")).get("cluster", {})
        tasks = sum(len(addresses) for addresses in cluster.values())
    except (ValueError, AttributeError, TypeError):
        return
    if tasks > 1:
        raise DataError(
            f"TF_CONFIG announces a cluster of {tasks} tasks, which this program does not form. Start the job with "
            "horovodrun (on Kubernetes an MPIJob: scripts/kubernetes.yaml), or unset TF_CONFIG."
        )
