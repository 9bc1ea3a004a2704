"""Validation rules for `source_spec`: required mappings, the columns of their chunks, and file paths."""

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from data.files import way_out
from data.specification.parts import INPUT_CHANNELS, LABEL, MAP, REQUIRED_MAPPINGS
from data.specification.problems import Problem, listed, nearest, place_of, shown
from data.specification.shape import Parts

MAX_MAPPINGS_COMPARED = 1000


def check_mappings(parts: Parts) -> Iterator[Problem]:
    """Checks that the mappings for training and evaluation exist."""
    if "source_spec" not in parts.complete:
        return
    for mapping in REQUIRED_MAPPINGS:
        if mapping not in parts.sources:
            others = (name for name in parts.sources if name not in REQUIRED_MAPPINGS)
            near = nearest(mapping, list(islice(others, MAX_MAPPINGS_COMPARED)))
            hint = f"; is it the one called {near!r}?" if near else "; write a list of chunks"
            yield Problem(f"source_spec.{mapping}", f"this mapping is missing{hint}")


def check_chunk_types(parts: Parts) -> Iterator[Problem]:
    """Checks that all chunks of a mapping have the same file type."""
    for chunks in parts.sources.values():
        types = [chunk.type for chunk in chunks if chunk.type]
        for chunk in chunks:
            if chunk.type and chunk.type != types[0]:
                what = f"is {chunk.type} but other chunks of the mapping are {types[0]}; one mapping has one type"
                yield Problem(f"{chunk.place}.type", what)


def check_chunk_features(parts: Parts) -> Iterator[Problem]:
    """Checks that chunks list existing features, each at most once per mapping."""
    for chunks in parts.sources.values():
        first: dict[str, str] = {}
        for place, name in (entry for chunk in chunks for entry in chunk.features):
            if "feature_spec" in parts.complete and name not in parts.features:
                yield Problem(place, f"{name!r} is not in feature_spec", name, parts.features)
            elif name in first:
                yield Problem(place, f"{name!r} is already in {first[name]}; keep one")
            first.setdefault(name, place)


def check_coverage(parts: Parts) -> Iterator[Problem]:
    """Checks that every mapping has all input features, and that train also has the labels and the sample weight.

    Other mappings may be used for prediction, where labels are unknown; the loader raises an error if one without
    labels is evaluated.
    """
    inputs = [entry.text for name in INPUT_CHANNELS for entry in parts.channels.get(name, [])]
    labels = [entry.text for entry in parts.channels.get(LABEL, [])]
    weights = [feature.name for feature in parts.features.values() if feature.role is not None]
    needed_in_train, needed_elsewhere = (
        {name: None for name in names if name in parts.features} for names in ([*inputs, *labels, *weights], inputs)
    )
    for mapping, chunks in parts.sources.items():
        place = place_of("source_spec", mapping)
        held = {entry.text for chunk in chunks for entry in chunk.features}
        needed = needed_in_train if mapping == "train" else needed_elsewhere
        # Iterates over the columns held rather than needed: fast for many mappings with few of many features.
        count = len(needed) - sum(name in needed for name in held)
        if count and place in parts.complete:
            lacking = listed((name for name in needed if name not in held), count)
            what = f"lacks {lacking}; add to the features of a chunk, or take out of channel_spec"
            yield Problem(place, what)


def check_map_is_evaluated(parts: Parts) -> Iterator[Problem]:
    """Checks that some mapping besides train has the map feature, which is needed for evaluation."""
    entries = parts.channels.get(MAP, [])
    mappings = {place_of("source_spec", mapping) for mapping in (*REQUIRED_MAPPINGS, *parts.sources)}
    if not entries or entries[0].text not in parts.features or not {"source_spec", *mappings} <= parts.complete:
        return
    for mapping, chunks in parts.sources.items():
        if mapping != "train" and any(entries[0].text == entry.text for chunk in chunks for entry in chunk.features):
            return
    what = f"{entries[0].text!r} is in no mapping but train; add it to a chunk of test, or empty the map channel"
    yield Problem(entries[0].place, what)


def check_paths(parts: Parts, folder: Path, allow_outside: bool) -> Iterator[Problem]:
    """Checks that paths name files under the folder (unless outside paths are allowed), each once per chunk.

    The files need not exist yet.
    """
    root = os.path.realpath(folder)
    resolved: dict[str, str] = {}
    for chunk in (chunk for chunks in parts.sources.values() for chunk in chunks):
        first: dict[str, str] = {}
        for entry in chunk.files:
            path = os.path.normpath(entry.text)
            mistake = None if allow_outside else way_out(entry.text, root, resolved)
            if mistake:
                yield Problem(entry.place, f"{shown(entry.text)} {mistake}, or pass --allow_outside_paths")
            elif os.path.basename(entry.text) in ("", ".", ".."):
                yield Problem(entry.place, f"{shown(entry.text)} is a folder; write the path of a file")
            elif path in first:
                yield Problem(entry.place, f"{shown(entry.text)} is already {first[path]}; keep one")
            first.setdefault(path, entry.place)


SOURCE_RULES: tuple[Callable[[Parts], Iterator[Problem]], ...] = (
    check_mappings,
    check_chunk_types,
    check_chunk_features,
    check_coverage,
    check_map_is_evaluated,
)
