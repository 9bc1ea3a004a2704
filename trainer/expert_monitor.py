"""Flat log keys of the gate and expert statistics.

Keys are NAME/..., or NAME/level_L/... for models with several levels. Experts are numbered from 1; in cgc and ple,
each task's own experts come first, in task order, followed by the shared ones.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import tensorflow as tf

from data.loading.batch import Batch
from trainer.feeding import id_matrix
from trainer.metrics.metric import Collectives
from trainer.models.multitask import MultiTask
from trainer.models.ranking import RankingModel


@dataclass(frozen=True)
class LevelHealth:
    """Means and shares over the rows of all workers; NaN where a value is undefined.

    Attributes:
        rows: number of rows.
        readable: [gates, experts] bool, which experts each gate reads. The others have weight and share 0.
        weight: [gates, experts] mean weight of the expert in the gate.
        argmax_share: [gates, experts] share of the rows in which the expert has the gate's largest weight; the first of
            equal weights counts.
        entropy: [gates] mean of -sum_i g_i ln g_i, divided by ln(number of experts that the gate reads): 1 if all have
            equal weight in every row, 0 if one has all the weight. NaN for a gate that reads a single expert.
        gate_similarity: [gates, gates] mean cosine similarity of two gates' weights in a row.
        expert_similarity: [experts, experts] linear CKA of the outputs; NaN if an expert's output is constant.
        dead_units: [experts] share of output units with the same value (0 for a ReLU) in all rows.
    """

    rows: int
    readable: np.ndarray
    weight: np.ndarray
    argmax_share: np.ndarray
    entropy: np.ndarray
    gate_similarity: np.ndarray
    expert_similarity: np.ndarray
    dead_units: np.ndarray


def level_health(readable: np.ndarray, gates: np.ndarray, experts: np.ndarray, comm: Collectives) -> LevelHealth:
    """Computes the statistics of a level, equal on all workers. A collective.

    Args:
        readable: [gates, experts] bool.
        gates: [gates, rows, experts] float32 weights, which sum to 1 over experts; this worker's rows, possibly none.
        experts: [experts, rows, units] float32 outputs.
        comm: collectives of the group of workers.
    """
    rows = int(comm.sum_array(np.array([gates.shape[1]], np.int64))[0])
    with np.errstate(invalid="ignore", divide="ignore"):
        of_gates = _sums_of_gates(gates.astype(np.float64))
        weight, share, entropy, similarity = (comm.sum_array(part) / rows for part in of_gates)
        readers = readable.sum(axis=1)
        return LevelHealth(
            rows=rows,
            readable=readable,
            weight=weight,
            argmax_share=share,
            entropy=entropy / np.where(readers > 1, np.log(readers), np.nan),
            gate_similarity=similarity,
            expert_similarity=_linear_cka(experts, rows, comm),
            dead_units=_constant_share(experts, comm),
        )


def _sums_of_gates(gates: np.ndarray) -> tuple[np.ndarray, ...]:
    """Sums over rows: weights and arg-max counts [gates, experts], entropies [gates], cosines [gates, gates]."""
    numbers = np.arange(gates.shape[2])
    chosen = (gates.argmax(axis=2)[:, :, np.newaxis] == numbers).sum(axis=1)
    # 0 ln 0 counts as 0.
    entropy = -np.sum(gates * np.log(np.where(gates > 0, gates, 1.0)), axis=(1, 2))
    directions = gates / np.linalg.norm(gates, axis=2, keepdims=True)
    return gates.sum(axis=1), chosen.astype(np.float64), entropy, np.einsum("are,bre->ab", directions, directions)


def _linear_cka(experts: np.ndarray, rows: int, comm: Collectives) -> np.ndarray:
    """Computes the linear centred kernel alignment of each pair of experts, [experts, experts].

    CKA(X, Y) = |Y'X|^2 / (|X'X| |Y'Y|), with Frobenius norms and the columns of X and Y centred: 1 for outputs that are
    equal up to rotation, scale and shift (Kornblith et al., "Similarity of Neural Network Representations Revisited",
    ICML 2019, equation 4). Products are summed over workers before taking norms, one expert at a time.
    """
    number, here, units = experts.shape
    side_by_side = experts.transpose(1, 0, 2).reshape(here, number * units)  # [rows, experts * units]
    mean = comm.sum_array(side_by_side.sum(axis=0, dtype=np.float64)) / rows
    centred = side_by_side - mean.astype(np.float32)
    squares = np.zeros((number, number))
    for first in range(number):
        start = first * units
        # [units, (experts - first) * units]; only pairs with later experts, as CKA is symmetric.
        products = comm.sum_array(centred[:, start : start + units].T @ centred[:, start:]).astype(np.float64)
        of_pairs = np.sum(products.reshape(units, number - first, units) ** 2, axis=(0, 2))
        squares[first, first:] = squares[first:, first] = of_pairs
    own = np.sqrt(np.diag(squares))
    return squares / np.outer(own, own)


def _constant_share(experts: np.ndarray, comm: Collectives) -> np.ndarray:
    """Returns the share of each expert's units that are constant over the rows of all workers, [experts]."""
    here = experts.shape[1] > 0
    # [1, 2, experts, units] minima and maxima; a worker without rows takes part with an empty array.
    extremes = np.stack([experts.min(axis=1), experts.max(axis=1)])[np.newaxis] if here else _no_extremes(experts)
    everywhere = comm.gather_rows(extremes)
    if not len(everywhere):
        return np.full(len(experts), np.nan)
    return np.mean(everywhere[:, 0].min(axis=0) == everywhere[:, 1].max(axis=0), axis=1)


