"""The flags of main.py, with their defaults, help texts and limits, in one dataclass per topic.

Each field is one flag. Nothing here imports TensorFlow, so mistakes are reported within a second.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from data.command_line import OUTSIDE_PATHS_HELP
from data.errors import DataError
from data.loading.decode import OovPolicy
from data.spec.yaml_reader import read_yaml


def option(default: Any, help_text: str, parse: Callable[[Sequence[str]], Any] | None = None) -> Any:
    """Return the dataclass field of a flag.

    Args:
        default: default value of the flag.
        help_text: description of the flag for --help.
        parse: function that makes the value from the words on the command line; None to follow the field's type.
    """
    return field(default=default, metadata={"help": help_text, "parse": parse})


def at_least(name: str, value: float, least: int) -> None:
    """Raise a DataError if the value is smaller than `least`, infinite or NaN."""
    if not least <= value < math.inf:
        raise DataError(f"--{name} must be at least {least}, got {value}")


def each_at_least(name: str, values: tuple[int, ...], least: int) -> None:
    """Raise a DataError if one of the values is smaller than `least`."""
    for value in values:
        at_least(name, value, least)


def share(name: str, value: float, end: float = 1) -> None:
    """Raise a DataError if the value lies outside of [0, end)."""
    if not 0 <= value < end:
        raise DataError(f"--{name} must lie in [0, {end}), got {value}")


def positive(name: str, value: float) -> None:
    """Raise a DataError unless the value is positive and finite."""
    if not (math.isfinite(value) and value > 0):
        raise DataError(f"--{name} must be a positive number, got {value}")


_UNITS = {"s": 1, "m": 60, "h": 3600}
_INTERVAL = re.compile(r"([0-9]{1,9})([smh]?)")


@dataclass(frozen=True)
class Interval:
    """An interval in steps or in seconds; both 0 means never.

    Attributes:
        steps: number of steps, or 0.
        seconds: duration in seconds, or 0.
    """

    steps: int = 0
    seconds: float = 0.0


def parse_interval(name: str, text: str) -> Interval:
    """Parses "500" (steps), "90s", "10m" or "2h"; "0" means never.

    Args:
        name: name of the flag without dashes, for the error message.
        text: the flag's value.

    Raises:
        DataError: if the text is not an interval; the message names the flag.
    """
    found = _INTERVAL.fullmatch(text)
    if found is None:
        raise DataError(f"--{name} takes a number of steps, or seconds, minutes or hours as 90s, 10m, 2h; got {text!r}")
    number, unit = int(found[1]), found[2]
    return Interval(seconds=number * _UNITS[unit]) if unit else Interval(steps=number)


TIMELINE_VARIABLE = "HOROVOD_TIMELINE"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What the run does: train, evaluate, predict or measure."""

    evaluate: bool = option(False, "evaluate a checkpoint, without training")
    predict: Path | None = option(
        None, "parquet file for a checkpoint's predictions on --eval_mapping, without training; labels are not needed"
    )
    keep: tuple[str, ...] = option((), "columns of the mapping that are copied into the file of predictions")
    benchmark: bool = option(False, "measure throughput (of training, or of evaluation with --evaluate)")
    benchmark_warmup_steps: int = option(500, "steps before the measurement starts")
    benchmark_steps: int = option(1000, "steps in all, warm-up included")
    benchmark_seconds: float | None = option(None, "ends the measurement after so many seconds at the latest")
    use_checkpoint: bool = option(False, "go on from the last checkpoint in model_dir")
    checkpoint: str | None = option(None, "last, best or a path; default: last for going on, else best")
    keep_checkpoints: int = option(2, "newest checkpoints to keep, besides the best")
    checkpoint_every: str = option(
        "10m",
        "save besides after epochs: every so many steps, or seconds, minutes, hours (500, 90s, 10m, 2h); 0: never",
    )
    fingerprint_every: int = option(500, "steps between two comparisons of what the workers hold; 0: at saves only")
    hang_seconds: float | None = option(
        None,
        "end the job when no step has ended for so long; default: 20 times the longest step so far, 300 s at least",
    )
    predictions_file: Path | None = option(None, "parquet file for the predictions of --evaluate")
    disable_map_calculation: bool = option(False, "leave MAP@12 out (it is off by itself without a map feature)")
    num_auc_thresholds: int = option(0, "thresholds of a binned ROC AUC; 0 computes it exactly")
    log_every: int = option(100, "steps between two lines of the log")
    tensorboard_dir: Path | None = option(
        None, "folder for TensorBoard: scalars, histograms of the gates, the graph; of training"
    )
    profile_steps: str | None = option(
        None, "A:B traces these steps of the run with TensorFlow's profiler, into tensorboard_dir, else results_dir"
    )
    horovod_timeline: Path | None = option(None, "file for Horovod's timeline of what several workers exchange")

    def __post_init__(self) -> None:
        """Checks ranges and flags against each other. Raises a DataError if a check fails."""
        for name in ("benchmark_steps", "keep_checkpoints", "log_every"):
            at_least(name, getattr(self, name), 1)
        at_least("benchmark_warmup_steps", self.benchmark_warmup_steps, 0)
        if self.benchmark and self.benchmark_warmup_steps >= self.benchmark_steps:
            raise DataError(
                f"--benchmark_warmup_steps {self.benchmark_warmup_steps} leaves nothing of --benchmark_steps "
                f"{self.benchmark_steps} to measure; make the second larger"
            )
        if self.benchmark_seconds is not None and not self.benchmark_seconds > 0:
            raise DataError(f"--benchmark_seconds must be positive, got {self.benchmark_seconds}")
        if self.num_auc_thresholds < 0 or self.num_auc_thresholds == 1:
            raise DataError(f"--num_auc_thresholds must be 0 (exact) or at least 2, got {self.num_auc_thresholds}")
        if self.checkpoint is not None and self.trains and not self.use_checkpoint:
            raise DataError(
                "--checkpoint says which checkpoint to go on from: add --use_checkpoint, --evaluate or --predict"
            )
        at_least("fingerprint_every", self.fingerprint_every, 0)
        if self.hang_seconds is not None:
            positive("hang_seconds", self.hang_seconds)
        parse_interval("checkpoint_every", self.checkpoint_every)
        self._check_predictions()
        self._check_observation()

    def check_workers(self, workers: int, environ: Mapping[str, str]) -> None:
        """Checks --horovod_timeline against the launcher.

        Args:
            workers: number of workers.
            environ: environment variables of the process.

        Raises:
            DataError: there is only one worker, which writes no timeline, or the launcher has set another path.
        """
        file, announced = self.horovod_timeline, environ.get(TIMELINE_VARIABLE)
        if file is None:
            return
        if workers == 1:
            raise DataError("--horovod_timeline is of several workers, and this is one; start it with horovodrun -np N")
        if announced is not None and announced != str(file):
            raise DataError(
                f"--horovod_timeline {file} contradicts {TIMELINE_VARIABLE}={announced} of the environment (horovodrun "
                "--timeline-filename sets it); leave one of them out"
            )

    @property
    def profiled_steps(self) -> range:
        """The steps to profile, counted from 1 over the whole run; empty without --profile_steps."""
        return range(0) if self.profile_steps is None else _parse_steps(self.profile_steps)

    @property
    def save_interval(self) -> Interval:
        """The interval between saves within an epoch."""
        return parse_interval("checkpoint_every", self.checkpoint_every)

    @property
    def trains(self) -> bool:
        """Whether the run trains weights, including a benchmark of training."""
        return not self.evaluate and self.predict is None

    @property
    def restores(self) -> bool:
        """Whether the run restores a checkpoint."""
        return not self.benchmark and (self.use_checkpoint or not self.trains)

    @property
    def which_checkpoint(self) -> str:
        """The checkpoint to restore: --checkpoint, or by default the last one to train and the best one otherwise."""
        return self.checkpoint or ("last" if self.trains else "best")

    @property
    def predictions_path(self) -> Path | None:
        """The predictions file of --predict or --evaluate; None if the run writes none."""
        return self.predict or self.predictions_file

    def _check_predictions(self) -> None:
        if self.predict is not None and (self.evaluate or self.benchmark):
            raise DataError(
                "--predict computes no metrics and measures nothing: take --evaluate and --benchmark away "
                "(--evaluate --predictions_file FILE gives metrics and predictions)"
            )
        if self.predictions_file is not None and (self.benchmark or not self.evaluate):
            raise DataError("--predictions_file is written by --evaluate: add --evaluate (without --benchmark)")
        if self.keep and self.predictions_path is None:
            raise DataError(
                "--keep copies columns into a file of predictions: add --predict FILE, or --evaluate with "
                "--predictions_file FILE"
            )

    def _check_observation(self) -> None:
        wants = [name for name in ("tensorboard_dir", "profile_steps") if getattr(self, name) is not None]
        if wants and (self.benchmark or not self.trains):
            raise DataError(
                f"--{wants[0]} shows a training, and this run trains no model: take it away, or --evaluate, --predict "
                "and --benchmark"
            )
        if self.profile_steps is not None:
            _parse_steps(self.profile_steps)


