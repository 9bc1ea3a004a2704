"""Scripts for cluster managers: scripts/slurm.sbatch under a fake SLURM, and scripts/kubernetes.yaml."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers import ROOT

SBATCH = ROOT / "scripts" / "slurm.sbatch"
MANIFEST = ROOT / "scripts" / "kubernetes.yaml"
FLAGS = ROOT / "tests" / "trainer" / "flags.txt"


def program(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def project(tmp_path) -> Path:
    """A folder to submit from; its scontrol names two hosts and logs its arguments to `calls`."""
    (tmp_path / "supervise.py").touch()
    program(tmp_path / "venv/bin/horovodrun", "exit 99")
    program(tmp_path / "bin/scontrol", f'echo "$*" >>{tmp_path}/calls\n[ "$1" != show ] || printf "node7\\nnode8\\n"')
    return tmp_path


def submit(project: Path, supervisor: str, *flags: str, **more: str) -> "subprocess.Popen[str]":
    """Starts the script as SLURM does; `supervisor` is the bash code of the python that it calls."""
    program(project / "venv/bin/python", f'printf "%s\\n" "$@" >{project}/words\n{supervisor}')
    slurm = {"SLURM_SUBMIT_DIR": str(project), "SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "node[7-8]"}
    paths = {"PATH": f"{project}/bin:{os.environ['PATH']}", "VENV": str(project / "venv")}
    environ = slurm | {"SLURM_JOB_NUM_NODES": "2"} | paths | more
    return subprocess.Popen(["bash", str(SBATCH), *flags], cwd="/", env=environ, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, f"no {path.name}"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("settings", "hosts", "workers"),
    [
        ({"SLURM_GPUS_ON_NODE": "8"}, "node7:8,node8:8", "16"),
        ({"SLURM_GPUS_ON_NODE": "8", "WORKERS_PER_NODE": "3"}, "node7:3,node8:3", "6"),
        ({}, "node7:1,node8:1", "2"),
    ],
)
def test_slurm_hosts_get_supervised_workers(project, settings, hosts, workers):
    assert submit(project, "", "--amp", "--model_dir", "my model", **settings).wait(60) == 0
    words = (project / "words").read_text().splitlines()
    assert words[:4] == ["supervise.py", "--max_restarts", "10", "--"]
    launcher = ["horovodrun", "-np", workers, "-H", hosts, "--start-timeout", "300"]
    worker = ["sh", "hvd_wrapper.sh", str(project / "venv/bin/python"), "main.py", "--amp", "--model_dir", "my model"]
    assert words[4:] == launcher + worker


@pytest.mark.parametrize(
    ("sent", "code", "requeued"),
    [(None, 0, False), (None, 75, False), ("USR1", 75, True), ("USR1", 1, False), ("TERM", 75, False)],
)
def test_slurm_requeues_only_a_job_that_saved(project, sent, code, requeued):
    signals = project / "signals"
    if sent is None:
        job = submit(project, f"exit {code}")
    else:
        job = submit(
            project,
            f"trap 'echo {sent} >>{signals}' {sent}; touch {project}/begun\n"
            f"until [ -s {signals} ]; do sleep 0.05; done; sleep 0.5; exit {code}",
        )
        wait_for(project / "begun")
        job.send_signal(signal.Signals[f"SIG{sent}"])
        wait_for(signals)
        job.send_signal(signal.Signals[f"SIG{sent}"])
    assert job.wait(60) == code
    assert (project / "calls").read_text().splitlines() == [
        "show hostnames node[7-8]",
        *["requeue 12"] * requeued,
    ]
    # A second signal would end the workers before they have saved.
    assert sent is None or signals.read_text() == f"{sent}\n"


def test_slurm_job_reports_its_submit_folder(project):
    (project / "supervise.py").unlink()
    job = submit(project, "")
    assert "submit it from the project's folder" in job.communicate(timeout=60)[1]
    assert job.returncode == 2


def test_sbatch_sees_every_option():
    lines = SBATCH.read_text().splitlines()
    last = max(number for number, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert all(line.startswith("#") for line in lines[:last])  # it reads none behind the first command


def pods() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The job's specification, and those of its launcher's and its worker's pod."""
    spec = yaml.safe_load(MANIFEST.read_text())["spec"]
    launcher, worker = (spec["mpiReplicaSpecs"][role]["template"]["spec"] for role in ("Launcher", "Worker"))
    return spec, launcher, worker


def test_the_numbers_and_paths_of_the_manifest_agree():
    spec, launcher, worker = pods()
    (main,), (sshd,) = launcher["containers"], worker["containers"]
    command = main["command"]
    supervisor, job = command[: command.index("--")], command[command.index("--") + 1 :]
    assert supervisor[:2] == ["python", "supervise.py"] and job[0] == "horovodrun"
    replicas = spec["runLauncherAsWorker"] + spec["mpiReplicaSpecs"]["Worker"]["replicas"]
    assert f"-np={replicas * spec['slotsPerWorker']}" in job
    port, keys = sshd["readinessProbe"]["tcpSocket"]["port"], spec["sshAuthMountPath"]
    assert f"--ssh-port={port}" in job and f"sshd -D -e -p {port} -h {keys}/id_rsa " in sshd["args"][0]

    flags = dict(word.partition("=")[::2] for word in job[job.index("main.py") + 1 :])
    assert flags.keys() <= set(re.findall(r"^--\w+", FLAGS.read_text(), re.MULTILINE))
    folders = {flags.pop("--dataset_path"), "/dev/shm"}
    for pod, mounted in ((launcher, folders | {flags["--model_dir"], flags["--results_dir"]}), (worker, folders)):
        (container,) = pod["containers"]
        assert {mount["mountPath"] for mount in container["volumeMounts"]} == mounted
        assert [mount["name"] for mount in container["volumeMounts"]] == [volume["name"] for volume in pod["volumes"]]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == spec["slotsPerWorker"]
    assert main["image"] == sshd["image"]


def test_pod_termination_reaches_one_worker_and_waits(tmp_path):
    if not shutil.which("pkill"):
        pytest.skip("no pkill here: apt-get install procps")
    *shell, hook = pods()[2]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    mine = tmp_path / "main.py"  # the hook's pattern is made to find this one alone
    assert hook.count(r"[^ ]*main\.py") == 2
    mine.write_text(
        "import pathlib, signal, sys, time\n"
        "here = pathlib.Path(__file__).parent\n"
        "def stop(*_):\n"
        "    time.sleep(0.5)\n"
        "    (here / 'saved').touch()\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "(here / 'begun').touch()\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(["python3", str(mine), "--amp"]) as worker:
        wait_for(tmp_path / "begun")
        with subprocess.Popen([*shell, hook.replace(r"[^ ]*main\.py", str(mine))]) as ending:
            assert worker.wait(60) == 0
            assert (tmp_path / "saved").exists()
            assert ending.wait(60) == 0
