"""A layout of features with every kind of encoder, and what the encoders make of raw rows."""

from pathlib import Path
from typing import Any

import numpy as np

from data.encoding.encoders import (
    BucketizedIds,
    CrossedIds,
    CrossInput,
    HashedIds,
    HashedRanks,
    IdentityIds,
    MissingIndicator,
    Numerical,
    TimestampIds,
    Vocabulary,
    encode_columns,
)
from data.encoding.keys import KeyTable
from data.spec.features import Feature
from data.spec.raw.spec import HashRule, RawFeature, RawSpec, Reading
from trainer.export.raw_columns import RawLayout
from trainer.export.rows import random_raw
from trainer.layout import CategoricalInput, InputSchema, SequenceInput, VectorInput

NAMES, CODES = [f"n\u00e9 {number}" for number in range(40)], [7, -3, 2**60, 0, 11]
TEXTS = ["a", "", "\u65e5\u672c", "x" * 40, "b\0c"]
LISTS = {"words": 3, "last_words": 2, "hashed_words": 3, "ranks": 4, "numbers": 3, "parts": 2, "moments": 3, "ids": 2}
# Crosses of lists: of ids that the model cuts shorter, of raw values, of a cross, of ids with weights, and of ids that
# only a cross reads.
LISTS |= {"words_by_hour": 4, "words_by_code": 3, "words_by_both": 5, "ids_by_day": 1, "codes_by_text": 2}
# Another cross of a list: of the steps of a sequence, null or not.
LISTS |= {"kind_by_hour": 5}
# Sequences: of texts with nulls inside, with every kind of number, and of a column that lists read, too.
SEQUENCES = (
    SequenceInput("clicks", 4, "mean", ("clicked", "kind", "place", "moment_clicked"), ("ages", "offsets")),
    SequenceInput("views", 3, "sum", ("viewed", "viewed_numbers"), ("viewed_rate",), newest_first=True),
)
VECTORS = (VectorInput("title", 5), VectorInput("title_again", 5), VectorInput("image", 2))
# Features that only crosses read.
ONLY_CROSSED = ("hour", "codes")
# Lists of which the last items are kept.
LAST = ("last_words", "words_by_code", "ids_by_day")
# Features whose ids have weights.
WEIGHTS = {"last_words": "weights_of_words", "ids": "weights_of_ids"}


def vocabulary(column: str, values: list, **more: object) -> Vocabulary:
    return Vocabulary(column, values, np.ones(len(values), np.int64), **more)


