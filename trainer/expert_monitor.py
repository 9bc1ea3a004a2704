"""Statistics of gates and experts after each evaluation, their log keys, and warnings about gates that collapse.

`ExpertMonitor` runs the model on sampled rows, `level_statistics` reduces what the gates and experts return to a few
numbers, `log_values` names them for the log, and `find_warnings` looks for collapsed gates and useless experts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import tensorflow as tf

from data.loading.batch import Batch, Ids, join_ids
from trainer.embeddings.groups import Lookups
from trainer.layout import RowValues
from trainer.logging.gate_records import ARGMAX_SHARE, DEAD_UNITS, ENTROPY, EXPERT_SIMILARITY, GATE_SIMILARITY, WEIGHT
from trainer.metrics.metric import Collectives
from trainer.models.multitask import MultiTask
from trainer.models.ranking import RankingModel

ROWS = 8192  # largest number of sampled rows
COMMON_GATE, SHARED_GATE = "all", "shared"
MAX_PAIRED = 32  # largest number of gates or experts for which every pair is logged

MIN_ROWS = 100  # with fewer rows, a single one could decide whether a threshold is crossed
COLLAPSED = 0.95
COINCIDENT = 0.999
MAX_PAIRS_SHOWN = 3
GATE_REMEDY = "Try --gate_entropy_weight 0.002, --expert_dropout 0.1 or --gate_temperature 2, or increase those in use"
EXPERT_REMEDY = (
    "Try --expert_dropout 0.1, another --seed, or fewer experts (--num_experts; for cgc and ple --num_task_experts and "
    "--num_shared_experts)"
)
DEAD_REMEDY = "Try a lower --deep_learning_rate, --activation silu or --batch_norm"


class ExpertMonitor:
    """Measures gates and experts on a fixed sample: evenly spaced rows of the evaluation mapping.

    The sample is collected during the first evaluation, so nothing is read twice. It does not depend on the number of
    workers. Sample weights are ignored, except that rows of weight 0 are left out.

    Args:
        model: model with gates.
        rows: number of rows of the mapping.
        comm: collectives of the group of workers; each measures the sampled rows that it evaluates.
    """

    def __init__(self, model: RankingModel, rows: int, comm: Collectives) -> None:
        self._model, self._network, self._comm = model, cast(MultiTask, model.network), comm
        self._tasks = [task.name for task in model.tasks]
        self._stride = max(1, -(-rows // ROWS))
        self._ids: list[Ids] = []
        self._numerical: list[np.ndarray] = []
        self._vectors: list[np.ndarray] = []
        self._is_complete = False
        self._gates: list[np.ndarray] = []  # [gates, rows, experts] of each level at the last measurement
        self._reported: set[tuple[str | int, ...]] = set()
        self._states = tf.function(self._level_states, autograph=False)

    def see(self, batch: Batch) -> None:
        """Take a batch of an evaluation; ignored once the sample is complete."""
        if not self._is_complete:
            sampled = np.flatnonzero((batch.weights > 0) & (batch.rows % self._stride == 0))
            self._ids.append(batch.ids.take(sampled))
            self._numerical.append(batch.numerical[sampled])
            self._vectors.append(batch.vectors[sampled])

    def measure(self) -> tuple[dict[str, float], list[str]]:
        """Return values for the log and warnings not given before, equal on all workers. A collective.

        To be called after an evaluation whose batches were all passed to `see`.
        """
        if not self._is_complete:
            self._ids, self._numerical = [join_ids(self._ids)], [np.concatenate(self._numerical)]
            self._vectors = [np.concatenate(self._vectors)]
            self._is_complete = True
        model, ids = self._model, self._ids[0]
        values = RowValues(self._numerical[0], model.layout.steps(ids), self._vectors[0])
        inputs = model.embeddings.lookups(ids), values
        states = self._states(*tf.nest.map_structure(tf.convert_to_tensor, inputs))
        self._gates = [gates.numpy() for gates, _ in states]
        levels = [
            level_statistics(level.readable, gates, experts.numpy(), self._comm)
            for level, gates, (_, experts) in zip(self._network.levels, self._gates, states, strict=True)
        ]
        found = find_warnings(self._tasks, levels)
        new = [text for finding, text in found.items() if finding not in self._reported]
        self._reported |= found.keys()
        return log_values(self._tasks, levels), new

    def gate_weights(self) -> dict[str, np.ndarray]:
        """Return each gate's weight of each expert at the last measurement, [rows] float32 of this worker.

        Keys are gate/NAME/EXPERT or, with several levels, gate/level_L/NAME/EXPERT, without experts that a gate does
        not read.
        """
        return {
            f"gate{_level_part(index, len(self._gates))}/{name}/{expert + 1}": weights[gate, :, expert]
            for index, (level, weights) in enumerate(zip(self._network.levels, self._gates, strict=True))
            for gate, name in enumerate(gate_names(self._tasks, len(level.readable)))
            for expert in np.flatnonzero(level.readable[gate]).tolist()
        }

    def _level_states(self, lookups: tuple[Lookups, ...], values: RowValues) -> list[tuple[tf.Tensor, tf.Tensor]]:
        """Return each level's gates [gates, rows, experts] and experts [experts, rows, units], float32."""
        deep_input = self._model.deep_input(self._model.embed(lookups), values)
        return [(state.gates, tf.cast(state.experts, tf.float32)) for state in self._network.level_states(deep_input)]


