"""The specifications that come with the project, in feature_specs/."""

from pathlib import Path

import pytest

from data.spec.feature_spec import FeatureSpec

FOLDER = Path(__file__).parents[2] / "feature_specs"
NAMES = sorted(path.name for path in FOLDER.iterdir() if not path.stem.endswith("_raw"))

# One-hot, multi-hot and numerical features of the public recipe's eleven variants.
PUBLIC = {
    "fspec_csv.yaml": (13, 3, 13),
    "less_multihot.yaml": (13, 1, 13),
    "less_numerical.yaml": (13, 3, 10),
    "less_onehot.yaml": (10, 3, 13),
    "more_multihot_moreless_hotness.yaml": (13, 5, 13),
    "more_numerical.yaml": (13, 3, 17),
    "more_onehot.yaml": (16, 3, 13),
    "no_categorical.yaml": (0, 0, 13),
    "no_multihot.yaml": (13, 0, 13),
    "no_numerical.yaml": (13, 3, 0),
    "no_onehot.yaml": (0, 3, 13),
}
OWN = {"column_groups.yaml", "multiclass.yaml", "sample_weight.yaml", "three_tasks.yaml", "tiny.yaml"}
OWN |= {"pretrained.yaml", "sequence.yaml", "shared_table.yaml", "training_only.yaml", "two_labels.yaml", "vector.yaml"}
OWN |= {"weighted_lists.yaml", "with_map.yaml"}


def read(name: str) -> FeatureSpec:
    return FeatureSpec.read(FOLDER / name)


def test_all_specifications_exist() -> None:
    assert {*PUBLIC, *OWN} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_specification_is_csv_with_dtypes(name: str) -> None:
    spec = read(name)
    assert {chunk.type for mapping in spec.sources for chunk in spec.chunks(mapping)} == {"csv"}
    assert all(feature.dtype for feature in spec.features.values())


@pytest.mark.parametrize("name", NAMES)
def test_specification_uses_all_its_features(name: str) -> None:
    spec = read(name)
    used = [feature for channel in spec.channels.values() for feature in channel]
    used += [spec.sample_weight.name] if spec.sample_weight else []
    used += [weights.name for weights in spec.list_weights]
    assert sorted(used) == sorted(spec.features)


@pytest.mark.parametrize(("name", "counts"), PUBLIC.items())
def test_public_variant_has_its_channels_and_files(name: str, counts: tuple[int, int, int]) -> None:
    spec = read(name)
    assert (len(spec.onehot), len(spec.multihot), len(spec.numerical)) == counts
    assert [label.name for label in spec.labels] == ["clicked"]
    assert spec.map_feature is None
    assert spec.chunks("train")[0].files == ("train.csv",)
    assert spec.chunks("test")[0].files == ("valid.csv",)


def test_base_variant_has_the_published_tables() -> None:
    spec = read("fspec_csv.yaml")
    wide = {"ad_id": 128, "document_id": 128, "document_id_promo": 128, "campaign_id": 128, "platform": 19}
    rows = {feature.name: feature.cardinality or 0 for feature in spec.onehot + spec.multihot}
    widths = {name: wide.get(name, 64) for name in rows}
    tables = sum(rows[name] * widths[name] for name in rows)
    layers = [sum(widths.values()) + len(spec.numerical), *[1024] * 5, 1]
    deep = sum((fan_in + 1) * fan_out for fan_in, fan_out in zip(layers[:-1], layers[1:], strict=True))
    linear = sum(rows.values()) + len(spec.numerical) + 1
    assert tables + deep + linear == 91_777_245
    assert {feature.name: (feature.cardinality, feature.max_hotness) for feature in spec.multihot} == {
        "topic_id_list": (350, 3),
        "entity_id_list": (10_000, 3),
        "category_id_list": (100, 3),
    }


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_variants_differ_only_in_their_features(name: str) -> None:
    base, spec = read("fspec_csv.yaml"), read(name)
    shared = base.features.keys() & spec.features.keys()
    assert {feature: spec.features[feature] for feature in shared} == {f: base.features[f] for f in shared}
    added = [feature for feature in spec.features if feature not in base.features]
    assert all(feature.startswith("additional_") for feature in added)


def test_specifications_show_what_their_name_says() -> None:
    with_map = read("with_map.yaml")
    assert with_map.map_feature is not None
    assert [with_map.map_feature.name in chunk.features for chunk in with_map.chunks("train")] == [False]
    assert {len(read("column_groups.yaml").chunks(mapping)) for mapping in ("train", "test")} == {2}
    assert [label.given for label in read("two_labels.yaml").labels] == [None, "click"]
    assert {label.task for label in read("multiclass.yaml").labels} == {"binary", "multiclass", "regression"}
    assert read("sample_weight.yaml").sample_weight is not None
    assert len(read("tiny.yaml").inputs) == 3
    sequence = read("sequence.yaml")
    assert [each.encoder for each in sequence.sequences] == ["din", "mean"] and sequence.sequence_numbers
    assert [vector.dimension for vector in read("vector.yaml").vectors] == [16, 6]
    assert [(own.of, own.trained) for own in read("pretrained.yaml").pretrained] == [
        ("item", False),
        ("item", True),
        ("bought", False),
    ]
    training_only = read("training_only.yaml")
    assert {feature.name: feature.serve for feature in training_only.training_only} == {"position": 0, "scrolled": 0}
    assert [feature.combiner for feature in training_only.multihot] == ["mean"]
