"""The synthetic Outbrain: documents, ads, users and displays, and a click model whose best achievable MAP is known.

The clicked ad of a display is drawn with probabilities softmax(utilities). The utility of an ad is the sum of

    ad effects       of the advertiser, the campaign, the promoted document's publisher and dominant category, and a
                     small one of the ad itself;
    user taste       dot product of a vector of the user's location, platform and time of day, with a small personal
                     part, and a vector of the promoted document's dominant category and topics;
    document match   cosine of the topic confidences of both documents, and a low-rank product of the landing document's
                     publisher and the advertiser's group.

A perfect ranking has a MAP@12 of about 0.72, one by the click rate of ads about 0.58.

Documents, ads and effects are drawn from generators; displays and users from hashes of the seed and their number, so
they do not depend on the block that they are drawn in. Constants marked "published" are counts of the published tables
or figures from public analyses of them; the others are chosen.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data.encoding.hashing import hash_rows, mix
from data.outbrain.raw_tables import DAY_MS

ROWS_PER_BLOCK = 262_144

# Sizes and times. Published: 87,141,731 rows of 16,874,593 training displays; 23,120,126 events; 2,999,334 documents
# in documents_meta, 1,260 publishers and 14,394 sources. Here, publishers and sources grow with the root of the events.
MEAN_ADS = 87_141_731 / 16_874_593
AD_COUNT_SHARES = (0.1278, 0.1186, 0.2137, 0.1099, 0.2110, 0.0657, 0.0559, 0.0460, 0.0205, 0.0155, 0.0154)  # of 2 to 12
MIN_ADS, MAX_ADS = 2, 12
ABSENT = np.iinfo(np.int64).max  # slot of a display without an ad
TEST_SHARE = 0.2  # test displays per training display (published: 0.37)
TEST_LAST_DAYS = 0.5  # published: fraction of the test displays on the two days after training
PUBLISHED_EVENTS, PUBLISHED_DOCUMENTS, PUBLISHED_PUBLISHERS, PUBLISHED_SOURCES = 23_120_126, 2_999_334, 1_260, 14_394
MIN_DOCUMENTS, MIN_PUBLISHERS, MIN_SOURCES = 300, 20, 40
FIRST_TIMESTAMP, LAST_TIMESTAMP = 61, 1_295_999_805  # published
PUBLISHED_WITHOUT_PLATFORM = 5  # events
TRAIN_DAYS, ALL_DAYS = 13, 15
TRAIN_DAY_SHARES = np.repeat([1 / TRAIN_DAYS, 0], [TRAIN_DAYS, ALL_DAYS - TRAIN_DAYS])
TEST_DAY_SHARES = np.repeat(
    [(1 - TEST_LAST_DAYS) / TRAIN_DAYS, TEST_LAST_DAYS / (ALL_DAYS - TRAIN_DAYS)], [TRAIN_DAYS, ALL_DAYS - TRAIN_DAYS]
)
# Relative number of events by hour, from midnight in New York, when day 0 begins.
HOURLY = (30, 22, 16, 13, 13, 17, 27, 38, 45, 49, 51, 52, 53, 52, 51, 51, 51, 52, 54, 57, 60, 61, 54, 41)

# Documents. The probabilities of 0, 1, ... rows per document give the published means: 5,481,475 categories, 11,325,960
# topics and 5,537,552 entities over 2,999,334 documents, that is 1.83, 3.78 and 1.85.
NUM_CATEGORIES, NUM_TOPICS = 97, 300  # published
CATEGORY_ROWS = (0.02, 0.13, 0.85)
TOPIC_ROWS = (0.045, 0.10, 0.16, 0.20, 0.17, 0.12, 0.08, 0.05, 0.035, 0.02, 0.02)
ENTITY_ROWS = (0.36, 0.20, 0.14, 0.10, 0.07, 0.05, 0.04, 0.02, 0.01, 0.01)
ENTITIES_PER_DOCUMENT = 0.44  # published: 1,326,009 distinct entities
NO_PUBLISH_TIME, NO_PUBLISHER, NO_SOURCE = 0.337, 0.021, 0.0008  # published
NO_META = 0.005  # fraction of documents missing from documents_meta
POPULARITY_HEAD = 20.0  # the popularity of the n-th document is proportional to 1 / (n + POPULARITY_HEAD)
FAVORITES, FAVORITE_SHARE = 4, 0.6  # categories of a publisher
CATEGORIES_PER_GROUP, GROUP_SPREAD = 9, 0.2
TOPIC_GAP, WIDE_GAPS, WIDEST_GAP = 0.4, 0.12, NUM_TOPICS // (len(TOPIC_ROWS) - 1)
LATEST_PUBLISH_TIME = np.datetime64("2016-06-28T00:00:00", "s")

# Ads. Published: 185,709 promoted documents, 35,000 campaigns and 4,385 advertisers for 559,583 ads.
DOCUMENTS_PER_AD, CAMPAIGNS_PER_AD, ADVERTISERS_PER_AD = 185_709 / 559_583, 35_000 / 559_583, 4_385 / 559_583
MIN_ALL_ADS, MIN_CAMPAIGNS, MIN_ADVERTISERS = 60, 24, 12
# Expected training rows per ad: log-logistic with a floor, and a log-uniform tail from 1,000. Fitted so that of the ads
# with any row, 22.7% have one, 61.7% fewer than 10 and 97.5% fewer than 1,000, with a mean of 182.
MEDIAN_ROWS, ROWS_EXPONENT, FLOOR_ROWS = 2.601, 1 / 0.62424, 0.8
TAIL_SHARE, TAIL_START, MAX_ROWS = 0.01636, 1000.0, 21_690.0
# Maximum fraction of displays that an ad is expected in; small datasets get more ads with fewer rows instead.
MAX_DISPLAY_SHARE = 0.25
# Half of the campaigns run on some days only, but their ads with more rows than this run on all days.
WINDOW_DAYS, WINDOW_ROWS = 5, 1000.0
TEST_ADS_SEEN = 0.829  # published: fraction of the distinct ads of clicks_test that are in clicks_train
LATE_ROWS_SHARE = 0.25  # maximum fraction of the rows of the last two days for ads first shown then

# Users. Published: 88.4% of the users of events occur once, the most frequent one 49 times; 23,120,126 events are of
# 19,794,967 users. Frequencies that decrease with the fourth power, from two events on, match these numbers.
ONCE, MAX_EVENTS, EVENTS_EXPONENT = 0.884, 49, 4.0
# Published: 39% desktop (1), 47% mobile (2), 13% tablet (3); the remaining 1% is distributed in proportion.
PLATFORM_SHARES = np.array((39 / 99, 47 / 99, 13 / 99))
LONGER_UUID = 0.1  # fraction of users with longer uuids, half of them 15 and half 16 hex digits
HEX_PAIRS = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), np.uint16)
# Published: about 80% of the events are from the US. States roughly by population.
US_SHARE = 0.80
STATES = (
    "CA", "TX", "FL", "NY", "PA", "IL", "OH", "GA", "NC", "MI", "NJ", "VA", "WA", "AZ", "MA", "TN", "IN", "MO",
    "MD", "WI", "CO", "MN", "SC", "AL", "LA", "KY", "OR", "OK", "CT", "UT", "IA", "NV", "AR", "MS", "KS", "NM",
    "NE", "ID", "WV", "HI", "NH", "ME", "MT", "RI", "DE", "SD", "ND", "AK", "DC", "VT", "WY",
)  # fmt: skip
COUNTRIES = (
    "GB", "CA", "AU", "IN", "PH", "ZA", "SG", "MY", "NZ", "DE", "IE", "NL", "FR", "AE", "BR", "ES", "IT", "SE",
    "ID", "MX", "HK", "TH", "NO", "JP", "PK", "DK", "KR", "BE", "SA", "IL", "NG", "KE", "CH", "TR", "VN", "GR",
    "PL", "EG", "PT", "FI", "RO", "RU", "TW", "QA", "KW", "LK", "TT", "JM", "BD", "UA",
)  # fmt: skip
REGIONS = ("00", "02", "07", "H9", "ON", "16")  # codes like those of states in other countries
UNKNOWN_LOCATION, NO_LOCATION = 0.001, 0.001  # fractions of `--` and of empty cells, so that small sets have some
ONE_PART, TWO_PARTS = 0.02, 0.05  # fractions of US users with country or state only; others have a DMA

# Click model: standard deviations over ads, weighted by how often each is shown.
ADVERTISER_SD, CAMPAIGN_SD, PUBLISHER_SD, CATEGORY_SD, AD_SD = 0.30, 0.22, 0.22, 0.30, 0.10
TASTE_SD, PUBLISHER_BY_ADVERTISER_SD = 1.05, 0.4
COSINE_WEIGHT = 3.0  # gives a standard deviation of about 0.4
TASTE_DIMS, PUBLISHER_DIMS, ADVERTISER_GROUPS = 6, 4, 16
# Fractions of the variance of tastes, and of the vectors of promoted documents.
LOCATION_PART, PLATFORM_PART, HOURS_PART, PERSONAL_PART = 0.45, 0.25, 0.2, 0.1
CATEGORY_PART, TOPIC_PART = 0.7, 0.3
HOUR_BANDS = 4  # of six hours each

# Page views.
VIEWS_PER_EVENT = 9_999_999 / 23_120_126  # published
VIEWS_OF_EVENT_USERS = 0.4  # the other page views are by users without events
VIEW_CHOICES = 4  # a user chooses among this many popular documents by taste
TRAFFIC_SHARES = np.array((0.68, 0.17, 0.15))  # internal (1), search (2) and social (3)


@dataclass(frozen=True)
class RandomSource:
    """Random numbers of a seed; numbers drawn under different names are independent."""

    seed: int

    def generator(self, name: str) -> np.random.Generator:
        """Return a generator for the arrays of a table."""
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, *name.encode()])))

    def hashes(self, name: str, *ids: np.ndarray | int) -> np.ndarray:
        """Return random words for rows of ids, [n] uint64."""
        return hash_rows(self.seed, [name], *ids)

    def uniform(self, name: str, *ids: np.ndarray | int) -> np.ndarray:
        """Return uniform numbers in (0, 1) for rows of ids, [n] float64."""
        return _unit(self.hashes(name, *ids))

    def normal(self, name: str, ids: np.ndarray, dims: int) -> np.ndarray:
        """Return standard normal numbers for ids, [n, dims] float64, by the Box-Muller transform."""
        columns = []
        hashes = self.hashes(name, ids)
        for _ in range(dims):
            first = mix(hashes)
            hashes = mix(first)
            columns.append(np.sqrt(-2 * np.log(_unit(first))) * np.cos(2 * np.pi * _unit(hashes)))
        return np.stack(columns, axis=1)


def _unit(hashes: np.ndarray) -> np.ndarray:
    # The upper 53 bits, centered in their interval so that 0 (and log(0)) cannot occur.
    return ((hashes >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def cumulative(weights: np.ndarray) -> np.ndarray:
    """Return float64 cumulative probabilities of weights along the last axis, ending in exactly 1."""
    sums = np.cumsum(weights, axis=-1, dtype=np.float64)
    return sums / sums[..., -1:]


def pick(cumulative_probabilities: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Draw int64 indices by inversion, in the shape of `uniforms`."""
    return np.searchsorted(cumulative_probabilities, uniforms, side="right")


