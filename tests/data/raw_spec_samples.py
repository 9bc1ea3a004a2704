"""A raw specification that uses everything, and changes to it."""

from datetime import date
from pathlib import Path
from typing import Any

from data.spec.raw.reader import raw_spec_from_dict
from tests.data.sample_specs import changed, problems_of


def raw_document() -> dict[str, Any]:
    """A valid raw specification, fresh at every call."""
    return {
        "feature_spec": {
            "click": {"dtype": "float32"},
            "liked": {"column": "rating", "encode": {"threshold": ">= 4"}, "given": "click", "missing": "ignore"},
            "sold": {"encode": {"map": {"yes": 1, "no": 0}}, "positive_weight": 2},
            "item": {"column": "item_id", "encode": {"vocabulary": {"min_count": 5}}, "embedding_dim": 16},
            "user": {"column": "user_id", "dtype": "int64", "encode": {"hash": 1000}},
            "slot": {"encode": "identity", "cardinality": 12},
            "hour": {"column": "ts", "format": "%Y-%m-%d %H:%M:%S", "encode": {"timestamp": "hour"}},
            "age_group": {"column": "age", "encode": {"boundaries": [18, 30, 50]}},
            "price_group": {"column": "price", "encode": {"quantiles": 10}},
            "site_by_hour": {"encode": {"cross": ["site_id", "hour"], "hash": 100000}},
            "item_by_slot": {"encode": {"cross": ["item", "slot"], "vocabulary": {"max_size": 100}}},
            "clicked": {"encode": {"vocabulary_of": "item"}, "separator": " ", "max_hotness": 50, "keep": "last",
                        "weights": "strength"},
            "strength": {"separator": " ", "encode": [{"fill": 1}]},
            "clicked_by_slot": {"encode": {"cross": ["slot", "clicked"], "hash": 9}, "max_hotness": 9, "keep": "last"},
            "seen": {
                "history": {"of": "item", "by": "user_id", "order": "ts", "where": "click", "last": 50},
                "encode": {"vocabulary_of": "item"},
            },
            "views": {"count": {"of": "item", "by": "user", "order": "ts", "window": "7d"}, "encode": ["log1p"]},
            "price": {"encode": [{"fill": "median"}, "log1p", "standardize"], "indicator": "price_missing"},
            "age": {"encode": {"clip": [0, 100]}},
            "item_rate": {
                "column": "item_id",
                "encode": {"target": {"label": "click", "smoothing": 10, "folds": 4, "outputs": ["ctr", "shown"]}},
            },
            "session": {"dtype": "int64"},
            "note": {},
        },
        "source_spec": {
            "logs": [
                {"type": "csv", "header": True, "files": ["logs/*.csv.gz"], "null": ["NA"]},
                {"type": "csv", "features": ["click", "x"], "files": ["a.tsv"], "separator": "\t", "quote": None},
                {"type": "parquet", "files": ["more"]},
            ],
            "new": [{"type": "parquet", "files": ["new/*.parquet"]}],
        },
        "split": {"from": "logs", "time": "ts", "valid_from": date(2014, 10, 29), "test_from": "2014-10-30T12:00:00"},
        "channel_spec": {
            "onehot_categorical": [
                "item", "user", "slot", "hour", "age_group", "price_group", "site_by_hour", "item_by_slot"
            ],
            "multihot_categorical": ["clicked", "seen", "clicked_by_slot"],
            "numerical": ["views", "price", "price_missing", "age", "ctr", "shown"],
            "label": ["click", "liked", "sold"],
            "map": ["session"],
        },
        "where": "rating >= 1",
        "sample_weight": "weight",
        "keep_negatives": 0.5,
        "keep": ["user_id", "ts"],
        "shuffle": True,
        "seed": 3,
        "metadata": {"origin": "a test"},
    }  # fmt: skip


def changed_raw(changes: dict[str, Any]) -> Any:
    """The valid raw document with other values at some paths (see `sample_specs.changed`)."""
    return changed(changes, raw_document())


def raw_problems(wrong: Any, folder: Path) -> list[str]:
    """The problems of an invalid raw document."""
    return problems_of(wrong, folder, raw_spec_from_dict)


def sequential_raw() -> Any:
    """The valid raw document with a sequence of lists in files and one of histories."""
    history = {"of": "item", "by": "user_id", "order": "ts", "where": "click", "last": 50}
    features = {
        "bought": {"separator": " ", "table": "item", "max_hotness": 9},
        "bought_slot": {"separator": " ", "table": "slot", "encode": "identity", "cardinality": 12},
        "bought_age": {"separator": " ", "encode": ["log1p"]},
        "viewed": {"history": history, "table": "item"},
        "viewed_price": {"history": history | {"of": "price"}, "encode": [{"fill": 0}]},
    }
    sequences = {
        "buys": {"features": ["bought", "bought_slot", "bought_age"], "target": ["item", "slot"]},
        "views": {"features": ["viewed", "viewed_price"], "target": ["item"], "encoder": "self_attention"},
    }
    return changed_raw(
        {f"feature_spec.{name}": keys for name, keys in features.items()} | {"channel_spec.sequence": sequences}
    )
