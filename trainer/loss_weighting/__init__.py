"""Methods that combine the losses of several tasks into one, each defined by its formula.

L_k is the mean loss of task k over the global batch, w_k its `loss_weight`, K the number of tasks. A worker passes its
share of every L_k and gets its share of the sum; the shares of all workers add up to the formula.
"""

from collections.abc import Sequence

from trainer.loss_weighting.by_gradient import GradNorm, PCGrad
from trainer.loss_weighting.by_loss import DynamicWeightAverage, RandomWeights, Static, Uncertainty
from trainer.loss_weighting.method import LossWeighting

__all__ = ["METHODS", "LossWeighting", "make_loss_weighting"]

METHODS = {
    "static": Static,
    "uncertainty": Uncertainty,
    "gradnorm": GradNorm,
    "dwa": DynamicWeightAverage,
    "rlw": RandomWeights,
    "pcgrad": PCGrad,
}


def make_loss_weighting(
    method: str, loss_weights: Sequence[float], regressions: Sequence[bool], seed: int, *, gradnorm_alpha: float = 1.5
) -> LossWeighting:
    """Creates a loss weighting method by name.

    Args:
        method: key of METHODS.
        loss_weights: weight w_k of each task.
        regressions: whether each task is a regression.
        seed: seed of random weights and orders.
        gradnorm_alpha: GradNorm's `alpha`.
    """
    if method == "uncertainty":
        return Uncertainty(loss_weights, seed, regressions)
    if method == "gradnorm":
        return GradNorm(loss_weights, seed, gradnorm_alpha)
    return METHODS[method](loss_weights, seed)
