import json

import pytest

import gen_embedding_sizes
from data.spec.embedding_sizes import embedding_dims
from data.spec.feature_spec import FeatureSpec
from tests.data.csv_documents import FEATURES, document, write_csv_dataset
from tests.helpers import ROOT


def sizes(spec_path, output, *flags):
    output.unlink(missing_ok=True)
    arguments = ["--feature_spec_in", spec_path, "--output", output, *flags]
    assert gen_embedding_sizes.main([str(argument) for argument in arguments]) == 0
    return json.loads(output.read_text())


def test_widths_by_rule_or_specification(tmp_path):
    features = FEATURES | {
        "user": {"cardinality": 1_000_000},
        "genres": {"cardinality": 8, "max_hotness": 3, "embedding_dim": 300},
    }
    path = write_csv_dataset(tmp_path, {}, document() | {"feature_spec": features})
    assert sizes(path, tmp_path / "sizes.json") == {"user": 256, "genres": 300}
    assert sizes(path, tmp_path / "sizes.json", "--max_size", 64) == {"user": 64, "genres": 300}
    features["user"]["cardinality"] = 1000
    path = write_csv_dataset(tmp_path, {}, document() | {"feature_spec": features})
    assert sizes(path, tmp_path / "sizes.json") == {"user": round(1.6 * 1000**0.56), "genres": 300}


def test_random_widths(tmp_path):
    spec = ROOT / "feature_specs" / "fspec_csv.yaml"
    drawn = [sizes(spec, tmp_path / f"{seed}.json", "--random", "--max_size", 5, "--seed", seed) for seed in range(20)]
    assert {width for widths in drawn for width in widths.values()} == {1, 2, 3, 4, 5}
    assert drawn[3] == sizes(spec, tmp_path / "again.json", "--random", "--max_size", 5, "--seed", 3)
    assert drawn[3] != drawn[4]


def test_the_file_is_one_that_training_reads(tmp_path):
    path = ROOT / "feature_specs" / "fspec_csv.yaml"
    written = sizes(path, tmp_path / "sizes.json", "--random", "--seed", 1)
    assert embedding_dims(FeatureSpec.read(path), tmp_path / "sizes.json") == written
    assert len(written) == 16


def test_without_categorical_features(tmp_path):
    assert sizes(ROOT / "feature_specs" / "no_categorical.yaml", tmp_path / "sizes.json") == {}


@pytest.mark.parametrize("output", ["", "missing/sizes.json"])
def test_file_that_cannot_be_written(tmp_path, capsys, output):
    spec = ROOT / "feature_specs" / "tiny.yaml"
    arguments = ["--feature_spec_in", str(spec), "--output", str(tmp_path / output)]
    assert gen_embedding_sizes.main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"gen_embedding_sizes: {tmp_path / output}: ")
    assert list(tmp_path.iterdir()) == []


def test_required_arguments(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        gen_embedding_sizes.main([])
    assert error.value.code == 2
    assert "--output" in capsys.readouterr().err
    assert gen_embedding_sizes.main(["--feature_spec_in", "nowhere.yaml", "--output", str(tmp_path / "a.json")]) == 2
    assert "nowhere.yaml: no such file" in capsys.readouterr().err
