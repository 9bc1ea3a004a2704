import json
from dataclasses import asdict

from trainer.checkpoint.saved_config import from_json
from trainer.models import MODELS, model_options


def test_model_flags_survive_json():
    for model in MODELS:
        options = model_options(model=model, expert_hidden_units=(8, 4), tower_hidden_units={"click": (8,), "buy": ()})
        assert options == model_options(**from_json(json.loads(json.dumps(asdict(options) | {"num_epochs": 3}))))
    assert from_json({"num_epochs": 3, "combiner": "mean"}) == {"combiner": "mean"}
