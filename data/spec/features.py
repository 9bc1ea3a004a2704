"""The vocabulary of a feature specification: channels, keys, names and values, features and chunks of files."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from data.errors import described, shown
from data.spec.task_types import TASK_TYPES, LabelKind

ONEHOT = "onehot_categorical"
MULTIHOT = "multihot_categorical"
NUMERICAL = "numerical"
SEQUENCE = "sequence"
VECTOR = "vector"
LABEL = "label"
MAP = "map"

CHANNELS = (ONEHOT, MULTIHOT, NUMERICAL, SEQUENCE, VECTOR, LABEL, MAP)
INPUT_CHANNELS = (ONEHOT, MULTIHOT, NUMERICAL, SEQUENCE, VECTOR)
CATEGORICAL_CHANNELS = (ONEHOT, MULTIHOT)

SECTIONS = ("feature_spec", "source_spec", "channel_spec", "metadata")
# Key beside the sections, a formula, and name of the output that it adds to the predictions.
SCORE = "score"
TRAIN, VALID, TEST = "train", "valid", "test"
REQUIRED_MAPPINGS = (TRAIN, TEST)
CHUNK_KEYS = ("type", "features", "files")
ChunkType = Literal["parquet", "csv"]

Missing = Literal["error", "ignore"]
Role = Literal["sample_weight"]
Wide = Literal["only", "too", "no"]
# Whose a feature is in a ranking request: of all that is asked about, or of each candidate.
Side = Literal["request", "candidate"]
CANDIDATE = "candidate"
Combiner = Literal["sum", "mean"]
Encoder = Literal["sum", "mean", "din", "self_attention"]
# Encoders of sequences that compare the steps with a target.
TARGET_ENCODERS = ("din", "self_attention")
Order = Literal["newest_last", "newest_first"]
SAMPLE_WEIGHT = "sample_weight"
LIST_WEIGHTS = "list_weights"
# Joins the names of a label and of its chain of `given` labels in the metric keys of their joint event
# ("click+conversion").
JOINT = "+"
# Columns of a predictions file: the index of the row, and for each label its name with these prefixes.
ROW_COLUMN, LABEL_COLUMN, PREDICTION_COLUMN = "row", "label_", "prediction_"
ID_KEYS = ("embedding_dim", "table", "wide", "null_id", "unseen_id", "oov_buckets")
LIST_KEYS = ("max_hotness", "weights", "combiner")
DIMENSION = "dimension"
PRETRAINED = "pretrained"
# Keys of a vector that is looked up in a file; the others are stored in every row.
PRETRAINED_KEYS = (PRETRAINED, "of", "trained")
PRETRAINED_DTYPES = ("float16", "float32")
NUMBER_KEYS = ("unseen_with", "unseen_value")
SERVE = "serve"
SIDE = "side"
SERVE_CHANNELS = (ONEHOT, NUMERICAL)
# A feature known only in training has a dense table, whose rows are all updated in every step.
MAX_SERVE_CARDINALITY = 10_000
LABEL_KEYS = ("task", "loss_weight", "positive_weight", "tweedie_power", "given", "missing")
NEGATIVE_RATE = "negative_rate"

IntegerDtype = Literal["int8", "int16", "int32", "int64"]
FloatDtype = Literal["float16", "float32", "float64"]
INTEGER_DTYPES = get_args(IntegerDtype)
FLOAT_DTYPES = get_args(FloatDtype)
BOOL_DTYPE = "bool"
Dtype = Literal[IntegerDtype, FloatDtype, "bool"]

# Ids are int32 in a batch.
MAX_CARDINALITY = 2**31 - 1
MAX_EMBEDDING_DIM = 4096
MAX_DIMENSION = 2**16
# Names of mappings and features become parts of file names (at most 255 bytes) and of array names.
MAX_NAME_LENGTH = 200


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One column of the dataset, as described in `feature_spec`.

    Attributes:
        name: name of the column.
        dtype: NumPy name of the stored type ("int64"), or None if not stated.
        cardinality: number of ids, which lie in [0, cardinality); for a multiclass label the number of classes.
        max_hotness: maximum number of ids per row of a multi-hot feature, or of steps of a feature of a sequence.
        weights: name of the column with a weight for each id of a multi-hot feature; None if all ids weigh 1.
        combiner: how the deep part pools the ids of a multi-hot feature; None for the model's --combiner.
        dimension: number of values of a vector.
        pretrained: path of the parquet file of a vector that is looked up, relative to the specification's folder; None
            for a vector that every row has.
        of: name of the feature whose ids a pretrained vector is looked up by.
        trained: whether a pretrained vector is trained further.
        embedding_dim: width of the embedding, or None to choose it in `data.spec.embedding_sizes`.
        table: name of the embedding table, which features of equal cardinality may share; None for the feature's name.
        wide: whether a categorical feature is in the wide part only, there too, or not.
        null_id: id of missing values, or None if the encoder has none or is unknown.
        unseen_id: id of values unseen in training, likewise.
        oov_buckets: number of ids over which unseen values are spread, from `unseen_id` on; None for 1.
        unseen_with: name of the one-hot feature that is made from the same raw column as this numerical feature.
        unseen_value: value of this feature for a value of that column unseen in training.
        serve: value that a feature known only in training, such as the position of an ad, has in predictions; None
            for a feature that predictions know.
        side: whether a feature is stated once in a ranking request, or for each candidate.
        task: task type of a label, a key of TASK_TYPES.
        loss_weight: factor of the label's loss, > 0.
        positive_weight: factor of the positive rows in a binary loss, > 0.
        tweedie_power: power of the mean that the variance of a Tweedie label is proportional to, between 1 and 2.
        given: name of the binary label whose positive rows are the sample space of this label.
        missing: "error" or "ignore"; the label may be null or NaN only with "ignore".
        role: "sample_weight" for the column of sample weights, None for all others.
        negative_rate: fraction of the negative rows that the mapping train holds, if the sample weights of those rows
            have the factor 1 / negative_rate; None if they have none. A row is negative if all binary labels are 0.
    """

    name: str
    dtype: str | None = None
    cardinality: int | None = None
    max_hotness: int | None = None
    weights: str | None = None
    combiner: Combiner | None = None
    dimension: int | None = None
    pretrained: str | None = None
    of: str | None = None
    trained: bool = False
    embedding_dim: int | None = None
    table: str | None = None
    wide: Wide = "too"
    null_id: int | None = None
    unseen_id: int | None = None
    oov_buckets: int | None = None
    unseen_with: str | None = None
    unseen_value: float | None = None
    serve: float | None = None
    side: Side = "request"
    task: str = "binary"
    loss_weight: float = 1.0
    positive_weight: float = 1.0
    tweedie_power: float = 1.5
    given: str | None = None
    missing: str = "error"
    role: str | None = None
    negative_rate: float | None = None

    @property
    def unseen_ids(self) -> range:
        """Ids of values unseen in training; empty if there is none."""
        return range(0) if self.unseen_id is None else range(self.unseen_id, self.unseen_id + (self.oov_buckets or 1))

    @property
    def table_dtype(self) -> str:
        """The type in which pretrained vectors are read and, if they are not trained, held: float16 or float32."""
        return self.dtype or "float32"

    @property
    def label_kind(self) -> LabelKind:
        """The values of a label, by its task type."""
        return TASK_TYPES[self.task]

    @property
    def is_binary(self) -> bool:
        """Whether a label is 0 or 1."""
        return self.label_kind is LabelKind.BINARY

    @property
    def is_class(self) -> bool:
        """Whether a label is one of `cardinality` classes."""
        return self.label_kind is LabelKind.CLASS

    @property
    def is_number(self) -> bool:
        """Whether a label is a number and no class."""
        return self.label_kind in (LabelKind.NUMBER, LabelKind.AMOUNT)

    @property
    def is_amount(self) -> bool:
        """Whether a label is a number of at least 0."""
        return self.label_kind is LabelKind.AMOUNT

    @property
    def num_classes(self) -> int:
        """Number of classes of a label; 0 if it is a number."""
        if self.is_number:
            return 0
        return 2 if self.is_binary else self.cardinality or 0


