"""The flags of main.py: one dataclass field per flag, with its default, help text and limits.

`Options` is the configuration of a run, made of a section per topic. Flags of one model are in the model's file,
trainer/models/NAME.py. Nothing here imports TensorFlow, so mistakes are reported within a second.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_type_hints

from data.command_line import OUTSIDE_PATHS_HELP
from data.errors import DataError
from data.loading.decode import OovPolicy
from data.spec.score import FormulaError, parse_formula
from data.storage.remote import url_of
from data.storage.typed_json import read_typed
from trainer.layout import InputSchema

Units = tuple[int, ...]


def option(
    default: Any,
    help_text: str,
    *,
    at_least: float | None = None,
    below: float | None = None,
    positive: bool = False,
    required: bool = False,
    parse: Callable[[Sequence[str]], Any] | None = None,
    bare: str | bool | None = None,
    urls: Literal["mirrored", "rejected"] | None = None,
) -> Any:
    """Return the dataclass field of a flag. Limits hold for every number in a value; None is always allowed.

    Args:
        default: default value of the flag.
        help_text: description of the flag for --help.
        at_least: smallest value.
        below: upper limit, which the value must stay below.
        positive: whether the value must be above 0.
        required: whether a tuple must have an element.
        parse: function that makes the value from the words on the command line; None to follow the field's type.
        bare: value of the flag when it is given without one; None if it needs a value. A boolean flag takes a value
            (on or off) only with this.
        urls: what the command line does with a URL: its local mirror takes its place, or it is an error.
    """
    limits = {"at_least": at_least, "below": below, "positive": positive, "required": required}
    return field(default=default, metadata={"help": help_text, "parse": parse, "bare": bare, "urls": urls, **limits})


class Flag(NamedTuple):
    """A flag of a section.

    Attributes:
        field: the dataclass field that `option` returns.
        type: type of its values.
    """

    field: Field[Any]
    type: Any

    def read(self, value: Any) -> Any:
        """Convert a value from Python or JSON to the flag's type: lists to tuples, whole numbers to floats.

        Raises:
            DataError: the value has another type.
        """
        try:
            return read_typed(self.type, value, f"--{self.field.name}")
        except ValueError as error:
            raise DataError(str(error)) from error

    def check(self, value: Any) -> None:
        """Check a value against the flag's limits. Raise a DataError that names the flag."""
        name, limits = self.field.name, self.field.metadata
        if isinstance(value, dict | tuple):
            if not value and limits["required"]:
                raise DataError(f"--{name} needs at least one layer")
            for item in value.values() if isinstance(value, dict) else value:
                self.check(item)
        elif isinstance(value, int | float):
            low, high = limits["at_least"], limits["below"]
            # Comparisons are written so that NaN fails them.
            if limits["positive"] and not 0 < value < math.inf:
                raise DataError(f"--{name} must be a positive number, got {value}")
            if high is not None and not low <= value < high:
                raise DataError(f"--{name} must be in [{low}, {high}), got {value}")
            if low is not None and not low <= value < math.inf:
                raise DataError(f"--{name} must be at least {low}, got {value}")


def section_flags(section: "type[Section]") -> dict[str, Flag]:
    """Return the flags of a section by name, in their order in the help."""
    hints = get_type_hints(section)
    return {item.name: Flag(item, hints[item.name]) for item in fields(section)}


@dataclass(frozen=True, kw_only=True)
class Section:
    """Base class of a group of flags, which checks every value against its limits."""

    def __post_init__(self) -> None:
        """Check all values. Raise a DataError if one is out of range or contradicts another."""
        for name, flag in section_flags(type(self)).items():
            flag.check(getattr(self, name))
        self.check()

    def check(self) -> None:
        """Check what the limits of single flags do not cover. Raise a DataError that names the flags."""


