"""The flags of main.py, with their defaults, help texts and limits, in one dataclass per topic.

Each field is one flag. Nothing here imports TensorFlow, so mistakes are reported within a second.
"""

from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from data.command_line import OUTSIDE_PATHS_HELP
from data.errors import DataError
from data.loading.targets import OovPolicy
from trainer.flags.model_options import ModelOptions
from trainer.flags.option import at_least, option, positive, share
from trainer.flags.run_options import RunOptions


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
