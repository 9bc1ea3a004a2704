"""The inputs of a run: specification, embedding widths and loaders, and the checks before it starts.

Imports no TensorFlow, so that mistakes in data and flags are reported within a second.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.checks.labels import inspect_labels, read_statistics
from data.checks.sample import draw_sample, max_read
from data.encoding.held_out import draw_held_out
from data.encoding.workflow_folder import ENCODERS_FOLDER, workflow_files
from data.errors import DataError, nearest
from data.files.pretrained import VectorFile
from data.loading.batch import Batch
from data.loading.loader import ParquetLoader
from data.loading.parquet import ParquetReader, StoredColumns
from data.loading.part import Part
from data.memory import check_fits
from data.spec.embedding_sizes import embedding_dims, unused_widths
from data.spec.feature_spec import FeatureSpec
from data.spec.features import LABEL, SCORE, VALID
from data.storage.typed_json import read_typed
from trainer.checkpoint.mirror import place
from trainer.checkpoint.run_state import RunState
from trainer.checkpoint.saved_config import from_json
from trainer.checkpoint.schema import MAX_HOTNESS, ModelSchema
from trainer.checkpoint.starting_model import open_starting_model
from trainer.checkpoint.store import CheckpointStore
from trainer.config import Options, TrainingOptions, section_flags
from trainer.embeddings.unseen import UnseenIds, has_reserved_ids
from trainer.importance_file import FILE as IMPORTANCE_FILE
from trainer.layout import InputSchema, input_schema
from trainer.lifecycle.errors import RejectedByAll
from trainer.logging.log import warn
from trainer.logging.trackers import check_trackers
from trainer.memory_needed import MemoryNeeded, RunSize, check_memory
from trainer.models import model_options, network_class
from trainer.outputs import check_file_path, check_outputs
from trainer.predictions import check_column_names
from trainer.process.worker_env import WorkerEnv
from trainer.raw_rows import read_spec, stored_name
from trainer.recipe import HELD_OUT_SHARE
from trainer.tasks.group import group_labels
from trainer.tasks.score import Score, with_score
from trainer.tasks.shifts import logit_shifts, weighted_positives, without_negative_factor
from trainer.tasks.task import tasks_of

if TYPE_CHECKING:
    from trainer.comm import Comm  # imports TensorFlow

SECONDS_BETWEEN_REPORTS = 5.0
IMPORTANCE_ROW_BYTES = 200  # of the metrics of --importance, with its permutation and blocks
FEW_ROWS = 2000
MIN_STEPS_PER_EPOCH = 50  # below this, a run is warned that its optimizers see few steps


@dataclass(frozen=True)
class Inputs:
    """The inputs of a run.

    Attributes:
        spec: the feature specification.
        schema: features and tasks in the order of the model's inputs and outputs.
        layout: layout of the model's input tensors.
        training: loader of the training mapping; None if the run does not train.
        evaluation: loader of the evaluated mapping; None for a benchmark of training.
        eval_mapping: name of the evaluated mapping.
        holds_out: whether only a held-out part of it is evaluated, and the rest trained on.
        with_group: whether to compute the metrics that rank rows within groups.
        kept: stored columns to copy into the predictions file; None if no such file is written.
        kept_names: names of these columns in the predictions file.
        warnings: messages about the inputs for the user.
        shifts: what training adds to the logits of predictions, by label (see `trainer.tasks.shifts`); empty if the run
            does not train, since a checkpoint knows its own.
        memory: the estimate of the memory that a worker needs; None where the model is not known yet.
    """

    spec: FeatureSpec
    schema: ModelSchema
    layout: InputSchema
    training: ParquetLoader | None
    evaluation: ParquetLoader | None
    eval_mapping: str
    with_group: bool
    holds_out: bool = False
    kept: StoredColumns | None = None
    kept_names: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    shifts: Mapping[str, float] = field(default_factory=dict)
    memory: MemoryNeeded | None = None

    def size(self, config: Options) -> RunSize:
        """Return what the memory of the run depends on."""
        training, evaluation = (None if own is None else own.size for own in (self.training, self.evaluation))
        score = Score.of(self.spec)
        return RunSize(
            config,
            self.layout,
            tasks_of(self.spec),
            training,
            evaluation,
            with_group=self.with_group,
            score_numbers=0 if score is None else len(score.numerical),
        )

    @property
    def labelled(self) -> tuple[str, ...]:
        """The names of the labels that the evaluated mapping contains."""
        held = _features(self.spec, self.eval_mapping)
        return tuple(label.name for label in self.spec.labels if label.name in held)

    @property
    def evaluated(self) -> str:
        """The evaluated rows, for messages."""
        part = "held-out rows of " if self.holds_out else ""
        return f"{part}mapping {self.eval_mapping!r}"

    @property
    def train_loader(self) -> ParquetLoader:
        """The training mapping's loader. Raises ValueError if the run does not train."""
        return _existing(self.training)

    @property
    def eval_loader(self) -> ParquetLoader:
        """The evaluated mapping's loader. Raises ValueError if the run evaluates nothing."""
        return _existing(self.evaluation)


