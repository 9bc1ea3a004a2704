"""Small tables, such as vocabularies, as the bytes of a parquet file."""

import io

import pyarrow as pa
import pyarrow.parquet as pq


def to_parquet(table: pa.Table) -> bytes:
    """Return a table as parquet; the same table always gives the same bytes."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="snappy", write_page_checksum=True)
    return buffer.getvalue()


def from_parquet(data: bytes) -> pa.Table:
    """Read a table of distinct rows.

    Raises:
        ValueError: There are more rows than bytes. Distinct rows take at least a byte each, so this is a decompression
            bomb.
        pyarrow.ArrowException: The data is not parquet.
    """
    file = pq.ParquetFile(io.BytesIO(data))
    if file.metadata.num_rows > len(data):
        raise ValueError(f"{file.metadata.num_rows:,} rows in {len(data):,} bytes")
    return file.read()
