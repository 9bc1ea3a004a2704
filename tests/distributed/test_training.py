"""The main job under horovodrun: real processes, real files."""

import json
from collections import defaultdict
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from main import main
from tests.helpers import ROOT, left_to_all, losses, make_dataset, metrics, must, run_program, selected, words
from trainer.checkpoint.store import Checkpoint, CheckpointStore

pytestmark = pytest.mark.horovod
RUN_ALL = ROOT / "tests" / "distributed" / "programs" / "run_all.py"
ROWS, BATCH, BENCHMARK_STEPS = 2000, 128, 20

SMALL = ["--deep_hidden_units", "32", "16", "--global_batch_size", str(BATCH), "--num_epochs", "2", "--log_every", "1"]
SMALL += words("--deep_learning_rate 0.002 --deep_warmup_epochs 1 --deterministic --cpu --recipe published")
PRECISE = ["--deep_dropout", "0"]
VARIANTS = {
    "amp": ["--amp"],
    "xla": ["--xla"],
    "amp_xla": ["--amp", "--xla"],
    "float16": ["--amp", "--amp_dtype", "float16"],
}
# Ways to the same sums of the tables' gradients.
EXCHANGES = {
    "whole": ["--table_exchange", "whole"],
    "rows": ["--table_exchange", "rows"],
    "sharded": ["--shard_embeddings"],
}
EVAL_BATCHES = (2, 30, 514, 100_000)
# How a benchmark of training ends.
ENDS = {"seconds": ["--benchmark_seconds", "1"], "steps": ["--benchmark_steps", str(BENCHMARK_STEPS)]}
RESUMED = ("two_to_shards", "two_from_shards", "one_from_shards")
# scripts/test.sh --all runs the others, too.
USUAL_VARIANTS, USUAL_EXCHANGES, USUAL_EVAL_BATCHES = ("amp_xla",), ("sharded",), (30,)
USUAL_ENDS, USUAL_RESUMED = ("seconds",), ("two_to_shards", "one_from_shards")
DIFFERENCES = words("--deep_hidden_units 8 --global_batch_size 64 --num_epochs 1 --shard_embeddings off")
DIFFERENCES += words("--checkpoint_every 2 --keep_checkpoints 9")
ASKED = ["--ranking_metrics", "ndcg@3", "mrr@2", "--slice", "platform", "display_id", "--slice_values", "3"]


class Work:
    """The folders of this module's runs."""

    def __init__(self, folder: Path, data: Path):
        self.folder, self.data = folder, data

    def results(self, name: str) -> Path:
        return self.folder / name / "results"

    def models(self, name: str) -> Path:
        return self.folder / name / "models"

    def arguments(self, name: str, *more: str, models: str | None = None) -> list[str]:
        places = ["--dataset_path", str(self.data), "--results_dir", str(self.results(name))]
        return [*places, "--model_dir", str(self.models(models or name)), *SMALL, *more]


