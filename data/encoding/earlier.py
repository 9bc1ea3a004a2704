"""What a dataset that extends an earlier one keeps of the encoders of this one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from data.encoding.encoders import CrossedIds, Encoder, Vocabulary
from data.encoding.growth import Growth, growth_line
from data.spec.raw.spec import (
    Count,
    CrossRule,
    History,
    NumberRule,
    RawFeature,
    RawSpec,
    Rule,
    SharedVocabularyRule,
    TargetRule,
    VocabularyRule,
)


@dataclass(frozen=True, eq=False)
class Earlier:
    """The encoders of an earlier dataset, and how they are extended.

    Attributes:
        spec: raw specification of the earlier dataset.
        encoders: its encoders by feature name.
        retire_after: see `data.encoding.growth.Growth`.
        updates_scalers: whether numbers and target statistics are refitted.
    """

    spec: RawSpec
    encoders: Mapping[str, Encoder]
    retire_after: int | None = None
    updates_scalers: bool = False

    def continued(self, spec: RawSpec) -> frozenset[str]:
        """Return the names of the features of a new specification whose encoders continue those of the earlier one.

        The raw column, the type of its values and the rule are the same, but for `min_count`, `max_size` and an added
        or removed indicator; so are the features that a cross or a shared vocabulary refers to.
        """
        found: dict[str, bool] = {}

        def continues(name: str) -> bool:
            if name not in found:
                new, old = spec.features[name], self.spec.features.get(name)
                found[name] = (
                    old is not None
                    and encoder_name(name, old) in self.encoders
                    and _comparable(old.rule) == _comparable(new.rule)
                    and self._has_same_values(old, new, spec)
                    and all(map(continues, _inputs(new.rule, spec)))
                )
            return found[name]

        return frozenset(name for name in spec.features if continues(name))

    def continued_states(self, spec: RawSpec) -> frozenset[str]:
        """Return the readings of the histories and counts of a new specification that go on from earlier rows."""
        return frozenset(
            raw.reading
            for name, raw in spec.features.items()
            if raw.reading and raw.computed and name in self.spec.features
            if self._has_same_values(self.spec.features[name], raw, spec)
        )

    def growth(self, name: str, spec: RawSpec) -> Growth:
        """Return how the vocabulary of a continued feature is extended.

        The keys of a cross are made of the ids of the features that it crosses. These are not reused, so that no key
        ever comes to mean another combination.
        """
        crossed = {entry for raw in spec.features.values() for entry in _crossed(raw.rule, spec)}
        encoder = self.encoders[name]
        vocabulary = _ids(encoder)
        if not isinstance(vocabulary, Vocabulary):
            raise TypeError(f"{name} has no vocabulary")
        return Growth(vocabulary, self.retire_after, name not in crossed)

    def report(self, spec: RawSpec, encoders: Mapping[str, Encoder]) -> Iterator[str]:
        """Yield a line about every vocabulary, and every feature that is new, changed or dropped."""
        continued, states = self.continued(spec), self.continued_states(spec)
        for name, raw in spec.features.items():
            encoder = encoder_name(name, raw)
            if name in continued:
                old, new = _ids(self.encoders[encoder]), _ids(encoders[encoder])
                if isinstance(old, Vocabulary) and isinstance(new, Vocabulary) and not _is_shared(raw):
                    yield growth_line(name, old, new)
            elif encoder in encoders:
                is_new = name not in self.spec.features
                yield f"{name}: {'is new' if is_new else 'its encoding or its input has changed'}; refitted"
        for name, raw in self.spec.features.items():
            if name not in spec.features and encoder_name(name, raw) in self.encoders:
                yield f"{name}: is no longer in the specification; dropped"
        for name, raw in spec.features.items():
            if raw.computed and raw.reading not in states:
                yield f"{name}: has no earlier rows to continue from; begins with these rows"

    def _has_same_values(self, old: RawFeature, new: RawFeature, spec: RawSpec) -> bool:
        """Return whether two features read the same column, or compute the same from the same columns."""
        if (old.reading is None) != (new.reading is None) or (old.computed is None) != (new.computed is None):
            return False
        names = [(old.reading, new.reading)]
        if old.computed is not None and new.computed is not None:
            if _comparable_values(old.computed) != _comparable_values(new.computed):
                return False
            names += [(name, name) for name in _columns(new.computed)]
        if isinstance(new.rule, CrossRule):
            names += [(name, name) for name in new.rule.inputs if name not in spec.features]
        if isinstance(new.rule, TargetRule):
            label = new.rule.label
            if label not in self.spec.features or _label(self.spec, label) != _label(spec, label):
                return False
        return all(_values(self.spec, one) == _values(spec, other) for one, other in names)


def encoder_name(name: str, raw: RawFeature) -> str:
    """Return the name of a feature's encoder: the feature's, or that of the mean among target statistics."""
    return raw.rule.mean if isinstance(raw.rule, TargetRule) else name


def _ids(encoder: Encoder) -> Encoder:
    """Return the encoder that makes the ids: of a cross, that of its keys."""
    return encoder.encoder if isinstance(encoder, CrossedIds) else encoder


def _is_shared(raw: RawFeature) -> bool:
    return isinstance(raw.rule, SharedVocabularyRule)


def _inputs(rule: Rule, spec: RawSpec) -> tuple[str, ...]:
    """Return the features whose encoders that of a rule depends on."""
    if isinstance(rule, CrossRule):
        return tuple(name for name in rule.inputs if name in spec.features)
    return (rule.feature,) if isinstance(rule, SharedVocabularyRule) else ()


def _crossed(rule: Rule, spec: RawSpec) -> Iterator[str]:
    """Yield the features with the vocabularies whose ids a cross combines."""
    if isinstance(rule, CrossRule):
        for name in _inputs(rule, spec):
            of = spec.features[name].rule
            yield of.feature if isinstance(of, SharedVocabularyRule) else name


def _comparable(rule: Rule) -> Rule:
    """Return a rule without what may differ between the datasets of one chain."""
    if isinstance(rule, VocabularyRule):
        return VocabularyRule(oov_buckets=rule.oov_buckets)
    if isinstance(rule, CrossRule) and isinstance(rule.ids, VocabularyRule):
        return replace(rule, ids=VocabularyRule(oov_buckets=rule.ids.oov_buckets))
    if isinstance(rule, SharedVocabularyRule):
        return replace(rule, is_counted=False)
    return replace(rule, indicator=None) if isinstance(rule, NumberRule) else rule


def _comparable_values(computed: History | Count) -> History | Count:
    """Return a history without its length, which may differ: it begins with the rows that the earlier one kept."""
    return replace(computed, last=1) if isinstance(computed, History) else computed


def _columns(computed: History | Count) -> list[str]:
    """Return the readings that a history or count is made of."""
    where = computed.where.reading if computed.where else None
    steps = computed.steps if isinstance(computed, History) else None
    return [name for name in (computed.of, computed.by, computed.order, where, steps) if name is not None]


def _values(spec: RawSpec, reading: str | None) -> tuple[str, str] | None:
    """Return the raw column of a reading, and the type of its values."""
    found = spec.readings.get(reading or "")
    return None if found is None else (found.column, found.dtype)


def _label(spec: RawSpec, name: str) -> Any:
    """Return what the values of a label depend on."""
    raw = spec.features[name]
    return raw.rule, _values(spec, raw.reading)