def open_inputs(config: Options, env: WorkerEnv, agreed: ModelSchema | None = None) -> Inputs:
    """Read the specification and the footers of the data files.

    Args:
        config: the resolved configuration.
        env: rank and size of this process as its launcher announced them. Only rank 0 reads the checkpoint.
        agreed: the schema that rank 0 has found, which sets the order of features and tasks; None before that.

    Raises:
        DataError: the specification is invalid, files do not match it, its features or tasks differ from those of the
            checkpoint, or the model does not fit into this host's memory.
        NoCheckpointError: the checkpoint to restore does not exist or is damaged.
    """
    data, run = config.data, config.run
    path, outside = data.dataset_path / data.fspec_file, data.allow_outside_paths
    if run.raw:  # encoded by `encoded_rows`
        spec = read_spec(data.dataset_path, allow_outside_paths=outside)
    else:
        spec = FeatureSpec.read(path, allow_outside_paths=outside)
    earlier = _earlier_schema(config, env, agreed)
    of_model = None if earlier is None else earlier.widths
    widths = embedding_dims(spec, data.embedding_sizes_file, allow_outside_paths=outside, of_model=of_model)
    spec = _in_order_of_model(spec, widths, config, env, agreed)
    if agreed is None and earlier is not None and config.run.warm_start is not None:
        spec = earlier.ordered(spec)
    config.model.check_labels([label.name for label in spec.labels])
    spec = with_score(spec, config.training.score)  # of --score or of the checkpoint
    _check_rows_are_kept(config)
    held_out, mapping = _draw_held_out(config, spec), data.train_mapping
    if held_out is None:
        mapping = data.eval_mapping or (VALID if run.trains and VALID in spec.sources else "test")
    _check_calibration(config, spec, mapping, holds_out=held_out is not None)
    evaluates = run.evaluate or not run.benchmark
    has_metrics = evaluates and run.predict is None and run.importance is None
    with_group = has_metrics and not run.disable_map_calculation and _holds_group(spec, mapping)
    _check_ranking(run.ranking_metrics, spec, mapping)
    _check_score_label(run.score_label, spec, mapping)
    if run.trains:
        _check_group_losses(spec, data.train_mapping)
    kept_names = _kept_names(spec, mapping, run.keep)
    inputs = Inputs(
        spec=spec,
        schema=ModelSchema.of(spec, widths),
        layout=input_schema(spec, widths),
        training=_open_loader(config, spec, env, data.train_mapping, held_out, trains=True) if run.trains else None,
        evaluation=_open_loader(config, spec, env, mapping, held_out, run.slice, with_group=with_group)
        if evaluates
        else None,
        eval_mapping=mapping,
        with_group=with_group,
        holds_out=held_out is not None,
        kept=None if run.predictions_path is None else _kept_columns(spec, mapping, kept_names, is_raw=bool(run.raw)),
        kept_names=kept_names,
        warnings=(
            *unused_widths(spec, data.embedding_sizes_file, allow_outside_paths=outside),
            *(weighted_positives(spec, config.training) if run.trains else ()),
        ),
        shifts=_shifts(config, spec) if run.trains else {},
    )
    config.model.check_layout(inputs.layout)
    if not run.restores:
        _check_pretrained(spec)
    return replace(inputs, memory=check_memory(inputs.size(config), env))


def _draw_held_out(config: Options, spec: FeatureSpec) -> np.ndarray | None:
    """Return the training rows that are held out (see `draw_held_out`); None if there is a mapping to evaluate."""
    if not config.holds_out or VALID in spec.sources:
        return None
    return draw_held_out(spec, config.data.train_mapping, HELD_OUT_SHARE, config.training.seed)


def _check_pretrained(spec: FeatureSpec) -> None:
    """Check the columns of the files of pretrained vectors, which only a new model needs."""
    for feature in spec.pretrained:
        VectorFile.open(spec.folder / str(feature.pretrained), [str(feature.of)], feature.dimension)


