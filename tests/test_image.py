"""The Dockerfile and the files it copies, without a build; scripts/check_image.sh with a fake engine."""

import fnmatch
import os
import re
import shutil
import subprocess
from pathlib import PurePosixPath
from typing import NamedTuple

import pytest

from tests.documented import bash
from tests.fakes import Machine, check_failed
from tests.helpers import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
INDEX = "https://user:word@index.example/packages"


class Instruction(NamedTuple):
    name: str
    arguments: str


def instructions(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile, comments dropped and continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def stages(text: str) -> dict[str, list[Instruction]]:
    """The instructions of each stage, its FROM first; the image itself is the stage 'image'."""
    found: dict[str, list[Instruction]] = {}
    name = "before"
    for instruction in instructions(text):
        if instruction.name == "FROM":
            name = instruction.arguments.partition(" AS ")[2] or "image"
        found.setdefault(name, []).append(instruction)
    return found


def options_and_paths(copy: Instruction) -> tuple[list[str], list[str]]:
    words = copy.arguments.split()
    options = [word for word in words if word.startswith("--")]
    return options, words[len(options) :]


def goes_in(path: str) -> bool:
    """Whether .dockerignore includes a file: the last pattern that matches it or a parent folder decides."""
    candidates = [path, *map(str, PurePosixPath(path).parents)][:-1]
    goes = True
    for pattern in (ROOT / ".dockerignore").read_text().splitlines():
        if not pattern or pattern.startswith("#"):
            continue
        rule, admits = pattern.removeprefix("!"), pattern.startswith("!")
        if any(matches(candidate, rule) for candidate in candidates):
            goes = admits
    return goes


def matches(path: str, rule: str) -> bool:
    anywhere = rule.startswith("**/")
    name = PurePosixPath(path).name if anywhere else path
    rule = rule.removeprefix("**/")
    return name.count("/") == rule.count("/") and fnmatch.fnmatchcase(name, rule)


def context_copies() -> list[str]:
    """Paths of the checkout that the Dockerfile copies."""
    sources = []
    for instruction in instructions(DOCKERFILE):
        if instruction.name == "COPY":
            options, paths = options_and_paths(instruction)
            if not any(option.startswith("--from=") for option in options):
                sources += paths[:-1]
    return sources


def test_files_the_dockerfile_copies_exist():
    sources = context_copies()
    assert sources[-1] == "." and len(sources) > 3
    for source in sources:
        files = [str(file.relative_to(ROOT)) for file in ROOT.glob(source)] if source != "." else ["main.py"]
        assert files, f"COPY {source}: there is no such file"
        assert all(map(goes_in, files)), source


def test_image_holds_tracked_files_except_checkout_ones():
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("no git checkout")
    left_out = {file for file in listing.stdout.splitlines() if not goes_in(file)}
    assert left_out == {".ci/run", ".dockerignore", ".gitignore", "Dockerfile"}


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".venv/lib/python3.12/site-packages/keras/__init__.py",
        ".venv.lock",
        ".wheels/cp312/horovod.whl",
        ".env",
        "pip.conf",
        "outbrain/data/train.parquet",
        "results/log.json",
        "quickstart/data/train.parquet",
        "example/csv/train.csv",
        "stability/runs.jsonl",
        "trainer/models/__pycache__/mmoe.cpython-312.pyc",
    ],
)
def test_environment_history_and_data_stay_out(path):
    assert not goes_in(path)


def test_network_is_used_by_apt_and_locked_lists_only():
    for name, arguments in instructions(DOCKERFILE):
        assert name != "ADD"
        assert not re.search(r"://|\b(curl|wget|git|pip3?|uv) ", arguments), arguments


def test_every_base_is_a_build_argument_with_a_version():
    parts = stages(DOCKERFILE)
    defaults = dict(instruction.arguments.split("=", 1) for instruction in parts.pop("before"))
    assert defaults["VARIANT"] == "gpu"
    bases = {name: default for name, default in defaults.items() if name.endswith("_BASE")}
    assert set(bases) == {"GPU_BASE", "CPU_BASE"}
    for base in bases.values():
        assert re.fullmatch(r"docker\.io/[\w./-]+:\d[\w.-]*", base), base
    for name, stage in parts.items():
        origin = stage[0].arguments.split()[0]
        assert origin in parts or origin in {"${GPU_BASE}", "${CPU_BASE}", "${VARIANT}"}, name


def test_base_cuda_matches_the_locked_list():
    (family,) = re.findall(r"GPU_BASE=.*cuda:(\d+\.\d+)\.\d+-devel-ubuntu24\.04", DOCKERFILE)
    assert f"nvidia-cuda-runtime-cu12=={family}." in (ROOT / "requirements" / "gpu.txt").read_text()


def test_image_has_no_compilers_and_code_comes_last():
    parts = stages(DOCKERFILE)
    installs = {name for name, stage in parts.items() for part in stage if "build-essential" in part.arguments}
    assert installs == {"environment"}
    image = parts["image"]
    assert image[0].arguments == "system" and parts["system"][0].arguments == "${VARIANT} AS system"
    assert image[-1].name == "COPY" and image[-1].arguments.endswith(" . .")


def test_image_runs_as_a_numeric_non_root_user():
    users = [part.arguments for stage in stages(DOCKERFILE).values() for part in stage if part.name == "USER"]
    assert users and re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1])


