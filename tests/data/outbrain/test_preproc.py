from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.outbrain import preproc
from data.spec.feature_spec import FeatureSpec
from tests.data.outbrain.expected import NUMERICAL, expected
from tests.data.outbrain.sample_data import make_sample, write_sample

SEED = 5
SAMPLE = make_sample()
# An ad that is shown and not promoted.
SAMPLE.tables["promoted_content"] = [
    row for row in SAMPLE.tables["promoted_content"] if row[0] != SAMPLE.tables["clicks_train"][0][1]
]
RECIPES = ("published", "leak_free")


def prepared(raw: Path, output: Path, *flags: object) -> Path:
    arguments = ["--data_path", str(raw), "--metadata_path", str(output), "--seed", str(SEED), *map(str, flags)]
    assert preproc.main(arguments) == 0
    return output


def rows(dataset: Path, mapping: str) -> pd.DataFrame:
    paths = sorted((dataset / mapping).glob("part_*.parquet"), key=lambda path: int(path.stem.partition("_")[2]))
    return pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("outbrain")
    raw = write_sample(folder / "raw", SAMPLE)
    return {recipe: prepared(raw, folder / recipe, "--recipe", recipe) for recipe in RECIPES}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_feature_is_what_its_formula_gives(datasets, recipe):
    spec = FeatureSpec.read(datasets[recipe] / "feature_spec.yaml")
    for mapping, wanted in zip(("train", "valid"), expected(SAMPLE, SEED, recipe), strict=True):
        found = rows(datasets[recipe], mapping)
        assert len(found) == len(wanted) > 100
        for feature in spec.onehot:
            assert found[feature.name].tolist() == wanted[feature.name].tolist(), feature.name
        for feature in spec.multihot:
            assert [ids.tolist() for ids in found[feature.name]] == wanted[feature.name].tolist(), feature.name
        assert {feature.name for feature in spec.numerical} == set(NUMERICAL)
        for feature in spec.numerical:
            np.testing.assert_allclose(found[feature.name], wanted[feature.name], rtol=1e-6, atol=1e-6)
        assert found["clicked"].tolist() == wanted["clicked"].tolist()
    assert found["display_id"].tolist() == wanted["display_id"].tolist()
