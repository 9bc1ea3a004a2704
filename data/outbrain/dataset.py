"""Write the dataset of `preproc` or `transform` into a draft, and return its specification."""

import json
from importlib.metadata import version
from pathlib import Path

from data.files.parquet import parquet_schema
from data.outbrain import pipeline
from data.outbrain.joining import TRAIN, VALID, Joined, joined_parts
from data.outbrain.pipeline import Run
from data.outbrain.raw_tables import CLICKS, RawTable
from data.outbrain.recipe import Recipe
from data.outbrain.recipes import find_recipe
from data.outbrain.side_tables import SideTables
from data.outbrain.statistics import save_out_of_fold
from data.outbrain.stored import ENCODERS, TABLES, load_workflow, save_workflow
from data.outbrain.writing import Encoding
from data.preprocess.workflow_folder import ENCODERS_FOLDER
from data.spec.embedding_sizes import SIZES_FILE, read_sizes
from data.spec.feature_spec import MAP, FeatureSpec

MAPPINGS = {"train": TRAIN, "test": VALID}
MANIFEST_FILE = "manifest.json"
PUBLISHED_SIZES = Path(__file__).parent / SIZES_FILE
PACKAGES = ("numpy", "pandas", "pyarrow", "dask", "nvtabular")


def prepare(run: Run, raw: Path, draft: Path, recipe_name: str, files: int) -> FeatureSpec:
    """Write training and validation files, embedding sizes, workflow and manifest.

    Args:
        run: workers, scratch folder and settings.
        raw: folder with all raw tables.
        draft: folder of the dataset to write to.
        recipe_name: name of the recipe to fit.
        files: maximum number of files per mapping.

    Returns:
        The specification of the dataset, which is not written.

    Raises:
        DataError: if the input is invalid.
    """
    recipe, workflow, rates = find_recipe(recipe_name), draft / ENCODERS_FOLDER, run.scratch / "out_of_fold"
    for folder in (workflow / TABLES, rates):
        folder.mkdir(parents=True)
    tables = SideTables.read(raw, run.progress.tell, fill_publishers=recipe.fill_publishers)
    tables.to_parquet(workflow / TABLES)
    del tables  # from here on, every process loads them from parquet
    joined = pipeline.join(run, raw, CLICKS, workflow / TABLES)
    fitted = pipeline.fit(run, recipe, joined, workflow / TABLES)
    save_out_of_fold(fitted.out_of_fold, rates)
    save_workflow(workflow, recipe.name, dict(fitted.encoders))
    spec = pipeline.specification(recipe, dict(fitted.encoders), draft)
    chunks = {}
    for mapping, joined_mapping in MAPPINGS.items():
        hidden = spec.channels[MAP] if mapping == "train" else ()
        encoding = Encoding(
            recipe=recipe.name,
            encoders=workflow / ENCODERS,
            tables=workflow / TABLES,
            out_of_fold=rates if mapping == "train" else None,
            schema=parquet_schema(spec, [name for name in spec.features if name not in hidden]),
            mapping=joined_mapping,
            ranges=len(joined_parts(run.scratch, joined_mapping)),
            seed=run.seed,
            pieces=run.scratch / "pieces",
        )
        rows = joined.rows[joined_mapping]
        chunks[mapping] = (pipeline.write(run, encoding, rows, draft / joined_mapping, files),)
    _write_sizes(draft, recipe)
    _write_manifest(draft, recipe, run, joined)
    return spec.with_sources(chunks, draft)


def transform(run: Run, workflow: Path, raw: Path, clicks: RawTable, draft: Path) -> FeatureSpec:
    """Write a file of new rows, and embedding sizes.

    Args:
        run: workers, scratch folder and settings.
        workflow: folder of a stored workflow.
        raw: folder with clicks and events, and any side tables that replace the stored ones.
        clicks: table of clicks to read.
        draft: folder of the dataset to write to.

    Returns:
        The specification of the dataset, which is not written; both of its mappings have the same file.

    Raises:
        DataError: if the input is invalid.
    """
    stored, tables = load_workflow(workflow), run.scratch / TABLES
    recipe = stored.recipe
    tables.mkdir()
    stored.tables.replaced(raw, run.progress.tell, fill_publishers=recipe.fill_publishers).to_parquet(tables)
    joined = pipeline.join(run, raw, clicks, tables, split=False)
    spec = pipeline.specification(recipe, stored.encoders, draft, labelled=clicks is CLICKS, with_ads=True)
    encoding = Encoding(
        recipe=recipe.name,
        encoders=workflow / ENCODERS,
        tables=tables,
        out_of_fold=None,
        schema=parquet_schema(spec, list(spec.features)),
        mapping=VALID,
        ranges=len(joined_parts(run.scratch, VALID)),
        seed=run.seed,
        pieces=run.scratch / "pieces",
    )
    chunk = pipeline.write(run, encoding, joined.rows[VALID], draft / "rows", 1)
    _write_sizes(draft, recipe)
    return spec.with_sources({mapping: (chunk,) for mapping in MAPPINGS}, draft)


def _write_sizes(draft: Path, recipe: Recipe) -> None:
    known = read_sizes(PUBLISHED_SIZES) | dict(recipe.embedding_sizes)
    sizes = {name: known[name] for name in (*recipe.onehot, *recipe.tags)}
    (draft / SIZES_FILE).write_text(json.dumps(sizes, indent=2) + "\n")


def _write_manifest(draft: Path, recipe: Recipe, run: Run, joined: Joined) -> None:
    manifest = {"format": 1, "recipe": recipe.name, "seed": run.seed, "rows": joined.rows, "unknown": joined.unknown}
    versions = {name: version(name) for name in PACKAGES}
    (draft / MANIFEST_FILE).write_text(json.dumps(manifest | {"versions": versions}, indent=2) + "\n")
