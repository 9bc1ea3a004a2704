"""Models with weights that matter everywhere, and what they predict, worked out beside the code that exports them."""

import json
from pathlib import Path

import numpy as np

from data.encoding.encoder_files import save_encoders
from data.encoding.encoders import Encoder
from data.specification.feature_spec import FeatureSpec
from tests.data.spec_documents import document
from tests.trainer.small_models import LAYOUT, make_model
from trainer.layout import InputLayout
from trainer.model_folder import ARCHITECTURE, MODEL_FOLDER, SIZES, SPECIFICATION, write_model
from trainer.saved_model import SavedModel
from trainer.tasks import Task

TASKS = (Task("click"), Task("spend", "regression"), Task("topic", "multiclass", classes=3))
