"""Launcher variables, as set by Open MPI 4.1, MPICH 4.0 and SLURM 22.05."""

import json
import re

import pytest

from data.errors import DataError
from tests.helpers import ROOT
from trainer.process.worker_env import _HOST, WorkerEnv, read_worker_env

HOROVOD = {"HOROVOD_RANK": "3", "HOROVOD_SIZE": "4", "HOROVOD_LOCAL_RANK": "1", "HOROVOD_LOCAL_SIZE": "2"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_NODE_RANK": "1",
    "PMIX_RANK": "1",
}
HYDRA = {"PMI_RANK": "2", "PMI_SIZE": "3", "PMI_FD": "6", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1"}
CRAY = {"PMI_RANK": "6", "PMI_SIZE": "8", "PMI_LOCAL_RANK": "2", "PMI_LOCAL_SIZE": "4"}
SRUN = {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "1",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
}
# mpirun starts one helper per host by srun.
HELPER = {
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "1",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}
BATCH_SCRIPT = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8", "SLURM_TASKS_PER_NODE": "4(x2)"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (0, 1, 0, 1)),
        (HOROVOD, (3, 4, 1, 2)),
        (OPEN_MPI, (1, 2, 1, 2)),
        (HYDRA, (2, 3, 0, 1)),
        (CRAY, (6, 8, 2, 4)),
        (SRUN, (1, 3, 1, 2)),
        (BATCH_SCRIPT, (0, 1, 0, 1)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, (1, 2, 0, 1)),
    ],
)
def test_each_launcher_is_read_from_its_own_variables(environ, expected):
    assert place(environ) == expected


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (OPEN_MPI | HOROVOD, (3, 4, 1, 2)),
        (BATCH_SCRIPT | HOROVOD, (3, 4, 1, 2)),
        (SRUN | HOROVOD, (3, 4, 1, 2)),
        ({"K_MPI_JOB_ROLE": "worker"} | HOROVOD, (3, 4, 1, 2)),
        (HELPER | OPEN_MPI, (1, 2, 1, 2)),
        (HELPER | HYDRA, (2, 3, 0, 1)),
        # srun --mpi=pmi2 does not describe the host in PMI variables.
        (SRUN | {"PMI_RANK": "1", "PMI_SIZE": "3"}, (1, 3, 1, 2)),
    ],
)
def test_the_inner_launcher_wins(environ, expected):
    assert place(environ) == expected


@pytest.mark.parametrize(
    ("tasks", "node", "local_size"),
    [("2(x3)", "2", 2), ("2,1", "1", 1), ("1(x2),3", "2", 3), ("3,1(x2)", "0", 3), ("4", "0", 4)],
)
def test_srun_gives_the_tasks_of_every_node(tasks, node, local_size):
    environ = SRUN | {"SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NODEID": node, "SLURM_LOCALID": "0"}
    assert place(environ) == (1, 3, 0, local_size)


def place(environ: dict[str, str]) -> tuple[int, int, int, int]:
    launch = read_worker_env(environ)
    return launch.rank, launch.size, launch.local_rank, launch.local_size


@pytest.mark.parametrize(
    "wrong",
    [
        HOROVOD | {"HOROVOD_RANK": "x"},
        HOROVOD | {"HOROVOD_RANK": "4"},
        HOROVOD | {"HOROVOD_RANK": "-1"},
        HOROVOD | {"HOROVOD_LOCAL_RANK": "2"},
        HOROVOD | {"HOROVOD_SIZE": ""},
        SRUN | {"SLURM_STEP_TASKS_PER_NODE": "2(y3)"},
        SRUN | {"SLURM_NODEID": "2"},
        SRUN | {"SLURM_PROCID": "3"},
    ],
)
def test_inconsistent_variables_are_rejected(wrong):
    with pytest.raises(DataError):
        read_worker_env(wrong)


@pytest.mark.parametrize("name", ["HOROVOD_RANK", "HOROVOD_SIZE", "OMPI_COMM_WORLD_RANK", "PMI_SIZE"])
def test_missing_variable_is_named(name):
    other = name.replace("RANK", "SIZE") if "RANK" in name else name.replace("SIZE", "RANK")
    with pytest.raises(DataError, match=f"{name} is set and {other} is not"):
        read_worker_env({name: "1"})


def test_pod_without_a_launcher_does_not_train_alone():
    with pytest.raises(DataError, match="worker pod of an MPIJob"):
        read_worker_env({"K_MPI_JOB_ROLE": "worker"})
    cluster = {"worker": ["a:2222", "b:2222"], "chief": ["c:2222"]}
    with pytest.raises(DataError, match="TF_CONFIG announces a cluster of 3 tasks"):
        read_worker_env({"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": 1}})})


@pytest.mark.parametrize("config", ["", "no JSON", "[]", "{}", '{"cluster": {"worker": ["a:1"]}}', '{"cluster": 3}'])
def test_tf_config_of_a_single_task_is_ignored(config):
    assert read_worker_env({"TF_CONFIG": config, "K_MPI_JOB_ROLE": "launcher"}) == WorkerEnv()


def test_wrapper_reads_the_same_local_ranks():
    choice = re.search(r"^local_rank=(.*)$", (ROOT / "hvd_wrapper.sh").read_text(), re.MULTILINE)
    assert choice is not None
    in_order = [*re.findall(r"[A-Z_]+", choice[1]), "SLURM_LOCALID"]
    assert in_order == [local_rank for local_rank, _ in _HOST]
