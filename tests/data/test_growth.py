"""Vocabularies that grow from day to day equal plain dictionaries, whatever the partitions."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.encoding.earlier import Earlier
from data.encoding.encoder_files import load_encoders, save_encoders
from data.encoding.encoders import Vocabulary, encode_columns
from data.encoding.fitting import FittedFeatures, Scratch
from data.encoding.growth import growth_line
from data.encoding.keys import KeyIndex
from data.errors import DataError
from data.spec.features import Feature
from data.spec.raw.spec import (
    CrossRule,
    HashRule,
    NumberRule,
    NumberStep,
    QuantilesRule,
    RawFeature,
    RawSpec,
    Reading,
    Rule,
    SharedVocabularyRule,
    VocabularyRule,
)
from tests.data.scalar_hash import scalar_hash, scalar_row_hash

READINGS = {
    "shop": Reading("shop", "shop"),
    "tags": Reading("tags", "tags", is_list=True, separator=" "),
    "code": Reading("code", "code", "int64"),
    "price": Reading("price", "price", "float64"),
}
SCHEMA = pa.schema(
    {"shop": pa.string(), "tags": pa.list_(pa.string()), "code": pa.int64(), "price": pa.float64(), "//row": pa.int64()}
)
WORDS = st.none() | st.sampled_from(list("abcdefgéz"))
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "shop": WORDS,
            "tags": st.none() | st.lists(WORDS, max_size=3),
            "code": st.none() | st.integers(-2, 4),
            "price": st.integers(1, 9).map(float),
        }
    ),
    min_size=1,
    max_size=14,
)


def spec_of(rules: dict[str, tuple[str | None, Rule]]) -> RawSpec:
    features = {name: RawFeature(Feature(name=name), reading, rule) for name, (reading, rule) in rules.items()}
    return RawSpec(Path(), READINGS, features, {}, None, {"numerical": ("price",)})


def tables_of(rows: list[dict], cuts: list[int]) -> list[pa.Table]:
    ends = sorted({min(cut, len(rows)) for cut in cuts} | {0, len(rows)})
    numbered = [{**row, "//row": number} for number, row in enumerate(rows)]
    return [pa.Table.from_pylist(numbered[begin:end], SCHEMA) for begin, end in zip(ends[:-1], ends[1:], strict=True)]


def fit(spec: RawSpec, tables: list[pa.Table], earlier: Earlier | None = None, budget: int = 10**9) -> dict:
    """Fit encoders pass by pass, each state merged with the next one."""
    features = FittedFeatures(spec, earlier=earlier)
    with TemporaryDirectory() as folder:
        scratch = Scratch(Path(folder), budget)
        while fitters := features.fitters(scratch):
            found = {}
            for name, fitter in fitters.items():
                state = None
                for table in tables:
                    part = fitter.part(table)
                    state = fitter.merge([part] if state is None else [state, part])
                found[name] = fitter.finish(state)
            features.add(found)
    return features.encoders


class Plain:
    """A vocabulary as dictionaries: the definition, value by value."""

    def __init__(self, oov_buckets: int) -> None:
        self.first = 2 + oov_buckets
        self.ids: dict = {}
        self.counts: Counter = Counter()
        self.unseen: dict = {}
        self.free: set[int] = set()
        self.size = 0

    def add_day(self, values: list, min_count: int, max_size: int | None, retire_after: int | None, reuse: bool):
        counts = Counter(value for value in values if value is not None)
        for value in list(self.ids):
            self.unseen[value] = 0 if counts[value] else self.unseen[value] + 1
            self.counts[value] += counts[value]
            if retire_after and self.unseen[value] >= retire_after:
                self.free.add(self.ids.pop(value))
                del self.unseen[value], self.counts[value]
        new = [value for value in counts if counts[value] >= min_count and value not in self.ids]
        new.sort(key=lambda value: (-counts[value], value.encode() if isinstance(value, str) else value))
        for value in new:
            if max_size is not None and len(self.ids) >= max_size:
                break
            if self.free and reuse:
                place = min(self.free)
                self.free.remove(place)
            else:
                place, self.size = self.size, self.size + 1
            self.ids[value], self.counts[value], self.unseen[value] = place, counts[value], 0

    def encode(self, value) -> int:
        if value is None:
            return 1
        if value in self.ids:
            return self.first + self.ids[value]
        return 2 + scalar_hash(value) % (self.first - 2)

    def check(self, vocabulary: Vocabulary) -> None:
        expected = [None] * self.size
        for value, place in self.ids.items():
            expected[place] = value
        assert vocabulary.values.to_pylist() == expected
        assert vocabulary.counts.tolist() == [self.counts[value] if value is not None else 0 for value in expected]
        assert vocabulary.unseen_for.tolist() == [0 if value is None else self.unseen[value] for value in expected]
        assert vocabulary.cardinality == self.first + self.size


@settings(max_examples=15, deadline=None)
@given(
    days=st.lists(ROWS, min_size=2, max_size=5),
    cuts=st.lists(st.integers(1, 13), max_size=3),
    min_count=st.integers(1, 2),
    max_size=st.none() | st.integers(1, 4),
    retire_after=st.none() | st.integers(1, 2),
    oov_buckets=st.integers(1, 3),
)
def test_days_of_vocabularies(days, cuts, min_count, max_size, retire_after, oov_buckets):
    rule = VocabularyRule(min_count, max_size, oov_buckets)
    spec = spec_of(
        {
            "shop": ("shop", rule),
            "tags": ("tags", SharedVocabularyRule("shop", is_counted=True)),
            "code": ("code", rule),
            "by_code": (None, CrossRule(("shop", "code"), rule)),
            "alone": ("code", rule),
        }
    )
    plain = {name: Plain(oov_buckets) for name in ("shop", "code", "by_code", "alone")}
    one = many = None
    for day in days:
        one = fit(spec, tables_of(day, []), one and Earlier(spec, one, retire_after))
        many = fit(spec, tables_of(day, cuts), many and Earlier(spec, many, retire_after), budget=0)
        with TemporaryDirectory() as folder:
            contents = []
            for number, encoders in enumerate((one, many)):
                save_encoders(encoders, Path(folder) / str(number))
                contents.append({path.name: path.read_bytes() for path in (Path(folder) / str(number)).iterdir()})
            assert contents[0] == contents[1]
            many = load_encoders(Path(folder) / "1")
        terms = (min_count, max_size, retire_after)
        words = [row["shop"] for row in day] + [word for row in day for word in row["tags"] or []]
        plain["shop"].add_day(words, *terms, False)
        plain["code"].add_day([row["code"] for row in day], *terms, False)
        plain["alone"].add_day([row["code"] for row in day], *terms, True)
        pairs = [(plain["shop"].encode(row["shop"]), plain["code"].encode(row["code"])) for row in day]
        keys = [int(np.uint64(scalar_row_hash(*pair)).astype(np.int64)) for pair in pairs]
        plain["by_code"].add_day(keys, *terms, True)
        for name, expected in plain.items():
            expected.check(many[name].encoder if name == "by_code" else many[name])
        columns = {name: [row[name] for row in day] for name in ("shop", "tags", "code")}
        encoded = encode_columns(many, columns)
        assert encoded["shop"].tolist() == [plain["shop"].encode(value) for value in columns["shop"]]
        tags = [[plain["shop"].encode(word) for word in listed or []] for listed in columns["tags"]]
        assert [listed.tolist() for listed in encoded["tags"]] == tags
        assert encoded["alone"].tolist() == [plain["alone"].encode(value) for value in columns["code"]]
        assert encoded["by_code"].tolist() == [plain["by_code"].encode(key) for key in keys]


def shops(text: str) -> list[pa.Table]:
    return tables_of([{"shop": word, "tags": [], "code": 1, "price": 1.0} for word in text], [])


def grown(old: dict, spec: RawSpec, text: str, retire_after: int | None = None) -> dict:
    return fit(spec, shops(text), Earlier(spec, old, retire_after))


SHOP = spec_of({"shop": ("shop", VocabularyRule())})


def test_ids_are_kept_retired_and_reused():
    first = fit(SHOP, shops("aaabbc"))
    assert first["shop"].values.to_pylist() == ["a", "b", "c"]
    again = grown(first, SHOP, "cb", 2)
    assert again["shop"].values.to_pylist() == ["a", "b", "c"] and again["shop"].unseen_for.tolist() == [1, 0, 0]
    third = grown(again, SHOP, "bdde", 2)
    assert third["shop"].values.to_pylist() == ["d", "b", "c", "e"] and third["shop"].counts.tolist() == [2, 4, 2, 1]
    assert growth_line("shop", again["shop"], third["shop"]) == (
        "vocabulary of shop: 3 known, 1 of them seen again; 2 new, 1 of them on reused ids; 1 retired; 4 in all, 7 ids"
    )
    fourth = grown(third, SHOP, "b", 1)
    assert fourth["shop"].values.to_pylist() == [None, "b", None, None] and fourth["shop"].cardinality == 7
    assert fourth["shop"].encode(["a", "b", "c", "d", "e", None]).tolist() == [2, 4, 2, 2, 2, 1]
    assert grown(fourth, SHOP, "bxyz")["shop"].values.to_pylist() == ["x", "b", "y", "z"]
    # A value that comes back the day that its id could become free is seen.
    assert grown(again, SHOP, "ab", 2)["shop"].values.to_pylist() == ["a", "b", "c"]


def test_nothing_new_keeps_ids():
    first = fit(SHOP, shops("aaabbc"))
    assert grown(first, SHOP, "cab")["shop"].values.equals(first["shop"].values)


def test_all_retired_and_another_type():
    first = fit(SHOP, shops("ab"))
    nothing = spec_of({"shop": ("shop", VocabularyRule(min_count=9))})
    empty = grown(first, nothing, "z", 1)
    assert empty["shop"].values.to_pylist() == [None, None]
    assert grown(empty, SHOP, "z")["shop"].values.to_pylist() == ["z", None]
    numbers = tables_of([{"shop": "1", "tags": [], "code": 7, "price": 1.0}], [])
    renamed = [table.drop_columns("shop").rename_columns({"code": "shop"}) for table in numbers]
    assert fit(SHOP, renamed, Earlier(SHOP, empty))["shop"].values.to_pylist() == [7, None]
    with pytest.raises(DataError, match="holds integers such as 7, but it was fitted on strings such as 'a'"):
        fit(SHOP, renamed, Earlier(SHOP, first))


@pytest.mark.parametrize(
    ("rule", "is_kept"),
    [
        (VocabularyRule(min_count=3, max_size=7), True),
        (VocabularyRule(oov_buckets=2), False),
        (HashRule(5), False),
        (QuantilesRule(2), False),
    ],
)
def test_another_rule_is_refitted(rule, is_kept):
    reading = "price" if isinstance(rule, QuantilesRule) else "shop"
    cross = (None, CrossRule(("shop", "code"), VocabularyRule()))
    old = spec_of({"shop": ("shop", VocabularyRule()), "code": ("code", HashRule(9)), "by_code": cross})
    new = spec_of({"shop": (reading, rule), "code": ("code", HashRule(9)), "by_code": cross})
    first = fit(old, shops("ab"))
    earlier = Earlier(old, first)
    assert earlier.continued(new) == ({"shop", "code", "by_code"} if is_kept else {"code"})
    second = fit(new, shops("xxxy"), earlier)
    if is_kept:
        assert second["shop"].values.to_pylist() == ["a", "b", "x"]
        assert len(second["by_code"].encoder.values) == 4
    else:
        assert len(second["by_code"].encoder.values) <= 2
        assert "shop: its encoding or its input has changed; refitted" in list(earlier.report(new, second))


def test_new_and_dropped_features_are_reported():
    both = spec_of({"shop": ("shop", VocabularyRule()), "code": ("code", VocabularyRule())})
    encoders = fit(both, shops("ab"))
    only = spec_of({"shop": ("shop", VocabularyRule())})
    assert list(Earlier(both, encoders).report(only, fit(only, shops("a"), Earlier(both, encoders))))[1:] == [
        "code: is no longer in the specification; dropped"
    ]
    earlier = Earlier(only, {"shop": encoders["shop"]})
    lines = list(earlier.report(both, fit(both, shops("a"), earlier)))
    assert lines[1:] == ["code: is new; refitted"]


def prices(*numbers: float | None) -> list[pa.Table]:
    return tables_of([{"shop": "a", "tags": [], "code": 1, "price": number} for number in numbers], [])


def test_numbers_are_kept_or_refitted():
    steps = (NumberStep("fill", fill="mean"), NumberStep("standardize"))
    spec = spec_of(
        {
            "scaled": ("price", NumberRule(steps, "missing")),
            "range": ("price", NumberRule((NumberStep("fill", fill=0.0), NumberStep("minmax")))),
            "half": ("price", QuantilesRule(2)),
        }
    )
    first = fit(spec, prices(1.0, 3.0))
    kept = fit(spec, prices(10.0, 30.0, None), Earlier(spec, first))
    for name in ("scaled", "range"):
        assert kept[name].steps == first[name].steps
    assert kept["missing"].column == "price"
    updated = fit(spec, prices(10.0, 30.0, None), Earlier(spec, first, updates_scalers=True))
    plain = fit(spec, prices(10.0, 30.0, None))
    for name in ("scaled", "range"):
        assert updated[name].steps == plain[name].steps != first[name].steps
    assert kept["half"].boundaries == updated["half"].boundaries == first["half"].boundaries != plain["half"].boundaries
    changed = spec_of({"scaled": ("price", NumberRule((steps[0], NumberStep("log1p"), steps[1])))})
    assert fit(changed, prices(10.0, 30.0), Earlier(spec, first))["scaled"].steps[1] == ("log1p",)


def test_kept_numbers_are_checked():
    logs = spec_of({"logs": ("price", NumberRule((NumberStep("log1p"), NumberStep("standardize"))))})
    first = Earlier(logs, fit(logs, prices(1.0, 3.0)))
    with pytest.raises(DataError, match="holds -2; expected a number above -1"):
        fit(logs, prices(-2.0), first)
    with pytest.raises(DataError, match="is null in 1 of the training rows"):
        fit(logs, prices(1.0, None), first)


def test_index_with_gaps_finds_the_others():
    values = [*map(str, range(50)), None, *map(str, range(50, 90)), None]
    index = KeyIndex("x", pa.array(values))
    wanted = [*map(str, range(100)), None]
    codes, _, positions = index.find(pa.array(wanted))
    found = np.append(positions, -1)[codes]
    assert found.tolist() == [values.index(value) if value in values[:-1] and value else -1 for value in wanted]
    assert index.find(["7"])[2].tolist() == [7] and index.find(["60"])[2].tolist() == [61]


def test_older_files_have_seen_all_values(tmp_path, monkeypatch):
    import data.encoding.encoder_files as files

    stored = files.to_parquet
    monkeypatch.setattr(files, "to_parquet", lambda table: stored(table.drop_columns("unseen_for")))
    save_encoders(fit(SHOP, shops("ab")), tmp_path / "old")
    assert load_encoders(tmp_path / "old")["shop"].unseen_for.tolist() == [0, 0]


def test_a_replaced_vocabulary_keeps_its_gaps():
    gaps = Vocabulary("shop", pa.array(["a", None]), np.array([3, 0]), unseen_for=np.array([1, 0]))
    other = replace(gaps, column="other")
    assert other.known_values.to_pylist() == ["a"] and other.known_ids.tolist() == [3]
    assert other.unseen_for.tolist() == [1, 0]
