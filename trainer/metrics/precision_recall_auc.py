"""Area under the precision-recall curve."""

import math

import numpy as np

from trainer.metrics.collectives import Collectives
from trainer.metrics.direction import Direction
from trainer.metrics.rows import Rows
from trainer.metrics.score_table import ScoreTable, score_table


class PrecisionRecallAuc:
    """Average precision: the precision at every score, weighted by the recall that the score adds.

        PR AUC = sum over the distinct scores k, falling, of (R_k - R_(k-1)) * P_k

    with recall R_k and precision P_k among the rows of score k or above, all of a score being taken at once
    (Davis and Goadrich, "The Relationship Between Precision-Recall and ROC Curves", ICML 2006, show why points
    must not be joined by straight lines). Sample weights count; equal float32 logits are ties. A model
    that gives all rows one score gets the share of positives. NaN where no row is positive.
    """

    needs_group = False
    direction = Direction.LARGER

    def result(self, rows: Rows, comm: Collectives) -> float:
        """See Metric. Takes the memory of score_table."""
        return self.of_table(score_table(rows, comm), rows, comm)

    def of_table(self, table: ScoreTable, rows: Rows, comm: Collectives) -> float:
        """See ScoreMetric."""
        parts = comm.gather_rows(np.array([[table.positive.sum(), table.negative.sum()]]))
        positive_above, negative_above = parts[comm.rank + 1 :].sum(axis=0)
        gained = table.positive[::-1]
        found = np.cumsum(gained) + positive_above
        precision = found / (found + np.cumsum(table.negative[::-1]) + negative_above)
        area = float(comm.sum_array(np.array([gained @ precision]))[0])
        positive = float(parts[:, 0].sum())
        return area / positive if positive > 0 else math.nan
