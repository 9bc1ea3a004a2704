import subprocess

import pytest

from tests.helpers import ROOT, run_program

pytestmark = pytest.mark.horovod
PROGRAM = ROOT / "tests" / "distributed" / "programs" / "collectives.py"


@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_collectives_match_values_computed_from_ranks(workers):
    done = run_program([PROGRAM], workers=workers)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(workers):
        assert f"worker {rank} of {workers} has seen all it should" in done.stdout


def test_launcher_and_horovod_must_agree_on_size():
    done = run_program([PROGRAM], OMPI_COMM_WORLD_RANK="0", OMPI_COMM_WORLD_SIZE="2", HOROVOD_GLOO_IFACE="lo")
    assert done.returncode != 0
    assert "announced worker 0 of 2, but Horovod formed a group" in done.stderr


def test_a_host_whose_name_has_no_address_trains_too():
    """As in some containers; without our patch of it Gloo ends with a segmentation fault."""
    renamed = ["unshare", "--uts", "sh", "-c", 'hostname no-such-host.invalid && exec "$@"', "sh"]
    if subprocess.run([*renamed, "true"], capture_output=True, check=False).returncode:
        pytest.skip("renaming a host in a namespace is not allowed here")
    done = run_program([PROGRAM], workers=2, under=renamed)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "worker 1 of 2 has seen all it should" in done.stdout
