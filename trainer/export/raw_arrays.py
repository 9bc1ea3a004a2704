"""Writes encoders as JSON and arrays, for trainer/export/served/raw_encoding.py, which has NumPy alone."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data.encoding.encoders import (
    CLIP,
    MINMAX,
    NULL_ID,
    SCALE,
    BucketizedIds,
    CrossedIds,
    Encoder,
    HashedIds,
    HashedRanks,
    IdentityIds,
    MissingIndicator,
    Numerical,
    Step,
    TimestampIds,
    Vocabulary,
)
from data.encoding.hashing import buckets, hash_values, mix
from trainer.export.ports import inputs_of
from trainer.export.raw_columns import INTEGER, TEXT, RawLayout, columns_of

LAYOUT_FILE = "layout.json"
# Settings of the encoders of a group, as JSON values.
Settings = dict[str, Any]


def write_encoders(folder: Path, layout: RawLayout) -> None:
    """Write the encoders of a layout into an existing empty folder."""
    groups = [_group(folder, f"group-{number:03}", features, layout) for number, features in enumerate(layout.groups)]
    outputs = {
        port.name: {"dtype": port.dtype, "width": port.width, "keeps_last": port.name in layout.keeps_last}
        for port in inputs_of(layout.model)
    }
    vectors = {vector.name: columns_of(layout.encoders[vector.name])[0] for vector in layout.model.vectors}
    columns = {
        name: {
            "dtype": column.dtype,
            "is_list": column.is_list,
            "has_empty": column.has_empty,
            "is_time": column.is_time,
            "ids": layout.ids_of.get(name, name),
        }
        for name, column in layout.columns.items()
    }
    document = {
        "columns": columns,
        "groups": groups,
        "steps": dict(layout.steps_of),
        "vectors": vectors,
        "outputs": outputs,
    }
    (folder / LAYOUT_FILE).write_text(json.dumps(document, indent=1) + "\n")


def _group(folder: Path, name: str, features: Sequence[str], layout: RawLayout) -> Settings:
    encoders = [layout.encoders[feature] for feature in features]
    first = encoders[0]
    if isinstance(first, CrossedIds):
        inputs = [[entry.name, entry.is_feature, entry.name == first.list_input] for entry in first.inputs]
        place = {"kind": "cross", "inputs": inputs, "is_list": first.is_list, "dtype": INTEGER}
        encoders = [first.encoder]
    else:
        columns = [column for encoder in encoders for column in columns_of(encoder)]
        read = layout.columns[columns[0]]
        place = {"kind": "columns", "columns": columns, "is_list": read.is_list, "dtype": read.dtype}
    settings = _SETTINGS[type(encoders[0])](encoders)
    if isinstance(encoders[0], Vocabulary | HashedRanks | Numerical):
        settings |= _write_known(folder, name, encoders, str(place["dtype"]))
    return {**place, "features": list(features), **settings}


def _vocabularies(encoders: Sequence[Vocabulary]) -> Settings:
    return {"encoder": "vocabulary", "unseen": [encoder.oov_buckets for encoder in encoders]}


def _ranks(encoders: Sequence[HashedRanks]) -> Settings:
    return {"encoder": "ranks", "unseen": [_rank_ids(np.zeros(1, np.int64), encoder)[0].item() for encoder in encoders]}


def _hashed(encoders: Sequence[HashedIds]) -> Settings:
    first = [encoder.first_id for encoder in encoders]
    null = [min(number, NULL_ID) for number in first]
    return {"encoder": "hashed", "first": first, "null": null, "number": [one.num_buckets for one in encoders]}


def _identity(encoders: Sequence[IdentityIds]) -> Settings:
    return {"encoder": "identity", "cardinality": [encoder.cardinality for encoder in encoders]}


def _intervals(encoders: Sequence[BucketizedIds]) -> Settings:
    return {"encoder": "intervals", "boundaries": [list(encoder.boundaries) for encoder in encoders]}


def _timestamps(encoders: Sequence[TimestampIds]) -> Settings:
    return {"encoder": "timestamp", "part": encoders[0].part}


def _missing(encoders: Sequence[MissingIndicator]) -> Settings:
    return {"encoder": "missing"}


def _numbers(encoders: Sequence[Numerical]) -> Settings:
    steps = [_step(steps) for steps in zip(*(encoder.steps for encoder in encoders), strict=True)]
    return {"encoder": "numbers", "steps": steps}


def _step(steps: Sequence[Step]) -> list[Any]:
    """Return the kind of a step and, by setting, a list of the encoders' values."""
    kind = steps[0][0]
    values: list[list[Any]] = [list(entries) for entries in zip(*(step[1:] for step in steps), strict=True)]
    if kind == CLIP:
        low, high = values
        values = [[-np.inf if one is None else one for one in low], [np.inf if one is None else one for one in high]]
    if kind in (SCALE, MINMAX):
        start, other = (np.array(entries, np.float64) for entries in values)
        width = other if kind == SCALE else other - start
        kind, values = SCALE, [start.tolist(), np.where(width > 0, width, 1.0).tolist()]
    return [kind, values]