@dataclass(frozen=True, kw_only=True)
class DataOptions(Section):
    """Where the data is and where results go."""

    dataset_path: Path = option(
        None,
        "dataset folder, the base of the paths in the feature specification; or its URL (s3://, gs://, hdfs://)",
        urls="mirrored",
    )
    cache_dir: Path | None = option(
        None,
        "folder for copies of remote files; default: $RECIPE_CACHE_DIR, else ~/.cache/recommender",
        urls="rejected",
    )
    cache_limit: str | None = option(
        None,
        "disk that downloaded row groups may take on a host, in bytes or such as 500MiB; default: $RECIPE_CACHE_LIMIT, "
        "else 20GiB or half of what is free",
    )
    fspec_file: str = option("feature_spec.yaml", "feature specification, relative to dataset_path")
    allow_outside_paths: bool = option(False, OUTSIDE_PATHS_HELP)
    embedding_sizes_file: Path | None = option(
        None,
        "JSON dictionary of embedding widths; default: embedding_dim in the specification, then embedding_sizes.json "
        "beside it, then min(256, round(1.6 * cardinality ** 0.56))",
        urls="rejected",
    )
    train_mapping: str = option("train", "mapping of source_spec to train on")
    allow_degenerate_labels: bool = option(
        False, "train although the label checks reject the training mapping (docs/tasks.md): warn instead"
    )
    eval_mapping: str | None = option(
        None, "mapping to evaluate; default: valid where there is one while training, else test"
    )
    oov_policy: Literal["auto", OovPolicy] = option(
        "auto",
        "what is done with ids outside [0, cardinality); unseen: the feature's unseen_id, an error if it has none; "
        "clip: the nearest valid id; drop: the row weighs 0; auto: error in training, unseen in evaluation and "
        "prediction",
    )
    model_dir: Path = option(
        None, "folder of the checkpoints and of the model, or its URL in an object store", urls="mirrored"
    )
    results_dir: Path = option(None, "folder of log.json, args.json and metrics.json", urls="rejected")
    log_filename: str = option("log.json", "name of the log in results_dir")

    def oov_policy_of(self, *, trains: bool) -> OovPolicy:
        """Return --oov_policy for a mapping that is trained on, or for one that is evaluated or predicted."""
        if self.oov_policy == "auto":
            return "error" if trains else "unseen"
        return self.oov_policy


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Section):
    """What is trained.

    These are the flags that all models share. A model with more flags subclasses this in its own file.

    Attributes:
        default_rule, default_rate, default_schedule: settings of the deep part's optimizer unless flags set them.
    """

    default_rule: ClassVar[str] = "adam"
    default_rate: ClassVar[float] = 0.001
    default_schedule: ClassVar[str] = "constant"

    model: str = option("wide_deep", "architecture")
    deep_dropout: float = option(0.1, "share of hidden units that is dropped in training", at_least=0, below=0.99)
    batch_norm: bool = option(
        False, "normalize hidden layers by the moments of the global batch: on (also without a value) or off", bare=True
    )
    activation: Literal["relu", "gelu", "silu", "tanh"] = option("relu", "of all hidden layers")
    combiner: Literal["sum", "mean"] = option("sum", "pooling of multi-hot embeddings in the deep part")
    embedding_init_std: float | None = option(
        None,
        "standard deviation of the initial values of the deep tables; default: Glorot's, by the table's shape",
        positive=True,
    )
    numerical_scale: float = option(
        1.0, "factor of the numbers and vectors that enter the deep part beside the embeddings", positive=True
    )
    wide_part: bool = option(False, "give every task of a multi-task model a wide part, as wide_deep has it")
    interaction: Literal["none", "cross", "dot", "fm"] = option(
        "none",
        "between the embeddings and the network; cross: cross layers, as in DCN-V2; dot: dot products of all pairs of "
        "features, as in DLRM; fm: their sum as a term of the logits, as in DeepFM",
    )
    cross_layers: int = option(3, "layers of --interaction cross", at_least=1)
    cross_rank: int = option(0, "rank of the matrices of --interaction cross; 0 for full matrices", at_least=0)
    numerical_hidden_units: Units = option(
        (), "units of each hidden layer that makes a vector of the numbers under --interaction dot", at_least=1
    )
    attention_hidden_units: Units = option(
        (64, 32),
        "units of each hidden layer that weighs the steps of a sequence with `encoder: din`",
        at_least=1,
        required=True,
    )
    training_only_hidden_units: Units = option(
        (16,), "units of each hidden layer of the tower of features with `serve`", at_least=1
    )
    training_only_embedding_dim: int = option(8, "width of the embeddings in that tower", at_least=1)
    training_only_dropout: float = option(
        0.1,
        "share of the training rows in which that tower sees the values of `serve` instead of the logged ones",
        at_least=0,
        below=1,
    )
    attention_heads: int = option(4, "heads of a sequence with `encoder: self_attention`", at_least=1)
    vector_norm: Literal["layer", "none"] = option(
        "layer", "layer: normalize each vector by the mean and variance of its numbers"
    )
    vector_units: int = option(0, "units that each vector is projected to; 0 to take it as it is", at_least=0)

    @property
    def has_wide_part(self) -> bool:
        """Whether every task has a wide part, a linear model of all features."""
        return self.wide_part

    def check_labels(self, labels: Sequence[str]) -> None:
        """Raise a DataError if the flags do not fit a dataset with these labels."""

    def check_layout(self, layout: InputSchema) -> None:
        """Raise a DataError if the model would not use a feature, or has no input."""
        only = [feature.name for feature in layout.categorical if feature.wide == "only"]
        if only and not self.has_wide_part:
            raise DataError(
                f"{', '.join(only)}: `wide: only`, and --model {self.model} has no wide part; pass --wide_part, or "
                "write `wide: too`"
            )
        if not self.input_width(layout):
            raise DataError("the deep part has no input; a feature without `wide: only` is needed")
        if self.interaction in ("dot", "fm") and not layout.deep:
            raise DataError(f"--interaction {self.interaction} needs categorical features, and there are none")

    def input_width(self, layout: InputSchema) -> int:
        """Return the width of the interaction's input: embeddings, numbers and vectors, concatenated."""
        return layout.width + sum(self.vector_units or dimension for dimension in layout.vector_dimensions)

    def vector_weights(self, layout: InputSchema) -> int:
        """Return the number of weights that project vectors."""
        return self.vector_units * sum(layout.vector_dimensions)

    def network_width(self, layout: InputSchema) -> int:
        """Return the width of the network's input."""
        if self.interaction != "dot":
            return self.input_width(layout)
        numbers = layout.has_numbers
        vectors = len(layout.deep) + numbers
        return numbers * layout.widest + vectors * (vectors - 1) // 2

    def dense_weights(self, inputs: int, outputs: Mapping[str, int]) -> int:
        """Return a lower bound on the number of weights in dense kernels, to estimate memory before building them.

        Args:
            inputs: width of the network's input, see `network_width`.
            outputs: number of logits of each task.
        """
        return 0

    def kept_values(self, outputs: Mapping[str, int]) -> tuple[int, ...]:
        """Return how many values of a row each layer keeps for the backward pass, likewise to estimate memory.

        Args:
            outputs: number of logits of each task.
        """
        return ()


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Section):
    """How it is trained."""

    recipe: Literal["auto", "published"] = option(
        "auto",
        "defaults of the flags that are not given; auto: chosen by the data, as the run prints; published: those of "
        "the public recipe, made for 60 million rows",
    )
    global_batch_size: int = option(131_072, "samples per step, summed over all workers", at_least=1)
    eval_batch_size: int = option(131_072, "samples per evaluation step, summed over all workers", at_least=1)
    num_epochs: int = option(20, "passes over the training data", at_least=1)
    linear_learning_rate: float = option(0.02, "rate of the wide part (FTRL)", positive=True)
    optimizer: str = option("auto", "of the deep part; auto: rmsprop for wide_deep, adam for the others")
    deep_learning_rate: float | None = option(
        None, "base rate of the deep part; default: 0.00012 for wide_deep, 0.001 for the others", positive=True
    )
    deep_schedule: Literal["auto", "steps", "constant", "plateau", "cosine", "exponential"] = option(
        "auto",
        "deep rate after the warm-up; steps: a quarter of the base, an eighth from the middle of what is left; "
        "plateau: a tenth after each epoch that does not improve --early_stopping_metric; cosine, exponential: down to "
        "a hundredth at the end of the run; auto: steps for wide_deep, constant for the others",
    )
    deep_warmup_epochs: float | None = option(
        None, "epochs over which the deep rate rises to its base; default: 3/10 of the epochs under steps, else 0"
    )
    weight_decay: float = option(
        0.004, "decay of adamw per step, of all weights and table rows, as a factor of the learning rate", at_least=0
    )
    l2_reg_linear: float = option(
        0.0, "L2 regularization of the wide part: this times the sum of squares, once for the whole run", at_least=0
    )
    l2_reg_embedding: float = option(
        0.0, "adds this times the sum of squares to the loss of every step: of all rows of the deep tables", at_least=0
    )
    l2_reg_dnn: float = option(0.0, "likewise of the kernels of all dense layers", at_least=0)
    output_bias: Literal["zero", "base_rate"] = option(
        "zero",
        "start of the last layer's biases; base_rate: the constant prediction that fits the training labels best, such "
        "as the share of positive rows",
    )
    clip_norm: float | None = option(
        None,
        "scale the gradients of a step down to this norm, over all weights and table rows together; default: no limit",
        positive=True,
    )
    ema_momentum: float = option(
        0.0,
        "evaluate and write exponential moving averages of the weights, of which this share stays in every step, such "
        "as 0.999; 0: the weights themselves",
        at_least=0,
        below=1,
    )
    loss_weighting: str = option(
        "static", "how losses of several tasks become one; static: the specification's loss_weight"
    )
    negatives: Literal["weights", "logit"] = option(
        "weights",
        "what calibrates probabilities after keep_negatives: the weights of the kept negatives, or, without these "
        "weights, a shift of the logit by log(share kept) in every output",
    )
    correct_positive_weight: bool = option(
        False, "shift the logit by -log(positive_weight) in every output, for labels that have a positive_weight"
    )
    calibrate: Literal["platt", "isotonic"] | None = option(
        None,
        "after training, fit a calibrator of each binary label's probability on the mapping valid, with the best "
        "checkpoint; every output goes through it",
    )
    score: str | None = option(
        None,
        "formula of labels and numerical features, such as 'click * buy ** 0.5 * price', that adds the output `score` "
        "to predictions and exports; default: that of the checkpoint, else of the specification",
    )
    gradnorm_alpha: float = option(1.5, "of gradnorm: how strongly tasks that learn slowly are favoured", at_least=0)
    early_stopping_metric: str | None = option(
        None,
        "logged key that decides which checkpoint is the best, and when to stop; default under --recipe auto: "
        "loss_val; under published: streaming_map_val if it is computed, else auc_roc, else rmse (for several tasks "
        "their KEY/mean)",
    )
    early_stopping_patience: int | None = option(
        None, "stop after so many epochs without an improvement of the metric; default: never", at_least=1
    )
    cpu: bool = option(False, "compute on the CPU; the default where no GPU is visible")
    amp: bool = option(False, "mixed precision")
    amp_dtype: Literal["auto", "float16", "bfloat16"] = option(
        "auto", "compute type under --amp; auto: float16 with dynamic loss scaling on GPUs, bfloat16 on CPUs"
    )
    unseen_share: float = option(
        0.01,
        "share of a feature's ids that training replaces by those of unseen values and of null, if the specification "
        "states these and the training data has none of them; 0: none",
        at_least=0,
        below=1,
    )
    shard_embeddings: Literal["auto", "on", "off"] = option(
        "auto",
        "shard the rows of large embedding tables over the workers: on (also without a value), off, or auto: where "
        "training is expected to be faster with shards, or a worker cannot hold all rows",
        bare="on",
    )
    table_placement: Literal["auto", "device", "host"] = option(
        "auto",
        "memory of large embedding tables; device: where steps are computed; host: the host's, with a cache of "
        "frequent rows on the device; auto: the device's while they fit, and the host's for the largest that do not",
    )
    table_exchange: Literal["auto", "whole", "rows"] = option(
        "auto",
        "how workers sum the gradients of embedding tables that are not sharded: whole tables, the rows that a batch "
        "touches, or whichever is cheaper for a table",
    )
    fp16_allreduce: bool = option(
        False, "send the gradients of dense weights, and of tables that are summed whole, in float16"
    )
    xla: bool = option(False, "compile with XLA: passes and dense updates on a GPU, dropout on a CPU")
    seed: int = option(0, "seed of weights, sample order and dropout", at_least=0, below=2**31)
    deterministic: bool = option(False, "deterministic kernels: identical runs give bit-identical weights")
    affinity: Literal["all", "single", "single_unique", "unique_interleaved", "unique_contiguous", "disabled"] = option(
        "unique_interleaved", "CPU cores that each local worker is bound to"
    )

    def check(self) -> None:
        """Check flags against each other. Raise a DataError if a check fails."""
        warmup = self.deep_warmup_epochs
        if warmup is not None and not 0 <= warmup <= self.num_epochs:
            raise DataError(f"--deep_warmup_epochs must be between 0 and --num_epochs {self.num_epochs}, got {warmup}")
        if self.amp_dtype != "auto" and not self.amp:
            raise DataError(f"--amp_dtype {self.amp_dtype} has no effect without --amp: add --amp")
        if self.score is not None:
            try:
                parse_formula(self.score)
            except FormulaError as error:
                raise DataError(f"--score: {error}") from error


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
    """Parse "500" (steps), "90s", "10m" or "2h"; "0" means never.

    Args:
        name: name of the flag without dashes, for the error message.
        text: the flag's value.

    Raises:
        DataError: if the text is not an interval; the message names the flag.
    """
    found = _INTERVAL.fullmatch(text)
    if found is None:
        raise DataError(f"--{name} expects a number of steps, or a time such as 90s, 10m or 2h; got {text!r}")
    number, unit = int(found[1]), found[2]
    return Interval(seconds=number * _UNITS[unit]) if unit else Interval(steps=number)


