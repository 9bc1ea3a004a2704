import operator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.preprocess import histories
from data.spec.features import Feature
from data.spec.raw.spec import Condition, Count, History, KeepRule, RawFeature, RawSpec

PLENTY, ONE_ROW_AT_A_TIME = 2**30, 1
CLICKED = Condition("click", "!=", 0.0)
SCHEMA = pa.schema(
    {
        "user": pa.dictionary(pa.int32(), pa.string()),
        "item": pa.dictionary(pa.int32(), pa.string()),
        "price": pa.float32(),
        "time": pa.int64(),
        "click": pa.float64(),
    }
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "user": st.sampled_from(["a", "b", "é", "", None]),
            "item": st.sampled_from(["x", "y", "z", None]),
            "price": st.sampled_from([1.5, -0.0, 3.0, None]),
            "time": st.one_of(st.integers(0, 6), st.sampled_from([-(2**63), 2**63 - 1])),
            "click": st.sampled_from([0.0, 1.0, None]),
        }
    ),
    max_size=30,
)
COMPARE = {"!=": operator.ne, "==": operator.eq, ">=": operator.ge}
WHERE = st.sampled_from([None, CLICKED, Condition("item", "==", "x"), Condition("price", ">=", 1.5)])
HISTORY = st.builds(
    History,
    of=st.sampled_from(["item", "price", "time"]),
    by=st.sampled_from(["user", "item", "price"]),
    order=st.sampled_from(["time"]),
    where=WHERE,
    last=st.integers(1, 4),
    steps=st.sampled_from([None, None, "item", "price"]),
)
COUNT = st.builds(
    Count,
    of=st.sampled_from(["item", "price", None]),
    by=st.sampled_from(["user", "price"]),
    order=st.just("time"),
    where=WHERE,
    window=st.sampled_from([None, 1, 3]),
)
CUTS = st.lists(st.integers(0, 30), max_size=4)


def add_computed(rules, *args, **options):
    features = {name: RawFeature(Feature(name=name), name, KeepRule(), computed=rule) for name, rule in rules.items()}
    spec = RawSpec(folder=Path(), readings={}, features=features, sources={}, split=None, channels={})
    return histories.add_computed(spec, *args, **options)


def satisfied(row, where):
    return where is None or (
        row[where.reading] is not None and COMPARE[where.comparison](row[where.reading], where.value)
    )


def expected(rows, rule):
    """The definition, as a loop over all pairs of rows."""
    result = []
    for row in rows:
        earlier = sorted(
            (
                other
                for other in rows
                if row[rule.by] is not None
                and other[rule.by] == row[rule.by]
                and other[rule.order] < row[rule.order]
                and satisfied(other, rule.where)
            ),
            key=lambda other: other[rule.order],
        )
        if isinstance(rule, History):
            entering = [other for other in earlier if other[rule.steps or rule.of] is not None]
            result.append([other[rule.of] for other in entering][-rule.last :])
        else:
            window = float("inf") if rule.window is None else rule.window
            result.append(
                sum(
                    other[rule.order] >= row[rule.order] - window
                    and (rule.of is None or (row[rule.of] is not None and other[rule.of] == row[rule.of]))
                    for other in earlier
                )
            )
    return result


