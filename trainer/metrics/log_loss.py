"""Binary cross-entropy."""

import numpy as np

from trainer.metrics.collectives import Collectives
from trainer.metrics.rows import Rows

_BLOCK_ROWS = 1 << 18  # bounds the float64 copies


class LogLoss:
    """Weighted mean of the binary cross-entropy, in nats per row.

        loss = sum of w * softplus(-s if y = 1 else s) / sum of w,    softplus(x) = log(1 + exp(x))

    with logit s, label y and sample weight w of each row, in float64. NaN where there is no row.
    """

    needs_group = False

    def result(self, rows: Rows, comm: Collectives) -> float:
        """See Metric. Takes a fixed amount of memory, a few MiB."""
        sums = np.zeros(2)
        for start in range(0, len(rows.logits), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            weights = rows.weights[block].astype(np.float64)
            wrong_way = np.where(rows.labels[block] > 0, -rows.logits[block], rows.logits[block]).astype(np.float64)
            losses = np.maximum(wrong_way, 0) + np.log1p(np.exp(-np.abs(wrong_way)))
            sums += (losses @ weights, weights.sum())
        loss, weight = comm.sum_array(sums)
        return float(loss / weight) if weight > 0 else float("nan")
