import pytest

from data.errors import DataError
from trainer.launcher import Launch, read_launch

HOROVOD = {"HOROVOD_RANK": "3", "HOROVOD_SIZE": "4", "HOROVOD_LOCAL_RANK": "1", "HOROVOD_LOCAL_SIZE": "2"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "6", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (0, 1, 0, 1)),
        (HOROVOD, (3, 4, 1, 2)),
        (OPEN_MPI, (1, 2, 1, 2)),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "2(x3)"}, (5, 6, 1, 2)),
        (OPEN_MPI | HOROVOD, (3, 4, 1, 2)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1, 0, 1)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}, (1, 2, 1, 2)),
    ],
)
def test_each_launcher_is_read_from_its_own_variables(environ, expected):
    launch = read_launch(environ)
    assert (launch.rank, launch.size, launch.local_rank, launch.local_size) == expected


@pytest.mark.parametrize("wrong", [{"HOROVOD_RANK": "x"}, {"HOROVOD_RANK": "4"}, {"HOROVOD_LOCAL_RANK": "2"}])
def test_variables_that_make_no_sense_are_refused(wrong):
    with pytest.raises(DataError):
        read_launch(HOROVOD | wrong)


def test_a_lone_process_is_worker_0_of_1():
    assert read_launch({}) == Launch()
