"""The base of recipes: a recipe declares features, fits their encoders, and derives the columns that these read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.outbrain.aspects import Aspect
from data.outbrain.columns import (
    CLICKED,
    DOCUMENT,
    DOCUMENT_PROMO,
    FOLD,
    PUBLISH_TIMES,
    RATE_LEAST_VIEWS,
    TAGS_PER_ROW,
    TIMESTAMP,
)
from data.outbrain.operators import CountClicks, DaysSince, Encode, EncodeOutOfFold, EncodeTags, Similarity
from data.outbrain.side_tables import SideTables
from data.outbrain.split import NUM_FOLDS
from data.outbrain.statistics import FoldCounts, OutOfFoldRates
from data.preprocess.encoders import Encoder
from data.preprocess.keys import KeyTable
from data.preprocess.nvtabular_operators import CountKeys
from data.preprocess.nvtabular_setup import Dataset, Workflow, ops


@dataclass(frozen=True)
class Fitted:
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
        tags: column of documents and name of the aspect of each list feature, by feature name, in order.
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
    fit: Callable[[Any, SideTables, str], Fitted]

    @property
    def features(self) -> tuple[str, ...]:
        """Names of all features, in order."""
        return (*self.onehot, *self.tags, *self.numerical)

    def aspects(self, tables: SideTables) -> dict[str, Aspect]:
        """Return the aspects, with the tags of each document in the order of this recipe."""
        aspects = dict(tables.aspects)
        return (
            {name: aspect.by_confidence() for name, aspect in aspects.items()} if self.tags_by_confidence else aspects
        )

    def workflow(self, fitted: Fitted, tables: SideTables) -> Any:
        """Return the NVTabular workflow that computes the features of joined rows; no operator in it needs a fit.

        Args:
            fitted: fitted state. Pass one without `out_of_fold` unless the rows are training rows.
            tables: side tables to look up documents in.
        """
        single = {name: fitted.encoders[name] for name in (*self.onehot, *self.numerical)}
        single = {name: encoder for name, encoder in single.items() if name not in fitted.out_of_fold}
        similarity = Similarity(DOCUMENT, DOCUMENT_PROMO, tables.aspects)
        read = self.columns() + ages() + ([DOCUMENT, DOCUMENT_PROMO] >> similarity) + [*RATE_LEAST_VIEWS]
        nodes = read >> Encode(single)
        if fitted.out_of_fold:
            nodes += [*RATE_LEAST_VIEWS, FOLD] >> EncodeOutOfFold(fitted.out_of_fold, FOLD)
        aspects = self.aspects(tables)
        for document in dict.fromkeys(document for document, _ in self.tags.values()):
            lists = {name: aspects[aspect] for name, (column, aspect) in self.tags.items() if column == document}
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
    clicks, document_counts, days = CountClicks(CLICKED, FOLD, NUM_FOLDS), CountKeys(), CountKeys()
    nodes = ([*RATE_LEAST_VIEWS] >> clicks) + ([*documents] >> document_counts) + (ages() >> days)
    Workflow(nodes if further is None else nodes + further).fit(Dataset(rows))
    return Counted(clicks.counts, document_counts.tables, days.tables)


def tag_counts(documents: KeyTable, aspect: Aspect) -> np.ndarray:
    """Return how often each tag of an aspect occurs in the counted rows, [size] int64; all tags of a row count."""
    codes, lengths = aspect.lists(documents.keys, len(aspect.documents))
    counts = np.zeros(len(aspect.values), np.int64)
    np.add.at(counts, codes, np.repeat(documents.numbers.astype(np.int64), lengths))
    return counts
