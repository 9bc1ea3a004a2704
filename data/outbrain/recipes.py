"""The recipes: how features are computed from joined rows, how encoders are fitted, and how a fitted recipe is stored.

`published` reproduces NVIDIA's DeepLearningExamples (TensorFlow2, Wide & Deep) for comparable figures: all ids are hash
buckets (of `data.encoding.hashing` instead of cuDF's hash), and, as published, the click rates of a training row
include its own click.

In `leak_free`, a row's own click does not enter its features. Differences: click rates are out-of-fold and smoothed
towards the prior; numbers are standardized; null has its own id; small vocabularies have exact ids, and large ones
exact ids for frequent values; tags are selected by descending confidence; and further features are added to the 29
published ones: hour, weekday, the number of ads in the display, and the tags of the promoted document.

A stored workflow is all that is needed to compute features of new raw rows:

    encoders/        `data.encoding.encoder_files`: JSON and parquet
    tables/          ads, documents and their tags, as parquet
    manifest.json    the recipe; see `data.storage.checksummed_dir`
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data.encoding.encoder_files import SETTINGS_FILE, load_encoders, save_encoders
from data.encoding.encoders import Encoder, HashedIds, HashedRanks, Numerical, Vocabulary
from data.encoding.keys import KeyTable
from data.encoding.nvtabular_setup import Dataset, Workflow, ops
from data.errors import DataError
from data.outbrain.joining import DISPLAY_ADS, DOCUMENT_PROMO, FOLD_COLUMN, NUM_FOLDS
from data.outbrain.operators import (
    CountClicks,
    CountIds,
    CountKeys,
    DaysSince,
    Encode,
    EncodeOutOfFold,
    EncodeTags,
    FoldCounts,
    OutOfFoldRates,
    Similarity,
    days_encoder,
    log_views,
    published_rate,
    smoothed_rates,
)
from data.outbrain.raw_tables import CLICKED, DAY_MS, DOCUMENT, GEO, TIMESTAMP
from data.outbrain.side_tables import FILES, DocumentTags, SideTables
from data.storage.checksummed_dir import MANIFEST, open_verified, write_manifest
from data.storage.files import check_inside

ENCODERS, TABLES = "encoders", "tables"
FIX = "run preproc again"

PUBLISH_TIMES = ("publish_time", "publish_time_promo")
# Published number of hash buckets of each feature.
ONEHOT_SIZES = {
    "ad_id": 250_000,
    "document_id": 300_000,
    "platform": 4,
    "document_id_promo": 100_000,
    "campaign_id": 5_000,
    "advertiser_id": 2_500,
    "source_id": 4_000,
    "geo_location": 2_500,
    "geo_location_country": 300,
    "geo_location_state": 2_000,
    "publisher_id": 1_000,
    "source_id_promo": 4_000,
    "publisher_id_promo": 1_000,
}
TAG_SIZES = {"topic_id_list": 350, "entity_id_list": 10_000, "category_id_list": 100}
TAG_KINDS = {"topic_id_list": "topics", "entity_id_list": "entities", "category_id_list": "categories"}
TAGS_PER_ROW = 3
NUMERICAL = (
    "document_id_document_id_promo_sim_categories",
    "document_id_document_id_promo_sim_topics",
    "document_id_document_id_promo_sim_entities",
    "document_id_promo_ctr",
    "publisher_id_promo_ctr",
    "source_id_promo_ctr",
    "document_id_promo_count",
    "publish_time_days_since_published",
    "ad_id_ctr",
    "advertiser_id_ctr",
    "campaign_id_ctr",
    "ad_id_count",
    "publish_time_promo_days_since_published",
)
SIMILARITIES = NUMERICAL[:3]
DAYS = tuple(f"{name}_days_since_published" for name in PUBLISH_TIMES)
# Columns with a click rate, and the number of views below which the published rate is 0.
RATE_MIN_VIEWS = {
    "ad_id": 5,
    "source_id_promo": 10,
    "document_id_promo": 5,
    "publisher_id_promo": 10,
    "advertiser_id": 10,
    "campaign_id": 10,
}
COUNT_COLUMNS = ("ad_id", "document_id_promo")
SMOOTHING = 20.0
HOUR_MS = 60 * 60 * 1000
# Hour of the day and day of the week since Outbrain's origin (a Tuesday, 04:00 UTC), and ads in the display.
FURTHER_ONEHOT = {"hour": 30, "weekday": 10, DISPLAY_ADS: 30}
PROMO_TAGS = {name.replace("_list", "_promo_list"): (DOCUMENT_PROMO, kind) for name, kind in TAG_KINDS.items()}
TAGS = {name: (DOCUMENT, kind) for name, kind in TAG_KINDS.items()} | PROMO_TAGS
# Maximum cardinalities: the published ones, except that three platforms also need ids for padding, null and unseen.
SIZES = {**ONEHOT_SIZES, "platform": 10, **FURTHER_ONEHOT}


@dataclass(frozen=True)
class FittedRecipe:
    """The fitted state of a recipe.

    Attributes:
        encoders: encoder of each feature, by feature name, in the order of the features.
        out_of_fold: rates that replace the encoder for training rows, by feature name.
    """

    encoders: Mapping[str, Encoder]
    out_of_fold: Mapping[str, OutOfFoldRates] = field(default_factory=dict)


@dataclass(frozen=True)
class Counted:
    """Counts over the training rows that every recipe uses.

    Attributes:
        clicks: views and clicks by value and fold, for each column with a click rate.
        documents: number of rows by document, for each column of documents.
        days: number of rows by number of days, for each of the two ages.
    """

    clicks: Mapping[str, FoldCounts]
    documents: Mapping[str, KeyTable]
    days: Mapping[str, KeyTable]


@dataclass(frozen=True)
class Recipe:
    """A definition of the features of joined rows.

    Attributes:
        name: name of the recipe, as passed to `--recipe`.
        onehot, numerical: names of the features, in order.
        tags: column of documents and kind of tags of each list feature, by feature name, in order.
        fill_publishers: whether each document without a publisher gets its own one.
        tags_by_confidence: whether to select a document's tags by descending confidence rather than in file order.
        embedding_sizes: embedding widths of features that are not in the published sizes, by feature name.
        columns: function that returns an NVTabular node of all columns that one-hot encoders read.
        fit: function that fits the recipe, given a Dask collection of training rows, the side tables, and a folder for
            NVTabular's files.
    """

    name: str
    onehot: tuple[str, ...]
    tags: Mapping[str, tuple[str, str]]
    numerical: tuple[str, ...]
    fill_publishers: bool
    tags_by_confidence: bool
    embedding_sizes: Mapping[str, int]
    columns: Callable[[], Any]
    fit: Callable[[Any, SideTables, str], FittedRecipe]

    @property
    def features(self) -> tuple[str, ...]:
        """Names of all features, in order."""
        return (*self.onehot, *self.tags, *self.numerical)

    def workflow(self, fitted: FittedRecipe, tables: SideTables) -> Any:
        """Return the NVTabular workflow that computes the features of joined rows; no operator in it needs a fit.

        Args:
            fitted: fitted state. Pass one without `out_of_fold` unless the rows are training rows.
            tables: side tables to look up documents in.
        """
        single = {name: fitted.encoders[name] for name in (*self.onehot, *self.numerical)}
        single = {name: encoder for name, encoder in single.items() if name not in fitted.out_of_fold}
        similarity = Similarity(DOCUMENT, DOCUMENT_PROMO, tables.tags)
        read = self.columns() + ages() + ([DOCUMENT, DOCUMENT_PROMO] >> similarity) + [*RATE_MIN_VIEWS]
        nodes = read >> Encode(single)
        if fitted.out_of_fold:
            nodes += [*RATE_MIN_VIEWS, FOLD_COLUMN] >> EncodeOutOfFold(fitted.out_of_fold, FOLD_COLUMN)
        tags = dict(tables.tags)
        if self.tags_by_confidence:
            tags = {kind: of_kind.by_confidence() for kind, of_kind in tags.items()}
        for document in dict.fromkeys(document for document, _ in self.tags.values()):
            lists = {name: tags[kind] for name, (column, kind) in self.tags.items() if column == document}
            encoders = {name: fitted.encoders[name] for name in lists}
            nodes += [document] >> EncodeTags(document, encoders, lists, TAGS_PER_ROW)
        return Workflow(nodes)


def ages() -> Any:
    """Return an NVTabular node of the documents' ages in days."""
    return [*PUBLISH_TIMES, TIMESTAMP] >> DaysSince(TIMESTAMP, PUBLISH_TIMES)


