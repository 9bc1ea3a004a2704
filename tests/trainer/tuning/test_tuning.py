"""scripts/tune.py: the search space, what is rejected before the first trial, and studies of a main.py that is fast."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import optuna
import pyarrow.parquet as pq
import pytest
import yaml

from data.errors import DataError
from scripts import tune
from tests.helpers import ROOT, environment, make_dataset
from trainer.logging.log import RunLog
from trainer.metrics.metric import Direction
from trainer.tuning import request
from trainer.tuning.request import check_request
from trainer.tuning.space import parse_search, parse_searches
from trainer.tuning.study import TRIALS
from trainer.tuning.trials import OUTPUT, TrialFailed, evaluations, run_trial

RATE = "deep_learning_rate=log:1e-4:1e-2"
METRIC = ["--early_stopping_metric", "auc_roc"]


# The search space


@pytest.mark.parametrize(
    ("text", "value", "words"),
    [
        (RATE, 0.001, ["--deep_learning_rate", "0.001"]),
        ("--deep_dropout=uniform:0:0.5", 0.25, ["--deep_dropout", "0.25"]),
        ("num_experts=int:2:8:2", 4, ["--num_experts", "4"]),
        ("wide_part=choice:false,true", "true", ["--wide_part"]),
        ("wide_part=choice:false,true", "false", []),
        ("batch_norm=choice:off,on", "off", ["--batch_norm", "off"]),
        ("deep_hidden_units=choice:1024 512,64", "1024 512", ["--deep_hidden_units", "1024", "512"]),
        ("model=choice:mmoe,ple", "ple", ["--model", "ple"]),
    ],
)
def test_values_become_words(text, value, words):
    assert parse_search(text).words(value) == words


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("deep_learning_rat=log:1:2", "did you mean deep_learning_rate?"),
        ("results_dir=choice:a,b", "no flag of the model or of the training"),
        ("deep_learning_rate", "expected FLAG=log:LOW:HIGH"),
        ("deep_learning_rate=log", "expected FLAG=log:LOW:HIGH"),
        ("deep_learning_rate=normal:0:1", "expected FLAG=log:LOW:HIGH"),
        ("deep_learning_rate=log:0:1", "expected LOW above 0, below HIGH"),
        ("deep_learning_rate=log:1:0.5", "below HIGH"),
        ("deep_dropout=uniform:nan:1", "below HIGH, both finite"),
        ("deep_dropout=uniform:0:0.1:0.2", "expected FLAG="),
        ("deep_dropout=uniform:a:b", "a:b are not numbers"),
        ("num_experts=int:2:4.5", "2:4.5 are not whole numbers"),
        ("num_experts=uniform:2:4", "expected int or choice"),
        ("num_experts=int:2:7:2", "STEP must be at least 1 and lead from LOW to HIGH"),
        ("activation=int:1:2", "takes no such numbers; expected choice"),
        ("wide_part=choice:on,off", "expected choice:false,true"),
        ("activation=choice:relu,relu", "must differ"),
        ("activation=choice:relu,", "none may be empty"),
    ],
)
def test_wrong_searches_say_what_is_expected(text, message):
    with pytest.raises(DataError) as error:
        parse_search(text)
    assert message in str(error.value) and text in str(error.value)


def test_a_flag_is_searched_once():
    with pytest.raises(DataError, match="--search deep_learning_rate: given 2 times"):
        parse_searches([RATE, "deep_learning_rate=choice:1,2"])
    with pytest.raises(DataError, match="--search is missing"):
        parse_searches([])


# What is checked before the first trial


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A dataset with a mapping for validation, one that shares a file with test, and one without labels apart."""
    data = make_dataset(tmp_path_factory.mktemp("tuning"), ROOT / "feature_specs" / "tiny.yaml", rows=400)
    path = data / "feature_spec.yaml"
    document = yaml.safe_load(path.read_text())
    (test,) = document["source_spec"]["test"]
    pq.write_table(pq.read_table(data / test["files"][0]), data / "valid.parquet")
    document["source_spec"]["valid"] = [test | {"files": ["valid.parquet"]}]
    document["source_spec"]["like_test"] = [test | {"files": ["valid.parquet", test["files"][-1]]}]
    path.write_text(yaml.safe_dump(document))
    del document["source_spec"]["valid"]
    (data / "no_valid.yaml").write_text(yaml.safe_dump(document))
    return data


def checked(data: Path, *flags: str, search: str = RATE, workers: int = 1) -> request.TuningRequest:
    return check_request(parse_searches([search]), ["--dataset_path", str(data), *flags], workers)


def test_the_metric_is_the_one_that_decides_about_checkpoints(data):
    default = checked(data)
    assert (default.metric, default.direction) == ("loss_val", Direction.SMALLER)
    published = checked(data, "--recipe", "published")
    assert (published.metric, published.direction) == ("auc_roc", Direction.LARGER)
    chosen = checked(data, "--early_stopping_metric", "loss_val")
    assert (chosen.metric, chosen.direction) == ("loss_val", Direction.SMALLER)


