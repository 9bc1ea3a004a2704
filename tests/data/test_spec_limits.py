"""A specification at the size limits is read or refused within seconds, whatever it holds."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data.errors import DataError
from data.spec.feature_spec import FeatureSpec
from data.spec.yaml_reader import MAX_VALUES, read_yaml
from tests.helpers import left_to_all

# Reading YAML takes 2 to 5 s of these, which is linear in the size. Quadratic algorithms take 20 s to two minutes.
SECONDS = 10.0
MOST_BYTES = 2**20 - 1
CHUNK = "feature_spec: {a: }\nsource_spec:\n train:\n - type: csv\n   features: [a]\n   files: ["


def filled(head: str, item: Callable[[int], str], values: float, tail: str = "") -> str:
    """As many items as the limits of bytes and of values (`values` per item) leave room for."""
    pieces, size = [head], len(head) + len(tail)
    for number in range(int((MAX_VALUES - 50) / values)):
        piece = item(number)
        size += len(piece)
        if size > MOST_BYTES:
            break
        pieces.append(piece)
    return "".join([*pieces, tail])


def features(count: int, body: Callable[[int], str] = lambda _: "") -> str:
    return "feature_spec:\n" + "".join(f" k{i}: {{{body(i)}}}\n" for i in range(count))


def named(channel: str, count: int) -> str:
    return f"channel_spec:\n {channel}: [{','.join(f'k{i}' for i in range(count))}]\n"


AT_THE_LIMITS = {
    "scalars": filled("a: [", lambda _: "1,", 1, "]"),
    "empty lists": filled("a: [", lambda _: "[],", 1, "]"),
    "mappings": filled("a: [", lambda _: "{a: 1},", 3, "]"),
    "keys": filled("", lambda i: f"k{i}: \n", 2),
    "unknown names beside many": features(9000) + filled("channel_spec:\n label: [", lambda i: f"kk{i},", 2.2, "]"),
    "names that nearly fit": features(99) + filled("channel_spec:\n label: [", lambda i: f"k{i}k,", 1.02, "]"),
    "one name again and again": filled(features(1) + "channel_spec:\n label: [", lambda _: "k0,", 1, "]"),
    "long paths": filled(CHUNK, lambda i: "a/" * 400 + f"{i},", 1, "]"),
    "a very long path": filled(CHUNK, lambda _: "a/", 1, "a]"),
    "paths to and fro": filled(CHUNK, lambda i: "a/../" * 8 + f"{i},", 1, "]"),
    "chunks": filled("source_spec:\n train:\n", lambda _: " - {}\n", 1),
    "a long chain": features(7600, lambda i: f"given: k{i + 1}") + named("label", 7600),
    "a long chain and a joint name": features(7600, lambda i: f"given: k{i + 1}").replace("k0:", "a+b:")
    + named("label", 7600).replace("k0,", "a+b,"),
    "a large cycle": features(7600, lambda i: f"given: k{(i + 1) % 7600}") + named("label", 7600),
    "many mappings that lack much": features(7500)
    + named("numerical", 7500)
    + filled("source_spec:\n", lambda i: f" m{i}: [{{type: csv, features: [k1], files: [b]}}]\n", 32),
    "one list in many chunks": features(200).replace("feature_spec:", "feature_spec:\n z: {}")
    + f"metadata: {{all: &all [{','.join(f'k{i}' for i in range(200))}]}}\n"
    + "source_spec:\n train:\n"
    + " - {type: csv, features: *all, files: [a]}\n" * 170,
    "long names of mappings": filled("source_spec:\n", lambda i: f" {'rtain' * 38}{i}: []\n", 2),
}  # fmt: skip


def refusal(content: str, folder: Path) -> tuple[str, float]:
    """The message, and the processor time that it took."""
    path = folder / "feature_spec.yaml"
    path.write_text(content)
    assert path.stat().st_size < 2**20
    start = time.process_time()
    with pytest.raises(DataError) as caught:
        FeatureSpec.read(path)
    return str(caught.value), time.process_time() - start


# One each with many keys, names, paths, labels in a chain, mappings and chunks.
USUAL = (
    "keys",
    "unknown names beside many",
    "long paths",
    "a long chain and a joint name",
    "many mappings that lack much",
    "one list in many chunks",
)


@pytest.mark.parametrize("name", left_to_all(AT_THE_LIMITS, USUAL))
def test_document_at_the_limits(name: str, tmp_path: Path) -> None:
    message, seconds = refusal(AT_THE_LIMITS[name], tmp_path)
    assert "in the feature specification" in message
    assert seconds < SECONDS


def test_position_of_the_value_too_many(tmp_path: Path) -> None:
    message, _ = refusal("a: [" + "1," * MAX_VALUES + "]", tmp_path)
    # The root, the key and the list come before the values, which take two characters each.
    column = len("a: [") + 2 * (MAX_VALUES - 3) + 1
    assert f"line 1, column {column}: more than 40,000 strings, numbers, lists and mappings" in message


def laughs(levels: int, leaf: str = "lol", width: int = 9) -> str:
    """Each level is a list of `width` times the one before it."""
    lines = [f"a0: &a0 {leaf}"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines)


BOMBS = {
    "a billion laughs": (laughs(10), "line 6, column 30: more than 40,000 strings, numbers, lists and mappings"),
    "wide and flat": (
        f"a: &a [{'x,' * 30_000}]\nb: [{'*a,' * 30_000}]",
        "line 2, column 5: more than 40,000 strings, numbers, lists and mappings",
    ),
    "deep": (laughs(25, width=1), "line 21, column 12: nested deeper than 20 levels"),
    "a long text again and again": (
        f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 20_000)}]",
        "line 2, column 41: more than 1,048,576 characters",
    ),
    "many aliases of nothing": (
        f"a: &a []\nb: [{'*a,' * 50_000}]",
        "line 2, column 119990: more than 40,000 strings, numbers, lists and mappings",
    ),
}


@pytest.mark.parametrize(("content", "words"), BOMBS.values(), ids=BOMBS)
def test_limits_count_expanded_aliases(content: str, words: str, tmp_path: Path) -> None:
    message, seconds = refusal(content, tmp_path)
    assert words in message
    assert seconds < SECONDS


def test_list_used_twice_counts_twice(tmp_path: Path) -> None:
    # The root, five keys of sections and lists, and the lists themselves are the other values.
    def read(length: int) -> dict:
        path = tmp_path / "values.yaml"
        path.write_text(f"a: &a [{'1,' * length}]\nb: *a\n")
        return read_yaml(path)

    most = (MAX_VALUES - 5) // 2
    assert len(read(most)["b"]) == most
    with pytest.raises(DataError, match="line 2, column 4: more than 40,000"):
        read(most + 1)


def test_thousand_features_in_thousand_files(tmp_path: Path) -> None:
    names = [f"feature_{i}" for i in range(1000)]
    stored = [*names, *(f"{name}_weights" for name in names)]
    body = "dtype: int64, cardinality: 1000, max_hotness: 5, embedding_dim: 16, weights:"
    lines = ["feature_spec:", " liked: {dtype: float32}", *(f" {name}: {{{body} {name}_weights}}" for name in names)]
    lines += [f" {name}_weights: {{dtype: float32}}" for name in names]
    lines += ["channel_spec:", f" multihot_categorical: [{', '.join(names)}]", " label: [liked]", "source_spec:"]
    for mapping in ("train", "valid", "test"):
        files = ", ".join(f"{mapping}_{i}.parquet" for i in range(1000))
        lines.append(f" {mapping}: [{{type: parquet, features: [liked, {', '.join(stored)}], files: [{files}]}}]")
    (tmp_path / "feature_spec.yaml").write_text("\n".join(lines))
    spec = FeatureSpec.read(tmp_path / "feature_spec.yaml")
    assert len(spec.multihot) == len(spec.weighted) == 1000 and len(spec.files("valid")) == 1000


def test_chain_of_twenty_labels(tmp_path: Path) -> None:
    def document(labels: int) -> dict:
        names = [f"k{i}" for i in range(labels)]
        given = {name: {"given": before} for name, before in zip(names[1:], names, strict=False)}
        chunk = [{"type": "csv", "features": [*names, "age"], "files": ["a.csv"]}]
        return {
            "feature_spec": {"age": {}, names[0]: {}, **given},
            "source_spec": {"train": chunk, "test": chunk},
            "channel_spec": {"numerical": ["age"], "label": names},
        }

    assert len(FeatureSpec.from_dict(document(20), tmp_path).labels) == 20
    with pytest.raises(DataError, match="k20.given: more than 20 labels depend on each other"):
        FeatureSpec.from_dict(document(21), tmp_path)
