"""A recommender for applications that maps data frames and raw ids to predictions and ranked items."""

from trainer.recommender.recommender import Recommender

__all__ = ["Recommender"]
