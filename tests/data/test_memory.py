"""Available memory, against the limits that decide it."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from data import memory

GIBIBYTE = 1 << 30
UNLIMITED_1 = 9223372036854771712


def write_group(folder: Path, files: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")


def pretend(monkeypatch: pytest.MonkeyPatch, root: Path, membership: str) -> None:
    (root / "self").mkdir(parents=True, exist_ok=True)
    (root / "self" / "cgroup").write_text(membership)
    monkeypatch.setattr(memory, "PROCESS", root / "self")
    monkeypatch.setattr(memory, "CONTROL_GROUPS", root / "groups")


def version_1(limit: int, usage: int, cache: int) -> dict[str, object]:
    stat = f"cache 1\ntotal_inactive_file {cache}\ntotal_active_file 1000"
    return {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": usage, "memory.stat": stat}


def test_without_limits_the_machine_decides(tmp_path, monkeypatch):
    pretend(monkeypatch, tmp_path, "9:name=systemd:/\n0::/\n")
    assert memory.available_memory() == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_version_1_groups(tmp_path, monkeypatch):
    pretend(monkeypatch, tmp_path, "4:cpu,memory:/outer/inner\n0::/\n")
    groups = tmp_path / "groups" / "memory"
    write_group(groups, version_1(UNLIMITED_1, 5, 0))
    write_group(groups / "outer" / "inner", version_1(2_000_000, 1_500_000, 200_000))
    assert memory.available_memory() == 701_000
    write_group(groups / "outer", version_1(1_000_000, 900_000, 9_000))
    assert memory.available_memory() == 110_000


def test_version_2_groups(tmp_path, monkeypatch):
    pretend(monkeypatch, tmp_path, "0::/outer/inner\n")
    stat = "anon 5\ninactive_file 70\nactive_file 30"
    write_group(tmp_path / "groups" / "outer" / "inner", {"memory.max": "max", "memory.current": 50})
    write_group(tmp_path / "groups" / "outer", {"memory.max": 1000, "memory.current": 600, "memory.stat": stat})
    assert memory.available_memory() == 500


def test_a_container_that_sees_only_its_root(tmp_path, monkeypatch):
    pretend(monkeypatch, tmp_path, "4:memory:/docker/abc\n")
    write_group(tmp_path / "groups" / "memory", version_1(3_000_000, 1_000_000, 0))
    assert memory.available_memory() == 2_001_000


def test_more_than_the_limit_in_use_is_zero(tmp_path, monkeypatch):
    pretend(monkeypatch, tmp_path, "0::/\n")
    write_group(tmp_path / "groups", {"memory.max": 1000, "memory.current": 6000})
    assert memory.available_memory() == 0


@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_resource_limits_of_the_process(limit):
    # An allocation of what is said to be available, less a margin, succeeds; one of clearly more fails.
    script = (
        "import resource, mmap\nfrom data.memory import available_memory\n"
        f"resource.setrlimit(resource.{limit}, ({GIBIBYTE}, {GIBIBYTE}))\n"
        "left = available_memory()\nprint(left)\n"
        f"assert 0 < left < {GIBIBYTE}\n"
        "private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS\n"
        "mmap.mmap(-1, left - (8 << 20), flags=private).close()\n"
        "try:\n    mmap.mmap(-1, left + (8 << 20), flags=private)\n"
        "except OSError:\n    print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(memory.__file__).parent.parent
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == ["refused"]
