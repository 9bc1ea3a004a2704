"""What documents are about: categories, topics and entities, each with a confidence."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from data.errors import DataError
from data.outbrain.lookup import find_sorted


@dataclass(frozen=True, eq=False)
class Aspect:
    """One kind of tags of documents.

    Attributes:
        documents: [entries] int64, ascending; the tags of a document are in the file's order.
        codes: [entries] int64 positions in `values`.
        confidences: [entries] float64.
        values: [size] int64 or texts: all tags.
        idf: [size] float64: ln(N / number of entries with the tag), N being the largest document id plus 1
            (as published; the number of documents would be the textbook's N).
    """

    documents: np.ndarray
    codes: np.ndarray
    confidences: np.ndarray
    values: np.ndarray
    idf: np.ndarray

    @classmethod
    def fit(cls, documents: np.ndarray, tags: np.ndarray, confidences: np.ndarray) -> "Aspect":
        """Orders entries by document and learns the tags and their weights; all [entries].

        The ids are not negative and the confidences finite and not negative: see `check_tags`.
        """
        codes, values = pd.factorize(tags, sort=True)
        occurrences = np.bincount(codes, minlength=len(values))
        idf = np.log((documents.max() + 1) / occurrences)
        return cls._ordered(documents, codes, confidences, np.asarray(values), idf)

    def with_entries(self, documents: np.ndarray, tags: np.ndarray, confidences: np.ndarray) -> "Aspect":
        """Other entries with the weights of these; tags that are not among these get no weight."""
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
        """The same entries, those of a document by falling confidence (ties stay in the file's order)."""
        order = np.lexsort((-self.confidences, self.documents))
        return Aspect(self.documents[order], self.codes[order], self.confidences[order], self.values, self.idf)

    def lists(self, documents: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
        """The first tags of documents.

        Args:
            documents: [n] ids; unknown ones and NaN have no tags.
            most: tags per document.

        Returns:
            codes [tags] of all documents one after the other, and the number of them per document [n].
        """
        begin = np.searchsorted(self.documents, documents, side="left")
        end = np.searchsorted(self.documents, documents, side="right")
        lengths = np.minimum(end - begin, most)
        return self.codes[_ranges(begin, lengths)], lengths

    def similarity(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Cosine of the tf-idf weights of pairs of documents, [n] float64; 0 where one has no tags.

        The weight of a tag is confidence * idf, a document's weights are scaled to length 1, and only then
        weights of a tag that a document has twice are added up (as published).
        """
        keys, weights = self._weights
        size, number = len(self.values), len(self._distinct)
        left, right = find_sorted(self._distinct, first), find_sorted(self._distinct, second)
        known = (left >= 0) & (right >= 0)
        codes, pairs = pd.factorize(left[known] * number + right[known])
        left, right = pairs // number, pairs % number
        begin, end = np.searchsorted(keys, left * size), np.searchsorted(keys, (left + 1) * size)
        entries = _ranges(begin, end - begin)
        pair = np.repeat(np.arange(len(pairs)), end - begin)
        positions = find_sorted(keys, right[pair] * size + keys[entries] % size)
        products = weights[entries] * np.append(weights, 0.0)[positions]
        cosines = np.zeros(len(first))
        cosines[known] = np.bincount(pair, weights=products, minlength=len(pairs))[codes]
        return cosines

    @cached_property
    def _distinct(self) -> np.ndarray:
        """[documents] int64, ascending."""
        return np.unique(self.documents)

    @cached_property
    def _weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys (number of the document * number of tags + code), ascending without repetitions, and their weights."""
        row = np.searchsorted(self._distinct, self.documents)
        weights = self.confidences * self.idf[self.codes]
        lengths = np.sqrt(np.bincount(row, weights=weights**2, minlength=len(self._distinct)))
        weights = np.divide(weights, lengths[row], out=np.zeros_like(weights), where=lengths[row] > 0)
        keys, positions = np.unique(row * len(self.values) + self.codes, return_inverse=True)
        return keys, np.bincount(positions, weights=weights, minlength=len(keys))


def check_tags(path: Path, documents: np.ndarray, confidences: np.ndarray) -> None:
    """Refuses entries of a file, all [entries] in its order, that cannot be weighed.

    Raises:
        DataError: a confidence is no finite number >= 0, or a document id is negative; with the line.
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
    """begin[0], begin[0] + 1, ... (lengths[0] of them), begin[1], ...: [sum of lengths] int64."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(begin - (ends - lengths), lengths)
