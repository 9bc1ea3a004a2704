"""Columns of a mapping as its files hold them, from the first row to the last."""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from data.errors import DataError
from data.loading.parquet_files import ColumnGroup, ParquetFile, Piece, open_files
from data.loading.targets import Target
from data.specification.feature_spec import FeatureSpec
from data.specification.problems import nearest


class StoredColumns:
    """Reads columns unchanged: no value is decoded or checked.

    Args:
        spec: the specification.
        mapping: whose files to read.
        names: features of the mapping's chunks, none of them twice.

    Attributes:
        schema: the columns in the order of `names`.

    Raises:
        DataError: the mapping has no such feature, or a file lacks it or stores it in another type than the others.
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
        """The columns from the first row on."""
        return ColumnStream([group.read(0, group.rows) for group in self._groups], self._names)


class ColumnStream:
    """Takes rows off the columns, each row group read once.

    Args:
        groups: the pieces of each column group, in row order.
        names: the columns, in the order in which they are given out.
    """

    def __init__(self, groups: Sequence[Iterator[Piece]], names: Sequence[str]):
        self._groups, self._names = list(groups), list(names)
        self._left: list[pa.Table | None] = [None for _ in groups]

    def take(self, rows: int) -> list[pa.ChunkedArray]:
        """The next rows of each column.

        Raises:
            DataError: a file is damaged.
            LostInputError: it is gone, or is not what it was when it was opened.
        """
        columns: dict[str, pa.ChunkedArray] = {}
        for index in range(len(self._groups)):
            table = self._take(index, rows)
            columns |= {name: table.column(name) for name in table.column_names}
        return [columns[name] for name in self._names]

    def _take(self, index: int, rows: int) -> pa.Table:
        parts = []
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