def _earlier_schema(config: Options, env: WorkerEnv, agreed: ModelSchema | None) -> ModelSchema | None:
    """Return the features and tasks of the model whose embedding widths count, as a warm start has brought them in."""
    run = config.run
    if agreed is not None or env.rank != 0:
        return agreed
    if run.warm_start is not None:
        return open_starting_model(run.warm_start, run.warm_start_from).schema
    if not run.restores:
        return None
    store = CheckpointStore(config.data.model_dir, warn=lambda text: None)
    facts = RunState.of(store.open(run.which_checkpoint, verify=False))
    return facts.schema if facts.origin.model else None


def _in_order_of_model(
    spec: FeatureSpec, widths: dict[str, int], config: Options, env: WorkerEnv, agreed: ModelSchema | None
) -> FeatureSpec:
    """Return the specification with features and tasks in the checkpoint's order, if the run restores one."""
    path = str(config.data.dataset_path / config.data.fspec_file)
    if agreed is not None:
        return agreed.arrange(spec, widths, "the first worker's specification", path)
    if not config.run.restores or env.rank != 0:
        return spec
    # No warnings here: they are printed when the checkpoint is restored.
    store = CheckpointStore(config.data.model_dir, warn=lambda text: None)
    checkpoint = store.open(config.run.which_checkpoint, verify=False)
    ignoring = () if config.run.trains else (MAX_HOTNESS,)
    return RunState.of(checkpoint).schema.arrange(spec, widths, str(checkpoint.path), path, ignoring)


def _open_loader(
    config: Options,
    spec: FeatureSpec,
    env: WorkerEnv,
    mapping: str,
    held_out: np.ndarray | None,
    extra_columns: Sequence[str] = (),
    *,
    trains: bool = False,
    with_group: bool = False,
) -> ParquetLoader:
    options = config.training
    whole_groups = trains and bool(group_labels(spec))
    edits = _edits(config, spec) if trains else []

    def edit(batch: Batch, epoch: int) -> None:
        for one in edits:
            one(batch, epoch)

    return ParquetLoader(
        spec,
        mapping,
        global_batch_size=options.global_batch_size if trains else options.eval_batch_size,
        worker=env.rank,
        workers=env.size,
        shuffle=trains,
        seed=options.seed,
        with_group=with_group or whole_groups,
        whole_groups=whole_groups,
        extra_columns=extra_columns,
        needs_labels=config.run.predict is None,
        oov_policy=config.data.oov_policy_of(trains=trains),
        part=None if held_out is None else Part(held_out, bit=not trains),
        edit=edit if edits else None,
    )


def _edits(config: Options, spec: FeatureSpec) -> list[Callable[[Batch, int], None]]:
    """Return what changes the batches of training, in place."""
    unseen = _unseen_ids(config, spec)
    edits: list[Callable[[Batch, int], None]] = [unseen.replace] if unseen else []
    if config.training.negatives == "logit":
        edits.append(without_negative_factor(spec))
    return edits


def _shifts(config: Options, spec: FeatureSpec) -> dict[str, float]:
    joint = network_class(config.model.model).trains_joint_probabilities
    return logit_shifts(spec, config.data.train_mapping, config.training, trains_joint_probabilities=joint)


def _check_calibration(config: Options, spec: FeatureSpec, mapping: str, *, holds_out: bool) -> None:
    """Check that calibrators can be fitted on the evaluated rows, if they are asked for."""
    kind, run = config.training.calibrate, config.run
    if kind is None or not run.trains or run.benchmark:
        return
    if VALID not in spec.sources and not holds_out:
        raise DataError(
            f"--calibrate {kind} fits on the mapping {VALID!r}, never on test, and the dataset has none; add it to "
            "source_spec (`split:` of preprocess.py makes one), or remove the flag"
        )
    if mapping != VALID and not holds_out:
        raise DataError(
            f"--calibrate {kind} fits on the mapping {VALID!r}, and --eval_mapping is {mapping}: remove "
            "--eval_mapping, and evaluate that mapping after training with --evaluate"
        )
    if not any(label.is_binary for label in spec.labels):
        raise DataError(f"--calibrate {kind}: only binary labels have a probability to calibrate; remove the flag")


