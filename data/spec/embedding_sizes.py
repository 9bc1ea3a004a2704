"""Determines the embedding width of each categorical feature."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.errors import DataError, described, listed, nearest, shown
from data.spec.feature_spec import FeatureSpec
from data.spec.features import MAX_EMBEDDING_DIM
from data.storage.files import check_inside, read_small_text

SIZES_FILE = "embedding_sizes.json"
LARGEST_DEFAULT = 256
MAX_MEBIBYTES = 16
MAX_SUGGESTIONS = 100


def embedding_dims(
    spec: FeatureSpec,
    sizes_file: Path | None = None,
    *,
    allow_outside_paths: bool = False,
    of_model: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Return the embedding width of every categorical feature, one-hot, multi-hot, then those of sequences.

    A width comes from the first of these sources that has the feature: `sizes_file` (JSON, {feature: width}),
    `embedding_dim` in the specification, `of_model`, `embedding_sizes.json` in the specification's folder,
    `default_dim`. The model comes before the file, which programs that prepare data write by cardinality. A width
    that is given for one of the features that share a table is that of all of them. Names that are not in the
    specification are ignored (see `unused_widths`).

    Args:
        spec: a valid specification.
        sizes_file: JSON file given by the user.
        allow_outside_paths: whether `embedding_sizes.json` may be a link that leads out of the folder.
        of_model: widths of the model that is trained further, by feature; None for a new model.

    Raises:
        DataError: A file cannot be read, a width is not an integer in [1, 4096], `sizes_file` names none of the
            categorical features, or features that share a table are given different widths.
    """
    features = spec.categorical
    explicit = read_sizes(Path(sizes_file)) if sizes_file is not None else {}
    if sizes_file is not None and features and not any(feature.name in explicit for feature in features):
        there_are = listed((feature.name for feature in features), len(features))
        widths = f"it has widths for {_unknown(spec, explicit)}" if explicit else "it is empty"
        raise DataError(
            f"{sizes_file}: names none of the categorical features; {widths}, and the features are {there_are}"
        )
    default_file = _read_default_file(spec, allow_outside_paths)
    stated = {
        feature.table or feature.name for feature in features if feature.name in explicit or feature.embedding_dim
    }
    model = {table: width for table, width in _of_tables(spec, of_model or {}).items() if table not in stated}
    given: dict[str, tuple[int, str]] = {}  # table -> its width, and the feature that it was given for
    for feature in features:
        table = feature.table or feature.name
        width = explicit.get(feature.name) or feature.embedding_dim
        width = width or model.get(table) or default_file.get(feature.name)
        if width is not None and given.setdefault(table, (width, feature.name))[0] != width:
            other, name = given[table]
            raise DataError(
                f"{sizes_file or spec.folder / SIZES_FILE}: {feature.name!r} has width {width} and {name!r} {other}, "
                f"but they share the table {table!r}; give both the same width, or one of them none"
            )
    default = (None, "")
    return {
        feature.name: given.get(feature.table or feature.name, default)[0] or default_dim(feature.cardinality or 1)
        for feature in features
    }


def _of_tables(spec: FeatureSpec, widths: Mapping[str, int]) -> dict[str, int]:
    """Return the width of each table that is given for the first of its features that has one."""
    found: dict[str, int] = {}
    for feature in spec.categorical:
        if feature.name in widths:
            found.setdefault(feature.table or feature.name, widths[feature.name])
    return found


def unused_widths(
    spec: FeatureSpec, sizes_file: Path | None = None, *, allow_outside_paths: bool = False
) -> Iterator[str]:
    """Yield a warning per file of `embedding_dims` that names unknown categorical features, with the closest names.

    Raises:
        DataError: A file cannot be read, or a width is not an integer in [1, 4096].
    """
    explicit = {} if sizes_file is None else read_sizes(Path(sizes_file))
    default_file = _read_default_file(spec, allow_outside_paths)
    for path, sizes in ((sizes_file, explicit), (spec.folder / SIZES_FILE, default_file)):
        if names := _unknown(spec, sizes):
            what = "the specification has no such categorical feature, and these widths are not used"
            yield f"{path}: has widths for {names}; {what}"


def default_dim(cardinality: int) -> int:
    """Return a rule-of-thumb width: min(256, round(1.6 * cardinality ** 0.56)), at least 1."""
    return max(1, min(LARGEST_DEFAULT, round(1.6 * cardinality**0.56)))


def read_sizes(path: Path) -> dict[str, int]:
    """Read a JSON file of the form {feature: width}.

    Raises:
        DataError: The file cannot be read, or has invalid widths, which the message lists.
    """
    sizes = _read_json(path)
    if not isinstance(sizes, dict):
        raise DataError(f'{path}: is {described(sizes)}; expected a JSON object such as {{"ad_id": 128}}')
    wrong = [f"{shown(name)} is {described(size)}" for name, size in sizes.items() if not _is_width(size)]
    if wrong:
        expected = f"expected whole numbers from 1 to {MAX_EMBEDDING_DIM}, without quotes"
        raise DataError(f"{path}: {listed(wrong, len(wrong))}; {expected}")
    return sizes


def _read_default_file(spec: FeatureSpec, allow_outside_paths: bool) -> dict[str, int]:
    path = spec.folder / SIZES_FILE
    if not allow_outside_paths:
        check_inside(spec.folder, SIZES_FILE)
    return read_sizes(path) if os.path.lexists(path) else {}


def _unknown(spec: FeatureSpec, sizes: dict[str, int]) -> str:
    """List the names in `sizes` that are not categorical features, likely misspellings first; "" if there are none."""
    features = dict.fromkeys(feature.name for feature in spec.categorical)
    unknown = [name for name in sizes if name not in features]
    without_width = [name for name in features if name not in sizes]
    nearest_names = {name: nearest(name, without_width) for name in unknown[:MAX_SUGGESTIONS]}
    suggested = {name: near for name, near in nearest_names.items() if near}
    texts = [f"{shown(name)} (did you mean {near!r}?)" for name, near in suggested.items()]
    texts += [shown(name) for name in unknown if name not in suggested]
    return listed(texts, len(texts))


def _is_width(size: Any) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and 1 <= size <= MAX_EMBEDDING_DIM


def _read_json(path: Path) -> Any:
    text = read_small_text(path, 'JSON with embedding widths, such as {"ad_id": 128}', MAX_MEBIBYTES)
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a file of embedding widths: {error}") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"{shown(name)} occurs twice; keep one")
        result[name] = value
    return result