def popular_index(uniforms: np.ndarray, count: int, head: float) -> np.ndarray:
    """Draw int64 indices in [0, count) with probabilities approximately proportional to 1 / (index + head)."""
    return np.minimum(head * ((count + head) / head) ** uniforms - head, count - 1).astype(np.int64)


def _unit_length(weights: np.ndarray) -> np.ndarray:
    """Scale rows to L2 norm 1; rows of zeros stay."""
    norms = np.sqrt((weights**2).sum(axis=1, keepdims=True))
    return weights / np.where(norms > 0, norms, 1)


def blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Split an array into blocks of ROWS_PER_BLOCK."""
    for begin in range(0, len(rows), ROWS_PER_BLOCK):
        yield rows[begin : begin + ROWS_PER_BLOCK]


@dataclass(frozen=True)
class Documents:
    """All documents, the most viewed first; -1 marks a missing value.

    Attributes:
        ids: [n] int64 distinct document_ids.
        in_meta: [n] bool, whether the document is in documents_meta.
        source, publisher: [n] int64 numbers from 0, as written; -1 also for documents not in documents_meta.
        num_publishers: number of publishers.
        publish_time: [n] datetime64[s] publish times, NaT if missing.
        categories: [n, 2] int64 category numbers, the dominant one first.
        category_confidence: [n, 2] float64 confidences as written, descending; 0 where there is no category.
        topics, topic_confidence: [n, 10], like the categories.
    """

    ids: np.ndarray
    in_meta: np.ndarray
    source: np.ndarray
    publisher: np.ndarray
    num_publishers: int
    publish_time: np.ndarray
    categories: np.ndarray
    category_confidence: np.ndarray
    topics: np.ndarray
    topic_confidence: np.ndarray

    def popular(self, uniforms: np.ndarray) -> np.ndarray:
        """Map uniform numbers to documents drawn by popularity, [n] int64 indices."""
        return popular_index(uniforms, len(self.ids), POPULARITY_HEAD)


def category_ids() -> np.ndarray:
    """Return the category_id of each category, [97] int64: 1000 to 2006 in groups, resembling published ids."""
    groups, members = np.divmod(np.arange(NUM_CATEGORIES), CATEGORIES_PER_GROUP)
    return 100 * (10 + groups) + members


def make_documents(source: RandomSource, count: int, num_publishers: int, num_sources: int) -> Documents:
    """Draw all documents, without their entities."""
    random = source.generator("documents")
    in_meta = random.random(count) >= NO_META
    publisher_of_source = np.concatenate(
        [np.arange(num_publishers), random.integers(num_publishers, size=num_sources - num_publishers)]
    )
    sources = popular_index(random.random(count), num_sources, head=num_sources / 50)
    publisher = publisher_of_source[sources]
    categories, category_confidence = _categories(random, publisher, num_publishers)
    topics, topic_confidence = _topics(random, categories[:, 0])
    has_category = random.permutation(_row_counts(CATEGORY_ROWS, count))[:, None] > np.arange(2)
    return Documents(
        ids=1 + random.permutation(count + count // 8)[:count],
        in_meta=in_meta,
        source=np.where(in_meta & ~_some(random, count, NO_SOURCE), sources, -1),
        publisher=np.where(in_meta & ~_some(random, count, NO_PUBLISHER), publisher, -1),
        num_publishers=num_publishers,
        publish_time=_publish_times(random, count),
        categories=np.where(has_category, categories, -1),
        category_confidence=np.where(has_category, category_confidence, 0),
        topics=topics,
        topic_confidence=topic_confidence,
    )


def make_entities(source: RandomSource, num_documents: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the entities of all documents: [n] document indices, [n] entity numbers and [n] float64 confidences."""
    random = source.generator("entities")
    num_entities = max(100, round(ENTITIES_PER_DOCUMENT * num_documents))
    counts = random.permutation(_row_counts(ENTITY_ROWS, num_documents))
    most = len(ENTITY_ROWS) - 1
    # Later steps add up to less than the number of entities, so that no document has an entity twice.
    steps = 1 + popular_index(random.random((num_documents, most)), max(1, num_entities // (most + 1) - 1), head=10)
    steps[:, 0] = popular_index(random.random(num_documents), num_entities, head=50)
    numbers = np.cumsum(steps, axis=1) % num_entities
    confidence = _falling(random, 0.3 + 0.65 * random.random(num_documents), most, 0.5, 1.0)
    rows, slots = np.nonzero(np.arange(most) < counts[:, None])
    return rows, numbers[rows, slots], confidence[rows, slots]


def _categories(
    random: np.random.Generator, publisher: np.ndarray, num_publishers: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw two distinct categories per document, [n, 2] int64, and their confidences, [n, 2] float64."""
    count = len(publisher)
    overall = cumulative(1 / (np.arange(NUM_CATEGORIES) + 10.0))
    favorites = pick(overall, random.random((num_publishers, FAVORITES)))
    favorite = favorites[publisher, random.integers(FAVORITES, size=count)]
    first = np.where(random.random(count) < FAVORITE_SHARE, favorite, pick(overall, random.random(count)))
    second = (first + random.integers(1, NUM_CATEGORIES, size=count)) % NUM_CATEGORIES
    # As in the published tables, where 0.92 and 0.07 are by far the most frequent confidences.
    top = np.where(random.random(count) < 0.8, 0.92, np.round(0.4 + 0.5 * random.random(count), 6))
    rest = np.where(top == 0.92, 0.07, np.round((1 - top) * (0.1 + 0.5 * random.random(count)), 6))
    return np.stack([first, second], axis=1), np.stack([top, rest], axis=1)


def _topics(random: np.random.Generator, category: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw topics, [n, 10] int64, and confidences, [n, 10] float64, such that documents of a category share topics.

    Each category ranks all topics. Categories of a group have similar rankings, with top topics that no other group has
    at its top. A document takes a few topics from the top of the ranking, with gaps.
    """
    count, most = len(category), len(TOPIC_ROWS) - 1
    groups = np.arange(NUM_CATEGORIES) // CATEGORIES_PER_GROUP
    is_foreign = np.arange(NUM_TOPICS) % (groups[-1] + 1) != groups[:, None]
    by_group = random.random((NUM_CATEGORIES, NUM_TOPICS))[groups] + is_foreign
    preferences = np.argsort(by_group + GROUP_SPREAD * random.random((NUM_CATEGORIES, NUM_TOPICS)), axis=1)
    near = np.minimum(random.geometric(TOPIC_GAP, size=(count, most)), WIDEST_GAP)
    wide = random.integers(1, WIDEST_GAP + 1, size=(count, most))
    gaps = np.where(random.random((count, most)) < WIDE_GAPS, wide, near)
    topics = preferences[category[:, None], np.cumsum(gaps, axis=1) - 1]
    confidence = _falling(random, 0.05 + 0.35 * random.random(count) ** 2, most, 0.5, 0.95)
    has = np.arange(most) < random.permutation(_row_counts(TOPIC_ROWS, count))[:, None]
    return np.where(has, topics, -1), np.where(has, confidence, 0)


def _falling(random: np.random.Generator, first: np.ndarray, length: int, low: float, high: float) -> np.ndarray:
    """Return confidences that decrease by a random factor per slot, at least 0.0001, to six decimals, [n, length]."""
    factors = low + (high - low) * random.random((len(first), length))
    factors[:, 0] = first
    return np.round(np.maximum(np.cumprod(factors, axis=1), 1e-4), 6)


def _row_counts(shares: tuple[float, ...], count: int) -> np.ndarray:
    """Return ascending numbers of rows in exactly the given proportions, [count] int64."""
    return pick(cumulative(np.asarray(shares)), (np.arange(count) + 0.5) / count)


def _some(random: np.random.Generator, count: int, share: float) -> np.ndarray:
    """Choose exactly round(share * count) elements at random, [count] bool."""
    return random.permutation(count) < round(share * count)


def _publish_times(random: np.random.Generator, count: int) -> np.ndarray:
    """Draw publish times, mostly recent and half of them at midnight, as published: [count] datetime64[s]."""
    hours = np.floor(random.exponential(24 * 60, size=count)).astype(np.int64)
    hours = np.where(random.random(count) < 0.5, hours - hours % 24, hours)
    times = LATEST_PUBLISH_TIME - hours.astype("timedelta64[h]")
    times[_some(random, count, NO_PUBLISH_TIME)] = np.datetime64("NaT")
    return times


@dataclass(frozen=True)
class Ads:
    """All ads, in order of ad_id: index 0 is ad 1.

    Attributes:
        document: [n] int64 index of the promoted document.
        campaign, advertiser: [n] int64 numbers, from 0.
        cumulative_by_day: [15, n] float64 cumulative probabilities that a slot shows each ad, by day.
    """

    document: np.ndarray
    campaign: np.ndarray
    advertiser: np.ndarray
    cumulative_by_day: np.ndarray

    @property
    def shown(self) -> np.ndarray:
        """[n] float64 how often each ad is shown, as fractions."""
        shares: np.ndarray = np.diff(self.cumulative_by_day, axis=1, prepend=0).mean(axis=0)
        return shares


def make_ads(source: RandomSource, displays: int, rows_by_day: np.ndarray, num_documents: int) -> Ads:
    """Draw all ads.

    Args:
        source: source of random numbers.
        displays: number of training displays.
        rows_by_day: [2, 15] float64 expected rows of training (row 0) and test (row 1) on each day.
        num_documents: number of documents; some are promoted, by at least one ad each.
    """
    random = source.generator("ads")
    rows = random.permutation(_expected_rows(displays, rows_by_day[0].sum()))
    # No display shows an ad twice, so an ad in a fraction s of the displays needs slots at a rate of -log(1 - s).
    intensity = -np.log1p(-rows / displays)
    campaign = _groups(random, len(rows), max(MIN_CAMPAIGNS, round(CAMPAIGNS_PER_AD * len(rows))))
    alive = _alive(random, campaign) | (rows > min(WINDOW_ROWS, 0.1 * displays))[:, None]
    share_of_training = rows_by_day[0] / rows_by_day[0].sum()
    weights = alive * (intensity / (alive @ share_of_training))[:, None]
    weights /= weights.sum(axis=0)
    late = random.permutation(_late_rows(weights, rows_by_day))
    if len(late):
        weights, campaign = _with_late(random, weights, campaign, late / rows_by_day[1, TRAIN_DAYS:].sum())
    count, num_campaigns = len(campaign), int(campaign[-1]) + 1
    advertiser = _groups(random, num_campaigns, max(MIN_ADVERTISERS, round(ADVERTISERS_PER_AD * count)))
    promoted = _groups(random, count, min(num_documents, round(DOCUMENTS_PER_AD * count)))
    documents = random.permutation(num_documents)[: promoted[-1] + 1]
    return Ads(documents[promoted], campaign, advertiser[campaign], cumulative(weights.T))


def _expected_rows(displays: int, total: float) -> np.ndarray:
    """Return the expected training rows of each ad, ascending and summing to `total`, [ads] float64."""
    most = min(MAX_ROWS, MAX_DISPLAY_SHARE * displays)
    count = max(MIN_ALL_ADS, round(total / _rows_at_quantiles(100_000, most).mean()))
    rows = _rows_at_quantiles(count, most)
    return rows * total / rows.sum()


def _rows_at_quantiles(count: int, most: float) -> np.ndarray:
    quantiles = (np.arange(count) + 0.5) / count
    body = MEDIAN_ROWS * (quantiles / (1 - quantiles)) ** ROWS_EXPONENT
    into_tail = np.maximum(0, quantiles - (1 - TAIL_SHARE)) / TAIL_SHARE
    tail = TAIL_START * (MAX_ROWS / TAIL_START) ** into_tail
    rows = np.where(into_tail > 0, tail, np.minimum(body, TAIL_START))
    return np.clip(rows, FLOOR_ROWS, most)


def _groups(random: np.random.Generator, count: int, groups: int) -> np.ndarray:
    """Return ascending group numbers of members, [count] int64; groups have at least one member and varying sizes."""
    groups = min(groups, count)
    others = random.choice(groups, size=count - groups, p=random.dirichlet(np.full(groups, 2.0)))
    return np.sort(np.concatenate([np.arange(groups), others]))


def _alive(random: np.random.Generator, campaign: np.ndarray) -> np.ndarray:
    """Return whether the campaign of each ad runs on each day, [ads, 15] bool; every second one runs on all days."""
    campaigns = int(campaign[-1]) + 1
    begin = random.integers(0, TRAIN_DAYS - WINDOW_DAYS + 1, size=campaigns)
    end = begin + WINDOW_DAYS + random.integers(0, ALL_DAYS - WINDOW_DAYS + 1, size=campaigns)
    begin[::2], end[::2] = 0, ALL_DAYS
    days = np.arange(ALL_DAYS)
    return (begin[campaign][:, None] <= days) & (days < end[campaign][:, None])


def _late_rows(weights: np.ndarray, rows_by_day: np.ndarray) -> np.ndarray:
    """Return the expected test rows of each ad first shown on the last two days, [late ads] float64.

    The number of such ads is chosen to match TEST_ADS_SEEN, given the [ads, 15] weights of the other ads.
    """
    in_train, in_test = (-np.expm1(-(weights @ rows)) for rows in rows_by_day)
    unseen = (in_train * in_test).sum() / TEST_ADS_SEEN - in_test.sum()
    last_days = rows_by_day[1, TRAIN_DAYS:].sum()
    quantiles = (np.arange(1000) + 0.5) / 1000
    scale = 3.0
    while unseen > 0:
        rows = scale * (quantiles / (1 - quantiles)) ** 0.7
        count = round(unseen / -np.expm1(-rows).mean())
        if count * rows.mean() <= LATE_ROWS_SHARE * last_days or scale < 0.5:
            return np.interp((np.arange(count) + 0.5) / max(1, count), quantiles, rows)
        scale *= 0.8
    return np.empty(0)


def _with_late(
    random: np.random.Generator, weights: np.ndarray, campaign: np.ndarray, shares: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Add ads first shown on the last days; return the weights and campaigns of all ads, in order of campaign.

    Args:
        random: generator of the ads.
        weights, campaign: [ads, 15] float64 weights and [ads] int64 campaigns of the other ads.
        shares: [late ads] fraction of the slots of the last days, for each new ad.
    """
    added = np.zeros((len(shares), ALL_DAYS))
    added[:, TRAIN_DAYS:] = shares[:, None]
    weights = weights.copy()
    weights[:, TRAIN_DAYS:] *= 1 - shares.sum()
    campaigns = np.concatenate([campaign, random.choice(campaign, size=len(shares))])
    order = np.lexsort([random.random(len(campaigns)), campaigns])
    return np.concatenate([weights, added])[order], campaigns[order]


@dataclass(frozen=True)
class Locations:
    """All values of geo_location.

    Attributes:
        texts: [n] values, str or None.
        region: [n] int64 number of the US state or other country, which taste depends on.
        num_regions: number of regions.
        shares: [n] float64 fraction of the users at each value.
    """

    texts: np.ndarray
    region: np.ndarray
    num_regions: int
    shares: np.ndarray


def make_locations() -> Locations:
    """Return all locations: the US by state and DMA, other countries by a power law, `--` and no value."""
    rows: list[tuple[str | None, int, float]] = []
    state_shares = US_SHARE / (np.arange(len(STATES)) + 4.0)
    state_shares *= US_SHARE / state_shares.sum()
    nowhere = len(STATES) + len(COUNTRIES)
    rows.append(("US", nowhere, ONE_PART * US_SHARE))
    for number, (state, share) in enumerate(zip(STATES, state_shares * (1 - ONE_PART), strict=True)):
        rows.append((f"US>{state}", number, TWO_PARTS * share))
        areas = 1 + 5 * (len(STATES) - number) // len(STATES)
        rows += [
            (f"US>{state}>{500 + 7 * number + area}", number, (1 - TWO_PARTS) * share / areas) for area in range(areas)
        ]
    country_shares = (np.arange(len(COUNTRIES)) + 1.0) ** -1.2
    country_shares *= (1 - US_SHARE - UNKNOWN_LOCATION - NO_LOCATION) / country_shares.sum()
    for number, (country, share) in enumerate(zip(COUNTRIES, country_shares, strict=True), len(STATES)):
        rows.append((country, number, 0.1 * share))
        rows += [(f"{country}>{region}", number, 0.9 * share / len(REGIONS)) for region in REGIONS]
    rows += [("--", nowhere, UNKNOWN_LOCATION), (None, nowhere, NO_LOCATION)]
    texts, regions, shares = zip(*rows, strict=True)
    return Locations(np.array(texts, object), np.array(regions), nowhere + 1, np.array(shares) / sum(shares))


def hex_digits(words: np.ndarray) -> np.ndarray:
    """Convert [n] uint64 words to 16 hex digits each, [n] bytes."""
    return HEX_PAIRS[np.ascontiguousarray(words).view(np.uint8)].view("S16")


def users_of_events(source: RandomSource, events: int) -> np.ndarray:
    """Draw the user of each event, [events] int32 numbers in [0, number of users)."""
    times = np.arange(2, MAX_EVENTS + 1)
    shares = times**-EVENTS_EXPONENT
    shares *= (1 - ONCE) / shares.sum()
    users = events / (ONCE + shares @ times)
    # Cumulative counts are rounded, not single ones, so that rare frequencies occur in the right proportion.
    repeated = np.repeat(times, np.diff(np.floor(np.cumsum([0, *shares[::-1]]) * users + 0.5).astype(np.int64))[::-1])
    once = events - int(repeated.sum())
    counts = np.concatenate([np.ones(once, np.int64), repeated])
    return source.generator("users").permutation(np.repeat(np.arange(len(counts), dtype=np.int32), counts))


@dataclass(frozen=True)
class ClickModel:
    """Parameters of the utilities.

    Attributes:
        region_taste, platform_taste, hour_taste: [regions, 6], [3, 6] and [4, 6] parts of users' taste vectors, by
            region, platform and six-hour band of the day.
        traits: [documents, 6] float64 vectors of documents, which are multiplied with tastes.
        ad_effect: [ads] float64 sum of the ad effects.
        landing_publisher: [publishers + 1, 4] vectors of publishers; the last one is zero, for documents without one.
        advertiser_group: [ads, 4] vector of each ad's advertiser group.
        promoted: [ads] int64 row of each ad's document in `directions`.
        directions: [promoted documents, 300] float32 L2-normalized topic confidences.
    """

    region_taste: np.ndarray
    platform_taste: np.ndarray
    hour_taste: np.ndarray
    traits: np.ndarray
    ad_effect: np.ndarray
    landing_publisher: np.ndarray
    advertiser_group: np.ndarray
    promoted: np.ndarray
    directions: np.ndarray


def make_click_model(source: RandomSource, documents: Documents, ads: Ads, locations: Locations) -> ClickModel:
    """Draw all effects and vectors, scaled to the variances above, weighted by how often ads are shown."""
    random = source.generator("signal")
    shown = ads.shown
    traits = _traits(random, documents)
    # The mean squared norm over shown ads is fixed, so that the data of every seed is equally hard.
    traits *= TASTE_SD / np.sqrt(shown @ (traits[ads.document] ** 2).sum(axis=1))
    groups = random.standard_normal((ADVERTISER_GROUPS, PUBLISHER_DIMS))
    groups = groups[random.integers(ADVERTISER_GROUPS, size=int(ads.advertiser.max()) + 1)][ads.advertiser]
    groups *= PUBLISHER_BY_ADVERTISER_SD / np.sqrt(shown @ (groups**2).sum(axis=1))
    landing = _standardized(random.standard_normal((documents.num_publishers, PUBLISHER_DIMS)))
    # Tastes are centered with the fractions of users as weights, so that they favor no document on average.
    region_shares = np.bincount(locations.region, locations.shares, locations.num_regions)
    hour_shares = np.full(HOUR_BANDS, 1 / HOUR_BANDS)
    parts = ((region_shares, LOCATION_PART), (PLATFORM_SHARES, PLATFORM_PART), (hour_shares, HOURS_PART))
    region, platform, hour = (
        np.sqrt(part) * _standardized(random.standard_normal((len(shares), TASTE_DIMS)), shares)
        for shares, part in parts
    )
    promoted, rows = np.unique(ads.document, return_inverse=True)
    return ClickModel(
        region_taste=region,
        platform_taste=platform,
        hour_taste=hour,
        traits=traits,
        ad_effect=_ad_effect(random, documents, ads, shown),
        landing_publisher=np.concatenate([landing, np.zeros((1, PUBLISHER_DIMS))]),
        advertiser_group=groups,
        promoted=rows,
        directions=_topic_directions(documents, promoted),
    )


def _traits(random: np.random.Generator, documents: Documents) -> np.ndarray:
    by_category = np.concatenate([random.standard_normal((NUM_CATEGORIES, TASTE_DIMS)), np.zeros((1, TASTE_DIMS))])
    by_topic = random.standard_normal((NUM_TOPICS, TASTE_DIMS))
    traits = np.sqrt(CATEGORY_PART) * by_category[documents.categories[:, 0]]
    norms = np.sqrt((documents.topic_confidence**2).sum(axis=1))
    weights = np.sqrt(TOPIC_PART) * documents.topic_confidence / np.where(norms > 0, norms, 1)[:, None]
    for slot in range(weights.shape[1]):
        traits += weights[:, slot, None] * by_topic[documents.topics[:, slot]]
    return traits


def _ad_effect(random: np.random.Generator, documents: Documents, ads: Ads, shown: np.ndarray) -> np.ndarray:
    levels = [
        (ads.advertiser, ADVERTISER_SD),
        (ads.campaign, CAMPAIGN_SD),
        (documents.publisher[ads.document], PUBLISHER_SD),
        (documents.categories[ads.document, 0], CATEGORY_SD),
        (np.arange(len(ads.document)), AD_SD),
    ]
    total = np.zeros(len(ads.document))
    for numbers, deviation in levels:
        effects = random.standard_normal(int(numbers.max()) + 2)
        effects[-1] = 0  # for number -1, no value
        by_ad = effects[numbers] - shown @ effects[numbers]
        total += deviation * by_ad / np.sqrt(shown @ by_ad**2)
    # With few advertisers, the levels are correlated by chance; rescale the sum to the variance of independent levels.
    return total * np.sqrt(sum(deviation**2 for _, deviation in levels) / (shown @ total**2))


def _topic_directions(documents: Documents, chosen: np.ndarray) -> np.ndarray:
    """Return L2-normalized topic confidences of documents, [n, 300] float32; zeros for those without topics."""
    table = np.zeros((len(chosen), NUM_TOPICS), np.float32)
    rows, slots = np.nonzero(documents.topics[chosen] >= 0)
    table[rows, documents.topics[chosen][rows, slots]] = documents.topic_confidence[chosen][rows, slots]
    return _unit_length(table)


def _standardized(vectors: np.ndarray, shares: np.ndarray | None = None) -> np.ndarray:
    """Scale [n, dims] vectors to mean 0 and variance 1 in each dimension, weighted by `shares`."""
    shares = np.full(len(vectors), 1 / len(vectors)) if shares is None else shares
    vectors = vectors - shares @ vectors
    return vectors / np.sqrt(shares @ vectors**2)


@dataclass(frozen=True)
class SyntheticOutbrain:
    """Everything that is drawn before the displays. Events are numbered from 0, training events first.

    Attributes:
        source: source of the random numbers of displays and users.
        displays, test_displays: numbers of training and test displays.
        documents, ads, locations: all documents, ads and values of geo_location.
        model: click model.
        event_users: [displays + test_displays] int32 user of each event. Users are numbers from 0.
        without_platform: int64 numbers of the few events without a platform.
    """

    source: RandomSource
    displays: int
    test_displays: int
    documents: Documents
    ads: Ads
    locations: Locations
    model: ClickModel
    event_users: np.ndarray
    without_platform: np.ndarray

    @property
    def events(self) -> int:
        """Number of training and test displays."""
        return self.displays + self.test_displays

    def timestamps(self, events: np.ndarray) -> np.ndarray:
        """Return the times of events, [n] int64 milliseconds since the origin.

        Times ascend with the event number within training and within test: the n-th display is at a random point of
        the n-th of equal fractions of the traffic.
        """
        in_test = events >= self.displays
        position = np.where(in_test, events - self.displays, events) + self.source.uniform("time", events)
        quantiles = position / np.where(in_test, self.test_displays, self.displays)
        times = np.where(in_test, _clock_times(quantiles, TEST_DAY_SHARES), _clock_times(quantiles, TRAIN_DAY_SHARES))
        whole: np.ndarray = np.clip(times.astype(np.int64), FIRST_TIMESTAMP, LAST_TIMESTAMP)
        whole[events == 0] = FIRST_TIMESTAMP
        whole[events == self.events - 1] = LAST_TIMESTAMP
        return whole

    def uuids(self, users: np.ndarray) -> np.ndarray:
        """Return uuids of 14 to 16 hex digits, [n] bytes."""
        digits = hex_digits(self.source.hashes("uuid", users)).view("S1").reshape(-1, 16).copy()
        longer = self.source.uniform("uuid length", users)
        digits[longer >= LONGER_UUID / 2, 15] = b""
        digits[longer >= LONGER_UUID, 14] = b""
        return digits.view("S16").reshape(-1)

    def location(self, users: np.ndarray) -> np.ndarray:
        """Return indices into `locations`, [n] int64."""
        return pick(cumulative(self.locations.shares), self.source.uniform("place", users))

    def platform(self, users: np.ndarray) -> np.ndarray:
        """Return platforms, [n] int64: 1 desktop, 2 mobile, 3 tablet."""
        return 1 + pick(cumulative(PLATFORM_SHARES), self.source.uniform("platform", users))

    def tastes(self, users: np.ndarray, locations: np.ndarray, timestamps: np.ndarray) -> np.ndarray:
        """Return the taste vectors of users at locations (indices) and times, [n, 6] float64."""
        bands = timestamps % DAY_MS * HOUR_BANDS // DAY_MS
        personal = self.source.normal("personal taste", users, TASTE_DIMS) * np.sqrt(PERSONAL_PART)
        model, regions = self.model, self.locations.region[locations]
        platforms = self.platform(users) - 1
        return model.region_taste[regions] + model.platform_taste[platforms] + model.hour_taste[bands] + personal

    def utilities(self, taste: np.ndarray, landing: np.ndarray, display: np.ndarray, ad: np.ndarray) -> np.ndarray:
        """Return the utilities of rows, [rows] float64.

        Args:
            taste: [displays, 6] taste vectors.
            landing: [displays] indices of the documents that show the displays.
            display: [rows] display of each row, an index into `taste` and `landing`.
            ad: [rows] index of each row's ad.
        """
        model, documents = self.model, self.documents
        by_taste = np.einsum("rd,rd->r", taste[display], model.traits[self.ads.document[ad]])
        publishers = model.landing_publisher[documents.publisher[landing]]
        by_publisher = np.einsum("rd,rd->r", publishers[display], model.advertiser_group[ad])
        # Cosine of both documents' topic confidences; 0 if one has no topics.
        topics, confidence = documents.topics[landing], _unit_length(documents.topic_confidence[landing])
        cosine = np.zeros(len(ad))
        for slot in range(topics.shape[1]):  # an absent topic (-1) has confidence 0
            cosine += confidence[display, slot] * model.directions[model.promoted[ad], topics[display, slot]]
        return model.ad_effect[ad] + by_taste + by_publisher + COSINE_WEIGHT * cosine


def make_synthetic(displays: int, seed: int) -> SyntheticOutbrain:
    """Draw everything but the displays.

    Args:
        displays: number of training displays, at least 50.
        seed: seed of all random numbers.
    """
    source = RandomSource(seed)
    test_displays = round(TEST_SHARE * displays)
    events = displays + test_displays
    root = np.sqrt(events / PUBLISHED_EVENTS)
    documents = make_documents(
        source,
        max(MIN_DOCUMENTS, round(PUBLISHED_DOCUMENTS * events / PUBLISHED_EVENTS)),
        max(MIN_PUBLISHERS, round(PUBLISHED_PUBLISHERS * root)),
        max(MIN_SOURCES, round(PUBLISHED_SOURCES * root)),
    )
    rows_by_day = MEAN_ADS * np.stack([displays * TRAIN_DAY_SHARES, test_displays * TEST_DAY_SHARES])
    ads = make_ads(source, displays, rows_by_day, len(documents.ids))
    locations = make_locations()
    without_platform = max(int(displays >= 1000), round(PUBLISHED_WITHOUT_PLATFORM * events / PUBLISHED_EVENTS))
    return SyntheticOutbrain(
        source=source,
        displays=displays,
        test_displays=test_displays,
        documents=documents,
        ads=ads,
        locations=locations,
        model=make_click_model(source, documents, ads, locations),
        event_users=users_of_events(source, events),
        without_platform=source.generator("no platform").integers(events, size=without_platform),
    )


def _clock_times(quantiles: np.ndarray, day_shares: np.ndarray) -> np.ndarray:
    """Return the times at quantiles of the traffic, [n] float64 milliseconds since the origin.

    Args:
        quantiles: [n] quantiles in [0, 1).
        day_shares: [days] fraction of the traffic on each day.
    """
    by_hour = np.outer(day_shares, np.asarray(HOURLY) / sum(HOURLY)).ravel()
    used = np.flatnonzero(by_hour)[-1] + 1  # without the hours after the last event
    edges = np.concatenate([[0], np.cumsum(by_hour[:used])])
    return np.interp(quantiles, edges / edges[-1], np.arange(len(edges)) * DAY_MS / 24)


@dataclass(frozen=True)
class Displays:
    """Consecutive displays; their rows are the ads of each display in ascending order, display after display.

    Attributes:
        events: [n] int64 event numbers, display_id minus 1.
        users: [n] int64 numbers of the users.
        landing: [n] int64 indices of the documents that show the display.
        timestamps: [n] int64 milliseconds since Outbrain's origin.
        platforms: [n] int64 platforms, 1 to 3.
        locations: [n] int64 indices into `Locations`.
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
    locations: np.ndarray
    sizes: np.ndarray
    ads: np.ndarray
    probabilities: np.ndarray
    clicked: np.ndarray

    def best_map(self) -> np.ndarray:
        """Return the expected AP@12 of each display when ranked by the true probabilities, [n] float64.

        Since one ad is clicked and at most 12 are shown, it is the sum over ranks of probability / rank.
        """
        padded = np.zeros((len(self.events), MAX_ADS))
        padded[np.arange(MAX_ADS) < self.sizes[:, None]] = self.probabilities
        return -np.sort(-padded, axis=1) @ (1 / np.arange(1, MAX_ADS + 1))


def draw_displays(outbrain: SyntheticOutbrain, begin: int, end: int) -> Displays:
    """Draw the events [begin, end); an event does not depend on the block that it is drawn in."""
    source, events = outbrain.source, np.arange(begin, end)
    users = outbrain.event_users[begin:end].astype(np.int64)
    locations, timestamps = outbrain.location(users), outbrain.timestamps(events)
    landing = outbrain.documents.popular(source.uniform("landing", events))
    sizes = MIN_ADS + pick(cumulative(np.asarray(AD_COUNT_SHARES)), source.uniform("size", events))
    shown = np.arange(MAX_ADS) < sizes[:, None]  # [displays, 12]
    ads = _draw_ads(outbrain, events, timestamps // DAY_MS, shown)
    taste = outbrain.tastes(users, locations, timestamps)
    utilities = np.full(shown.shape, -np.inf)
    utilities[shown] = outbrain.utilities(taste, landing, np.nonzero(shown)[0], ads)
    powers = np.exp(utilities - utilities.max(axis=1, keepdims=True))
    probabilities = powers / powers.sum(axis=1, keepdims=True)  # 0 in unused slots
    # The clicked slot, by inversion.
    passed = (np.cumsum(probabilities, axis=1) <= source.uniform("click", events)[:, None]).sum(axis=1)
    clicked = np.arange(MAX_ADS) == np.minimum(passed, sizes - 1)[:, None]
    return Displays(
        events=events,
        users=users,
        landing=landing,
        timestamps=timestamps,
        platforms=outbrain.platform(users),
        locations=locations,
        sizes=sizes,
        ads=ads,
        probabilities=probabilities[shown],
        clicked=clicked[shown],
    )


def _draw_ads(outbrain: SyntheticOutbrain, events: np.ndarray, days: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Draw distinct ads for each display by their frequency on its day, [rows] int64, ascending in a display.

    Repeated ads are redrawn until all ads of a display are distinct.
    """
    ads = np.full(shown.shape, ABSENT)
    rows, slots = np.nonzero(shown)
    attempt = 0
    while len(rows):
        uniforms = outbrain.source.uniform("ads", events[rows], slots, attempt)
        for day in np.unique(days[rows]):
            today = days[rows] == day
            ads[rows[today], slots[today]] = pick(outbrain.ads.cumulative_by_day[day], uniforms[today])
        rows, slots = _repeated(ads, np.unique(rows))
        attempt += 1
    return np.sort(ads, axis=1)[shown]


def _repeated(ads: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and slots of ads that an earlier slot of the same display already has."""
    order = np.argsort(ads[rows], axis=1, kind="stable")
    ordered = np.take_along_axis(ads[rows], order, axis=1)
    found, positions = np.nonzero((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != ABSENT))
    return rows[found], order[found, positions + 1]


def draw_page_views(outbrain: SyntheticOutbrain) -> dict[str, np.ndarray]:
    """Draw all page views, which are on day 0, sorted by document_id and otherwise unordered, as published.

    Returns:
        [views] int64 columns: `users`, `documents` (indices), `timestamps` and `traffic_sources` (1 to 3).
    """
    views = np.arange(round(VIEWS_PER_EVENT * outbrain.events))
    parts = [_view_block(outbrain, block) for block in blocks(views)]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(outbrain.documents.ids[columns["documents"]], kind="stable")
    return {name: column[order] for name, column in columns.items()}


def _view_block(outbrain: SyntheticOutbrain, views: np.ndarray) -> dict[str, np.ndarray]:
    source = outbrain.source
    event = (source.uniform("view event", views) * outbrain.events).astype(np.int64)
    strangers = int(outbrain.event_users.max()) + 1 + event  # as many further users, without events
    is_known = source.uniform("view known", views) < VIEWS_OF_EVENT_USERS
    users = np.where(is_known, outbrain.event_users[event], strangers)
    times = _clock_times(source.uniform("view time", views), TRAIN_DAY_SHARES[:1]).astype(np.int64)
    taste = outbrain.tastes(users, outbrain.location(users), times)
    offers = [outbrain.documents.popular(source.uniform("view document", views, slot)) for slot in range(VIEW_CHOICES)]
    offered = np.stack(offers, axis=1)
    liking = np.einsum("nd,ncd->nc", taste, outbrain.model.traits[offered])
    # Gumbel-max trick: the argmax of utilities plus Gumbel noise is a draw from their softmax.
    noise = [source.uniform("view liking", views, slot) for slot in range(VIEW_CHOICES)]
    best = np.argmax(liking - np.log(-np.log(np.stack(noise, axis=1))), axis=1)
    return {
        "users": users,
        "documents": offered[np.arange(len(views)), best],
        "timestamps": times,
        "traffic_sources": 1 + pick(cumulative(TRAFFIC_SHARES), source.uniform("view source", views)),
    }