def _unseen_ids(config: Options, spec: FeatureSpec) -> UnseenIds | None:
    """Return what teaches the model about unseen values and null; None if it is off or no feature states their ids."""
    share, mapping = config.training.unseen_share, config.data.train_mapping
    if not share or not has_reserved_ids(spec):
        return None

    def sample() -> Batch:
        reader = ParquetReader(spec, mapping, oov_policy=config.data.oov_policy_of(trains=True))
        return draw_sample(reader, max_read=max_read(spec))

    return UnseenIds(spec, share, config.training.seed, sample)


def agree_on_inputs(config: Options, data: Inputs, comm: "Comm", env: WorkerEnv) -> tuple[Options, Inputs]:
    """Give all workers the inputs that rank 0 has checked. A collective.

    Rank 0 alone reads the labels for their check and the checkpoint: the other workers take its verdict, and the
    checkpoint's model flags and order of features and tasks.

    Args:
        config, data: this worker's configuration and inputs.
        comm: collectives over the workers.
        env: rank and size of this process as its launcher announced them.

    Raises:
        RejectedByAll: nothing can be learned from the labels, or the files cannot be read.
        DataError: this worker's specification differs from that of rank 0.
    """
    if comm.size == 1:  # has checked its labels before TensorFlow was imported
        return config, data
    opened_with = config.training
    reads_model = config.run.restores or config.run.warm_start is not None
    if reads_model:  # and how the run starts, by which it depends whether labels are checked
        config = _flags_of_rank_0(config, comm)
    if checks_labels(config):
        _check_labels_for_all(config, data.spec, comm)
    if not reads_model:
        return config, data
    found = json.loads(comm.broadcast_bytes(json.dumps(asdict(data.schema)).encode()))
    schema: ModelSchema = read_typed(ModelSchema, found, "schema")
    is_same = schema == data.schema and config.training == opened_with
    return config, data if is_same else open_inputs(config, env, schema)


def _flags_of_rank_0(config: Options, comm: "Comm") -> Options:
    """Return the configuration with what only rank 0 knows: the flags of an earlier model, and how the run starts."""
    run = config.run
    start = None if run.warm_start is None else str(run.warm_start)
    own = [vars(config.model), vars(config.training), run.use_checkpoint, start]
    model, training, resumes, start = json.loads(comm.broadcast_bytes(json.dumps(own).encode()))
    if run.trains:
        checkpoint = run.checkpoint if resumes else None
        model_of = None if start is None else Path(start)
        which = None if start is None else run.warm_start_checkpoint  # which only rank 0 opens
        run = replace(
            run, use_checkpoint=resumes, checkpoint=checkpoint, warm_start=model_of, warm_start_checkpoint=which
        )
    known = section_flags(TrainingOptions)
    return replace(
        config,
        model=model_options(**from_json(model)),
        training=TrainingOptions(**{name: known[name].read(value) for name, value in training.items()}),
        run=run,
    )


def _check_labels_for_all(config: Options, spec: FeatureSpec, comm: "Comm") -> None:
    """Check the labels on rank 0 while the other workers wait, then continue or fail on all of them. A collective."""
    if comm.local_rank == 0:
        print(f"worker 0 of {comm.size} checks the labels; the others wait for it", flush=True)
    problem = ""
    if comm.rank == 0:
        try:
            for text in check_labels(config, spec):
                warn(text)
        except DataError as error:
            problem = str(error)
    problem = comm.broadcast_bytes(problem.encode()).decode()
    if problem:
        raise RejectedByAll(problem)


def check_run(config: Options, data: Inputs, env: WorkerEnv) -> tuple[str, ...]:
    """Check that a run overwrites nothing, and that something can be learned from its labels.

    With several workers the labels are checked once these are connected (see `agree_on_inputs`).

    Returns:
        All warnings about the run's inputs.

    Raises:
        DataError: model_dir holds checkpoints but the run does not restore one, the predictions file or that of
            --importance cannot be written, the rows of --importance do not fit into memory, a tracker's package is not
            installed, an output would overwrite an input or a foreign file (see `check_outputs`), the dataset's
            encoders are damaged or lie outside of it, or nothing can be learned from the labels.
    """
    run, store = config.run, CheckpointStore(config.data.model_dir)
    if env.rank == 0:
        if run.trains and not run.benchmark:
            store.refresh(locked=True)
        if run.predictions_path is not None:
            check_file_path(run.predictions_path, "out.parquet")
        if run.importance is not None:
            check_file_path(run.importance, IMPORTANCE_FILE)
        check_outputs(config, data.spec)
        check_trackers(run.trackers)
    if env.rank == 0 and not run.restores and not run.benchmark and not store.is_empty:
        raise DataError(
            f"{place(store.folder)} holds the checkpoints of an earlier run. Add --use_checkpoint to resume it, choose "
            "another --model_dir, or delete the folder."
        )
    warnings = data.warnings
    if run.importance is not None:
        warnings += _check_importance(config, data, env)
    if run.trains and not run.benchmark and env.rank == 0:
        warnings += _check_encoders(data.spec, allow_outside_paths=config.data.allow_outside_paths)
    if env.size == 1 and checks_labels(config):
        warnings += check_labels(config, data.spec)
    if data.training is not None and data.training.steps_per_epoch < MIN_STEPS_PER_EPOCH:
        warnings += (
            f"an epoch has {data.training.steps_per_epoch} step(s) for {data.training.rows:,} rows; a smaller "
            "--global_batch_size gives the optimizers more of them",
        )
    return warnings


