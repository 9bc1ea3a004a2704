"""What cluster managers are handed: scripts/slurm.sbatch under stand-ins of SLURM, scripts/kubernetes.yaml as read."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.helpers import ROOT

SBATCH = ROOT / "scripts" / "slurm.sbatch"
MANIFEST = ROOT / "scripts" / "kubernetes.yaml"


class Allocation:
    """Two hosts that SLURM has given; python stands in for the supervisor, scontrol writes down what it is told."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "supervise.py").touch()
        (folder / "venv" / "bin").mkdir(parents=True)
        self.program("venv/bin/horovodrun", "exit 99")
        self.program("scontrol", f'echo "$*" >>{folder}/told\n[ "$1" != show ] || printf "node7\\nnode8\\n"')

    def program(self, name: str, body: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)

    def start(self, supervisor: str, *arguments: str, **more: str) -> "subprocess.Popen[str]":
        """Starts the script; `supervisor` is the bash code of what it calls."""
        self.program("venv/bin/python", f'printf "%s\\n" "$@" >{self.folder}/words\n{supervisor}')
        slurm = {"SLURM_SUBMIT_DIR": str(self.folder), "SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "node[7-8]"}
        slurm |= {"SLURM_JOB_NUM_NODES": "2", "VENV": str(self.folder / "venv")}
        return subprocess.Popen(
            ["bash", str(SBATCH), *arguments],
            cwd="/",
            env={"PATH": f"{self.folder}:{os.environ['PATH']}"} | slurm | more,
            stderr=subprocess.PIPE,
            text=True,
        )

    def told(self) -> list[str]:
        return (self.folder / "told").read_text().splitlines()

    def words(self) -> list[str]:
        return (self.folder / "words").read_text().splitlines()


@pytest.fixture
def allocation(tmp_path) -> Allocation:
    return Allocation(tmp_path)


@pytest.mark.parametrize(
    ("settings", "hosts", "workers"),
    [
        ({"SLURM_GPUS_ON_NODE": "8"}, "node7:8,node8:8", "16"),
        ({"SLURM_GPUS_ON_NODE": "8", "WORKERS_PER_NODE": "3"}, "node7:3,node8:3", "6"),
        ({}, "node7:1,node8:1", "2"),
    ],
)
def test_the_hosts_of_the_allocation_get_their_workers_under_a_supervisor(allocation, settings, hosts, workers):
    assert allocation.start("", "--amp", "--model_dir", "my model", **settings).wait(20) == 0
    words = allocation.words()
    assert words[0] == "supervise.py"
    command = words[words.index("--") + 1 :]
    assert command[:5] == ["horovodrun", "-np", workers, "-H", hosts]
    assert command[5:9] == ["--start-timeout", "300", "sh", "hvd_wrapper.sh"]
    assert command[-4:] == ["main.py", "--amp", "--model_dir", "my model"]


@pytest.mark.parametrize("code", [0, 1, 4, 75])
def test_the_job_ends_with_the_supervisors_code_and_stays_ended(allocation, code):
    assert allocation.start(f"exit {code}").wait(20) == code
    assert allocation.told() == ["show hostnames node[7-8]"]


@pytest.mark.parametrize(
    ("number", "code", "requeued"),
    [(signal.SIGUSR1, 75, True), (signal.SIGUSR1, 1, False), (signal.SIGUSR1, 0, False), (signal.SIGTERM, 75, False)],
)
def test_only_a_job_that_was_warned_and_has_saved_goes_back_into_the_queue(allocation, number, code, requeued):
    name, signals = signal.Signals(number).name.removeprefix("SIG"), allocation.folder / "signals"
    job = allocation.start(
        f"trap 'echo {name} >>{signals}' {name}; touch {allocation.folder}/begun\n"
        f"until [ -s {signals} ]; do sleep 0.05; done; sleep 1; exit {code}"
    )
    wait_for(allocation.folder / "begun")
    job.send_signal(number)
    wait_for(signals)
    job.send_signal(number)
    assert job.wait(20) == code
    assert ("requeue 12" in allocation.told()) == requeued
    assert signals.read_text() == f"{name}\n"  # a second one would end the workers before they have saved


def wait_for(path: Path) -> None:
    until = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < until, f"no {path.name}"
        time.sleep(0.02)


def test_a_job_that_was_submitted_from_elsewhere_says_from_where(allocation):
    (allocation.folder / "supervise.py").unlink()
    job = allocation.start("")
    assert job.wait(20) == 2
    assert job.stderr is not None and "submit it from the project's folder" in job.stderr.read()


def test_the_scripts_are_clean():
    text = SBATCH.read_text()
    assert "\nset -euo pipefail\n" in text and os.access(SBATCH, os.X_OK)
    lines = text.splitlines()
    last = max(number for number, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert all(line.startswith("#") for line in lines[:last])  # sbatch reads none behind the first command
    hosts = ROOT / "tests" / "distributed" / "programs" / "hosts.sh"
    for script in (SBATCH, hosts):
        subprocess.run(["bash", "-n", str(script)], check=True)
        if shutil.which("shellcheck"):
            subprocess.run(["shellcheck", str(script)], check=True)


@pytest.fixture(scope="module")
def job() -> dict:
    return yaml.safe_load(MANIFEST.read_text())


def pod(job: dict, role: str) -> dict:
    return job["spec"]["mpiReplicaSpecs"][role]["template"]["spec"]


def test_the_manifest_starts_a_worker_for_every_slot(job):
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v2beta1", "MPIJob")
    roles = job["spec"]["mpiReplicaSpecs"]
    pods = job["spec"]["runLauncherAsWorker"] + roles["Worker"]["replicas"]
    command = pod(job, "Launcher")["containers"][0]["command"]
    assert f"-np={pods * job['spec']['slotsPerWorker']}" in command
    assert command[:2] == ["python", "supervise.py"]
    assert command.index("--") + 1 == command.index("horovodrun") < command.index("hvd_wrapper.sh")
    known = (ROOT / "tests" / "trainer" / "flags.txt").read_text()
    for flag in command[command.index("main.py") + 1 :]:
        assert re.search(rf"(?m)^{flag.split('=')[0]}\b", known), flag
    for role in roles:
        assert pod(job, role)["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == job["spec"]["slotsPerWorker"]


def test_the_manifests_folders_are_mounted_where_main_looks_and_shared_memory_is_large(job):
    command = pod(job, "Launcher")["containers"][0]["command"]
    mounted = {role: mounts(pod(job, role)) for role in ("Launcher", "Worker")}
    written = {word.split("=")[1] for word in command if word.startswith(("--model_dir", "--results_dir"))}
    data = {word.split("=")[1] for word in command if word.startswith("--dataset_path")}
    assert mounted["Launcher"] == written | data | {"/dev/shm"}
    assert mounted["Worker"] == data | {"/dev/shm"}
    for role in mounted:
        volumes = {volume["name"]: volume for volume in pod(job, role)["volumes"]}
        assert volumes["shm"]["emptyDir"]["medium"] == "Memory"


def mounts(spec: dict) -> set[str]:
    names = {volume["name"] for volume in spec["volumes"]}
    found = spec["containers"][0]["volumeMounts"]
    assert {mount["name"] for mount in found} == names
    return {mount["mountPath"] for mount in found}


def test_the_manifests_pods_speak_ssh_on_one_port_and_have_time_to_save(job):
    worker = pod(job, "Worker")
    command = pod(job, "Launcher")["containers"][0]["command"]
    port = worker["containers"][0]["readinessProbe"]["tcpSocket"]["port"]
    assert f"--ssh-port={port}" in command
    assert f"sshd -D -e -p {port} -h {job['spec']['sshAuthMountPath']}/id_rsa" in worker["containers"][0]["args"][0]
    assert job["spec"]["mpiReplicaSpecs"]["Launcher"]["restartPolicy"] == "OnFailure"
    for role in ("Launcher", "Worker"):
        assert pod(job, role)["terminationGracePeriodSeconds"] >= 120


def test_the_end_of_a_pod_is_told_to_one_worker_and_waited_for(job, tmp_path):
    if not shutil.which("pkill"):
        pytest.skip("no pkill here: apt-get install procps")
    hook = pod(job, "Worker")["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    mine = tmp_path / "main.py"  # the hook's pattern is made to find this one alone
    assert hook[2].count(r"[^ ]*main\.py") == 2
    hook = [*hook[:2], hook[2].replace(r"[^ ]*main\.py", str(mine))]
    mine.write_text(
        "import pathlib, signal, sys, time\n"
        "def stop(*_):\n"
        "    time.sleep(0.5)\n"
        "    pathlib.Path(sys.argv[1], 'saved').touch()\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "pathlib.Path(sys.argv[1], 'begun').touch()\n"
        "time.sleep(60)\n"
    )
    worker = subprocess.Popen(["python3", str(mine), str(tmp_path)])
    wait_for(tmp_path / "begun")
    ending = subprocess.Popen(hook)
    assert worker.wait(20) == 0
    assert ending.wait(20) == 0
    assert (tmp_path / "saved").exists()
