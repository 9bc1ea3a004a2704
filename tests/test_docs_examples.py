"""The Python of the documentation, as a newcomer would run it."""

import re
from typing import Any

import numpy as np
import pytest

from tests.data.movielens_sample import make_sample, write_1m
from tests.helpers import ROOT, real_data
from tests.trainer.export.models import predicted, write_run
from trainer.export.saved_model_folder import write_saved_model


def run_blocks(page: str, **settings: Any) -> dict[str, Any]:
    """Runs the Python blocks of a page one after the other; the first one holds the settings, which are replaced.

    Returns:
        The names that they leave behind.
    """
    first, *others = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(first, names)
    assert settings.keys() <= names.keys()
    names |= settings
    for block in others:
        exec(compile(block, page, "exec"), names)
    return names


def test_ranking_request(tmp_path, monkeypatch):
    model = write_run(tmp_path / "run", candidates=("tags", "price"), model="wide_deep")
    (tmp_path / "exported").mkdir()
    write_saved_model(tmp_path / "exported", model, None)
    monkeypatch.chdir(tmp_path)
    names = run_blocks("README.md")
    rows = {
        "user": np.full((3, 1), 17, np.int32),
        "day": np.full((3, 1), 3, np.int32),
        "age": np.full((3, 1), 0.4, np.float32),
        "tags": np.array([[5, 7, -1], [7, -1, -1], [2, 5, 9]], np.int32),
        "price": np.array([[0.3], [-1.2], [0.8]], np.float32),
    }
    np.testing.assert_allclose(names["predicted"]["click"], predicted(model, rows)["click"], rtol=0, atol=1e-6)


def test_recommender_walkthrough(tmp_path, capsys):
    raw = tmp_path / "raw"
    raw.mkdir()
    write_1m(raw, make_sample())
    names = run_blocks("docs/recommender.md", MOVIELENS=raw, FOLDER=tmp_path / "saved", EPOCHS=1)
    assert 0 < names["rmse"] < 6
    assert len(names["best"]) == 10
    assert names["shown"].shape == (3, 2) and names["shown"].iloc[0].to_dict() == pytest.approx(
        names["recommender"].predict(1, 1193), abs=1e-6
    )
    assert names["predicted"].equals(names["loaded"].predict(names["test"]))
    assert "RMSE of" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.real_data
def test_movielens_1m_walkthrough(tmp_path):
    names = run_blocks("docs/recommender.md", MOVIELENS=real_data("ml-1m"), FOLDER=tmp_path / "saved", EPOCHS=2)
    assert names["rmse"] < 0.93
    assert names["recommender"].metrics["auc_roc/liked"] > 0.77