def _no_extremes(experts: np.ndarray) -> np.ndarray:
    return np.zeros((0, 2, experts.shape[0], experts.shape[2]), experts.dtype)


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


ROWS = 8192


class ExpertMonitor:
    """Measures gates and experts on a fixed sample: evenly spaced rows of the evaluation mapping.

    The sample is collected during the first evaluation, so nothing is read twice. It does not depend on the number of
    workers. Sample weights are ignored, except that rows of weight 0 are left out.

    Args:
        model: model with gates.
        rows: number of rows of the mapping.
        comm: collectives of the group of workers; each measures the sampled rows that it evaluates.
    """

    def __init__(self, model: RankingModel, rows: int, comm: Collectives):
        self._model, self._network, self._comm = model, cast(MultiTask, model.network), comm
        self._stride = max(1, -(-rows // ROWS))
        self._ids: list[np.ndarray] = []
        self._numerical: list[np.ndarray] = []
        self._gates: list[np.ndarray] = []
        self._is_complete = False
        self._told: set[tuple[str | int, ...]] = set()
        self._states = tf.function(self._run_model)

    def see(self, batch: Batch) -> None:
        """Takes a batch of an evaluation; ignored once the sample is complete."""
        if not self._is_complete:
            wanted = (batch.weights > 0) & (batch.rows % self._stride == 0)
            self._ids.append(id_matrix(batch)[wanted])
            self._numerical.append(batch.numerical[wanted])

    def measure(self) -> tuple[dict[str, float], list[str]]:
        """Returns values for the log and warnings not given before, equal on all workers. A collective.

        To be called after an evaluation whose batches were all passed to `see`.
        """
        if not self._is_complete:
            self._ids, self._numerical = [np.concatenate(self._ids)], [np.concatenate(self._numerical)]
            self._is_complete = True
        tasks = [task.name for task in self._model.tasks]
        levels = self._levels()
        found = {about: text for about, text in alarms(tasks, levels).items() if about not in self._told}
        self._told |= found.keys()
        return flat(tasks, levels), list(found.values())

    def gate_weights(self) -> dict[str, np.ndarray]:
        """Returns each gate's weights of each expert at the last measurement, [rows] float32 of this worker, by key."""
        tasks = [task.name for task in self._model.tasks]
        return weights_by_key(tasks, [level.readable for level in self._network.levels], self._gates)

    def _levels(self) -> list[LevelHealth]:
        states = self._states(tf.convert_to_tensor(self._ids[0]), tf.convert_to_tensor(self._numerical[0]))
        self._gates = [gates.numpy() for gates, _ in states]
        return [
            level_health(level.readable, gates, experts.numpy(), self._comm)
            for level, gates, (_, experts) in zip(self._network.levels, self._gates, states, strict=True)
        ]

    def _run_model(self, ids: tf.Tensor, numerical: tf.Tensor) -> list[tuple[tf.Tensor, tf.Tensor]]:
        """Returns each level's gates [gates, rows, experts] and experts [experts, rows, units], float32."""
        deep_input = self._model.deep_input(self._model.gather(ids), ids, numerical)
        return [(state.gates, tf.cast(state.experts, tf.float32)) for state in self._network.level_states(deep_input)]


def monitor_of(model: RankingModel, rows: int, comm: Collectives) -> ExpertMonitor | None:
    """Creates a monitor for a model with gates; returns None for any other."""
    has_gates = isinstance(model.network, MultiTask) and model.network.gates
    return ExpertMonitor(model, rows, comm) if has_gates else None
