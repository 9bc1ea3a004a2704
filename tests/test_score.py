"""A score through the commands: trained, evaluated and predicted with it, and kept with the model."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from data.errors import DataError
from data.spec.feature_spec import FeatureSpec
from main import main
from tests.helpers import ROOT, make_dataset, metrics, must, words
from tests.trainer.metrics.workers import LocalWorkers
from trainer.checkpoint.load_model import load_model
from trainer.cli import parse
from trainer.inputs import agree_on_inputs, open_inputs
from trainer.process.worker_env import WorkerEnv
from trainer.recommender import Recommender

FLAGS = words(
    "--model shared_bottom --expert_hidden_units 8 --tower_hidden_units 4 --global_batch_size 64 --eval_batch_size 100 "
    "--num_epochs 1 --recipe published --cpu"
)
OF_SPEC, OF_FLAG = "click * conversion", "click * conversion ** 0.5 * exp(ad_id_ctr)"
ROWS = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A dataset whose specification has a score and groups, and a run with another score."""
    folder = tmp_path_factory.mktemp("score")
    document = yaml.safe_load((ROOT / "feature_specs" / "three_tasks.yaml").read_text())
    document["feature_spec"]["display_id"] = {"dtype": "int64"}
    document["source_spec"]["test"][0]["features"].append("display_id")
    document["channel_spec"]["map"] = ["display_id"]
    document["score"] = OF_SPEC
    (folder / "spec.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    data = make_dataset(folder, folder / "spec.yaml", rows=ROWS)
    assert FeatureSpec.read(data / "feature_spec.yaml").score == OF_SPEC
    must(main(arguments(folder, *FLAGS, "--score", OF_FLAG, "--early_stopping_metric", "gauc/score")))
    return folder


def arguments(folder: Path, *more: str) -> list[str]:
    places = {"dataset_path": "data", "model_dir": "models", "results_dir": "results"}
    return [*(word for flag, name in places.items() for word in (f"--{flag}", str(folder / name))), "--cpu", *more]


def predictions(folder: Path, *more: str) -> pd.DataFrame:
    out = folder / "predictions.csv"
    must(main(arguments(folder, "--predict", str(out), "--keep", "ad_id_ctr", *more)))
    return pd.read_csv(out)


def of_flag(found: pd.DataFrame) -> np.ndarray:
    return found["prediction_click"] * found["prediction_conversion"] ** 0.5 * np.exp(found["ad_id_ctr"])


def test_a_run_measures_its_score_and_keeps_it(folder, capsys):
    measured = metrics(folder / "results")
    assert {key for key in measured if key.endswith("/score")} == {"streaming_map_val/score", "gauc/score"}
    assert load_model(folder / "models" / "model").spec.score == OF_FLAG
    found = predictions(folder)
    assert list(found)[-3:] == ["score", "display_id", "ad_id_ctr"]
    np.testing.assert_allclose(found["score"], of_flag(found), rtol=1e-5)
    assert f"score: {OF_FLAG}\n" in capsys.readouterr().out
    more = ["--evaluate", "--score_label", "conversion", "--ranking_metrics", "ndcg@2", "--slice", "platform"]
    must(main(arguments(folder, *more)))
    by_conversion = metrics(folder / "results")
    assert by_conversion["gauc/score"] != measured["gauc/score"] and by_conversion["ndcg@2/score"] > 0
    assert ",score," in (folder / "results" / "slices.csv").read_text()


def test_a_flag_takes_the_place_of_the_score_of_the_model(folder, capsys):
    found = predictions(folder, "--score", "spend / click")
    np.testing.assert_allclose(found["score"], found["prediction_spend"] / found["prediction_click"], rtol=1e-5)
    capsys.readouterr()
    found = predictions(folder, "--score", "log(ad_id_ctr - 100)")
    assert found["score"].isna().all()
    assert f"warning: {ROWS} of {ROWS} rows have no score: NaN, as of the logarithm" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--score", "click *"], "--score: the formula ends where a number or a name is expected; complete it"),
        (["--score", "click * clik"], "--score: at character 9: 'clik' is not in the specification; did you mean"),
        (["--score", "click * ad_id"], "--score: at character 9: 'ad_id' is in onehot_categorical; a formula may name"),
        (["--score_label", "spend"], "--score_label 'spend' is not one of the binary labels click, conversion"),
        (["--score_label", "click", "--disable_map_calculation"], "--score_label contradicts --disable_map_calculat"),
        (["--score_label", "click", "--eval_mapping", "train"], "--score_label click: the score ranks rows within"),
    ],
)
def test_mistakes_are_reported(folder, more, message):
    with pytest.raises(DataError) as caught:
        open_inputs(parse(arguments(folder, "--evaluate", *more), 1), WorkerEnv())
    assert str(caught.value).startswith(message)


def test_all_workers_take_the_score_of_the_checkpoint(folder):
    def work(comm):
        env = WorkerEnv(comm.rank, 2)
        config = parse(arguments(folder, "--evaluate"), 2, reads_checkpoint=comm.rank == 0)
        before = open_inputs(config, env)
        _, data = agree_on_inputs(config, before, comm, env)
        return before.spec.score, data.spec.score

    assert LocalWorkers(2).run(work) == [(OF_FLAG, OF_FLAG), (OF_SPEC, OF_FLAG)]


def test_a_finished_run_gets_another_score(folder):
    other = "conversion / click"
    must(main(arguments(folder, *FLAGS, "--use_checkpoint", "--score", other)))
    assert load_model(folder / "models" / "model").spec.score == other
    found = predictions(folder)
    np.testing.assert_allclose(found["score"], found["prediction_conversion"] / found["prediction_click"], rtol=1e-5)


def test_a_recommender_has_a_score(tmp_path):
    random = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "user_id": random.integers(0, 20, 400),
            "item_id": random.integers(0, 15, 400),
            "liked": random.integers(0, 2, 400),
            "rating": random.normal(3, 1, 400),
        }
    )
    small = {"epochs": 1, "batch_size": 100, "deep_hidden_units": (8,)}
    tasks = {"liked": "binary", "rating": "regression"}
    with pytest.raises(DataError, match="--score: at character 1: 'likes' is not in the specification; did you mean"):
        Recommender("wide_deep", score="likes * rating", **small).fit(rows, tasks=tasks)
    made = Recommender("wide_deep", score="liked ** 2 * rating", **small).fit(rows, tasks=tasks)
    made.save(tmp_path / "saved")
    for recommender in (made, Recommender.load(tmp_path / "saved")):
        found = recommender.batch_predict([(3, item) for item in range(15)])
        assert list(found) == ["liked", "rating", "score"]
        np.testing.assert_allclose(found["score"], found["liked"] ** 2 * found["rating"], rtol=1e-5)
        assert recommender.predict(3, 4) == pytest.approx(found.iloc[4].to_dict(), rel=1e-5)
        best = recommender.recommend(3, 5, exclude_seen=False)
        assert [item for item, _ in best] == found["score"].sort_values(ascending=False).index[:5].tolist()
        by_rating = recommender.recommend(3, 5, exclude_seen=False, score={"rating": 1.0})
        assert [item for item, _ in by_rating] == found["rating"].sort_values(ascending=False).index[:5].tolist()
    assert (
        json.loads((tmp_path / "saved" / "recommender.json").read_text())["options"]["score"] == "liked ** 2 * rating"
    )
