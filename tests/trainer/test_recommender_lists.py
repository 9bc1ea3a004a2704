"""The recommender with sequences of users and of the context, and vectors of items."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import export
from data.errors import DataError
from trainer.export.saved_model_folder import load_signatures
from trainer.recommender import Recommender

pytestmark = pytest.mark.long

USERS, ITEMS, ROWS, DIMENSION = 40, 30, 2000, 4
ITEM_IDS = [f"i{number}" for number in range(ITEMS)]
SEQUENCES: dict[str, Any] = {
    "clicks": {"features": ["clicked", "clicked_age"], "target": ["item_id"], "order": "newest_first"},
    "visits": {"features": ("page", "seconds"), "encoder": "sum"},
}
TABLES = {"clicked": "item_id"}
SMALL = {
    "deep_hidden_units": (16,),
    "batch_size": 128,
    "epochs": 2,
    "learning_rate": 0.02,
    "l2_reg_embedding": 0.001,
    "seed": 3,
}
CONTEXT = ["page", "seconds"]


def sample_data() -> dict[str, pd.DataFrame]:
    """Users who click items of their own half, pages with missing ids and numbers, and items, one without a vector."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 5, USERS)
    users = pd.DataFrame({"user_id": range(USERS)})
    users["clicked"] = [
        [f"i{2 * rng.integers(ITEMS // 2) + row % 2}" for _ in range(n)] for row, n in enumerate(lengths)
    ]
    users["clicked_age"] = [rng.integers(1, 90, n) / 2 for n in lengths]
    users.loc[7, ["clicked", "clicked_age"]] = None
    items = pd.DataFrame({"item_id": ITEM_IDS, "title": rng.normal(size=(ITEMS, DIMENSION)).tolist()})
    items.at[5, "title"] = None
    rows = pd.DataFrame({"user_id": rng.integers(0, USERS, ROWS), "item_id": rng.choice(ITEM_IDS, ROWS)})
    rows["liked"] = (rows.user_id % 2 == rows.item_id.str[1:].astype(int) % 2) ^ (rng.random(ROWS) < 0.05)
    steps = rng.integers(0, 4, ROWS)
    rows["page"] = [[None if rng.random() < 0.1 else int(rng.integers(9)) for _ in range(n)] for n in steps]
    rows["seconds"] = [[None if rng.random() < 0.1 else float(rng.integers(99)) for _ in range(n)] for n in steps]
    return {"interactions": rows, "users": users, "items": items}


DATA = sample_data()
GIVEN = {"tasks": {"liked": "binary"}, "context": CONTEXT, "kinds": {"title": "vector"}, "sequences": SEQUENCES}


@pytest.fixture(scope="module")
def recommender() -> Recommender:
    return Recommender("wide_deep", **SMALL).fit(**DATA, **GIVEN, tables=TABLES)


def by_hand(recommender: Recommender, rows: pd.DataFrame) -> np.ndarray:
    """Predictions for rows that have all features, of the model itself: its inputs put together value by value."""
    saved = recommender._fitted.saved
    known = {name: saved.encoders[name].values.to_pylist() for name in ("user_id", "item_id", "page")}

    def encoded(name: str, value: Any) -> int:
        return 1 if value is None else 3 + known[name].index(value) if value in known[name] else 2

    def scaled(name: str, value: float | None) -> float:
        (_, fill), (_, mean, std) = saved.encoders[name].steps
        return ((fill if value is None else value) - mean) / std

    def padded(cells: list[Any], number: int, padding: float) -> np.ndarray:
        return np.array([[*cell, *[padding] * number][:number] for cell in cells]).reshape(-1, number)

    assert [own.name for own in saved.layout.sequences] == ["clicks", "visits"]
    clicks, visits = (own.length for own in saved.layout.sequences)
    newest = [slice(clicks), slice(-visits, None)]  # of lists that begin with the newest step, and that end with it
    ids = [np.array([[encoded(name, value)] for value in rows[name]]) for name in ("user_id", "item_id")] + [
        padded([[encoded("item_id", one) for one in cell][newest[0]] for cell in rows.clicked], clicks, -1),
        padded([[encoded("page", one) for one in cell][newest[1]] for cell in rows.page], visits, -1),
    ]
    numbers = [
        padded([[scaled("clicked_age", one) for one in cell][newest[0]] for cell in rows.clicked_age], clicks, 0),
        padded([[scaled("seconds", one) for one in cell][newest[1]] for cell in rows.seconds], visits, 0),
    ]
    none = np.zeros((len(rows), 0), np.float32)
    vectors = np.array(rows.title.tolist(), np.float32)
    logits = saved.model(
        np.concatenate(ids, axis=1).astype(np.int32),
        none,
        none,
        np.concatenate(numbers, axis=1).astype(np.float32),
        vectors,
    )
    return tf.sigmoid(logits).numpy()[:, 0]


