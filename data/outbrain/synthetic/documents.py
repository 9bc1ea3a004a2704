"""Documents of the synthetic Outbrain: source, publisher, publish time, categories, topics and entities."""

from dataclasses import dataclass

import numpy as np

from data.outbrain.synthetic.random import Draws, cumulative, pick, popular_index

NUM_CATEGORIES = 97  # as published
NUM_TOPICS = 300  # as published
# Rows per document at full scale: 5,481,475 categories, 11,325,960 topics and 5,537,552 entities over 2,999,334
# documents, that is 1.83, 3.78 and 1.85. The shares of the single numbers of rows are chosen to give these means.
CATEGORY_ROWS = (0.02, 0.13, 0.85)
TOPIC_ROWS = (0.045, 0.10, 0.16, 0.20, 0.17, 0.12, 0.08, 0.05, 0.035, 0.02, 0.02)
ENTITY_ROWS = (0.36, 0.20, 0.14, 0.10, 0.07, 0.05, 0.04, 0.02, 0.01, 0.01)
# Missing cells of documents_meta, from public kernels of the competition.
NO_PUBLISH_TIME, NO_PUBLISHER, NO_SOURCE = 0.337, 0.021, 0.0008
NO_META = 0.005  # share of documents that documents_meta lacks; chosen
ENTITIES_PER_DOCUMENT = 0.44  # 1,326,009 distinct entities over 2,999,334 documents
POPULARITY_HEAD = 20.0  # the popularity of the n-th document falls like 1 / (n + this); chosen
# How a document gets its category and topics; chosen.
FAVOURITES, FAVOURITE_SHARE = 4, 0.6
CATEGORIES_PER_GROUP, GROUP_SPREAD = 9, 0.2
TOPIC_GAP, WIDE_GAPS, WIDEST_GAP = 0.4, 0.12, NUM_TOPICS // (len(TOPIC_ROWS) - 1)
LATEST_PUBLISH_TIME = np.datetime64("2016-06-28T00:00:00", "s")


