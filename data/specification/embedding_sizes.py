"""How wide the embedding of each categorical feature is."""

import json
import os
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.files import check_stays
from data.specification.feature_spec import FeatureSpec
from data.specification.parts import MAX_EMBEDDING_DIM
from data.specification.problems import described, listed, shown
from data.specification.small_file import read_small_text

SIZES_FILE = "embedding_sizes.json"
LARGEST_DEFAULT = 256
MAX_MEBIBYTES = 16


def embedding_dims(
    spec: FeatureSpec, sizes_file: Path | None = None, *, allow_outside_paths: bool = False
) -> dict[str, int]:
    """Embedding width of every categorical feature, one-hot then multi-hot, in channel order.

    The first of these that knows the feature decides: `sizes_file` (JSON, {feature: width}),
    `embedding_dim` in the specification, `embedding_sizes.json` in the specification's folder,
    `default_dim`. A feature that a file does not name goes on to the next; names that the
    specification does not have are ignored.

    Args:
        spec: a valid specification.
        sizes_file: named by the user.
        allow_outside_paths: whether `embedding_sizes.json` may be a link that leads out of the folder.

    Raises:
        DataError: a file cannot be read, or a width in it is no int in [1, 4096].
    """
    explicit = read_sizes(Path(sizes_file)) if sizes_file is not None else {}
    beside_file = spec.folder / SIZES_FILE
    if not allow_outside_paths:
        check_stays(spec.folder, SIZES_FILE)
    beside = read_sizes(beside_file) if os.path.lexists(beside_file) else {}
    dims = {}
    for feature in spec.onehot + spec.multihot:
        stated = explicit.get(feature.name) or feature.embedding_dim or beside.get(feature.name)
        dims[feature.name] = stated or default_dim(feature.cardinality or 1)
    return dims


def default_dim(cardinality: int) -> int:
    """Width by rule of thumb: min(256, round(1.6 * cardinality ** 0.56)), at least 1."""
    return max(1, min(LARGEST_DEFAULT, round(1.6 * cardinality**0.56)))


def read_sizes(path: Path) -> dict[str, int]:
    """Read a JSON file {feature: width}.

    Raises:
        DataError: naming the file and the place, all bad widths at once.
    """
    sizes = _read_json(path)
    if not isinstance(sizes, dict):
        raise DataError(f'{path}: is {described(sizes)}; expected a JSON object such as {{"ad_id": 128}}')
    wrong = [f"{shown(name)} is {described(size)}" for name, size in sizes.items() if not _is_width(size)]
    if wrong:
        expected = f"expected whole numbers from 1 to {MAX_EMBEDDING_DIM}, without quotes"
        raise DataError(f"{path}: {listed(wrong, len(wrong))}; {expected}")
    return sizes


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
            raise ValueError(f"{shown(name)} is there twice; keep one")
        result[name] = value
    return result
