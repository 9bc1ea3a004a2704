"""The world of the synthetic Outbrain: how many of everything, when, and what is drawn before the displays."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data.outbrain.synthetic.ads import ALL_DAYS, TRAIN_DAYS, Ads, make_ads
from data.outbrain.synthetic.documents import Documents, make_documents
from data.outbrain.synthetic.random import Draws
from data.outbrain.synthetic.signal import HOUR_BANDS, Signal, make_signal
from data.outbrain.synthetic.users import Users, make_places, users_of_events
from data.outbrain.tables import DAY_MS

# Published: 87,141,731 rows of 16,874,593 training displays, that is 5.164 ads. The shares of displays of 2 to 12 ads
# are chosen, with this mean and with peaks at 4 and 6.
MEAN_ADS = 87_141_731 / 16_874_593
AD_COUNT_SHARES = (0.1278, 0.1186, 0.2137, 0.1099, 0.2110, 0.0657, 0.0559, 0.0460, 0.0205, 0.0155, 0.0154)
FEWEST_ADS_SHOWN = 2
TEST_SHARE = 0.2  # test displays per training display; chosen (published: 0.37)
TEST_LAST_DAYS = 0.5  # of the test displays, on the two days after training; published
# Published: 2,999,334 documents in documents_meta for 23,120,126 events; 1,260 publishers and 14,394 sources then,
# which grow with the square root.
FULL_EVENTS, FULL_DOCUMENTS, FULL_PUBLISHERS, FULL_SOURCES = 23_120_126, 2_999_334, 1_260, 14_394
FEWEST_DOCUMENTS, FEWEST_PUBLISHERS, FEWEST_SOURCES = 300, 20, 40
FIRST_TIMESTAMP, LAST_TIMESTAMP = 61, 1_295_999_805  # published
FULL_WITHOUT_PLATFORM = 5  # published: of all events
# Events by hour, from 0 o'clock in New York, where day 0 begins; chosen.
HOURLY = (30, 22, 16, 13, 13, 17, 27, 38, 45, 49, 51, 52, 53, 52, 51, 51, 51, 52, 54, 57, 60, 61, 54, 41)


@dataclass(frozen=True)
class World:
    """Documents, ads, users and what they like; events are numbered from 0, training first.

    Attributes:
        draws: randomness of single displays and users.
        displays, test_displays: numbers of displays.
        documents, ads, users, signal: see there.
        event_users: the user's number of each event, [displays + test_displays] int32.
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
        """Training and test displays together."""
        return self.displays + self.test_displays

    @cached_property
    def without_platform(self) -> np.ndarray:
        """The few events whose platform is missing; one at least of 1,000 or more, int64."""
        count = max(int(self.displays >= 1000), round(FULL_WITHOUT_PLATFORM * self.events / FULL_EVENTS))
        return self.draws.generator("no platform").integers(self.events, size=count)

    def timestamps(self, events: np.ndarray) -> np.ndarray:
        """Milliseconds from the origin, rising with the event's number within training and within test, [n] int64.

        The n-th display lies at a random point of the n-th of equal shares of all traffic.
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
        """Taste vectors of users at places (indices) and times, [n, 6] float64."""
        bands = timestamps % DAY_MS * HOUR_BANDS // DAY_MS
        return self.signal.tastes.of(users, self.users.places.region[places], self.users.platform(users), bands)


TRAIN_DAY_SHARES = np.repeat([1 / TRAIN_DAYS, 0], [TRAIN_DAYS, ALL_DAYS - TRAIN_DAYS])
TEST_DAY_SHARES = np.repeat(
    [(1 - TEST_LAST_DAYS) / TRAIN_DAYS, TEST_LAST_DAYS / (ALL_DAYS - TRAIN_DAYS)], [TRAIN_DAYS, ALL_DAYS - TRAIN_DAYS]
)


def clock_times(quantiles: np.ndarray, day_shares: np.ndarray) -> np.ndarray:
    """Milliseconds from the origin at quantiles of the traffic, [n] float64.

    Args:
        quantiles: in [0, 1), [n].
        day_shares: of the traffic on each day, [days].
    """
    by_hour = np.outer(day_shares, np.asarray(HOURLY) / sum(HOURLY)).ravel()
    used = np.flatnonzero(by_hour)[-1] + 1  # nothing happens in the hours after
    edges = np.concatenate([[0], np.cumsum(by_hour[:used])])
    return np.interp(quantiles, edges / edges[-1], np.arange(len(edges)) * DAY_MS / 24)


def make_world(displays: int, seed: int) -> World:
    """Draws everything but the displays.

    Args:
        displays: number of training displays, at least 50.
        seed: of all randomness.
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