@dataclass(frozen=True)
class Documents:
    """All documents, the most viewed first; -1 stands for what a document has not.

    Attributes:
        ids: document_id, [n] int64, distinct.
        in_meta: whether documents_meta has it, [n] bool.
        source, publisher: 0-based numbers as the tables tell them, -1 also outside documents_meta, [n] int64.
        num_publishers: publishers are 0 ... num_publishers - 1.
        publish_time: NaT where missing, [n] datetime64[s].
        categories: 0-based, the dominant first, [n, 2] int64.
        category_confidence: falling, 0 where there is no category, [n, 2] float64, as written.
        topics: topic_id, [n, 10] int64.
        topic_confidence: falling, 0 where there is no topic, [n, 10] float64, as written.
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

    def __len__(self) -> int:
        return len(self.ids)

    def popular(self, uniforms: np.ndarray) -> np.ndarray:
        """Documents drawn by popularity, [n] int64 indices."""
        return popular_index(uniforms, len(self), POPULARITY_HEAD)

    def topic_directions(self, chosen: np.ndarray) -> np.ndarray:
        """Topic confidences of documents, divided by their Euclidean norm (zeros without topics), [n, 300] float32."""
        table = np.zeros((len(chosen), NUM_TOPICS), np.float32)
        rows, slots = np.nonzero(self.topics[chosen] >= 0)
        table[rows, self.topics[chosen][rows, slots]] = self.topic_confidence[chosen][rows, slots]
        norms = np.sqrt((table**2).sum(axis=1, keepdims=True))
        return table / np.where(norms > 0, norms, 1)


def category_ids() -> np.ndarray:
    """The category_id of each of the 97 categories: 1000 to 2100 in groups, like 1611, [97] int64."""
    groups, members = np.divmod(np.arange(NUM_CATEGORIES), CATEGORIES_PER_GROUP)
    return 100 * (10 + groups) + members


def make_documents(draws: Draws, count: int, num_publishers: int, num_sources: int) -> Documents:
    """Draws all documents but their entities."""
    random = draws.generator("documents")
    in_meta = random.random(count) >= NO_META
    publisher_of_source = np.concatenate(
        [np.arange(num_publishers), random.integers(num_publishers, size=num_sources - num_publishers)]
    )
    source = popular_index(random.random(count), num_sources, head=num_sources / 50)
    true_publisher = publisher_of_source[source]
    categories, category_confidence = _categories(random, true_publisher, num_publishers)
    topics, topic_confidence = _topics(random, categories[:, 0])
    has_category = random.permutation(_row_counts(CATEGORY_ROWS, count))[:, None] > np.arange(2)
    return Documents(
        ids=1 + random.permutation(count + count // 8)[:count],
        in_meta=in_meta,
        source=np.where(in_meta & ~_some(random, count, NO_SOURCE), source, -1),
        publisher=np.where(in_meta & ~_some(random, count, NO_PUBLISHER), true_publisher, -1),
        num_publishers=num_publishers,
        publish_time=_publish_times(random, count),
        categories=np.where(has_category, categories, -1),
        category_confidence=np.where(has_category, category_confidence, 0),
        topics=topics,
        topic_confidence=topic_confidence,
    )


def make_entities(draws: Draws, num_documents: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entities of all documents: document index [n] int64, entity number [n] int64, confidence [n] float64."""
    random = draws.generator("entities")
    num_entities = max(100, round(ENTITIES_PER_DOCUMENT * num_documents))
    counts = random.permutation(_row_counts(ENTITY_ROWS, num_documents))
    most = len(ENTITY_ROWS) - 1
    # Steps add up to less than the number of entities: no document has one twice.
    steps = 1 + popular_index(random.random((num_documents, most)), max(1, num_entities // (most + 1) - 1), head=10)
    steps[:, 0] = popular_index(random.random(num_documents), num_entities, head=50)
    numbers = np.cumsum(steps, axis=1) % num_entities
    confidence = _falling(random, 0.3 + 0.65 * random.random(num_documents), most, 0.5, 1.0)
    rows, slots = np.nonzero(np.arange(most) < counts[:, None])
    return rows, numbers[rows, slots], confidence[rows, slots]


def _categories(
    random: np.random.Generator, publisher: np.ndarray, num_publishers: int
) -> tuple[np.ndarray, np.ndarray]:
    """Two different categories of each document [n, 2] int64, and their confidences [n, 2] float64."""
    count = len(publisher)
    overall = cumulative(1 / (np.arange(NUM_CATEGORIES) + 10.0))
    favourites = pick(overall, random.random((num_publishers, FAVOURITES)))
    favourite = favourites[publisher, random.integers(FAVOURITES, size=count)]
    first = np.where(random.random(count) < FAVOURITE_SHARE, favourite, pick(overall, random.random(count)))
    second = (first + random.integers(1, NUM_CATEGORIES, size=count)) % NUM_CATEGORIES
    # As in the published tables: 0.92 and 0.07 nearly everywhere.
    top = np.where(random.random(count) < 0.8, 0.92, np.round(0.4 + 0.5 * random.random(count), 6))
    rest = np.where(top == 0.92, 0.07, np.round((1 - top) * (0.1 + 0.5 * random.random(count)), 6))
    return np.stack([first, second], axis=1), np.stack([top, rest], axis=1)


def _topics(random: np.random.Generator, category: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Topics [n, 10] int64 and confidences [n, 10] float64; documents of a category share topics.

    A category has an order of preference over all topics, much like that of the other categories of its group and
    with topics at its top that no other group has there; a document takes a few from the top, with gaps.
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
    """Confidences that fall by a random factor from slot to slot, at least 0.0001, six decimals, [n, length]."""
    factors = low + (high - low) * random.random((len(first), length))
    factors[:, 0] = first
    return np.round(np.maximum(np.cumprod(factors, axis=1), 1e-4), 6)


def _row_counts(shares: tuple[float, ...], count: int) -> np.ndarray:
    """Numbers of rows in just these shares, in rising order, [count] int64."""
    return pick(cumulative(np.asarray(shares)), (np.arange(count) + 0.5) / count)


def _some(random: np.random.Generator, count: int, share: float) -> np.ndarray:
    """A random choice of just this share (rounded) of `count`, [count] bool."""
    return random.permutation(count) < round(share * count)


def _publish_times(random: np.random.Generator, count: int) -> np.ndarray:
    """Mostly of the last weeks; half at midnight, as published, [count] datetime64[s]."""
    hours = np.floor(random.exponential(24 * 60, size=count)).astype(np.int64)
    hours = np.where(random.random(count) < 0.5, hours - hours % 24, hours)
    times = LATEST_PUBLISH_TIME - hours.astype("timedelta64[h]")
    times[_some(random, count, NO_PUBLISH_TIME)] = np.datetime64("NaT")
    return times