def every_encoder() -> dict:
    prices = (("fill", 3.5), ("log1p",), ("clip", 0.5, None), ("scale", 1.25, 0.75))
    crosses = {
        "name_by_hour": CrossedIds((CrossInput("name", True), CrossInput("hour", True)), HashedIds("", 1000, 2)),
        "text_by_code": CrossedIds((CrossInput("text", False), CrossInput("code", False)), HashedIds("", 50, 2)),
    }
    # Keys of one cross in the vocabulary of another, which itself crosses a cross.
    inputs = (CrossInput("name_by_hour", True), CrossInput("name", False))
    columns = {"name_by_hour": np.arange(5), "name": NAMES[:5]}
    known = CrossedIds(inputs, HashedIds("", 2)).keys(columns)
    pairs = {"words": [name for name in NAMES[:20] for _ in CODES], "code": CODES * 20}
    raw_pair = CrossInput("words", False), CrossInput("code", False)
    known_pairs = CrossedIds(raw_pair, HashedIds("", 2)).keys(pairs).tolist()
    words_by_hour = CrossInput("hour", True), CrossInput("words", True)
    both = CrossInput("words_by_hour", True), CrossInput("name", False)
    crosses |= {
        "words_by_hour": CrossedIds(words_by_hour, HashedIds("", 40, 2), "words"),
        "words_by_code": CrossedIds(raw_pair, vocabulary("", known_pairs, oov_buckets=3), "words"),
        "words_by_both": CrossedIds(both, HashedIds("", 60, 2), "words_by_hour"),
        "ids_by_day": CrossedIds((CrossInput("ids", True), CrossInput("day", True)), HashedIds("", 70, 2), "ids"),
        "codes_by_text": CrossedIds(
            (CrossInput("text", False), CrossInput("codes", True)), vocabulary("", [], oov_buckets=9), "codes"
        ),
        "codes": vocabulary("numbers", CODES, oov_buckets=5, is_list=True),
    }
    return (
        crosses
        | every_encoder_of_steps()
        | {
            "cross_of_cross": CrossedIds(inputs, vocabulary("", known.tolist(), oov_buckets=4)),
            "hour": TimestampIds("moment", "hour"),
            "weekday": TimestampIds("moment", "weekday"),
            "day": TimestampIds("moment", "day"),
            "name": vocabulary("name", NAMES),
            "name_shared": vocabulary("name", NAMES[:7], oov_buckets=9),
            "text": vocabulary("text", TEXTS, oov_buckets=3),
            "code": vocabulary("code", CODES),
            "code_shared": vocabulary("code", CODES[2:], oov_buckets=5),
            "nothing": vocabulary("code", []),
            "published": HashedIds("name", 30),
            "hashed": HashedIds("free", 30, 2),
            "hashed_code": HashedIds("code", 40, 2),
            "identity": IdentityIds("id", 60),
            "interval": BucketizedIds("level", (-1.0, 0.0, 0.1, 2.5)),
            "age_group": BucketizedIds("age", (18.0, 40.0)),
            "words": vocabulary("words", NAMES, oov_buckets=3, is_list=True),
            "last_words": vocabulary("words", NAMES[:9], is_list=True),
            "hashed_words": HashedIds("words", 20, 2, is_list=True),
            "ranks": HashedRanks("words", NAMES[3:20], 25),
            "numbers": vocabulary("numbers", CODES, oov_buckets=2, is_list=True),
            "parts": BucketizedIds("parts", (0.0, 1.0), is_list=True),
            "moments": TimestampIds("moments", "day", is_list=True),
            "ids": IdentityIds("ids", 60, is_list=True),
            "weights_of_words": Numerical("weights_of_words", None, (("fill", 0.5), ("clip", 0.1, 2.0)), is_list=True),
            "weights_of_ids": Numerical("weights_of_ids", None, (("fill", 0.0), ("log1p",)), is_list=True),
            "price": Numerical("price", None, prices),
            "price_2": Numerical(
                "price_2", None, (("fill", -0.5), ("log1p",), ("clip", None, 2.0), ("scale", 0.5, 0.0))
            ),
            "price_missing": MissingIndicator("price"),
            "age": Numerical("age", None, (("fill", 30.0), ("minmax", 10.0, 90.0))),
            "level": Numerical("level", None, (("fill", 0.0),)),
            "rate": Numerical("name", KeyTable(sorted(NAMES), np.arange(40.0), 7.5), (("scale", 2.0, 3.0),)),
            "rate_of_code": Numerical("code", KeyTable(sorted(CODES), np.arange(5.0), -1.0), (("minmax", 2.0, 2.0),)),
        }
    )


def every_encoder_of_steps() -> dict:
    ages = (("fill", 2.5), ("log1p",), ("clip", 0.5, None), ("scale", 1.25, 0.75))
    rates = KeyTable(sorted(NAMES), np.arange(40.0), 7.5)
    return {
        "clicked": vocabulary("clicked", NAMES[:12], oov_buckets=3, is_list=True),
        "kind": HashedIds("kind", 20, 2, is_list=True),
        "place": IdentityIds("place", 30, is_list=True),
        "moment_clicked": TimestampIds("moment_clicked", "weekday", is_list=True),
        "ages": Numerical("ages", None, ages, is_list=True),
        "offsets": Numerical("offsets", None, (("fill", 0.0), ("minmax", -1.0, 4.0)), is_list=True),
        "viewed": HashedRanks("viewed", NAMES[5:9], 30),
        "viewed_numbers": vocabulary("numbers", CODES[1:], is_list=True),
        "viewed_rate": Numerical("viewed", rates, (("scale", 2.0, 3.0),), is_list=True),
        "kind_by_hour": CrossedIds((CrossInput("kind", True), CrossInput("hour", True)), HashedIds("", 80, 2), "kind"),
    } | {name: Numerical(name.removesuffix("_again"), is_list=True) for name in (vector.name for vector in VECTORS)}


