"""What every `prepare` shares: its progress, features from fitted encoders, writing the dataset, and exit codes."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd

from data.command_line import run_tool
from data.encoding.encoder_files import save_encoders
from data.encoding.encoders import (
    NULL_ID,
    CrossedIds,
    Encoder,
    HashedIds,
    HashedRanks,
    IdEncoder,
    NumberEncoder,
    Numerical,
    Vocabulary,
)
from data.encoding.workflow_folder import ENCODERS_FOLDER
from data.files.new_dataset import SPEC_FILE
from data.files.parquet import DatasetWriter, parquet_schema
from data.spec.embedding_sizes import SIZES_FILE, default_dim
from data.spec.feature_spec import FeatureSpec
from data.spec.features import MAP, ONEHOT, Chunk, Feature

SECONDS_BETWEEN_LINES = 5.0
LARGEST_EMBEDDING = 32


class StageLog:
    """Writes lines of progress to stderr, with the seconds since the start.

    Args:
        tool: prefix of every line.
    """

    def __init__(self, tool: str) -> None:
        self._tool = tool
        self._begin = time.monotonic()

    def stage(self, name: str, total: int) -> Callable[[int], None]:
        """Return a callback that takes the number of rows done so far and prints it with the speed and the time left.

        It prints every SECONDS_BETWEEN_LINES seconds, and at the end if `total` is exact.

        Args:
            name: name of the stage.
            total: expected number of rows, which may be an estimate; 0 if it is unknown.
        """
        start = logged = time.monotonic()

        def done(rows: int) -> None:
            nonlocal logged
            now = time.monotonic()
            if rows == total or now - logged >= SECONDS_BETWEEN_LINES:
                logged = now
                speed = rows / max(now - start, 1e-9)
                of_total = f" of {total:,}" if total >= rows else ""
                left = f", {(total - rows) / max(speed, 1e-9):.0f} s left" if total > rows else ""
                self.write(f"{name}: {rows:,}{of_total} rows, {speed:,.0f} rows/s{left}")

        return done

    def write(self, line: str) -> None:
        """Print a line."""
        print(f"{self._tool}: {time.monotonic() - self._begin:6.1f} s  {line}", file=sys.stderr, flush=True)


def encoded_features(encoders: Mapping[str, Encoder], max_hotness: Mapping[str, int]) -> dict[str, Feature]:
    """Return the specification entries of encoded features: int32 ids and float32 numbers.

    Args:
        encoders: encoder of each feature, by feature name.
        max_hotness: maximum number of items per row, by name of the list feature.
    """
    # A numerical feature with a table is unseen in the same rows as the ids made from its raw column.
    ids_of: dict[str, str] = {}
    for name, encoder in encoders.items():
        if isinstance(encoder, Vocabulary) and not encoder.is_list:
            ids_of.setdefault(encoder.column, name)
    features = {}
    for name, encoder in encoders.items():
        if isinstance(encoder, NumberEncoder):
            number = Feature(name=name, dtype="float32", max_hotness=max_hotness.get(name))
            features[name] = _with_unseen_number(number, encoder, ids_of)
        else:
            ids = encoder.encoder if isinstance(encoder, CrossedIds) else encoder
            # Only a vocabulary meets unseen values.
            vocabulary = ids if isinstance(ids, Vocabulary) else None
            features[name] = Feature(
                name=name,
                dtype="int32",
                cardinality=encoder.cardinality,
                max_hotness=max_hotness.get(name),
                null_id=NULL_ID if _has_null(ids) else None,
                unseen_id=vocabulary.unseen_id if vocabulary else None,
                oov_buckets=vocabulary.oov_buckets if vocabulary and vocabulary.oov_buckets > 1 else None,
            )
    return features


def _has_null(encoder: IdEncoder) -> bool:
    """Return whether null has an id of its own: not so in the published hashes."""
    return not isinstance(encoder, HashedRanks) and not (isinstance(encoder, HashedIds) and encoder.first_id <= NULL_ID)


def _with_unseen_number(feature: Feature, encoder: NumberEncoder, ids_of: Mapping[str, str]) -> Feature:
    """Return the entry with the number of an unseen value, if there is one."""
    if not isinstance(encoder, Numerical) or encoder.table is None or encoder.is_list or encoder.column not in ids_of:
        return feature
    (number,) = encoder.encode([None])  # null and unseen keys have the same number
    return replace(feature, unseen_with=ids_of[encoder.column], unseen_value=float(str(number)))


def write_prepared(
    draft: Path,
    spec: FeatureSpec,
    mappings: Mapping[str, Iterable[pd.DataFrame]],
    encoders: Mapping[str, Encoder],
    embedding_sizes: Mapping[str, int],
) -> None:
    """Write parquet files, encoders, embedding sizes and finally the specification into a draft of `new_dataset`.

    Args:
        draft: empty folder to write to.
        spec: specification with features, channels and metadata; its sources are replaced.
        mappings: frames with the rows of each mapping. Their columns are the features of the specification, without
            the map feature in the mapping "train".
        encoders: encoder of each feature, by feature name.
        embedding_sizes: embedding width of each categorical feature, by feature name.

    Raises:
        DataError: if rows do not match the specification.
    """
    chunks: dict[str, tuple[Chunk, ...]] = {}
    for mapping, frames in mappings.items():
        hidden = set(spec.channels[MAP]) - set(spec.channels.get(ONEHOT, ())) if mapping == "train" else ()
        schema = parquet_schema(spec, [name for name in spec.features if name not in hidden])
        with DatasetWriter(draft, mapping, schema) as writer:
            for frame in frames:
                writer.write(frame)
        chunks[mapping] = (writer.chunk,)
    save_encoders(encoders, draft / ENCODERS_FOLDER)
    (draft / SIZES_FILE).write_text(json.dumps(dict(embedding_sizes), indent=2) + "\n")
    spec.with_sources(chunks, draft).write(draft / SPEC_FILE)


def embedding_sizes(encoders: Mapping[str, Encoder]) -> dict[str, int]:
    """Return the embedding width of each categorical feature: `default_dim` of its cardinality, at most 32."""
    ids = {name: encoder for name, encoder in encoders.items() if not isinstance(encoder, NumberEncoder)}
    return {name: min(LARGEST_EMBEDDING, default_dim(encoder.cardinality)) for name, encoder in ids.items()}


def run_prepare(name: str, prepare: Callable[..., None], args: argparse.Namespace) -> int:
    """Run a `prepare` with parsed arguments; return the exit code: 0 success, 1 failure, 2 invalid input."""

    def job() -> int:
        prepare(**vars(args))
        return 0

    return run_tool(name, job)