def prefix(column: str, length: int, name: str) -> Any:
    """Return an NVTabular node of the first `length` characters of a text column, under a new name."""
    return [column] >> ops.LambdaOp(lambda texts: texts.str.slice(0, length)) >> ops.Rename(name=name)


def count(rows: Any, documents: tuple[str, ...], further: Any = None) -> Counted:
    """Compute the counts in one pass over the training rows.

    Args:
        rows: Dask collection of joined training rows.
        documents: names of the columns of documents to count.
        further: NVTabular node with other operators to fit in the same pass.
    """
    clicks, document_counts, days = CountClicks(CLICKED, FOLD_COLUMN, NUM_FOLDS), CountKeys(), CountKeys()
    nodes = ([*RATE_MIN_VIEWS] >> clicks) + ([*documents] >> document_counts) + (ages() >> days)
    Workflow(nodes if further is None else nodes + further).fit(Dataset(rows))
    return Counted(clicks.counts, document_counts.tables, days.tables)


def tag_counts(documents: KeyTable, tags: DocumentTags) -> np.ndarray:
    """Return how often each tag occurs in the counted rows, [size] int64; all tags of a row count."""
    codes, lengths = tags.lists(documents.keys.to_numpy(), len(tags.documents))
    counts = np.zeros(len(tags.values), np.int64)
    np.add.at(counts, codes, np.repeat(documents.numbers.astype(np.int64), lengths))
    return counts


