"""Save and load a fitted workflow: all that is needed to compute features of new raw rows.

encoders/        `data.preprocess.encoder_files`: JSON and parquet
tables/          ads, documents and their tags, as parquet
manifest.json    the recipe; see `data.storage.checksummed_dir`
"""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from data.errors import DataError
from data.outbrain.recipes import RECIPES, Recipe
from data.outbrain.side_tables import FILES, SideTables
from data.preprocess.encoder_files import SETTINGS_FILE, load_encoders, save_encoders
from data.preprocess.encoders import Encoder
from data.storage.checksummed_dir import MANIFEST, open_verified, write_manifest
from data.storage.files import check_inside

ENCODERS, TABLES = "encoders", "tables"
FIX = "run preproc again"


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


def save_workflow(folder: Path, recipe: str, encoders: dict[str, Encoder]) -> None:
    """Add encoders to a folder that already has `tables/`, then the manifest with the checksums of all files."""
    save_encoders(encoders, folder / ENCODERS)
    write_manifest(folder, {"recipe": recipe})


def load_workflow(folder: Path) -> StoredWorkflow:
    """Load what `save_workflow` wrote.

    Raises:
        DataError: if a file is missing, damaged, or has another version.
    """
    stored = open_verified(Path(folder), FIX)
    for name in stored.files:
        check_inside(folder, name)
    recipe = stored.metadata.get("recipe")
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise DataError(f"{folder / MANIFEST}: recipe {recipe!r}, expected one of {', '.join(RECIPES)}; {FIX}")
    needed = {f"{ENCODERS}/{SETTINGS_FILE}", f"{ENCODERS}/{MANIFEST}", *(f"{TABLES}/{name}" for name in FILES)}
    if missing := needed - set(stored.files):
        raise DataError(f"{folder / MANIFEST}: does not list {sorted(missing)}; {FIX}")
    encoders = load_encoders(folder / ENCODERS)
    if set(encoders) != set(RECIPES[recipe].features):
        raise DataError(f"{folder / MANIFEST}: recipe {recipe!r} has other features than {ENCODERS}/; {FIX}")
    try:
        tables = SideTables.from_parquet(folder / TABLES)
    except (LookupError, TypeError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{folder / TABLES}: are not as preproc writes them ({error!r}); {FIX}") from error
    return StoredWorkflow(RECIPES[recipe], encoders, tables)
