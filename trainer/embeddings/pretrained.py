"""Fills the tables of pretrained vectors from their files, when a model is new."""

from collections.abc import Iterator

from data.files.pretrained import blocks_by_id
from data.spec.feature_spec import FeatureSpec
from trainer.embeddings.tables import EmbeddingTables


def fill_from_files(embeddings: EmbeddingTables, spec: FeatureSpec) -> Iterator[str]:
    """Overwrite this worker's rows of the ids that the files have; those of other ids stay zeros.

    Memory is bounded by a block of a file. Every worker reads the files by itself, so that no rows are sent.

    Args:
        embeddings: the tables of a model for the specification.
        spec: the specification, whose folder has the files.

    Yields:
        For each file, a line about how many ids it has vectors for.

    Raises:
        DataError: A file is missing or invalid; see `data.files.pretrained.blocks_by_id`.
    """
    tables = embeddings.vector_tables()
    for feature in spec.pretrained:
        table, count = tables[feature.name], 0
        for ids, vectors in blocks_by_id(spec, feature):
            table.put(ids, vectors)
            count += len(ids)
        kind = "trained" if feature.trained else f"not trained, {feature.table_dtype}"
        yield f"{feature.name}: vectors for {count:,} of {table.rows:,} ids of {feature.of} ({kind})"