@pytest.mark.parametrize(
    ("flags", "search", "message"),
    [
        (
            ["--fspec_file", "no_valid.yaml", "--recipe", "published"],
            RATE,
            "on the mapping 'test', whose rows must not choose anything",
        ),
        (["--eval_mapping", "test"], RATE, "on the mapping 'test', whose rows must not choose anything"),
        (["--eval_mapping", "like_test"], RATE, "is a file of the mappings 'like_test' and 'test'"),
        (["--eval_mapping", "train"], RATE, "is a file of the mappings 'train' and 'train'"),
        (["--results_dir", "x"], RATE, "--results_dir cannot be given to trials"),
        (["--use_checkpoint"], RATE, "--use_checkpoint cannot be given to trials"),
        (["--evaluate"], RATE, "trials train: remove --evaluate"),
        (["--benchmark"], RATE, "trials train: remove --evaluate"),
        (["--deep_learning_rate", "0.1"], RATE, "--deep_learning_rate is searched, and given to all trials"),
        (["--num_epoch", "1"], RATE, "did you mean --num_epochs?"),
        (["--early_stopping_metric", "calibration"], RATE, "is best at 1"),
        (["--early_stopping_metric", "rmse"], RATE, "'rmse' is not one of"),
        ([], "deep_dropout=uniform:0:2", "--search deep_dropout=uniform:0:2: --deep_dropout must be in"),
        ([], "optimizer=choice:adam,adan", "--search optimizer=choice:adam,adan: "),
    ],
)
def test_mistakes_are_found_before_the_first_trial(data, flags, search, message):
    with pytest.raises(DataError) as error:
        checked(data, *flags, search=search)
    assert message in str(error.value)


def test_several_workers_run_under_horovodrun(data, tmp_path):
    command = checked(data, workers=2).command(tmp_path, ["--batch_norm"])
    assert Path(command[0]).name == "horovodrun" and command[1:3] == ["-np", "2"]
    assert command[3:5] == [sys.executable, str(ROOT / "main.py")]
    assert command[5:] == [
        *("--dataset_path", str(data), "--batch_norm"),
        *("--model_dir", str(tmp_path / "models"), "--results_dir", str(tmp_path / "results")),
    ]


