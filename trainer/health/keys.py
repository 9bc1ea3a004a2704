"""Flat log keys of the gate and expert statistics.

Keys are NAME/..., or NAME/level_L/... for models with several levels. Experts are numbered from 1; in cgc and ple,
each task's own experts come first, in task order, followed by the shared ones.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from trainer.health.level import LevelHealth

WEIGHT, SHARE, ENTROPY = "gate_weight", "gate_argmax_share", "gate_entropy"
GATES, EXPERTS, DEAD = "gate_similarity", "expert_similarity", "dead_units"
# Name -> the parts that follow it in a key, besides the level.
PARTS = {
    WEIGHT: ("gate", "expert"),
    SHARE: ("gate", "expert"),
    ENTROPY: ("gate",),
    GATES: ("gate", "gate"),
    EXPERTS: ("expert", "expert"),
    DEAD: ("expert",),
}
COMMON_GATE, SHARED_GATE = "all", "shared"
MOST_PAIRED = 32  # largest number of gates or experts for which every pair is logged


def gate_names(tasks: Sequence[str], gates: int) -> list[str]:
    """Returns the names of a level's gates.

    They are the tasks' names, or "all" for a single gate of all tasks. The gate of the shared experts of the next level
    is "shared", with underscores appended if a task has that name.
    """
    if gates < len(tasks):
        return [COMMON_GATE]
    shared = SHARED_GATE
    while shared in tasks:
        shared += "_"
    return [*tasks, shared][:gates]


def is_health(key: str) -> bool:
    """Returns whether a log key is one of those that `flat` creates."""
    return key.split("/")[0] in PARTS


def flat(tasks: Sequence[str], levels: Sequence[LevelHealth]) -> dict[str, float]:
    """Returns the values of all levels by log key.

    Experts that a gate may not read have no key. With more than MOST_PAIRED gates or experts, only the pair of each one
    and the one most similar to it is logged.
    """
    values: dict[str, float] = {}
    for index, level in enumerate(levels):
        place = _place(index, len(levels))
        names = gate_names(tasks, len(level.readable))
        numbers = range(1, level.readable.shape[1] + 1)
        for gate, name in enumerate(names):
            read = [number for number in numbers if level.readable[gate, number - 1]]
            values |= {f"{WEIGHT}{place}/{name}/{number}": float(level.weight[gate, number - 1]) for number in read}
            share = level.argmax_share[gate]
            values |= {f"{SHARE}{place}/{name}/{number}": float(share[number - 1]) for number in read}
            values[f"{ENTROPY}{place}/{name}"] = float(level.entropy[gate])
        for a, b in _pairs(level.gate_similarity):
            values[f"{GATES}{place}/{names[a]}/{names[b]}"] = float(level.gate_similarity[a, b])
        values |= {f"{DEAD}{place}/{number}": float(level.dead_units[number - 1]) for number in numbers}
        for a, b in _pairs(level.expert_similarity):
            values[f"{EXPERTS}{place}/{a + 1}/{b + 1}"] = float(level.expert_similarity[a, b])
    return values


def _pairs(similarity: np.ndarray) -> list[tuple[int, int]]:
    """Returns the pairs to log of a [members, members] similarity: all, or each of many with its most similar one."""
    count = len(similarity)
    if count <= MOST_PAIRED:
        return [(a, b) for a in range(count) for b in range(a + 1, count)]
    others = np.where(np.isnan(similarity), -np.inf, similarity)
    np.fill_diagonal(others, -np.inf)
    nearest = others.argmax(axis=1).tolist()
    return sorted({(min(a, b), max(a, b)) for a, b in enumerate(nearest) if a != b})


def weights_by_key(
    tasks: Sequence[str], readable: Sequence[np.ndarray], gates: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns each row's gate weights [rows], under gate/NAME/EXPERT or, with several levels, gate/level_L/NAME/EXPERT.

    Args:
        tasks: names of the tasks.
        readable: [gates, experts] bool of each level; experts that a gate may not read have no key.
        gates: [gates, rows, experts] weights of each level.
    """
    return {
        f"gate{_place(index, len(gates))}/{name}/{expert + 1}": weights[gate, :, expert]
        for index, (reads, weights) in enumerate(zip(readable, gates, strict=True))
        for gate, name in enumerate(gate_names(tasks, len(reads)))
        for expert in np.flatnonzero(reads[gate]).tolist()
    }


def _place(index: int, levels: int) -> str:
    """Returns the part of a key that names the level."""
    return f"/level_{index + 1}" if levels > 1 else ""


@dataclass
class LevelValues:
    """Values of one level in a log record: name -> further key parts -> value."""

    values: dict[str, dict[tuple[str, ...], float]] = field(default_factory=lambda: {name: {} for name in PARTS})

    @property
    def gates(self) -> list[str]:
        """Names of the gates, in order."""
        return [name for (name,) in self.values[ENTROPY]]

    @property
    def experts(self) -> list[str]:
        """Numbers of the experts, in order."""
        return [number for (number,) in self.values[DEAD]]

    def get(self, name: str, *parts: str) -> float:
        """Returns a value, NaN if the record lacks it."""
        return self.values[name].get(parts, math.nan)


def levels_in(record: Mapping[str, float]) -> list[LevelValues]:
    """Parses the levels of a log record, inverting `flat`; skips other keys and levels without gates or experts."""
    levels: dict[str, LevelValues] = {}
    for key, value in record.items():
        name, *parts = key.split("/")
        if name in PARTS:
            # One part more than the name needs: the first one is the level.
            place = parts.pop(0) if len(parts) > len(PARTS[name]) else ""
            if len(parts) == len(PARTS[name]):
                levels.setdefault(place, LevelValues()).values[name][tuple(parts)] = value
    return [levels[place] for place in sorted(levels) if levels[place].gates and levels[place].experts]


def histories(records: Sequence[Mapping[str, float]]) -> list[tuple[LevelValues, ...]]:
    """Returns each level's values over all records; only levels that all records have are included."""
    return list(zip(*map(levels_in, records), strict=False))
