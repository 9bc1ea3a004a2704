"""Evaluation of all tasks over one pass, and what the keys of its results mean."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data.errors import DataError
from data.spec.features import SCORE
from data.spec.task_types import TASK_TYPES
from trainer.metrics.calibration import CURVE, UNCALIBRATED_CURVE, CalibrationCurve, calibration_curve
from trainer.metrics.metric import Collectives, Metric
from trainer.metrics.ranking import RankingMetric, ranked_ties, ranking_metric
from trainer.metrics.rows import GrowingArray, Rows, as_logits
from trainer.metrics.score_table import ScoreMetric, score_table
from trainer.metrics.slices import SliceColumn
from trainer.tasks.binary import without_calibrators
from trainer.tasks.joint import joint_logits, joint_rows
from trainer.tasks.score import Score, predicted
from trainer.tasks.task import Task, joint_chains, joint_name, logit_columns, restrict_to_sample_space, task_type

MEAN = "mean"
_SCORED_ROWS = 1 << 18  # scored at once, which bounds the memory of predictions


def metrics_by_name() -> dict[str, type[Metric]]:
    """Return the metrics of all task types by name; of several with the same name, the last."""
    return {metric.name: metric for name in TASK_TYPES for metric in task_type(name).metrics}


def headline_metrics() -> list[str]:
    """Return the names of the metrics that sum up an evaluation, the most important one first."""
    known = metrics_by_name()
    return sorted((name for name in known if known[name].headline), key=lambda name: -known[name].headline)


def metric_of(key: str) -> Metric | type[Metric]:
    """Return the metric of a logged key: NAME, NAME/TASK, NAME/TASK+TASK, NAME/score or NAME/mean.

    Raises:
        ValueError: no metric has that name.
    """
    known, name = metrics_by_name(), key.split("/", 1)[0]
    if name in known:
        return known[name]
    if "@" in name:
        return ranking_metric(name)
    raise ValueError(f"{key!r}: unknown metric {name!r}; expected one of {', '.join(known)}")


def is_better(key: str, new: float, old: float | None) -> bool:
    """Return whether `new` is strictly better than `old` (None: no value yet) for a logged key. NaN never is.

    Raises:
        ValueError: no metric has that name.
    """
    return metric_of(key).direction.is_better(new, old)


class RowStore:
    """Logits, labels, weights and group IDs of all rows, stored once for all metrics of all tasks.

    Memory: 4 bytes per logit, label and weight of the rows with non-zero weight, and 8 per group ID (one task with one
    logit: 12 bytes per row, with groups 20), and 4 per number that the score reads. For the columns of slices see
    SliceColumn.

    Attributes:
        slices: columns that divide the rows into slices.
    """

    def __init__(
        self, tasks: Sequence[Task], *, with_group: bool, slices: Sequence[str] = (), numbers: int = 0
    ) -> None:
        """Create an empty store."""
        self._columns = logit_columns(tasks)
        self._logits = GrowingArray(np.float32, sum(task.width for task in tasks))
        self._labels = GrowingArray(np.float32, len(tasks))
        self._weights = GrowingArray(np.float32)
        self._numbers = GrowingArray(np.float32, numbers)
        self._group = GrowingArray(np.int64) if with_group else None
        self.slices = [SliceColumn(name) for name in slices]

    def append(
        self,
        logits: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray,
        group: np.ndarray | None,
        slices: Sequence[np.ndarray] = (),
        numbers: np.ndarray | None = None,
    ) -> None:
        """Add the rows whose weight is not 0.

        Args:
            logits: [batch, sum of widths].
            labels: [batch, tasks].
            weights: [batch].
            group: [batch]; ignored by a store without groups.
            slices: [batch] each, one per column of slices.
            numbers: [batch, numbers], what the score reads; None if that is nothing.

        Raises:
            ValueError: the shapes disagree, or a store with groups got none.
        """
        numbers = np.empty((len(weights), 0), np.float32) if numbers is None else numbers
        columns = [(self._logits, logits), (self._labels, labels), (self._weights, weights), (self._numbers, numbers)]
        if self._group is not None:
            if group is None:
                raise ValueError("these rows need a group id each, got None")
            columns.append((self._group, group))
        for store, values in columns:
            expected = (len(weights), *store.rows.shape[1:])
            if values.shape != expected:
                raise ValueError(f"expected rows of shape {expected}, got {values.shape}")
        counts = weights != 0
        for store, values in columns:
            store.append(values if counts.all() else values[counts])
        for column, values in zip(self.slices, slices, strict=True):
            column.append(values[counts])

    def task(self, index: int) -> Rows:
        """Return the rows of one task, as views."""
        group = None if self._group is None else self._group.rows
        logits = self._logits.rows[:, self._columns[index]]
        if logits.shape[1] == 1:
            logits = logits[:, 0]
        return Rows(logits, self._labels.rows[:, index], self._weights.rows, group)

    def scores(self, tasks: Sequence[Task], score: Score) -> np.ndarray:
        """Return the scores of all rows, [rows] float32: finite, or NaN where the score is undefined."""
        found = [np.empty(0, np.float32)]
        for start in range(0, len(self), _SCORED_ROWS):
            block = slice(start, start + _SCORED_ROWS)
            outputs = predicted(tasks, score, self._logits.rows[block], self._numbers.rows[block])
            found.append(as_logits(outputs[SCORE][:, 0]))
        return np.concatenate(found)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._weights)


class _Measured(NamedTuple):
    """What a set of metrics is computed on: a task on its sample space, or a joint event or the score on all rows.

    Attributes:
        task: task whose metrics are computed, and which determines the valid labels.
        chain: positions of the tasks of the joint event; a single one for a task by itself.
        metrics: metrics by logged name.
        by_score: whether rows are ranked by the score instead of by the probability of the task or joint event.
    """

    task: Task
    chain: tuple[int, ...]
    metrics: Mapping[str, Metric]
    by_score: bool = False


class SliceResult(NamedTuple):
    """The metrics of a task or joint event on a slice of the evaluated rows.

    Attributes:
        column: name of the column that divides the rows.
        value: value that the rows share, as text; `trainer.metrics.slices.REST` for the less frequent ones together.
        task: name of the task or joint event.
        rows: number of the slice's rows that count for it.
        positives: number of those whose label is above 0; None for a task without a binary label.
        metrics: name -> value; NaN where it is undefined.
        standard_errors: name -> standard error; NaN where it is undefined.
    """

    column: str
    value: str
    task: str
    rows: int
    positives: int | None
    metrics: dict[str, float]
    standard_errors: dict[str, float]


class Evaluation:
    """Collects logits and labels batch by batch and computes every metric over the rows of all workers.

    A binary task with `given` is measured twice: on its sample space (conversions among clicks), and jointly with all
    tasks that it is given, on all rows (click and conversion among all). A score is measured by the metrics that rank
    within groups, on all rows, with the label of one binary task (if that has `given`, with that of its joint event).

    Memory per worker and per row of its own: 4 bytes per logit and label, 4 for the weight, 8 more with groups (one
    task with one logit: 12, with groups 20), and 4 per column of slices and per number that the score reads.
    `result` takes up to about 150 more while it runs, and for a multiclass task 8 per class.

    Attributes:
        tasks: the tasks. They may be replaced by the same ones with other logit maps, for the rows already added, too:
            what is stored are the network's logits.
        undefined: one line per task, joint event and score with NaN metrics in the last `result`: which, and why.
        curves: calibration curve of each binary task and joint event in the last `result`, by key: calibration_curve if
            there is one task, else calibration_curve/NAME. Where a calibrator is applied, there is also the curve of
            the same predictions without it, as uncalibrated_curve or uncalibrated_curve/NAME.
        slices: metrics of each slice in the last `result`.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        with_group: bool,
        num_auc_thresholds: int = 0,
        ranking_metrics: Sequence[str] = (),
        slices: Sequence[str] = (),
        slice_values: int = 20,
        score: Score | None = None,
        score_label: str | None = None,
    ) -> None:
        """Create an evaluation without rows.

        Args:
            tasks: one per label column passed to `update`.
            with_group: whether `update` gets group IDs, and metrics that rank within groups are computed.
            num_auc_thresholds: 0 for the exact AUC; see RocAuc.
            ranking_metrics: names of further metrics of binary tasks, such as ndcg@10; they need groups.
            slices: names of columns whose values divide the rows into slices, of which all metrics are computed too.
            slice_values: number of values per column with a slice of their own, the most frequent ones.
            score: the score; None for none.
            score_label: name of the binary task by whose label the score is measured; None for the first one.

        Raises:
            ValueError: RocAuc does not support this number of thresholds, or there is no ranking metric of a name.
        """
        self.tasks = tuple(tasks)
        self._with_group = with_group
        self._slice_columns, self._slice_values = tuple(slices), slice_values
        ranking = [ranking_metric(name) for name in ranking_metrics]
        alone = [(index,) for index in range(len(tasks))]
        self._measured: dict[str, _Measured] = {}
        for chain in (*alone, *joint_chains(tasks).values()):
            task = tasks[chain[-1]]
            metrics = {
                metric.name: task.create_metric(metric, num_auc_thresholds)
                for metric in task.metrics
                if with_group or not metric.needs_group
            }
            metrics |= {metric.name: metric for metric in ranking if task.is_binary and with_group}
            self._measured[joint_name(tasks, chain)] = _Measured(task, chain, metrics)
        if score is not None and with_group:
            self._measured |= self._measured_by_score(score_label)
        self._score = score if SCORE in self._measured else None
        self.curves: dict[str, CalibrationCurve] = {}
        self.slices: list[SliceResult] = []
        self.undefined: list[str] = []
        self.reset()

    def _measured_by_score(self, label: str | None) -> dict[str, _Measured]:
        """Return what the score is measured by, under its name; nothing without a binary task."""
        names = [name for name in (label, *(task.name for task in self.tasks if task.is_binary)) if name]
        if not names:
            return {}
        index = [task.name for task in self.tasks].index(names[0])
        ranking = {key: metric for key, metric in self._measured[names[0]].metrics.items() if metric.needs_group}
        return {SCORE: _Measured(self.tasks[index], joint_chains(self.tasks).get(index, (index,)), ranking, True)}

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of what `result` returns, in its order."""
        unknown = {name: dict.fromkeys(measured.metrics, math.nan) for name, measured in self._measured.items()}
        return tuple(self._by_key(unknown))

    def reset(self) -> None:
        """Discard all rows."""
        numbers = 0 if self._score is None else len(self._score.numerical)
        self._store = RowStore(self.tasks, with_group=self._with_group, slices=self._slice_columns, numbers=numbers)

    def update(
        self,
        logits: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray,
        group: np.ndarray | None = None,
        slices: Sequence[np.ndarray] = (),
        numerical: np.ndarray | None = None,
    ) -> None:
        """Add a batch. Rows of weight 0 are dropped.

        A row is left out for a task if its label is missing (NaN) or if it lies outside the task's sample space
        (`given`). It counts for a joint event if the joint label is known: 0 wherever the label of a given task is 0.

        Args:
            logits: [batch, sum of widths] float, the network's outputs.
            labels: [batch, tasks] float.
            weights: [batch] float.
            group: [batch] int64; may be None without groups.
            slices: values of each column of slices, [batch] each: numbers, booleans, or texts as objects.
            numerical: numerical features, [batch, numerical] float32; not needed without a score.

        Raises:
            ValueError: the shapes disagree, or the groups are missing.
        """
        numbers = None if self._score is None else self._score.numbers(numerical)
        self._store.append(logits, restrict_to_sample_space(labels, self.tasks), weights, group, slices, numbers)

    def result(self, comm: Collectives, *, with_slices: bool = True) -> dict[str, float]:
        """Compute the metrics over the rows of all workers, equal on all of them. A collective.

        Args:
            comm: collectives over the workers.
            with_slices: whether to compute the slices, too, which takes longer than the metrics.

        Returns:
            NAME -> value for one task. For several: NAME/TASK for each task that has the metric, NAME/TASK+TASK for
            each joint event, and NAME/mean, the mean of the NAME/TASK that are not NaN (NaN if all are). NAME/score
            for the score, if there is one.

        Raises:
            FloatingPointError: logits are NaN or infinite. Raised on all workers alike, as is DataError.
            DataError: labels or weights cannot be used by any metric.
        """
        values, self.curves, self.undefined = {}, {}, []
        scores = None if self._score is None else self._store.scores(self.tasks, self._score)
        for name, (task, chain, metrics, by_score) in self._measured.items():
            rows = self._rows(chain)
            counts = _check_rows(name, task, rows, comm)
            if by_score:
                values[name], why = self._result_of_score(metrics, chain, scores, counts, comm)
                self.undefined += why
                continue
            of_chain = [self.tasks[index] for index in chain]
            values[name], curve = _measure(task, metrics, _predicted(of_chain, rows), comm)
            if unknown := [key for key, value in values[name].items() if math.isnan(value)]:
                self.undefined.append(_why_undefined(name, task, counts, unknown))
            if curve is not None:
                self.curves[self._curve_key(CURVE, name)] = curve
            if (uncalibrated := without_calibrators(of_chain)) != tuple(of_chain):
                before = _predicted(uncalibrated, rows)
                curve = calibration_curve(score_table(before, comm), before, comm)
                self.curves[self._curve_key(UNCALIBRATED_CURVE, name)] = curve
        columns = self._store.slices if with_slices else []
        self.slices = [
            self._slice(division.column, value, name, division.slices == index, scores, comm)
            for division in [column.divide(self._slice_values, comm) for column in columns]
            for index, value in enumerate(division.values)
            for name in self._measured
        ]
        return self._by_key(values)

    def _result_of_score(
        self,
        metrics: Mapping[str, Metric],
        chain: tuple[int, ...],
        scores: np.ndarray | None,
        counts: "_Counts",
        comm: Collectives,
    ) -> tuple[dict[str, float], list[str]]:
        """Compute the metrics of the score, and why some have no value. A collective."""
        rows = self._rows(chain, scores=scores)
        unknown = comm.sum_array(np.array([np.isnan(rows.logits).sum()], np.int64)).item()
        if unknown:
            why = (
                f"score: {unknown:,} of {counts.rows:,} evaluated rows have no score (NaN, as of the logarithm or the "
                f"square root of a negative number, or of 0 / 0), so that {', '.join(metrics)} cannot be computed"
            )
            return dict.fromkeys(metrics, math.nan), [why]
        values = _measure_by_ranks(metrics, rows, comm)
        undefined = [key for key, value in values.items() if math.isnan(value)]
        label = joint_name(self.tasks, chain)
        why = _why_undefined(label, self.tasks[chain[-1]], counts, [f"{key} of the score" for key in undefined])
        return values, [why] if undefined else []

    def _slice(
        self, column: str, value: str, name: str, mask: np.ndarray, scores: np.ndarray | None, comm: Collectives
    ) -> SliceResult:
        """Compute all metrics of a task, joint event or score on the rows in `mask`, [rows] bool. A collective."""
        task, chain, metrics, by_score = self._measured[name]
        rows = self._rows(chain, mask, scores if by_score else None)
        if not by_score:
            rows = _predicted([self.tasks[index] for index in chain], rows)
        own = [len(rows.logits), np.count_nonzero(rows.labels > 0), np.isnan(rows.logits).sum()]
        count, positives, unknown = comm.sum_array(np.array(own, np.int64)).tolist()
        if unknown:
            values = dict.fromkeys(metrics, math.nan)
        elif by_score:
            values = _measure_by_ranks(metrics, rows, comm)
        else:
            values, _ = _measure(task, metrics, rows, comm)
        errors = {
            key: math.nan if math.isnan(values[key]) else metric.standard_error(rows, comm, values[key])
            for key, metric in metrics.items()
        }
        return SliceResult(column, value, name, count, positives if task.is_binary else None, values, errors)

    def binary_rows(self, comm: Collectives) -> Iterator[tuple[str, Rows]]:
        """Yield the name of each binary task and this worker's rows of it, with the logits of its predictions.

        A collective. Raise the errors of `result`, and a DataError for a task without positive or negative rows.
        """
        for index, task in enumerate(self.tasks):
            if task.is_binary:
                rows = self._rows((index,))
                counts = _check_rows(task.name, task, rows, comm)
                if counts.positive in (0, counts.rows):
                    raise DataError(
                        f"label {task.name!r} has no {'negative' if counts.positive else 'positive'} among the "
                        f"{counts.rows:,} rows that a calibrator is fitted on; add such rows, or remove --calibrate"
                    )
                yield task.name, _predicted([task], rows)

    def _curve_key(self, curve: str, name: str) -> str:
        return curve if len(self.tasks) == 1 else f"{curve}/{name}"

    def _rows(self, chain: tuple[int, ...], mask: np.ndarray | None = None, scores: np.ndarray | None = None) -> Rows:
        """Return the rows that count for a task or joint event; for the latter in the format of joint_rows.

        Args:
            chain: positions of the tasks of the joint event; a single one for a task by itself.
            mask: [rows] bool, the rows of the store to consider; None for all.
            scores: [rows] float32, what takes the place of the logits of the store's rows; None for nothing.
        """
        parts = [self._store.task(index) for index in chain]
        if mask is not None:
            parts = [part.select(mask) for part in parts]
            scores = None if scores is None else scores[mask]
        rows = parts[0] if len(parts) == 1 else joint_rows(parts)
        if scores is not None:
            rows = rows._replace(logits=scores)
        return rows.select(~np.isnan(rows.labels))

    def _by_key(self, values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """Arrange the values by name and metric under the keys that are logged."""
        if len(self.tasks) == 1:
            of_score = {f"{key}/{SCORE}": value for key, value in values.get(SCORE, {}).items()}
            return {**values[self.tasks[0].name], **of_score}
        results: dict[str, float] = {}
        for key in dict.fromkeys(key for metrics in values.values() for key in metrics):
            of_key = {name: metrics[key] for name, metrics in values.items() if key in metrics}
            results |= {f"{key}/{name}": value for name, value in of_key.items()}
            of_tasks = [of_key[task.name] for task in self.tasks if task.name in of_key]
            known = [value for value in of_tasks if not math.isnan(value)]
            results[f"{key}/{MEAN}"] = sum(known) / len(known) if known else math.nan
        return results


def _predicted(tasks: Sequence[Task], rows: Rows) -> Rows:
    """Return rows with the logits of predictions instead of the network's, of a task or of a chain's joint event."""
    if len(tasks) == 1:
        return rows._replace(logits=tasks[0].output_logits(rows.logits))
    columns = zip(tasks, rows.logits.T, strict=True)
    conditional = [task.output_logits(logits) for task, logits in columns]
    return rows._replace(logits=joint_logits(np.stack(conditional, axis=1)))


def _measure(
    task: Task, metrics: Mapping[str, Metric], rows: Rows, comm: Collectives
) -> tuple[dict[str, float], CalibrationCurve | None]:
    """Compute all metrics of some rows, and a binary task's calibration curve."""
    values, curve = _measure_by_table(metrics, rows, comm) if task.is_binary else ({}, None)
    others = {key: metric for key, metric in metrics.items() if key not in values}
    values |= _measure_by_ranks(others, rows, comm)
    return {key: values[key] for key in metrics}, curve


