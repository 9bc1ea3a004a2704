"""What the axes of dense weights stand for: features, tasks and experts by name. Imports no TensorFlow.

A weight is matched with that of another model by these names, so that features and tasks may be added, removed or
reordered. What has no name, such as hidden units, is matched by its number.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trainer.config import ModelOptions
from trainer.embeddings import SMALLEST_SHARDED
from trainer.embeddings.groups import group_tables
from trainer.layout import InputSchema
from trainer.models import network_class
from trainer.tasks.task import Task

Names = tuple[str, ...]
# Weights of batch normalization and biases have the units of their layer; kernels have its inputs, too.
KERNEL = "kernel"


@dataclass(frozen=True)
class Axes:
    """The names along the axes of the weights of a layer; None for numbers.

    Attributes:
        inputs, units: names of the inputs and units of a layer.
        stacks: names of its stacks; None if it has no stacks, or if these have no names.
        stacked: whether it has stacks.
        key: name of the layer for matching it with one of another model, if it is not its own.
    """

    inputs: Names | None = None
    units: Names | None = None
    stacks: Names | None = None
    stacked: bool = False
    key: str = ""

    def of(self, weight: str) -> tuple[Names | None, ...]:
        """Return the names along the axes of a weight of the layer: a kernel, or one value per unit."""
        is_kernel = weight.endswith(KERNEL)
        if self.stacked or self.stacks is not None:
            return self.stacks, self.inputs if is_kernel else None, self.units
        return (self.inputs, self.units) if is_kernel else (self.units,)


@dataclass(frozen=True)
class NamedAxes:
    """A weight by what it stands for.

    Attributes:
        key: the same for the weight of another model that it is matched with.
        names: names along each axis, or None for numbers; axes that are missing have none.
    """

    key: str
    names: tuple[Names | None, ...] = ()


class AxesOfModel:
    """The axes of a model's dense weights.

    Args:
        options: the model's flags.
        layout: layout of its inputs.
        tasks: its tasks.
    """

    def __init__(self, options: ModelOptions, layout: InputSchema, tasks: Sequence[Task]):
        outputs = output_names(tasks)
        deep, numbers = _deep_names(layout), _number_names(options, layout)
        self.outputs = outputs
        layers: dict[str, Axes] = {}
        whole = (*deep, *numbers)
        network = _pair_names(layout, has_numbers=bool(numbers)) if options.interaction == "dot" else whole
        layers |= dict(_interaction_axes(options, layout, whole, numbers, outputs))
        own = network_class(options.model).axes(options, tasks, network)
        # A model without names is only matched with one that has the same inputs and outputs.
        self._unnamed = "" if own else f" of {network} -> {outputs}"
        layers |= own
        layers |= dict(_sequence_axes(layout))
        for number, name in enumerate(_vector_names(layout), start=1):
            layers[f"vectors/units_{number}"] = Axes(key=f"vectors/units of {name}")
            for part in ("gamma", "beta"):
                layers[f"vectors/{part}_{number}"] = Axes(key=f"vectors/{part} of {name}")
        only, width = layout.training_only, options.training_only_embedding_dim
        ids = [f"{name}:{unit}" for name in only.names[: len(only.cardinalities)] for unit in range(width)]
        layers["training_only/hidden/layer_1"] = Axes(inputs=(*ids, *only.names[len(only.cardinalities) :]))
        layers["training_only/head"] = Axes(units=outputs)
        if not options.training_only_hidden_units:
            layers["training_only/head"] = replace(layers["training_only/hidden/layer_1"], units=outputs)
        self._layers = layers
        self._whole = {
            "wide_numerical": (layout.numerical, outputs),
            "wide_bias": (outputs,),
            "interaction/factors": (None, outputs),
        }
        names = tuple(task.name for task in tasks)
        losses = ("loss_log_variance", "loss_last_epoch", "loss_epoch_before", "gradnorm_weights")
        self._whole |= dict.fromkeys((*losses, "gradnorm_first_losses"), (names,))

    def of(self, weight: str) -> NamedAxes:
        """Return the axes of a dense weight or of the state of a loss weighting, by name.

        Args:
            weight: name of the weight, as checkpoints have it.
        """
        short = weight.split("/", 1)[1] if "/" in weight else weight
        for name in (weight, short):
            if name in self._whole:
                return NamedAxes(weight, self._whole[name])
        parts = short.split("/")
        for length in range(len(parts), 0, -1):
            layer, rest = "/".join(parts[:length]), "/".join(parts[length:])
            if (axes := self._layers.get(layer)) is not None:
                key = "/".join(part for part in (weight.split("/", 1)[0], axes.key or layer, rest) if part)
                return NamedAxes(key, axes.of(weight))
        return NamedAxes(weight + self._unnamed if "/" in weight else weight)


def output_names(tasks: Sequence[Task]) -> Names:
    """Return the names of a model's logits."""
    return tuple(name for task in tasks for name in columns(task.name, task.width))


def columns(name: str, width: int) -> Names:
    """Return names for the numbers that a feature or task has."""
    return tuple(f"{name}:{column}" for column in range(width))


