"""Reads the rank of this process and the number of workers from the launcher's environment variables.

horovodrun, mpirun and srun each use their own variables; a pod of a Kubernetes operator has none until one of these
runs in it. Only this module reads them. It has no heavy imports, so that the number of workers is available while
arguments are checked.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from data.errors import DataError

# (launcher, rank, size); the first one that is set counts. A launcher started inside another one's job also sees the
# outer variables. horovodrun therefore comes first, and srun, which mpirun uses to start its daemons on other hosts,
# last.
_JOB = (
    ("horovodrun", "HOROVOD_RANK", "HOROVOD_SIZE"),
    ("mpirun (Open MPI)", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("mpirun (MPICH, Intel MPI) or another PMI launcher", "PMI_RANK", "PMI_SIZE"),
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)
# (local rank, local size) in the same order. PMI does not define names for these: Hydra (MPICH, Intel MPI), Cray and
# srun with --mpi=pmi2 each use a different pair.
_HOST = (
    ("HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE"),
    ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("PMI_LOCAL_RANK", "PMI_LOCAL_SIZE"),
    ("SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
)


@dataclass(frozen=True)
class WorkerEnv:
    """One process of a job.

    Attributes:
        rank: rank among all workers, 0 to size - 1.
        size: number of workers of the job.
        local_rank: rank among the workers on this host, 0 to local_size - 1.
        local_size: number of workers on this host.
        launcher: name of the launcher that set these numbers, for messages.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launcher: str = "no launcher"

    def __post_init__(self) -> None:
        """Raise a DataError if the numbers contradict each other."""
        if not (0 <= self.rank < self.size and 0 <= self.local_rank < self.local_size):
            raise DataError(
                f"{self.launcher} set rank {self.rank} of {self.size} and local rank {self.local_rank} of "
                f"{self.local_size}, which is inconsistent. Unset its variables, or start the job with horovodrun."
            )


def read_worker_env(environ: Mapping[str, str]) -> WorkerEnv:
    """Read the launch from environment variables; without a launcher, this is a single process.

    Raises:
        DataError: if a variable is missing or not a number, the numbers contradict each other, or this is one of
            several pods without a launcher, each of which would train a separate model.
    """
    for launcher, rank, size in _JOB:
        if _announced(environ, rank, size):
            return WorkerEnv(_number(environ, rank), _number(environ, size), *_place_on_host(environ), launcher)
    _reject_pods_without_launcher(environ)
    return WorkerEnv()


def _announced(environ: Mapping[str, str], rank: str, size: str) -> bool:
    if rank == "SLURM_PROCID":  # also set in batch scripts, which are single processes and have no job step size
        return size in environ
    if (rank in environ) != (size in environ):
        there, missing = (rank, size) if rank in environ else (size, rank)
        raise DataError(
            f"the environment variable {there} is set and {missing} is not: the number of workers is unknown. "
            f"Unset {there}, or start the job with horovodrun."
        )
    return rank in environ


def _place_on_host(environ: Mapping[str, str]) -> tuple[int, int]:
    """Return local rank and local size; 0 and 1 if no launcher sets them."""
    for rank, size in _HOST:
        if rank in environ:
            local_rank = _number(environ, rank)
            if size not in environ:  # a lower bound that is consistent with the local rank
                return local_rank, local_rank + 1
            return local_rank, (_tasks_of_node if rank == "SLURM_LOCALID" else _number)(environ, size)
    return 0, 1


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "")
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise DataError(f"the environment variable {name} is {text!r}; expected a number")
    return int(text)


def _tasks_of_node(environ: Mapping[str, str], name: str) -> int:
    """Return this node's tasks from SLURM's format: "2(x3),1" is three nodes with two tasks and one node with one."""
    node = _number(environ, "SLURM_NODEID")
    for part in environ[name].split(","):
        found = re.fullmatch(r"([0-9]{1,6})(?:\(x([0-9]{1,6})\))?", part)
        if not found:
            break
        node -= int(found[2] or 1)
        if node < 0:
            return int(found[1])
    raise DataError(
        f"the environment variable {name} is {environ[name]!r}, which has no entry for node {environ['SLURM_NODEID']}; "
        "expected the form 2(x3),1 for 2, 2, 2, 1"
    )


def _reject_pods_without_launcher(environ: Mapping[str, str]) -> None:
    """Raise a DataError in a Kubernetes pod without a launcher.

    Kubernetes operators start one process per pod and leave it to that process to find the others.
    """
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
