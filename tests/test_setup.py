"""scripts/setup.sh, with fakes of Python, uv, pip and the Horovod build."""

import re
import shutil
import subprocess

import pytest

from tests.fakes import PYTHON, UV, Machine, check_failed
from tests.helpers import ROOT


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path)
    machine.python("python3.12", "3.12.4")
    return machine


def test_setup_installs_locked_lists_and_horovod(machine):
    process = machine.setup()
    assert process.returncode == 0, process.stderr
    install = next(line for line in machine.log().splitlines() if "cpu.txt" in line)
    assert "--no-deps" in install and "dev.txt" in install and "--require-hashes" in install
    assert f"--build-constraints {machine.root}/requirements/cpu.txt" in install
    (installer,) = (line for line in machine.log().splitlines() if "uv.txt" in line)
    assert installer.startswith("pip ") and "--require-hashes" in installer
    assert "build cpu" in machine.log()
    assert "horovod-0.28.1-cp312" in machine.log()
    assert "unfinished" not in machine.stamp.read_text()


def test_setup_compiles_the_bytecode_of_all_packages(machine):
    machine.setup()
    last = machine.log().splitlines()[-1]
    assert last.startswith("-m compileall ") and last.endswith(f" {machine.venv}/lib")


def test_a_second_setup_changes_nothing(machine):
    machine.setup()
    before = machine.log()
    process = machine.setup()
    assert (process.returncode, machine.log()) == (0, before)
    assert "up to date" in process.stdout


def test_changed_list_does_not_recompile_horovod(machine):
    machine.setup()
    with (machine.root / "requirements/dev.txt").open("a") as file:
        file.write("six==1.17.0\n")
    assert machine.setup().returncode == 0
    assert machine.log().count("-r " + str(machine.root / "requirements/cpu.txt")) == 2
    assert machine.log().count("build cpu") == 1


@pytest.mark.parametrize("change", ["version", "patch", "script"])
def test_horovod_is_recompiled_when_its_inputs_change(machine, change):
    machine.setup()
    if change == "version":
        cpu = machine.root / "requirements/cpu.txt"
        cpu.write_text(re.sub(r"tensorflow-cpu==.*", "tensorflow-cpu==9.9.9", cpu.read_text()))
    else:
        file = {
            "patch": next(machine.root.glob("requirements/*.patch")),
            "script": machine.root / "scripts/build_horovod.sh",
        }
        file[change].write_text(file[change].read_text() + "\n")
    machine.setup()
    assert machine.log().count("build cpu") == 2


def test_checkouts_share_compiled_horovod(machine, tmp_path):
    cache = str(tmp_path / "wheel cache")
    machine.setup(WHEEL_CACHE=cache)
    machine.setup(WHEEL_CACHE=cache, VENV=str(tmp_path / "other venv"))
    assert (tmp_path / "other venv/setup-stamp").exists()
    assert machine.log().count("build cpu") == 1


def test_a_damaged_wheel_is_compiled_again(machine):
    machine.setup()
    shutil.rmtree(machine.venv)
    next(machine.root.glob(".wheels/*/*.whl")).write_text("trunc")
    assert machine.setup().returncode == 0
    assert machine.log().count("build cpu") == 2
    assert next(machine.root.glob(".wheels/*/*.whl")).read_text() == "compiled\n"


def test_a_wheel_that_does_not_load_is_compiled_again(machine):
    machine.setup()
    shutil.rmtree(machine.venv)
    (machine.state / "unloadable").touch()
    assert machine.setup().returncode == 0
    assert machine.log().count("build cpu") == 2


def test_broken_wheel_fails_and_is_not_kept(machine):
    (machine.state / "unloadable").touch()
    check_failed(machine.setup(), "does not load", "undefined symbol")
    assert machine.stamp.read_text().startswith("unfinished")
    assert not list(machine.root.glob(".wheels/*/*.whl"))


def test_python_that_does_not_run_is_skipped(machine):
    machine.tool("python3.12", "#!/bin/sh\necho 'pyenv: python3.12: command not found' >&2\nexit 127\n")
    machine.python("python3.11", "3.11.7")
    process = machine.setup()
    assert process.returncode == 0, process.stderr
    assert "Python 3.11.7" in process.stdout


def test_unsupported_python_is_reported_with_a_fix(machine):
    machine.tool("python3.12", "#!/bin/sh\nexit 127\n")
    machine.python("python3", "3.9.2")
    check_failed(machine.setup(), "python3: 3.9.2", "python3.12: does not run", "3.11 or 3.12", "apt-get install")
    check_failed(machine.setup(PYTHON="python9"), "no python9")
    assert not machine.venv.exists()


def test_named_python_replaces_another(machine, tmp_path):
    machine.setup()
    machine.write(tmp_path / "mine", PYTHON.replace("VERSION", "3.11.9"))
    process = machine.setup(PYTHON=str(tmp_path / "mine"))
    assert process.returncode == 0, process.stderr
    assert "recreating" in process.stdout and "3.11.9" in process.stdout