def _measure_by_table(
    metrics: Mapping[str, Metric], rows: Rows, comm: Collectives
) -> tuple[dict[str, float], CalibrationCurve]:
    """Compute the metrics of the score table and the curve; the table is freed before others need memory."""
    table = score_table(rows, comm)
    by_table = {key: metric for key, metric in metrics.items() if isinstance(metric, ScoreMetric)}
    values = {key: metric.of_table(table, rows, comm) for key, metric in by_table.items()}
    return values, calibration_curve(table, rows, comm)


def _measure_by_ranks(metrics: Mapping[str, Metric], rows: Rows, comm: Collectives) -> dict[str, float]:
    """Compute metrics that do not share a score table; those of the first ranks of groups share the ranked rows."""
    ranking = {key: metric for key, metric in metrics.items() if isinstance(metric, RankingMetric)}
    values: dict[str, float] = {}
    if ranking:
        ties = ranked_ties(rows, max(metric.ranks for metric in ranking.values()), comm)
        values = {key: metric.of_ties(ties, comm) for key, metric in ranking.items()}
        del ties
    return {key: values[key] if key in values else metric.result(rows, comm) for key, metric in metrics.items()}


class _Counts(NamedTuple):
    """Number of rows of all workers that count for a task, and how many of them have a label above 0."""

    rows: int
    positive: int


