"""The input of a model's interaction for a ranking request: what all candidates share is computed once."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from data.spec.features import TARGET_ENCODERS
from trainer.embeddings.groups import TableGroup
from trainer.embeddings.tables import EmbeddingTables, Pooled
from trainer.layout import InputSchema, ModelInputs, SequenceInput, SequenceSteps
from trainer.models.parts import Columns, Parts, parts_of
from trainer.models.sequences import Sequences, steps_by_feature, steps_of
from trainer.models.vectors import Vectors


class _Side(NamedTuple):
    """The embedded inputs of one side.

    Attributes:
        is_own: whether these are the inputs of the candidates, with a row for each, or those of the request, one row.
        layout: layout of the inputs.
        inputs: their matrices.
        steps: the steps of the sequences in the layout.
        embedded: the embeddings.
        groups: the groups of deep tables with the features of this side.
    """

    is_own: bool
    layout: InputSchema
    inputs: ModelInputs
    steps: tuple[SequenceSteps, ...]
    embedded: Pooled
    groups: tuple[TableGroup, ...]


class RankingRequest:
    """Embeds the inputs of a ranking request and arranges them as an interaction takes them.

    Encoders of sequences that compare the request's steps with a candidate's target, or that have a candidate's steps,
    run for every candidate; the others once.

    Args:
        layout: layout of the model's inputs.
        tables: the embedding tables.
        request: the inputs that all candidates share, one row of the first layout of `InputSchema.sides`.
        candidates: those of each candidate, rows of the second layout.

    Attributes:
        wide: the sums of the wide weights of the ids of the request, [1, outputs], and of each candidate, [candidates,
            outputs]; empty without a wide part.
        numerical: the numerical features outside of sequences, [candidates, numerical].
    """

    def __init__(self, layout: InputSchema, tables: EmbeddingTables, request: ModelInputs, candidates: ModelInputs):
        self._layout, self._rows = layout, tf.shape(candidates.ids)[0]
        (of_request, of_candidate), groups = layout.sides, tables.deep_groups
        self._sides = (
            _embedded(tables, groups, of_request, request, is_own=False),
            _embedded(tables, groups, of_candidate, candidates, is_own=True),
        )
        self.wide = [wide for side in self._sides for wide in side.embedded.wide]
        self._numerical: list[Columns] = [
            (side.is_own, side.inputs.numerical, _places(layout.numerical, side.layout.numerical))
            for side in self._sides
        ]
        self.numerical = parts_of(self._numerical, self._rows)

    def interacting(self, sequences: Sequences, vectors: Vectors) -> tuple[list[Parts], Parts]:
        """Return what `Interaction.call` takes: the embeddings of each group of tables, and all numbers.

        Args:
            sequences, vectors: the model's layers.
        """
        by_feature, of_sequence = dict[str, tf.Tensor](), dict[str, SequenceSteps]()
        for side in self._sides:
            by_feature |= steps_by_feature(side.groups, side.embedded)
            of_sequence |= zip((own.name for own in side.layout.sequences), side.steps, strict=True)
        steps = [of_sequence[own.name] for own in self._layout.sequences]
        encoded, numbers = sequences.encode(by_feature, self._target, steps)
        deep = [self._group(number, group, encoded) for number, group in enumerate(sequences.groups)]
        blocks = [*self._numerical]
        is_own = [self._is_own(own) for own in self._layout.sequences]
        start = len(self._layout.numerical)
        for own, values in [*zip(is_own, numbers, strict=True), *self._vectors(vectors, len(sequences.groups))]:
            blocks.append((own, values, np.arange(start, start + values.shape[1])))
            start += values.shape[1]
        return deep, parts_of(blocks, self._rows)

    def _is_own(self, sequence: SequenceInput) -> bool:
        """Return whether each candidate has a vector of its own for the steps of a sequence."""
        compared = sequence.targets if sequence.encoder in TARGET_ENCODERS else ()
        return not self._layout.candidates.isdisjoint((sequence.features[0], *compared))

    def _target(self, sequence: SequenceInput, name: str) -> tf.Tensor:
        """Return the embedding of a target: [candidates, width] if each has a vector of its own, else [1, width]."""
        [found] = [
            side.embedded.deep[number][:, [one.name for one in group.pooled].index(name)]
            for side in self._sides
            for number, group in enumerate(side.groups)
            if any(one.name == name for one in group.pooled)
        ]
        if sequence.encoder not in TARGET_ENCODERS:  # which ignore it
            return tf.zeros([self._rows if self._is_own(sequence) else 1, found.shape[1]])
        if name in self._layout.candidates or not self._is_own(sequence):
            return found
        return tf.broadcast_to(found, [self._rows, found.shape[1]])

    def _group(self, number: int, group: TableGroup, encoded: Mapping[str, tf.Tensor]) -> Parts:
        """Return the embeddings of a group, those of its pooled features first, [candidates, features, width]."""
        names = [feature.name for feature in (*group.pooled, *group.in_sequences)]
        blocks: list[Columns] = [
            (side.is_own, side.embedded.deep[number], _places(names, [one.name for one in side.groups[number].pooled]))
            for side in self._sides
        ]
        for sequence in self._layout.sequences:
            for name in sequence.features:
                if name in names:
                    values = tf.expand_dims(encoded[name], 1)
                    blocks.append((self._is_own(sequence), values, _places(names, [name])))
        return parts_of(blocks, self._rows, (group.width,))

    def _vectors(self, vectors: Vectors, groups: int) -> list[tuple[bool, tf.Tensor]]:
        """Return what the interaction sees of each vector, and whether each candidate has its own.

        Args:
            vectors: the layer.
            groups: the number of groups of deep tables.
        """
        found = [
            (side.is_own, side.inputs.vectors[:, side.layout.vector_places[own.name]])
            for own in self._layout.vectors
            for side in self._sides
            if own in side.layout.vectors
        ]
        looked_up = [(*side.embedded.deep[groups:], *side.embedded.frozen) for side in self._sides]
        for own, of_sides in zip(self._layout.pretrained, zip(*looked_up, strict=True), strict=True):
            is_own = own.of in self._layout.candidates
            found.append((is_own, tf.squeeze(of_sides[is_own], axis=1)))
        return [(is_own, vectors.one(number, x)) for number, (is_own, x) in enumerate(found, start=1)]


def _embedded(
    tables: EmbeddingTables, groups: Sequence[TableGroup], layout: InputSchema, inputs: ModelInputs, *, is_own: bool
) -> _Side:
    ids, steps = steps_of(layout, inputs)
    embedded = tables.pool_padded(ids, inputs.weights, layout)
    return _Side(is_own, layout, inputs, steps, embedded, tuple(group.within(layout) for group in groups))


def _places(names: Sequence[str], some: Sequence[str]) -> np.ndarray:
    """Return the place of each of some names, [some] int64."""
    place = {name: number for number, name in enumerate(names)}
    return np.array([place[name] for name in some], np.int64)