def make_layout() -> RawLayout:
    """The layout of a model of these features except those that only crosses read."""
    encoders = every_encoder()
    ids = [name for name, one in encoders.items() if hasattr(one, "cardinality") and name not in ONLY_CROSSED]
    columns, start = [], 0
    sequence_of = {name: own for own in SEQUENCES for name in own.features}
    longest = LISTS | {name: own.length for name, own in sequence_of.items()}
    for name in sorted(ids, key=lambda name: (name in sequence_of, name in LISTS, name)):
        hotness = longest.get(name, 1)
        size, weights = encoders[name].cardinality, WEIGHTS.get(name, "")
        sequence = sequence_of[name].name if name in sequence_of else ""
        columns.append(
            CategoricalInput(name, start, hotness, name in longest, size, 4, weights=weights, sequence=sequence)
        )
        start += hotness
    others = {
        *WEIGHTS.values(),
        *(vector.name for vector in VECTORS),
        *(one for own in SEQUENCES for one in own.numbers),
    }
    numbers = tuple(name for name, one in encoders.items() if not hasattr(one, "cardinality") and name not in others)
    return RawLayout.of(InputSchema(tuple(columns), numbers, SEQUENCES, VECTORS), encoders, make_raw_spec())


def make_raw_spec() -> RawSpec:
    """What the encoders do not say: types of hashed columns, and which items are kept."""
    readings = {
        "free": Reading("free", "free"),
        "kind": Reading("kind", "kind", is_list=True),
        "ages": Reading("ages", "ages", "int64", is_list=True),
        "moment": Reading("moment", "moment", "timestamp", format="%Y-%m-%d"),
        "age": Reading("age", "age", "int32"),
    }
    last = {
        name: RawFeature(Feature(name=name, max_hotness=LISTS[name]), None, HashRule(1), keep="last") for name in LAST
    }
    return RawSpec(Path(), readings, last, {}, None, {})


def encoded_rows(layout: RawLayout, raw: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs of a model, [rows, width] by feature name, by the encoders themselves."""
    encoded = encode_columns(layout.encoders, raw)
    made = {name: np.asarray(encoded[name])[:, None] for name in layout.model.numerical}
    made |= {vector.name: np.array([*encoded[vector.name]], np.float32) for vector in layout.model.vectors}
    for columns in layout.model.categorical:
        for name, padding, dtype in ((columns.name, -1, np.int32), (columns.weights, 0, np.float32)):
            if name and columns.multihot:
                is_last = columns.name in (*LAST, *SEQUENCES[0].features)
                made[name] = padded(encoded[name], columns.hotness, padding, dtype, is_last=is_last)
            elif name:
                made[name] = encoded[name].reshape(-1, 1).astype(dtype)
    for own in layout.model.sequences:
        for name in own.numbers:
            made[name] = padded(encoded[name], own.length, 0, np.float32, is_last=not own.newest_first)
    return made


def padded(lists: Any, width: int, padding: int, dtype: type, *, is_last: bool) -> np.ndarray:
    part = slice(-width, None) if is_last else slice(width)
    rows = [list(row[part]) for row in lists]
    return np.array([row + [padding] * (width - len(row)) for row in rows]).reshape(-1, width).astype(dtype)


def sample_rows(layout: RawLayout, rows: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Raw rows as encoders read them, and encoded."""
    raw = random_raw(layout, rows, seed=rows)
    return raw, encoded_rows(layout, raw)