def stage(parts, folder):
    """Write parts of rows as IPC files of two batches with dictionaries of their own."""
    paths = []
    for number, rows in enumerate(parts):
        table = pa.Table.from_pylist(rows, schema=SCHEMA).unify_dictionaries()
        paths.append(folder / f"rows-{number}.arrow")
        with pa.ipc.new_file(str(paths[-1]), table.schema) as writer:
            writer.write_table(table, max_chunksize=max(1, -(-len(rows) // 2)))
    return paths


def cut(rows, cuts):
    bounds = sorted({0, len(rows), *(place for place in cuts if place < len(rows))})
    return [rows[begin:end] for begin, end in zip(bounds, bounds[1:], strict=False)] or [[]]


def compute(rule, parts, memory=PLENTY, state=None):
    """Compute a column of parts of rows, each a mapping; return its values and the bytes of the new state."""
    with TemporaryDirectory() as name:
        folder, saved, new = (Path(name) / part for part in ("rows", "saved", "new"))
        for path in (folder, saved, new):
            path.mkdir()
        for file, content in (state or {}).items():
            (saved / file).write_bytes(content)
        staged = {f"mapping-{number}": [path] for number, path in enumerate(stage(parts, folder))}
        results = add_computed(
            {"found": rule}, staged, folder, memory=memory, state=saved if state else None, new_state=new
        )
        assert list(results) == list(staged)
        values = []
        for part, (path,) in zip(parts, results.values(), strict=True):
            column = pa.ipc.open_file(str(path)).read_all().column("found")
            assert len(column) == len(part) and column.null_count == 0
            values += column.to_pylist()
        return values, {path.name: path.read_bytes() for path in sorted(new.iterdir())}


@settings(max_examples=150, deadline=None)
@given(ROWS, st.one_of(HISTORY, COUNT), CUTS)
def test_values_equal_a_loop_over_all_pairs(rows, rule, cuts):
    assert compute(rule, cut(rows, cuts))[0] == expected(rows, rule)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.one_of(HISTORY, COUNT), CUTS, st.sampled_from([ONE_ROW_AT_A_TIME, 700, 2000]))
def test_memory_and_blocks_change_nothing(rows, rule, cuts, memory):
    assert compute(rule, cut(rows, cuts), memory) == compute(rule, [rows])


@settings(max_examples=100, deadline=None)
@given(ROWS, st.one_of(HISTORY, COUNT), st.integers(0, 30), st.integers(0, 30), st.booleans())
def test_new_rows_continue_from_the_state(rows, rule, first, second, by_time):
    if by_time:
        rows = sorted(rows, key=lambda row: row["time"])
    else:  # sorted by time within a user only
        rows = sorted(rows, key=lambda row: (row["user"] or "", row["price"] or 0.0, row["item"] or "", row["time"]))
        rule = type(rule)(**{**vars(rule), "by": "user"})
        if isinstance(rule, Count):
            rule = Count(None, "user", "time", rule.where, rule.window)
        rows = sorted(rows, key=lambda row: (row["user"] or "", row["time"]))
    first, second = sorted((first, second))
    values, state = [], None
    for part in (rows[:first], rows[first:second], rows[second:]):
        found, state = compute(rule, [part], memory=2000, state=state)
        values += found
    together = compute(rule, [rows])
    assert values == together[0] == expected(rows, rule)
    assert state == together[1]


@settings(max_examples=60, deadline=None)
@given(ROWS, ROWS, st.one_of(HISTORY, COUNT))
def test_late_rows_see_no_row_of_their_time_or_later(earlier, late, rule):
    _, state = compute(rule, [earlier])
    found, _ = compute(rule, [late], state=state)
    everything = expected(earlier + late, rule)[len(earlier) :]
    for values, possible in zip(found, everything, strict=True):
        if isinstance(rule, Count):
            assert values <= possible
        else:
            assert len(values) <= len(possible)
            if rule.of == "time":
                assert values == sorted(values)


def test_equal_items_of_other_users_are_kept_apart():
    users, items = np.arange(3000) % 1000, np.arange(3000) // 1000
    rows = [
        {"user": str(user), "item": str(item), "price": None, "time": item, "click": 1.0}
        for user, item in zip(users.tolist(), items.tolist(), strict=True)
    ]
    rule = History("item", "user", "time", None, 5)
    for memory in (PLENTY, 20_000):
        found, _ = compute(rule, [rows[:1700], rows[1700:]], memory)
        assert found == [[]] * 1000 + [["0"]] * 1000 + [["0", "1"]] * 1000


def test_several_columns_of_one_file(tmp_path):
    rows = [{"user": "a", "item": "x", "price": 2.0, "time": time, "click": time % 2} for time in range(4)]
    rules = {
        "seen": History("item", "user", "time", CLICKED, 5),
        "prices": History("price", "user", "time", None, 2),
        "clicks": Count(None, "user", "time", CLICKED, None),
    }
    results = add_computed(rules, {"train": stage([rows], tmp_path)}, tmp_path, memory=PLENTY)
    table = pa.ipc.open_file(str(results["train"][0])).read_all()
    assert table.schema == pa.schema(
        {"seen": pa.list_(pa.string()), "prices": pa.list_(pa.float32()), "clicks": pa.int64()}
    )
    assert table.column("seen").to_pylist() == [[], [], ["x"], ["x"]]
    assert table.column("prices").to_pylist() == [[], [2.0], [2.0, 2.0], [2.0, 2.0]]
    assert table.column("clicks").to_pylist() == [0, 0, 1, 1]


def test_mappings_are_in_a_fixed_order(tmp_path):
    rows = [{"user": "a", "item": str(number), "price": None, "time": 0, "click": 1.0} for number in range(6)]
    last = [{"user": "a", "item": "z", "price": None, "time": 1, "click": 1.0}]
    names, order = ["test", "b", "valid", "a", "train"], [2, 4, 1, 3, 0]
    paths = stage([[rows[place]] for place in order] + [last], tmp_path)
    staged = {name: [path] for name, path in zip(names, paths, strict=False)} | {"new": [paths[-1]]}
    rules = {"seen": History("item", "user", "time", None, 9)}
    (path,) = add_computed(rules, staged, tmp_path, memory=PLENTY)["new"]
    assert pa.ipc.open_file(str(path)).read_all().column("seen").to_pylist() == [["0", "1", "2", "3", "4"]]


def test_rows_without_the_label_enter_nothing(tmp_path):
    rows = [{"user": "a", "item": str(time), "price": None, "time": time, "click": 1.0} for time in range(3)]
    state = tmp_path / "state"
    state.mkdir()
    rules = {"seen": History("item", "user", "time", CLICKED, 9)}
    add_computed(rules, {"train": stage([rows], tmp_path)}, tmp_path, memory=PLENTY, new_state=state)
    table = pa.table({"user": ["a", "a", "b"], "item": ["7", "8", "9"], "time": [3, 4, 5]})
    with pa.ipc.new_file(str(tmp_path / "new.arrow"), table.schema) as writer:
        writer.write_table(table)
    (path,) = add_computed(rules, {"test": [tmp_path / "new.arrow"]}, tmp_path, memory=PLENTY, state=state)["test"]
    assert pa.ipc.open_file(str(path)).read_all().column("seen").to_pylist() == [["0", "1", "2"]] * 2 + [[]]


def test_long_histories_are_written_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(histories, "ITEMS_PER_BATCH", 64)
    rows = [{"user": "a", "item": str(time), "price": None, "time": time, "click": 1.0} for time in range(100)]
    paths = stage([rows], tmp_path)
    (path,) = add_computed(
        {"seen": History("item", "user", "time", None, 20)}, {"train": paths}, tmp_path, memory=PLENTY
    )["train"]
    file = pa.ipc.open_file(str(path))
    assert file.num_record_batches == 34
    assert file.read_all().column("seen").to_pylist()[50] == [str(time) for time in range(30, 50)]


def test_an_order_that_is_missing_is_an_error(tmp_path):
    rows = [{"user": "a", "item": "x", "price": 2.0, "time": time, "click": 1.0} for time in [1, 2, 3, None, 4]]
    paths = stage([rows[:1], rows], tmp_path)
    rule = {"seen": History("item", "user", "time", None, 5)}
    with pytest.raises(DataError, match=r"rows-1.arrow, row 4: 'time' is empty, which orders .* history 'seen'"):
        add_computed(rule, {"train": paths}, tmp_path, memory=PLENTY)
    with pytest.raises(DataError, match="log.csv, line 5: 'time' is empty"):
        add_computed(
            rule,
            {"train": paths},
            tmp_path,
            memory=PLENTY,
            locate=lambda path, row: f"log.csv, line {row + 2}",
        )


def test_a_state_of_other_columns_is_rejected():
    rows = [{"user": "a", "item": "x", "price": 2.0, "time": 1, "click": 1.0}]
    _, state = compute(History("item", "user", "time", None, 5), [rows])
    with pytest.raises(DataError, match="is no state of history 'found': it has by .large_string., of .large"):
        compute(History("price", "user", "time", None, 5), [rows], state=state)
    with pytest.raises(DataError, match="count.found.parquet: no such file"):
        compute(Count(None, "user", "time", None, None), [rows], state=state)
