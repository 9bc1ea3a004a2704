"""Monitoring of a model's gates and experts during training."""

import numpy as np
import tensorflow as tf

from data.loading.batch import Batch
from trainer.feeding import id_matrix
from trainer.health.alarms import alarms
from trainer.health.keys import flat, weights_by_key
from trainer.health.level import LevelHealth, level_health
from trainer.metrics.collectives import Collectives
from trainer.models.multitask import MultiTask
from trainer.models.ranking import RankingModel

ROWS = 8192


class HealthMonitor:
    """Measures gates and experts on a fixed sample: evenly spaced rows of the evaluation mapping.

    The sample is collected during the first evaluation, so nothing is read twice. It does not depend on the number of
    workers. Sample weights are ignored, except that rows of weight 0 are left out.

    Args:
        model: model with gates.
        rows: number of rows of the mapping.
        comm: collectives of the group of workers; each measures the sampled rows that it evaluates.
    """

    def __init__(self, model: MultiTask, rows: int, comm: Collectives):
        self._model, self._comm = model, comm
        self._stride = max(1, -(-rows // ROWS))
        self._ids: list[np.ndarray] = []
        self._numerical: list[np.ndarray] = []
        self._gates: list[np.ndarray] = []
        self._is_complete = False
        self._told: set[tuple[str | int, ...]] = set()
        self._states = tf.function(self._run_model)

    def see(self, batch: Batch) -> None:
        """Takes a batch of an evaluation; ignored once the sample is complete."""
        if not self._is_complete:
            wanted = (batch.weights > 0) & (batch.rows % self._stride == 0)
            self._ids.append(id_matrix(batch)[wanted])
            self._numerical.append(batch.numerical[wanted])

    def measure(self) -> tuple[dict[str, float], list[str]]:
        """Returns values for the log and warnings not given before, equal on all workers. A collective.

        To be called after an evaluation whose batches were all passed to `see`.
        """
        if not self._is_complete:
            self._ids, self._numerical = [np.concatenate(self._ids)], [np.concatenate(self._numerical)]
            self._is_complete = True
        tasks = [task.name for task in self._model.tasks]
        levels = self._levels()
        found = {about: text for about, text in alarms(tasks, levels).items() if about not in self._told}
        self._told |= found.keys()
        return flat(tasks, levels), list(found.values())

    def gate_weights(self) -> dict[str, np.ndarray]:
        """Returns each gate's weights of each expert at the last measurement, [rows] float32 of this worker, by key."""
        tasks = [task.name for task in self._model.tasks]
        return weights_by_key(tasks, [level.readable for level in self._model.levels], self._gates)

    def _levels(self) -> list[LevelHealth]:
        states = self._states(tf.convert_to_tensor(self._ids[0]), tf.convert_to_tensor(self._numerical[0]))
        self._gates = [gates.numpy() for gates, _ in states]
        return [
            level_health(level.readable, gates, experts.numpy(), self._comm)
            for level, gates, (_, experts) in zip(self._model.levels, self._gates, states, strict=True)
        ]

    def _run_model(self, ids: tf.Tensor, numerical: tf.Tensor) -> list[tuple[tf.Tensor, tf.Tensor]]:
        """Returns each level's gates [gates, rows, experts] and experts [experts, rows, units], float32."""
        deep_input = self._model.deep_input(self._model.gather(ids), ids, numerical)
        return [(state.gates, tf.cast(state.experts, tf.float32)) for state in self._model.level_states(deep_input)]


def monitor_of(model: RankingModel, rows: int, comm: Collectives) -> HealthMonitor | None:
    """Creates a monitor for a model with gates; returns None for any other."""
    return HealthMonitor(model, rows, comm) if isinstance(model, MultiTask) and model.gates else None
