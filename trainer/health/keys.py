"""Health as it stands in the log: numbers under flat keys.

NAME/..., and NAME/level_L/... where a model has several levels. Experts are numbered from 1; of cgc and ple, each
task's own come first, in the order of the tasks, and then the shared ones.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from trainer.health.level import LevelHealth

WEIGHT, SHARE, ENTROPY = "gate_weight", "gate_argmax_share", "gate_entropy"
GATES, EXPERTS, DEAD = "gate_similarity", "expert_similarity", "dead_units"
# Name -> what stands behind it in a key, besides the level.
PARTS = {
    WEIGHT: ("gate", "expert"),
    SHARE: ("gate", "expert"),
    ENTROPY: ("gate",),
    GATES: ("gate", "gate"),
    EXPERTS: ("expert", "expert"),
    DEAD: ("expert",),
}
COMMON_GATE, SHARED_GATE = "all", "shared"
MOST_PAIRED = 32  # gates, or experts, of which every pair has a key


def gate_names(tasks: Sequence[str], gates: int) -> list[str]:
    """What the gates of a level are called: as their tasks, or "all" (one for all tasks), or "shared" (for the shared
    experts of the next level; "shared_" beside a task of that name)."""
    if gates < len(tasks):
        return [COMMON_GATE]
    shared = SHARED_GATE
    while shared in tasks:
        shared += "_"
    return [*tasks, shared][:gates]


def is_health(key: str) -> bool:
    """Whether a key of the log is one of those that `flat` makes."""
    return key.split("/")[0] in PARTS


def flat(tasks: Sequence[str], levels: Sequence[LevelHealth]) -> dict[str, float]:
    """The values of all levels by key. What a gate may not read has no key; of more than MOST_PAIRED gates or experts
    only those pairs have one in which one is most like the other."""
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
    """The pairs that get a key, of [members, members]: all, and of many members each with the one most like it."""
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
    """Each row's weights by gate/NAME/EXPERT (gate/level_L/... of several levels), [rows] each.

    Args:
        tasks: their names.
        readable: of each level [gates, experts] bool; what a gate may not read has no key.
        gates: of each level [gates, rows, experts].
    """
    return {
        f"gate{_place(index, len(gates))}/{name}/{expert + 1}": weights[gate, :, expert]
        for index, (reads, weights) in enumerate(zip(readable, gates, strict=True))
        for gate, name in enumerate(gate_names(tasks, len(reads)))
        for expert in np.flatnonzero(reads[gate]).tolist()
    }


def _place(index: int, levels: int) -> str:
    """The part of a key that tells the level."""
    return f"/level_{index + 1}" if levels > 1 else ""


@dataclass
class LevelValues:
    """A level's values as a record of the log has them: name -> the parts behind it -> value."""

    values: dict[str, dict[tuple[str, ...], float]] = field(default_factory=lambda: {name: {} for name in PARTS})

    @property
    def gates(self) -> list[str]:
        """Their names in order."""
        return [name for (name,) in self.values[ENTROPY]]

    @property
    def experts(self) -> list[str]:
        """Their numbers in order."""
        return [number for (number,) in self.values[DEAD]]

    def get(self, name: str, *parts: str) -> float:
        """A value, NaN where the record has none."""
        return self.values[name].get(parts, math.nan)


def levels_in(record: Mapping[str, float]) -> list[LevelValues]:
    """The levels of a record, the inverse of `flat`; of other keys, and of levels without gates or experts, nothing."""
    levels: dict[str, LevelValues] = {}
    for key, value in record.items():
        name, *parts = key.split("/")
        if name in PARTS:
            place = parts.pop(0) if len(parts) > len(PARTS[name]) else ""
            if len(parts) == len(PARTS[name]):
                levels.setdefault(place, LevelValues()).values[name][tuple(parts)] = value
    return [levels[place] for place in sorted(levels) if levels[place].gates and levels[place].experts]


def histories(records: Sequence[Mapping[str, float]]) -> list[tuple[LevelValues, ...]]:
    """Of each level its values over the records; of records that have unequal numbers of levels, the first levels."""
    return list(zip(*map(levels_in, records), strict=False))