def _check_importance(config: Options, data: Inputs, env: WorkerEnv) -> tuple[str, ...]:
    """Check that the rows of --importance fit into memory, and warn if they are few."""
    rows, tasks = min(config.run.importance_rows, data.eval_loader.rows), tasks_of(data.spec)
    # The rows twice while they are gathered, the logits three times, and what a metric takes.
    logits = 4 * sum(task.width for task in tasks)
    row_bytes = 2 * data.eval_loader.row_bytes + 3 * logits + IMPORTANCE_ROW_BYTES
    check_fits(rows * row_bytes, f"--importance of {rows:,} rows", "lower --importance_rows", env.local_size)
    if rows >= FEW_ROWS:
        return ()
    return (f"--importance measures on {rows:,} rows: below {FEW_ROWS:,} the standard errors are rough",)


def _check_encoders(spec: FeatureSpec, *, allow_outside_paths: bool) -> tuple[str, ...]:
    """Check, before the first step, that the dataset's encoders can be copied into the model folder after the last.

    Returns:
        A warning if there is a folder of encoders without the manifest that `prepare` writes.
    """
    folder = spec.folder / ENCODERS_FOLDER
    if workflow_files(spec.folder, allow_outside_paths=allow_outside_paths) or not folder.exists():
        return ()
    return (f"{folder} has no manifest written by `prepare`, so it is not included in the model",)


def checks_labels(config: Options) -> bool:
    """Return whether the run checks its labels: those of training unless it resumes, those that calibrators need."""
    run = config.run
    return run.trains and not run.benchmark and (not run.restores or config.training.calibrate is not None)


def check_labels(config: Options, spec: FeatureSpec) -> tuple[str, ...]:
    """Check the labels of the mappings for training and calibration, with progress on stderr, and return the warnings.

    Those of training are not checked again by a run that resumes.

    Raises:
        DataError: labels are invalid or nothing can be learned from them, and --allow_degenerate_labels is not given;
            or a calibrator cannot be fitted.
    """
    if config.training.calibrate is not None:
        _check_calibration_labels(config, spec)
    return () if config.run.restores else _check_training_labels(config, spec)


def _check_calibration_labels(config: Options, spec: FeatureSpec) -> None:
    """Check that every binary label has positive and negative rows to fit a calibrator on."""
    held_out = _draw_held_out(config, spec)
    mapping = VALID if held_out is None else config.data.train_mapping
    report = _report_progress(f"checking the labels of {mapping!r}")
    reader = ParquetReader(spec.only(LABEL), mapping)
    part = None if held_out is None else np.unpackbits(held_out, count=reader.rows).astype(bool)
    statistics = read_statistics(spec, reader, lambda done, of: report("row groups of labels", done, of), part)
    for found in statistics:
        if found.label.is_binary and found.total in (0, found.rows):
            lacks = "negative" if found.total else "positive"
            held = "" if held_out is None else "held-out "
            fix = "put such rows into it" if held_out is None else f"add a mapping {VALID!r} with such rows"
            raise DataError(
                f"--calibrate {config.training.calibrate}: label {found.label.name!r} has no {lacks} among the "
                f"{found.rows:,} {held}rows that count for it in mapping {mapping!r} "
                f"({reader.location(found.label.name, 0).path}, ...); {fix}, or remove the flag"
            )


