"""The values in a specification's document as pydantic types. Each message says what was found and what to write."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, NotRequired, get_args

import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field, PlainValidator, Strict, WrapValidator, with_config
from pydantic import ValidationError as PydanticError
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from data.errors import described
from data.spec.features import MAX_CARDINALITY, MAX_DIMENSION, MAX_EMBEDDING_DIM, Dtype, Encoder, Order, name_mistake
from data.spec.score import EXAMPLE, FormulaError, parse_formula
from data.spec.task_types import TASK_TYPES

MAX_PATH_LENGTH = 1000
TORCH_DTYPES = {
    "torch.half": "float16",
    "torch.float": "float32",
    "torch.double": "float64",
    "torch.short": "int16",
    "torch.int": "int32",
    "torch.long": "int64",
}


def wrong_value(message: str) -> PydanticCustomError:
    """Return the error that a validator raises for a wrong value."""
    return PydanticCustomError("mistake", "{message}", {"message": message})


def expects(expected: str) -> WrapValidator:
    """Return a validator that reports a wrong value in our words; mistakes inside of a list or mapping keep theirs."""

    def validate(value: Any, validator: Callable[[Any], Any]) -> Any:
        try:
            return validator(value)
        except PydanticError as error:
            if error.error_count() > 1 or error.errors(include_input=False)[0]["loc"]:
                raise
            raise wrong_value(f"is {described(value)}; write {expected}") from error

    return WrapValidator(validate)


def _plain_number(value: Any) -> Any:
    """Return a NumPy number, as code that builds specifications uses them, as a Python number."""
    return value.item() if isinstance(value, np.number) else value


def numpy_dtype(value: Any) -> Any:
    """Return the NumPy name of a dtype, given its NumPy or torch name ("torch.long")."""
    return TORCH_DTYPES.get(value, value.removeprefix("torch.")) if isinstance(value, str) else value


def _name(value: Any) -> str:
    if mistake := name_mistake(value):
        raise wrong_value(mistake)
    return value


def _file_path(value: Any) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise wrong_value(f"is {described(value)}; write the path of a file in quotes, without control characters")
    if len(value) > MAX_PATH_LENGTH:
        raise wrong_value(f"this path has {len(value)} characters; the maximum is {MAX_PATH_LENGTH}")
    return value


def _formula(value: Any) -> str:
    if not isinstance(value, str):
        raise wrong_value(f"is {described(value)}; write a formula, such as {EXAMPLE}")
    try:
        return parse_formula(value).text
    except FormulaError as error:
        raise wrong_value(str(error)) from error


def expects_one_of(choices: Any) -> WrapValidator:
    """Return a validator that reports a value that is none of a Literal's."""
    return expects(f"one of {', '.join(get_args(choices))}")


def expects_integer(least: int, most: int) -> WrapValidator:
    """Return a validator that reports a value that is no integer of a range."""
    return expects(f"a whole number from {least} to {most}, without quotes")


PlainNumber = BeforeValidator(_plain_number)
NoneIsMapping = BeforeValidator(lambda value: {} if value is None else value)
NoneIsList = BeforeValidator(lambda value: [] if value is None else value)

TaskType: Any = Literal[tuple(TASK_TYPES)]
Name = Annotated[str, PlainValidator(_name)]
FilePath = Annotated[str, PlainValidator(_file_path)]
FormulaText = Annotated[str, PlainValidator(_formula)]
NumpyDtype = Annotated[Dtype, BeforeValidator(numpy_dtype), expects_one_of(Dtype)]
PositiveInteger = Annotated[
    int, Strict(), Field(ge=1, le=MAX_CARDINALITY), PlainNumber, expects_integer(1, MAX_CARDINALITY)
]
Id = Annotated[int, Strict(), Field(ge=0, lt=MAX_CARDINALITY), PlainNumber, expects_integer(0, MAX_CARDINALITY - 1)]
Width = Annotated[int, Strict(), Field(ge=1, le=MAX_EMBEDDING_DIM), PlainNumber, expects_integer(1, MAX_EMBEDDING_DIM)]
Dimension = Annotated[int, Strict(), Field(ge=1, le=MAX_DIMENSION), PlainNumber, expects_integer(1, MAX_DIMENSION)]
Boolean = Annotated[bool, Strict(), expects("true or false, without quotes")]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False), PlainNumber, expects("a finite number, without quotes")]
Weight = Annotated[
    float, Strict(), Field(gt=0, allow_inf_nan=False), PlainNumber, expects("a finite number above 0, without quotes")
]
TweediePower = Annotated[
    float, Strict(), Field(gt=1, lt=2), PlainNumber, expects("a number between 1 and 2, such as 1.5, without quotes")
]
Share = Annotated[
    float, Strict(), Field(gt=0, le=1), PlainNumber, expects("a fraction above 0, such as 0.1, without quotes")
]
ChannelNames = Annotated[list[Name], expects("a list, such as [age, price]"), NoneIsList]


@with_config(ConfigDict(extra="forbid"))
class SequenceKeys(TypedDict):
    """The keys of a sequence."""

    features: Annotated[list[Name], Field(min_length=1), expects("a list, such as [clicked_item, clicked_category]")]
    target: NotRequired[Annotated[list[Name], expects("a list, such as [item, category]"), NoneIsList]]
    encoder: NotRequired[Annotated[Encoder, expects_one_of(Encoder)]]
    order: NotRequired[Annotated[Order, expects_one_of(Order)]]


Sequences = Annotated[
    dict[Name, Annotated[SequenceKeys, expects("a mapping, such as {features: [clicked_item], target: [item]}")]],
    expects("a mapping of sequences, such as {clicks: {features: [clicked_item], target: [item]}}"),
    NoneIsMapping,
]


@with_config(ConfigDict(extra="forbid"))
class ChannelKeys(TypedDict, total=False):
    """The channels, each a list of names, except for the sequences."""

    onehot_categorical: ChannelNames
    multihot_categorical: ChannelNames
    numerical: ChannelNames
    label: ChannelNames
    map: ChannelNames
    sequence: Sequences
    vector: ChannelNames
