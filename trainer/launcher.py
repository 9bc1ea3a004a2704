"""What a launcher says of this process: its rank, and how many others it started.

horovodrun, mpirun, srun and the Kubernetes operators each use variables of their own. This is
the one place that reads them. It imports nothing heavy, so that the number of workers is known
while the arguments are checked.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from data.errors import DataError

# (launcher, rank, size, local rank, local size), in the order in which they are believed:
# horovodrun started inside a SLURM or MPI job sets its own variables beside the outer ones.
_VARIABLES = (
    ("horovodrun", "HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE"),
    (
        "mpirun (Open MPI)",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    ("mpirun (MPICH, Intel MPI)", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
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
        DataError: a variable is no number, or the numbers contradict each other.
    """
    for launcher, *names in (*_VARIABLES, *_slurm(environ)):
        rank, size, local_rank, local_size = names
        if rank in environ and size in environ:
            return Launch(
                rank=_number(environ, rank),
                size=_number(environ, size),
                local_rank=_number(environ, local_rank, 0),
                local_size=_number(environ, local_size, _number(environ, local_rank, 0) + 1),
                launcher=launcher,
            )
    return Launch()


def _slurm(environ: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    """srun's variables, inside a job step only: a batch script itself sees them too and is one process."""
    if environ.get("SLURM_STEP_ID", "").isdigit():
        return (("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),)
    return ()


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(str(text).split("(")[0])  # SLURM writes 2(x3) for three hosts of two
    except ValueError:
        raise DataError(f"the environment variable {name} is {text!r}; a launcher sets it to a number") from None