def _check_training_labels(config: Options, spec: FeatureSpec) -> tuple[str, ...]:
    mapping = config.data.train_mapping
    labels = inspect_labels(
        spec,
        mapping,
        config.data.oov_policy_of(trains=True),
        _report_progress(f"checking the labels of {mapping!r}"),
    )
    if config.data.allow_degenerate_labels:
        return labels.problems + labels.warnings
    if labels.problems:
        lines = (f"the labels of mapping {mapping!r} do not fit their tasks:", *labels.problems)
        raise DataError("\n  ".join(lines) + "\nFix this, or train anyway with --allow_degenerate_labels.")
    return labels.warnings


def _report_progress(title: str) -> Callable[[str, int, int], None]:
    """Return a callback that prints progress at most every SECONDS_BETWEEN_REPORTS, and nothing for shorter work."""
    last = time.monotonic()

    def report(what: str, done: int, of: int) -> None:
        nonlocal last
        if done < of and time.monotonic() - last >= SECONDS_BETWEEN_REPORTS:
            last = time.monotonic()
            print(f"{title}: {done:,} of {of:,} {what}", file=sys.stderr, flush=True)

    return report


def _check_rows_are_kept(config: Options) -> None:
    if config.data.oov_policy == "drop" and config.run.predictions_path is not None:
        raise DataError(
            f"--oov_policy drop leaves rows out, and {config.run.predictions_path} has a line for each row of the "
            "mapping; predict with --oov_policy unseen or clip"
        )


def _holds_group(spec: FeatureSpec, mapping: str) -> bool:
    return spec.map_feature is not None and spec.map_feature.name in _features(spec, mapping)


def _check_ranking(names: Sequence[str], spec: FeatureSpec, mapping: str) -> None:
    """Raise a DataError if ranking metrics are asked for that cannot be computed on a mapping."""
    if names and not _holds_group(spec, mapping):
        raise DataError(
            f"--ranking_metrics {' '.join(names)} rank rows within groups, and mapping {mapping!r} has no map feature: "
            "list the id of the groups in channel_spec.map of the feature specification (it may be a one-hot feature)"
        )
    if names and not any(label.is_binary for label in spec.labels):
        raise DataError(f"--ranking_metrics {' '.join(names)} need a binary label, and the specification has none")


def _check_score_label(name: str | None, spec: FeatureSpec, mapping: str) -> None:
    """Raise a DataError if --score_label is no label that a score is measured by."""
    if name is None:
        return
    labels = [label.name for label in spec.labels if label.is_binary]
    if spec.score is None:
        raise DataError(f"--score_label {name}: there is no score to measure; add --score, or remove the flag")
    if name not in labels:
        near = nearest(name, labels)
        hint = f"; did you mean {near!r}?" if near else ""
        raise DataError(
            f"--score_label {name!r} is not one of the binary labels {', '.join(labels) or '(there are none)'}{hint}"
        )
    if not _holds_group(spec, mapping):
        raise DataError(
            f"--score_label {name}: the score ranks rows within groups, and mapping {mapping!r} has no map feature: "
            "list the id of the groups in channel_spec.map of the feature specification, or remove the flag"
        )


def _check_group_losses(spec: FeatureSpec, mapping: str) -> None:
    """Raise a DataError if rows of groups are to be compared in training on a mapping without groups."""
    labels = group_labels(spec)
    if labels and not _holds_group(spec, mapping):
        raise DataError(
            f"label {labels[0].name!r}: task: {labels[0].task} compares the rows of a group, and mapping {mapping!r} "
            "has no map feature: list the id of the groups in channel_spec.map of the feature specification (it may be "
            "a one-hot feature)"
        )


def _features(spec: FeatureSpec, mapping: str) -> list[str]:
    return [name for chunk in spec.chunks(mapping) for name in chunk.features]


def _kept_names(spec: FeatureSpec, mapping: str, asked: Sequence[str]) -> tuple[str, ...]:
    """Return the columns to copy into the predictions file: the map feature, if there is one, and those of --keep."""
    group = [spec.map_feature.name] if spec.map_feature and _holds_group(spec, mapping) else []
    return tuple(dict.fromkeys([*group, *asked]))


def _kept_columns(spec: FeatureSpec, mapping: str, names: Sequence[str], *, is_raw: bool) -> StoredColumns:
    """Return the columns with these names, in raw rows the raw columns."""
    check_column_names(names, [label.name for label in spec.labels], () if spec.score is None else (SCORE,))
    held = _features(spec, mapping)
    return StoredColumns(spec, mapping, [stored_name(name, held) for name in names] if is_raw else names)


def _existing(loader: ParquetLoader | None) -> ParquetLoader:
    if loader is None:
        raise ValueError("this run has no such loader")
    return loader