def stack_axes(prefix: str, layers: int, stacks: Names, inputs: Names | None) -> dict[str, Axes]:
    """Return the axes of stacks of perceptrons, whose first layer has inputs with names."""
    return {
        f"{prefix}/layer_{number}": Axes(inputs=inputs if number == 1 else None, stacks=stacks)
        for number in range(1, layers + 1)
    }


def tower_axes(
    prefix: str, tasks: Sequence[Task], units: Sequence[tuple[int, ...]], inputs: Names | None = None
) -> dict[str, Axes]:
    """Return the axes of `layers.Towers`, whose groups of towers are those of equal shape."""
    shapes = [(hidden, task.width) for task, hidden in zip(tasks, units, strict=True)]
    found: dict[str, Axes] = {}
    for number, shape in enumerate(dict.fromkeys(shapes), start=1):
        stacks = tuple(task.name for task, own in zip(tasks, shapes, strict=True) if own == shape)
        key = f"{prefix}/of {'-'.join(map(str, (*shape[0], shape[1])))}"
        for name, axes in stack_axes(f"{prefix}/hidden_{number}", len(shape[0]), stacks, inputs).items():
            found[name] = replace(axes, key=f"{key}/{name.rsplit('/', 1)[1]}")
        logits = Axes(stacks=stacks, inputs=None if shape[0] else inputs, key=f"{key}/logits")
        found[f"{prefix}/logits_{number}"] = logits
    return found


def _deep_features(layout: InputSchema) -> Iterator[tuple[str, int]]:
    """Yield the features whose embeddings are in the deep input, in its order, and their widths."""
    for group in group_tables(layout, SMALLEST_SHARDED):
        for feature in (*group.pooled, *group.in_sequences):
            yield feature.name, group.width


def _deep_names(layout: InputSchema) -> Names:
    return tuple(name for feature, width in _deep_features(layout) for name in columns(feature, width))


def _vector_names(layout: InputSchema) -> Names:
    return (*(own.name for own in layout.vectors), *(own.name for own in layout.pretrained))


def _number_names(options: ModelOptions, layout: InputSchema) -> Names:
    of_vectors = zip(_vector_names(layout), layout.vector_dimensions, strict=True)
    vectors = (columns(name, options.vector_units or dimension) for name, dimension in of_vectors)
    return (*layout.deep_numerical, *(column for own in vectors for column in own))


def _pair_names(layout: InputSchema, *, has_numbers: bool) -> Names:
    """Return the names of the network's input under --interaction dot."""
    alone = columns("//numbers", layout.widest) if has_numbers else ()
    names = [*(["//numbers"] if has_numbers else []), *(name for name, _ in _deep_features(layout))]
    return (
        *alone,
        *(" * ".join(sorted((names[row], names[column]))) for row in range(len(names)) for column in range(row)),
    )


def _interaction_axes(
    options: ModelOptions, layout: InputSchema, whole: Names, numbers: Names, outputs: Names
) -> Iterator[tuple[str, Axes]]:
    kind = options.interaction
    if kind == "cross":
        for number in range(1, options.cross_layers + 1):
            yield f"interaction/down_{number}", Axes(inputs=whole)
            yield f"interaction/across_{number}", Axes(inputs=None if options.cross_rank else whole, units=whole)
    elif kind == "dot":
        yield "interaction/numerical/layer_1", Axes(inputs=numbers)
    elif kind == "fm":
        yield "interaction/numerical", Axes(inputs=numbers)
    if kind in ("dot", "fm"):
        for number, group in enumerate(group_tables(layout, SMALLEST_SHARDED)):
            stacks = tuple(feature.name for feature in (*group.pooled, *group.in_sequences))
            key = f"interaction/projections/of {group.name}"
            yield f"interaction/projections/group_{number}", Axes(stacks=stacks, key=key)


def _sequence_axes(layout: InputSchema) -> Iterator[tuple[str, Axes]]:
    """Yield the axes of the encoders of sequences, which are matched as a whole if their features are the same."""
    for number, own in enumerate(layout.sequences, start=1):
        features = [
            f"{name}:{layout.named(name).width}>{target}"
            for name, target in zip(own.features, own.targets, strict=True)
        ]
        content = ",".join((*features, *own.numbers))
        yield f"sequences/{own.encoder}_{number}", Axes(key=f"sequences/{own.encoder} of {own.name} ({content})")


def indices(names: Names | None, other: Names | None, size: int, other_size: int) -> np.ndarray | None:
    """Return, for each of the places along an axis, the place along that of another model, -1 where it has none.

    Args:
        names, other: names along both axes; None for numbers.
        size, other_size: their lengths.

    Returns:
        [size] int64; None if the axes do not match.
    """
    if names is None or other is None or len(names) != size or len(other) != other_size:
        return np.arange(size) if size == other_size else None
    places: Mapping[str, int] = {name: place for place, name in enumerate(other)}
    return np.array([places.get(name, -1) for name in names], np.int64)
