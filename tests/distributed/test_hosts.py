"""Two hosts, each with a network, a name, an sshd and a disk of its own, on this machine (programs/hosts.sh)."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import ROOT, environment, losses, make_dataset, metrics, run_program
from trainer.checkpoints import CheckpointStore

pytestmark = [pytest.mark.horovod, pytest.mark.slow]
HOSTS = ROOT / "tests" / "distributed" / "programs" / "hosts.sh"
ROWS, BATCH, EPOCHS = 1500, 128, 2
STEPS_PER_EPOCH = -(-ROWS // BATCH)

ISOLATED = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
NEEDED = {
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
}
ALL_FOLDERS = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])


def why_not() -> str | None:
    """What this machine lacks for two hosts; None where nothing does."""
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
    return None if done.returncode == 0 else f"namespaces are not allowed here: {done.stderr.strip()}"


class Runs:
    """The same training on one host and on two.

    Attributes:
        one: results of two workers on one host.
        disks: what lies on each host's disk in the end.
        output: of the job on two hosts.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.one = folder / "one" / "results"
        self.disks = (folder / "host1", folder / "host2")
        self.output = ""

    def arguments(self, place: Path, data: Path) -> list[str]:
        """main.py and its flags, with all that it writes below a place."""
        places = ["--dataset_path", data, "--model_dir", place / "models", "--results_dir", place / "results"]
        sizes = ["--global_batch_size", BATCH, "--deep_hidden_units", 32, 16, "--num_epochs", EPOCHS, "--log_every", 1]
        rest = ["--deep_dropout", 0, "--deep_learning_rate", 0.002, "--deep_warmup_epochs", 1, "--deterministic"]
        return [str(word) for word in (ROOT / "main.py", *places, *sizes, *rest, "--cpu")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    """Trains on one host; then on two whose disks hold the data alone, killing the worker of the second once."""
    if reason := why_not():
        pytest.skip(f"two hosts cannot be made here: {reason}")
    runs = Runs(tmp_path_factory.mktemp("hosts"))
    data = make_dataset(runs.folder / "made", ROOT / "feature_specs" / "with_map.yaml", rows=ROWS)
    done = run_program(runs.arguments(runs.one.parent, data), workers=2, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    for disk in runs.disks:
        shutil.copytree(data, disk / "data")
    disk = runs.folder / "disk"
    horovodrun = [str(Path(sys.executable).with_name("horovodrun")), "--gloo", "--disable-cache"]
    hosts = ["-np", "2", "-H", "host1:1,host2:1"]
    main = [sys.executable, *runs.arguments(disk, disk / "data"), "--checkpoint_every", "5"]
    supervise = [sys.executable, str(ROOT / "supervise.py"), "--max_restarts", "1", "--"]
    done = subprocess.run(
        [*ISOLATED, "bash", str(HOSTS), str(runs.folder), *supervise, *horovodrun, *hosts, *main],
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


def test_two_hosts_have_the_loss_of_every_step_of_one(runs):
    one, two = losses(runs.one), losses(runs.disks[0] / "results")
    assert list(one) == list(two) == list(range(1, EPOCHS * STEPS_PER_EPOCH + 1))
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=0, atol=1e-6)
    for name, value in metrics(runs.one).items():
        assert abs(value - metrics(runs.disks[0] / "results")[name]) < 1e-6, name


def test_the_first_worker_alone_writes_checkpoints_and_results(runs):
    first, second = runs.disks
    assert CheckpointStore(first / "models").open("last").step == EPOCHS * STEPS_PER_EPOCH
    written = [str(path.relative_to(second)) for path in second.rglob("*") if path.is_file()]
    assert [path for path in sorted(written) if not path.startswith("data/")] == ["results/workers/worker-1.json"]


def test_each_worker_ran_on_a_host_of_its_own_in_one_supervised_job(runs):
    records = [json.loads((disk / f"results/workers/worker-{k}.json").read_text()) for k, disk in enumerate(runs.disks)]
    assert [(record["host"], record["rank"], record["code"]) for record in records] == [
        ("host1", 0, 0),
        ("host2", 1, 0),
    ]
    assert records[0]["job"] == records[1]["job"] is not None


def test_both_hosts_were_known_and_nothing_of_them_is_left(runs):
    known = (runs.folder / "known_hosts").read_text().splitlines()
    assert [line.split()[0] for line in known] == ["[host1]:2201", "[host2]:2202"]
    assert not list((runs.folder / "disk").iterdir())
    links = subprocess.run(["ip", "link"], capture_output=True, text=True, check=True, env={"PATH": ALL_FOLDERS}).stdout
    assert "host1" not in links and "host2" not in links
