"""Statistics of the gates and experts of a level over a set of rows, exact over all workers."""

from dataclasses import dataclass

import numpy as np

from trainer.metrics.collectives import Collectives


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
