"""The data side of a run: specification, embedding widths and loaders. Imports no TensorFlow."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data.encoding.workflow_folder import ENCODERS_FOLDER
from data.errors import DataError
from data.linting.lint import lint_labels
from data.loading.loader import ParquetLoader
from data.loading.stored_columns import StoredColumns
from data.specification.embedding_sizes import embedding_dims, unused_widths
from data.specification.feature_spec import FeatureSpec
from trainer.checkpoints import CheckpointStore
from trainer.flags.options import Options
from trainer.layout import InputLayout, input_layout
from trainer.model_folder import encoder_documents
from trainer.model_size import check_model_fits
from trainer.outputs import check_outputs
from trainer.predictions import check_column_names, check_predictions_path
from trainer.process.launcher import Launch
from trainer.run_facts import RunFacts
from trainer.schema import MAX_HOTNESS, Schema
from trainer.tasks import tasks_of

SECONDS_BETWEEN_REPORTS = 5.0


@dataclass(frozen=True)
class Inputs:
    """What a run reads.

    Attributes:
        spec: the specification.
        schema: features and tasks in the order of the model's inputs and outputs.
        layout: of the model's inputs.
        train_loader: of the training mapping; only where the run trains.
        eval_loader: of the evaluated mapping.
        eval_mapping: its name.
        with_group: whether MAP@12 is computed.
        kept: columns that go into the file of predictions as they are; only where there is one.
        warnings: what the user should know about the inputs.
    """

    spec: FeatureSpec
    schema: Schema
    layout: InputLayout
    training: ParquetLoader | None
    evaluation: ParquetLoader | None
    eval_mapping: str
    with_group: bool
    kept: StoredColumns | None = None
    warnings: tuple[str, ...] = ()

    @property
    def labelled(self) -> tuple[str, ...]:
        """The labels that the evaluated mapping has."""
        held = _features(self.spec, self.eval_mapping)
        return tuple(label.name for label in self.spec.labels if label.name in held)

    @property
    def train_loader(self) -> ParquetLoader:
        """The training mapping's loader, of a run that trains."""
        return _there(self.training)

    @property
    def eval_loader(self) -> ParquetLoader:
        """The evaluated mapping's loader, of a run that evaluates."""
        return _there(self.evaluation)


def open_inputs(options: Options, launch: Launch, agreed: Schema | None = None) -> Inputs:
    """Reads the specification and the files' footers.

    A run that restores a checkpoint takes features and tasks in the order of that checkpoint.

    Args:
        options: of the run.
        launch: this process among its workers. Only the first one reads the checkpoint.
        agreed: what the first worker has found.

    Raises:
        DataError: a rule of the specification is broken, files do not hold what it says, or it has other features or
            tasks than the checkpoint.
        NoCheckpointError: there is no checkpoint that is to be restored.
    """
    data = options.data
    path = data.dataset_path / data.fspec_file
    spec = FeatureSpec.read(path, allow_outside_paths=data.allow_outside_paths)
    widths = embedding_dims(spec, data.embedding_sizes_file, allow_outside_paths=data.allow_outside_paths)
    ignoring = () if options.run.trains else (MAX_HOTNESS,)
    if agreed is not None:
        spec = agreed.arrange(spec, widths, "the first worker's specification", str(path))
    elif options.run.restores and launch.rank == 0:
        # What is passed over on the way is reported when the checkpoint is restored.
        store = CheckpointStore(data.model_dir, warn=lambda text: None)
        checkpoint = store.open(options.run.which_checkpoint, verify=False)
        saved = RunFacts.of(checkpoint).schema
        spec = saved.arrange(spec, widths, str(checkpoint.path), str(path), ignoring)
    options.model.check_towers([label.name for label in spec.labels])
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
    schema, layout = Schema.of(spec, widths), input_layout(spec, widths)
    return Inputs(spec, schema, layout, training, evaluation, mapping, with_group, kept, warnings)


def check_folders(options: Options, spec: FeatureSpec, launch: Launch) -> None:
    """Refuses to start a run over another one, or one that would write where it must not or cannot.

    Raises:
        DataError: model_dir holds checkpoints and none of them is asked for, the predictions could not be written
            where they are asked for, or see `check_outputs`.
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


def check_model(options: Options, inputs: Inputs, launch: Launch) -> None:
    """Refuses a model that this host cannot hold (see `check_model_fits`)."""
    loaders = [loader for loader in (inputs.training, inputs.evaluation) if loader is not None]
    batch_rows = max(min(loader.local_batch_size, loader.rows) for loader in loaders)
    check_model_fits(options, inputs.layout, tasks_of(inputs.spec), launch, batch_rows)


def check_workflow(options: Options, spec: FeatureSpec, launch: Launch) -> tuple[str, ...]:
    """Refuses, before the first step, encoders that the model folder cannot be given after the last; warns of none.

    Raises:
        DataError: they are not as `prepare` wrote them, or lie outside of the dataset.
    """
    if not options.run.trains or options.run.benchmark or launch.rank != 0:
        return ()
    found = encoder_documents(spec.folder, allow_outside_paths=options.data.allow_outside_paths)
    folder = spec.folder / ENCODERS_FOLDER
    if found or not folder.exists():
        return ()
    return (f"{folder} has no manifest as `prepare` writes it: nothing of it becomes part of the model",)


def lints_labels(options: Options) -> bool:
    """Whether the labels are checked: by a run that trains. One that resumes was checked when it began."""
    run = options.run
    return run.trains and not run.benchmark and not run.restores


def check_labels(options: Options, spec: FeatureSpec) -> tuple[str, ...]:
    """What the label lint says of the training mapping, as warnings. Shows on stderr how far it is.

    Raises:
        DataError: labels from which nothing can be learned, or that cannot be, without --allow_degenerate_labels.
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
    """Prints how far something is, at most every SECONDS_BETWEEN_REPORTS; nothing of what takes less."""
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
    """The map feature where there is one, then what --keep names."""
    group = [spec.map_feature.name] if spec.map_feature and _holds_group(spec, mapping) else []
    names = list(dict.fromkeys([*group, *asked]))
    check_column_names(names, [label.name for label in spec.labels])
    return StoredColumns(spec, mapping, names)


def _there(loader: ParquetLoader | None) -> ParquetLoader:
    if loader is None:
        raise ValueError("this run has no such loader")
    return loader