@dataclass(frozen=True)
class FeatureSequence:
    """A sequence of steps, such as the items that a user clicked: columns of lists, aligned step by step.

    Attributes:
        name: name of the sequence.
        features: names of its features. Those with a cardinality have ids, the others numbers; at least one has ids.
        target: names of the one-hot features that the steps are compared with, such as the item to be ranked; each
            shares its embedding table with one of `features`.
        encoder: how a model turns the steps into one vector per feature.
        order: whether lists end or begin with their newest step.
        length: largest number of steps; of longer lists, the newest steps are kept.
    """

    name: str
    features: tuple[str, ...]
    target: tuple[str, ...] = ()
    encoder: Encoder = "mean"
    order: Order = "newest_last"
    length: int = 1


def default_encoder(has_target: bool) -> Encoder:
    """Return the encoder of a sequence that states none."""
    return "din" if has_target else "mean"


@dataclass(frozen=True)
class Chunk:
    """A group of columns and the files that hold them.

    Attributes:
        type: file type, "parquet" or "csv".
        features: names of the columns; for CSV in the order of the file.
        files: file paths relative to the specification's folder, in row order.
    """

    type: str
    features: tuple[str, ...]
    files: tuple[str, ...]


def exact_integers(dtype: str) -> int:
    """Return the largest n such that the type (by NumPy name) represents every integer in [0, n) exactly."""
    if dtype in FLOAT_DTYPES:
        # 2 to the power of the significand's bits (11, 24, 53) is the last integer before the first gap.
        return {"float16": 2**11, "float32": 2**24, "float64": 2**53}[dtype] + 1
    bits = int(dtype.removeprefix("uint").removeprefix("int"))
    return 2**bits if dtype.startswith("uint") else 2 ** (bits - 1)


def name_mistake(name: Any) -> str | None:
    """Return what is wrong with the name of a feature or mapping, or None if it is valid for every later use."""
    if not isinstance(name, str):
        return f"this name is {described(name)}; a name is a string: put it in quotes"
    if not name:
        return "this name is empty; write a name"
    if len(name) > MAX_NAME_LENGTH:
        return f"this name has {len(name)} characters; the maximum is {MAX_NAME_LENGTH}"
    if name != name.strip() or name.startswith("."):
        return f"the name {shown(name)} begins or ends with a space, or begins with a dot; remove it"
    if "/" in name or not name.isprintable():
        return f"the name {shown(name)} contains a slash or a control character; remove it"
    if (size := len(name.encode())) > MAX_NAME_LENGTH:
        return f"this name has {size} bytes in UTF-8; the maximum is {MAX_NAME_LENGTH}"
    return None
