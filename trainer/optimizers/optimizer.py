"""Optimizer state of weights and tables, and the application of an update rule to them."""

from collections.abc import Callable, Mapping

import tensorflow as tf

from trainer.optimizers.rules import Rule, Slots

Schedule = Callable[[tf.Tensor], tf.Tensor]


class Optimizer:
    """Applies one update rule with one learning rate to a set of weights and tables.

    Only the rows of a table that a batch touches are updated: those given to `update_rows`, or those with a non-zero
    gradient in `update_whole`; trainer/embeddings/exchange.py chooses the faster one. They differ only for rows looked
    up with a gradient of exactly 0 (padding, for instance), which matters with Adam's momentum, L2 or weight decay.

    Args:
        rule: update rule.
        schedule: step (from 1) -> learning rate.
        weights: name -> variable of the weights that are updated as a whole in every step.
        tables: name -> variable of the tables whose touched rows are updated.
        l2: name -> factor of the sum of squares added to the loss; 0 for names that are missing.
        decay: decoupled weight decay: a step shrinks weights by `decay * learning rate`.
    """

    def __init__(
        self,
        rule: Rule,
        schedule: Schedule,
        weights: dict[str, tf.Variable],
        tables: dict[str, tf.Variable],
        *,
        l2: Mapping[str, float] | None = None,
        decay: float = 0.0,
    ):
        self.rule, self.schedule, self._l2, self._decay = rule, schedule, l2 or {}, decay
        self._slots = {
            name: {
                slot: tf.Variable(tf.fill(variable.shape, value), trainable=False) for slot, value in rule.slots.items()
            }
            for name, variable in {**weights, **tables}.items()
        }
        self._variables, self._tables = {**weights, **tables}, set(tables)
        # float32 because GPUs lack kernels to gather and scatter int32 variables; exact up to 2^24 steps.
        self._last_step = {
            name: tf.Variable(tf.zeros(table.shape[0]), trainable=False)
            for name, table in tables.items()
            if rule.decays
        }

    @property
    def state(self) -> dict[str, tf.Variable]:
        """Name -> variable of everything to checkpoint besides the weights."""
        slots = {f"{name}.{slot}": variable for name, own in self._slots.items() for slot, variable in own.items()}
        return slots | {f"{name}.last_step": variable for name, variable in self._last_step.items()}

    def state_of(self, name: str) -> list[str]:
        """Returns the names of the state variables of one weight or table."""
        slots = [f"{name}.{slot}" for slot in self._slots.get(name, {})]
        return slots + [f"{name}.last_step"] * (name in self._last_step)

    def update_whole(self, name: str, gradient: tf.Tensor, step: tf.Tensor) -> None:
        """Updates a weight, or the rows of a table whose gradient is not zero.

        Args:
            name: name of the weight or table.
            gradient: gradient, of the shape of the weight or table.
            step: scalar int32, counted from 1.
        """
        variable, slots = self._variables[name], self._slots[name]
        # Read once: the untouched rows of a table are written back unchanged below.
        old = {slot: tf.convert_to_tensor(value) for slot, value in slots.items()}
        weight, gap, last_step = tf.convert_to_tensor(variable), tf.constant(1.0), self._last_step.get(name)
        if last_step is not None:
            gap = (tf.cast(step, tf.float32) - last_step)[:, tf.newaxis]  # [rows, 1]
        new_weight, new_slots = self._updated(name, weight, gradient, old, gap, step)
        if name in self._tables:
            # [rows, 1]. A row whose gradient sums to exactly 0 counts as untouched.
            touched = tf.reduce_any(gradient != 0, axis=1, keepdims=True)
            new_weight = tf.where(touched, new_weight, weight)
            new_slots = {slot: tf.where(touched, value, old[slot]) for slot, value in new_slots.items()}
            if last_step is not None:
                last_step.assign(tf.where(touched[:, 0], tf.cast(step, tf.float32), last_step))
        variable.assign(new_weight)
        for slot, value in new_slots.items():
            slots[slot].assign(value)

    def update_rows(self, name: str, row_ids: tf.Tensor, gradient: tf.Tensor, step: tf.Tensor) -> None:
        """Updates the given rows of a table.

        Args:
            name: name of the table.
            row_ids: [rows] int32, distinct row numbers.
            gradient: [rows, width] float32.
            step: scalar int32, counted from 1.
        """
        table, slots = self._variables[name], self._slots[name]
        gap = tf.constant(1.0)
        if name in self._last_step:
            now = tf.cast(step, tf.float32)
            gap = (now - tf.gather(self._last_step[name], row_ids))[:, tf.newaxis]  # [rows, 1]
            _scatter(self._last_step[name], row_ids, tf.fill(tf.shape(row_ids), now))
        weight, new_slots = self._updated(
            name,
            tf.gather(table, row_ids),
            gradient,
            {slot: tf.gather(value, row_ids) for slot, value in slots.items()},
            gap,
            step,
        )
        _scatter(table, row_ids, weight)
        for slot, value in new_slots.items():
            _scatter(slots[slot], row_ids, value)

    def _updated(
        self,
        name: str,
        weight: tf.Tensor,
        gradient: tf.Tensor,
        slots: Slots,
        gap: tf.Tensor,
        step: tf.Tensor,
    ) -> tuple[tf.Tensor, Slots]:
        """Applies L2 regularisation, the rule and weight decay; returns the new weight and slots."""
        rate = self.schedule(step)
        if self._l2.get(name):
            gradient += 2 * self._l2[name] * weight
        moved, new_slots = self.rule.update(weight, gradient, slots, rate, gap, tf.cast(step, tf.float32))
        # Decoupled decay (AdamW) acts on the old weight and bypasses the rule's slots, unlike L2.
        return (moved - rate * self._decay * weight if self._decay else moved), new_slots


def _scatter(variable: tf.Variable, row_ids: tf.Tensor, rows: tf.Tensor) -> None:
    tf.raw_ops.ResourceScatterUpdate(resource=variable.handle, indices=row_ids, updates=rows)
