"""Label checks: reports what makes training on a mapping useless or its results misleading."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from data.linting.facts import LabelFacts, labels_only, read_facts
from data.linting.leaks import Leak, find_leaks
from data.linting.sample import draw_sample, most_read, sample_rows
from data.loading.parquet_reader import ParquetReader
from data.loading.targets import OovPolicy
from data.specification.feature_spec import FeatureSpec

CLASSES_SHOWN = 10


@dataclass(frozen=True)
class LabelLint:
    """The findings about the labels of a mapping, one text each, with the label, its location and a fix.

    Attributes:
        problems: findings that make training pointless: constant or contradictory labels.
        warnings: findings that may make the result worth less than it seems: absent classes and leaking features.
    """

    problems: tuple[str, ...]
    warnings: tuple[str, ...]


def lint_labels(
    spec: FeatureSpec,
    mapping: str,
    oov_policy: OovPolicy = "error",
    on_progress: Callable[[str, int, int], None] = lambda what, done, of: None,
) -> LabelLint:
    """Checks the labels of a mapping before training.

    Label statistics (`data.linting.facts`) cover all rows. Features that leak a label (`data.linting.leaks`) are looked
    for in a sample of rows (`data.linting.sample`), which is read with the out-of-vocabulary policy of the training.

    Args:
        spec: specification of the dataset.
        mapping: name of the mapping to check.
        oov_policy: the training's policy for ids out of range.
        on_progress: called with what is being processed, the number done and the total.

    Raises:
        DataError: A file is missing or damaged, or holds invalid values.
    """
    reader = ParquetReader(labels_only(spec), mapping)
    facts = read_facts(spec, reader, partial(on_progress, "row groups of labels"))
    problems = [text for fact in facts for text in (_one_sided(fact, reader, mapping), _orphans(fact, reader)) if text]
    warnings = [text for fact in facts if (text := _absent_classes(fact, mapping))]
    sample = draw_sample(
        ParquetReader(spec, mapping, oov_policy=oov_policy),
        sample_rows(spec),
        most_read(spec),
        partial(on_progress, "row groups of a sample"),
    )
    warnings += [_told(leak) for leak in find_leaks(spec, sample, partial(on_progress, "features"))]
    return LabelLint(tuple(problems), tuple(warnings))


def _one_sided(fact: LabelFacts, reader: ParquetReader, mapping: str) -> str | None:
    """Describes a label from which nothing can be learned: without known values, or with the same one in all rows."""
    label = fact.label
    if fact.least < fact.most:
        return None
    where = f"among {fact.rows:,} rows" if label.given is None else f"among {fact.rows:,} rows with {label.given} = 1"
    if not fact.rows:
        what = f"is known in no row {'' if label.given is None else f'with {label.given} = 1 '}"
    elif label.task == "binary":
        what = f"has no {'negative' if fact.least else 'positive'} {where} "
    else:
        what = f"is always {fact.least:g} {where} "
    return (
        f"{label.name}: {what}of mapping {mapping!r} ({reader.place(label.name, 0).path}, ...); "
        "check how it was made, or take it out of channel_spec.label"
    )


def _orphans(fact: LabelFacts, reader: ParquetReader) -> str | None:
    """Describes positives outside of a label's sample space, such as conversions without a click."""
    label = fact.label
    if not fact.orphans:
        return None
    place = reader.place(label.name, fact.first_orphan)
    return (
        f"{label.name}: is 1 in {fact.orphans:,} rows in which {label.given} is 0, the first in row {place.first_row} "
        f"of {place.path}; `given: {label.given}` says that there are none: correct the rows, or take `given` away"
    )


def _absent_classes(fact: LabelFacts, mapping: str) -> str | None:
    absent = [str(number) for number, count in enumerate(fact.counts.tolist()) if not count]
    if fact.label.task != "multiclass" or not absent or fact.least == fact.most:
        return None
    shown = ", ".join(absent[:CLASSES_SHOWN]) + (", ..." if len(absent) > CLASSES_SHOWN else "")
    return (
        f"{fact.label.name}: {len(absent):,} of {len(fact.counts):,} classes are in no row of mapping {mapping!r} "
        f"({shown}); they cannot be learned. Renumber the classes, or add rows."
    )


def _told(leak: Leak) -> str:
    if leak.measure == "equal":
        what = f"equals {leak.label} in all {leak.rows:,} sampled rows"
    else:
        what = f"alone tells {leak.label} with {leak.measure} {leak.value:.4f} in {leak.rows:,} sampled rows"
    return f"{leak.feature}: {what}; if it is not known before the label is, take it out of channel_spec"
