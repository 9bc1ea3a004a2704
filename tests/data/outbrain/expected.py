"""What both recipes must make of a sample, in plain Python and pandas: formula by formula, row by row."""

import math
import statistics
from collections import Counter, defaultdict
from datetime import UTC, datetime

import pandas as pd

from tests.data.outbrain.sample_data import DAY_MS, ORIGIN_MS, SampleTables
from tests.data.scalar_hash import scalar_hash, scalar_row_hash

BUCKETS = {
    "ad_id": 250000, "document_id": 300000, "platform": 4, "document_id_promo": 100000, "campaign_id": 5000,
    "advertiser_id": 2500, "source_id": 4000, "geo_location": 2500, "geo_location_country": 300,
    "geo_location_state": 2000, "publisher_id": 1000, "source_id_promo": 4000, "publisher_id_promo": 1000,
}  # fmt: skip
LISTS = {
    "topic_id_list": ("documents_topics", "topic_id", 350),
    "entity_id_list": ("documents_entities", "entity_id", 10000),
    "category_id_list": ("documents_categories", "category_id", 100),
}
SIMILARITIES = {"categories": "category_id", "topics": "topic_id", "entities": "entity_id"}
THRESHOLDS = {
    "ad_id": 5, "source_id_promo": 10, "document_id_promo": 5, "publisher_id_promo": 10, "advertiser_id": 10,
    "campaign_id": 10,
}  # fmt: skip
COUNTED = ("ad_id", "document_id_promo")
NUMERICAL = (
    *(f"document_id_document_id_promo_sim_{aspect}" for aspect in SIMILARITIES),
    *(f"{key}_ctr" for key in THRESHOLDS),
    *(f"{key}_count" for key in COUNTED),
    "publish_time_days_since_published",
    "publish_time_promo_days_since_published",
)


def joined_rows(sample: SampleTables, seed: int, *, published: bool) -> tuple[list[dict], list[dict]]:
    """Training and validation rows before encoding, in the order in which they are stored."""
    events = {row["display_id"]: row for row in sample.rows("events")}
    promoted = {row["ad_id"]: row for row in sample.rows("promoted_content")}
    meta = {row["document_id"]: row for row in sample.rows("documents_meta")}
    if published:
        largest = max(row["publisher_id"] or 0 for row in meta.values())
        for number, row in enumerate([row for row in meta.values() if row["publisher_id"] is None], 1):
            row["publisher_id"] = largest + 1 + number
    sizes = Counter(row["display_id"] for row in sample.rows("clicks_train"))
    train, valid = [], []
    for click in sample.rows("clicks_train"):
        row = {**click, **events[click["display_id"]], "display_ads": sizes[click["display_id"]]}
        ad = promoted.get(click["ad_id"], {})
        row |= {"document_id_promo": ad.get("document_id")}
        row |= {name: ad.get(name) for name in ("campaign_id", "advertiser_id")}
        for suffix, document in (("", row["document_id"]), ("_promo", row["document_id_promo"])):
            about = meta.get(document, {})
            row |= {name + suffix: about.get(name) for name in ("source_id", "publisher_id", "publish_time")}
        held_out = scalar_row_hash(seed, 0, row["display_id"]) < 0.2 * 2**64
        training = row["timestamp"] // DAY_MS <= 10 and not held_out
        row["fold"] = scalar_row_hash(seed, 1, row["display_id"]) % 10 if training else None
        (train if training else valid).append(row)
    train.sort(key=lambda row: scalar_row_hash(seed, 2, row["display_id"], row["ad_id"]))
    valid.sort(key=lambda row: (scalar_row_hash(seed, 2, row["display_id"]), row["ad_id"]))
    return train, valid


