"""The world of the synthetic Outbrain: its sizes and times, and everything that is drawn before the displays."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data.outbrain.synthetic.ads import ALL_DAYS, TRAIN_DAYS, Ads, make_ads
from data.outbrain.synthetic.documents import Documents, make_documents
from data.outbrain.synthetic.random import Draws
from data.outbrain.synthetic.signal import HOUR_BANDS, Signal, make_signal
from data.outbrain.synthetic.users import Users, make_places, users_of_events
from data.outbrain.tables import DAY_MS

# Published: 87,141,731 rows of 16,874,593 training displays, that is 5.164 ads per display. Chosen: the fractions of
# displays with 2 to 12 ads, which have this mean, and peaks at 4 and 6.
MEAN_ADS = 87_141_731 / 16_874_593
AD_COUNT_SHARES = (0.1278, 0.1186, 0.2137, 0.1099, 0.2110, 0.0657, 0.0559, 0.0460, 0.0205, 0.0155, 0.0154)
FEWEST_ADS_SHOWN = 2
TEST_SHARE = 0.2  # test displays per training display; chosen (published: 0.37)
TEST_LAST_DAYS = 0.5  # fraction of the test displays on the two days after training; published
# Published: 2,999,334 documents in documents_meta for 23,120,126 events, with 1,260 publishers and 14,394 sources.
# Here, publishers and sources grow with the square root of the number of events.
FULL_EVENTS, FULL_DOCUMENTS, FULL_PUBLISHERS, FULL_SOURCES = 23_120_126, 2_999_334, 1_260, 14_394
FEWEST_DOCUMENTS, FEWEST_PUBLISHERS, FEWEST_SOURCES = 300, 20, 40
FIRST_TIMESTAMP, LAST_TIMESTAMP = 61, 1_295_999_805  # published
FULL_WITHOUT_PLATFORM = 5  # published: number of events without a platform
# Relative number of events by hour, from midnight in New York, when day 0 begins; chosen.
HOURLY = (30, 22, 16, 13, 13, 17, 27, 38, 45, 49, 51, 52, 53, 52, 51, 51, 51, 52, 54, 57, 60, 61, 54, 41)


@dataclass(frozen=True)
class World:
    """Documents, ads, users and the click model. Events are numbered from 0, training events first.

    Attributes:
        draws: random draws of single displays and users.
        displays, test_displays: numbers of training and test displays.
        documents: all documents.
        ads: all ads.
        users: attributes of users.
        signal: click model.
        event_users: [displays + test_displays] int32 user of each event.
    """

    draws: Draws
    displays: int
    test_displays: int
    documents: Documents
    ads: Ads
    users: Users
    signal: Signal
    event_users: np.ndarray

    @property
    def events(self) -> int:
        """Number of training and test displays."""
        return self.displays + self.test_displays

    @cached_property
    def without_platform(self) -> np.ndarray:
        """Int64 numbers of the few events without a platform; at least one if there are 1,000 training displays."""
        count = max(int(self.displays >= 1000), round(FULL_WITHOUT_PLATFORM * self.events / FULL_EVENTS))
        return self.draws.generator("no platform").integers(self.events, size=count)

    def timestamps(self, events: np.ndarray) -> np.ndarray:
        """Return the times of events, [n] int64 milliseconds since the origin.

        Times ascend with the event number within training and within test: the n-th display is at a random point of
        the n-th of equal fractions of the traffic.
        """
        in_test = events >= self.displays
        position = np.where(in_test, events - self.displays, events) + self.draws.uniform("time", events)
        quantiles = position / np.where(in_test, self.test_displays, self.displays)
        times = np.where(in_test, clock_times(quantiles, TEST_DAY_SHARES), clock_times(quantiles, TRAIN_DAY_SHARES))
        whole: np.ndarray = np.clip(times.astype(np.int64), FIRST_TIMESTAMP, LAST_TIMESTAMP)
        whole[events == 0] = FIRST_TIMESTAMP
        whole[events == self.events - 1] = LAST_TIMESTAMP
        return whole

    def tastes(self, users: np.ndarray, places: np.ndarray, timestamps: np.ndarray) -> np.ndarray:
        """Return the taste vectors of users at places (indices) and times, [n, 6] float64."""
        bands = timestamps % DAY_MS * HOUR_BANDS // DAY_MS
        return self.signal.tastes.of(users, self.users.places.region[places], self.users.platform(users), bands)


TRAIN_DAY_SHARES = np.repeat([1 / TRAIN_DAYS, 0], [TRAIN_DAYS, ALL_DAYS - TRAIN_DAYS])
TEST_DAY_SHARES = np.repeat(
    [(1 - TEST_LAST_DAYS) / TRAIN_DAYS, TEST_LAST_DAYS / (ALL_DAYS - TRAIN_DAYS)], [TRAIN_DAYS, ALL_DAYS - TRAIN_DAYS]
)


def clock_times(quantiles: np.ndarray, day_shares: np.ndarray) -> np.ndarray:
    """Return the times at quantiles of the traffic, [n] float64 milliseconds since the origin.

    Args:
        quantiles: [n] quantiles in [0, 1).
        day_shares: [days] fraction of the traffic on each day.
    """
    by_hour = np.outer(day_shares, np.asarray(HOURLY) / sum(HOURLY)).ravel()
    used = np.flatnonzero(by_hour)[-1] + 1  # without the hours after the last event
    edges = np.concatenate([[0], np.cumsum(by_hour[:used])])
    return np.interp(quantiles, edges / edges[-1], np.arange(len(edges)) * DAY_MS / 24)


def make_world(displays: int, seed: int) -> World:
    """Draw everything but the displays.

    Args:
        displays: number of training displays, at least 50.
        seed: seed of all draws.
    """
    draws = Draws(seed)
    test_displays = round(TEST_SHARE * displays)
    events = displays + test_displays
    root = np.sqrt(events / FULL_EVENTS)
    documents = make_documents(
        draws,
        max(FEWEST_DOCUMENTS, round(FULL_DOCUMENTS * events / FULL_EVENTS)),
        max(FEWEST_PUBLISHERS, round(FULL_PUBLISHERS * root)),
        max(FEWEST_SOURCES, round(FULL_SOURCES * root)),
    )
    rows_by_day = MEAN_ADS * np.stack([displays * TRAIN_DAY_SHARES, test_displays * TEST_DAY_SHARES])
    ads = make_ads(draws, displays, rows_by_day, len(documents))
    users = Users(draws, make_places())
    signal = make_signal(draws, documents, ads, users.places)
    return World(draws, displays, test_displays, documents, ads, users, signal, users_of_events(draws, events))
