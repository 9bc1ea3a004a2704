"""A recommender for applications: data frames and raw ids in, predictions and ranked items out."""

from trainer.recommender.recommender import Recommender

__all__ = ["Recommender"]
