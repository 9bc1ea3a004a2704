"""Shares of CPUs, and their choice on hosts made of files."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.process import affinity
from trainer.process.affinity import cores_of_workers, format_cpus, parse_cpus, set_affinity, share_out

EIGHT = [(0,), (1,), (2,), (3,), (4,), (5,), (6,), (7,)]
FOUR_WITH_TWINS = [(0, 4), (1, 5), (2, 6), (3, 7)]
LEFT, RIGHT = [(0,), (1,), (2,), (3,)], [(4,), (5,), (6,), (7,)]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in (*affinity._BINDING_LAUNCHERS, "HOROVOD_LOCAL_RANK", "CUDA_VISIBLE_DEVICES", "HOST_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("mode", "cores_of_worker", "expected"),
    [
        ("all", [EIGHT, EIGHT], [range(8), range(8)]),
        ("all", [LEFT, RIGHT], [range(4), range(4, 8)]),
        ("single", [LEFT, LEFT, RIGHT], [{0}, {0}, {4}]),
        ("single_unique", [LEFT, LEFT, RIGHT], [{0}, {1}, {4}]),
        ("single_unique", [FOUR_WITH_TWINS] * 2, [{0}, {1}]),
        ("unique_interleaved", [EIGHT, EIGHT], [{0, 2, 4, 6}, {1, 3, 5, 7}]),
        ("unique_interleaved", [FOUR_WITH_TWINS] * 2, [{0, 4, 2, 6}, {1, 5, 3, 7}]),
        ("unique_interleaved", [LEFT, RIGHT, LEFT], [{0, 2}, {4, 5, 6, 7}, {1, 3}]),
        ("unique_contiguous", [EIGHT, EIGHT], [{0, 1, 2, 3}, {4, 5, 6, 7}]),
        ("unique_contiguous", [FOUR_WITH_TWINS] * 2, [{0, 4, 1, 5}, {2, 6, 3, 7}]),
        ("unique_contiguous", [EIGHT] * 3, [{0, 1}, {2, 3, 4}, {5, 6, 7}]),
        ("unique_interleaved", [[(0, 1)], [(0, 1)]], [{0}, {1}]),
    ],
)
def test_cpus_are_shared_out_as_the_mode_says(mode, cores_of_worker, expected):
    assert share_out(mode, cores_of_worker) == [set(cpus) for cpus in expected]


@st.composite
def hosts(draw):
    """Nodes of physical cores with one to four hyper-threads each, and the node that every worker is near."""
    nodes, cpu = [], 0
    for _ in range(draw(st.integers(1, 4))):
        cores = []
        for threads in draw(st.lists(st.integers(1, 4), min_size=1, max_size=8)):
            cores.append(tuple(range(cpu, cpu + threads)))
            cpu += threads
        nodes.append(cores)
    return draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=8))


@given(hosts(), st.sampled_from(["single_unique", "unique_interleaved", "unique_contiguous"]))
def test_unique_shares_are_disjoint_within_nodes(cores_of_worker, mode):
    cpus_of_worker = [{cpu for core in cores for cpu in core} for cores in cores_of_worker]
    crowded = any(cpus_of_worker.count(cpus) > len(cpus) for cpus in cpus_of_worker)
    if crowded:
        with pytest.raises(ValueError, match=r"\d+ workers share \d+ CPUs"):
            share_out(mode, cores_of_worker)
        return
    shares = share_out(mode, cores_of_worker)
    assert all(share and share <= cpus for share, cpus in zip(shares, cpus_of_worker, strict=True))
    assert sum(map(len, shares)) == len(set().union(*shares))
    if mode != "single_unique":
        assert set().union(*shares) == set().union(*cpus_of_worker)


@given(st.integers(1, 64), st.integers(1, 64), st.sampled_from(["unique_interleaved", "unique_contiguous"]))
def test_shares_of_a_node_differ_by_one_core(num_cores, num_workers, mode):
    cores = [(cpu,) for cpu in range(max(num_cores, num_workers))]
    sizes = [len(share) for share in share_out(mode, [cores] * num_workers)]
    assert max(sizes) - min(sizes) <= 1


@given(st.sets(st.integers(0, 300)))
def test_a_cpu_set_is_read_as_it_was_written(cpus):
    assert parse_cpus(format_cpus(cpus)) == cpus


def test_cpu_sets_have_the_kernels_form():
    assert parse_cpus("0-3,8\n") == {0, 1, 2, 3, 8}
    assert parse_cpus("\n") == set()
    assert format_cpus({8, 0, 1, 2, 3, 10}) == "0-3,8,10"


@pytest.fixture
def host(tmp_path):
    """A host as the kernel describes it: eight CPUs, hyper-threads apart by four, two nodes with two GPUs each."""

    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text + "\n")

    for cpu in range(8):
        write(f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 4},{cpu % 4 + 4}")
    write("sys/devices/system/cpu/online", "0-7")
    for address, cpus in {"1b": "0-1,4-5", "1c": "0-1,4-5", "b1": "2-3,6-7", "b2": "2-3,6-7"}.items():
        (tmp_path / f"proc/driver/nvidia/gpus/0000:{address}:00.0").mkdir(parents=True)
        write(f"sys/bus/pci/devices/0000:{address}:00.0/local_cpulist", cpus)
    return tmp_path


NEAR_1B, NEAR_B1, ANYWHERE = [(0, 4), (1, 5)], [(2, 6), (3, 7)], [(0, 4), (1, 5), (2, 6), (3, 7)]


@pytest.mark.parametrize(
    ("workers", "environment", "expected"),
    [
        (4, {}, [NEAR_1B, NEAR_1B, NEAR_B1, NEAR_B1]),
        (2, {"CUDA_VISIBLE_DEVICES": "0,3"}, [NEAR_1B, NEAR_B1]),
        (2, {"CUDA_VISIBLE_DEVICES": "3", "HOST_VISIBLE_DEVICES": "1, 3"}, [NEAR_1B, NEAR_B1]),
        (3, {"CUDA_VISIBLE_DEVICES": "2"}, [NEAR_1B, NEAR_1B, NEAR_B1]),
        (5, {}, [ANYWHERE] * 5),
    ],
)
def test_a_workers_cores_are_those_near_its_gpu(host, monkeypatch, workers, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cores_of_workers(workers, set(range(8)), host) == expected


def test_cpus_the_process_may_not_use_are_excluded(host):
    assert cores_of_workers(3, {0, 1, 2, 3}, host) == [[(0,), (1,)], [(0,), (1,)], [(2,), (3,)]]


def test_all_cpus_are_one_node_without_a_gpu_node(host, tmp_path):
    assert cores_of_workers(3, {0, 1}, host) == [[(0,), (1,)]] * 3
    assert cores_of_workers(2, {3, 5}, tmp_path / "empty") == [[(3,), (5,)]] * 2


def test_binding_by_the_launcher_is_kept(host, monkeypatch):
    assert not affinity.is_bound_by_launcher({0, 1}, host)
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "1")
    assert affinity.is_bound_by_launcher({0, 1}, host)
    assert not affinity.is_bound_by_launcher(set(range(8)), host)
    monkeypatch.setenv("HOROVOD_LOCAL_RANK", "1")
    assert not affinity.is_bound_by_launcher({0, 1}, host)


@pytest.fixture
def process(monkeypatch):
    """This process's affinity as a variable, so that a test never changes the real one."""
    state = {"cpus": {0, 1, 2, 3}}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(state["cpus"]))
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: state.update(cpus=set(cpus)))
    single_cores = [(cpu,) for cpu in sorted(state["cpus"])]
    monkeypatch.setattr(affinity, "cores_of_workers", lambda size, allowed: [single_cores] * size)
    return state