_SETTINGS: dict[type[Encoder], Callable[[Any], Settings]] = {
    Vocabulary: _vocabularies,
    HashedRanks: _ranks,
    HashedIds: _hashed,
    IdentityIds: _identity,
    BucketizedIds: _intervals,
    TimestampIds: _timestamps,
    Numerical: _numbers,
    MissingIndicator: _missing,
}


def _write_known(folder: Path, name: str, encoders: Sequence[Any], dtype: str) -> Settings:
    """Write the known values of encoders and their ids; for `Numerical` positions in tables of numbers."""
    settings: Settings = {}
    if isinstance(encoders[0], Numerical):
        settings["tables"] = []
        if encoders[0].table is None:
            return settings
        for number, encoder in enumerate(encoders):
            table = np.append(encoder.table.numbers, encoder.table.default)
            settings["tables"].append(f"{name}-{number}")
            _save(folder, f"{name}-{number}.numbers", table)
    known = [_known(encoder) for encoder in encoders]
    if dtype == TEXT:
        settings |= {"salts": [_salt(number) for number in range(len(known))], "index": [name]}
        _write_texts(folder, name, known)
        return settings
    settings["index"] = [f"{name}-{number}" for number in range(len(known))]
    for file, (keys, ids) in zip(settings["index"], known, strict=True):
        values = keys.cast(pa.int64()).to_numpy() if len(keys) else np.empty(0, np.int64)
        order = np.argsort(values)
        _save(folder, f"{file}.keys", values[order])
        _save(folder, f"{file}.ids", ids[order])
    return settings


def _known(encoder: Vocabulary | HashedRanks | Numerical) -> tuple[pa.Array, np.ndarray]:
    """Return the known values of an encoder and their ids, [known] int64."""
    if isinstance(encoder, Numerical):
        keys = pa.array([], pa.int64()) if encoder.table is None else encoder.table.keys
        return keys, np.arange(len(keys))
    if isinstance(encoder, HashedRanks):
        return encoder.values, _rank_ids(np.arange(len(encoder.values)) + 1, encoder)
    return encoder.known_values, encoder.known_ids


def _write_texts(folder: Path, name: str, known: Sequence[tuple[pa.Array, np.ndarray]]) -> None:
    """Write the texts of all features of a group, ordered by a mixture of their hash and the feature's salt."""
    texts = pa.chunked_array([keys.cast(pa.large_string()) for keys, _ in known], pa.large_string()).combine_chunks()
    if isinstance(texts, pa.ChunkedArray):  # without any value
        texts = pa.array([], pa.large_string())
    salts = np.repeat(np.array([_salt(number) for number in range(len(known))], np.uint64), [len(k) for k, _ in known])
    keys = mix(hash_values(texts) ^ salts)
    order = np.argsort(keys, kind="stable")
    texts, keys = texts.take(pa.array(order)), keys[order]
    _, offsets, content = texts.buffers()
    starts = np.frombuffer(offsets, np.int64)[: len(texts) + 1] if len(texts) else np.zeros(1, np.int64)
    repeats = np.unique(keys, return_counts=True)[1].max(initial=1)
    _save(folder, f"{name}.keys", keys)
    _save(folder, f"{name}.ids", np.concatenate([ids for _, ids in known])[order])
    _save(folder, f"{name}.starts", starts)
    _save(folder, f"{name}.bytes", np.frombuffer(content or b"", np.uint8)[: starts[-1]])
    _save(folder, f"{name}.repeats", np.array(repeats))


def _salt(number: int) -> int:
    return int(mix(np.array([number], np.uint64))[0])


def _rank_ids(ranks: np.ndarray, encoder: HashedRanks) -> np.ndarray:
    return buckets(hash_values(ranks), encoder.num_buckets)


def _save(folder: Path, name: str, array: np.ndarray) -> None:
    np.save(folder / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)
