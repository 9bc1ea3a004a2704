import json
import re

import pytest

from data.errors import DataError
from tests.helpers import ROOT
from trainer.cli import make_options, make_parser, parse


def flags() -> list[str]:
    return [name for action in make_parser()._actions for name in action.option_strings]


def test_flags_are_the_reviewed_list():
    listed = (ROOT / "tests" / "trainer" / "flags.txt").read_text().split()
    assert sorted(flags()) == sorted(listed), "a new flag is a decision: put it into tests/trainer/flags.txt"


def test_defaults_of_the_published_recipe():
    options = parse(["--recipe", "published"], 1).as_dict()
    published = {
        "fspec_file": "feature_spec.yaml",
        "use_checkpoint": False,
        "log_filename": "log.json",
        "global_batch_size": 131072,
        "eval_batch_size": 131072,
        "num_epochs": 20,
        "cpu": False,
        "amp": False,
        "xla": False,
        "linear_learning_rate": 0.02,
        "deep_learning_rate": 0.00012,
        "deep_warmup_epochs": 6,
        "deep_hidden_units": [1024] * 5,
        "deep_dropout": 0.1,
        "combiner": "sum",
        "evaluate": False,
        "benchmark": False,
        "benchmark_warmup_steps": 500,
        "benchmark_steps": 1000,
        "affinity": "unique_interleaved",
    }
    assert {name: options[name] for name in published} == published
    json.dumps(options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--global_batchsize", "4"], "did you mean --global_batch_size"),
        (["--model", "wide_dep"], "did you mean wide_deep"),
        (["--num_epochs", "0"], "--num_epochs must be at least 1, got 0"),
        (["--num_epochs", "two"], "--num_epochs"),
        (["--deep_dropout", "1"], "--deep_dropout must be in"),
        (["--deep_hidden_units", "64", "0"], "--deep_hidden_units must be at least 1, got 0"),
        (["--deep_learning_rate", "nan"], "--deep_learning_rate must be a positive number"),
        (["--num_epochs", "2", "--deep_warmup_epochs", "3"], "--deep_warmup_epochs must be between 0 and"),
        (["--amp_dtype", "float16"], "add --amp"),
        (["--benchmark", "--benchmark_steps", "500"], "--benchmark_warmup_steps 500 leaves no steps"),
        (["--benchmark_seconds", "0"], "--benchmark_seconds must be a positive number"),
        (["--predictions_file", "p.parquet"], "add --evaluate"),
        (["--checkpoint", "best"], "add --use_checkpoint"),
        (["--predict", "p.parquet", "--evaluate"], "--predict computes no metrics"),
        (["--predict", "p.parquet", "--benchmark"], "--predict computes no metrics"),
        (["--predict", "p.parquet", "--predictions_file", "q.parquet"], "--predictions_file is written by --evaluate"),
        (["--importance", "i.json", "--evaluate"], "remove --evaluate"),
        (["--importance", "i.json", "--benchmark"], "remove --benchmark"),
        (["--importance", "i.json", "--predict", "p.csv"], "remove --predict"),
        (["--importance", "i.json", "--evaluate", "--predictions_file", "p.csv"], "remove --evaluate"),
        (["--importance", "i.json", "--raw", "new.csv"], "remove --raw"),
        (["--importance", "i.json", "--tensorboard_dir", "b"], "--tensorboard_dir only applies to training"),
        (["--evaluate", "--mlflow", "clicks"], "--mlflow only applies to training"),
        (["--benchmark", "--wandb", "clicks"], "--wandb only applies to training"),
        (["--wandb", " "], "--wandb is empty"),
        (["--keep", "ad_id"], "add --predict FILE"),
        (["--keep", "ad_id", "--evaluate"], "--predictions_file FILE"),
        (["--num_auc_thresholds", "1"], "--num_auc_thresholds must be 0"),
        (["--ranking_metrics", "ndcg@0"], "--ranking_metrics: 'ndcg@0' is not a ranking metric"),
        (["--ranking_metrics", "mrr@2", "--disable_map_calculation"], "--ranking_metrics contradicts"),
        (["--ranking_metrics", "mrr@2", "--predict", "p.csv"], "--ranking_metrics applies to evaluation"),
        (["--slice", "a", "b", "a"], "--slice names 'a' twice; name it once"),
        (["--slice", "a", "--benchmark"], "--slice applies to evaluation"),
        (["--slice_values", "0"], "--slice_values must be at least 1"),
        (["--seed", "-1"], "--seed must be in"),
        (["--log_every", "0"], "--log_every must be at least 1"),
        (["--gate_temperature", "0"], "--gate_temperature must be a positive number"),
        (["--num_experts", "0"], "--num_experts must be at least 1"),
        (["--expert_hidden_units"], "--expert_hidden_units needs at least one layer"),
        (["--weight_decay", "-1"], "--weight_decay must be"),
        (["surplus"], "surplus"),
        (["--gradnorm_alpha", "nan"], "--gradnorm_alpha must be at least 0, got nan"),
        (["--l2_reg_dnn", "1e400"], "--l2_reg_dnn must be at least 0, got inf"),
        (["--fspec_file=--"], "--fspec_file has no value"),
    ],
)
def test_error_names_flag_and_fix(arguments, message):
    with pytest.raises(DataError, match=re.escape(message)):
        parse(arguments, 1)


@pytest.mark.parametrize("mode", [[], ["--evaluate"], ["--benchmark"], ["--predict", "out.parquet"]])
def test_any_batch_size_for_any_number_of_workers(mode):
    for workers in (2, 3, 6, 7):
        parse(mode, workers, reads_checkpoint=False)
        parse([*mode, "--global_batch_size", "1", "--eval_batch_size", "5"], workers, reads_checkpoint=False)


def test_help_lists_every_flag():
    text = make_parser().format_help()
    assert all(flag in text for flag in flags())
    assert "(default: 131072)" in text


def test_optimizer_defaults_follow_the_model():
    family = parse(["--model", "mmoe"], 1).as_dict()
    names = ("optimizer", "deep_learning_rate", "deep_schedule", "deep_warmup_epochs")
    assert [family[name] for name in names] == ["adam", 0.001, "constant", 0.0]
    published = parse([], 1).as_dict()
    assert [published[name] for name in names] == ["rmsprop", 0.00012, "steps", 6.0]
    flags = ["--optimizer", "sgd", "--deep_learning_rate", "0.5", "--deep_schedule", "steps", "--num_epochs", "10"]
    chosen = parse(["--model", "mmoe", *flags], 1).as_dict()
    assert [chosen[name] for name in names] == ["sgd", 0.5, "steps", 3.0]


def test_options_from_flags_by_name_equal_parsed_ones():
    flags = {"model": "mmoe", "num_experts": 3, "expert_hidden_units": (8, 4), "num_epochs": 2, "seed": 5}
    words = [word for name, value in flags.items() for word in (f"--{name}", *str(value).strip("()").split(", "))]
    assert make_options(flags) == parse(words, 1)
    with pytest.raises(DataError, match="--num_experts must be at least 1"):
        make_options({"num_experts": 0})


def test_flags_of_other_models_have_no_effect():
    assert parse(["--num_experts", "3"], 1) == parse([], 1)
    assert "num_experts" not in parse([], 1).as_dict()
