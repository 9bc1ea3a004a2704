import json
from dataclasses import asdict

from trainer.checkpoint.saved_config import from_json
from trainer.config import ModelOptions


def test_flags_of_the_model_come_back_from_json_and_others_are_left_out():
    options = ModelOptions(model="ple", expert_hidden_units=(8, 4), tower_hidden_units={"click": (8,), "buy": ()})
    assert options == ModelOptions(**from_json(json.loads(json.dumps(asdict(options) | {"num_epochs": 3}))))
    assert from_json({"num_epochs": 3, "combiner": "mean"}) == {"combiner": "mean"}
