"""Displays and page views of the synthetic Outbrain: users, documents, times, places, ads and clicks."""

from dataclasses import dataclass

import numpy as np

from data.outbrain.synthetic.random import cumulative, pick
from data.outbrain.synthetic.world import AD_COUNT_SHARES, FEWEST_ADS_SHOWN, TRAIN_DAY_SHARES, World, clock_times
from data.outbrain.tables import DAY_MS

MOST_ADS_SHOWN = FEWEST_ADS_SHOWN + len(AD_COUNT_SHARES) - 1
NOBODY = np.iinfo(np.int64).max
VIEWS_PER_EVENT = 9_999_999 / 23_120_126  # published
VIEWS_OF_EVENT_USERS = 0.4  # the other page views are by users without events; chosen
VIEWS_PER_BLOCK = 262_144
VIEW_CHOICES = 4  # a user chooses among this many popular documents by taste; chosen
# Fractions of internal (1), search (2) and social (3) traffic; chosen.
TRAFFIC_SHARES = (0.68, 0.17, 0.15)


@dataclass(frozen=True)
class Displays:
    """Consecutive displays; their rows are the ads of each display in ascending order, display after display.

    Attributes:
        events: [n] int64 event numbers, display_id minus 1.
        users: [n] int64 numbers of the users.
        landing: [n] int64 indices of the documents that show the display.
        timestamps: [n] int64 milliseconds since Outbrain's origin.
        platforms: [n] int64 platforms, 1 to 3.
        places: [n] int64 indices into `Places`.
        sizes: [n] int64 number of ads.
        ads: [rows] int64 indices of the ads.
        probabilities: [rows] float64 probability that the ad is clicked; they sum to 1 in each display.
        clicked: [rows] bool, whether the ad is clicked; exactly one per display.
    """

    events: np.ndarray
    users: np.ndarray
    landing: np.ndarray
    timestamps: np.ndarray
    platforms: np.ndarray
    places: np.ndarray
    sizes: np.ndarray
    ads: np.ndarray
    probabilities: np.ndarray
    clicked: np.ndarray

    @property
    def row_events(self) -> np.ndarray:
        """[rows] int64 event number of each row."""
        return np.repeat(self.events, self.sizes)

    def best_map(self) -> np.ndarray:
        """Return the expected AP@12 of each display when ranked by the true probabilities, [n] float64.

        Since one ad is clicked and at most 12 are shown, it is the sum over ranks of probability / rank.
        """
        padded = np.zeros((len(self.events), MOST_ADS_SHOWN))
        padded[np.arange(MOST_ADS_SHOWN) < self.sizes[:, None]] = self.probabilities
        return -np.sort(-padded, axis=1) @ (1 / np.arange(1, MOST_ADS_SHOWN + 1))


