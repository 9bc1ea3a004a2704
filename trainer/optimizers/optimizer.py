"""Optimizer state of weights and embedding tables, and the application of update rules to them."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import tensorflow as tf

from trainer.embeddings.table_state import WEIGHT, DeviceState, HostState, TableState
from trainer.logging.progress import byte_progress
from trainer.optimizers.moving_average import MovingAverage
from trainer.optimizers.rules import Slots, UpdateRule
from trainer.optimizers.schedules import Schedule
from trainer.variables import initial_value

# Of a dense weight or whole table, or of some rows of a table: distinct indices [n] and values [n, width].
Gradient: TypeAlias = "tf.Tensor | tf.IndexedSlices"

# Names of the state of an optimizer besides the slots of its rules.
AVERAGE, LAST_STEP = "average", "last_step"


@dataclass(frozen=True)
class ParameterGroup:
    """Weights and tables that are updated by the same rule with the same learning rate.

    Attributes:
        rule: the update rule.
        schedule: step after the optimizer's origin, counted from 1 -> learning rate.
        weights: name -> variable of the weights that are updated as a whole in every step.
        tables: name -> variable of the embedding tables, of which only rows with a gradient are updated.
        l2: name -> factor of the sum of squares added to the loss; 0 for names that are missing. It acts through the
            gradient of a weight, and on all rows of a table by `UpdateRule.shrunk`.
    """

    rule: UpdateRule
    schedule: Schedule
    weights: dict[str, tf.Variable] = field(default_factory=dict)
    tables: dict[str, tf.Variable] = field(default_factory=dict)
    l2: Mapping[str, float] = field(default_factory=dict)

    def decays_between_updates(self, table: str) -> bool:
        """Return whether rows or slots of a table change in steps that do not look them up."""
        return self.rule.has_time_decay or bool(self.l2.get(table))


class Optimizer:
    """Updates weights and embedding tables by the rules of their groups, and keeps the state of these rules.

    Only the rows of a table that a batch looks up are updated: those of a sparse gradient, or those with a non-zero
    gradient in a dense one; trainer/embeddings/costs.py chooses the faster form. They differ only for rows looked up
    with a gradient of exactly 0 (padding, for instance), which matters with Adam's momentum. Regularization acts on all
    rows: at an update, a row gets that of all steps since its last one.

    Args:
        groups: disjoint groups of weights and tables.
        average: the moving average of all weights and tables that is kept; None for none.
        restored: whether a checkpoint overwrites the state, which then has no initial values.
        compiled: whether XLA compiles the updates by dense gradients, whose shapes never change. On a GPU they are then
            a single launch.
        cached: name of each table in host memory -> number of rows that the device caches (see `HostState`); names of
            others are ignored. The state of these tables is beside them, and they only take sparse gradients.

    Attributes:
        weights: name -> variable of the dense weights of all groups.
        tables: name -> variable of the embedding tables of all groups.
        origin: number of steps after which the schedules begin, scalar float32 variable.
        host_tables: name -> the rows of each table in host memory.
    """

    def __init__(
        self,
        *groups: ParameterGroup,
        average: MovingAverage | None = None,
        restored: bool = False,
        compiled: bool = False,
        cached: Mapping[str, int] | None = None,
    ):
        self.weights = {name: weight for group in groups for name, weight in group.weights.items()}
        self.tables = {name: table for group in groups for name, table in group.tables.items()}
        self._groups = {name: group for group in groups for name in (*group.weights, *group.tables)}
        self._average = average
        self.origin = tf.Variable(0.0, trainable=False)
        self._schedules = [(group.schedule, [*group.weights, *group.tables]) for group in groups]
        self._update_densely = tf.function(self._update_whole, autograph=False, jit_compile=compiled)
        variables = self.weights | self.tables
        slots = {name: dict(self._groups[name].rule.slots) | ({AVERAGE: 0.0} if average else {}) for name in variables}
        total = sum(4 * math.prod(variables[name].shape) * len(own) for name, own in slots.items())
        with byte_progress("making optimizer slots", total) as done:

            def slot(variable: tf.Variable, value: float) -> tf.Variable:
                done(4 * math.prod(variable.shape))
                return _state_of(variable, variable.shape, value, overwritten=restored)

            self._slots = {
                name: {key: slot(variable, value) for key, value in slots[name].items()}
                for name, variable in variables.items()
            }
            # float32 because GPUs lack kernels to gather and scatter int32 variables; exact up to 2^24 steps.
            self._last_step = {
                name: _state_of(variable, variable.shape[:1], 0.0, overwritten=restored)
                for name, variable in self.tables.items()
                if average or self._groups[name].decays_between_updates(name)
            }
            if average:
                # Dense weights are updated in every step except those that the loss scale skips.
                self._last_step |= {
                    name: _state_of(weight, (), 0.0, overwritten=restored) for name, weight in self.weights.items()
                }
        self.host_tables = {
            name: HostState(self._table_rows(name), places)
            for name, places in (cached or {}).items()
            if name in self.tables
        }
        self._table_states: dict[str, TableState] = {
            name: self.host_tables.get(name) or DeviceState(self._table_rows(name)) for name in self.tables
        }

    @property
    def weight_state(self) -> dict[str, tf.Variable]:
        """The state of all dense weights by name."""
        return {name + suffix: variable for name in self.weights for suffix, variable in self._state(name).items()}

    def table_state(self, name: str) -> dict[str, tf.Variable]:
        """Return the state of a table by the suffix of its name: .SLOT or .last_step."""
        return self._state(name)

    def _state(self, name: str) -> dict[str, tf.Variable]:
        last_step = {LAST_STEP: self._last_step[name]} if name in self._last_step else {}
        return {f".{key}": variable for key, variable in (self._slots[name] | last_step).items()}

    def _table_rows(self, name: str) -> dict[str, tf.Variable]:
        """Return the variables that have a table's rows, by the names of slots, WEIGHT and LAST_STEP."""
        last_step = {LAST_STEP: self._last_step[name]} if name in self._last_step else {}
        return {WEIGHT: self.tables[name], **self._slots[name], **last_step}

    @contextmanager
    def averaged(self, step: int) -> Iterator[None]:
        """Give all weights and tables their averages while the context lasts; do nothing without averages.

        A copy of all weights is kept until then.

        Args:
            step: number of steps of the run.
        """
        if self._average is None or step == 0:
            yield
            return
        variables = self.weights | self.tables
        trained: dict[str, tf.Tensor] = {}
        for name, variable in variables.items():
            with tf.device(variable.device):  # tables in host memory stay there
                trained[name] = tf.identity(variable)
                unchanged = tf.cast(step, tf.float32) - self._last_step[name]
                unchanged = unchanged[:, tf.newaxis] if name in self.tables else unchanged
                variable.assign(self._average.value(self._slots[name][AVERAGE], trained[name], unchanged, step))
        try:
            yield
        finally:
            for name, variable in variables.items():
                with tf.device(variable.device):
                    variable.assign(trained[name])

    def apply(self, gradients: Mapping[str, Gradient], step: tf.Tensor) -> None:
        """Update weights and tables.

        Args:
            gradients: name of the weight or table -> its gradient, of its shape or, for a table, sparse.
            step: scalar int32, counted from 1.
        """
        sparse = {name: own for name, own in gradients.items() if isinstance(own, tf.IndexedSlices)}
        whole = {name: own for name, own in gradients.items() if name not in sparse}
        now, rates = self._update_densely(whole, step)
        for name, gradient in sparse.items():
            self._update_rows(name, gradient, now, rates[name])

    def _update_whole(self, gradients: dict[str, tf.Tensor], step: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Update weights and tables by dense gradients.

        Returns:
            The step, scalar float32, and the learning rate of every table.
        """
        now = tf.cast(step, tf.float32)
        rates: dict[str, tf.Tensor] = {}
        for schedule, names in self._schedules:
            rates |= dict.fromkeys(names, schedule(now - self.origin))
        for name, gradient in gradients.items():
            update = self._update_table if name in self.tables else self._update_weight
            update(name, gradient, now, rates[name])
        return now, {name: rates[name] for name in self.tables}

    def _update_weight(self, name: str, gradient: tf.Tensor, now: tf.Tensor, rate: tf.Tensor) -> None:
        weight = tf.convert_to_tensor(self.weights[name])
        slots = {slot: tf.convert_to_tensor(value) for slot, value in self._slots[name].items()}
        elapsed, last_step = tf.constant(1.0), self._last_step.get(name)
        if last_step is not None:
            elapsed = now - last_step
            last_step.assign_add(elapsed)
        new_weight, new_slots = self._updated(name, weight, gradient, slots, elapsed, now, rate)
        self.weights[name].assign(new_weight)
        for slot, value in new_slots.items():
            self._slots[name][slot].assign(value)

    def _update_table(self, name: str, gradient: tf.Tensor, now: tf.Tensor, rate: tf.Tensor) -> None:
        """Update the rows of a table whose gradient is not zero."""
        table = self.tables[name]
        # Read once: rows without a gradient are written back unchanged.
        weight = tf.convert_to_tensor(table)  # [rows, width]
        slots = {slot: tf.convert_to_tensor(value) for slot, value in self._slots[name].items()}
        has_gradient = tf.reduce_any(gradient != 0, axis=1)  # [rows]
        elapsed, last_step = tf.constant(1.0), self._last_step.get(name)
        if last_step is not None:
            elapsed = (now - last_step)[:, tf.newaxis]  # [rows, 1]
            last_step.assign(tf.where(has_gradient, now, last_step))
        new_weight, new_slots = self._updated(name, weight, gradient, slots, elapsed, now, rate)
        table.assign(tf.where(has_gradient[:, tf.newaxis], new_weight, weight))
        for slot, value in new_slots.items():
            self._slots[name][slot].assign(tf.where(has_gradient[:, tf.newaxis], value, slots[slot]))

    def _update_rows(self, name: str, gradient: tf.IndexedSlices, now: tf.Tensor, rate: tf.Tensor) -> None:
        """Update the rows of a sparse gradient."""
        table, ids = self._table_states[name], gradient.indices
        slots = table.read(ids, self._table_rows(name))
        weight = slots.pop(WEIGHT)  # [n, width]
        elapsed, last_step = tf.constant(1.0), slots.pop(LAST_STEP, None)
        steps = {}
        if last_step is not None:
            elapsed = (now - last_step)[:, tf.newaxis]  # [n, 1]
            steps[LAST_STEP] = tf.fill(tf.shape(ids), now)
        new_weight, new_slots = self._updated(name, weight, gradient.values, slots, elapsed, now, rate)
        table.write(ids, {WEIGHT: new_weight, **new_slots, **steps})

    def _updated(
        self,
        name: str,
        weight: tf.Tensor,
        gradient: tf.Tensor,
        slots: Slots,
        elapsed: tf.Tensor,
        now: tf.Tensor,
        rate: tf.Tensor,
    ) -> tuple[tf.Tensor, Slots]:
        """Apply the update rule, L2 regularization and the average; return the new weight and slots."""
        group, is_table = self._groups[name], name in self.tables
        l2 = group.l2.get(name, 0.0)
        if l2 and not is_table:
            gradient += 2 * l2 * weight
        # Only rows make up for the steps since their last update: a skipped step does not decay dense slots.
        since = elapsed if is_table else tf.constant(1.0)
        new_weight, new_slots = group.rule.update(weight, gradient, slots, rate, since, now)
        if l2 and is_table:
            new_weight = group.rule.shrunk(new_weight, new_slots, l2, rate, since, now)
        if self._average:
            average = self._average.update(slots[AVERAGE], weight, new_weight, elapsed)
            new_slots = {**new_slots, AVERAGE: average}
        return new_weight, new_slots


def _state_of(
    variable: tf.Variable, shape: tf.TensorShape | tuple[int, ...], value: float, *, overwritten: bool
) -> tf.Variable:
    """Return a new variable where the variable is whose state it is: of a table in host memory, there too."""
    with tf.device(variable.device):
        return tf.Variable(initial_value(shape, value, overwritten=overwritten), trainable=False)