def monitor_of(model: RankingModel, rows: int, comm: Collectives) -> ExpertMonitor | None:
    """Create a monitor for a model with gates; return None for any other."""
    has_gates = isinstance(model.network, MultiTask) and model.network.gates
    return ExpertMonitor(model, rows, comm) if has_gates else None


@dataclass(frozen=True)
class LevelStatistics:
    """Means and shares over the rows of all workers; NaN where a value is undefined.

    Attributes:
        rows: number of rows.
        readable: [gates, experts] bool, which experts each gate reads. The others have weight and share 0.
        weight: [gates, experts] mean weight of the expert in the gate.
        argmax_share: [gates, experts] share of the rows in which the expert has the gate's largest weight; the first of
            equal weights counts.
        entropy: [gates] mean of -sum_i g_i ln g_i, divided by ln(number of experts that the gate reads): 1 if all have
            equal weight in every row, 0 if one expert has all the weight. NaN for a gate that reads a single expert.
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


def level_statistics(
    readable: np.ndarray, gates: np.ndarray, experts: np.ndarray, comm: Collectives
) -> LevelStatistics:
    """Compute the statistics of a level, equal on all workers. A collective.

    Args:
        readable: [gates, experts] bool.
        gates: [gates, rows, experts] float32 weights, which sum to 1 over experts; this worker's rows, possibly none.
        experts: [experts, rows, units] float32 outputs.
        comm: collectives of the group of workers.
    """
    rows = int(comm.sum_array(np.array([gates.shape[1]], np.int64))[0])
    with np.errstate(invalid="ignore", divide="ignore"):
        weight, share, entropy, similarity = (comm.sum_array(part) / rows for part in _gate_sums(gates))
        readers = readable.sum(axis=1)
        return LevelStatistics(
            rows=rows,
            readable=readable,
            weight=weight,
            argmax_share=share,
            entropy=entropy / np.where(readers > 1, np.log(readers), np.nan),
            gate_similarity=similarity,
            expert_similarity=_linear_cka(experts, rows, comm),
            dead_units=_constant_share(experts, comm),
        )


def _gate_sums(gates: np.ndarray) -> tuple[np.ndarray, ...]:
    """Sum over rows: weights and arg-max counts [gates, experts], entropies [gates], cosines [gates, gates]."""
    gates = gates.astype(np.float64)
    is_largest = gates.argmax(axis=2)[:, :, np.newaxis] == np.arange(gates.shape[2])  # [gates, rows, experts]
    entropy = -np.sum(gates * np.log(np.where(gates > 0, gates, 1.0)), axis=(1, 2))  # 0 ln 0 counts as 0
    directions = gates / np.linalg.norm(gates, axis=2, keepdims=True)
    cosines = np.einsum("are,bre->ab", directions, directions)
    return gates.sum(axis=1), is_largest.sum(axis=1).astype(np.float64), entropy, cosines


def _linear_cka(experts: np.ndarray, rows: int, comm: Collectives) -> np.ndarray:
    """Compute the linear centered kernel alignment of each pair of experts, [experts, experts].

    CKA(X, Y) = |Y'X|^2 / (|X'X| |Y'Y|), with Frobenius norms and the columns of X and Y centered: 1 for outputs that
    are equal up to rotation, scale and shift (Kornblith et al., "Similarity of Neural Network Representations
    Revisited", ICML 2019, equation 4). Products are summed over workers before taking norms, one expert at a time.
    """
    count, local_rows, units = experts.shape
    columns = experts.transpose(1, 0, 2).reshape(local_rows, count * units)  # [rows, experts * units]
    mean = comm.sum_array(columns.sum(axis=0, dtype=np.float64)) / rows
    centered = columns - mean.astype(np.float32)
    squares = np.zeros((count, count))
    for first in range(count):
        start = first * units
        # [units, (experts - first) * units]; only pairs with later experts, as CKA is symmetric.
        products = comm.sum_array(centered[:, start : start + units].T @ centered[:, start:]).astype(np.float64)
        norms = np.sum(products.reshape(units, count - first, units) ** 2, axis=(0, 2))
        squares[first, first:] = squares[first:, first] = norms
    own = np.sqrt(np.diag(squares))
    return squares / np.outer(own, own)


def _constant_share(experts: np.ndarray, comm: Collectives) -> np.ndarray:
    """Return the share of each expert's units that are constant over the rows of all workers, [experts]."""
    count, local_rows, units = experts.shape
    extremes = np.zeros((0, 2, count, units), experts.dtype)  # a worker without rows contributes an empty array
    if local_rows:
        extremes = np.stack([experts.min(axis=1), experts.max(axis=1)])[np.newaxis]
    extremes = comm.gather_rows(extremes)  # [workers with rows, 2, experts, units]
    if not len(extremes):
        return np.full(count, np.nan)
    return np.mean(extremes[:, 0].min(axis=0) == extremes[:, 1].max(axis=0), axis=1)


def gate_names(tasks: Sequence[str], gates: int) -> list[str]:
    """Return the names of a level's gates.

    They are the tasks' names, or "all" for a single gate of all tasks. The gate of the shared experts of the next level
    is "shared", with underscores appended if a task has that name.
    """
    if gates < len(tasks):
        return [COMMON_GATE]
    shared = SHARED_GATE
    while shared in tasks:
        shared += "_"
    return [*tasks, shared][:gates]


def log_values(tasks: Sequence[str], levels: Sequence[LevelStatistics]) -> dict[str, float]:
    """Return the values of all levels by log key (see `trainer.logging.gate_records`).

    Experts that a gate may not read have no key. With more than MAX_PAIRED gates or experts, only the pair of each one
    and the one most similar to it is logged.
    """
    values: dict[str, float] = {}
    for index, level in enumerate(levels):
        part = _level_part(index, len(levels))
        names = gate_names(tasks, len(level.readable))
        for gate, name in enumerate(names):
            read = np.flatnonzero(level.readable[gate]).tolist()
            values |= {f"{WEIGHT}{part}/{name}/{i + 1}": float(level.weight[gate, i]) for i in read}
            values |= {f"{ARGMAX_SHARE}{part}/{name}/{i + 1}": float(level.argmax_share[gate, i]) for i in read}
            values[f"{ENTROPY}{part}/{name}"] = float(level.entropy[gate])
        for a, b in _logged_pairs(level.gate_similarity):
            values[f"{GATE_SIMILARITY}{part}/{names[a]}/{names[b]}"] = float(level.gate_similarity[a, b])
        values |= {f"{DEAD_UNITS}{part}/{i + 1}": float(share) for i, share in enumerate(level.dead_units)}
        for a, b in _logged_pairs(level.expert_similarity):
            values[f"{EXPERT_SIMILARITY}{part}/{a + 1}/{b + 1}"] = float(level.expert_similarity[a, b])
    return values


def _logged_pairs(similarity: np.ndarray) -> list[tuple[int, int]]:
    """Return the pairs to log of a [members, members] similarity: all, or each of many with its most similar one."""
    count = len(similarity)
    if count <= MAX_PAIRED:
        return [(a, b) for a in range(count) for b in range(a + 1, count)]
    others = np.where(np.isnan(similarity), -np.inf, similarity)
    np.fill_diagonal(others, -np.inf)
    nearest = others.argmax(axis=1).tolist()
    return sorted({(min(a, b), max(a, b)) for a, b in enumerate(nearest) if a != b})


def _level_part(index: int, levels: int) -> str:
    return f"/level_{index + 1}" if levels > 1 else ""


def find_warnings(tasks: Sequence[str], levels: Sequence[LevelStatistics]) -> dict[tuple[str | int, ...], str]:
    """Return the warnings about all levels: what was found -> message."""
    found: dict[tuple[str | int, ...], str] = {}
    for number, level in enumerate(levels, start=1):
        if level.rows < MIN_ROWS:
            continue
        of_level = f" of level {number}" if len(levels) > 1 else ""
        for gate, text in _collapsed_gates(level, tasks, of_level):
            found["gate", number, gate] = text
        if text := _coincident_experts(level, of_level):
            found["experts", number] = text
        for expert in np.flatnonzero(level.dead_units == 1).tolist():
            found["dead", number, expert] = (
                f"expert {expert + 1} of {len(level.dead_units)}{of_level} is dead: it gives the same output for all "
                f"{level.rows:,} sampled rows. {DEAD_REMEDY}"
            )
    return found


def _collapsed_gates(level: LevelStatistics, tasks: Sequence[str], of_level: str) -> Iterator[tuple[int, str]]:
    """Yield (gate, message) for each gate that relies on a single expert.

    An expert that leads in nearly all rows is a collapse only if it leads by far: in a nearly uniform gate, one expert
    may be slightly ahead in every row.
    """
    for gate, name in enumerate(gate_names(tasks, len(level.readable))):
        choices = int(level.readable[gate].sum())
        expert = int(level.weight[gate].argmax())
        weight, share = level.weight[gate, expert], level.argmax_share[gate, expert]
        leads_by_far = weight > (1 + 1 / choices) / 2  # above the midpoint between the uniform weight 1 / choices and 1
        if choices > 1 and (weight > COLLAPSED or (share > COLLAPSED and leads_by_far)):
            is_of_task = gate < len(tasks) <= len(level.readable)
            owner = f"task {name!r}" if is_of_task else "all tasks" if name == COMMON_GATE else "the shared experts"
            yield (
                gate,
                f"the gate of {owner}{of_level} has collapsed: expert {expert + 1} of {level.readable.shape[1]} leads "
                f"in {share:.0%} of the rows, with a mean weight of {weight:.2f}. {GATE_REMEDY}",
            )


def _coincident_experts(level: LevelStatistics, of_level: str) -> str:
    """Return a message about experts whose outputs coincide, empty if there are none."""
    pairs = np.argwhere(np.triu(level.expert_similarity, k=1) >= COINCIDENT) + 1
    if not len(pairs):
        return ""
    shown = ", ".join(f"{a} and {b}" for a, b in pairs[:MAX_PAIRS_SHOWN].tolist())
    more = f" and {len(pairs) - MAX_PAIRS_SHOWN} more pairs" if len(pairs) > MAX_PAIRS_SHOWN else ""
    return (
        f"of the {level.readable.shape[1]} experts{of_level}, {shown}{more} give the same output except for rotation "
        f"and scale (similarity {COINCIDENT} or more). {EXPERT_REMEDY}"
    )