@pytest.fixture(scope="module")
def work(request, tmp_path_factory) -> Work:
    """Runs the scenarios under test on two workers (one launch), and their counterparts in this process."""
    folder = tmp_path_factory.mktemp("a folder with spaces and ümläuts")
    work = Work(folder, make_dataset(folder, ROOT / "feature_specs" / "with_map.yaml", rows=ROWS))
    scenarios = [work.arguments("two", *PRECISE)]
    variants = [f"two_{name}" for name in selected(request, "variant")]
    # Tests that are not parametrized by an exchange use the checkpoints of sharded tables.
    exchanges = [f"two_{name}" for name in dict.fromkeys(["sharded", *selected(request, "exchange")])]
    flags = {f"two_{name}": flags for name, flags in (VARIANTS | EXCHANGES).items()}
    scenarios += [work.arguments(name, *PRECISE, *flags[name]) for name in (*variants, *exchanges)]
    scenarios += [work.arguments(name, *PRECISE, "--fp16_allreduce") for name in selected(request, "halved")]
    # From a checkpoint of tables that every worker holds to shards, and from shards to such tables.
    on = [*PRECISE, "--use_checkpoint", "--checkpoint"]
    scenarios += [work.arguments("two_to_shards", *on, str(step_of(work, "two", 1)), "--shard_embeddings")]
    if "two_from_shards" in selected(request, "resumed"):
        scenarios += [work.arguments("two_from_shards", *on, str(step_of(work, "two_sharded", 1)))]
    scenarios += [work.arguments("two_sharded_eval", "--evaluate", "--shard_embeddings", models="two")]
    if selected(request, "again"):
        from_first_epoch = ["--use_checkpoint", "--checkpoint", str(step_of(work, "two_dropout", 1))]
        scenarios += [work.arguments("two_dropout"), work.arguments("two_dropout_again")]
        scenarios += [work.arguments("two_dropout_resumed", *from_first_epoch)]
    scenarios += [work.arguments("two_finished", *PRECISE, "--use_checkpoint", models="two")]
    for size in selected(request, "size"):
        saved = ["--predictions_file", str(folder / f"two_{size}.parquet")]
        scenarios += [
            work.arguments(
                f"two_eval_{size}", "--evaluate", "--eval_batch_size", str(size), *saved, *ASKED, models="two"
            )
        ]
    scenarios += [prediction(work, "two")]
    benchmark = ["--benchmark", "--benchmark_warmup_steps", "2"]
    scenarios += [work.arguments(f"two_benchmark_{end}", *benchmark, *ENDS[end]) for end in selected(request, "end")]
    evaluation = [*benchmark, *ENDS["steps"], "--evaluate"]
    scenarios += [work.arguments(name, *evaluation, models="two") for name in selected(request, "evaluated")]
    large = large_dataset(folder)
    scenarios += [work.arguments("two_differences", *DIFFERENCES, "--dataset_path", str(large))]
    step_6 = work.models("two_differences") / "checkpoints" / "step-6"
    from_difference = ["--use_checkpoint", "--checkpoint", str(step_6), "--dataset_path", str(large)]
    scenarios += [work.arguments("two_from_difference", *DIFFERENCES, *from_difference)]
    (folder / "scenarios.json").write_text(json.dumps(scenarios))
    done = run_program([RUN_ALL, folder / "scenarios.json"], workers=2, timeout=900)
    (folder / "output.txt").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stderr[-4000:]
    must(main(work.arguments("one", *PRECISE)))
    from_shards = ["--use_checkpoint", "--checkpoint", str(step_of(work, "two_sharded", 1))]
    must(main(work.arguments("one_from_shards", *PRECISE, *from_shards, "--shard_embeddings")))
    must(main(work.arguments("one_eval", "--evaluate", "--eval_batch_size", "333", *ASKED, models="two")))
    must(main(prediction(work, "one")))
    return work


def prediction(work: Work, name: str) -> list[str]:
    """The arguments of a prediction, without the model's flags."""
    more = ["--predict", str(work.folder / f"{name}_new.parquet"), "--keep", "topic_id_list", "ad_id"]
    arguments = work.arguments(f"{name}_predict", "--eval_batch_size", "514", *more, models="two")
    start = arguments.index("--deep_hidden_units")
    return arguments[:start] + arguments[start + 3 :]


def large_dataset(folder: Path) -> Path:
    """Seven steps of a table that has 115 MB with its slots: checkpoints leave most of it out, which saves 64 MiB."""
    spec = (ROOT / "feature_specs" / "tiny.yaml").read_text()
    (folder / "large.yaml").write_text(spec.replace("cardinality: 50", "cardinality: 70000, embedding_dim: 200"))
    return make_dataset(folder / "large", folder / "large.yaml", rows=64 * 6 + 30)


