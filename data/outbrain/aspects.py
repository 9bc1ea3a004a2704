"""Tags of documents: categories, topics and entities, each with a confidence."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from data.errors import DataError
from data.outbrain.lookup import find_sorted


@dataclass(frozen=True, eq=False)
class Aspect:
    """One kind of document tags, stored as (document, tag, confidence) entries.

    Attributes:
        documents: [entries] int64 document ids, ascending; the tags of a document keep the order of the file.
        codes: [entries] int64 indices into `values`.
        confidences: [entries] float64 confidence of each entry.
        values: [size] int64 or texts: all tags.
        idf: [size] float64 inverse document frequency ln(N / number of entries with the tag), where N is the largest
            document id plus 1, as published (the textbook's N is the number of documents).
    """

    documents: np.ndarray
    codes: np.ndarray
    confidences: np.ndarray
    values: np.ndarray
    idf: np.ndarray

    @classmethod
    def fit(cls, documents: np.ndarray, tags: np.ndarray, confidences: np.ndarray) -> "Aspect":
        """Fit the tags and their weights.

        Args:
            documents: [entries] int64 document ids, not negative (see `check_tags`).
            tags: [entries] int64 tags or texts.
            confidences: [entries] float64, finite and not negative (see `check_tags`).
        """
        codes, values = pd.factorize(tags, sort=True)
        occurrences = np.bincount(codes, minlength=len(values))
        idf = np.log((documents.max() + 1) / occurrences)
        return cls._ordered(documents, codes, confidences, np.asarray(values), idf)

    def with_entries(self, documents: np.ndarray, tags: np.ndarray, confidences: np.ndarray) -> "Aspect":
        """Return an aspect with other entries but the fitted tag weights; tags that are new get weight 0."""
        new = pd.Index(np.unique(tags)).difference(pd.Index(self.values))
        values = np.concatenate([self.values, np.asarray(new, self.values.dtype)])
        codes = pd.Index(values).get_indexer(pd.Index(tags))
        return self._ordered(documents, codes, confidences, values, np.append(self.idf, np.zeros(len(new))))

    @classmethod
    def _ordered(
        cls, documents: np.ndarray, codes: np.ndarray, confidences: np.ndarray, values: np.ndarray, idf: np.ndarray
    ) -> "Aspect":
        order = np.argsort(documents, kind="stable")
        return cls(documents[order], codes[order].astype(np.int64), confidences[order], values, idf)

    def by_confidence(self) -> "Aspect":
        """Return the same entries, with those of a document by descending confidence (ties in file order)."""
        order = np.lexsort((-self.confidences, self.documents))
        return Aspect(self.documents[order], self.codes[order], self.confidences[order], self.values, self.idf)

    def lists(self, documents: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the first tags of documents.

        Args:
            documents: [n] document ids; unknown ids and NaN have no tags.
            most: maximum number of tags per document.

        Returns:
            [tags] codes of all documents, concatenated, and the [n] number of tags of each document.
        """
        begin = np.searchsorted(self.documents, documents, side="left")
        end = np.searchsorted(self.documents, documents, side="right")
        lengths = np.minimum(end - begin, most)
        return self.codes[_ranges(begin, lengths)], lengths

    def similarity(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return the cosine similarity of the tf-idf weights of pairs of documents; 0 if one has no tags.

        The weight of a tag is confidence * idf, scaled so that the weights of a document have norm 1. As published,
        the weights of a tag that occurs twice in a document are added up only after scaling.

        Args:
            first, second: [n] document ids.

        Returns:
            [n] float64 similarities.
        """
        keys, weights = self._weights
        size, number = len(self.values), len(self._distinct)
        left, right = find_sorted(self._distinct, first), find_sorted(self._distinct, second)
        known = (left >= 0) & (right >= 0)
        # Pairs of documents repeat a lot, so each distinct pair is computed once.
        codes, pairs = pd.factorize(left[known] * number + right[known])
        left, right = pairs // number, pairs % number
        begin, end = np.searchsorted(keys, left * size), np.searchsorted(keys, (left + 1) * size)
        entries = _ranges(begin, end - begin)
        pair = np.repeat(np.arange(len(pairs)), end - begin)
        # Look up each tag of the left document among the right one's; position -1 (absent) takes the weight 0.
        positions = find_sorted(keys, right[pair] * size + keys[entries] % size)
        products = weights[entries] * np.append(weights, 0.0)[positions]
        cosines = np.zeros(len(first))
        cosines[known] = np.bincount(pair, weights=products, minlength=len(pairs))[codes]
        return cosines

    @cached_property
    def _distinct(self) -> np.ndarray:
        """[documents] int64 distinct document ids, ascending."""
        return np.unique(self.documents)

    @cached_property
    def _weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Distinct ascending keys (index of the document * number of tags + code), and the weight of each."""
        row = np.searchsorted(self._distinct, self.documents)
        weights = self.confidences * self.idf[self.codes]
        lengths = np.sqrt(np.bincount(row, weights=weights**2, minlength=len(self._distinct)))
        weights = np.divide(weights, lengths[row], out=np.zeros_like(weights), where=lengths[row] > 0)
        keys, positions = np.unique(row * len(self.values) + self.codes, return_inverse=True)
        return keys, np.bincount(positions, weights=weights, minlength=len(keys))


def check_tags(path: Path, documents: np.ndarray, confidences: np.ndarray) -> None:
    """Check the entries of a file of tags.

    Args:
        path: path of the file, for messages.
        documents: [entries] document ids, in file order.
        confidences: [entries] confidences, in file order.

    Raises:
        DataError: if a confidence is negative or not finite, or a document id is negative, naming the line.
    """
    for name, values, wrong in (
        ("document_id", documents, documents < 0),
        ("confidence_level", confidences, ~(np.isfinite(confidences) & (confidences >= 0))),
    ):
        if wrong.any():
            row = int(np.argmax(wrong))
            raise DataError(
                f"{path}, line {row + 2}: {name} is {values[row]}, expected a finite number of at least 0; correct it"
            )


def _ranges(begin: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenate the ranges [begin[i], begin[i] + lengths[i]): [sum of lengths] int64."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(begin - (ends - lengths), lengths)
