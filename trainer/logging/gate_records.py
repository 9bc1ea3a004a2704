"""Log records about gates and experts: the names of their keys, and how to read them back.

Keys are NAME/GATE/EXPERT and the like (see KEY_PARTS), or NAME/level_L/... for models with several levels. Experts are
numbered from 1; in cgc and ple, each task's own experts come first, in task order, followed by the shared ones.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

WEIGHT, ARGMAX_SHARE, ENTROPY = "gate_weight", "gate_argmax_share", "gate_entropy"
GATE_SIMILARITY, EXPERT_SIMILARITY, DEAD_UNITS = "gate_similarity", "expert_similarity", "dead_units"
# Name -> the parts that follow it in a key, after the level.
KEY_PARTS = {
    WEIGHT: ("gate", "expert"),
    ARGMAX_SHARE: ("gate", "expert"),
    ENTROPY: ("gate",),
    GATE_SIMILARITY: ("gate", "gate"),
    EXPERT_SIMILARITY: ("expert", "expert"),
    DEAD_UNITS: ("expert",),
}


def is_gate_key(key: str) -> bool:
    """Return whether a log key belongs to a record about gates and experts."""
    return key.split("/")[0] in KEY_PARTS


@dataclass
class LevelRecord:
    """The values of one level in a log record: name -> further key parts -> value."""

    values: dict[str, dict[tuple[str, ...], float]] = field(default_factory=lambda: {name: {} for name in KEY_PARTS})

    @property
    def gates(self) -> list[str]:
        """Names of the gates, in order."""
        return [gate for (gate,) in self.values[ENTROPY]]

    @property
    def experts(self) -> list[str]:
        """Numbers of the experts, in order."""
        return [expert for (expert,) in self.values[DEAD_UNITS]]

    def get(self, name: str, *parts: str) -> float:
        """Return a value, NaN if the record lacks it."""
        return self.values[name].get(parts, math.nan)


def levels_in(record: Mapping[str, float]) -> list[LevelRecord]:
    """Parse the levels of a log record; skip other keys, and levels without gates or experts."""
    levels: dict[str, LevelRecord] = {}
    for key, value in record.items():
        name, *parts = key.split("/")
        if name in KEY_PARTS:
            level = parts.pop(0) if len(parts) > len(KEY_PARTS[name]) else ""
            if len(parts) == len(KEY_PARTS[name]):
                levels.setdefault(level, LevelRecord()).values[name][tuple(parts)] = value
    return [levels[level] for level in sorted(levels) if levels[level].gates and levels[level].experts]


def histories(records: Sequence[Mapping[str, float]]) -> list[tuple[LevelRecord, ...]]:
    """Return each level's values over all records; only levels that all records have are included."""
    return list(zip(*map(levels_in, records), strict=False))
