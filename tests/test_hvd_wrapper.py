"""hvd_wrapper.sh under the environments that launchers make, in every POSIX shell at hand."""

import shutil
import subprocess
from pathlib import Path

import pytest

WRAPPER = Path(__file__).parent.parent / "hvd_wrapper.sh"
SHELLS = [shell for shell in ("dash", "bash") if shutil.which(shell)]
SHOW = 'echo "${CUDA_VISIBLE_DEVICES-unset} ${HOROVOD_CYCLE_TIME-unset}"'


@pytest.fixture
def start(tmp_path):
    """Runs the wrapper on a host with so many GPUs; gives the finished process."""

    def run(environment: dict[str, str], host_gpus: int = 0, shell: str = "sh", command=("sh", "-c", SHOW)):
        gpus = tmp_path / "gpus"
        for number in range(host_gpus):
            (gpus / f"0000:{number:02x}:00.0").mkdir(parents=True)
        wrapper = tmp_path / "hvd_wrapper.sh"
        wrapper.write_text(WRAPPER.read_text().replace("/proc/driver/nvidia/gpus", str(gpus)))
        return subprocess.run(
            [shell, str(wrapper), *command],
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", **environment},
            capture_output=True,
            text=True,
        )

    return run


def gpu_of(process) -> str:
    assert process.returncode == 0, process.stderr
    return process.stdout.split(" ")[0].strip()


LAUNCHERS = ["HOROVOD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PMI_LOCAL_RANK", "SLURM_LOCALID"]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_local_rank_is_read_under_every_launcher(start, shell, launcher):
    assert gpu_of(start({launcher: "2", "CUDA_VISIBLE_DEVICES": "4,5,6"}, shell=shell)) == "6"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("listed", "rank", "expected"),
    [
        (None, "0", "0"),
        (None, "7", "7"),
        ("0,1,2,3", "2", "2"),
        ("4, 5, 6", "1", "5"),
        ("7,3", "1", "3"),
        ("GPU-aa,GPU-bb", "1", "GPU-bb"),
        ("MIG-11/2/3,MIG-11/4/5", "0", "MIG-11/2/3"),
        ("6", "0", "6"),
        ("", "3", ""),
        ("-1", "3", "-1"),
        ("NoDevFiles", "3", "NoDevFiles"),
    ],
)
def test_every_local_rank_sees_its_own_gpu(start, shell, listed, rank, expected):
    environment = {"HOROVOD_LOCAL_RANK": rank} | ({} if listed is None else {"CUDA_VISIBLE_DEVICES": listed})
    assert gpu_of(start(environment, shell=shell)) == expected


@pytest.mark.parametrize("listed", ["unset", "3", "0,1"])
def test_without_a_launcher_nothing_changes(start, listed):
    environment = {} if listed == "unset" else {"CUDA_VISIBLE_DEVICES": listed}
    assert gpu_of(start(environment, host_gpus=2)) == listed


def test_horovod_rank_wins_inside_a_slurm_job(start):
    assert gpu_of(start({"SLURM_LOCALID": "0", "HOROVOD_LOCAL_RANK": "2"})) == "2"


def test_gpu_bound_by_slurm_is_kept(start):
    assert gpu_of(start({"SLURM_LOCALID": "3", "CUDA_VISIBLE_DEVICES": "0"})) == "0"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("environment", "host_gpus", "message"),
    [
        ({"HOROVOD_LOCAL_RANK": "2", "CUDA_VISIBLE_DEVICES": "0,1"}, 0, "at most 2 workers"),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "5"}, 0, "at most 1 workers"),
        ({"HOROVOD_LOCAL_RANK": "4"}, 4, "at most 4 workers"),
        ({"HOROVOD_LOCAL_RANK": "one"}, 0, "'one'"),
    ],
)
def test_worker_without_a_gpu_does_not_start(start, shell, environment, host_gpus, message):
    process = start(environment, host_gpus, shell)
    assert (process.returncode, process.stdout) == (2, "")
    assert message in process.stderr
    assert len(process.stderr.splitlines()) == 1


def test_as_many_workers_start_as_the_error_suggests(start):
    assert gpu_of(start({"HOROVOD_LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "0,1"})) == "1"
    assert gpu_of(start({"HOROVOD_LOCAL_RANK": "3"}, host_gpus=4)) == "3"


@pytest.mark.parametrize(
    ("environment", "host_gpus", "cycle_time"),
    [
        ({"HOROVOD_LOCAL_RANK": "0"}, 2, "0.1"),
        ({"HOROVOD_LOCAL_RANK": "0", "HOROVOD_CYCLE_TIME": "5"}, 2, "5"),
        ({"HOROVOD_LOCAL_RANK": "0"}, 0, "unset"),
        ({"HOROVOD_LOCAL_RANK": "0", "CUDA_VISIBLE_DEVICES": ""}, 2, "unset"),
    ],
)
def test_horovod_cycle_is_short_on_gpus_by_default(start, environment, host_gpus, cycle_time):
    assert start(environment, host_gpus).stdout.split(" ")[1].strip() == cycle_time


def test_arguments_and_exit_code_are_passed_through(start):
    command = ("sh", "-c", 'printf "<%s>" "$@"; exit 7', "name", "two words", "*", "", "a'b")
    process = start({"HOROVOD_LOCAL_RANK": "0", "CUDA_VISIBLE_DEVICES": "0,1"}, command=command)
    assert (process.stdout, process.returncode) == ("<two words><*><><a'b>", 7)


def test_wrapper_execs_so_that_signals_arrive():
    with subprocess.Popen(
        ["sh", str(WRAPPER), "sh", "-c", "echo $$"],
        env={"PATH": "/usr/bin:/bin", "HOROVOD_LOCAL_RANK": "0", "CUDA_VISIBLE_DEVICES": "0"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.communicate()[0].strip() == str(process.pid)


def test_no_command_is_a_usage_error(start):
    process = start({}, command=())
    assert process.returncode == 2
    assert "usage" in process.stderr
