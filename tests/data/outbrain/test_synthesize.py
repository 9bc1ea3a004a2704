import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from data.errors import DataError
from data.outbrain import synthesize as command
from data.outbrain.synthesize import main, synthesize
from data.outbrain.synthetic import RandomSource, users_of_events
from tests.helpers import ROOT, environment

DISPLAYS, SEED = 20_000, 3
DAY_MS = 86_400_000
COLUMNS = {
    "clicks_train": "display_id,ad_id,clicked",
    "clicks_test": "display_id,ad_id",
    "events": "display_id,uuid,document_id,timestamp,platform,geo_location",
    "promoted_content": "ad_id,document_id,campaign_id,advertiser_id",
    "documents_meta": "document_id,source_id,publisher_id,publish_time",
    "documents_topics": "document_id,topic_id,confidence_level",
    "documents_categories": "document_id,category_id,confidence_level",
    "documents_entities": "document_id,entity_id,confidence_level",
    "page_views_sample": "uuid,document_id,timestamp,platform,geo_location,traffic_source",
}
TAG_TABLES = {"documents_topics": 3.78, "documents_categories": 1.83, "documents_entities": 1.85}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """The folder of a synthetic dataset."""
    folder = tmp_path_factory.mktemp("synthetic") / "made" / "raw"
    assert main(["--output", str(folder), "--displays", str(DISPLAYS), "--seed", str(SEED)]) == 0
    return folder


@pytest.fixture(scope="module")
def sample_data(raw):
    """Its tables as pandas reads them, every cell of text kept as it is, and the truth."""
    texts = {"uuid": str, "geo_location": str, "platform": str, "publish_time": str}
    tables = {
        name: pd.read_csv(raw / f"{name}.csv", dtype=texts, keep_default_na=False, na_values={
            "source_id": "", "publisher_id": ""}) for name in COLUMNS
    }  # fmt: skip
    truth = pd.read_parquet(raw / "truth" / "click_probabilities.parquet")
    return SimpleNamespace(**tables, truth=truth, summary=json.loads((raw / "synthetic.json").read_text()))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def mean_average_precision(clicks, score):
    """MAP@12 of displays with one click, and the average precision of each; ties by chance."""
    shuffled = clicks.assign(score=score).sample(frac=1, random_state=0)
    ranks = shuffled.groupby("display_id")["score"].rank(ascending=False, method="first")
    precision = 1 / ranks[shuffled["clicked"] == 1]
    return precision.mean(), precision


def test_tables_have_the_published_columns_and_format(raw, sample_data):
    for name, columns in COLUMNS.items():
        text = (raw / f"{name}.csv").read_bytes()
        assert text.split(b"\n", 1)[0].decode() == columns
        assert b'"' not in text and b"\r" not in text and text.endswith(b"\n")
    assert sorted(path.name for path in raw.iterdir()) == sorted(
        [*(f"{name}.csv" for name in COLUMNS), "synthetic.json", "truth"]
    )
    assert sample_data.events["uuid"].str.fullmatch("[0-9a-f]{14,16}").all()
    assert sample_data.documents_entities["entity_id"].str.fullmatch("[0-9a-f]{32}").all()
    assert sample_data.events["platform"].isin(["1", "2", "3", r"\N"]).all()
    geo = sample_data.events["geo_location"]
    assert geo[geo != ""].str.fullmatch(r"--|US(>[A-Z]{2}(>\d{3})?)?|(?!US)[A-Z]{2}(>[0-9A-Z]{2})?").all()
    for parts in (r"--", r"US", r"US>[A-Z]{2}", r"US>[A-Z]{2}>\d{3}", r"(?!US)[A-Z]{2}", r"(?!US)[A-Z]{2}>..", ""):
        assert geo.str.fullmatch(parts).any(), parts
    times = sample_data.documents_meta["publish_time"]
    assert times[times != ""].str.fullmatch(r"\d{4}-\d\d-\d\d \d\d:00:00").all()


def test_displays_have_distinct_ads_and_one_click(sample_data):
    for clicks in (sample_data.clicks_train, sample_data.clicks_test):
        assert not clicks.duplicated(["display_id", "ad_id"]).any()
        sizes = clicks.groupby("display_id").size()
        assert set(sizes) == set(range(2, 13))
        assert sizes.mean() == pytest.approx(87_141_731 / 16_874_593, abs=0.12)
        assert clicks["display_id"].is_monotonic_increasing
    assert (sample_data.clicks_train.groupby("display_id")["clicked"].sum() == 1).all()
    assert set(sample_data.clicks_train["clicked"]) == {0, 1}
    # The position of an ad in its display says nothing.
    assert sample_data.clicks_train.groupby("display_id")["ad_id"].is_monotonic_increasing.all()