def test_only_the_folders_for_data_are_world_writable():
    """Programs trust their files in HOME (horovodrun even unpickles one), so others must not write there."""
    parts = stages(DOCKERFILE)
    home = re.findall(r"HOME=(\S+)", " ".join(part.arguments for part in parts["image"] if part.name == "ENV"))
    made = " && ".join(part.arguments for stage in parts.values() for part in stage if part.name == "RUN").split(" && ")
    open_to_all = [command.split() for command in made if re.search(r"[0-7]?[0-7]{2}[2367]\b|[ao]?\+\S*w", command)]
    named = {word for command in open_to_all for word in command if word.startswith("/")}
    assert named - {"/var/lib/apt/lists/*"} == {"/outbrain", "/results"}
    assert home and home[0] not in named


ENTRYPOINT = str(ROOT / "scripts" / "entrypoint.sh")
TELLS = 'stat -c "%a %u" "$HOME"; printf "<%s>\\n" "$HOME" "$@"; exit 7'


def enter(home: str, *under: str, **variables: str) -> tuple[list[str], int]:
    """Returns what a command prints under the entrypoint, and its exit code."""
    command = [*under, ENTRYPOINT, "sh", "-c", TELLS, "sh", "two words", "*"]
    environ = {"PATH": os.environ["PATH"], "HOME": home, **variables}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    return done.stdout.splitlines(), done.returncode


def test_entrypoint_keeps_the_users_own_home(tmp_path):
    tmp_path.chmod(0o755)
    assert enter(str(tmp_path)) == ([f"755 {os.getuid()}", f"<{tmp_path}>", "<two words>", "<*>"], 7)


def test_a_missing_home_becomes_a_private_one(tmp_path):
    (owner, home, *words), code = enter(str(tmp_path / "missing"), TMPDIR=str(tmp_path))
    assert owner == f"700 {os.getuid()}" and home.startswith(f"<{tmp_path}/home-")
    assert (words, code) == (["<two words>", "<*>"], 7)


def test_an_unknown_user_gets_a_private_home(tmp_path):
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("only root becomes another user (setpriv of util-linux)")
    under = ["setpriv", "--reuid", "4321", "--regid", "4321", "--clear-groups"]
    (owner, home, *_), code = enter("/root", *under)
    shutil.rmtree(home[1:-1])
    assert owner == "700 4321" and home.startswith("</tmp/home-") and code == 7


def test_secrets_are_mounted_only():
    kept = " ".join(part.arguments for part in instructions(DOCKERFILE) if part.name in {"ARG", "ENV", "LABEL"})
    assert not re.search(r"index|token|password|secret|cert", kept, flags=re.IGNORECASE)
    fetching = [part.arguments for part in instructions(DOCKERFILE) if "--mount=type=secret" in part.arguments]
    assert len(fetching) == 1
    assert "id=pip,target=/etc/pip.conf" in fetching[0] and "id=ca" in fetching[0]


# --- scripts ---------------------------------------------------------------------------------------------------------

# Answers like an image that passes all checks, of size $STATE/size; logs builds in $STATE/log.
DOCKER = """#!/bin/sh
case "$1 $2" in
  "build "*) echo "$*" >>"$STATE/log"; cp "$STATE/work/pip.conf" "$STATE/" ;;
  "image inspect") cat "$STATE/size" ;;
  "run "*) case "$*" in *" id -u") echo 0 ;; esac ;;
esac
"""


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path)
    for tool in ("id", "du"):
        (machine.path / tool).symlink_to(str(shutil.which(tool)))
    machine.python("python3", "3.12.4")
    return machine


def check_image(machine: Machine, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return machine.run("scripts/check_image.sh", *arguments, WORK=str(machine.state / "work"), **variables)


def test_image_above_the_size_limit_is_rejected(machine):
    machine.tool("docker", DOCKER)
    (machine.state / "size").write_text("3001000000\n")
    check_failed(check_image(machine, "cpu"), "3001 MB", "at most 3000")
    (machine.state / "size").write_text("2999000000\n")
    check_failed(check_image(machine, "cpu"), "user of the image: expected '10001', found '0'")


def test_the_index_reaches_the_build_as_a_secret(machine):
    machine.tool("docker", DOCKER)
    (machine.state / "size").write_text("1\n")
    check_image(machine, "cpu", PIP_INDEX_URL=INDEX, PIP_CERT="/etc/ca.crt")
    assert "VARIANT=cpu" in machine.log() and "index.example" not in machine.log()
    assert "id=ca,src=/etc/ca.crt" in machine.log()
    expected = f"[global]\nindex-url = {INDEX}\ncert = /run/secrets/ca\n"
    assert (machine.state / "pip.conf").read_text() == expected
    assert not (machine.state / "work" / "pip.conf").exists()


def test_pip_configuration_reaches_the_build(machine):
    machine.tool("docker", DOCKER)
    (machine.state / "size").write_text("1\n")
    (machine.state / "pip-config").write_text(f"global.index-url='{INDEX}'\n")
    check_image(machine, "cpu")
    assert f"index-url = {INDEX}\n" in (machine.state / "pip.conf").read_text()


def test_missing_engine_is_reported(machine):
    check_failed(check_image(machine), "buildah", "apt-get install")


def test_wrong_argument_prints_the_usage(machine):
    process = check_image(machine, "tpu")
    assert process.returncode == 2 and "usage: check_image.sh" in process.stderr


@pytest.mark.slow
def test_image_passes_its_checks():
    docker = subprocess.run(["sh", "-c", "docker info"], capture_output=True, check=False).returncode == 0
    if not docker and (os.geteuid() != 0 or not shutil.which("buildah") or not shutil.which("debootstrap")):
        pytest.skip("no Docker engine answers; buildah and debootstrap, as root, would do: apt-get install them")
    assert "check_image: all passed" in bash("bash scripts/check_image.sh", timeout=2 * 3600)