def _why_undefined(name: str, task: Task, counts: _Counts, keys: Sequence[str]) -> str:
    """Explain why metrics of a task have no value."""
    why = "no evaluated row counts for it (its label is missing, or the row is outside its sample space)"
    if counts.rows:
        why = task.why_undefined(counts.rows, counts.positive)
    return f"label {name!r}: {why}, so that {', '.join(keys)} cannot be computed"


def _check_rows(name: str, task: Task, rows: Rows, comm: Collectives) -> _Counts:
    """Raise the errors of Evaluation.result, on all workers together so that none is left waiting in a collective."""
    is_wrong_label, wrong_label = task.invalid_labels(rows.labels)
    faults = (
        ~np.atleast_2d(np.isfinite(rows.logits).T).all(axis=0),
        is_wrong_label,
        ~(np.isfinite(rows.weights) & (rows.weights > 0)),
    )
    own = [len(rows.logits), (rows.labels > 0).sum(), *(fault.sum() for fault in faults)]
    num_rows, positive, logits, labels, weights = comm.sum_array(np.array(own, np.int64)).tolist()
    if logits:
        what = "logits" if task.num_classes else "predicted values"
        raise FloatingPointError(
            f"task {name!r}: {logits} of {num_rows} {what} are NaN or infinite, so no metrics can be computed. Either "
            "training has diverged: resume from an earlier checkpoint with lower learning rates. Or the rows contain "
            "extreme numerical values, which check_dataset.py warns of and which exceed float16's maximum of 65,504: "
            "scale them, or use bfloat16 or float32."
        )
    if labels:
        raise DataError(
            f"label {name!r}: {labels} of {num_rows} evaluated rows have {wrong_label}; "
            "check_dataset.py shows where they are."
        )
    if weights:
        raise DataError(
            f"task {name!r}: {weights} of {num_rows} evaluated rows have a sample weight that is negative, NaN or "
            "infinite; expected 0 or more. check_dataset.py shows where they are."
        )
    return _Counts(num_rows, positive)