def test_missing_compiler_is_reported_first(machine):
    shutil.copy(ROOT / "scripts/build_horovod.sh", machine.root / "scripts")
    machine.tool("make", "#!/bin/sh\n")
    check_failed(machine.setup(), "lacks: gcc g++ patch", "apt-get install build-essential")
    assert not machine.venv.exists()


def test_gpu_setup_without_nvcc_fails_first(machine):
    shutil.copy(ROOT / "scripts/build_horovod.sh", machine.root / "scripts")
    for tool in ("gcc", "g++", "make", "patch"):
        machine.tool(tool, "#!/bin/sh\n")
    script = machine.root / "scripts/build_horovod.sh"
    script.write_text(script.read_text().replace("/usr/local/cuda", "/nowhere"))
    check_failed(machine.setup("--gpu"), "no nvcc", "HOROVOD_CUDA_HOME")
    assert not machine.venv.exists()


def test_too_little_disk_space_is_reported_first(machine):
    machine.tool("df", "#!/bin/sh\necho Filesystem 1024-blocks Used Available\necho /dev/sda 9 9 2097152 1% /\n")
    check_failed(machine.setup(), "2 GB free", "need about 4 GB")
    assert not machine.venv.exists()


def test_setup_recovers_from_a_missing_network(machine):
    (machine.state / "offline").touch()
    check_failed(machine.setup(), "no route", "index reachable")
    assert machine.stamp.read_text().startswith("unfinished")
    check_failed(machine.run("scripts/training_full.sh"), "did not finish", "scripts/setup.sh")
    (machine.state / "offline").unlink()
    (machine.venv / "left-over").touch()
    process = machine.setup()
    assert process.returncode == 0, process.stderr
    assert "an earlier setup did not finish" in process.stdout
    assert not (machine.venv / "left-over").exists()


@pytest.mark.parametrize(("trouble", "message"), [("full", "full disk"), ("broken-build", "not finished")])
def test_failed_installation_does_not_look_finished(machine, trouble, message):
    (machine.state / trouble).touch()
    check_failed(machine.setup(), message)
    assert machine.stamp.read_text().startswith("unfinished")
    assert not list(machine.root.glob(".wheels/*"))


def test_users_environment_is_never_removed(machine):
    (machine.venv / "bin").mkdir(parents=True)
    machine.write(machine.venv / "bin/python", PYTHON.replace("VERSION", "3.8.1"))
    check_failed(machine.setup(), "3.8.1", "not created by this script")
    machine.write(machine.venv / "bin/python", PYTHON.replace("VERSION", "3.11.2"))
    machine.write(machine.venv / "bin/uv", UV)
    (machine.venv / "mine").touch()
    assert machine.setup().returncode == 0
    assert (machine.venv / "mine").exists()


def test_machine_decides_the_list_unless_specified(machine):
    machine.tool("nvidia-smi", '#!/bin/sh\necho "GPU 0: NVIDIA H200 (UUID: GPU-1)"\n')
    machine.setup("--cpu")
    machine.setup()
    assert "gpu.txt" not in machine.log()
    machine.setup(VENV=str(machine.root / "second"))
    assert "build gpu" in machine.log()


def test_variant_change_leaves_one_tensorflow(machine):
    machine.setup("--cpu")
    (machine.venv / "lib/site-packages/tensorflow_cpu-2.21.0.dist-info").mkdir(parents=True)
    machine.setup("--gpu")
    assert "pip uninstall" in machine.log().split("build cpu")[1].split("gpu.txt")[0]


def test_pip_settings_are_passed_to_uv(machine):
    (machine.state / "pip-config").write_text("global.cert='certificate'\nglobal.index-url='address-of-pip'\n")
    machine.setup()
    assert "UV_DEFAULT_INDEX=address-of-pip SSL_CERT_FILE=certificate" in machine.log()
    machine.setup(VENV=str(machine.root / "second"), UV_DEFAULT_INDEX="address-of-uv")
    assert "UV_DEFAULT_INDEX=address-of-uv" in machine.log()
    assert not any("address-of" in path.read_text() for path in machine.root.glob("*/*") if path.is_file())


def test_two_setups_at_once_make_one_environment(machine):
    command = ["bash", str(machine.root / "scripts/setup.sh")]
    both = [subprocess.Popen(command, env=machine.environment(), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert machine.log().count("build cpu") == 1
    assert "waiting" in "".join(said)


@pytest.mark.parametrize("arguments", [["--tpu"], ["cpu"]])
def test_wrong_argument_of_setup_prints_the_usage(machine, arguments):
    process = machine.setup(*arguments)
    assert process.returncode == 2
    assert "usage" in process.stderr
