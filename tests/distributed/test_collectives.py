import subprocess

import pytest

from tests.helpers import ROOT, run_program

pytestmark = pytest.mark.horovod
PROGRAM = ROOT / "tests" / "distributed" / "programs" / "collectives.py"


RENAMED = ["unshare", "--uts", "sh", "-c", 'hostname no-such-host.invalid && exec "$@"', "sh"]


@pytest.fixture(scope="module")
def can_rename() -> bool:
    """Whether a host can be renamed in a namespace."""
    return subprocess.run([*RENAMED, "true"], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def done(can_rename) -> subprocess.CompletedProcess[str]:
    """The program on two workers, on a host whose name has no address if there can be one here."""
    return run_program([PROGRAM], workers=2, under=RENAMED if can_rename else [])


def assert_all_have_seen_it(done: subprocess.CompletedProcess[str], workers: int) -> None:
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(workers):
        assert f"worker {rank} of {workers} has seen all it should" in done.stdout


def test_collectives_match_values_computed_from_ranks(done):
    assert_all_have_seen_it(done, 2)


@pytest.mark.slow
def test_collectives_of_three_workers():
    assert_all_have_seen_it(run_program([PROGRAM], workers=3), 3)


@pytest.mark.slow
def test_launcher_and_horovod_must_agree_on_size():
    done = run_program([PROGRAM], OMPI_COMM_WORLD_RANK="0", OMPI_COMM_WORLD_SIZE="2", HOROVOD_GLOO_IFACE="lo")
    assert done.returncode != 0
    assert "announced worker 0 of 2, but Horovod formed a group" in done.stderr


def test_a_host_whose_name_has_no_address_trains_too(can_rename, done):
    """As in some containers; without our patch of it Gloo ends with a segmentation fault."""
    if not can_rename:
        pytest.skip("renaming a host in a namespace is not allowed here")
    assert_all_have_seen_it(done, 2)
