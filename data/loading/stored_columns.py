"""Read columns of a mapping as stored, from the first row to the last."""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from data.errors import DataError
from data.loading.parquet_files import ColumnGroup, ParquetFile, Piece, open_files
from data.loading.targets import Target
from data.specification.feature_spec import FeatureSpec
from data.specification.problems import nearest


class StoredColumns:
    """Reads columns unchanged, without decoding or checking values.

    Args:
        spec: feature specification of the dataset.
        mapping: name of the mapping to read.
        names: distinct names of features in the mapping's chunks.

    Attributes:
        schema: Arrow schema of the columns, in the order of `names`.

    Raises:
        DataError: if the mapping has no such feature, or its files lack it or store it in different types.
    """

    def __init__(self, spec: FeatureSpec, mapping: str, names: Sequence[str]):
        chunks = spec.chunks(mapping)
        held = [name for chunk in chunks for name in chunk.features]
        unknown = [name for name in names if name not in held]
        if unknown:
            near = [found for name in unknown if (found := nearest(name, held))]
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise DataError(f"mapping {mapping!r} has no column {', '.join(unknown)}; it has {', '.join(held)}{hint}")
        self._names = list(names)
        self._groups = []
        fields: dict[str, pa.Field] = {}
        for chunk in chunks:
            wanted = [name for name in names if name in chunk.features]
            if wanted:
                files = open_files([spec.folder.absolute() / file for file in chunk.files])
                fields |= {name: pa.field(name, _stored_type(files, name)) for name in wanted}
                self._groups.append(ColumnGroup(files, [Target(name, "extra") for name in wanted]))
        self.schema = pa.schema([fields[name] for name in names])

    def stream(self) -> "ColumnStream":
        """Return a new stream over the columns, starting at the first row."""
        return ColumnStream([group.read(0, group.rows) for group in self._groups], self._names)


class ColumnStream:
    """A forward-only stream over columns that reads each row group once.

    Args:
        groups: pieces of each column group, in row order.
        names: names of the columns, in the order that `take` returns them.
    """

    def __init__(self, groups: Sequence[Iterator[Piece]], names: Sequence[str]):
        self._groups, self._names = list(groups), list(names)
        self._left: list[pa.Table | None] = [None for _ in groups]

    def take(self, rows: int) -> list[pa.ChunkedArray]:
        """Return the next `rows` rows of each column.

        Raises:
            DataError: if a file is damaged.
            LostInputError: if a file is gone, unreadable, or has changed since it was opened.
        """
        columns: dict[str, pa.ChunkedArray] = {}
        for index in range(len(self._groups)):
            table = self._take(index, rows)
            columns |= {name: table.column(name) for name in table.column_names}
        return [columns[name] for name in self._names]

    def _take(self, index: int, rows: int) -> pa.Table:
        parts = []
        # Column groups differ in their row groups, so the unread rest of the current one is kept for each group.
        while True:
            left = self._left[index]
            if left is None:
                left = next(self._groups[index]).table
            parts.append(left.slice(0, rows))
            rows -= len(parts[-1])
            rest = left.slice(len(parts[-1]))
            self._left[index] = rest if len(rest) else None
            if not rows:
                return pa.concat_tables(parts)


def _stored_type(files: Sequence[ParquetFile], name: str) -> pa.DataType:
    types: dict[pa.DataType, ParquetFile] = {}
    for file in files:
        if file.schema.names.count(name) != 1:
            raise DataError(
                f"{file.path}: column {name!r} is not there once; the file has {', '.join(file.schema.names)}"
            )
        types.setdefault(file.schema.field(name).type, file)
    if len(types) > 1:
        found = ", ".join(f"{kind} in {file.path}" for kind, file in types.items())
        raise DataError(
            f"column {name!r} is stored as {found}; a column that is kept has one type: write the files again"
        )
    return next(iter(types))
