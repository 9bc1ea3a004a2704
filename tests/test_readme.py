"""The README's commands, as a newcomer would type them."""

import json
import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml

from data.synthetic_logs import Effects, draw_day, roc_auc, value_names
from tests.documented import bash, bash_blocks, bash_with_one_main
from tests.helpers import ROOT, environment, metrics, real_data
from trainer.checkpoint.store import CheckpointStore
from trainer.cli import make_parser

README = (ROOT / "README.md").read_text()
PAGES = ("README.md", "docs/features.md", "docs/flags.md", "docs/training.md", "docs/published_examples.md")


@pytest.fixture(scope="module")
def clicks(tmp_path_factory) -> Path:
    """The folder that the quick start fills: raw logs, dataset, models, predictions, export."""
    folder = tmp_path_factory.mktemp("quick") / "clicks"
    script = "\n".join(bash_blocks("README.md", "Quick start"))
    # Less data, and an end: training would go on until early stopping ends it, for minutes.
    script, logs = re.subn(r"(--output clicks/raw) ", r"\1 --rows 60000 ", script)
    assert logs == 1
    training = r"^(python main\.py .*--results_dir \S+)"
    script, runs = re.subn(training, r"\1 --num_epochs 1", script, flags=re.MULTILINE)
    assert runs == 2
    script = script.replace("clicks/", f"{folder}/")
    training, rest = script.split("python export.py", maxsplit=1)
    bash_with_one_main(training, folder.parent, timeout=900)
    bash(f"python export.py{rest}", timeout=600)
    return folder


def test_quick_start_learns_the_pattern_of_the_logs(clicks):
    best = json.loads((clicks / "raw" / "synthetic.json").read_text())["best_auc_of_last_day"]
    for results in ("results", "mmoe_results"):
        found = metrics(clicks / results)
        for label, auc in best.items():
            assert 0.55 + 0.3 * (auc - 0.5) < found[f"auc_roc/{label}"] < auc + 0.02
    assert (clicks / "exported" / "saved_model.pb").is_file()
    assert list((clicks / "results").glob("*.png"))


def test_quick_start_predicts_unseen_devices(clicks):
    new = pd.read_csv(clicks / "raw" / "new.csv", dtype=str)
    predicted = pd.read_csv(clicks / "predictions.csv", dtype={"id": str})
    assert list(predicted["id"]) == list(new["id"])
    # The labels of the new rows are not in the file, but the generator draws them again.
    day = draw_day(Effects.drawn(0), value_names(0), 10, len(new), 0)
    logs = pd.concat([pd.read_csv(path, dtype=str) for path in (clicks / "raw" / "logs").iterdir()])
    unseen = ~new["device_ip"].isin(logs["device_ip"]).to_numpy()
    assert unseen.mean() > 0.2
    for rows in (unseen, ~unseen):
        clicked, chances = day.labels["click"][rows], predicted["prediction_click"].to_numpy()[rows]
        assert roc_auc(clicked, chances) > 0.7
        assert chances.mean() == pytest.approx(clicked.mean(), rel=0.25)


@pytest.mark.slow
@pytest.mark.horovod
def test_two_workers_predict_new_rows_like_one(clicks):
    (command,) = re.findall(r"python main.py --predict .*?(?<!\\)\n", README, flags=re.DOTALL)[:1]
    command = command.replace("clicks/predictions.csv", "clicks/of_two.csv").replace("clicks/", f"{clicks}/")
    bash(f"horovodrun -np 2 sh hvd_wrapper.sh {command}", timeout=300)
    assert (clicks / "of_two.csv").read_bytes() == (clicks / "predictions.csv").read_bytes()


def test_quick_start_shows_the_inferred_specification(clicks):
    shown = re.findall(r"```yaml\n(.*?)```", README.split("\n## Quick start\n")[1], flags=re.DOTALL)[0]
    # Without the numbers, which are those of more rows.
    shown, written = (
        re.sub(r"[\d.,]*\d", "N", text).splitlines()
        for text in (shown, (clicks / "raw" / "feature_spec.yaml").read_text())
    )
    assert [line for line in shown if line not in written] == []


