"""Documents of the synthetic Outbrain: source, publisher, publish time, categories, topics and entities."""

from dataclasses import dataclass

import numpy as np

from data.outbrain.synthetic.random import Draws, cumulative, pick, popular_index

NUM_CATEGORIES = 97  # as published
NUM_TOPICS = 300  # as published
# Probabilities of 0, 1, ... rows per document, chosen to give the published means: 5,481,475 categories, 11,325,960
# topics and 5,537,552 entities over 2,999,334 documents, that is 1.83, 3.78 and 1.85.
CATEGORY_ROWS = (0.02, 0.13, 0.85)
TOPIC_ROWS = (0.045, 0.10, 0.16, 0.20, 0.17, 0.12, 0.08, 0.05, 0.035, 0.02, 0.02)
ENTITY_ROWS = (0.36, 0.20, 0.14, 0.10, 0.07, 0.05, 0.04, 0.02, 0.01, 0.01)
# Fractions of missing cells in documents_meta, from public kernels of the competition.
NO_PUBLISH_TIME, NO_PUBLISHER, NO_SOURCE = 0.337, 0.021, 0.0008
NO_META = 0.005  # fraction of documents missing from documents_meta; chosen
ENTITIES_PER_DOCUMENT = 0.44  # 1,326,009 distinct entities over 2,999,334 documents
POPULARITY_HEAD = 20.0  # the popularity of the n-th document is proportional to 1 / (n + POPULARITY_HEAD); chosen
# Parameters of the draws of categories and topics; chosen.
FAVOURITES, FAVOURITE_SHARE = 4, 0.6
CATEGORIES_PER_GROUP, GROUP_SPREAD = 9, 0.2
TOPIC_GAP, WIDE_GAPS, WIDEST_GAP = 0.4, 0.12, NUM_TOPICS // (len(TOPIC_ROWS) - 1)
LATEST_PUBLISH_TIME = np.datetime64("2016-06-28T00:00:00", "s")


@dataclass(frozen=True)
class Documents:
    """All documents, the most viewed first; -1 marks a missing value.

    Attributes:
        ids: [n] int64 distinct document_ids.
        in_meta: [n] bool, whether the document is in documents_meta.
        source, publisher: [n] int64 numbers, from 0, as written to the tables; -1 also for documents not in
            documents_meta.
        num_publishers: number of publishers.
        publish_time: [n] datetime64[s] publish times, NaT if missing.
        categories: [n, 2] int64 category numbers, from 0, the dominant one first.
        category_confidence: [n, 2] float64 confidences as written, descending; 0 where there is no category.
        topics: [n, 10] int64 topic_ids.
        topic_confidence: [n, 10] float64 confidences as written, descending; 0 where there is no topic.
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
        """Map uniform numbers to documents drawn by popularity, [n] int64 indices."""
        return popular_index(uniforms, len(self), POPULARITY_HEAD)

    def topic_directions(self, chosen: np.ndarray) -> np.ndarray:
        """Return L2-normalized topic confidences of documents, [n, 300] float32; zeros for those without topics."""
        table = np.zeros((len(chosen), NUM_TOPICS), np.float32)
        rows, slots = np.nonzero(self.topics[chosen] >= 0)
        table[rows, self.topics[chosen][rows, slots]] = self.topic_confidence[chosen][rows, slots]
        norms = np.sqrt((table**2).sum(axis=1, keepdims=True))
        return table / np.where(norms > 0, norms, 1)


def category_ids() -> np.ndarray:
    """Return the category_id of each category, [97] int64: 1000 to 2006 in groups, resembling published ids."""
    groups, members = np.divmod(np.arange(NUM_CATEGORIES), CATEGORIES_PER_GROUP)
    return 100 * (10 + groups) + members


def make_documents(draws: Draws, count: int, num_publishers: int, num_sources: int) -> Documents:
    """Draw all documents, without their entities."""
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
    """Draw the entities of all documents.

    Returns:
        [n] int64 document indices, [n] int64 entity numbers and [n] float64 confidences.
    """
    random = draws.generator("entities")
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
    favourites = pick(overall, random.random((num_publishers, FAVOURITES)))
    favourite = favourites[publisher, random.integers(FAVOURITES, size=count)]
    first = np.where(random.random(count) < FAVOURITE_SHARE, favourite, pick(overall, random.random(count)))
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
