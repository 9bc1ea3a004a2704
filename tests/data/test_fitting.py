"""Fitted encoders equal independent pandas computations, and are bit-identical for any partitions."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.encoding.encoder_files import save_encoders
from data.encoding.encoders import Numerical, Vocabulary, encode_columns
from data.encoding.fitting import FittedFeatures, FittedTarget, Scratch, TargetFitter
from data.encoding.staged_columns import ROW, finished
from data.errors import DataError
from data.spec.features import Feature
from data.spec.raw.spec import (
    BoundariesRule,
    CrossRule,
    HashRule,
    IdentityRule,
    KeepRule,
    NumberRule,
    NumberStep,
    QuantilesRule,
    RawFeature,
    RawSpec,
    Reading,
    SharedVocabularyRule,
    TargetRule,
    ThresholdRule,
    TimestampRule,
    VocabularyRule,
)
from tests.data.scalar_hash import scalar_hash, scalar_row_hash

FOLDS, SEED, FOLD_PURPOSE = 3, 7, 1
READINGS = {
    reading.name: reading
    for reading in (
        Reading("shop", "shop"),
        Reading("code", "code", "int64"),
        Reading("tags", "tags", is_list=True, separator=" "),
        Reading("price", "price", "float64"),
        Reading("prices", "prices", "float64", is_list=True),
        Reading("ts", "ts", "timestamp"),
        Reading("bought", "bought", "float64"),
    )
}
MEDIAN, MEAN = NumberStep("fill", fill="median"), NumberStep("fill", fill="mean")
LOG, STANDARD, MINMAX = NumberStep("log1p"), NumberStep("standardize"), NumberStep("minmax")
RULES = {
    "shop": ("shop", VocabularyRule(min_count=2, oov_buckets=2)),
    "few": ("shop", VocabularyRule(max_size=2)),
    "code": ("code", VocabularyRule()),
    "tags": ("tags", VocabularyRule(min_count=2)),
    "tags_as_shops": ("tags", SharedVocabularyRule("shop")),
    "shop_hash": ("shop", HashRule(10)),
    "code_id": ("code", IdentityRule()),
    "hour": ("ts", TimestampRule("hour")),
    "price_class": ("price", BoundariesRule((1.0, 5.0))),
    "price_quarter": ("price", QuantilesRule(4)),
    "price_log": ("price", NumberRule((MEDIAN, LOG, STANDARD), "no_price")),
    "price_mean": ("price", NumberRule((MEAN, STANDARD))),
    "price_range": ("price", NumberRule((NumberStep("clip", low=1.0, high=50.0), MEAN, MINMAX))),
    "price_late": ("price", NumberRule((STANDARD, NumberStep("fill", fill=0.0)))),
    "prices": ("prices", NumberRule((MEDIAN, STANDARD))),
    "shop_by_hour": (None, CrossRule(("shop", "hour"), VocabularyRule(min_count=2))),
    "shop_by_code": (None, CrossRule(("shop_by_hour", "code"), HashRule(50))),
    "tags_by_hour": (None, CrossRule(("hour", "tags"), VocabularyRule(min_count=2), "tags")),
    "tags_by_code": (None, CrossRule(("tags_by_hour", "code"), HashRule(50), "tags_by_hour")),
    "rate": ("shop", TargetRule("bought", 2.0, FOLDS, "rate", "shop_count")),
    "bought": ("bought", ThresholdRule(">=", 1.0)),
    "group": ("code", KeepRule()),
}
SPEC = RawSpec(
    Path("."),
    READINGS,
    {
        name: RawFeature(Feature(name=name, cardinality=100 if name == "code_id" else None), reading, rule)
        for name, (reading, rule) in RULES.items()
    },
    {},
    None,
    {},
    seed=SEED,
)


def rows(size: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    shops = np.array(["bäcker", "kiosk", "markt", "", None, "日本"], object)
    prices = np.round(rng.lognormal(1, 1, size), 2)
    return pd.DataFrame(
        {
            "shop": rng.choice(shops, size, p=[0.4, 0.2, 0.2, 0.1, 0.05, 0.05]),
            "code": rng.zipf(1.5, size) % 90,
            "tags": [
                rng.choice(shops, rng.integers(0, 4)).tolist() if rng.random() < 0.9 else None for _ in range(size)
            ],
            "price": np.where(rng.random(size) < 0.2, np.nan, prices),
            "prices": [rng.choice(prices, rng.integers(0, 3)).tolist() for _ in range(size)],
            "ts": rng.integers(0, 10**15, size),
            "bought": rng.integers(0, 2, size).astype(np.float64),
            ROW: np.arange(size),
        }
    ).assign(**{finished("bought"): lambda frame: frame["bought"]})


def staged(frame: pd.DataFrame) -> pa.Table:
    """Return rows as they are staged."""
    types = {"tags": pa.list_(pa.string()), "prices": pa.list_(pa.float64()), "code": pa.int64(), "ts": pa.int64()}
    columns = {name: pa.array(frame[name], types.get(name), from_pandas=True) for name in frame.columns}
    columns["shop"] = columns["shop"].cast(pa.string()).dictionary_encode()
    return pa.table(columns)


def fitted(tables: list[pa.Table], scratch: Path, spec: RawSpec = SPEC, budget: int = 10**9) -> FittedFeatures:
    features = FittedFeatures(spec)
    while fitters := features.fitters(Scratch(scratch, budget)):
        done = {}
        for name, fitter in fitters.items():
            states = [fitter.part(table) for table in tables]
            while len(states) > 1:
                states = [*states[2:], fitter.merge(states[:2])]
            done[name] = fitter.finish(states[0])
        features.add(done)
    return features


def one_feature(rule, reading: str, frame: pd.DataFrame, scratch: Path, channel: str = "numerical"):
    spec = SimpleNamespace(**vars(SPEC))
    spec.features, spec.channels = {"x": RawFeature(Feature(name="x"), reading, rule)}, {channel: ("x",)}
    return fitted([staged(frame)], scratch, spec).encoders["x"]


@pytest.fixture(scope="module")
def train() -> pd.DataFrame:
    return rows(500, 0)


@pytest.fixture(scope="module")
def features(train, tmp_path_factory) -> FittedFeatures:
    return fitted([staged(train)], tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="module")
def encoded(train, features) -> dict:
    table = staged(train)
    return encode_columns(features.encoders, dict(zip(table.column_names, table.columns, strict=True)))


def test_all_features_get_an_encoder_in_order(features):
    inputs = [name for name in RULES if name not in ("bought", "group")]
    expected = [
        *inputs[: inputs.index("price_log") + 1],
        "no_price",
        *inputs[inputs.index("price_log") + 1 :],
        "shop_count",
    ]
    assert list(features.encoders) == features.names == expected
    assert FittedFeatures(SPEC).inputs == [*READINGS, ROW, finished("bought")]
    assert FittedFeatures(SPEC, features.encoders).inputs == [*READINGS, ROW]


def ranked(values: pd.Series, min_count: int = 1) -> list:
    counts = values.value_counts()
    counts = counts[counts >= min_count]
    return sorted(counts.index, key=lambda value: (-counts[value], value))


def test_vocabularies_are_ranked_by_count(train, features, encoded):
    shops = ranked(train["shop"], 2)
    assert features.encoders["shop"].values.to_pylist() == shops
    assert features.encoders["few"].values.to_pylist() == ranked(train["shop"])[:2]
    assert features.encoders["code"].values.to_pylist() == ranked(train["code"])
    assert features.encoders["tags"].values.to_pylist() == ranked(train["tags"].explode(), 2)
    assert features.encoders["shop"].counts.tolist() == [(train["shop"] == shop).sum() for shop in shops]
    wanted = [1 if shop is None else 4 + shops.index(shop) for shop in train["shop"]]
    assert encoded["shop"].tolist() == wanted


def test_a_shared_vocabulary_is_counted_on_the_other(train, features, encoded):
    shops = ranked(train["shop"], 2)
    wanted = [[1 if tag is None else 4 + shops.index(tag) for tag in tags or []] for tags in train["tags"]]
    assert encoded["tags_as_shops"].to_pylist() == wanted
    assert features.encoders["tags_as_shops"].is_list


def test_crosses_of_encoded_features(train, encoded):
    keys = [scalar_row_hash(int(shop), int(hour)) for shop, hour in zip(encoded["shop"], encoded["hour"], strict=True)]
    keys = np.array(keys, np.uint64).view(np.int64)
    known = ranked(pd.Series(keys), 2)
    wanted = [3 + known.index(key) if key in known else 2 for key in keys.tolist()]
    assert encoded["shop_by_hour"].tolist() == wanted
    pairs = zip(wanted, encoded["code"].tolist(), strict=True)
    assert encoded["shop_by_code"].tolist() == [2 + scalar_hash(scalar_row_hash(*pair)) % 50 for pair in pairs]


def test_crosses_of_lists_count_every_item(encoded):
    rows = list(zip(encoded["hour"].tolist(), encoded["tags"].to_pylist(), encoded["code"].tolist(), strict=True))
    keys = [[np.uint64(scalar_row_hash(hour, tag)).astype(np.int64) for tag in tags] for hour, tags, _ in rows]
    known = ranked(pd.Series([key for of_row in keys for key in of_row]), 2)
    assert len(known) > 20
    wanted = [[3 + known.index(key) if key in known else 2 for key in of_row] for of_row in keys]
    assert encoded["tags_by_hour"].to_pylist() == wanted
    crossed = [
        [2 + scalar_hash(scalar_row_hash(one, code)) % 50 for one in ids]
        for ids, (_, _, code) in zip(wanted, rows, strict=True)
    ]
    assert encoded["tags_by_code"].to_pylist() == crossed


def test_numbers_are_standardized_after_the_fill(train, encoded):
    logs = np.log1p(train["price"].fillna(train["price"].median()))
    np.testing.assert_allclose(encoded["price_log"], (logs - logs.mean()) / logs.std(), rtol=1e-5, atol=1e-6)
    filled = train["price"].fillna(train["price"].mean())
    np.testing.assert_allclose(encoded["price_mean"], (filled - filled.mean()) / filled.std(), rtol=1e-5, atol=1e-6)
    assert encoded["no_price"].tolist() == train["price"].isna().astype(float).tolist()


def test_a_fill_after_the_scale_does_not_enter_it(train, encoded):
    wanted = ((train["price"] - train["price"].mean()) / train["price"].std()).fillna(0.0)
    np.testing.assert_allclose(encoded["price_late"], wanted, rtol=1e-5, atol=1e-6)


def test_minmax_of_clipped_numbers(train, encoded):
    clipped = train["price"].clip(1, 50)
    filled = clipped.fillna(clipped.mean())
    wanted = (filled - filled.min()) / (filled.max() - filled.min())
    np.testing.assert_allclose(encoded["price_range"], wanted, rtol=1e-5, atol=1e-6)


def test_numbers_in_lists(train, encoded):
    items = train["prices"].explode().dropna().astype(float)
    wanted = ((items - items.mean()) / items.std()).to_numpy()
    np.testing.assert_allclose(encoded["prices"].values.to_numpy(), wanted, rtol=1e-5, atol=1e-6)
    assert [len(entry) for entry in encoded["prices"].to_pylist()] == train["prices"].map(len).tolist()


def test_quantiles_divide_the_training_values(train, encoded):
    known = encoded["price_quarter"][train["price"].notna()]
    shares = np.bincount(known, minlength=7)[3:] / len(known)
    assert (encoded["price_quarter"][train["price"].isna()] == 1).all()
    assert shares == pytest.approx([0.25] * 4, abs=0.02)


@pytest.mark.parametrize(
    ("values", "boundaries"), [([5.0] * 9, ()), ([0.0] * 8 + [1.0], ()), ([1.0, 2.0, 3.0, 4.0], (2.0, 3.0, 4.0))]
)
def test_quantiles_without_repetitions(tmp_path, values, boundaries):
    frame = rows(len(values), 0).assign(price=values)
    assert one_feature(QuantilesRule(4), "price", frame, tmp_path).boundaries == boundaries


def smoothed(train: pd.DataFrame, fold, shop) -> float:
    """By the definition: over the rows of a shop that are not in a fold."""
    others = train[train["fold"] != fold]
    same = others[others["shop"] == shop] if shop is not None else others[:0]
    prior = others["bought"].mean()
    return (same["bought"].sum() + 2.0 * prior) / (len(same) + 2.0) if shop is not None else prior


def test_target_statistics(train, features, encoded):
    folds = [scalar_row_hash(SEED, FOLD_PURPOSE, row) % FOLDS for row in train[ROW]]
    with_folds = train.assign(fold=folds)
    means = np.array([smoothed(with_folds, fold, shop) for fold, shop in zip(folds, train["shop"], strict=True)])
    center, scale = means.mean(), means.std(ddof=1)
    found = features.out_of_fold["rate"].encode(staged(train))
    np.testing.assert_allclose(found, (means - center) / scale, rtol=1e-4, atol=1e-5)
    wanted = [(smoothed(with_folds, None, shop) - center) / scale for shop in train["shop"]]
    np.testing.assert_allclose(encoded["rate"], wanted, rtol=1e-4, atol=1e-5)
    logs = np.log1p(train["shop"].map(train["shop"].value_counts()).fillna(0))
    np.testing.assert_allclose(encoded["shop_count"], (logs - logs.mean()) / logs.std(), rtol=1e-4, atol=1e-5)


def test_a_rows_own_label_is_not_in_its_rate(train, tmp_path):
    fitter = next(
        fitter
        for fitter in FittedFeatures(SPEC).fitters(Scratch(tmp_path)).values()
        if isinstance(fitter, TargetFitter)
    )
    for row in (0, 250, 499):
        changed = train.copy()
        changed.loc[row, finished("bought")] = 1 - changed.loc[row, finished("bought")]
        rates = []
        for frame in (train, changed):
            result: FittedTarget = fitter.finish(fitter.part(staged(frame)))
            _, center, scale = result.mean.steps[0]
            rates.append(result.out_of_fold.encode(staged(frame)) * scale + center)
        assert rates[0][row] == pytest.approx(rates[1][row], abs=1e-7)
        assert np.abs(rates[0] - rates[1]).max() > 1e-4


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 2**32), st.integers(1, 120), st.integers(1, 7), st.sampled_from([0, 200, 10**9]))
def test_encoders_do_not_depend_on_partitions(tmp_path_factory, seed, size, number, budget):
    frame = pd.concat([rows(size, seed), rows(3, 1).assign(price=[1.5, 2.5, 3.0], prices=[[1.0], [], [2.0]])])
    frame[ROW] = np.arange(len(frame))
    folder = tmp_path_factory.mktemp("partitions")
    whole = fitted([staged(frame)], folder)
    order = np.random.default_rng(seed).permutation(len(frame))
    parts = [staged(frame.iloc[part]) for part in np.array_split(order, number)]
    apart = fitted(parts, folder, budget=budget)
    assert saved(whole, folder / "whole") == saved(apart, folder / "apart")
    one, other = whole.out_of_fold["rate"], apart.out_of_fold["rate"]
    assert one.keys.equals(other.keys) and one.means.tobytes() == other.means.tobytes()


def saved(features: FittedFeatures, folder: Path) -> dict[str, bytes]:
    save_encoders(features.encoders, folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2), st.integers(0, 5), st.sampled_from(["median", "mean", 3.0]))
def test_scales_of_any_numbers(tmp_path_factory, numbers, nulls, fill):
    column = pd.Series([*numbers, *[np.nan] * nulls])
    encoder = one_feature(
        NumberRule((NumberStep("fill", fill=fill), STANDARD)),
        "price",
        rows(len(column), 0).assign(price=column),
        tmp_path_factory.mktemp("numbers"),
    )
    (_, value), (_, mean, std) = encoder.steps
    filled = column.fillna({"median": column.median(), "mean": column.mean()}.get(fill, fill))
    assert value == pytest.approx(filled.iloc[-1] if nulls else value)
    assert mean == pytest.approx(math.fsum(filled) / len(filled), rel=1e-12, abs=1e-300)
    assert std == pytest.approx(filled.std(), rel=1e-9, abs=1e-9)


def test_a_constant_column_is_only_centred(tmp_path):
    encoder = one_feature(NumberRule((STANDARD,)), "price", rows(9, 0).assign(price=0.1), tmp_path)
    assert encoder.steps == (("scale", 0.1, 0.0),)
    assert encoder.encode([0.1, 1.1]).tolist() == [0.0, 1.0]


def test_numbers_are_kept_in_the_numerical_channel(tmp_path):
    assert isinstance(one_feature(KeepRule(), "code", rows(9, 0), tmp_path), Numerical)


def test_a_column_of_nulls_has_an_empty_vocabulary(tmp_path):
    encoder = one_feature(VocabularyRule(), "shop", rows(9, 0).assign(shop=None), tmp_path)
    assert isinstance(encoder, Vocabulary) and encoder.encode(["a", None]).tolist() == [2, 1]


@pytest.mark.parametrize(
    ("rule", "reading", "values", "message"),
    [
        (NumberRule((MEDIAN,)), "price", [None, None], "price: no training row has a value; remove the column"),
        (NumberRule((NumberStep("fill", fill=1.0),)), "price", [None, None], "price: no training row has a value"),
        (QuantilesRule(4), "price", [None, None], "price: no training row has a value"),
        (NumberRule((STANDARD,)), "price", [None, 1.0], "'price' is null in 1 of the training rows; .*{fill: median}"),
        (NumberRule((LOG, STANDARD)), "price", [1.0, -2.0], "'price' holds -2; expected a number above -1"),
        (NumberRule((STANDARD,)), "price", [1.0, 1e300], "'price' holds 1e.300; expected a smaller number"),
        (NumberRule((STANDARD,)), "price", [1.0, math.inf], "'price' holds inf; make it null, or finite"),
        (NumberRule((STANDARD, MEDIAN)), "price", [1.0, 2.0], "fill: median after standardize; write it before"),
        (TargetRule("bought", mean="x"), "shop", ["a", "b"], "label 'bought': no training row has a value"),
    ],
)
def test_what_cannot_be_fitted_is_named(tmp_path, rule, reading, values, message):
    frame = rows(2, 0).assign(**{reading: values, finished("bought"): np.nan})
    with pytest.raises(DataError, match=message):
        one_feature(rule, reading, frame, tmp_path)


def test_rows_without_a_label_are_left_out_of_rates(tmp_path):
    frame = rows(60, 0)
    frame.loc[:9, finished("bought")] = np.nan
    with_nulls = fitted([staged(frame)], tmp_path).out_of_fold["rate"]
    without = fitted([staged(frame.iloc[10:])], tmp_path).out_of_fold["rate"]
    known = with_nulls.keys.to_pylist()
    places = [known.index(key) for key in without.keys.to_pylist()]
    np.testing.assert_allclose(with_nulls.means[[*places, -1]], without.means, rtol=1e-5, atol=1e-6)


def test_folds_by_key_columns(train, tmp_path):
    spec = SimpleNamespace(**vars(SPEC))
    spec.row_key = ("code", "shop")
    means = fitted([staged(train)], tmp_path, spec).out_of_fold["rate"]
    known = train[train["shop"].notna()]
    wanted = [
        scalar_row_hash(SEED, FOLD_PURPOSE, int(code), shop) % FOLDS
        for code, shop in zip(known["code"], known["shop"], strict=True)
    ]
    assert means.draws.folds(staged(known), FOLDS).tolist() == wanted
