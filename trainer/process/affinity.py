"""CPU affinity of workers: near their GPU, and separate from the other workers on the host.

Call `set_affinity` before TensorFlow is imported, since TensorFlow sizes its thread pools by the current affinity.
Binding is an optimization, so failures never stop a run.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

MODES = ("all", "single", "single_unique", "unique_interleaved", "unique_contiguous", "disabled")

Core = tuple[int, ...]
"""The logical CPUs of one physical core, in ascending order."""

_BINDING_LAUNCHERS = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PMI_LOCAL_RANK", "SLURM_LOCALID")


def set_affinity(mode: str, local_rank: int, local_size: int) -> str:
    """Bind this process to its share of the available CPUs.

    Args:
        mode: one of MODES. `all`: all CPUs of the NUMA node that the worker's GPU is attached to; `single`: the first
            of them; `single_unique`: one that no other worker uses; `unique_interleaved`, `unique_contiguous`: the
            node's cores divided among its workers, interleaved or in contiguous blocks; `disabled`: unchanged. Without
            a GPU all CPUs count as one node.
        local_rank: rank of this worker on its host, starting at 0.
        local_size: number of workers on this host.

    Returns:
        A description of the result, for the log. On failure the affinity is unchanged and the description gives the
        reason; nothing is raised.
    """
    if mode == "disabled":
        return "affinity: disabled"
    try:
        allowed = os.sched_getaffinity(0)
        if is_bound_by_launcher(allowed):
            return f"affinity: the launcher has bound this worker to CPUs {format_cpus(allowed)}; left unchanged"
        shares = share_out(mode, cores_of_workers(local_size, allowed))
        chosen = shares[local_rank]
        os.sched_setaffinity(0, chosen)
    except (OSError, ValueError, LookupError, AttributeError) as error:
        return f"affinity: left unchanged, {mode} is not possible here ({error})"
    return f"affinity: {mode}, CPUs {format_cpus(chosen)} ({len(chosen)} of {len(allowed)})"


def share_out(mode: str, cores_of_worker: Sequence[Sequence[Core]]) -> list[set[int]]:
    """Divide the CPUs of a host among its workers.

    Args:
        mode: one of MODES except `disabled`.
        cores_of_worker: cores of each worker's node; those of two workers are either identical or disjoint.

    Returns:
        The CPUs of each worker.

    Raises:
        ValueError: if the mode is unknown, or a node has fewer CPUs than workers in a mode with exclusive CPUs.
    """
    return [_share(mode, cores_of_worker, worker) for worker in range(len(cores_of_worker))]


def _share(mode: str, cores_of_worker: Sequence[Sequence[Core]], worker: int) -> set[int]:
    cores = cores_of_worker[worker]
    cpus = sorted(cpu for core in cores for cpu in core)
    if mode == "all":
        return set(cpus)
    if mode == "single":
        return {cpus[0]}
    if mode not in _PARTITIONS:
        raise ValueError(f"the mode is one of {', '.join(MODES)}")
    neighbors = [other for other, theirs in enumerate(cores_of_worker) if theirs == cores]
    if len(cores) < len(neighbors):  # fall back to assigning hyper-threads of a core to different workers
        cores = [(cpu,) for cpu in cpus]
    if len(cores) < len(neighbors):
        raise ValueError(f"{len(neighbors)} workers share {len(cpus)} CPUs")
    assigned = _PARTITIONS[mode](cores, neighbors.index(worker), len(neighbors))
    return {cpu for core in assigned for cpu in core}


def _interleaved(cores: Sequence[Core], index: int, count: int) -> Sequence[Core]:
    return cores[index::count]


def _contiguous(cores: Sequence[Core], index: int, count: int) -> Sequence[Core]:
    return cores[index * len(cores) // count : (index + 1) * len(cores) // count]


def _one(cores: Sequence[Core], index: int, count: int) -> Sequence[Core]:
    return [_interleaved(cores, index, count)[0][:1]]


_PARTITIONS: dict[str, Callable[[Sequence[Core], int, int], Sequence[Core]]] = {
    "single_unique": _one,
    "unique_interleaved": _interleaved,
    "unique_contiguous": _contiguous,
}


def is_bound_by_launcher(allowed: set[int], root: Path = Path("/")) -> bool:
    """Return whether mpirun or srun has already bound this worker to its own CPUs, which must not be divided again.

    Args:
        allowed: CPUs in the current affinity of this process.
        root: folder that contains sys/; a different one in tests.
    """
    if "HOROVOD_LOCAL_RANK" in os.environ or not any(name in os.environ for name in _BINDING_LAUNCHERS):
        return False
    return allowed != parse_cpus((root / "sys/devices/system/cpu/online").read_text())


def cores_of_workers(local_size: int, allowed: set[int], root: Path = Path("/")) -> list[list[Core]]:
    """Return the cores near each worker's GPU among the allowed CPUs, or all allowed cores if that is unknown.

    Args:
        local_size: number of workers on this host.
        allowed: CPUs in the current affinity of this process.
        root: folder that contains proc/ and sys/; a different one in tests.
    """
    nodes = [cpus & allowed for cpus in _cpus_near_gpus(local_size, root)]
    if not nodes or not all(nodes):
        nodes = [allowed] * local_size
    return [physical_cores(cpus, root) for cpus in nodes]


def _cpus_near_gpus(local_size: int, root: Path) -> list[set[int]]:
    """Return the CPUs of the NUMA node of each worker's GPU; empty if the GPUs, their order or nodes are unknown."""
    addresses = sorted(path.name.lower() for path in root.glob("proc/driver/nvidia/gpus/*"))
    listed = os.environ.get("HOST_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    numbers = [int(entry) for entry in listed.split(",") if entry.strip().isdecimal()]
    if len(numbers) < local_size:  # unset, one GPU per worker set by the wrapper, or GPUs given by UUID
        numbers = list(range(local_size))
    if max(numbers[:local_size]) >= len(addresses):
        return []
    files = [root / "sys/bus/pci/devices" / addresses[number] / "local_cpulist" for number in numbers[:local_size]]
    return [parse_cpus(file.read_text()) for file in files] if all(file.exists() for file in files) else []


def physical_cores(cpus: set[int], root: Path = Path("/")) -> list[Core]:
    """Group CPUs by physical core, ordered by the first CPU of each core."""
    cores = set()
    for cpu in cpus:
        siblings = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        together = parse_cpus(siblings.read_text()) & cpus if siblings.exists() else set()
        cores.add(tuple(sorted(together | {cpu})))
    return sorted(cores)


def parse_cpus(text: str) -> set[int]:
    """Parse the kernel's format of CPU sets: "0-3,8" is {0, 1, 2, 3, 8}; a blank string is the empty set."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def format_cpus(cpus: set[int]) -> str:
    """Format a CPU set in the kernel's format, with consecutive CPUs as "first-last"."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], cpu]
        else:
            runs.append([cpu])
    return ",".join("-".join(map(str, run)) for run in runs)
