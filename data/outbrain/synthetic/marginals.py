"""Measure the marginals of the synthetic Outbrain that have published values, while it is written."""

import numpy as np

from data.outbrain.synthetic.displays import Displays
from data.outbrain.synthetic.world import World

PLATFORM_NAMES = ("desktop", "mobile", "tablet")


class Marginals:
    """Accumulates counts over displays.

    Args:
        world: world of the displays.

    Attributes:
        rows: number of training rows so far.
    """

    def __init__(self, world: World) -> None:
        self.rows = 0
        self._world = world
        self._best_map = 0.0
        self._train_rows = np.zeros(len(world.ads), np.int64)
        self._test_rows = np.zeros(len(world.ads), np.int64)
        self._platforms = np.zeros(len(PLATFORM_NAMES), np.int64)
        self._places = np.zeros(len(world.users.places.texts), np.int64)

    def add(self, shown: Displays) -> None:
        """Add displays, which must be all training or all test displays."""
        is_train = shown.events[0] < self._world.displays
        counts = self._train_rows if is_train else self._test_rows
        counts += np.bincount(shown.ads, minlength=len(counts))
        has_platform = ~np.isin(shown.events, self._world.without_platform)
        self._platforms += np.bincount(shown.platforms[has_platform] - 1, minlength=len(self._platforms))
        self._places += np.bincount(shown.places, minlength=len(self._places))
        if is_train:
            self.rows += len(shown.ads)
            self._best_map += float(shown.best_map().sum())

    @property
    def map_at_12_ceiling(self) -> float:
        """Expected MAP@12 of the training displays when ranked by the true probabilities."""
        return self._best_map / self._world.displays

    def measured(self) -> dict[str, float]:
        """Return the counts, fractions and means that correspond to published ones, by name."""
        world = self._world
        occurring = self._train_rows[self._train_rows > 0]
        tested = self._test_rows > 0
        of_users = np.bincount(world.event_users)
        texts = world.users.places.texts
        documents = world.documents
        times = documents.publish_time[documents.in_meta]
        in_us = np.array([text is not None and text.split(">")[0] == "US" for text in texts])
        shares = {f"share_of_{name}": self._platforms[i] / world.events for i, name in enumerate(PLATFORM_NAMES)}
        measured = {
            "test_displays": world.test_displays,
            "ads_per_display": self.rows / world.displays,
            "ads_in_train": len(occurring),
            "rows_per_ad": occurring.mean(),
            "ads_once": (occurring == 1).mean(),
            "ads_below_10": (occurring < 10).mean(),
            "ads_below_1000": (occurring < 1000).mean(),
            "test_ads_in_train": (self._train_rows[tested] > 0).mean(),
            **shares,
            "events_without_platform": world.events - self._platforms.sum(),
            "share_of_us": self._places[in_us].sum() / world.events,
            "events_without_geo": self._places[[text is None for text in texts]].sum(),
            "users": len(of_users),
            "users_once": (of_users == 1).mean(),
            "most_events_of_a_user": of_users.max(),
            "documents_without_publish_time": np.isnat(times).mean(),
            "documents_without_publisher": (documents.publisher[documents.in_meta] < 0).mean(),
            "documents_without_source": (documents.source[documents.in_meta] < 0).mean(),
        }
        return {
            name: int(value) if float(value).is_integer() else round(float(value), 6)
            for name, value in measured.items()
        }