@pytest.mark.horovod
def test_training_on_encoded_data(tmp_path):
    blocks = bash_blocks("README.md", "Data with integer ids")
    assert len(blocks) == 2
    folder = tmp_path / "example"
    folder.mkdir()
    script = "\n".join(blocks).replace("example/", f"{folder}/")
    output = bash(script.replace("--size 20000", "--size 6000"), timeout=600)
    assert metrics(folder / "results")["auc_roc"] > 0.6
    assert "auc_roc" in output
    assert list(folder.glob("results/*.png"))
    store = CheckpointStore(folder / "model")
    three_epochs = store.steps()[-1]
    (supervised,) = bash_blocks("README.md", "Fault tolerance")
    bash(supervised.replace("example/", f"{folder}/"), timeout=600)
    assert store.steps()[-1] == three_epochs // 3 * 4
    events = [json.loads(line) for line in (folder / "results" / "supervise.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["started", "registered", "finished"]
    assert events[0]["step"] == three_epochs and events[0]["command"][-1] == "--use_checkpoint"
    assert events[-1]["code"] == 0


@pytest.mark.slow
@pytest.mark.horovod
def test_outbrain_from_raw_tables_to_a_model_and_new_rows(tmp_path):
    blocks = [*bash_blocks("README.md", "Outbrain"), *bash_blocks("README.md", "Serving")]
    assert len(blocks) == 3
    script = re.sub(r"(?<!data\.)\boutbrain/", f"{tmp_path}/", "\n".join(blocks))
    bash(script.replace(" exported ", f" {tmp_path}/exported "), timeout=600)
    assert metrics(tmp_path / "results")["auc_roc"] > 0.6
    assert (tmp_path / "new" / "feature_spec.yaml").is_file()
    assert (tmp_path / "exported" / "saved_model.pb").is_file()


def test_label_check_prints_the_documented_output(tmp_path):
    text = (ROOT / "docs" / "tasks.md").read_text()
    (script,) = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    shown = re.findall(r"```\n(main.py: error:.*?)```", text, flags=re.DOTALL)
    (tmp_path / "example").mkdir()
    command = ["bash", "-c", script.replace("example/", f"{tmp_path}/example/")]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 2
    assert len(shown) == 1 and done.stderr.replace(f"{tmp_path}/", "").endswith(shown[0])


def test_documented_specification_is_the_shipped_one():
    section = README.split("\n## Data with integer ids\n")[1]
    shown = re.findall(r"```yaml\n(.*?)```", section, flags=re.DOTALL)[0]
    shipped = yaml.safe_load((ROOT / "feature_specs" / "tiny.yaml").read_text())
    shown = yaml.safe_load(shown)
    assert shown["feature_spec"] == shipped["feature_spec"]
    assert shown["source_spec"] == shipped["source_spec"]
    assert {name: names for name, names in shown["channel_spec"].items() if names} == shipped["channel_spec"]


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_that_a_page_names_exists(page):
    known = {name for action in make_parser()._actions for name in action.option_strings}
    others = {
        "--raw",
        "--memory_limit",
        "--use_dask",
        "--dask_scheduler",
        "--sample_rows",
        "--oov_buckets",
        "--max_size",
        "--output",
        "--all",
        "--gpu",
        "--signal",
        "--signal_of",
        "--results_dir",
        "--input",
        "--feature_spec_in",
        "--size",
        "--displays",
        "--data_path",
        "--metadata_path",
        "--workflow",
        "--extend",
        "--clicks",
        "--max_restarts",
        "--format",
        "--infer",
        "--label",
        "--time",
        "--write_spec",
        "--cpu",
    }
    ours = re.sub(r"^docker (.*\\\n)*.*$", "", (ROOT / page).read_text(), flags=re.MULTILINE)  # Docker's are others
    named = set(re.findall(r"--[a-z0-9_]+", ours))
    assert named - known - others == set()


def anchors(text: str) -> set[str]:
    """The fragments that a page's headings and explicit anchors make, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.mark.parametrize("page", PAGES)
def test_every_linked_file_and_heading_exists(page):
    links = re.findall(r"\]\((?!http)([^)]+)\)", (ROOT / page).read_text())
    assert links
    for link in links:
        name, _, fragment = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        assert not fragment or fragment in anchors(target.read_text()), link


def quickstart(output: Path, *arguments: str) -> float:
    bash(f"bash scripts/quickstart.sh --output '{output}' {' '.join(arguments)}", timeout=1500)
    assert list((output / "results").glob("*.png"))
    assert (output / "predictions.parquet").is_file()
    return metrics(output / "evaluation")["auc_roc"]


@pytest.mark.slow
@pytest.mark.horovod
def test_quickstart_gets_close_to_the_known_best_auc(tmp_path):
    auc = quickstart(tmp_path / "quickstart")
    figures = json.loads((tmp_path / "quickstart" / "quality.json").read_text())
    assert figures["closed"] >= 0.6
    assert figures["auc_popularity"] + 0.05 < auc < figures["auc_truth"]


@pytest.mark.slow
@pytest.mark.horovod
@pytest.mark.real_data
def test_movielens_quickstart_reaches_auc_080(tmp_path):
    assert quickstart(tmp_path / "quickstart", "--raw", str(real_data("ml-1m"))) >= 0.80


def test_the_flag_reference_has_every_flag_once():
    rows = re.findall(r"^\| `(--[a-z0-9_]+)` \|", (ROOT / "docs" / "flags.md").read_text(), flags=re.MULTILINE)
    flags = {name for action in make_parser()._actions for name in action.option_strings if name.startswith("--")}
    assert sorted(rows) == sorted(flags - {"--help"})