def complete_rows(number: int) -> pd.DataFrame:
    """Rows with features of their own: lists longer than in training, with nulls, and unseen values."""
    rng = np.random.default_rng(1)
    rows = pd.DataFrame({"user_id": rng.integers(0, USERS + 5, number)})
    rows["item_id"] = [f"i{value}" for value in rng.integers(0, ITEMS + 5, number)]
    lengths = rng.integers(0, 9, (number, 2))
    rows["clicked"] = [[f"i{rng.integers(ITEMS + 5)}" for _ in range(n)] for n in lengths[:, 0]]
    rows["clicked_age"] = [rng.integers(1, 90, n).astype(float).tolist() for n in lengths[:, 0]]
    rows["page"] = [[None if rng.random() < 0.2 else int(rng.integers(12)) for _ in range(n)] for n in lengths[:, 1]]
    rows["seconds"] = [[float(rng.integers(99)) for _ in range(n)] for n in lengths[:, 1]]
    rows["title"] = rng.normal(size=(number, DIMENSION)).tolist()
    return rows


def test_predictions_are_those_of_the_model(recommender):
    rows = complete_rows(60)
    found = recommender.predict(rows)["liked"]
    assert found.std() > 0.05
    np.testing.assert_allclose(found, by_hand(recommender, rows), atol=1e-6)
    np.testing.assert_allclose(recommender.predict(recommender.encode(rows), encoded=True)["liked"], found, atol=1e-6)


def test_the_shared_table_holds_one_vocabulary(recommender):
    spec, encoders = recommender._fitted.saved.spec, recommender._fitted.saved.encoders
    assert spec.features["clicked"].table == "item_id" and spec.features["clicked"].unseen_id == 2
    assert encoders["clicked"].values.equals(encoders["item_id"].values)
    assert spec.sequences[0].encoder == "din" and spec.sequences[1].encoder == "sum"
    assert recommender.metrics["auc_roc"] > 0.6


def known_rows() -> pd.DataFrame:
    """Rows of known and of unknown users and items, with the features that the recommender knows of them."""
    rows = DATA["interactions"].iloc[:50][["user_id", "item_id", *CONTEXT]].copy()
    rows.loc[3, "user_id"], rows.loc[4, "item_id"] = 999, "nowhere"
    users, items = DATA["users"].set_index("user_id"), DATA["items"].set_index("item_id")
    rows["clicked"], rows["clicked_age"] = (
        [value if isinstance(value := users[name].get(user), list | np.ndarray) else [] for user in rows.user_id]
        for name in ("clicked", "clicked_age")
    )
    titles = [items.title.get(item) for item in rows.item_id]
    rows["title"] = [[0.0] * DIMENSION if title is None else title for title in titles]
    return rows


def test_users_and_items_have_their_sequences_and_vectors(recommender):
    rows = known_rows()
    assert [len(row) for row in rows.clicked][3] == 0 and any(title == [0.0] * DIMENSION for title in rows.title)
    found = recommender.predict(rows[["user_id", "item_id", *CONTEXT]])["liked"]
    np.testing.assert_allclose(found, by_hand(recommender, rows), atol=1e-6)
    for position in range(3):
        user, item, *_ = rows.iloc[position]
        context = {name: rows.iloc[position][name] for name in CONTEXT}
        assert recommender.predict(user, item, context=context) == pytest.approx(found.iloc[position], abs=1e-6)


@pytest.mark.parametrize("user", [2, 7, 999])
def test_recommend_equals_a_loop_of_predict(recommender, user):
    context = {"page": [3, None], "seconds": [5.0, 8.0]}
    scores = {item: recommender.predict(user, item, context=context) for item in ITEM_IDS}
    best = recommender.recommend(user, 5, exclude_seen=False, context=context)
    assert [item for item, _ in best] == sorted(scores, key=scores.get, reverse=True)[:5]
    assert dict(best) == pytest.approx({item: scores[item] for item, _ in best}, abs=1e-6)


def test_a_saved_recommender_predicts_the_same(recommender, tmp_path):
    recommender.save(tmp_path / "saved")
    rows = known_rows()[["user_id", "item_id", *CONTEXT]]
    loaded = Recommender.load(tmp_path / "saved")
    pd.testing.assert_frame_equal(loaded.predict(rows), recommender.predict(rows))
    context = {"page": [3], "seconds": [5.0]}
    assert loaded.recommend(2, 5, context=context) == recommender.recommend(2, 5, context=context)


