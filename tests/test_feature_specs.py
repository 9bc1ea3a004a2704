"""Every shipped specification, from random CSV rows to an evaluated model."""

import json
from pathlib import Path

import pytest

import check_dataset
import gen_embedding_sizes
from tests.helpers import ROOT, left_to_all, losses, make_dataset, metrics, must, run_program, selected

pytestmark = pytest.mark.horovod
RUN_ALL = ROOT / "tests" / "distributed" / "programs" / "run_all.py"
SPECS = sorted(set((ROOT / "feature_specs").glob("*.yaml")) - set((ROOT / "feature_specs").glob("*_raw.yaml")))
# scripts/test.sh --all trains on the others, too.
USUAL = ("column_groups",)
ROWS, BATCH = 600, 128


@pytest.fixture(scope="module")
def folder(request, tmp_path_factory) -> Path:
    """Datasets of the specifications under test, and the results of training on each with two workers."""
    folder = tmp_path_factory.mktemp("specs")
    scenarios = []
    for name in selected(request, "name"):
        own, spec = folder / name, ROOT / "feature_specs" / f"{name}.yaml"
        data = make_dataset(own, spec, rows=ROWS)
        must(check_dataset.main([str(data)]))
        sizes = own / "sizes.json"
        given = ["--feature_spec_in", str(data / "feature_spec.yaml"), "--output", str(sizes)]
        must(gen_embedding_sizes.main([*given, "--max_size", "4"]))
        places = ["--dataset_path", str(data), "--model_dir", str(own / "models"), "--embedding_sizes_file", str(sizes)]
        common = [
            *places,
            "--deep_hidden_units",
            "16",
            "--eval_batch_size",
            str(BATCH),
            "--cpu",
            "--recipe",
            "published",
        ]
        train = ["--global_batch_size", str(BATCH), "--num_epochs", "2", "--results_dir", str(own / "train")]
        scenarios.append([*common, *train])
        scenarios.append([*common, "--evaluate", "--results_dir", str(own / "evaluate")])
    (folder / "scenarios.json").write_text(json.dumps(scenarios))
    done = run_program([RUN_ALL, folder / "scenarios.json"], workers=2, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def test_the_public_variants_exist():
    public = (
        "fspec_csv less_multihot less_numerical less_onehot more_multihot_moreless_hotness more_numerical more_onehot"
    )
    public += " no_categorical no_multihot no_numerical no_onehot"
    assert set(public.split()) <= {spec.stem for spec in SPECS}


@pytest.mark.parametrize("name", left_to_all([spec.stem for spec in SPECS], USUAL))
def test_specification_trains_and_evaluates_the_same(folder, name):
    trained, evaluated = metrics(folder / name / "train"), metrics(folder / name / "evaluate")
    assert losses(folder / name / "train")
    for key, value in trained.items():
        assert value == pytest.approx(evaluated[key], abs=1e-6, nan_ok=True) or best_was_earlier(folder / name)


def best_was_earlier(own: Path) -> bool:
    """Evaluation takes the best checkpoint, which need not be the last one."""
    architecture = json.loads((own / "models" / "model" / "architecture.json").read_text())
    return architecture["step"] < 2 * -(-ROWS // BATCH)
