"""The inputs of a run: specification, embedding widths and loaders. Imports no TensorFlow."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data.checks.labels import lint_labels
from data.errors import DataError
from data.loading.loader import ParquetLoader
from data.loading.parquet import StoredColumns
from data.preprocess.workflow_folder import ENCODERS_FOLDER
from data.spec.embedding_sizes import embedding_dims, unused_widths
from data.spec.feature_spec import FeatureSpec
from trainer.checkpoint.facts import MAX_HOTNESS, RunFacts, Schema
from trainer.checkpoint.model_folder import encoder_documents
from trainer.checkpoint.store import CheckpointStore
from trainer.config import Options
from trainer.layout import InputSchema, input_schema
from trainer.model_size import check_model_fits
from trainer.outputs import check_outputs
from trainer.predictions import check_column_names, check_predictions_path
from trainer.process.worker_env import WorkerEnv
from trainer.tasks.task import tasks_of

SECONDS_BETWEEN_REPORTS = 5.0


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
        with_group: whether to compute MAP@12.
        kept: stored columns to copy into the predictions file; None if no such file is written.
        warnings: messages about the inputs for the user.
    """

    spec: FeatureSpec
    schema: Schema
    layout: InputSchema
    training: ParquetLoader | None
    evaluation: ParquetLoader | None
    eval_mapping: str
    with_group: bool
    kept: StoredColumns | None = None
    warnings: tuple[str, ...] = ()

    @property
    def labelled(self) -> tuple[str, ...]:
        """The names of the labels that the evaluated mapping contains."""
        held = _features(self.spec, self.eval_mapping)
        return tuple(label.name for label in self.spec.labels if label.name in held)

    @property
    def train_loader(self) -> ParquetLoader:
        """The training mapping's loader. Raises ValueError if the run does not train."""
        return _there(self.training)

    @property
    def eval_loader(self) -> ParquetLoader:
        """The evaluated mapping's loader. Raises ValueError if the run evaluates nothing."""
        return _there(self.evaluation)


def open_inputs(options: Options, launch: WorkerEnv, agreed: Schema | None = None) -> Inputs:
    """Read the specification and the footers of the data files.

    A run that restores a checkpoint takes its features and tasks in the checkpoint's order.

    Args:
        options: the resolved configuration.
        launch: rank and size of this process as its launcher announced them. Only rank 0 reads the checkpoint.
        agreed: the schema that rank 0 has found, which sets the order of features and tasks; None before that.

    Raises:
        DataError: the specification is invalid, files do not match it, or its features or tasks differ from those of
            the checkpoint.
        NoCheckpointError: the checkpoint to restore does not exist or is damaged.
    """
    data = options.data
    path = data.dataset_path / data.fspec_file
    spec = FeatureSpec.read(path, allow_outside_paths=data.allow_outside_paths)
    widths = embedding_dims(spec, data.embedding_sizes_file, allow_outside_paths=data.allow_outside_paths)
    ignoring = () if options.run.trains else (MAX_HOTNESS,)
    if agreed is not None:
        spec = agreed.arrange(spec, widths, "the first worker's specification", str(path))
    elif options.run.restores and launch.rank == 0:
        # No warnings here: they are printed when the checkpoint is restored.
        store = CheckpointStore(data.model_dir, warn=lambda text: None)
        checkpoint = store.open(options.run.which_checkpoint, verify=False)
        saved = RunFacts.of(checkpoint).schema
        spec = saved.arrange(spec, widths, str(checkpoint.path), str(path), ignoring)
    options.model.check_labels([label.name for label in spec.labels])
    run, oov_policy = options.run, options.data.oov_policy
    _check_rows_are_kept(options)
    evaluates = run.evaluate or not run.benchmark
    mapping = options.data.eval_mapping or ("valid" if run.trains and "valid" in spec.sources else "test")
    with_group = evaluates and run.predict is None and not run.disable_map_calculation and _holds_group(spec, mapping)
    training = evaluation = kept = None
    if run.trains:
        training = ParquetLoader(
            spec,
            options.data.train_mapping,
            global_batch_size=options.training.global_batch_size,
            worker=launch.rank,
            workers=launch.size,
            shuffle=True,
            seed=options.training.seed,
            oov_policy=oov_policy,
        )
    if evaluates:
        evaluation = ParquetLoader(
            spec,
            mapping,
            global_batch_size=options.training.eval_batch_size,
            worker=launch.rank,
            workers=launch.size,
            shuffle=False,
            with_group=with_group,
            needs_labels=run.predict is None,
            oov_policy=oov_policy,
        )
    if run.predictions_path is not None:
        kept = _kept_columns(spec, mapping, run.keep)
    outside = data.allow_outside_paths
    warnings = tuple(unused_widths(spec, data.embedding_sizes_file, allow_outside_paths=outside))
    schema, layout = Schema.of(spec, widths), input_schema(spec, widths)
    return Inputs(spec, schema, layout, training, evaluation, mapping, with_group, kept, warnings)