def expected(sample: SampleTables, seed: int, recipe: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The features of training and validation rows, in stored order."""
    published = recipe == "published"
    train, valid = joined_rows(sample, seed, published=published)
    for row in train + valid:
        _derive(row, published)
    encode = _published if published else _leak_free
    encode(sample, train, valid)
    return pd.DataFrame(train), pd.DataFrame(valid)


def _derive(row: dict, published: bool) -> None:
    geo = row["geo_location"]
    row["geo_location_country"] = None if geo is None else geo[:2]
    row["geo_location_state"] = None if geo is None else geo[:5]
    row["hour"] = row["timestamp"] // (60 * 60 * 1000) % 24
    row["weekday"] = row["timestamp"] // DAY_MS % 7
    if published:
        row["platform"] = (row["platform"] or 1) - 1
    for suffix in ("", "_promo"):
        days = None
        if row[f"publish_time{suffix}"] is not None:
            moment = datetime.fromisoformat(row[f"publish_time{suffix}"]).replace(tzinfo=UTC)
            days = (row["timestamp"] + ORIGIN_MS - round(moment.timestamp() * 1000)) // DAY_MS
            days = days if 0 <= days <= 3650 else 0
        row[f"days{suffix}"] = days


def _similarities(sample: SampleTables, rows: list[dict]) -> None:
    for aspect, column in SIMILARITIES.items():
        entries = sample.rows(f"documents_{aspect}")
        corpus = max(row["document_id"] for row in entries) + 1
        occurrences = Counter(row[column] for row in entries)
        raw = defaultdict(list)
        for row in entries:
            weight = row["confidence_level"] * math.log(corpus / occurrences[row[column]])
            raw[row["document_id"]].append((row[column], weight))
        vectors = {}
        for document, weights in raw.items():
            length = math.sqrt(sum(weight**2 for _, weight in weights))
            vectors[document] = defaultdict(float)
            for tag, weight in weights:
                vectors[document][tag] += weight / length
        for row in rows:
            first, second = vectors.get(row["document_id"], {}), vectors.get(row["document_id_promo"], {})
            cosine = sum(weight * second[tag] for tag, weight in first.items() if tag in second)
            row[f"document_id_document_id_promo_sim_{aspect}"] = cosine


def _days(train: list[dict], rows: list[dict], *, standardized: bool) -> None:
    for suffix in ("", "_promo"):
        known = [row[f"days{suffix}"] for row in train if row[f"days{suffix}"] is not None]
        median = statistics.median(known)
        logs = [math.log(1 + days) for days in known]
        mean, std = (statistics.mean(logs), statistics.stdev(logs)) if standardized else (0.0, 1.0)
        for row in rows:
            days = median if row[f"days{suffix}"] is None else row[f"days{suffix}"]
            row[f"publish_time{suffix}_days_since_published"] = (math.log(1 + days) - mean) / std


def _counts(train: list[dict], rows: list[dict]) -> None:
    for key in COUNTED:
        counts = Counter(row[key] for row in train if row[key] is not None)
        logs = [math.log(1 + counts[row[key]]) for row in train]
        mean, std = statistics.mean(logs), statistics.stdev(logs)
        for row in rows:
            row[f"{key}_count"] = (math.log(1 + counts[row[key]]) - mean) / std


def _lists(
    sample: SampleTables, rows: list[dict], document: str, table: str, column: str, by_confidence: bool
) -> list[list]:
    tags = defaultdict(list)
    for entry in sample.rows(table):
        tags[entry["document_id"]].append((entry[column], entry["confidence_level"]))
    if by_confidence:
        for entries in tags.values():
            entries.sort(key=lambda entry: -entry[1])
    return [[tag for tag, _ in tags.get(row[document], [])] for row in rows]


def _ranked(values: list) -> list:
    counts = Counter(values)
    return sorted(counts, key=lambda value: (-counts[value], value))


def _published(sample: SampleTables, train: list[dict], valid: list[dict]) -> None:
    rows = train + valid
    _similarities(sample, rows)
    _days(train, rows, standardized=False)
    _counts(train, rows)
    for key, least in THRESHOLDS.items():
        views = Counter(row[key] for row in train if row[key] is not None)
        clicks = Counter(row[key] for row in train if row[key] is not None and row["clicked"])
        for row in rows:
            row[f"{key}_ctr"] = clicks[row[key]] / views[row[key]] if views[row[key]] >= least else 0.0
    for name, (table, column, size) in LISTS.items():
        ranked = _ranked([tag for tags in _lists(sample, train, "document_id", table, column, False) for tag in tags])
        ranks = {tag: rank for rank, tag in enumerate(ranked, 1)}
        for row, tags in zip(rows, _lists(sample, rows, "document_id", table, column, False), strict=True):
            row[name] = [scalar_hash(ranks.get(tag, 0)) % size for tag in tags[:3]]
    for row in rows:
        row |= {name: 0 if row[name] is None else scalar_hash(row[name]) % size for name, size in BUCKETS.items()}


def _leak_free(sample: SampleTables, train: list[dict], valid: list[dict]) -> None:
    rows = train + valid
    _similarities(sample, rows)
    _days(train, rows, standardized=True)
    _counts(train, rows)
    for key in THRESHOLDS:
        rates = {id(row): _smoothed(row, key, train) for row in rows}
        mean = statistics.mean(rates[id(row)] for row in train)
        std = statistics.stdev(rates[id(row)] for row in train)
        for row in rows:
            row[f"{key}_ctr"] = (rates[id(row)] - mean) / std
    for name, (table, column, _) in LISTS.items():
        for document, feature in (("document_id", name), ("document_id_promo", name.replace("_list", "_promo_list"))):
            seen = [tag for tags in _lists(sample, train, document, table, column, True) for tag in tags]
            ids = {tag: 3 + rank for rank, tag in enumerate(_ranked(seen))}
            for row, tags in zip(rows, _lists(sample, rows, document, table, column, True), strict=True):
                row[feature] = [ids.get(tag, 2) for tag in tags[:3]]
    encoded = {}
    for name in (*BUCKETS, "hour", "weekday", "display_ads"):
        known = _ranked([row[name] for row in train if row[name] is not None])
        encoded[name] = {None: 1} | {value: 3 + rank for rank, value in enumerate(known)}
    for row in rows:
        row |= {name: ids.get(row[name], 2) for name, ids in encoded.items()}


def _smoothed(row: dict, key: str, train: list[dict]) -> float:
    """The rate over training rows of other folds (all of them for a validation row)."""
    others = [other for other in train if row["fold"] is None or other["fold"] != row["fold"]]
    prior = sum(other["clicked"] for other in others) / len(others)
    same = [other["clicked"] for other in others if row[key] is not None and other[key] == row[key]]
    return (sum(same) + 20 * prior) / (len(same) + 20)