def test_keys_match_across_tables(sample_data):
    assert sample_data.events["display_id"].tolist() == list(range(1, DISPLAYS + DISPLAYS // 5 + 1))
    assert sample_data.clicks_train["display_id"].unique().tolist() == list(range(1, DISPLAYS + 1))
    assert set(sample_data.clicks_test["display_id"]) == set(range(DISPLAYS + 1, len(sample_data.events) + 1))
    ads = set(sample_data.clicks_train["ad_id"]) | set(sample_data.clicks_test["ad_id"])
    assert sample_data.promoted_content["ad_id"].tolist() == list(range(1, len(sample_data.promoted_content) + 1))
    assert ads <= set(sample_data.promoted_content["ad_id"])
    by_campaign = sample_data.promoted_content.groupby("campaign_id")["advertiser_id"].nunique()
    assert (by_campaign == 1).all()
    meta = sample_data.documents_meta["document_id"]
    assert meta.is_unique
    for table in (sample_data.events, sample_data.promoted_content, sample_data.page_views_sample):
        known = table["document_id"].isin(meta)
        assert 0.9 < known.mean() <= 1
    assert not sample_data.events["document_id"].isin(meta).all(), "documents that documents_meta lacks"
    known = sample_data.documents_meta.dropna()
    assert (known.groupby("source_id")["publisher_id"].nunique() == 1).all()


def test_platforms_locations_and_users(sample_data):
    shares = sample_data.events["platform"].value_counts(normalize=True)
    for platform, share in {"2": 0.475, "1": 0.394, "3": 0.131}.items():
        assert shares[platform] == pytest.approx(share, abs=0.012)
    assert 1 <= (sample_data.events["platform"] == r"\N").sum() <= 5
    countries = sample_data.events["geo_location"].str.split(">").str[0]
    assert (countries == "US").mean() == pytest.approx(0.8, abs=0.012)
    others = countries[~countries.isin(["US", "--", ""])].value_counts()
    assert others.iloc[0] > 5 * others.iloc[10] > 0
    of_users = sample_data.events["uuid"].value_counts()
    assert (of_users == 1).mean() == pytest.approx(0.884, abs=0.002)
    assert len(sample_data.events) / len(of_users) == pytest.approx(23_120_126 / 19_794_967, rel=0.01)
    assert 5 < of_users.max() <= 49
    consistent = (
        sample_data.events[sample_data.events["platform"] != r"\N"]
        .groupby("uuid")[["platform", "geo_location"]]
        .nunique()
    )
    assert (consistent == 1).all(axis=None), "a user has one location"


def test_a_user_of_many_has_at_most_49_events():
    counts = np.bincount(users_of_events(RandomSource(0), 3_000_000))
    assert counts.max() == 49 and counts.min() == 1
    assert (counts == 1).mean() == pytest.approx(0.884, abs=1e-4)


def test_times_have_the_published_range_and_rhythm(sample_data):
    times = sample_data.events["timestamp"]
    train, test = times[:DISPLAYS], times[DISPLAYS:]
    assert train.is_monotonic_increasing and test.is_monotonic_increasing
    assert times.min() == 61 and times.max() == 1_295_999_805
    days = train // DAY_MS
    assert days.value_counts(normalize=True).sort_index().to_numpy() == pytest.approx(np.full(13, 1 / 13), abs=1e-3)
    assert (test // DAY_MS >= 13).mean() == pytest.approx(0.5, abs=1e-3)
    assert set(test // DAY_MS) == set(range(15))
    by_hour = (times % DAY_MS // (DAY_MS // 24)).value_counts()
    assert by_hour[20] > 3 * by_hour[3] > 0


def test_ads_occur_as_often_as_published(sample_data):
    of_ads = sample_data.clicks_train["ad_id"].value_counts()
    assert (of_ads == 1).mean() == pytest.approx(0.227, abs=0.03)
    assert (of_ads < 10).mean() == pytest.approx(0.617, abs=0.03)
    assert (of_ads < 1000).mean() == pytest.approx(0.975, abs=0.01)
    assert of_ads.max() < 0.3 * DISPLAYS
    tested = sample_data.clicks_test["ad_id"].unique()
    assert np.isin(tested, of_ads.index).mean() == pytest.approx(0.829, abs=0.04)
    ads = len(sample_data.promoted_content)
    assert sample_data.promoted_content["document_id"].nunique() / ads == pytest.approx(185_709 / 559_583, abs=0.01)
    assert sample_data.promoted_content["campaign_id"].nunique() / ads == pytest.approx(35_000 / 559_583, abs=0.01)


def test_a_larger_set_has_182_rows_per_ad(tmp_path):
    synthesize(tmp_path / "raw", 120_000, seed=1)
    clicks = pd.read_csv(tmp_path / "raw" / "clicks_train.csv")
    of_ads = clicks["ad_id"].value_counts()
    assert of_ads.mean() == pytest.approx(87_141_731 / 478_950, rel=0.05)
    for least, share in {2: 0.227, 10: 0.617, 1000: 0.975}.items():
        assert (of_ads < least).mean() == pytest.approx(share, abs=0.015)
    tested = pd.read_csv(tmp_path / "raw" / "clicks_test.csv")["ad_id"].unique()
    assert np.isin(tested, of_ads.index).mean() == pytest.approx(0.829, abs=0.02)


def test_document_tags_and_missing_cells(sample_data):
    meta = sample_data.documents_meta
    assert len(meta) / len(sample_data.events) == pytest.approx(2_999_334 / 23_120_126, rel=0.02)
    assert (meta["publish_time"] == "").mean() == pytest.approx(0.337, abs=0.003)
    assert meta["publisher_id"].isna().mean() == pytest.approx(0.021, abs=0.002)
    assert meta["source_id"].isna().sum() == round(0.0008 * len(meta))
    for name, rows in TAG_TABLES.items():
        table = getattr(sample_data, name)
        tag = table.columns[1]
        assert len(table) / len(meta) == pytest.approx(rows, rel=0.03), name
        assert not table.duplicated(["document_id", tag]).any(), name
        assert table["confidence_level"].between(1e-6, 1).all(), name
        assert not meta["document_id"].isin(table["document_id"]).all(), f"documents without {name}"
        starts = (table["document_id"] != table["document_id"].shift()).sum()
        assert starts == table["document_id"].nunique(), f"{name}: rows of a document are adjacent"
        assert (table.groupby("document_id")["confidence_level"].is_monotonic_decreasing).all(), name
    assert sample_data.documents_categories["category_id"].nunique() == 97
    assert sample_data.documents_categories["category_id"].between(1000, 2999).all()
    assert set(sample_data.documents_topics["topic_id"]) <= set(range(300))
    assert sample_data.documents_topics["topic_id"].nunique() > 290
    top = sample_data.documents_categories.groupby("document_id")["confidence_level"].first()
    assert (top == 0.92).mean() > 0.7 and sample_data.documents_topics["confidence_level"].median() < 0.15


def test_page_views(sample_data):
    views = sample_data.page_views_sample
    assert len(views) / len(sample_data.events) == pytest.approx(9_999_999 / 23_120_126, rel=1e-3)
    assert views["timestamp"].between(0, DAY_MS - 1).all()
    assert views["document_id"].is_monotonic_increasing
    assert set(views["traffic_source"]) == {1, 2, 3}
    both = views.merge(sample_data.events.drop_duplicates("uuid"), on="uuid", suffixes=("", "_event"))
    assert len(both) / len(views) == pytest.approx(0.4, abs=0.03)
    assert (both["geo_location"] == both["geo_location_event"]).all()


def test_true_probabilities_sum_to_one(sample_data):
    keys = ["display_id", "ad_id"]
    pd.testing.assert_frame_equal(sample_data.truth[keys], sample_data.clicks_train[keys])
    assert sample_data.truth["probability"].dtype == np.float64 and (sample_data.truth["probability"] > 0).all()
    np.testing.assert_allclose(sample_data.truth.groupby("display_id")["probability"].sum(), 1, rtol=0, atol=1e-12)


def test_click_rates_match_the_probabilities(sample_data):
    rows = sample_data.truth.assign(clicked=sample_data.clicks_train["clicked"])
    rows["bin"] = pd.qcut(rows["probability"], 20, labels=False)
    rows["variance"] = rows["probability"] * (1 - rows["probability"])
    sums = rows.groupby("bin")[["clicked", "probability", "variance"]].sum()
    deviations = (sums["clicked"] - sums["probability"]) / np.sqrt(sums["variance"])
    assert deviations.abs().max() < 4 and (deviations**2).mean() < 2
    assert sums["probability"].iloc[-1] > 10 * sums["probability"].iloc[0], "the bins differ"


def test_ceiling_is_the_map_of_the_best_ranking(sample_data):
    by_hand = []
    for _, probabilities in sample_data.truth.groupby("display_id")["probability"]:
        falling = sorted(probabilities, reverse=True)
        by_hand.append(sum(probability / rank for rank, probability in enumerate(falling, 1)))
    assert sample_data.summary["map_at_12_ceiling"] == pytest.approx(np.mean(by_hand), abs=1e-12)
    reached, precision = mean_average_precision(sample_data.clicks_train, sample_data.truth["probability"])
    assert abs(reached - np.mean(by_hand)) < 3 * precision.std() / np.sqrt(DISPLAYS)


def test_map_of_rankings(sample_data):
    clicks = sample_data.clicks_train
    assert 0.70 < sample_data.summary["map_at_12_ceiling"] < 0.74
    assert mean_average_precision(clicks, 0)[0] == pytest.approx(0.488, abs=0.01)
    by_ad = clicks.groupby("ad_id")["clicked"].agg(["sum", "size"])
    rate = (by_ad["sum"] + 20 * clicks["clicked"].mean()) / (by_ad["size"] + 20)
    assert 0.56 < mean_average_precision(clicks, clicks["ad_id"].map(rate))[0] < 0.60


def test_tastes_affect_clicks(sample_data):
    """Lifts of category and platform, counted on one half of the displays, rank the other half better than chance."""
    rows = sample_data.clicks_train.merge(sample_data.promoted_content, on="ad_id").merge(
        sample_data.events[["display_id", "platform"]], on="display_id"
    )
    dominant = sample_data.documents_categories.drop_duplicates("document_id").set_index("document_id")["category_id"]
    rows["category"] = rows["document_id"].map(dominant).fillna(0)
    rows["expected"] = 1 / rows.groupby("display_id")["ad_id"].transform("size")
    is_first = rows["display_id"] % 2 == 0

    def lift(keys):
        sums = rows[is_first].groupby(keys)[["clicked", "expected"]].sum() + 20
        index = pd.MultiIndex.from_frame(rows[keys]) if len(keys) > 1 else pd.Index(rows[keys[0]])
        return (sums["clicked"] / sums["expected"]).reindex(index).fillna(1).to_numpy()

    second = rows[~is_first]
    by_category = mean_average_precision(second, lift(["category"])[~is_first])[0]
    by_platform = mean_average_precision(second, lift(["category", "platform"])[~is_first])[0]
    assert by_platform > by_category + 0.02


def test_ads_similar_to_the_page_get_more_clicks(sample_data):
    topics = sample_data.documents_topics
    norms = np.sqrt((topics["confidence_level"] ** 2).groupby(topics["document_id"]).sum())
    topics = topics.assign(weight=topics["confidence_level"] / topics["document_id"].map(norms))
    rows = sample_data.clicks_train.merge(sample_data.events[["display_id", "document_id"]], on="display_id")
    rows = rows.merge(sample_data.promoted_content[["ad_id", "document_id"]], on="ad_id", suffixes=("_page", "_ad"))
    pairs = rows[["document_id_page", "document_id_ad"]].drop_duplicates()
    joined = pairs.merge(topics, left_on="document_id_page", right_on="document_id").merge(
        topics, left_on=["document_id_ad", "topic_id"], right_on=["document_id", "topic_id"]
    )
    joined["cosine"] = joined["weight_x"] * joined["weight_y"]
    cosine = joined.groupby(["document_id_page", "document_id_ad"])["cosine"].sum().reset_index()
    rows = rows.merge(cosine, how="left", on=["document_id_page", "document_id_ad"]).fillna({"cosine": 0})
    rows["expected"] = 1 / rows.groupby("display_id")["ad_id"].transform("size")
    like = rows["cosine"] > 0.5
    assert like.sum() > 500
    lifts = [rows[chosen]["clicked"].sum() / rows[chosen]["expected"].sum() for chosen in (like, ~like)]
    assert lifts[0] > 1.4 * lifts[1]


def test_summary_matches_the_tables(sample_data):
    of_ads, summary = sample_data.clicks_train["ad_id"].value_counts(), sample_data.summary
    head = {"format_version": 1, "displays": DISPLAYS, "rows": len(sample_data.clicks_train), "seed": SEED}
    assert {name: summary[name] for name in head} == head
    of_users = sample_data.events["uuid"].value_counts()
    geo = sample_data.events["geo_location"]
    expected = {
        "test_displays": DISPLAYS // 5,
        "ads_per_display": len(sample_data.clicks_train) / DISPLAYS,
        "ads_in_train": len(of_ads),
        "rows_per_ad": of_ads.mean(),
        "ads_once": (of_ads == 1).mean(),
        "ads_below_10": (of_ads < 10).mean(),
        "ads_below_1000": (of_ads < 1000).mean(),
        "test_ads_in_train": np.isin(sample_data.clicks_test["ad_id"].unique(), of_ads.index).mean(),
        "share_of_desktop": (sample_data.events["platform"] == "1").mean(),
        "share_of_mobile": (sample_data.events["platform"] == "2").mean(),
        "share_of_tablet": (sample_data.events["platform"] == "3").mean(),
        "events_without_platform": (sample_data.events["platform"] == r"\N").sum(),
        "share_of_us": (geo.str.split(">").str[0] == "US").mean(),
        "events_without_geo": (geo == "").sum(),
        "users": len(of_users),
        "users_once": (of_users == 1).mean(),
        "most_events_of_a_user": of_users.max(),
        "documents_without_publish_time": (sample_data.documents_meta["publish_time"] == "").mean(),
        "documents_without_publisher": sample_data.documents_meta["publisher_id"].isna().mean(),
        "documents_without_source": sample_data.documents_meta["source_id"].isna().mean(),
    }
    assert summary["table_rows"] == {name: len(getattr(sample_data, name)) for name in COLUMNS}
    assert summary["marginals"] == pytest.approx(expected, abs=1e-6)


def test_bytes_depend_on_the_seed_only(tmp_path):
    def make(folder, seed):
        flags = ["--output", str(tmp_path / folder), "--displays", "3000", "--seed", str(seed)]
        done = subprocess.run(
            [sys.executable, "-m", "data.outbrain.synthesize", *flags],
            cwd=ROOT, env=environment(PYTHONHASHSEED=str(len(folder))), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert all(line.startswith("outbrain:") for line in done.stderr.splitlines()), done.stderr
        assert "MAP@12" in done.stderr and not done.stdout
        return contents(tmp_path / folder)

    first, again, other = make("first", 5), make("again again", 5), make("other", 6)
    assert first == again
    assert first.keys() == other.keys() and all(first[name] != other[name] for name in first)


def test_tables_do_not_depend_on_block_sizes(tmp_path, monkeypatch):
    synthesize(tmp_path / "large", 3000, seed=1)
    monkeypatch.setattr("data.outbrain.synthesize.DISPLAYS_PER_BLOCK", 170)
    monkeypatch.setattr("data.outbrain.synthetic.ROWS_PER_BLOCK", 7)
    synthesize(tmp_path / "small", 3000, seed=1)
    for name in COLUMNS:
        large, small = ((tmp_path / size / f"{name}.csv").read_bytes() for size in ("large", "small"))
        assert large == small, name
    truths = [pd.read_parquet(tmp_path / size / "truth") for size in ("large", "small")]
    pd.testing.assert_frame_equal(*truths, check_exact=True)


@pytest.mark.parametrize("seed", range(3))
def test_smallest_dataset(tmp_path, seed):
    synthesize(tmp_path / "raw", 50, seed=seed)
    clicks = pd.read_csv(tmp_path / "raw" / "clicks_train.csv")
    assert not clicks.duplicated(["display_id", "ad_id"]).any()
    assert clicks.groupby("display_id")["clicked"].sum().tolist() == [1] * 50
    assert pd.read_csv(tmp_path / "raw" / "clicks_test.csv")["display_id"].nunique() == 10


def test_non_empty_folder_is_rejected(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["--output", str(tmp_path), "--displays", "100"]) == 2
    assert "is not empty (notes.txt); choose another folder" in capsys.readouterr().err
    assert contents(tmp_path) == {"notes.txt": b"mine"}
    assert main(["--output", str(tmp_path / "notes.txt"), "--displays", "100"]) == 2
    assert "is a file" in capsys.readouterr().err


def test_too_few_displays_are_rejected(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--output", str(tmp_path / "raw"), "--displays", "49"])
    assert stopped.value.code == 2 and "expected a whole number from 50" in capsys.readouterr().err
    with pytest.raises(DataError, match="--displays 49: expected at least 50"):
        synthesize(tmp_path / "raw", 49)
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize("there", [False, True], ids=["made", "empty folder"])
def test_failure_after_the_first_rows_leaves_nothing(tmp_path, monkeypatch, capsys, there):
    output = tmp_path / "deep" / "raw"
    if there:
        output.mkdir(parents=True)

    def full_disk(outbrain, displays):
        assert any(path.stat().st_size for path in tmp_path.rglob("documents_meta.csv")), "something was written"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "event_columns", full_disk)
    assert main(["--output", str(output), "--displays", "100"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == ([output.parent, output] if there else [])