def check_folders(options: Options, spec: FeatureSpec, launch: WorkerEnv) -> None:
    """Refuse to start a run that would overwrite another one, or that must not or cannot write one of its outputs.

    Raises:
        DataError: model_dir holds checkpoints but the run does not restore one, the predictions file cannot be
            written, or an output would overwrite an input or a foreign file (see `check_outputs`).
    """
    run, store = options.run, CheckpointStore(options.data.model_dir)
    if launch.rank == 0:
        if run.predictions_path is not None:
            check_predictions_path(run.predictions_path)
        check_outputs(options, spec)
    if not run.restores and not run.benchmark and any(store.folder.glob("step-*")):
        raise DataError(
            f"{store.folder} holds the checkpoints of an earlier run. Add --use_checkpoint to go on with it, give "
            "another --model_dir, or delete the folder."
        )


def check_model(options: Options, inputs: Inputs, launch: WorkerEnv) -> None:
    """Raise a DataError if the model does not fit into this host's memory (see `check_model_fits`)."""
    loaders = [loader for loader in (inputs.training, inputs.evaluation) if loader is not None]
    batch_rows = max(min(loader.local_batch_size, loader.rows) for loader in loaders)
    check_model_fits(options, inputs.layout, tasks_of(inputs.spec), launch, batch_rows)


def check_workflow(options: Options, spec: FeatureSpec, launch: WorkerEnv) -> tuple[str, ...]:
    """Check, before the first step, that the dataset's encoders can be copied into the model folder after the last.

    Returns:
        A warning if there is a folder of encoders without the manifest that `prepare` writes.

    Raises:
        DataError: the encoders are not as `prepare` wrote them, or lie outside of the dataset.
    """
    if not options.run.trains or options.run.benchmark or launch.rank != 0:
        return ()
    found = encoder_documents(spec.folder, allow_outside_paths=options.data.allow_outside_paths)
    folder = spec.folder / ENCODERS_FOLDER
    if found or not folder.exists():
        return ()
    return (f"{folder} has no manifest as `prepare` writes it: nothing of it becomes part of the model",)


def lints_labels(options: Options) -> bool:
    """Return whether the run checks its labels: if it trains and does not resume, as they were checked at its start."""
    run = options.run
    return run.trains and not run.benchmark and not run.restores


def check_labels(options: Options, spec: FeatureSpec) -> tuple[str, ...]:
    """Check the labels of the training mapping, with progress on stderr, and return the warnings.

    Raises:
        DataError: labels are invalid or nothing can be learned from them, and --allow_degenerate_labels is not given.
    """
    mapping = options.data.train_mapping
    lint = lint_labels(spec, mapping, options.data.oov_policy, _reports(f"checking the labels of {mapping!r}"))
    if options.data.allow_degenerate_labels:
        return lint.problems + lint.warnings
    if lint.problems:
        lines = (f"the labels of mapping {mapping!r} do not fit their tasks:", *lint.problems)
        raise DataError("\n  ".join(lines) + "\nFix this, or train all the same with --allow_degenerate_labels.")
    return lint.warnings


def _reports(title: str) -> Callable[[str, int, int], None]:
    """Return a callback that prints progress at most every SECONDS_BETWEEN_REPORTS, and nothing for shorter work."""
    last = time.monotonic()

    def report(what: str, done: int, of: int) -> None:
        nonlocal last
        if done < of and time.monotonic() - last >= SECONDS_BETWEEN_REPORTS:
            last = time.monotonic()
            print(f"{title}: {done:,} of {of:,} {what}", file=sys.stderr, flush=True)

    return report


def _check_rows_are_kept(options: Options) -> None:
    if options.data.oov_policy == "drop" and options.run.predictions_path is not None:
        raise DataError(
            f"--oov_policy drop leaves rows out, and {options.run.predictions_path} has a line for each row of the "
            "mapping; predict with --oov_policy clip"
        )


def _holds_group(spec: FeatureSpec, mapping: str) -> bool:
    return spec.map_feature is not None and spec.map_feature.name in _features(spec, mapping)


def _features(spec: FeatureSpec, mapping: str) -> list[str]:
    return [name for chunk in spec.chunks(mapping) for name in chunk.features]


def _kept_columns(spec: FeatureSpec, mapping: str, asked: Sequence[str]) -> StoredColumns:
    """Return the columns to copy into the predictions file: the map feature, if there is one, and those of --keep."""
    group = [spec.map_feature.name] if spec.map_feature and _holds_group(spec, mapping) else []
    names = list(dict.fromkeys([*group, *asked]))
    check_column_names(names, [label.name for label in spec.labels])
    return StoredColumns(spec, mapping, names)


def _there(loader: ParquetLoader | None) -> ParquetLoader:
    if loader is None:
        raise ValueError("this run has no such loader")
    return loader
