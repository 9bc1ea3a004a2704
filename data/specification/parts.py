"""The words of a feature specification: channels, keys, and the parts that a specification is made of."""

from dataclasses import dataclass

ONEHOT = "onehot_categorical"
MULTIHOT = "multihot_categorical"
NUMERICAL = "numerical"
LABEL = "label"
MAP = "map"

CHANNELS = (ONEHOT, MULTIHOT, NUMERICAL, LABEL, MAP)
INPUT_CHANNELS = (ONEHOT, MULTIHOT, NUMERICAL)
CATEGORICAL_CHANNELS = (ONEHOT, MULTIHOT)

SECTIONS = ("feature_spec", "source_spec", "channel_spec", "metadata")
REQUIRED_SECTIONS = SECTIONS[:3]
REQUIRED_MAPPINGS = ("train", "test")
CHUNK_KEYS = ("type", "features", "files")
CHUNK_TYPES = ("parquet", "csv")

TASKS = ("binary", "multiclass", "regression")
MISSING = ("error", "ignore")
SAMPLE_WEIGHT = "sample_weight"
ROLES = (SAMPLE_WEIGHT,)
# Joins the names of a label and of those that it is given, in the keys of metrics of all of them together.
JOINT = "+"
# Columns of a file of predictions: the row's number, and for each label these before its name.
ROW_COLUMN, LABEL_COLUMN, PREDICTION_COLUMN = "row", "label_", "prediction_"
LABEL_KEYS = ("task", "loss_weight", "positive_weight", "given", "missing")

INTEGER_DTYPES = ("int8", "int16", "int32", "int64")
FLOAT_DTYPES = ("float16", "float32", "float64")
BOOL_DTYPE = "bool"
DTYPES = (*INTEGER_DTYPES, *FLOAT_DTYPES, BOOL_DTYPE)

# Ids are int32 in a batch.
MAX_CARDINALITY = 2**31 - 1
MAX_EMBEDDING_DIM = 4096


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One column of the dataset, as `feature_spec` describes it.

    Attributes:
        name: the column's name.
        dtype: NumPy name of the stored type ("int64"); None where it is not stated.
        cardinality: number of ids, which lie in [0, cardinality); for a multiclass label the classes.
        max_hotness: most ids in one row of a multi-hot feature.
        embedding_dim: width of the embedding; None leaves it to `data.specification.embedding_sizes`.
        task: what a label asks for: "binary", "multiclass" or "regression".
        loss_weight: factor of the label's loss, > 0.
        positive_weight: factor of the positive rows in a binary loss, > 0.
        given: name of the binary label whose positives are the sample space of this label.
        missing: "error" or "ignore"; only with "ignore" may the label be null or NaN.
        role: "sample_weight" for the column that weighs rows; None for all others.
    """

    name: str
    dtype: str | None = None
    cardinality: int | None = None
    max_hotness: int | None = None
    embedding_dim: int | None = None
    task: str = "binary"
    loss_weight: float = 1.0
    positive_weight: float = 1.0
    given: str | None = None
    missing: str = "error"
    role: str | None = None


@dataclass(frozen=True)
class Chunk:
    """A group of columns and the files that hold it.

    Attributes:
        type: "parquet" or "csv".
        features: the columns; for CSV in the order of the file.
        files: paths relative to the specification's folder; rows follow each other in this order.
    """

    type: str
    features: tuple[str, ...]
    files: tuple[str, ...]


def exact_integers(dtype: str) -> int:
    """How many integers from 0 on an integer or float type, by its NumPy name, holds without a gap."""
    if dtype in FLOAT_DTYPES:
        return {"float16": 2**11, "float32": 2**24, "float64": 2**53}[dtype] + 1
    bits = int(dtype.removeprefix("uint").removeprefix("int"))
    return 2**bits if dtype.startswith("uint") else 2 ** (bits - 1)