def test_an_export_takes_raw_lists(recommender, tmp_path, capfd):
    recommender.save(tmp_path / "saved")
    words = ["--model_dir", str(tmp_path / "saved"), "--output", str(tmp_path / "out"), "--format", "savedmodel"]
    assert export.main(words) == 0, capfd.readouterr().err
    rows = complete_rows(30)

    def padded(name: str, null: Any) -> np.ndarray:
        width = max(map(len, rows[name]))
        return np.array(
            [[null if one is None else one for one in [*cell, *[null] * width][:width]] for cell in rows[name]]
        )

    given = {"user_id": rows[["user_id"]].to_numpy(), "item_id": rows[["item_id"]].to_numpy().astype("S")}
    given |= {"clicked": padded("clicked", "").astype("S"), "clicked_age": padded("clicked_age", np.nan)}
    # A null page at the end of a row counts, since it has seconds.
    given |= {"page": padded("page", np.iinfo(np.int64).min), "seconds": padded("seconds", np.nan)}
    given["title"] = np.array(rows.title.tolist(), np.float32)
    found = load_signatures(tmp_path / "out")["serving_raw"](given)["liked"][:, 0]
    np.testing.assert_allclose(found, recommender.predict(rows)["liked"], atol=1e-5)


def changed(name: str, column: str, row: int, value: Any) -> dict[str, pd.DataFrame]:
    frame = DATA[name].copy()
    frame.at[row, column] = value
    return DATA | {name: frame}


CLICKS = SEQUENCES["clicks"]
REJECTED: list[tuple[str, dict[str, Any]]] = [
    ("sequences is .'clicked'.; expected a dict, as in", {"sequences": ["clicked"]}),
    ("tables is 'item_id'; expected a dict", {"tables": "item_id"}),
    ("tables: 'click' is none of the features user_id, item_id", {"tables": {"click": "item_id"}}),
    (r"channel_spec.sequence.clicks: ", {"sequences": {"clicks": ["clicked"]}}),
    ("clicks.encoder: .*write one of sum, mean, din", {"sequences": {"clicks": CLICKS | {"encoder": "dinn"}}}),
    ("clicks.features.0.: .*did you mean 'clicked'", {"sequences": {"clicks": CLICKS | {"features": ["clickd"]}}}),
    ("clicks.target.0.: 'item_id' shares its table with no feature of the sequence", {"tables": {}}),
    ("feature_spec.title.table: ", {"tables": TABLES | {"title": "item_id"}}),
    (
        "sequences: 'both' has columns of users and context; those of a sequence are in one",
        {"sequences": {"both": {"features": ["clicked", "page"]}}},
    ),
    ("kinds: 'clicked': 'multihot'; expected a feature's column, and one of categorical, num",
     {"kinds": {"clicked": "multihot"}}),
    ("users: column 'clicked_age' has 9 items in row 4, and 'clicked', of the same sequence, [0-9]; expected as many",
     changed("users", "clicked_age", 4, [1.0] * 9) | {"sequences": {"clicks": CLICKS}}),
    ("'clicked' holds 'i1' where a list is expected", changed("users", "clicked", 4, "i1")),
    ("items: column 'title' has 3 numbers in row 4; expected a vector of 4, as in row 0",
     changed("items", "title", 4, [1.0, 2.0, 3.0])),
    ("'title' holds 'a'|'title' is numerical and holds 'a'", changed("items", "title", 4, ["a"] * 4)),
    ("items: column 'title' has no numbers in its first vector; drop",
     DATA | {"items": DATA["items"].assign(title=[[]] * ITEMS)}),
    ("'page' holds both integers and strings|'page' holds", changed("interactions", "page", 4, ["a"])
     | {"sequences": SEQUENCES | {"visits": {"features": ["page"]}}, "context": ["page"]}),
]  # fmt: skip


@pytest.mark.parametrize(("message", "changes"), REJECTED, ids=[message for message, _ in REJECTED])
def test_what_cannot_be_used_is_rejected(message, changes):
    with pytest.raises(DataError, match=message):
        Recommender("wide_deep", epochs=1).fit(**(DATA | GIVEN | {"tables": TABLES} | changes))


def test_invalid_rows_are_rejected(recommender):
    rows = complete_rows(4)
    encoded = recommender.encode(rows)
    requests = {
        "'title' has 2 numbers in row 1; expected a vector of 4": rows.assign(title=[[1.0] * 4, [1.0] * 2] * 2),
        "'clicked_age' has 0 items in row [0-9], and 'clicked' has [0-9]; they are columns of the sequence 'clicks'":
            rows.assign(clicked_age=[[]] * 4),
    }  # fmt: skip
    for message, frame in requests.items():
        with pytest.raises(DataError, match=message):
            recommender.predict(frame)
    with pytest.raises(DataError, match="'title' has 5 numbers in row 0; expected a vector of 4"):
        recommender.predict(encoded.assign(title=[[1.0] * 5] * 4), encoded=True)
    with pytest.raises(DataError, match="'title' is null in row 0"):
        recommender.predict(encoded.assign(title=None), encoded=True)
