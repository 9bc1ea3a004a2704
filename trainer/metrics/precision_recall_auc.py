"""Area under the precision-recall curve."""

import math

import numpy as np

from trainer.metrics.collectives import Collectives
from trainer.metrics.direction import Direction
from trainer.metrics.rows import Rows
from trainer.metrics.score_table import ScoreTable, score_table


class PrecisionRecallAuc:
    """Average precision: the precision at every score, weighted by the recall that the score adds.

        PR AUC = sum over the distinct scores k, decreasing, of (R_k - R_(k-1)) * P_k

    with recall R_k and precision P_k among the rows of score k or above; all rows of a score are added at once (Davis
    and Goadrich, "The Relationship Between Precision-Recall and ROC Curves", ICML 2006, show why points must not be
    joined by straight lines). Sample weights count; equal float32 logits are ties. A model with the same score for all
    rows gets the share of positives. NaN if no row is positive.
    """

    needs_group = False
    direction = Direction.LARGER

    def result(self, rows: Rows, comm: Collectives) -> float:
        """Computes the area over the rows of all workers, with the memory of score_table. A collective."""
        return self.of_table(score_table(rows, comm), rows, comm)

    def of_table(self, table: ScoreTable, rows: Rows, comm: Collectives) -> float:
        """Computes the area from an existing score table. A collective."""
        parts = comm.gather_rows(np.array([[table.positive.sum(), table.negative.sum()]]))
        # Workers hold increasing scores in rank order: those of higher rank come first in the ranking.
        positive_above, negative_above = parts[comm.rank + 1 :].sum(axis=0)
        gained = table.positive[::-1]
        found = np.cumsum(gained) + positive_above
        precision = found / (found + np.cumsum(table.negative[::-1]) + negative_above)
        area = float(comm.sum_array(np.array([gained @ precision]))[0])
        positive = float(parts[:, 0].sum())
        return area / positive if positive > 0 else math.nan