def steps_per_epoch() -> int:
    return -(-ROWS // BATCH)


def step_of(work: Work, name: str, epoch: int) -> Path:
    return work.models(name) / "checkpoints" / f"step-{epoch * steps_per_epoch()}"


def arrays(work: Work, name: str) -> dict[str, np.ndarray]:
    checkpoint = CheckpointStore(work.models(name)).open("last")
    assert checkpoint.step == 2 * steps_per_epoch()
    return {array: checkpoint.read(array) for array in checkpoint.arrays}


def assert_bit_equal(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_one_and_two_workers_agree_at_every_step(work):
    one, two = losses(work.results("one")), losses(work.results("two"))
    assert list(one) == list(two) == list(range(1, 2 * steps_per_epoch() + 1))
    np.testing.assert_allclose(list(one.values()), list(two.values()), atol=1e-4)
    for name, value in metrics(work.results("one")).items():
        assert abs(value - metrics(work.results("two"))[name]) < 1e-3, name


@pytest.mark.parametrize("exchange", left_to_all(EXCHANGES, USUAL_EXCHANGES))
def test_table_exchanges_train_the_same(work, exchange):
    two, other = losses(work.results("two")), losses(work.results(f"two_{exchange}"))
    np.testing.assert_allclose(list(other.values()), list(two.values()), atol=1e-5)
    for name, array in arrays(work, f"two_{exchange}").items():
        np.testing.assert_allclose(array, arrays(work, "two")[name], atol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("halved", ["two_fp16_allreduce"])
def test_fp16_allreduce_trains_nearly_the_same(work, halved):
    two, other = losses(work.results("two")), losses(work.results(halved))
    np.testing.assert_allclose(list(other.values()), list(two.values()), atol=2e-3)
    assert other != two


@pytest.mark.parametrize("resumed", left_to_all(RESUMED, USUAL_RESUMED))
def test_checkpoints_fit_sharded_tables_and_any_size(work, resumed):
    assert "; 2 of 8 tables are sharded over 2 worker(s)" in (work.folder / "output.txt").read_text()
    two, found = losses(work.results("two")), losses(work.results(resumed))
    assert min(found) == steps_per_epoch() + 1
    np.testing.assert_allclose(list(found.values()), [two[step] for step in found], atol=1e-4)


def test_sharded_tables_evaluate_the_same(work):
    for name, value in metrics(work.results("two_sharded_eval")).items():
        assert abs(value - metrics(work.results("one_eval"))[name]) < 1e-6, name


def test_the_planted_signal_is_learned(work):
    assert metrics(work.results("two"))["auc_roc"] > 0.6


@pytest.mark.parametrize("variant", left_to_all(VARIANTS, USUAL_VARIANTS))
def test_mixed_precision_and_xla_reach_the_same_metrics(work, variant):
    plain, other = metrics(work.results("two")), metrics(work.results(f"two_{variant}"))
    assert abs(plain["auc_roc"] - other["auc_roc"]) < 0.01
    assert abs(plain["loss_val"] - other["loss_val"]) < 0.01


# In the usual run, the resume from a difference compares such runs of two workers.
@pytest.mark.slow
@pytest.mark.parametrize("again", ["two_dropout_again", "two_dropout_resumed"])
def test_equal_and_resumed_runs_end_with_bit_equal_weights(work, again):
    assert_bit_equal(arrays(work, "two_dropout"), arrays(work, again))


@pytest.mark.slow
def test_one_worker_resumes_a_run_of_two(work):
    on = ["--use_checkpoint", "--checkpoint", str(step_of(work, "two", 1))]
    must(main(work.arguments("one_resumed", *PRECISE, *on)))
    resumed, whole = losses(work.results("one_resumed")), losses(work.results("two"))
    assert min(resumed) == steps_per_epoch() + 1
    np.testing.assert_allclose(list(resumed.values()), [whole[step] for step in resumed], atol=1e-4)


def test_two_workers_resume_from_what_either_has_changed(work):
    whole, resumed = (work.models(name) / "checkpoints" for name in ("two_differences", "two_from_difference"))
    assert [Checkpoint(whole / f"step-{step}").full is None for step in (2, 4, 6, 7)] == [True, False, False, True]
    last = (Checkpoint(folder / "step-7") for folder in (whole, resumed))
    assert_bit_equal(*({name: checkpoint.read(name) for name in checkpoint.arrays} for checkpoint in last))


@pytest.mark.slow
def test_two_then_three_then_one_worker_train_one_run(work):
    """Each takes over in the middle of an epoch; three workers share batches of 128 rows and of what is left, 80."""
    often = [*PRECISE, "--checkpoint_every", "10", "--keep_checkpoints", "99"]
    on = [*often, "--use_checkpoint", "--checkpoint"]
    runs = [("hand_over_2", 2, often), ("hand_over_3", 3, [*on, str(mid_epoch(work, "hand_over_2", 10))])]
    for name, workers, flags in runs:
        scenarios = work.folder / f"{name}.json"
        scenarios.write_text(json.dumps([work.arguments(name, *flags)]))
        done = run_program([RUN_ALL, scenarios], workers=workers)
        assert done.returncode == 0, done.stderr[-4000:]
    must(main(work.arguments("hand_over_1", *on, str(mid_epoch(work, "hand_over_3", 30)))))
    whole = losses(work.results("one"))
    for name, after in (("hand_over_3", 10), ("hand_over_1", 30)):
        resumed = losses(work.results(name))
        assert min(resumed) == after + 1
        np.testing.assert_allclose(list(resumed.values()), [whole[step] for step in resumed], atol=1e-4)
        for key, value in metrics(work.results("one")).items():
            assert abs(value - metrics(work.results(name))[key]) < 1e-3, key


def mid_epoch(work: Work, name: str, step: int) -> Path:
    return work.models(name) / "checkpoints" / f"step-{step}"


def test_resuming_a_finished_run_does_nothing(work):
    assert not losses(work.results("two_finished"))
    assert "nothing to do" in (work.folder / "output.txt").read_text()


@pytest.mark.parametrize("size", left_to_all(EVAL_BATCHES, USUAL_EVAL_BATCHES))
def test_metrics_do_not_depend_on_batch_size_or_workers(work, size):
    expected = metrics(work.results("one_eval"))
    for name, value in metrics(work.results(f"two_eval_{size}")).items():
        assert abs(value - expected[name]) < 1e-6, name  # logits differ in the last bits by batch size


@pytest.mark.parametrize("size", left_to_all(EVAL_BATCHES, USUAL_EVAL_BATCHES))
def test_slices_do_not_depend_on_batch_size_or_workers(work, size):
    found, expected = (
        pd.read_csv(work.results(name) / "slices.csv", dtype={"value": str})
        for name in (f"two_eval_{size}", "one_eval")
    )
    pd.testing.assert_frame_equal(found, expected, check_exact=False, rtol=0, atol=1e-5)
    assert {"ndcg@3", "ndcg@3_se", "auc_roc_se"} < set(found)
    assert found.groupby("column")["rows"].sum().to_dict() == {"platform": ROWS, "display_id": ROWS}
    predicted = pq.read_table(work.folder / f"two_{size}.parquet")
    platform = pq.read_table(sorted(work.data.glob("test_*.parquet")), columns=["platform"])["platform"].to_numpy()
    of_platform = found[(found["column"] == "platform") & (found["value"] != "(others)")]
    assert len(of_platform) == 3
    for line in of_platform.to_dict("records"):
        here = platform == int(line["value"])
        scores, labels = (predicted[name].to_numpy()[here] for name in ("prediction_clicked", "label_clicked"))
        assert (line["rows"], line["positives"]) == (here.sum(), labels.sum())
        assert abs(line["auc_roc"] - brute_force_auc(scores, labels)) < 1e-9


@pytest.mark.parametrize("size", left_to_all(EVAL_BATCHES, USUAL_EVAL_BATCHES))
def test_metrics_equal_a_brute_force_over_the_predictions(work, size):
    table = pq.read_table(work.folder / f"two_{size}.parquet").to_pandas()
    found = metrics(work.results(f"two_eval_{size}"))
    assert list(table["row"]) == list(range(ROWS))
    stored = pq.read_table(sorted(work.data.glob("test_*.parquet")), columns=["clicked", "display_id"]).to_pandas()
    assert (table["label_clicked"] == stored["clicked"]).all()
    assert (table["display_id"] == stored["display_id"]).all()
    scores, labels = table["prediction_clicked"].to_numpy(), table["label_clicked"].to_numpy().astype(int)
    assert abs(found["auc_roc"] - brute_force_auc(scores, labels)) < 1e-9
    assert abs(found["streaming_map_val"] - brute_force_map(table["display_id"], scores, labels)) < 1e-9
    loss = -np.mean(labels * np.log(scores) + (1 - labels) * np.log1p(-scores))
    assert abs(found["loss_val"] - loss) < 1e-9


def test_two_workers_predict_what_one_predicts(work):
    one, two = (pq.read_table(work.folder / f"{name}_new.parquet") for name in ("one", "two"))
    assert two.column_names == ["row", "label_clicked", "prediction_clicked", "display_id", "topic_id_list", "ad_id"]
    assert one.drop_columns(["prediction_clicked"]) == two.drop_columns(["prediction_clicked"])
    np.testing.assert_allclose(two["prediction_clicked"], one["prediction_clicked"], rtol=0, atol=1e-6)
    assert not (work.results("two_predict") / "metrics.json").exists()


def brute_force_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    positive, negative = scores[labels == 1], scores[labels == 0]
    above = (positive[:, None] > negative[None, :]).sum() + 0.5 * (positive[:, None] == negative[None, :]).sum()
    return float(above / (positive.size * negative.size))


def brute_force_map(groups, scores, labels) -> float:  # type: ignore[no-untyped-def]
    """Average precision at 12 of each group, over all orders of tied rows where there are ties."""
    members = defaultdict(list)
    for group, score, label in zip(groups, scores, labels, strict=True):
        members[group].append((score, label))
    values = []
    for rows in members.values():
        positives = sum(label for _, label in rows)
        if positives:
            ties = len({score for score, _ in rows}) < len(rows)
            orders = (
                [order for order in permutations(rows) if is_sorted(order)] if ties else [sorted(rows, reverse=True)]
            )
            values.append(np.mean([average_precision(order, positives) for order in orders]))
    return float(np.mean(values))


def is_sorted(order) -> bool:  # type: ignore[no-untyped-def]
    return all(first[0] >= second[0] for first, second in zip(order[:-1], order[1:], strict=True))


def average_precision(order, positives) -> float:  # type: ignore[no-untyped-def]
    hits, total = 0, 0.0
    for rank, (_, label) in enumerate(order[:12], start=1):
        if label:
            hits += 1
            total += hits / rank
    return total / min(12, positives)


@pytest.mark.parametrize("end", left_to_all(ENDS, USUAL_ENDS))
def test_benchmark_reports_its_figure_and_step_parts(work, end):
    log = (work.results(f"two_benchmark_{end}") / "log.json").read_text()
    last = json.loads(log.splitlines()[-1].removeprefix("DLLL "))["data"]
    measured = last["measured_steps"]
    assert measured == BENCHMARK_STEPS - 2 if end == "steps" else measured >= 1
    parts = ("train_throughput", "step_ms_p50", "wait_for_data_ms", "compute_ms", "communicate_ms", "update_ms")
    assert all(last[part] > 0 for part in parts)
    assert log.count("batch_samplesps") == measured + 1  # and its unit
    assert not work.models(f"two_benchmark_{end}").exists()


@pytest.mark.slow
@pytest.mark.parametrize("evaluated", ["two_benchmark_eval"])
def test_an_evaluation_benchmark_repeats_a_small_dataset(work, evaluated):
    log = (work.results(evaluated) / "log.json").read_text()
    last = json.loads(log.splitlines()[-1].removeprefix("DLLL "))["data"]
    assert last["validation_throughput"] > 0
    assert last["measured_steps"] == BENCHMARK_STEPS - 2


def test_model_folder_describes_the_best_weights(work):
    model = work.models("two") / "model"
    architecture = json.loads((model / "architecture.json").read_text())
    assert architecture["model"] == "wide_deep"
    assert architecture["tasks"] == ["clicked"]
    assert (model / "feature_spec.yaml").is_file()
    assert set(json.loads((model / "embedding_sizes.json").read_text()).values()) != set()
