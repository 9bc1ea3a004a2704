"""Warnings about gates and experts, each with suggested fixes."""

from collections.abc import Iterator, Sequence

import numpy as np

from trainer.health.keys import COMMON_GATE, gate_names
from trainer.health.level import LevelHealth

# With fewer rows, a single one could decide whether a threshold is crossed.
MIN_ROWS = 100
COLLAPSED = 0.95
COINCIDENT = 0.999
PAIRS_TOLD = 3

CURE_GATE = (
    "Try --gate_entropy_weight 0.002, --expert_dropout 0.1 or --gate_temperature 2, or more of what is already given"
)
CURE_EXPERTS = (
    "Try --expert_dropout 0.1, another --seed, or fewer experts (--num_experts; of cgc and ple --num_task_experts and "
    "--num_shared_experts)"
)
CURE_DEAD = "Try a lower --deep_learning_rate, --activation silu or --batch_norm"


def alarms(tasks: Sequence[str], levels: Sequence[LevelHealth]) -> dict[tuple[str | int, ...], str]:
    """Returns the warnings about all levels: key of the finding -> message."""
    found: dict[tuple[str | int, ...], str] = {}
    for number, level in enumerate(levels, start=1):
        place = f" of level {number}" if len(levels) > 1 else ""
        if level.rows >= MIN_ROWS:
            for gate, sentence in _collapsed(level, gate_names(tasks, len(level.readable)), len(tasks), place):
                found["gate", number, gate] = sentence
            if sentence := _coincident(level, place):
                found["experts", number] = sentence
            for expert in np.flatnonzero(level.dead_units == 1).tolist():
                found["dead", number, expert] = (
                    f"expert {expert + 1} of {len(level.dead_units)}{place} gives the same output for all of the "
                    f"{level.rows:,} rows looked at: it is dead. {CURE_DEAD}"
                )
    return found


def _collapsed(level: LevelHealth, names: list[str], tasks: int, place: str) -> Iterator[tuple[int, str]]:
    """Yields (gate, message) for each gate that relies on a single expert.

    An expert that leads in nearly all rows is a collapse only if it leads by far: in a nearly uniform gate, one expert
    may be slightly ahead in every row.
    """
    for gate, name in enumerate(names):
        choices = int(level.readable[gate].sum())
        expert = int(level.weight[gate].argmax())
        weight, share = level.weight[gate, expert], level.argmax_share[gate, expert]
        # Above the midpoint between the uniform weight 1 / choices and 1.
        leads_by_far = weight > (1 + 1 / choices) / 2
        if choices > 1 and (weight > COLLAPSED or (share > COLLAPSED and leads_by_far)):
            whose = _whose(name, is_of_task=gate < tasks <= len(names))
            yield (
                gate,
                f"the gate of {whose}{place} has collapsed: expert {expert + 1} of {level.readable.shape[1]} leads in "
                f"{share:.0%} of the rows, with a mean weight of {weight:.2f}. {CURE_GATE}",
            )


def _whose(name: str, *, is_of_task: bool) -> str:
    if is_of_task:
        return f"task {name!r}"
    return "all tasks" if name == COMMON_GATE else "the shared experts"


def _coincident(level: LevelHealth, place: str) -> str:
    """Returns a message about experts whose outputs coincide, empty if there are none."""
    pairs = np.argwhere(np.triu(level.expert_similarity, k=1) >= COINCIDENT) + 1
    if not len(pairs):
        return ""
    told = ", ".join(f"{a} and {b}" for a, b in pairs[:PAIRS_TOLD].tolist())
    more = f" and {len(pairs) - PAIRS_TOLD} more pairs" if len(pairs) > PAIRS_TOLD else ""
    return (
        f"of the {level.readable.shape[1]} experts{place}, {told}{more} give the same output but for rotation and "
        f"scale (similarity {COINCIDENT} or more). {CURE_EXPERTS}"
    )