TIMELINE_VARIABLE = "HOROVOD_TIMELINE"


@dataclass(frozen=True, kw_only=True)
class RunOptions(Section):
    """What the run does: train, evaluate, predict or measure."""

    evaluate: bool = option(False, "evaluate a checkpoint, without training")
    predict: Path | None = option(
        None,
        "file for a checkpoint's predictions on --eval_mapping or --raw, without training: CSV if named .csv, else "
        "parquet; labels are not needed; or its URL in an object store",
        urls="mirrored",
    )
    raw: tuple[Path, ...] = option(
        (),
        "raw files to predict instead of --dataset_path, or their URLs, in the form of those that preprocess.py has "
        "read for the training data",
        urls="mirrored",
    )
    keep: tuple[str, ...] = option(
        (), "columns of the mapping, or of the raw files, that are copied into the file of predictions"
    )
    importance: Path | None = option(
        None,
        "JSON file for the permutation importance of every feature on --eval_mapping, measured with a checkpoint, "
        "without training",
        urls="rejected",
    )
    importance_rows: int = option(
        200_000, "rows of the mapping that --importance measures on at most, and holds in memory", at_least=2
    )
    benchmark: bool = option(False, "measure throughput (of training, or of evaluation with --evaluate)")
    benchmark_warmup_steps: int = option(500, "steps before the measurement starts", at_least=0)
    benchmark_steps: int = option(1000, "steps in all, warm-up included", at_least=1)
    benchmark_seconds: float | None = option(
        None, "ends the measurement after so many seconds at the latest", positive=True
    )
    use_checkpoint: bool = option(False, "resume from the last checkpoint in model_dir")
    checkpoint: str | None = option(
        None, "last, best, a path or a URL; default: last for resuming, else best", urls="mirrored"
    )
    warm_start: Path | None = option(
        None,
        "earlier run (its --model_dir), or model folder, whose weights and optimizer state a new run on other data "
        "starts from; ignored once --use_checkpoint finds a checkpoint",
        urls="mirrored",
    )
    warm_start_checkpoint: str | None = option(
        None,
        "checkpoint of the run that --warm_start names: last, best, a path or a URL; default: last",
        urls="mirrored",
    )
    keep_checkpoints: int = option(2, "newest checkpoints, and newest full ones, to keep besides the best", at_least=1)
    checkpoint_every: str = option(
        "10m",
        "save during epochs too: every so many steps, or seconds, minutes, hours (500, 90s, 10m, 2h); 0: never",
    )
    full_checkpoint_every: int = option(
        6,
        "write one in so many checkpoints during an epoch in full; the others hold of large tables only the rows that "
        "training has looked up since the last full one",
        at_least=1,
    )
    fingerprint_every: int = option(
        500, "steps between two comparisons of what the workers hold; 0: at saves only", at_least=0
    )
    hang_seconds: float | None = option(
        None,
        "end the job when no step has ended for so long; default: 20 times the longest step so far, 300 s at least",
        positive=True,
    )
    predictions_file: Path | None = option(
        None, "file or URL for the predictions of --evaluate, CSV or parquet likewise", urls="mirrored"
    )
    disable_map_calculation: bool = option(False, "leave MAP@12 out (it is off by itself without a map feature)")
    num_auc_thresholds: int = option(0, "thresholds of a binned ROC AUC; 0 computes it exactly")
    ranking_metrics: tuple[str, ...] = option(
        (),
        "further metrics within the groups of the map feature, such as ndcg@10 recall@20 mrr@10 hit_rate@5 map@20",
    )
    score_label: str | None = option(
        None,
        "binary label that metrics within groups measure the score by, in the evaluation; default: the first one",
    )
    slice: tuple[str, ...] = option(
        (), "columns of the evaluated mapping: all metrics are also computed for the rows of each value of a column"
    )
    slice_values: int = option(
        20, "values of a column of --slice that get metrics of their own, the most frequent ones", at_least=1
    )
    log_every: int = option(100, "steps between two lines of the log", at_least=1)
    tensorboard_dir: Path | None = option(
        None, "folder for TensorBoard: scalars, histograms of the gates, the graph; of training", urls="rejected"
    )
    mlflow: str | None = option(
        None, "MLflow experiment that receives the flags and the numbers of training; needs the package mlflow"
    )
    wandb: str | None = option(None, "Weights & Biases project that receives them likewise; needs the package wandb")
    profile_steps: str | None = option(
        None, "A:B traces these steps of the run with TensorFlow's profiler, into tensorboard_dir, else results_dir"
    )
    horovod_timeline: Path | None = option(
        None, "file for Horovod's timeline of what several workers exchange", urls="rejected"
    )

    def check(self) -> None:
        """Check flags against each other. Raise a DataError if a check fails."""
        if self.benchmark and self.benchmark_warmup_steps >= self.benchmark_steps:
            raise DataError(
                f"--benchmark_warmup_steps {self.benchmark_warmup_steps} leaves no steps of --benchmark_steps "
                f"{self.benchmark_steps} to measure; raise --benchmark_steps"
            )
        if self.num_auc_thresholds < 0 or self.num_auc_thresholds == 1:
            raise DataError(f"--num_auc_thresholds must be 0 (exact) or at least 2, got {self.num_auc_thresholds}")
        if self.checkpoint is not None and self.trains and not self.use_checkpoint:
            raise DataError(
                "--checkpoint selects the checkpoint to resume from: add --use_checkpoint, --evaluate, --predict or "
                "--importance"
            )
        parse_interval("checkpoint_every", self.checkpoint_every)
        self._check_warm_start()
        self._check_metrics()
        self._check_importance()
        self._check_predictions()
        self._check_monitoring()

    def check_workers(self, workers: int, environ: Mapping[str, str]) -> None:
        """Check --horovod_timeline against the launcher.

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
            raise DataError("--horovod_timeline needs several workers; start the job with horovodrun -np N")
        if announced is not None and announced != str(file):
            raise DataError(
                f"--horovod_timeline {file} contradicts {TIMELINE_VARIABLE}={announced} of the environment (horovodrun "
                "--timeline-filename sets it); remove one of them"
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
    def saves_differences(self) -> bool:
        """Whether the run may write differential checkpoints."""
        saves_in_epochs = self.save_interval != Interval() and self.trains and not self.benchmark
        return saves_in_epochs and self.full_checkpoint_every > 1

    @property
    def trains(self) -> bool:
        """Whether the run trains weights, including a benchmark of training."""
        return not self.evaluate and self.predict is None and self.importance is None

    @property
    def restores(self) -> bool:
        """Whether the run restores a checkpoint of its own."""
        return not self.benchmark and (self.use_checkpoint or not self.trains)

    @property
    def which_checkpoint(self) -> str:
        """The checkpoint to restore: --checkpoint, or by default the last one to train and the best one otherwise."""
        return self.checkpoint or ("last" if self.trains else "best")

    @property
    def predictions_path(self) -> Path | None:
        """The predictions file of --predict or --evaluate; None if the run writes none."""
        return self.predict or self.predictions_file

    @property
    def warm_start_from(self) -> str:
        """The checkpoint that --warm_start takes of a run."""
        return self.warm_start_checkpoint or "last"

    def _check_warm_start(self) -> None:
        if self.warm_start is None:
            if self.warm_start_checkpoint is not None:
                raise DataError(
                    "--warm_start_checkpoint selects a checkpoint of an earlier run: add --warm_start MODEL"
                )
            return
        others = [f"--{name}" for name in ("evaluate", "predict", "importance", "benchmark") if getattr(self, name)]
        if others:
            raise DataError(f"--warm_start starts a training run: remove it, or {others[0]}")

    def _check_metrics(self) -> None:
        for name in ("ranking_metrics", "score_label", "slice"):
            if getattr(self, name) and (self.predict or self.importance or self.benchmark):
                raise DataError(
                    f"--{name} applies to evaluation: remove it, or --predict, --importance and --benchmark"
                )
        for name in ("ranking_metrics", "slice"):
            given = getattr(self, name)
            if twice := [item for item in given if given.count(item) > 1]:
                raise DataError(f"--{name} names {twice[0]!r} twice; name it once")
        for name in ("ranking_metrics", "score_label"):
            if getattr(self, name) and self.disable_map_calculation:
                raise DataError(f"--{name} contradicts --disable_map_calculation: remove one of them")

    @property
    def trackers(self) -> dict[str, str]:
        """The experiment trackers in use: name of the flag -> its value."""
        return {name: value for name in ("mlflow", "wandb") if (value := getattr(self, name)) is not None}

    def _check_importance(self) -> None:
        others = [name for name in ("evaluate", "predict", "predictions_file", "raw", "keep") if getattr(self, name)]
        others += ["benchmark"] if self.benchmark else []
        if self.importance is not None and others:
            raise DataError(f"--importance measures features and does nothing else: remove --{others[0]}")

    def _check_predictions(self) -> None:
        if self.predict is not None and (self.evaluate or self.benchmark):
            raise DataError(
                "--predict computes no metrics and measures nothing: remove --evaluate and --benchmark "
                "(--evaluate --predictions_file FILE gives metrics and predictions)"
            )
        if self.predictions_file is not None and (self.benchmark or not self.evaluate):
            raise DataError("--predictions_file is written by --evaluate: add --evaluate (without --benchmark)")
        if self.keep and self.predictions_path is None:
            raise DataError(
                "--keep copies columns into a file of predictions: add --predict FILE, or --evaluate with "
                "--predictions_file FILE"
            )
        if self.raw and self.predict is None:
            raise DataError("--raw names raw files to predict: add --predict FILE")

    def _check_monitoring(self) -> None:
        names = ("tensorboard_dir", "mlflow", "wandb", "profile_steps")
        wants = [name for name in names if getattr(self, name) is not None]
        if wants and (self.benchmark or not self.trains):
            raise DataError(
                f"--{wants[0]} only applies to training: remove it, or --evaluate, --predict, --importance and "
                "--benchmark"
            )
        if empty := [name for name, value in self.trackers.items() if not value.strip()]:
            raise DataError(f"--{empty[0]} is empty; name an experiment or project, such as --{empty[0]} clicks")
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


@dataclass(frozen=True, kw_only=True)
class DeepOptimizer:
    """The optimizer settings of the deep part.

    Attributes:
        rule: update rule: rmsprop, adam, adamw, adagrad or sgd.
        rate: base learning rate.
        schedule: learning rate schedule after the warm-up: steps, constant, plateau, cosine or exponential.
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
        reasons: flag without dashes -> why its value was chosen by the data; of those that --recipe auto chose.
    """

    data: DataOptions
    model: ModelOptions
    training: TrainingOptions = field(default_factory=TrainingOptions)
    run: RunOptions = field(default_factory=RunOptions)
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def holds_out(self) -> bool:
        """Whether a part of the training rows is evaluated after each epoch, if there is no mapping for that."""
        run = self.run
        is_auto = self.training.recipe == "auto" and self.data.eval_mapping is None
        return is_auto and run.trains and not run.benchmark

    @property
    def deep_optimizer(self) -> DeepOptimizer:
        """The optimizer settings of the deep part, with defaults resolved."""
        training, model = self.training, self.model
        schedule = model.default_schedule if training.deep_schedule == "auto" else training.deep_schedule
        rule = model.default_rule if training.optimizer == "auto" else training.optimizer
        default_warmup = 0.3 * training.num_epochs if schedule == "steps" else 0.0
        return DeepOptimizer(
            rule=rule,
            rate=training.deep_learning_rate or model.default_rate,
            schedule=schedule,
            warmup_epochs=default_warmup if training.deep_warmup_epochs is None else training.deep_warmup_epochs,
            weight_decay=training.weight_decay if rule == "adamw" else 0.0,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the flags of this run by name as JSON values, with defaults that depend on other flags resolved."""
        groups = (self.data, self.model, self.training, self.run)
        flat = {item.name: getattr(group, item.name) for group in groups for item in fields(group)}
        deep = self.deep_optimizer
        flat |= {"optimizer": deep.rule, "deep_learning_rate": deep.rate, "deep_schedule": deep.schedule}
        flat["deep_warmup_epochs"] = deep.warmup_epochs
        return {name: _plain(value) for name, value in flat.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return (url_of(value) or str(value)) if isinstance(value, Path) else value
