"""Slots of weights and tables, and the application of a rule to them."""

from collections.abc import Callable

import tensorflow as tf

from trainer.optimizers.rules import Rule

Schedule = Callable[[tf.Tensor], tf.Tensor]


class Optimizer:
    """One rule with one learning rate, for a set of weights and tables.

    Args:
        rule: the update.
        schedule: step (from 1) -> learning rate.
        weights: name -> variable; weights that are updated whole, in every step.
        tables: name -> variable; tables whose touched rows are updated.
    """

    def __init__(self, rule: Rule, schedule: Schedule, weights: dict[str, tf.Variable], tables: dict[str, tf.Variable]):
        self.rule, self.schedule = rule, schedule
        self._slots = {
            name: {
                slot: tf.Variable(tf.fill(variable.shape, value), trainable=False) for slot, value in rule.slots.items()
            }
            for name, variable in {**weights, **tables}.items()
        }
        self._variables = {**weights, **tables}
        # float32, because GPUs have no kernels to gather and scatter int32 variables; exact for 16 million steps.
        self._last_step = {
            name: tf.Variable(tf.zeros(table.shape[0]), trainable=False)
            for name, table in tables.items()
            if rule.decays
        }

    @property
    def state(self) -> dict[str, tf.Variable]:
        """Name -> variable: all that has to be saved besides the weights."""
        slots = {f"{name}.{slot}": variable for name, own in self._slots.items() for slot, variable in own.items()}
        return slots | {f"{name}.last_step": variable for name, variable in self._last_step.items()}

    def update_whole(self, name: str, gradient: tf.Tensor, step: tf.Tensor) -> None:
        """Updates a weight or a whole table. `gradient` has its shape; `step` counts from 1."""
        variable, slots = self._variables[name], self._slots[name]
        gap = tf.constant(1.0)
        if name in self._last_step:
            self._last_step[name].assign(tf.fill(self._last_step[name].shape, tf.cast(step, tf.float32)))
        weight, new_slots = self.rule.update(
            tf.convert_to_tensor(variable),
            gradient,
            {slot: tf.convert_to_tensor(value) for slot, value in slots.items()},
            self.schedule(step),
            gap,
            tf.cast(step, tf.float32),
        )
        variable.assign(weight)
        for slot, value in new_slots.items():
            slots[slot].assign(value)

    def update_rows(self, name: str, row_ids: tf.Tensor, gradient: tf.Tensor, step: tf.Tensor) -> None:
        """Updates some rows of a table.

        Args:
            name: the table.
            row_ids: [rows] int32, each row at most once.
            gradient: [rows, width] float32.
            step: scalar int32, counts from 1.
        """
        table, slots = self._variables[name], self._slots[name]
        gap = tf.constant(1.0)
        if name in self._last_step:
            now = tf.cast(step, tf.float32)
            gap = (now - tf.gather(self._last_step[name], row_ids))[:, tf.newaxis]
            _scatter(self._last_step[name], row_ids, tf.fill(tf.shape(row_ids), now))
        weight, new_slots = self.rule.update(
            tf.gather(table, row_ids),
            gradient,
            {slot: tf.gather(value, row_ids) for slot, value in slots.items()},
            self.schedule(step),
            gap,
            tf.cast(step, tf.float32),
        )
        _scatter(table, row_ids, weight)
        for slot, value in new_slots.items():
            _scatter(slots[slot], row_ids, value)


def _scatter(variable: tf.Variable, row_ids: tf.Tensor, rows: tf.Tensor) -> None:
    tf.raw_ops.ResourceScatterUpdate(resource=variable.handle, indices=row_ids, updates=rows)
