"""The recommender on a small dataset with a planted preference: users like items of their own color."""

import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import export
from data.errors import DataError
from tests.helpers import ROOT, environment
from tests.trainer.export.models import write_run
from trainer.checkpoint.store import NoCheckpointError
from trainer.export.saved_model_folder import load_signatures
from trainer.recommender import Recommender

pytestmark = pytest.mark.long

USERS, ITEMS, ROWS = 60, 40, 6000
TASKS = {"liked": "binary", "rating": "regression"}
SMALL = {"num_experts": 2, "expert_hidden_units": (16,), "tower_hidden_units": [8], "batch_size": 128, "seed": 3}
UNSEEN_ITEM = "item 42"


def sample_data() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Interactions and item features; three items have no interactions, and those of color 0 are older."""
    random = np.random.default_rng(0)
    users, items = random.integers(0, USERS, ROWS), random.integers(0, ITEMS, ROWS)
    liked = (users % 2 == items % 2) ^ (random.random(ROWS) < 0.05)
    hour = random.integers(0, 24, ROWS)
    # In the evening ratings are higher.
    rating = 2 + 2 * liked + (hour > 17) + 0.1 * random.standard_normal(ROWS)
    names = [f"item {item}" for item in range(ITEMS + 4)]
    interactions = pd.DataFrame(
        {"user_id": users, "item_id": [names[item] for item in items], "liked": liked, "rating": rating, "hour": hour}
    )
    interactions.loc[::50, "rating"] = np.nan
    details = pd.DataFrame({"item_id": names})
    details["colors"] = [[f"color {item % 2}", "any"][: 1 + item % 3] for item in range(ITEMS + 4)]
    details["year"] = [None if item % 7 == 6 else 1990 + 20 * (item % 2) for item in range(ITEMS + 4)]
    return interactions, details


@pytest.fixture(scope="module")
def interactions() -> pd.DataFrame:
    return sample_data()[0]


@pytest.fixture(scope="module")
def recommender() -> Recommender:
    interactions, items = sample_data()
    # Calibrated, so that every output has a map to apply.
    made = Recommender("mmoe", epochs=4, learning_rate=0.01, calibrate="isotonic", **SMALL)
    return made.fit(interactions, tasks=TASKS, items=items, context=["hour"])


@pytest.fixture(scope="module")
def saved(recommender, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "recommender"
    recommender.save(folder)
    return folder


NOON = {"hour": 12}


def test_planted_preference_is_found(recommender):
    assert recommender.tasks == ["liked", "rating"]
    assert recommender.metrics["auc_roc/liked"] > 0.9
    assert recommender.predict(2, "item 4", context=NOON)["liked"] > 0.8
    assert recommender.predict(2, "item 5", context=NOON)["liked"] < 0.2
    for user in range(10):
        best = recommender.recommend(user, 10, exclude_seen=False, context=NOON)
        assert all(int(item.split()[1]) % 2 == user % 2 for item, _ in best)


def test_context_changes_predictions(recommender):
    evening = recommender.predict(2, "item 4", context={"hour": 22})["rating"]
    assert evening > recommender.predict(2, "item 4", context={"hour": 8})["rating"] + 0.3


def test_all_ways_to_predict_agree(recommender, interactions):
    frame = interactions[["user_id", "item_id", "hour"]].iloc[100:110]
    by_frame = recommender.predict(frame)
    assert list(by_frame) == ["liked", "rating"] and by_frame.index.equals(frame.index)
    encoded = recommender.encode(frame)
    assert list(encoded) == ["user_id", "item_id", "colors", "year", "hour"]
    pd.testing.assert_frame_equal(recommender.predict(encoded, encoded=True), by_frame)
    for position, row in enumerate(frame.itertuples()):
        one = recommender.predict(row.user_id, row.item_id, context={"hour": row.hour})
        assert one == pytest.approx(by_frame.iloc[position].to_dict(), abs=1e-6)
    pairs = [(1, "item 4"), (2, "item 5"), (999, "nowhere")]
    batch = recommender.batch_predict(pairs, context=NOON)
    for position, (user, item) in enumerate(pairs):
        assert recommender.predict(user, item, context=NOON) == pytest.approx(batch.iloc[position].to_dict(), abs=1e-6)
    assert len(recommender.batch_predict([], context=NOON)) == 0


@pytest.mark.parametrize("user", [3, 999])
@pytest.mark.parametrize("score", [None, {"liked": 2, "rating": -0.5}, {"rating": 1.0}])
def test_recommend_equals_a_loop_of_predict(recommender, user, score):
    items = [f"item {item}" for item in range(ITEMS + 4)]
    weights = score or {"liked": 1}
    predicted = {item: recommender.predict(user, item, context=NOON) for item in items}
    scores = {item: sum(weights[task] * predicted[item][task] for task in weights) for item in items}
    best = recommender.recommend(user, 7, exclude_seen=False, score=score, context=NOON)
    assert [item for item, _ in best] == sorted(items, key=scores.get, reverse=True)[:7]
    assert dict(best) == pytest.approx({item: scores[item] for item, _ in best}, abs=1e-5)


def test_rank_predicts_what_rows_do(recommender, interactions):
    items = ["item 3", "item 40", "item 4", "nowhere"]
    frame = pd.DataFrame({"item_id": items, "title": "ignored"}, index=[7, 5, 3, 9])
    found = recommender.rank({"user_id": 5, "hour": 22}, frame)
    wanted = recommender.predict(frame.assign(user_id=5, hour=22))
    pd.testing.assert_frame_equal(found, wanted, check_exact=False, rtol=0, atol=1e-6)
    assert found.nunique().min() > 1
    years = {"item_id": items, "year": [1990, 2020, None, 2000], "colors": [["color 1"], [], ["any"], ["color 0"]]}
    wanted = recommender.predict(pd.DataFrame(years).assign(user_id=5, hour=22))
    found = recommender.rank({"user_id": 5, "hour": 22}, years)
    pd.testing.assert_frame_equal(found, wanted, check_exact=False, rtol=0, atol=1e-6)
    assert len(recommender.rank({"user_id": 5, "hour": 22}, {"item_id": []})) == 0


@pytest.mark.parametrize(
    ("request_of", "candidates", "words"),
    [
        ({"hour": 1}, {"item_id": ["item 1"]}, "request has no column 'user_id'"),
        ({"user_id": 1}, {"item_id": ["item 1"]}, "request has no column 'hour'"),
        ({"user_id": 1, "hour": 1, "year": 3}, {"item_id": ["item 1"]}, "'year' belongs to the candidates"),
        (
            {"user_id": 1, "hours": 1},
            {"item_id": ["item 1"]},
            "'hours' is no feature of the request; did you mean 'hour'",
        ),
        ({"user_id": "one", "hour": 1}, {"item_id": ["item 1"]}, "user_id"),
        ({"user_id": 1, "hour": "noon"}, {"item_id": ["item 1"]}, "hour"),
        ({"user_id": 1, "hour": 1}, {"year": [1990]}, "candidates has no column 'item_id'"),
        ({"user_id": 1, "hour": 1}, {"item_id": ["item 1"], "hour": [1]}, "the column 'hour' belongs to the request"),
        (
            {"user_id": 1, "hour": 1},
            {"item_id": ["item 1"], "year": [1, 2]},
            "'year' has 2 values, and 'item_id' has 1",
        ),
        ({"user_id": 1, "hour": 1}, {"item_id": "item 1"}, "'item_id' is 'item 1'; expected a list"),
        ({"user_id": 1, "hour": 1}, {"item_id": [1, 2]}, "item_id"),
        ([1], {"item_id": ["item 1"]}, "request is"),
        ({"user_id": 1, "hour": 1}, ["item 1"], "candidates is"),
    ],
)
def test_malformed_ranking_requests_name_the_column(recommender, request_of, candidates, words):
    with pytest.raises(DataError, match=re.escape(words)):
        recommender.rank(request_of, candidates)


def test_seen_items_are_not_recommended(recommender, interactions):
    seen = set(interactions[interactions["user_id"] == 5]["item_id"])
    found = {item for item, _ in recommender.recommend(5, 100, context=NOON)}
    assert found == {f"item {item}" for item in range(ITEMS + 4)} - seen
    assert len(recommender.recommend(999, 100, context=NOON)) == ITEMS + 4


def test_candidates_are_chosen_from_and_may_be_unknown(recommender):
    candidates = ["item 3", "never heard of", "item 4", "item 3", UNSEEN_ITEM]
    found = recommender.recommend(4, 10, candidates=candidates, exclude_seen=False, context=NOON)
    assert sorted(item for item, _ in found) == sorted(set(candidates))
    for item, score in found:
        assert score == pytest.approx(recommender.predict(4, item, context=NOON)["liked"], abs=1e-6)
    assert recommender.recommend(4, candidates=[], context=NOON) == []


def test_unseen_ids_share_a_value_but_keep_features(recommender):
    frame = pd.DataFrame({"user_id": [999, 1], "item_id": ["never heard of", UNSEEN_ITEM], "hour": [3, 3]})
    encoded = recommender.encode(frame)
    assert encoded["item_id"].tolist() == [2, 2]
    assert encoded["user_id"].tolist()[0] == 2 < encoded["user_id"].tolist()[1]
    assert [list(ids) for ids in encoded["colors"]][0] == [] != list(encoded["colors"][1])
    assert len(set(encoded["year"])) == 2
    assert np.isfinite(recommender.predict(frame)).all(axis=None)


def test_features_in_the_frame_override_known_ones(recommender):
    frame = pd.DataFrame({"user_id": [1, 1], "item_id": [UNSEEN_ITEM] * 2, "hour": [3, 3]})
    frame["colors"] = [["color 0"], None]
    first, second = recommender.encode(frame)["colors"]
    assert len(first) == 1 and len(second) == 0


PREDICT = """
import json, sys
from trainer.recommender import Recommender
recommender = Recommender.load(sys.argv[1])
noon = {"hour": 12}
pairs = [(1, "item 4"), (2, "item 5"), (999, "nowhere")]
print(json.dumps([
    recommender.batch_predict(pairs, context=noon).to_numpy().tolist(),
    recommender.recommend(5, 5, context=noon),
    recommender.metrics,
    recommender.tasks,
]))
"""


def test_a_fresh_process_predicts_and_recommends_the_same(recommender, saved):
    command = [sys.executable, "-c", PREDICT, str(saved)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    predictions, ranked, metrics, tasks = json.loads(done.stdout)
    expected = recommender.batch_predict([(1, "item 4"), (2, "item 5"), (999, "nowhere")], context=NOON)
    np.testing.assert_allclose(predictions, expected.to_numpy(), rtol=0, atol=1e-6)
    best = recommender.recommend(5, 5, context=NOON)
    assert [item for item, _ in ranked] == [item for item, _ in best]
    np.testing.assert_allclose([score for _, score in ranked], [score for _, score in best], rtol=0, atol=1e-6)
    assert metrics == recommender.metrics and tasks == recommender.tasks


def test_saved_folder_detects_a_changed_byte(saved):
    files = [path for path in saved.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".yaml", ".npy", ".parquet"}
    table = saved / "tables" / "items.parquet"
    content = bytearray(table.read_bytes())
    content[50] ^= 1
    table.write_bytes(content)
    with pytest.raises(NoCheckpointError, match="items.parquet"):
        Recommender.load(saved)
    content[50] ^= 1
    table.write_bytes(content)
    Recommender.load(saved)


def test_loaded_recommender_can_be_fitted_again(saved, capsys):
    loaded = Recommender.load(saved)
    random = np.random.default_rng(1)
    frame = pd.DataFrame({"who": random.integers(0, 9, 5000), "what": random.integers(0, 5, 5000)})
    frame["match"] = frame["who"] % 2 == frame["what"] % 2
    users = pd.DataFrame({"who": range(12), "town": ["a", "b", None] * 4, "grown": [True, False] * 6})
    loaded.fit(frame, user="who", item="what", tasks={"match": "binary"}, users=users, validation=0.2)
    assert capsys.readouterr() == ("", "")
    assert loaded.metrics["auc_roc"] > 0.95
    assert isinstance(loaded.predict(3, 1), float)
    item, score = loaded.recommend(3, 1, exclude_seen=False)[0]
    assert isinstance(item, int) and score == pytest.approx(loaded.predict(3, item), abs=1e-6)


def check_rejected(message: str, **changes) -> None:  # type: ignore[no-untyped-def]
    interactions, items = sample_data()
    given = {"interactions": interactions, "tasks": TASKS, "items": items} | changes
    with pytest.raises(DataError, match=message):
        Recommender(epochs=1).fit(**given)


def rows_of_everything(rows: int) -> pd.DataFrame:
    """Known and unseen ids with their own features, including nulls."""
    random = np.random.default_rng(4)
    frame = pd.DataFrame({"user_id": random.integers(0, USERS + 9, rows), "hour": random.integers(0, 24, rows) * 1.0})
    frame["item_id"] = [f"item {item}" for item in random.integers(0, ITEMS + 9, rows)]
    frame["colors"] = [["color 1", "any", "new"][: random.integers(0, 4)] for _ in range(rows)]
    frame["year"] = random.choice([1990.0, 2010.0, np.nan], rows)
    return frame


@pytest.mark.parametrize("format", ["savedmodel", "onnx"])
def test_a_saved_recommender_is_exported(recommender, saved, format, tmp_path, capfd):
    if format == "onnx":
        pytest.importorskip("tf2onnx", reason="requirements/export.txt is not installed")
    out, frame = tmp_path / "out", rows_of_everything(200)
    code = export.main(["--model_dir", str(saved), "--output", str(out), "--format", format])
    assert code == 0, capfd.readouterr().err
    expected = recommender.predict(frame)
    if format == "savedmodel":
        width = max(map(len, frame["colors"]))
        given = {
            "user_id": frame[["user_id"]].to_numpy(),
            "item_id": frame[["item_id"]].to_numpy().astype("S"),
            "hour": frame[["hour"]].to_numpy(),
            "year": frame[["year"]].to_numpy(),
            "colors": np.array([colors + [""] * (width - len(colors)) for colors in frame["colors"]], "S"),
        }
        predict = load_signatures(out)["serving_raw"]
    else:
        encoded = recommender.encode(frame)
        hotness = recommender._fitted.saved.layout.categorical[-1].hotness
        lists = [[*ids, *[-1] * hotness][:hotness] for ids in encoded["colors"]]
        given = {name: encoded[[name]].to_numpy(np.int32) for name in ("user_id", "item_id")}
        given |= {name: encoded[[name]].to_numpy(np.float32) for name in ("year", "hour")}
        given["colors"] = np.array(lists, np.int32)
        from trainer.export.onnx_file import load_onnx

        predict = load_onnx(out / "model.onnx")
    found = predict(given)
    for task in TASKS:
        np.testing.assert_allclose(found[task][:, 0], expected[task], rtol=1e-5, atol=1e-5)


def test_model_folder_of_a_run_is_not_a_recommender(saved, tmp_path):
    write_run(tmp_path)
    with pytest.raises(DataError, match="contains a model of main.py, not a recommender"):
        Recommender.load(tmp_path / "model")
    with pytest.raises(DataError, match="no valid model in"):
        Recommender.load(tmp_path)
    assert export.main(["--model_dir", str(saved / "tables"), "--output", "out", "--format", "savedmodel"]) == 4


def test_export_never_writes_into_the_recommender(saved, capfd):
    for output in (saved / "exported", saved / "weights" / "exported", saved.parent):
        assert export.main(["--model_dir", str(saved), "--output", str(output), "--format", "savedmodel"]) == 2
        assert "--output" in capfd.readouterr().err
    assert not (saved / "exported").exists()


def test_loading_from_the_working_directory(recommender, saved, monkeypatch):
    monkeypatch.chdir(saved)
    assert Recommender.load(".").tasks == recommender.tasks
    with pytest.raises(DataError, match="working directory"):
        recommender.save(".")


NOT_FRAMES = {
    "interactions is a Series, expected a pandas DataFrame; write series.to_frame": lambda frame: frame["liked"],
    "interactions is a Table, expected a pandas DataFrame; write .to_pandas": pa.Table.from_pandas,
    "interactions is a dict, .*pd.DataFrame": lambda frame: {"user_id": [1, 2], "item_id": ["a"]},
    "interactions is a ndarray": lambda frame: frame.to_numpy(),
    "interactions has columns of 2 levels; flatten": lambda frame: pd.concat({"a": frame}, axis=1),
    "interactions has the column 'liked' 2 times; rename or drop": lambda frame: frame.join(
        frame[["liked"]].set_axis(["other"], axis=1)
    ).rename(columns={"other": "liked"}),
    "interactions has no rows": lambda frame: frame[:0],
    "interactions has no column 'liked'; it has none": lambda frame: pd.DataFrame(),
    "interactions has no column 'user_id'; it has 0, 1": lambda frame: frame.set_axis(range(5), axis=1),
}


@pytest.mark.parametrize("message", NOT_FRAMES)
def test_unsupported_frames_are_rejected(message):
    interactions, items = sample_data()
    changed = NOT_FRAMES[message](interactions)
    if message.endswith("it has none"):
        message = message.replace("liked", "user_id")
    check_rejected(message, interactions=changed)
    if "no rows" not in message:
        check_rejected(
            message.replace("interactions", "items").split(" has the column")[0].split(" has no")[0], items=changed
        )


def test_arguments_of_fit_are_checked_by_type():
    interactions, items = sample_data()
    renamed = interactions.rename(columns={"user_id": 7, "liked": 8})
    dates = pd.to_datetime(["2020-01-01"] * (ITEMS + 4))
    check_rejected("tasks is .'liked'.; expected a dict, as in .'liked': 'binary'", tasks=["liked"])
    check_rejected("tasks is 'liked'; expected a dict", tasks="liked")
    check_rejected(
        "tasks has the key 8; expected the names of columns", interactions=renamed, user=7, tasks={8: "binary"}
    )
    check_rejected(
        "column name 7 is not a string; .*columns.map.str",
        interactions=renamed,
        user=7,
        tasks={"rating": "regression"},
    )
    check_rejected("items, the table of 'item_id', has no column 'item_id'", items=items.set_axis([0, 1, 2], axis=1))
    check_rejected(
        "items, .*: the column name 5 is not a string; rename", items=items.assign(**{"x": 1}).rename(columns={"x": 5})
    )
    check_rejected("context is 'hour'; expected a list of columns, as in .'hour'.", context="hour")
    check_rejected("context is 3; expected a list", context=3)
    check_rejected("context is .'hour'.; expected a list", context={"hour"})
    check_rejected("the name 'a/b' contains a slash", items=items.rename(columns={"year": "a/b"}))
    check_rejected("the name .* contains a slash or a control", items=items.rename(columns={"year": "\ud800"}))
    check_rejected("this name is empty", interactions=interactions.rename(columns={"hour": ""}), context=[""])
    check_rejected("no column 'likes'; it has .*did you mean 'liked'", tasks={"likes": "binary"})
    check_rejected("kinds is .'year'.; expected a dict", kinds=["year"])
    check_rejected("validation is '0.1'; expected a fraction", validation="0.1")
    check_rejected(r"'released' holds Timestamp.*\.dt\.year or \.astype\(str\)", items=items.assign(released=dates))
    check_rejected(
        "'released' is numerical and holds Timestamp",
        items=items.assign(released=dates),
        kinds={"released": "numerical"},
    )
    check_rejected(
        "'rating' is numerical and holds Timestamp", interactions=interactions.assign(rating=pd.Timestamp(0))
    )
    check_rejected("'rating' is numerical and holds '3'", interactions=interactions.assign(rating="3"))
    check_rejected("'rating' is a regression label and holds 1e.39", interactions=interactions.assign(rating=1e39))
    check_rejected(
        "'rating' is a poisson label and holds -2; expected numbers of float32 of at least 0, or null",
        interactions=interactions.assign(rating=-2),
        tasks={"rating": "poisson"},
    )
    check_rejected(
        "'year' holds 1e.300, .*float32|'year' holds numbers up to",
        items=items.assign(year=[1e300, -1e300] * (ITEMS // 2 + 2)),
    )
    check_rejected(
        "'tags' holds .'a'.; .*a set has no order.*map.sorted", items=items.assign(tags=[{"a"}] * (ITEMS + 4))
    )
    check_rejected("'tags' holds .'a'.; expected integers.*flat list", items=items.assign(tags=[[["a"]]] * (ITEMS + 4)))
    check_rejected(
        "'tags' holds 'b' where a list is expected; write .'b'.",
        items=items.assign(tags=[["a"], "b"] * (ITEMS // 2 + 2)),
    )
    check_rejected("'user_id' holds 1.5; expected integers or strings", interactions=interactions.assign(user_id=1.5))
    check_rejected(
        "'user_id' holds 9223372036854775808, which is outside of int64",
        interactions=interactions.assign(user_id=2**63),
    )
    check_rejected(
        "'user_id' holds 16777216.0; float32 cannot represent",
        interactions=interactions.assign(user_id=np.float32(2**24)),
    )
    check_rejected(
        "'code' holds 18446744073709551616, which is outside",
        items=items.assign(code=pd.Series([2**64] * (ITEMS + 4), dtype=object)),
        kinds={"code": "categorical"},
    )


def test_unusable_input_is_rejected_with_a_fix():
    interactions, items = sample_data()
    check_rejected("no column 'user'; it has user_id, .*did you mean 'user_id'", user="user")
    check_rejected("tasks: 'liked': 'ranking'; expected one of binary, regression", tasks={"liked": "ranking"})
    check_rejected("'rating' is a binary label and holds [0-9.]+; expected 0, 1 or null", tasks={"rating": "binary"})
    check_rejected("tasks names no column", tasks={})
    check_rejected("'item_id' has 'item 3' twice; keep one", items=pd.concat([items, items[3:4]]))
    check_rejected(
        "table of 'item_id', has no column 'item_id'; it has id", items=items.rename(columns={"item_id": "id"})
    )
    check_rejected("columns hour have two roles", context=["hour"], items=items.assign(hour=1))
    check_rejected("columns liked have two roles", items=items.assign(liked=1))
    check_rejected("columns user_id have two roles", items=items.assign(user_id=1))
    check_rejected("kinds: 'liked': 'numerical'; expected a feature's column", kinds={"liked": "numerical"})
    check_rejected("'item_id' is null in row 2", interactions=interactions.assign(item_id=["a", "b", None] * 2000))
    check_rejected("integers in one table and strings in another", items=items.assign(item_id=range(ITEMS + 4)))
    check_rejected("'colors' is numerical and holds .'color 0'", kinds={"colors": "numerical"})
    check_rejected("'year' holds 1990.0 where a list is expected", kinds={"year": "multihot"})
    check_rejected("kinds: 'year': 'number'; expected", kinds={"year": "number"})
    check_rejected("'year': no training row has a value; drop the column", items=items.assign(year=None))
    check_rejected("validation is 1.5; expected a fraction", validation=1.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_expert": 3}, "no option 'num_expert'; did you mean num_experts"),
        ({"num_epochs": 3}, "no option 'num_epochs'; did you mean epochs"),
        ({"model": "mmoee"}, "did you mean mmoe"),
        ({"activation": "sine"}, "--activation"),
        ({"epochs": 0}, "--num_epochs must be at least 1"),
        ({"expert_hidden_units": (8, 0)}, "--expert_hidden_units must be at least 1"),
    ],
)
def test_options_are_checked_immediately(options, message):
    with pytest.raises(DataError, match=message):
        Recommender(**options)


def test_impossible_requests_are_rejected(recommender, tmp_path):
    frame = pd.DataFrame({"user_id": [1], "item_id": ["item 1"]})
    wrong_id = recommender.encode(frame.assign(hour=1)).assign(item_id=99)
    predict, batch, recommend = recommender.predict, recommender.batch_predict, recommender.recommend
    requests = {
        "the frame has no column 'hour'; it has user_id, item_id": lambda: predict(frame),
        "'user_id' holds strings such as 'x', but it was fitted on integers": lambda: predict(
            "x", "item 1", context=NOON
        ),
        "needs the id of an item, .*; got one int alone$": lambda: predict(1),
        "got one Table alone: write .to_pandas": lambda: predict(pa.table({"user_id": [1]})),
        "predict.frame. reads items and context": lambda: predict(frame.assign(hour=1), context=NOON),
        "the frame is a dict, expected a pandas DataFrame": lambda: recommender.encode({"user_id": [1]}),
        "the frame has the column 'hour' 2 times": lambda: predict(
            pd.concat([frame, pd.DataFrame({"hour": [1]}), pd.DataFrame({"hour": [1]})], axis=1)
        ),
        "'item_id' holds the id 4294967299; encoded ids": lambda: predict(
            wrong_id.assign(item_id=2**32 + 3), encoded=True
        ),
        "'item_id' holds 2.5; expected integers": lambda: predict(wrong_id.assign(item_id=2.5), encoded=True),
        "'item_id' is null in row 0": lambda: predict(wrong_id.assign(item_id=None), encoded=True),
        "'year' is null in row 0": lambda: predict(wrong_id.assign(item_id=1, year=None), encoded=True),
        "'colors' is null in row 0": lambda: predict(wrong_id.assign(item_id=1, colors=None), encoded=True),
        "'user_id' holds 9223372036854775808, which is outside": lambda: recommend(2**63, context=NOON),
        "'user_id' holds .1.; expected integers or strings": lambda: recommend([1], context=NOON),
        "'item_id' holds integers such as 1, but it was fitted on strings": lambda: recommend(
            1, candidates=[1], context=NOON
        ),
        "'item_id' is null in row 1": lambda: recommend(1, candidates=["item 1", None], context=NOON),
        "candidates is 'item 1'; expected a list": lambda: recommend(1, candidates="item 1", context=NOON),
        "candidates is 7; expected a list": lambda: recommend(1, candidates=7, context=NOON),
        "'hour' is numerical and holds '12'": lambda: recommend(1, context={"hour": "12"}),
        "'hour' holds inf; make it null, or finite": lambda: predict(1, "item 1", context={"hour": float("inf")}),
        "context is 'hour'; expected a dict": lambda: recommend(1, context="hour"),
        "context has .'day', 'hour'.; expected a value for each of .'hour'": lambda: predict(
            1, "item 1", context=NOON | {"day": 1}
        ),
        "pairs: expected one of user and item each": lambda: batch(5, context=NOON),
        "pairs is a set, .*pass a list": lambda: batch({(1, "item 1")}, context=NOON),
        "score is .'liked'.; expected a dict": lambda: recommend(1, score=["liked"]),
        "k is '3'; expected at least 1": lambda: recommend(1, "3"),
        "k is 2.5; expected at least 1": lambda: recommend(1, 2.5),
        "is the working directory or above it; choose a folder inside": lambda: recommender.save("."),
        "/: is the working directory or above it": lambda: recommender.save("/"),
        "save: 3 is not a path": lambda: recommender.save(3),
        "load: None is not a path": lambda: Recommender.load(None),
        "column 'item_id' holds the id 99; encoded ids lie in": lambda: predict(wrong_id, encoded=True),
        "pairs: expected one of user and item": lambda: batch([(1, "item 2", 3)], context=NOON),
        "context has .'day'.; expected a value for each of .'hour'.": lambda: recommend(1, context={"day": 1}),
        "score: 'like' is not one of the tasks .*did you mean 'liked'": lambda: recommend(1, score={"like": 1}),
        "score: the weight of 'liked' is nan": lambda: recommend(1, score={"liked": float("nan")}),
        "score names no task": lambda: recommend(1, score={}),
        "k is 0": lambda: recommend(1, 0),
        "is not fitted": lambda: Recommender().predict(1, 2),
        "no valid model in": lambda: Recommender.load(tmp_path),
    }
    for message, request in requests.items():
        with pytest.raises(DataError, match=message):
            request()


BIG_USERS = [-(2**63), -1, 0, 5, 2**60, 2**60 + 1, 2**63 - 1]
BIG_ITEMS = [0, 7, 2**53, 2**53 + 1, 2**63 - 1]


@pytest.fixture(scope="module")
def of_integers() -> Recommender:
    """Ids up to the ends of 64 bits; users and items whose positions are both even, or both odd, fit."""
    random = np.random.default_rng(2)
    users, items = random.integers(0, len(BIG_USERS), 4000), random.integers(0, len(BIG_ITEMS), 4000)
    frame = pd.DataFrame({"user_id": np.array(BIG_USERS)[users]})
    frame["item_id"] = np.array(BIG_ITEMS, np.uint64)[items]
    frame["shop"] = pd.Series([1, 2, None, 2**60 + 1] * 1000, dtype=object)
    frame["liked"] = pd.Series(users % 2 == items % 2).astype(object)
    made = Recommender(epochs=3, learning_rate=0.01, **SMALL)
    return made.fit(frame, tasks={"liked": "binary"}, context=["shop"], kinds={"shop": "categorical"})


def test_ids_of_64_bits_are_kept_exactly(of_integers, tmp_path):
    of_integers.save(tmp_path / "saved")
    for recommender in (of_integers, Recommender.load(tmp_path / "saved")):
        for position, user in enumerate(BIG_USERS):
            ranked = recommender.recommend(user, 9, exclude_seen=False, context={"shop": 2})
            assert sorted(item for item, _ in ranked) == sorted(BIG_ITEMS)
            assert all(isinstance(item, int) for item, _ in ranked)
            best = {BIG_ITEMS.index(item) % 2 for item, _ in ranked[: 3 - position % 2]}
            assert best == {position % 2}
    assert of_integers.recommend(2**60, context={"shop": 2}) == []  # has seen everything


@pytest.mark.parametrize("dtype", ["int64", "Int64", "int64[pyarrow]", "category", object])
def test_an_id_is_the_same_in_every_type(of_integers, dtype):
    rows = [(user, item) for user in BIG_USERS for item in BIG_ITEMS]
    expected = [of_integers.predict(user, item, context={"shop": 1}) for user, item in rows]
    assert len({round(value, 6) for value in expected}) > 30
    frame = pd.DataFrame(rows, columns=["user_id", "item_id"]).astype(dtype).assign(shop=1.0)
    np.testing.assert_allclose(of_integers.predict(frame)["liked"], expected, atol=1e-6)
    pairs = of_integers.batch_predict([*rows, (None, None)], context={"shop": True})
    np.testing.assert_allclose(pairs["liked"][:-1], expected, atol=1e-6)


def test_float_columns_caused_by_nulls_change_nothing(of_integers):
    rows = {"user_id": [5, -1, 0, 5], "item_id": [7, 0, 7, 0]}
    shops = {name: pd.Series([1, 2, None, 2], dtype=name) for name in ("float64", "Int64", "float32", object)}
    encoded = [of_integers.encode(pd.DataFrame(rows).assign(shop=shop)) for shop in shops.values()]
    assert encoded[0]["shop"].tolist()[2] == 1 and len(set(encoded[0]["shop"])) == 3
    for other in encoded[1:]:
        pd.testing.assert_frame_equal(other, encoded[0])
    floats = pd.DataFrame(rows).astype(float).assign(shop=[1, 2, None, 2])
    pd.testing.assert_frame_equal(of_integers.encode(floats), encoded[0])
    assert of_integers.predict(5.0, 7.0, context={"shop": 1}) == of_integers.predict(5, 7, context={"shop": 1.0})
    ranked = of_integers.recommend(5.0, candidates=[7.0, 7, -0.0], exclude_seen=False, context={"shop": None})
    assert sorted(item for item, _ in ranked) == [0, 7] and all(isinstance(item, int) for item, _ in ranked)
