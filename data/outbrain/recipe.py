"""What recipes have in common: a recipe lists features, learns their encoders, and makes columns that they read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.encoding.encoders import Encoder
from data.encoding.keys import KeyTable
from data.encoding.nvtabular_operators import CountKeys
from data.encoding.nvtabular_setup import Dataset, Workflow, ops
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


@dataclass(frozen=True)
class Fitted:
    """What a recipe learns from training rows.

    Attributes:
        encoders: by feature, in the order of the features.
        out_of_fold: what training rows get instead of some of them.
    """

    encoders: Mapping[str, Encoder]
    out_of_fold: Mapping[str, OutOfFoldRates] = field(default_factory=dict)


@dataclass(frozen=True)
class Counted:
    """What is counted over training rows, whatever the recipe.

    Attributes:
        clicks: views and clicks by value and fold, of the columns with a click rate.
        documents: rows by document, of the columns of documents.
        days: rows by number of days, of the two ages.
    """

    clicks: Mapping[str, FoldCounts]
    documents: Mapping[str, KeyTable]
    days: Mapping[str, KeyTable]


@dataclass(frozen=True)
class Recipe:
    """A way to make features of joined rows.

    Attributes:
        name: as `--recipe` takes it.
        onehot, numerical: features, in order.
        tags: list features, in order: the column of documents, and the aspect.
        fill_publishers: whether every document without publisher gets one of its own.
        tags_by_confidence: whether a document's tags are taken by falling confidence, or in the file's order.
        embedding_sizes: width of features that the published sizes do not have.
        columns: an NVTabular node of all columns that one-hot encoders read.
        fit: learns from training rows: a Dask collection of them, the tables, a folder for NVTabular's files.
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
        """All features, in order."""
        return (*self.onehot, *self.tags, *self.numerical)

    def aspects(self, tables: SideTables) -> dict[str, Aspect]:
        """Aspects whose documents have their tags in this recipe's order."""
        aspects = dict(tables.aspects)
        return (
            {name: aspect.by_confidence() for name, aspect in aspects.items()} if self.tags_by_confidence else aspects
        )

    def workflow(self, fitted: Fitted, tables: SideTables) -> Any:
        """The NVTabular workflow that gives joined rows their features; no operator in it needs a fit.

        Rows get out-of-fold rates where `fitted` has some; for rows to predict, hand one in that has none.
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
    """A node of the documents' ages in days."""
    return [*PUBLISH_TIMES, TIMESTAMP] >> DaysSince(TIMESTAMP, PUBLISH_TIMES)


def prefix(column: str, length: int, name: str) -> Any:
    """A node of the first characters of a column of texts, under a new name."""
    return [column] >> ops.LambdaOp(lambda texts: texts.str.slice(0, length)) >> ops.Rename(name=name)


def count(rows: Any, documents: tuple[str, ...], further: Any = None) -> Counted:
    """Goes over the training rows once.

    Args:
        rows: a Dask collection of joined rows.
        documents: columns of documents to count.
        further: a node of other operators to fit on the way.
    """
    clicks, document_counts, days = CountClicks(CLICKED, FOLD, NUM_FOLDS), CountKeys(), CountKeys()
    nodes = ([*RATE_LEAST_VIEWS] >> clicks) + ([*documents] >> document_counts) + (ages() >> days)
    Workflow(nodes if further is None else nodes + further).fit(Dataset(rows))
    return Counted(clicks.counts, document_counts.tables, days.tables)


def tag_counts(documents: KeyTable, aspect: Aspect) -> np.ndarray:
    """How often each tag of an aspect occurs in rows, all tags of a row's document counted, [size] int64."""
    codes, lengths = aspect.lists(documents.keys, len(aspect.documents))
    counts = np.zeros(len(aspect.values), np.int64)
    np.add.at(counts, codes, np.repeat(documents.numbers.astype(np.int64), lengths))
    return counts
