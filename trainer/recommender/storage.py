"""Saves and loads a fitted recommender: a model folder with additional tables of users and items.

recommender.json            version, columns, and the options the recommender was created with
tables/users.parquet        raw id and encoded features of each user, unknown user last; same for items.parquet
weights/*.npy               the model's weights, and `seen/...`: the items of each user's interactions
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data.encoding.keys import as_keys
from data.errors import DataError
from data.storage.arrays import ArraySource
from data.storage.checksummed_dir import ChecksummedDir, Content
from data.storage.tables import from_parquet, to_parquet
from data.storage.typed_json import read_typed
from trainer.checkpoint.load_model import read_model, reject_foreign
from trainer.checkpoint.model_folder import (
    SEEN_ITEMS,
    SEEN_STARTS,
    check_model_folder,
    open_model,
    write_model,
)
from trainer.checkpoint.state import TrainState
from trainer.logging.log import to_plain
from trainer.recommender.entities import Entities
from trainer.recommender.fitted import Fitted, Seen

VERSION = 1
SETTINGS, USERS, ITEMS = "recommender.json", "tables/users.parquet", "tables/items.parquet"
_KEY = "key"


@dataclass(frozen=True)
class _Settings:
    """The content of `recommender.json`.

    Attributes:
        version: version of the format.
        user: column of the raw user ids.
        item: column of the raw item ids.
        context: context columns.
        options: options that the recommender was created with.
    """

    version: int
    user: str
    item: str
    context: tuple[str, ...]
    options: dict[str, Any]


def save_fitted(fitted: Fitted, options: Mapping[str, Any], folder: Path) -> None:
    """Write a recommender to a folder atomically, replacing an earlier one.

    Args:
        fitted: the recommender.
        options: options that the recommender was created with.
        folder: the folder to write or replace.

    Raises:
        DataError: if the folder has content that was not written by `save_fitted`.
        StorageError: if the folder cannot be written.
    """
    check_model_folder(folder)
    settings = {
        "version": VERSION,
        "user": fitted.users.column,
        "item": fitted.items.column,
        "context": list(fitted.context),
        "options": to_plain(dict(options)),
    }
    files: dict[str, Content] = dict(fitted.saved.files)
    files |= {SETTINGS: settings, USERS: _to_parquet(fitted.users), ITEMS: _to_parquet(fitted.items)}
    arrays = TrainState(fitted.saved.model.weights_by_name).sources()
    arrays += [
        ArraySource.from_array(SEEN_STARTS, fitted.seen.starts),
        ArraySource.from_array(SEEN_ITEMS, fitted.seen.items),
    ]
    write_model(folder, arrays, files)


def load_fitted(folder: Path) -> tuple[Fitted, dict[str, Any]]:
    """Load a recommender written by `save_fitted`, and the options it was created with.

    Raises:
        DataError: if the folder holds no recommender, or it is damaged or of another version.
    """
    opened = open_model(folder)
    if SETTINGS not in opened.files:
        raise DataError(
            f"{folder}: contains a model of main.py, not a recommender. Use "
            "main.py --predict or export.py for it; Recommender.load reads what Recommender.save wrote"
        )
    with reject_foreign(folder):
        return _load(opened)


def _load(opened: ChecksummedDir) -> tuple[Fitted, dict[str, Any]]:
    settings: _Settings = read_typed(_Settings, opened.read_json(SETTINGS), SETTINGS)
    if settings.version != VERSION:
        raise DataError(f"version {settings.version}, this program reads version {VERSION}; fit it again")
    users = _from_parquet(settings.user, opened.read_file(USERS))
    items = _from_parquet(settings.item, opened.read_file(ITEMS))
    seen = Seen(opened.read(SEEN_STARTS), opened.read(SEEN_ITEMS))
    _check_seen(seen, len(users.keys), len(items.keys))
    return Fitted(read_model(opened), users, items, seen, settings.context), settings.options


def _check_seen(seen: Seen, users: int, items: int) -> None:
    starts, positions = seen.starts, seen.items
    fits = starts.dtype == positions.dtype == np.int64 and starts.shape == (users + 2,) and positions.ndim == 1
    if not fits or starts[0] != 0 or starts[-1] != len(positions) or (np.diff(starts) < 0).any():
        raise ValueError(f"{SEEN_STARTS} and {SEEN_ITEMS} do not fit the {users:,} users")
    if len(positions) and not 0 <= positions.min() <= positions.max() < items:
        raise ValueError(f"{SEEN_ITEMS} has items that do not exist")


def _to_parquet(entities: Entities) -> bytes:
    columns = [pa.array([*entities.keys.tolist(), None])]
    columns += [
        pa.array(values.tolist() if values.dtype == object else values) for values in entities.features.values()
    ]
    return to_parquet(pa.Table.from_arrays(columns, [_KEY, *(f"feature.{name}" for name in entities.features)]))


def _from_parquet(column: str, data: bytes) -> Entities:
    table = from_parquet(data)
    keys = as_keys(column, table.column(_KEY).drop_null().to_numpy())
    features = {name.removeprefix("feature."): table.column(name) for name in table.column_names if name != _KEY}
    return Entities(column, keys, {name: values.to_numpy() for name, values in features.items()})