def draw_displays(world: World, begin: int, end: int) -> Displays:
    """Draw the events [begin, end); an event does not depend on the block that it is drawn in."""
    events = np.arange(begin, end)
    users = world.event_users[begin:end].astype(np.int64)
    places, platforms = world.users.place(users), world.users.platform(users)
    timestamps = world.timestamps(events)
    landing = world.documents.popular(world.draws.uniform("landing", events))
    sizes = FEWEST_ADS_SHOWN + pick(cumulative(np.asarray(AD_COUNT_SHARES)), world.draws.uniform("size", events))
    ads = _draw_ads(world, events, timestamps // DAY_MS, sizes)
    taste = world.tastes(users, places, timestamps)
    rows = np.repeat(np.arange(len(events)), sizes)
    utilities = world.signal.utilities(world.documents, world.ads, taste, landing, rows, ads)
    shown = np.arange(MOST_ADS_SHOWN) < sizes[:, None]
    probabilities = _softmax(utilities, shown)
    clicked = _draw_clicks(probabilities, sizes, world.draws.uniform("click", events))[shown]
    probabilities = probabilities[shown]
    return Displays(events, users, landing, timestamps, platforms, places, sizes, ads, probabilities, clicked)


def _draw_ads(world: World, events: np.ndarray, days: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Draw distinct ads for each display by their frequency on its day, [rows] int64, ascending in a display.

    Repeated ads are redrawn until all ads of a display are distinct.
    """
    ads = np.full((len(events), MOST_ADS_SHOWN), NOBODY)
    rows, slots = np.nonzero(np.arange(MOST_ADS_SHOWN) < sizes[:, None])
    attempt = 0
    while len(rows):
        uniforms = world.draws.uniform("ads", events[rows], slots, attempt)
        for day in np.unique(days[rows]):
            today = days[rows] == day
            ads[rows[today], slots[today]] = pick(world.ads.cumulative_by_day[day], uniforms[today])
        rows, slots = _repeated(ads, np.unique(rows))
        attempt += 1
    return np.sort(ads, axis=1)[np.arange(MOST_ADS_SHOWN) < sizes[:, None]]


def _repeated(ads: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and slots of ads that an earlier slot of the same display already has."""
    order = np.argsort(ads[rows], axis=1, kind="stable")
    ordered = np.take_along_axis(ads[rows], order, axis=1)
    found, positions = np.nonzero((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NOBODY))
    return rows[found], order[found, positions + 1]


def _softmax(utilities: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Return the probabilities of [rows] utilities as [displays, 12] float64, 0 where `shown` is False."""
    padded = np.full(shown.shape, -np.inf)
    padded[shown] = utilities
    powers = np.exp(padded - padded.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _draw_clicks(probabilities: np.ndarray, sizes: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Draw the clicked slot of each display by inversion, [displays, 12] bool."""
    passed = (np.cumsum(probabilities, axis=1) <= uniforms[:, None]).sum(axis=1)
    return np.arange(probabilities.shape[1]) == np.minimum(passed, sizes - 1)[:, None]


@dataclass(frozen=True)
class PageViews:
    """Page views of documents on day 0.

    Attributes:
        users: [n] int64 numbers of the users.
        documents: [n] int64 indices of the documents.
        timestamps: [n] int64 milliseconds since Outbrain's origin.
        traffic_sources: [n] int64 traffic sources, 1 to 3.
    """

    users: np.ndarray
    documents: np.ndarray
    timestamps: np.ndarray
    traffic_sources: np.ndarray

    def __len__(self) -> int:
        return len(self.users)


def draw_page_views(world: World) -> PageViews:
    """Draw all page views, sorted by document_id and otherwise unordered, as published."""
    count = round(VIEWS_PER_EVENT * world.events)
    begins = range(0, count, VIEWS_PER_BLOCK)
    parts = [_view_block(world, np.arange(begin, min(begin + VIEWS_PER_BLOCK, count))) for begin in begins]
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(world.documents.ids[columns[1]], kind="stable")
    return PageViews(*(column[order] for column in columns))


def _view_block(world: World, views: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    draws = world.draws
    event = (draws.uniform("view event", views) * world.events).astype(np.int64)
    strangers = int(world.event_users.max()) + 1 + event  # as many further users, without events
    is_known = draws.uniform("view known", views) < VIEWS_OF_EVENT_USERS
    users = np.where(is_known, world.event_users[event], strangers)
    first_day = TRAIN_DAY_SHARES[:1]
    times = clock_times(draws.uniform("view time", views), first_day).astype(np.int64)
    taste = world.tastes(users, world.users.place(users), times)
    offers = [world.documents.popular(draws.uniform("view document", views, choice)) for choice in range(VIEW_CHOICES)]
    offered = np.stack(offers, axis=1)
    liking = np.einsum("nd,ncd->nc", taste, world.signal.traits[offered])
    # Gumbel-max trick: the argmax of utilities plus Gumbel noise is a draw from their softmax.
    noise = [draws.uniform("view liking", views, choice) for choice in range(VIEW_CHOICES)]
    best = np.argmax(liking - np.log(-np.log(np.stack(noise, axis=1))), axis=1)
    sources = 1 + pick(cumulative(np.asarray(TRAFFIC_SHARES)), draws.uniform("view source", views))
    return users, offered[np.arange(len(views)), best], times, sources
