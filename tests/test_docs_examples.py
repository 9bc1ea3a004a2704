"""The Python of the documentation, as a newcomer would run it."""

import re
from typing import Any

import pytest

from tests.data.movielens_sample import make_sample, write_1m
from tests.helpers import ROOT, real_data


def run_blocks(page: str, **settings: Any) -> dict[str, Any]:
    """Runs the Python blocks of a page one after the other; the first one holds the settings, which are replaced.

    Returns:
        The names that they leave behind.
    """
    first, *others = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(first, names)
    assert settings.keys() <= names.keys()
    names |= settings
    for block in others:
        exec(compile(block, page, "exec"), names)
    return names


def test_recommender_walkthrough(tmp_path, capsys):
    raw = tmp_path / "raw"
    raw.mkdir()
    write_1m(raw, make_sample())
    names = run_blocks("recommender.md", MOVIELENS=raw, FOLDER=tmp_path / "saved", EPOCHS=1)
    assert 0 < names["rmse"] < 6
    assert len(names["best"]) == 10
    assert names["predicted"].equals(names["loaded"].predict(names["test"]))
    assert "RMSE of" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.real_data
def test_movielens_1m_walkthrough(tmp_path):
    names = run_blocks("recommender.md", MOVIELENS=real_data("ml-1m"), FOLDER=tmp_path / "saved", EPOCHS=2)
    assert names["rmse"] < 0.93
    assert names["recommender"].metrics["auc_roc/liked"] > 0.77
