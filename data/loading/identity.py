"""What identifies the rows of a mapping without reading them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any


@dataclass(frozen=True)
class DataIdentity:
    """The rows of a mapping and their order, according to the footers of its files.

    Names and locations of the files do not count, so that a dataset may be moved or copied.

    Attributes:
        files: number of files.
        rows: number of rows.
        newest: latest modification time of a file, ISO 8601 in UTC; for messages only.
        checksum: SHA-256 checksum, hexadecimal, of the row-group sizes and of the footers of all files, in order, with
            the stored checksums of their column chunks.
    """

    files: int
    rows: int
    newest: str
    checksum: str

    @classmethod
    def of(cls, chunks: Sequence[Sequence[tuple[list[int], str]]], newest_ns: int, rows: int) -> "DataIdentity":
        """Return the identity of a mapping.

        Args:
            chunks: for each file of each chunk, in order, the sizes of its row groups and the checksum of its footer.
            newest_ns: latest modification time of a file, in nanoseconds since the epoch.
            rows: number of rows.
        """
        newest = datetime.fromtimestamp(newest_ns // 10**9, UTC).isoformat(timespec="seconds")
        return cls(sum(map(len, chunks)), rows, newest, _checksum(chunks))

    def part(self, rows: int, mask: bytes, bit: bool) -> "DataIdentity":
        """Return the identity of some of the rows: those with this bit in the mask."""
        return replace(self, rows=rows, checksum=_checksum([self.checksum, hashlib.sha256(mask).hexdigest(), bit]))

    def is_same(self, other: "DataIdentity") -> bool:
        """Return whether both are the same rows in the same order."""
        return self.checksum == other.checksum

    def describe(self) -> str:
        """Return a description for messages."""
        return f"{self.rows:,} rows in {self.files:,} file(s), the newest of {self.newest}"


def _checksum(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
