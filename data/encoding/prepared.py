"""The last steps that every `prepare` shares: features from fitted encoders, and the whole dataset into a draft."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pandas as pd

from data.conversion.new_dataset import SPEC_FILE
from data.conversion.parquet_writer import DatasetWriter, parquet_schema
from data.encoding.encoder_files import save_encoders
from data.encoding.encoders import Encoder, Numerical
from data.encoding.workflow_folder import ENCODERS_FOLDER
from data.specification.embedding_sizes import SIZES_FILE
from data.specification.feature_spec import Chunk, Feature, FeatureSpec

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Tells on stderr what is done, with the seconds since the start.

    Args:
        tool: name in front of every line.
    """

    def __init__(self, tool: str) -> None:
        self._tool = tool
        self._begin = time.monotonic()

    def stage(self, name: str, total: int) -> Callable[[int], None]:
        """What to call with the number of rows done so far: prints now and then, and at the end, with the time left.

        Args:
            name: of the stage.
            total: rows, as far as known.
        """
        start = told = time.monotonic()

        def done(rows: int) -> None:
            nonlocal told
            now = time.monotonic()
            if rows >= total or now - told >= SECONDS_BETWEEN_LINES:
                told = now
                left = (now - start) / max(rows, 1) * (total - rows)
                self.tell(
                    f"{name}: {rows:,} of {max(total, rows):,} rows" + (f", {left:.0f} s left" if left > 0 else "")
                )

        return done

    def tell(self, line: str) -> None:
        """Prints a line."""
        print(f"{self._tool}: {time.monotonic() - self._begin:6.1f} s  {line}", file=sys.stderr, flush=True)


def encoded_features(encoders: Mapping[str, Encoder], max_hotness: Mapping[str, int]) -> dict[str, Feature]:
    """The specification's entries of encoded features: int32 ids and float32 numbers.

    Args:
        encoders: by feature.
        max_hotness: most ids in a row, for each list feature.
    """
    features = {}
    for name, encoder in encoders.items():
        if isinstance(encoder, Numerical):
            features[name] = Feature(name=name, dtype="float32")
        else:
            hotness = max_hotness.get(name)
            features[name] = Feature(name=name, dtype="int32", cardinality=encoder.cardinality, max_hotness=hotness)
    return features


def write_prepared(
    draft: Path,
    spec: FeatureSpec,
    mappings: Mapping[str, Iterable[pd.DataFrame]],
    encoders: Mapping[str, Encoder],
    embedding_sizes: Mapping[str, int],
) -> None:
    """Writes parquet parts, encoders, embedding sizes and at last the specification into a draft of `new_dataset`.

    Args:
        draft: an empty folder.
        spec: features, channels and metadata; its sources are replaced.
        mappings: the rows of each mapping. Its columns are the features of the specification; the map
            feature is left out of a mapping called "train".
        encoders: by feature.
        embedding_sizes: by categorical feature.

    Raises:
        DataError: rows that do not fit the specification.
    """
    chunks: dict[str, tuple[Chunk, ...]] = {}
    for mapping, frames in mappings.items():
        hidden = spec.channels["map"] if mapping == "train" else ()
        schema = parquet_schema(spec, [name for name in spec.features if name not in hidden])
        with DatasetWriter(draft, mapping, schema) as writer:
            for frame in frames:
                writer.write(frame)
        chunks[mapping] = (writer.chunk,)
    save_encoders(encoders, draft / ENCODERS_FOLDER)
    (draft / SIZES_FILE).write_text(json.dumps(dict(embedding_sizes), indent=2) + "\n")
    spec.with_sources(chunks, draft).write(draft / SPEC_FILE)
