"""Checksummed folders that somebody has changed on purpose, so that their checksums still match."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.storage.checksummed_dir import MANIFEST, _checksummed_text


def file_entry(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def rewrite_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the content of a manifest and updates its own checksum."""
    content = json.loads((folder / MANIFEST).read_text())["manifest"]
    change(content)
    (folder / MANIFEST).write_text(_checksummed_text(content))


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """Replaces a file of a checksummed folder, and its entry in the manifest."""
    (folder / name).write_bytes(content)
    rewrite_manifest(folder, lambda manifest: manifest["files"].update({name: file_entry(content)}))