def test_affinity_is_set_and_reported(process):
    assert set_affinity("unique_interleaved", 1, 2) == "affinity: unique_interleaved, CPUs 1,3 (2 of 4)"
    assert process["cpus"] == {1, 3}


@pytest.mark.parametrize(
    ("mode", "rank", "size", "reason"),
    [
        ("unique_interleaved", 0, 5, "5 workers share 4 CPUs"),
        ("unique_contiguous", 3, 2, "index"),
        ("nearby", 0, 1, "unique_interleaved"),
        ("disabled", 0, 2, "disabled"),
    ],
)
def test_failure_keeps_the_affinity_and_is_reported(process, mode, rank, size, reason):
    assert reason in set_affinity(mode, rank, size)
    assert process["cpus"] == {0, 1, 2, 3}


def test_rejection_by_the_system_is_reported(process, monkeypatch):
    def fail(pid, cpus):
        raise PermissionError("not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", fail)
    assert "left unchanged" in set_affinity("all", 0, 1)


def test_every_mode_works_on_this_machine_for_one_worker(monkeypatch):
    chosen = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: chosen.append(set(cpus)))
    for mode in affinity.MODES:
        assert set_affinity(mode, 0, 1).startswith(f"affinity: {mode}")
    assert all(cpus and cpus <= os.sched_getaffinity(0) for cpus in chosen)
    assert len(chosen) == len(affinity.MODES) - 1