def _leak_free_columns() -> Any:
    """Return the NVTabular node of the columns that one-hot encoders read."""
    made = ("geo_location_country", "geo_location_state", "hour", "weekday")
    hour = [TIMESTAMP] >> ops.LambdaOp(lambda times: times // HOUR_MS % 24) >> ops.Rename(name="hour")
    weekday = [TIMESTAMP] >> ops.LambdaOp(lambda times: times // DAY_MS % 7) >> ops.Rename(name="weekday")
    raw = [name for name in SIZES if name not in made]
    return raw + prefix(GEO, 2, made[0]) + prefix(GEO, 5, made[1]) + hour + weekday


def _fit_leak_free(rows: Any, tables: SideTables, folder: str) -> FittedRecipe:
    """Fit the encoders on training rows, with the arguments of `Recipe.fit`."""
    ids = CountIds(folder, SIZES)
    counted = count(rows, (DOCUMENT, DOCUMENT_PROMO), _leak_free_columns() >> ids)
    encoders: dict[str, Encoder] = dict(ids.vocabularies)
    for name, (document, kind) in TAGS.items():
        tags, size = tables.tags[kind], TAG_SIZES[name.replace("_promo_list", "_list")]
        counts = tag_counts(counted.documents[document], tags)
        occurs = counts > 0
        encoders[name] = Vocabulary.fit(name, tags.values[occurs], counts[occurs], is_list=True, max_ids=size)
    encoders |= {name: Numerical.standardized(name) for name in SIMILARITIES}
    out_of_fold = {}
    for name in RATE_MIN_VIEWS:
        encoders[f"{name}_ctr"], out_of_fold[f"{name}_ctr"] = smoothed_rates(counted.clicks[name], SMOOTHING)
    encoders |= {f"{name}_count": log_views(counted.clicks[name]) for name in COUNT_COLUMNS}
    encoders |= {name: days_encoder(name, counted.days[name], standardized=True) for name in DAYS}
    return FittedRecipe({name: encoders[name] for name in (*SIZES, *TAGS, *NUMERICAL)}, out_of_fold)


LEAK_FREE = Recipe(
    name="leak_free",
    onehot=tuple(SIZES),
    tags=TAGS,
    numerical=NUMERICAL,
    fill_publishers=False,
    tags_by_confidence=True,
    embedding_sizes={"hour": 8, "weekday": 4, DISPLAY_ADS: 4} | {name: 64 for name in PROMO_TAGS},
    columns=_leak_free_columns,
    fit=_fit_leak_free,
)


def _published_columns() -> Any:
    """Return the NVTabular node of the columns that one-hot encoders read; platform is 0 to 2, and 0 if missing."""
    raw = [name for name in ONEHOT_SIZES if name not in ("platform", "geo_location_country", "geo_location_state")]
    platform = ["platform"] >> ops.LambdaOp(lambda platforms: platforms.fillna(1) - 1)
    return raw + platform + prefix(GEO, 2, "geo_location_country") + prefix(GEO, 5, "geo_location_state")


def _fit_published(rows: Any, tables: SideTables, folder: str) -> FittedRecipe:
    """Fit the encoders on training rows, with the arguments of `Recipe.fit`."""
    counted = count(rows, (DOCUMENT,))
    encoders: dict[str, Encoder] = {name: HashedIds(name, size) for name, size in ONEHOT_SIZES.items()}
    for name, size in TAG_SIZES.items():
        tags = tables.tags[TAG_KINDS[name]]
        counts = tag_counts(counted.documents[DOCUMENT], tags)
        ranked = Vocabulary.fit(name, tags.values[counts > 0], counts[counts > 0])
        encoders[name] = HashedRanks(name, ranked.values, size)
    encoders |= {name: Numerical.standardized(name) for name in SIMILARITIES}
    encoders |= {f"{name}_ctr": published_rate(counted.clicks[name], least) for name, least in RATE_MIN_VIEWS.items()}
    encoders |= {f"{name}_count": log_views(counted.clicks[name]) for name in COUNT_COLUMNS}
    encoders |= {name: days_encoder(name, counted.days[name], standardized=False) for name in DAYS}
    return FittedRecipe({name: encoders[name] for name in (*ONEHOT_SIZES, *TAG_SIZES, *NUMERICAL)})


PUBLISHED = Recipe(
    name="published",
    onehot=tuple(ONEHOT_SIZES),
    tags={name: (DOCUMENT, kind) for name, kind in TAG_KINDS.items()},
    numerical=NUMERICAL,
    fill_publishers=True,
    tags_by_confidence=False,
    embedding_sizes={},
    columns=_published_columns,
    fit=_fit_published,
)


RECIPES = {recipe.name: recipe for recipe in (LEAK_FREE, PUBLISHED)}


def find_recipe(name: str) -> Recipe:
    """Return the recipe of a name.

    Raises:
        DataError: if there is no such recipe.
    """
    if name not in RECIPES:
        raise DataError(f"recipe {name!r}: expected one of {', '.join(RECIPES)}")
    return RECIPES[name]


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
        raise DataError(f"{folder / TABLES}: were not written by preproc ({error!r}); {FIX}") from error
    return StoredWorkflow(RECIPES[recipe], encoders, tables)