def test_mistakes_are_reported_without_tensorflow(tmp_path):
    program = "import sys; from scripts import tune; code = tune.main(sys.argv[1:]); "
    program = f"import sys, types; sys.modules['optuna'] = types.ModuleType('optuna'); {program}"
    program += "print('tensorflow' in sys.modules, code)"
    command = [sys.executable, "-c", program, "--output", tmp_path / "out", "--trials", "1", "--search", RATE]
    done = subprocess.run(
        [*map(str, command), "--", "--dataset_path", str(tmp_path)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", "2"]
    assert "feature_spec.yaml" in done.stderr and not (tmp_path / "out").exists()


def test_missing_optuna_is_reported(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert tune.main(["--output", str(tmp_path / "out"), "--trials", "1", "--search", RATE]) == 2
    assert "tune.py needs the package optuna" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# A trial


def test_evaluations_are_read_from_the_log(tmp_path):
    log = RunLog(tmp_path / "log.json")
    log.parameters({"epoch": 7, "auc_roc": 0.1})
    log.log([1, 20], {"loss": 0.5, "epoch": 0.1})
    log.log([10], {"auc_roc": 0.6, "loss_val": 0.7, "epoch": 1})
    log.log([10], {"gate_entropy/click": 0.6, "epoch": 1})
    log.log([20], {"auc_roc": float("nan"), "loss_val": 0.6, "epoch": 2})
    log.log([30], {"auc_roc": 1, "loss_val": 0.5, "epoch": 3})
    log.log([], {"auc_roc": 0.9})
    assert evaluations(tmp_path / "log.json", "auc_roc") == [(1, 0.6), (3, 1.0)]


# Stands in for main.py: in its second of three epochs it evaluates twice --deep_learning_rate, otherwise once.
MAIN = """
import json, sys, time
from pathlib import Path

rate, models, results = (
    sys.argv[sys.argv.index(name) + 1] for name in ("--deep_learning_rate", "--model_dir", "--results_dir")
)
(Path(models) / "model").mkdir(parents=True)
print("the output of main.py", flush=True)
if "--xla" in sys.argv:
    sys.exit("not finite")
for epoch in range(1, 4):
    value = None if "--amp" in sys.argv else float(rate) * (2 if epoch == 2 else 1)
    record = {"type": "LOG", "step": [10 * epoch], "data": {"auc_roc": value, "epoch": epoch}}
    with open(Path(results) / "log.json", "a") as log:
        log.write(f"DLLL {json.dumps(record)}\\n")
    time.sleep(1 if float(rate) < 0.5 and epoch == 1 else 0)
"""


@pytest.fixture
def fake_main(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "fake_main.py"
    path.write_text(MAIN)
    monkeypatch.setattr(request, "MAIN", path)
    monkeypatch.setattr("trainer.tuning.trials.POLL_SECONDS", 0.05)
    return path


def trial(folder: Path, main: Path, rate: float, *more: str, on_epoch=lambda epoch, value: None) -> float:
    places = ["--model_dir", folder / "models", "--results_dir", folder / "results"]
    command = [sys.executable, main, "--deep_learning_rate", rate, *places, *more]
    return run_trial(list(map(str, command)), folder, folder / "results", "auc_roc", on_epoch)


def test_a_trial_is_worth_its_best_epoch(tmp_path, fake_main):
    seen: list = []
    assert trial(tmp_path / "0", fake_main, 0.75, on_epoch=lambda *both: seen.append(both)) == 1.5
    assert seen == [(1, 0.75), (2, 1.5), (3, 0.75)]
    assert (tmp_path / "0" / OUTPUT).read_text() == "the output of main.py\n"


def test_a_trial_ends_when_it_is_pruned(tmp_path, fake_main):
    def prune(epoch, value):
        raise KeyError("hopeless")

    with pytest.raises(KeyError, match="hopeless"):
        trial(tmp_path / "0", fake_main, 0.25, on_epoch=prune)
    assert evaluations(tmp_path / "0" / "results" / "log.json", "auc_roc") == [(1, 0.25)], "its process has ended"


@pytest.mark.parametrize(("flag", "message"), [("--xla", "the command ended with code 1"), ("--amp", "never had a")])
def test_a_trial_without_a_value_fails(tmp_path, fake_main, flag, message):
    with pytest.raises(TrialFailed, match=f"{message}.*{OUTPUT}"):
        trial(tmp_path / "0", fake_main, 0.75, flag)


# Studies


@pytest.fixture
def study(data, tmp_path, fake_main, capsys):
    """Returns a function that runs tune.py, checks its exit code and returns what it printed."""

    def run(trials: int, *more: str, code: int = 0, search: str = "deep_learning_rate=uniform:0.5:1") -> str:
        own = ["--output", str(tmp_path / "out"), "--trials", str(trials), "--search", search]
        assert tune.main([*own, "--pruner", "none", "--", "--dataset_path", str(data), *METRIC, *more]) == code
        return "".join(capsys.readouterr())

    return run


def folders(output: Path) -> set[str]:
    return {path.name for path in (output / TRIALS).iterdir()}


def test_a_study_finds_the_best_trial_and_resumes(study, tmp_path):
    output = tmp_path / "out"
    first = study(3)
    assert folders(output) == {"0", "1", "2"} and "best of 3 trials" in first
    second = study(5)
    assert folders(output) == {"0", "1", "2", "3", "4"} and "trial 2:" not in second.split("best of")[0]
    values = {
        path.name: evaluations(path / "results" / "log.json", "auc_roc")[1][1] for path in (output / TRIALS).iterdir()
    }
    assert len(set(values.values())) == 5, "a resumed study draws other values"
    best = max(values, key=lambda name: values[name])
    assert f"best of 5 trials: trial {best}, auc_roc {values[best]:.5f}: --deep_learning_rate" in second
    assert [path.parent.name for path in output.glob(f"{TRIALS}/*/models")] == [best]
    assert "trial 5" not in study(5)


def test_another_study_in_the_folder_is_an_error(study, tmp_path):
    study(1)
    assert "holds a study with other flags of main.py" in study(2, "--seed", "1", code=2)
    assert "holds a study with other --search" in study(2, search="deep_learning_rate=uniform:0.5:2", code=2)
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    assert "holds thesis.txt and no study" in study(1, code=2)


def test_a_study_ends_when_trials_keep_failing(study, tmp_path):
    said = study(9, "--xla", code=1)
    assert "3 trials in a row have failed" in said and "no trial has run to its end" in said
    assert folders(tmp_path / "out") == {"0", "1", "2"}


def test_trials_of_a_killed_process_count_as_failed(study, tmp_path):
    study(1)
    storage = f"sqlite:///{tmp_path / 'out' / 'study.db'}"
    optuna.load_study(study_name="main.py", storage=storage).ask()  # never told
    study(3)
    states = [one.state.name for one in optuna.load_study(study_name="main.py", storage=storage).trials]
    assert states == ["COMPLETE", "FAIL", "COMPLETE"]


def test_hopeless_trials_are_pruned(data, tmp_path, fake_main, capsys):
    words = ["--output", str(tmp_path / "out"), "--trials", "9", "--search", "deep_learning_rate=uniform:0.01:1"]
    assert tune.main([*words, "--", "--dataset_path", str(data), *METRIC]) == 0
    trials = optuna.load_study(study_name="main.py", storage=f"sqlite:///{tmp_path / 'out' / 'study.db'}").trials
    pruned = [one for one in trials if one.state.name == "PRUNED"]
    assert pruned and "ended after epoch 1, with auc_roc" in capsys.readouterr().out
    for one in pruned:
        earlier = [done.params["deep_learning_rate"] for done in trials[: one.number] if done.state.name == "COMPLETE"]
        assert len(earlier) >= 4 and one.params["deep_learning_rate"] < max(earlier)
    settings = optuna.load_study(study_name="main.py", storage=f"sqlite:///{tmp_path / 'out' / 'study.db'}").user_attrs
    assert json.loads(json.dumps(settings["settings"]))["metric"] == "auc_roc"
