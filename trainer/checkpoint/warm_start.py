"""Presents an earlier model in the shapes of a new one, for a warm start: block by block, and matched by name."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import TypeVar

import numpy as np

from data.encoding.encoder_files import load_encoders
from data.encoding.encoders import Vocabulary
from data.encoding.workflow_folder import ENCODERS_FOLDER, SETTINGS_FILE
from data.errors import DataError
from data.spec.feature_spec import FeatureSpec
from trainer.checkpoint.mirror import place
from trainer.checkpoint.row_maps import Encoders, NoMatch, RowMap, map_rows
from trainer.checkpoint.saved_config import from_json
from trainer.checkpoint.starting_model import StartingModel
from trainer.config import Options
from trainer.layout import InputSchema, input_schema, tables_of
from trainer.models import model_options
from trainer.models.axes import AxesOfModel, indices
from trainer.optimizers.optimizer import AVERAGE, LAST_STEP
from trainer.tasks.task import tasks_of

DEEP, WIDE, VECTOR = "embeddings/deep.", "embeddings/wide.", "embeddings/vector."
TRAINING_ONLY = "training_only/id."
# A span of an old table is read where it is at most so many times as long as the rows that are needed of it.
MOST_SPAN = 4
# Old arrays whose rows are needed in another order, which are held in memory as a whole: tables are read in parallel.
ARRAYS_HELD = 2
TABLES_SHOWN = 100

Value = TypeVar("Value")


@dataclass(frozen=True)
class Match:
    """An array of the new model and the one of the old model that it continues.

    Attributes:
        old: name of the old array.
        places: for each axis, except for the rows of a table, [size] int64 places along that of the old array, -1 where
            there is none.
        rows: the rows of a table; None for dense weights.
    """

    old: str
    places: tuple[np.ndarray, ...]
    rows: RowMap | None = None


class WarmSource:
    """The values that the variables of a new run begin with.

    Args:
        model: the earlier model, which has been verified.
        config: the configuration of the new run.
        spec: its feature specification, in the order of its model.
        layout: layout of its model's inputs.
        shapes: shape of each of its variables, by name.
        weights: names of the weights among them.

    Attributes:
        report: lines about what is matched and what starts cold.

    Raises:
        NoCheckpointError: the encoders of the earlier model are damaged.
        DataError: the models have no feature in common.
    """

    def __init__(
        self,
        model: StartingModel,
        config: Options,
        spec: FeatureSpec,
        layout: InputSchema,
        shapes: Mapping[str, tuple[int, ...]],
        weights: Collection[str],
    ):
        self._model, self._config, self._arrays = model, config, model.weights.arrays
        self._shapes, self._weights = shapes, frozenset(weights)
        self._held: dict[str, np.ndarray] = {}
        self._lock = Lock()
        old_spec = model.schema.spec()
        if not {feature.name for feature in spec.inputs} & {feature.name for feature in old_spec.inputs}:
            raise DataError(
                f"--warm_start {place(model.weights.path)}: has no feature in common with {spec.folder}: give a "
                "model of these features, or train from scratch"
            )
        old_tasks = tasks_of(old_spec)
        old_layout = input_schema(old_spec, model.schema.widths)
        old_axes = AxesOfModel(model_options(**from_json(model.options)), old_layout, old_tasks)
        axes = AxesOfModel(config.model, layout, tasks_of(spec))
        self._old_by_key = {old_axes.of(name).key: name for name in self._arrays if not name.startswith("embeddings/")}
        self._axes, self._old_axes = axes, old_axes
        self._cold: dict[str, str] = {}
        encoders, old_encoders = _encoders(spec.folder / ENCODERS_FOLDER), _encoders(model.workflow)
        self._lacks_encoders = "" if bool(encoders) == bool(old_encoders) else "model" if encoders else "dataset"
        maps = _FeatureMaps(spec, old_spec, encoders, old_encoders)
        self._tables: dict[str, Match] = {}
        self._match_tables(maps, layout, old_layout)
        before, now = model.options.get("optimizer"), config.deep_optimizer.rule
        self._keeps_slots = model.is_run and before == now
        self._matches = {name: self._match(name) for name in shapes}
        self.report = self._describe(str(before), now)

    # Values

    def read(self, name: str, start: int, stop: int, initial: np.ndarray) -> np.ndarray:
        """Return rows start to stop of a variable, or all of it if it is a scalar.

        Args:
            name: name of the variable.
            start, stop: the rows.
            initial: these rows in a model that starts from scratch; of an average, those of its weight as read.
        """
        weight, part = self._split(name)
        steps, values = self._model.origin.steps, initial.copy()
        if part == LAST_STEP:  # what starts now has missed no steps
            values = np.full_like(initial, steps)
        elif part == AVERAGE:  # as of the last update, and divided by 1 - momentum^step, an average is the value
            shape = initial.shape[:1] if weight.startswith("embeddings/") else ()
            updated = self.read(f"{weight}.{LAST_STEP}", start, stop, np.zeros(shape, np.float32))
            factor = -np.expm1(updated * math.log(self._config.training.ema_momentum))
            values = (initial * (factor[:, np.newaxis] if shape else factor)).astype(initial.dtype)
        match = self._matches[name]
        if match is None:
            return values
        if not initial.ndim:
            return self._model.weights.read(match.old)
        rows = match.rows
        sources = (match.places[0] if rows is None else rows.sources)[start:stop]
        taken = sources >= 0
        if rows is not None and (part or weight.startswith(VECTOR)):
            # The state of new rows is initial, and their vectors are those of the file.
            taken = taken & rows.is_known[start:stop]
        here = np.flatnonzero(taken)
        if len(here):
            others = match.places[len(match.places) - initial.ndim + 1 :]
            own = [np.flatnonzero(axis >= 0) for axis in others]
            old = self._rows(match.old, sources[here], None if rows is None else rows.is_known[start:stop][here])
            found = [axis[places] for axis, places in zip(others, own, strict=True)]
            values[np.ix_(here, *own)] = old[np.ix_(np.arange(len(here)), *found)]
        return values

    def _rows(self, name: str, sources: np.ndarray, is_known: np.ndarray | None) -> np.ndarray:
        """Read rows of an old array: those of known values, and apart from them those that new values start with."""
        if is_known is None or is_known.all() or not is_known.any():
            return self._some_rows(name, sources)
        shape, dtype = self._arrays[name]
        found = np.empty((len(sources), *shape[1:]), dtype)
        for chosen in (is_known, ~is_known):
            found[chosen] = self._some_rows(name, sources[chosen])
        return found

    def _some_rows(self, name: str, sources: np.ndarray) -> np.ndarray:
        low, high = int(sources.min()), int(sources.max()) + 1
        if high - low <= MOST_SPAN * len(sources):
            return self._model.weights.read_rows(name, low, high)[sources - low]
        with self._lock:
            if name not in self._held:
                while len(self._held) >= ARRAYS_HELD:
                    del self._held[next(iter(self._held))]
                self._held[name] = self._model.weights.read(name)
            held = self._held[name]
        return held[sources]

    # What belongs together

    def _split(self, name: str) -> tuple[str, str]:
        """Return the weight that a variable belongs to, and which state of it that is; "" for the weight itself."""
        weight, _, part = name.rpartition(".")
        return (name, "") if name in self._weights or weight not in self._shapes else (weight, part)

    def _match(self, name: str) -> Match | None:
        weight, part = self._split(name)
        if part and not self._keeps(weight, part):
            return None
        suffix, shape = f".{part}" if part else "", self._shapes[name]
        if (table := self._tables.get(weight)) is not None:
            return replace(table, old=table.old + suffix) if table.old + suffix in self._arrays else None
        if weight.startswith("embeddings/") or weight in self._cold:
            return None
        axes = self._axes.of(weight)
        old_weight = self._old_by_key.get(axes.key)
        if old_weight is None or old_weight + suffix not in self._arrays:
            if not part:
                self._cold[name] = "the model that the run starts from has no such weight"
            return None
        old_shape = self._arrays[old_weight + suffix][0]
        names, old_names = (one.names + (None,) * len(shape) for one in (axes, self._old_axes.of(old_weight)))
        places = [
            indices(names[axis], old_names[axis], size, old_size)
            for axis, (size, old_size) in enumerate(zip(shape, old_shape, strict=False))
        ]
        if len(shape) != len(old_shape) or any(own is None for own in places):
            self._cold[weight] = f"its shape was {list(old_shape)} and is {list(shape)}"
            return None
        if any((own < 0).all() for own in places if own is not None and len(own)):
            self._cold[weight] = "its features or tasks are new"
            return None
        return Match(old_weight + suffix, tuple(own for own in places if own is not None))

    def _keeps(self, weight: str, part: str) -> bool:
        """Return whether a state of the optimizer goes on: the wide part has always the same one."""
        options = self._model.options
        if part == AVERAGE:
            return self._model.is_run and options.get("ema_momentum") == self._config.training.ema_momentum
        is_wide = weight.startswith(WIDE) or weight.endswith(("/wide_numerical", "/wide_bias"))
        return self._model.is_run and (part == LAST_STEP or is_wide or self._keeps_slots)

    def _match_tables(self, maps: "_FeatureMaps", layout: InputSchema, old: InputSchema) -> None:
        """Find the old table of each table, and note why others start cold."""
        deep = {one.name: one.table for one in old.deep}
        for table in tables_of(layout.deep):
            feature = maps.best([one.name for one in layout.deep if one.table == table.name and one.name in deep])
            self._match_table(f"{DEEP}{table.name}", f"{DEEP}{deep.get(feature)}", maps, feature)
        for name in (one.name for one in layout.wide if f"{WIDE}{one.name}" in self._shapes):
            self._match_table(f"{WIDE}{name}", f"{WIDE}{name}", maps, name)
        for name in layout.training_only.names[: len(layout.training_only.cardinalities)]:
            table_name = f"{self._config.model.model}/{TRAINING_ONLY}{name}"
            self._match_table(table_name, table_name, maps, name)
        looked_up_by = {own.name: own.of for own in old.pretrained if own.trained}
        for vector in layout.pretrained:
            name = f"{VECTOR}{vector.name}"
            if vector.trained and looked_up_by.get(vector.name) == vector.of:
                self._match_table(name, name, maps, vector.of)
            elif vector.trained:
                self._cold[name] = f"the model that the run starts from has none that are trained and of {vector.of}"

    def _match_table(self, name: str, old: str, maps: "_FeatureMaps", feature: str) -> None:
        try:
            rows = maps.of(feature)
            if old not in self._arrays:
                raise NoMatch(f"the model that the run starts from has no {old}")
            width, old_width = self._shapes[name][1], self._arrays[old][0][1]
            # Wide weights have a column per logit, and other tables numbers without a name.
            names, old_names = (self._axes.outputs, self._old_axes.outputs) if name.startswith(WIDE) else (None, None)
            columns = indices(names, old_names, width, old_width)
            if columns is None:
                raise NoMatch(f"its width was {old_width} and is {width}")
            self._tables[name] = Match(old, (columns,), rows)
        except NoMatch as why:
            self._cold[name] = str(why)

    # The report

    def _describe(self, before: str, now: str) -> list[str]:
        """Return lines about tables whose rows are not all known, and about what starts cold."""
        model, tables, cold = self._model, _by_feature(self._tables), _by_feature(self._cold)
        lines = [f"warm start from {place(model.weights.path)}, step {model.origin.steps}"]
        if not model.is_run:
            lines.append("warning: a model folder has no state of the optimizer, which starts cold, at step 0")
        elif not self._keeps_slots:
            lines.append(f"the state of the deep part's optimizer starts cold: it was {before} and is {now}")
        if self._lacks_encoders:
            lines.append(f"warning: rows are matched by id: the {self._lacks_encoders} has no encoders of raw values")
        changed = {name: one.rows for name, one in tables.items() if one.rows and (one.rows.new or one.rows.gone)}
        if same := len(tables) - len(changed):
            lines.append(f"{same} table(s) have the rows that they had")
        if changed:
            lines.append(f"{'table':<24}{'rows':>12}{'known':>12}{'new':>10}{'gone':>10}  grown")
        for name, rows in list(changed.items())[:TABLES_SHOWN]:
            size = len(rows.sources)
            grown = f"{rows.old_rows:,} -> {size:,}" if size != rows.old_rows else ""
            lines.append(f"{name:<24}{size:>12,}{rows.known:>12,}{rows.new:>10,}{rows.gone:>10,}  {grown}".rstrip())
        lines += [f"starts cold: {name}: {why}" for name, why in list(cold.items())[:TABLES_SHOWN]]
        return lines


class _FeatureMaps:
    """The row maps of features, each made once."""

    def __init__(self, spec: FeatureSpec, old: FeatureSpec, encoders: Encoders, old_encoders: Encoders):
        self._spec, self._old, self._encoders, self._old_encoders = spec, old, encoders, old_encoders
        self._found: dict[str, RowMap] = {}

    def best(self, names: list[str]) -> str:
        """Return which of the features of a table tells most about its rows: one with a vocabulary; "" of none."""
        return next((name for name in names if isinstance(self._encoders.get(name), Vocabulary)), [*names, ""][0])

    def of(self, name: str) -> RowMap:
        """Return the row map of a feature. Raise NoMatch if its ids have another meaning than before."""
        if name not in self._found:
            if name not in self._old.features:
                raise NoMatch("it is new")
            new, old = self._spec.features[name], self._old.features[name]
            self._found[name] = map_rows(new, old, self._encoders, self._old_encoders)
        return self._found[name]


def _encoders(folder: Path | None) -> Encoders:
    """Return the encoders in the workflow folder of a dataset or a model; none if there is no such folder."""
    return load_encoders(folder) if folder is not None and (folder / SETTINGS_FILE).is_file() else {}


def _by_feature(values: Mapping[str, Value]) -> dict[str, Value]:
    """Return values by the names of features instead of tables: of a feature in several parts, that of the first."""
    found: dict[str, Value] = {}
    for name, value in values.items():
        feature = name.removeprefix(DEEP).removeprefix(WIDE).removeprefix(VECTOR).split(f"/{TRAINING_ONLY}")[-1]
        found.setdefault(feature, value)
    return found