def _parse_steps(text: str) -> range:
    first, _, last = text.partition(":")
    if not (_is_step(first) and _is_step(last) and 1 <= int(first) <= int(last)):
        raise DataError(
            f"--profile_steps {text!r}: expected A:B, the first and the last step, counted from 1, such as 100:110"
        )
    return range(int(first), int(last) + 1)


def _is_step(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 15


Units = tuple[int, ...]


def read_tower_units(words: Sequence[str]) -> Units | dict[str, Units]:
    """Parse tower units: numbers such as `64 32`, or the path of a YAML file with a list of units per label.

    Raises:
        DataError: the words are neither, or the file contains anything else.
    """
    if len(words) == 1 and words[0].endswith((".yaml", ".yml")):
        document = read_yaml(Path(words[0]))
        if not isinstance(document, dict) or not all(_is_units(units) for units in document.values()):
            raise DataError(f"{words[0]}: expected a list of whole numbers per label, as in `click: [64, 32]`")
        return {str(label): tuple(units) for label, units in document.items()}
    if not all(word.isdecimal() for word in words):
        raise DataError(f"--tower_hidden_units takes whole numbers, or one YAML file, got {' '.join(words)}")
    return tuple(int(word) for word in words)


def _is_units(value: Any) -> bool:
    return isinstance(value, list) and all(type(unit) is int for unit in value)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What is trained."""

    model: str = option("wide_deep", "architecture")
    deep_hidden_units: Units = option((1024,) * 5, "units of each hidden layer of wide_deep")
    deep_dropout: float = option(0.1, "share of hidden units that is dropped in training")
    batch_norm: bool = option(False, "normalise hidden layers by the moments of the global batch")
    activation: Literal["relu", "gelu", "silu", "tanh"] = option("relu", "of all hidden layers")
    combiner: Literal["sum", "mean"] = option("sum", "pooling of multi-hot embeddings in the deep part")
    embedding_init_std: float | None = option(
        None, "deviation of the normal start of the deep tables; default: Glorot's, by the table's shape"
    )
    wide_part: bool = option(False, "give every task of a multi-task model a wide part, as wide_deep has it")
    expert_hidden_units: Units = option((256, 128), "units of each layer of an expert, or the shared bottom")
    tower_hidden_units: Units | dict[str, Units] = option(
        (64,),
        "units of each hidden layer of a task's tower; or a YAML file with a list of units per label",
        parse=read_tower_units,
    )
    gate_hidden_units: Units = option((), "units of each hidden layer of a gate; none makes gates linear")
    num_experts: int = option(8, "experts of omoe and mmoe")
    num_task_experts: int = option(2, "experts of each task's own, per level of cgc and ple")
    num_shared_experts: int = option(2, "shared experts per level of cgc and ple")
    ple_levels: int = option(2, "levels of ple")
    gate_init: Literal["random", "uniform"] = option("random", "start of the gates; uniform weighs all experts equally")
    gate_temperature: float = option(1.0, "divides the gates' logits; above 1 flattens the weights")
    gate_entropy_weight: float = option(
        0.0, "rewards the entropy of the gates in training, against gates that lean on one expert; try 0.001 to 0.003"
    )
    expert_dropout: float = option(0.0, "share of gate weights that is dropped in training, likewise; try 0.1")
    calibrator_weight: float = option(0.6, "of aitm's penalty on a task that is likelier than the one before it")

    def __post_init__(self) -> None:
        """Checks the ranges of all values. Raises a DataError if one is out of range."""
        for name in ("deep_hidden_units", "expert_hidden_units", "gate_hidden_units"):
            each_at_least(name, getattr(self, name), 1)
        towers = self.tower_hidden_units
        for units in towers.values() if isinstance(towers, dict) else [towers]:
            each_at_least("tower_hidden_units", units, 1)
        for name in ("num_experts", "num_task_experts", "ple_levels"):
            at_least(name, getattr(self, name), 1)
        at_least("num_shared_experts", self.num_shared_experts, 0)
        positive("gate_temperature", self.gate_temperature)
        if self.embedding_init_std is not None:
            positive("embedding_init_std", self.embedding_init_std)
        for name in ("gate_entropy_weight", "calibrator_weight"):
            at_least(name, getattr(self, name), 0)
        for name in ("deep_hidden_units", "expert_hidden_units"):
            if not getattr(self, name):
                raise DataError(f"--{name} needs at least one layer")
        for name in ("deep_dropout", "expert_dropout"):
            share(name, getattr(self, name), end=0.99)

    def tower_units(self, task: str) -> Units:
        """Returns the units of the hidden layers of a task's tower."""
        towers = self.tower_hidden_units
        return towers[task] if isinstance(towers, dict) else towers

    def check_towers(self, labels: Sequence[str]) -> None:
        """Raises a DataError if towers are given per label, but not for exactly these labels."""
        towers = self.tower_hidden_units
        if isinstance(towers, dict) and set(towers) != set(labels):
            raise DataError(
                f"--tower_hidden_units has towers for {', '.join(towers)}, and the labels are {', '.join(labels)}"
            )


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where the data is and where results go."""

    dataset_path: Path = option(None, "dataset folder, the base of the paths in the feature specification")
    fspec_file: str = option("feature_spec.yaml", "feature specification, relative to dataset_path")
    allow_outside_paths: bool = option(False, OUTSIDE_PATHS_HELP)
    embedding_sizes_file: Path | None = option(
        None,
        "JSON dictionary of embedding widths; default: embedding_dim in the specification, then embedding_sizes.json "
        "beside it, then min(256, round(1.6 * cardinality ** 0.56))",
    )
    train_mapping: str = option("train", "mapping of source_spec to train on")
    allow_degenerate_labels: bool = option(
        False, "train although the label lint refuses the training mapping (docs/tasks.md): warn instead"
    )
    eval_mapping: str | None = option(
        None, "mapping to evaluate; default: valid where there is one while training, else test"
    )
    oov_policy: OovPolicy = option(
        "error",
        "what is done with ids outside [0, cardinality); clip: the nearest valid id; drop: the row weighs 0",
    )
    model_dir: Path = option(None, "folder of the checkpoints and of the model")
    results_dir: Path = option(None, "folder of log.json, args.json and metrics.json")
    log_filename: str = option("log.json", "name of the log in results_dir")


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How it is trained."""

    global_batch_size: int = option(131_072, "samples per step, summed over all workers")
    eval_batch_size: int = option(131_072, "samples per evaluation step, summed over all workers")
    num_epochs: int = option(20, "passes over the training data")
    linear_learning_rate: float = option(0.02, "rate of the wide part (FTRL)")
    optimizer: Literal["auto", "rmsprop", "adam", "adamw", "adagrad", "sgd"] = option(
        "auto", "of the deep part; auto: rmsprop for wide_deep, adam for the others"
    )
    deep_learning_rate: float | None = option(
        None, "base rate of the deep part; default: 0.00012 for wide_deep, 0.001 for the others"
    )
    deep_schedule: Literal["auto", "steps", "constant"] = option(
        "auto",
        "deep rate after the warm-up; steps: a quarter of the base, an eighth from the middle of what is left; auto: "
        "steps for wide_deep, constant for the others",
    )
    deep_warmup_epochs: float | None = option(
        None, "epochs over which the deep rate rises to its base; default: 3/10 of the epochs under steps, else 0"
    )
    weight_decay: float = option(0.004, "decay of adamw; on tables it acts on the rows that a batch touches")
    l2_reg_linear: float = option(0.0, "adds this times the sum of squares to the loss: of the wide part's weights")
    l2_reg_embedding: float = option(
        0.0, "likewise of the deep tables' rows; both act on the rows that a batch touches"
    )
    l2_reg_dnn: float = option(0.0, "likewise of the kernels of all dense layers")
    loss_weighting: Literal["static", "uncertainty", "gradnorm", "dwa", "rlw", "pcgrad"] = option(
        "static", "how losses of several tasks become one; static: the specification's loss_weight"
    )
    gradnorm_alpha: float = option(1.5, "of gradnorm: how strongly tasks that learn slowly are favoured")
    early_stopping_metric: str | None = option(
        None,
        "logged key that decides which checkpoint is the best, and when to stop; default: streaming_map_val, else "
        "auc_roc, else rmse (for several tasks their KEY/mean)",
    )
    early_stopping_patience: int | None = option(
        None, "stop after so many epochs in which the metric did not become better; default: never"
    )
    cpu: bool = option(False, "compute on the CPU; the default where no GPU is visible")
    amp: bool = option(False, "mixed precision")
    amp_dtype: Literal["auto", "float16", "bfloat16"] = option(
        "auto", "compute type under --amp; auto: float16 with dynamic loss scaling on GPUs, bfloat16 on CPUs"
    )
    shard_embeddings: bool = option(
        False, "deal the rows of large embedding tables to the workers; by default every worker holds all of them"
    )
    table_exchange: Literal["auto", "whole", "rows"] = option(
        "auto",
        "how workers sum the gradients of embedding tables that are not sharded: whole tables, the rows that a batch "
        "touches, or whichever is cheaper for a table",
    )
    fp16_allreduce: bool = option(
        False, "send the gradients of dense weights, and of tables that are summed whole, in float16"
    )
    xla: bool = option(False, "compile with XLA: forward and backward pass on a GPU, dropout on a CPU")
    seed: int = option(0, "seed of weights, sample order and dropout")
    deterministic: bool = option(False, "deterministic kernels: equal runs give equal weights to the bit")
    affinity: Literal["all", "single", "single_unique", "unique_interleaved", "unique_contiguous", "disabled"] = option(
        "unique_interleaved", "CPU cores that each local worker is bound to"
    )

    def __post_init__(self) -> None:
        """Checks ranges and flags against each other. Raises a DataError if a check fails."""
        for name in ("global_batch_size", "eval_batch_size", "num_epochs"):
            at_least(name, getattr(self, name), 1)
        for name in ("linear_learning_rate", "deep_learning_rate"):
            if getattr(self, name) is not None:
                positive(name, getattr(self, name))
        if self.early_stopping_patience is not None:
            at_least("early_stopping_patience", self.early_stopping_patience, 1)
        for name in ("l2_reg_linear", "l2_reg_embedding", "l2_reg_dnn", "gradnorm_alpha"):
            at_least(name, getattr(self, name), 0)
        share("weight_decay", self.weight_decay)
        warmup = self.deep_warmup_epochs
        if warmup is not None and not 0 <= warmup <= self.num_epochs:
            raise DataError(f"--deep_warmup_epochs must lie between 0 and --num_epochs {self.num_epochs}, got {warmup}")
        if not 0 <= self.seed < 2**31:
            raise DataError(f"--seed must lie in [0, 2**31), got {self.seed}")
        if self.amp_dtype != "auto" and not self.amp:
            raise DataError(f"--amp_dtype {self.amp_dtype} does nothing without --amp: add --amp")


@dataclass(frozen=True, kw_only=True)
class DeepOptimizer:
    """The optimizer settings of the deep part.

    Attributes:
        rule: update rule: rmsprop, adam, adamw, adagrad or sgd.
        rate: base learning rate.
        schedule: learning rate schedule after the warm-up: steps or constant.
        warmup_epochs: number of epochs over which the learning rate rises to its base.
        weight_decay: decoupled weight decay of adamw; 0 for other rules.
    """

    rule: str
    rate: float
    schedule: str
    warmup_epochs: float
    weight_decay: float


@dataclass(frozen=True, kw_only=True)
class Options:
    """The resolved configuration of a run.

    Attributes:
        data: flags of the dataset and the output folders.
        model: flags of the model.
        training: flags of the optimization.
        run: flags that select what the run does.
    """

    data: DataOptions
    model: ModelOptions
    training: TrainingOptions
    run: RunOptions

    @property
    def deep_optimizer(self) -> DeepOptimizer:
        """The optimizer settings of the deep part, with defaults resolved."""
        # wide_deep keeps the settings of the published recipe.
        training, published = self.training, self.model.model == "wide_deep"
        schedule = training.deep_schedule
        if schedule == "auto":
            schedule = "steps" if published else "constant"
        default_warmup = 0.3 * training.num_epochs if schedule == "steps" else 0.0
        default_rule = "rmsprop" if published else "adam"
        rule = default_rule if training.optimizer == "auto" else training.optimizer
        return DeepOptimizer(
            rule=rule,
            rate=training.deep_learning_rate or (0.00012 if published else 0.001),
            schedule=schedule,
            warmup_epochs=default_warmup if training.deep_warmup_epochs is None else training.deep_warmup_epochs,
            weight_decay=training.weight_decay if rule == "adamw" else 0.0,
        )

    def as_dict(self) -> dict[str, Any]:
        """Returns all flags by name as JSON values, with defaults that depend on other flags resolved."""
        groups = (self.data, self.model, self.training, self.run)
        flat = {item.name: getattr(group, item.name) for group in groups for item in fields(group)}
        deep = self.deep_optimizer
        flat |= {"optimizer": deep.rule, "deep_learning_rate": deep.rate, "deep_schedule": deep.schedule}
        flat["deep_warmup_epochs"] = deep.warmup_epochs
        return {name: _plain(value) for name, value in flat.items()}


GROUPS: dict[str, type] = {
    "data": DataOptions,
    "model": ModelOptions,
    "training": TrainingOptions,
    "run": RunOptions,
}


def default_of(item: Any) -> Any:
    """Return the default value of a dataclass field, or None if it has none."""
    return None if item.default is MISSING else item.default


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
