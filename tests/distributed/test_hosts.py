"""Two hosts on this machine, each with its own network, name, sshd and disk (programs/hosts.sh)."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.faults.jobs import logged_losses
from tests.helpers import ROOT, environment, losses, make_dataset, metrics, run_program
from trainer.checkpoint.store import CheckpointStore

pytestmark = [pytest.mark.horovod, pytest.mark.slow]
HOSTS = ROOT / "tests" / "distributed" / "programs" / "hosts.sh"
ROWS, BATCH, SAVE_EVERY, DIES_AT = 1500, 128, 5, 8
STEPS = -(-ROWS // BATCH)

# All of it ends with these tests, however they end.
ISOLATED = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--kill-child"]
ISOLATED += ["--mount-proc"]
NEEDED = {
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
}
ALL_FOLDERS = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])


def why_not() -> str | None:
    """Returns what this machine lacks to run two hosts; None if nothing."""
    if os.geteuid() != 0:
        return "network namespaces with an sshd need root"
    missing = {package for tool, package in NEEDED.items() if shutil.which(tool, path=ALL_FOLDERS) is None}
    if missing:
        return f"apt-get install {' '.join(sorted(missing))}"
    trial = "mount -t tmpfs tmpfs /run && ip link add bridge type bridge && ip link add one type veth peer name two"
    done = subprocess.run(
        [*ISOLATED, "sh", "-c", trial],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PATH": ALL_FOLDERS},
    )
    return None if done.returncode == 0 else f"namespaces are not allowed ({done.stderr.strip()})"


class Runs:
    """The same training on one host and on two.

    Attributes:
        one: results of two workers on one host.
        disks: what lies on each of the two hosts' disks in the end.
        output: of the job on two hosts.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.one = folder / "one" / "results"
        self.disks = (folder / "host1", folder / "host2")
        self.output = ""


def flags(place: Path, data: Path) -> list[str]:
    """main.py's, with all that it writes below a place."""
    places = ["--dataset_path", data, "--model_dir", place / "models", "--results_dir", place / "results"]
    sizes = ["--global_batch_size", BATCH, "--deep_hidden_units", 32, 16, "--num_epochs", 1, "--log_every", 1]
    rest = ["--deep_dropout", 0, "--deep_learning_rate", 0.002, "--deterministic", "--cpu", "--recipe", "published"]
    return [str(word) for word in (*places, *sizes, *rest, "--checkpoint_every", SAVE_EVERY)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    """Trains on one host; then on two whose disks hold nothing but the data, where the second one's worker is killed.

    The two are started as a pod that runs the first worker itself starts them: by a hostfile with itself as localhost.
    """
    if reason := why_not():
        pytest.skip(f"two hosts cannot be made here: {reason}")
    runs = Runs(tmp_path_factory.mktemp("hosts"))
    data = make_dataset(runs.folder / "made", ROOT / "feature_specs" / "with_map.yaml", rows=ROWS)
    done = run_program([ROOT / "main.py", *flags(runs.one.parent, data)], workers=2, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    for disk in runs.disks:
        shutil.copytree(data, disk / "data")
    disk, hostfile = runs.folder / "disk", runs.folder / "hostfile"
    hostfile.write_text("localhost slots=1\nhost2 slots=1\n")
    supervise = [sys.executable, str(ROOT / "supervise.py"), "--max_restarts", "1", "--"]
    horovodrun = [str(Path(sys.executable).with_name("horovodrun")), "-np", "2"]
    horovodrun += ["--disable-cache", "--network-interfaces", "eth0"]
    horovodrun += ["--start-timeout", "300"]  # the machine may be busy with other tests
    main = [sys.executable, "-m", "tests.distributed.programs.dies_once", str(DIES_AT), str(disk / "has_died")]
    done = subprocess.run(
        [*ISOLATED, "bash", str(HOSTS), str(runs.folder), *supervise, *horovodrun, "--hostfile", str(hostfile)]
        + [*main, *flags(disk, disk / "data")],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    runs.output = done.stdout + done.stderr
    assert done.returncode == 0, runs.output[-5000:]
    return runs


def test_two_hosts_match_one_even_after_a_lost_worker(runs):
    one, two = losses(runs.one), logged_losses(runs.disks[0] / "results")
    assert list(one) == sorted({step for step, _ in two}) == list(range(1, STEPS + 1))
    np.testing.assert_allclose([loss for _, loss in two], [one[step] for step, _ in two], rtol=0, atol=1e-6)
    for name, value in metrics(runs.one).items():
        assert abs(value - metrics(runs.disks[0] / "results")[name]) < 1e-6, name


def test_resume_needs_the_checkpoint_on_one_host_only(runs):
    lines = (runs.disks[0] / "results/supervise.jsonl").read_text().splitlines()
    starts = [event["step"] for event in map(json.loads, lines) if event["event"] == "started"]
    assert starts == [0, (DIES_AT - 1) // SAVE_EVERY * SAVE_EVERY]


def test_only_rank_0_writes_checkpoints_and_results(runs):
    first, second = runs.disks
    assert CheckpointStore(first / "models").open("last").step == STEPS
    written = {str(path.relative_to(second)) for path in second.rglob("*") if path.is_file()}
    assert {path for path in written if not path.startswith("data/")} == {"results/workers/worker-1.json", "has_died"}


def test_workers_of_a_supervised_job_run_on_two_hosts(runs):
    records = [json.loads((disk / f"results/workers/worker-{k}.json").read_text()) for k, disk in enumerate(runs.disks)]
    assert [record["host"] for record in records] == ["host1", "host2"]
    assert [record["code"] for record in records] == [0, 0]
    assert records[0]["job"] == records[1]["job"] is not None


def test_no_process_is_left_on_the_hosts(runs):
    known = (runs.folder / "known_hosts").read_text().splitlines()
    assert [line.split()[0] for line in known] == ["[host1]:2201", "[host2]:2202"]
    assert not list((runs.folder / "disk").iterdir())
    links = subprocess.run(["ip", "link"], capture_output=True, text=True, check=True, env={"PATH": ALL_FOLDERS}).stdout
    assert "host1" not in links and "host2" not in links
