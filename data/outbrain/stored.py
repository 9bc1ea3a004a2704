"""Save and load a fitted workflow: all that is needed to compute features of new raw rows.

workflow.json       version, recipe, and size and SHA-256 of every other file
encoders/           `data.preprocess.encoder_files`: JSON and parquet
tables/             ads, documents and their tags, as parquet
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from data.errors import DataError
from data.outbrain.recipes import RECIPES, Recipe
from data.outbrain.side_tables import FILES, SideTables
from data.preprocess.encoder_files import load_encoders, save_encoders
from data.preprocess.encoders import Encoder
from data.preprocess.workflow_folder import check_content, content_sum
from data.storage.files import check_stays, open_regular, read_small_text
from data.storage.typed_json import read_typed

VERSION = 1
FILE = "workflow.json"
ENCODERS, TABLES = "encoders", "tables"
MAX_MEBIBYTES = 16


@dataclass(frozen=True)
class StoredWorkflow:
    """A loaded workflow.

    Attributes:
        recipe: recipe that was fitted.
        encoders: fitted encoder of each feature, by feature name.
        tables: side tables of the training data.
    """

    recipe: Recipe
    encoders: dict[str, Encoder]
    tables: SideTables


@dataclass(frozen=True)
class _File:
    """Size and checksum of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Description:
    """The content of `workflow.json`."""

    version: int
    recipe: str
    files: dict[str, _File]


def save_workflow(folder: Path, recipe: str, encoders: dict[str, Encoder]) -> None:
    """Add encoders to a folder that already has `tables/`, then the description with the checksums of all files."""
    save_encoders(encoders, folder / ENCODERS)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _sum(path)} for path in files}
    document = {"version": VERSION, "recipe": recipe, "files": entries}
    (folder / FILE).write_text(json.dumps(document, indent=2) + "\n")


def load_workflow(folder: Path) -> StoredWorkflow:
    """Load what `save_workflow` wrote.

    Raises:
        DataError: if a file is missing, damaged, or has another version.
    """
    folder = Path(folder)
    recipe, files = _read_document(folder / FILE)
    for name, (size, digest) in files.items():
        _check(folder, name, size, digest)
    encoders = load_encoders(folder / ENCODERS)
    if set(encoders) != set(recipe.features):
        raise DataError(
            f"{folder / FILE}: recipe {recipe.name!r} has other features than {ENCODERS}/; run preproc again"
        )
    try:
        tables = SideTables.from_parquet(folder / TABLES)
    except (LookupError, TypeError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{folder / TABLES}: are not as preproc writes them ({error!r}); run preproc again") from error
    return StoredWorkflow(recipe, encoders, tables)


def _read_document(path: Path) -> tuple[Recipe, dict[str, tuple[int, str]]]:
    """Return the recipe, and the size and checksum of every file, by name."""
    try:
        document = json.loads(read_small_text(path, "a fitted workflow's description", MAX_MEBIBYTES))
        description: _Description = read_typed(_Description, document, "workflow")
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no description of a fitted workflow ({error}); run preproc again") from error
    version, recipe = description.version, description.recipe
    files = {name: (entry.bytes, entry.sha256) for name, entry in description.files.items()}
    if version != VERSION:
        raise DataError(f"{path}: version {version!r}, this program reads version {VERSION}; run preproc again")
    if recipe not in RECIPES:
        raise DataError(f"{path}: recipe {recipe!r}, expected one of {', '.join(RECIPES)}; run preproc again")
    needed = {f"{ENCODERS}/encoders.json", f"{ENCODERS}/manifest.json", *(f"{TABLES}/{name}" for name in FILES)}
    if not needed <= set(files):
        raise DataError(f"{path}: does not list {sorted(needed - set(files))}; run preproc again")
    return RECIPES[recipe], files


def _check(folder: Path, name: str, size: int, digest: str) -> None:
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise DataError(f"{folder / FILE}: lists {name!r}, which is not a file of this folder")
    check_stays(folder, name)
    check_content(folder / name, size, digest, "run preproc again")


def _sum(path: Path) -> str:
    with open_regular(path) as file:
        return content_sum(file)
