"""Label lint: what about the labels makes training on a mapping useless or misleading, in words."""

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
    """What was found, one text each, with label, place and mend.

    Attributes:
        problems: training teaches nothing, or something that cannot be.
        warnings: the result may be worth less than it seems.
    """

    problems: tuple[str, ...]
    warnings: tuple[str, ...]


def lint_labels(
    spec: FeatureSpec,
    mapping: str,
    oov_policy: OovPolicy = "error",
    on_progress: Callable[[str, int, int], None] = lambda what, done, of: None,
) -> LabelLint:
    """Looks through a mapping before it is trained on.

    Facts of the labels (`data.linting.facts`) are of all rows; features that give a label away
    (`data.linting.leaks`) are looked for in a sample (`data.linting.sample`), read with the policy of the training.

    Args:
        spec: the specification.
        mapping: which to look through.
        oov_policy: of the training.
        on_progress: is called with what is counted, how many are done and how many there are.

    Raises:
        DataError: a file is missing or damaged, or holds values that cannot be used.
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
    """A label from which nothing can be learned."""
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
    """A conversion without a click."""
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
        f"({shown}); they cannot be learned. Number the classes anew, or add rows."
    )


def _told(leak: Leak) -> str:
    if leak.measure == "equal":
        what = f"equals {leak.label} in all {leak.rows:,} sampled rows"
    else:
        what = f"alone tells {leak.label} with {leak.measure} {leak.value:.4f} in {leak.rows:,} sampled rows"
    return f"{leak.feature}: {what}; if it is not known before the label is, take it out of channel_spec"
