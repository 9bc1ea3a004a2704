"""Counts what a graph would do on a GPU, from its operations and the kernels that TensorFlow's GPU build registers.

An operation runs on the GPU if the build has a GPU kernel for its dtypes, and on the CPU otherwise. A kernel names the
inputs and outputs that it keeps in host memory. For int32 these are often all of them, and the CPU does the work.

    no_gpu_kernel   operations without a GPU kernel for their dtypes
    per_row         operations with an input or output in host memory that grows with the batch
    syncs           points where the host waits for the GPU: kernels that read back the size of their output or the
                    result of a check, tensors computed on the GPU that the host reads, such as a predicate of
                    tf.cond, and operations of the CPU that have to follow one of the GPU, such as a clock
    launches        operations that run a kernel on the GPU; a function compiled by XLA is one
    recompiles      inputs of such a function whose size is unknown: XLA compiles it again for every new size
    collectives     Horovod's operations, which are counted neither as launches nor as syncs
    arguments       tensors that every call brings to the GPU, each in a copy of its own, ahead of the graph
    to_device, to_host   tensors copied between host and GPU, each once however many operations read it

A tensor grows with the batch if a dimension is unknown or at least as large as the batch. Arguments of the graph are
on the GPU when it starts, except int32 ones, which TensorFlow leaves in host memory. A function that XLA does not
compile counts as part of its caller, as Grappler inlines it. All branches of a conditional count, and a loop as one
round; int32 tensors enter and leave both through host memory (the kernels of Switch and Merge). In a compiled
function everything is on the GPU.

Apart from that, graphs are counted as they are before Grappler, but without operations that no result or side effect
needs, and without those of constants, which Grappler folds.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf
from tensorflow.python.framework import op_def_registry

CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
# Name of the predicate, and of the attributes that hold the branches.
CONDITIONALS = {
    **dict.fromkeys(("If", "StatelessIf"), ("cond", ("then_branch", "else_branch"))),
    **dict.fromkeys(("Case", "StatelessCase"), ("branch_index", ("branches",))),
}
LOOPS = {"While", "StatelessWhile"}
# Operations that pass on a tensor, its shape or a handle, and run nothing on a GPU.
FREE = {
    *("Identity", "IdentityN", "StopGradient", "PreventGradient", "EnsureShape", "NoOp", "ReadVariableOp"),
    *("Reshape", "ExpandDims", "Squeeze", "Bitcast", "Shape", "ShapeN", "Size", "Rank", "VariableShape"),
    *("AssignVariableOp", "VarHandleOp", "VarIsInitializedOp"),
}
# Operations whose GPU kernel waits for a number that it has computed: the size of its output, or the result of a check.
SYNCHRONIZING = {
    *("Unique", "UniqueV2", "UniqueWithCounts", "UniqueWithCountsV2", "Where", "DynamicPartition", "CheckNumerics"),
    *("SegmentSum", "SegmentMean", "SegmentMax", "SegmentMin", "SegmentProd", "SparseFillEmptyRows"),
    *("SparseSegmentSumGradV2", "SparseSegmentMeanGradV2", "SparseSegmentSqrtNGradV2"),
}
# Inputs and outputs in host memory of Horovod's kernels, when built with HOROVOD_GPU_OPERATIONS=NCCL (its mpi_ops.cc).
HOROVOD: dict[str, frozenset[str]] = {
    **dict.fromkeys(("HorovodAllreduce", "HorovodGroupedAllreduce", "HorovodBroadcast"), frozenset()),
    **dict.fromkeys(("HorovodAllgather", "HorovodGroupedAllgather"), frozenset()),
    "HorovodAlltoall": frozenset({"splits", "received_splits"}),
}
# Operations of which the GPU kernel for integers copies the whole variable to the host, and computes there.
SCATTERS = {f"ResourceScatter{kind}" for kind in ("Update", "Add", "Sub", "Mul", "Div", "Min", "Max")}
CLOCKS = {"Timestamp"}  # run on the host by their nature
# Handles, and values that are on the host in any case.
WITHOUT_DATA = {tf.resource, tf.variant, tf.string}


class Kernel(NamedTuple):
    """A kernel for GPUs.

    Attributes:
        types: type attribute of the operation -> names of the dtypes that the kernel takes; others take any.
        host: names of the inputs and outputs in host memory.
    """

    types: Mapping[str, frozenset[str]]
    host: frozenset[str]


class GpuKernels:
    """The kernels for GPUs of a build of TensorFlow, and Horovod's.

    Args:
        by_operation: type of an operation -> its kernels, in the order in which TensorFlow tries them.
    """

    def __init__(self, by_operation: Mapping[str, Sequence[Kernel]]):
        self._by_operation = {name: [Kernel({}, host)] for name, host in HOROVOD.items()} | dict(by_operation)

    @classmethod
    def read(cls, file: Path) -> "GpuKernels":
        """Read the output of gpu_kernels.py.

        Raises:
            ValueError: it lists the kernels of another version of TensorFlow than traces the graphs.
        """
        content = json.loads(file.read_text())
        if content["tensorflow"] != tf.__version__:
            raise ValueError(f"{file} has the kernels of TensorFlow {content['tensorflow']}, this is {tf.__version__}")
        return cls(
            {
                name: [
                    Kernel({key: frozenset(names) for key, names in own["types"].items()}, frozenset(own["host"]))
                    for own in kernels
                ]
                for name, kernels in content["kernels"].items()
            }
        )

    def find(self, operation: tf.Operation) -> Kernel | None:
        """Return the kernel that runs an operation on the GPU; None if there is none for its dtypes."""
        types = type_attributes(operation)
        if operation.type in SCATTERS and operation.get_attr("dtype").is_integer:
            return None
        for kernel in self._by_operation.get(operation.type, ()):
            if all(types.get(name, set()) <= allowed for name, allowed in kernel.types.items()):
                return kernel
        return None


@dataclass
class Counts:
    """What a graph would do on a GPU (see the module). Counters map a description of the operation to its number."""

    no_gpu_kernel: Counter[str] = field(default_factory=Counter)
    per_row: Counter[str] = field(default_factory=Counter)
    syncs: Counter[str] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)
    recompiles: Counter[str] = field(default_factory=Counter)
    collectives: Counter[str] = field(default_factory=Counter)
    arguments: int = 0
    to_device: int = 0
    to_host: int = 0

    def totals(self) -> dict[str, int]:
        """Return the number of each kind."""
        return {name: own if isinstance(own, int) else own.total() for name, own in vars(self).items()}


def count(graph: tf.Graph, batch: int, kernels: GpuKernels) -> Counts:
    """Count what the graph of a concrete function would do on a GPU.

    Args:
        graph: the graph, traced for `batch` rows, which are more than any dimension that does not grow with the batch.
        batch: number of rows.
        kernels: the kernels that can be used.
    """
    counter = _Counter(batch, kernels)
    arguments = [_Value(on_host=tensor.dtype == tf.int32) for tensor in graph.inputs]
    for tensor in graph.inputs:
        if tensor.dtype == tf.int32 and counter.grows(tensor):
            counter.counts.per_row[f"argument ({tensor.dtype.name})"] += 1
    on_gpu = [tensor for tensor in graph.inputs if tensor.dtype not in WITHOUT_DATA | {tf.int32}]
    captured = {tensor.name for tensor in graph.internal_captures}  # constants, which are there from the first call on
    counter.counts.arguments = sum(tensor.name not in captured for tensor in on_gpu)
    counter.visit(graph, arguments)
    return counter.counts


@dataclass(eq=False)
class _Value:
    """A tensor that some operation has computed.

    Attributes:
        on_host: whether it is in host memory.
        constant: whether it has the same value in every step.
        copied: whether it has been copied to the other memory.
    """

    on_host: bool
    constant: bool = False
    copied: bool = False


class _Argument(NamedTuple):
    """An input or output of an operation: its name in the definition of the operation, and the tensor."""

    name: str
    tensor: tf.Tensor


class _Counter:
    """Goes through a graph and the functions that it calls."""

    def __init__(self, batch: int, kernels: GpuKernels):
        self.batch, self.kernels, self.counts = batch, kernels, Counts()
        self.on_gpu: set[tuple[int, str]] = set()  # of the operations so far: id of its graph, name

    def grows(self, tensor: tf.Tensor) -> bool:
        """Return whether a tensor grows with the batch."""
        shape = tensor.shape
        return shape.rank is None or any(size is None or size >= self.batch for size in shape.as_list())

    def visit(self, graph: tf.Graph, arguments: Sequence[_Value]) -> list[_Value]:
        """Count the operations of a graph that its results need; return the results."""
        values = {tensor.name: value for tensor, value in zip(graph.inputs, arguments, strict=True)}
        for operation in _needed(graph):
            if operation.type != "Placeholder":
                inputs = [values[tensor.name] for tensor in operation.inputs]
                outputs = self._operation(operation, inputs)
                values |= {tensor.name: value for tensor, value in zip(operation.outputs, outputs, strict=True)}
        return [values[tensor.name] for tensor in graph.outputs]

    def _operation(self, operation: tf.Operation, inputs: list[_Value]) -> list[_Value]:
        """Count an operation; return its outputs."""
        if _is_compiled(operation):
            return self._compiled(operation, inputs)
        if operation.type in CALLS:
            self.on_gpu.add(_key(operation))
            (called,) = _functions(operation, "f")
            return self.visit(called, inputs)
        if operation.type in CONDITIONALS:
            return self._conditional(operation, inputs)
        if operation.type in LOOPS:
            return self._loop(operation, inputs)
        return self._kernel(operation, inputs)

    def _compiled(self, operation: tf.Operation, inputs: list[_Value]) -> list[_Value]:
        for tensor, value in zip(operation.inputs, inputs, strict=True):
            self._read(operation, _Argument("input", tensor), value, on_host=False)
            if tensor.dtype not in WITHOUT_DATA and not tensor.shape.is_fully_defined():
                self.counts.recompiles[f"{tensor.dtype.name} {tensor.shape}"] += 1
        self.on_gpu.add(_key(operation))
        self.counts.launches["function compiled by XLA"] += 1
        return [_Value(on_host=False) for _ in operation.outputs]

    def _conditional(self, operation: tf.Operation, inputs: list[_Value]) -> list[_Value]:
        name, branches = CONDITIONALS[operation.type]
        self._read(operation, _Argument(name, operation.inputs[0]), inputs[0], on_host=True)
        passed = self._passed(operation, list(operation.inputs)[1:], inputs[1:])
        for branch in _functions(operation, *branches):
            self.visit(branch, passed)
        return [_Value(on_host=tensor.dtype == tf.int32) for tensor in operation.outputs]

    def _loop(self, operation: tf.Operation, inputs: list[_Value]) -> list[_Value]:
        passed = self._passed(operation, list(operation.inputs), inputs)
        condition, body = _functions(operation, "cond", "body")
        (proceeds,) = self.visit(condition, passed)
        self._read(operation, _Argument("cond", condition.outputs[0]), proceeds, on_host=True)
        self.visit(body, passed)
        return [_Value(on_host=tensor.dtype == tf.int32) for tensor in operation.outputs]

    def _passed(self, operation: tf.Operation, tensors: list[tf.Tensor], values: list[_Value]) -> list[_Value]:
        """Pass tensors into a conditional or a loop, int32 ones through host memory; return what arrives."""
        arrived = []
        on_host = [_Argument("input", tensor) for tensor in tensors if tensor.dtype == tf.int32]
        self._count_per_row(operation, on_host)
        for tensor, value in zip(tensors, values, strict=True):
            if tensor.dtype == tf.int32:
                self._read(operation, _Argument("input", tensor), value, on_host=True)
                value = _Value(on_host=True)
            arrived.append(value)
        return arrived

    def _kernel(self, operation: tf.Operation, inputs: list[_Value]) -> list[_Value]:
        kernel = None if operation.type in CLOCKS or "CPU" in operation.device else self.kernels.find(operation)
        arguments, results = _arguments(operation)
        on_host = _always if kernel is None else kernel.host.__contains__
        constant = _is_constant(operation, inputs)
        values = [_Value(on_host(result.name), constant) for result in results]
        if constant:
            return values
        if kernel is None:
            self._count_on_cpu(operation)
        for argument, value in zip(arguments, inputs, strict=True):
            self._read(operation, argument, value, on_host=on_host(argument.name))
        with_data = [argument for argument in (*arguments, *results) if argument.tensor.dtype not in WITHOUT_DATA]
        self._count_per_row(operation, [argument for argument in with_data if on_host(argument.name)])
        if any(not on_host(argument.name) for argument in with_data):
            self._count_launch(operation)
        return values

    def _read(self, operation: tf.Operation, argument: _Argument, value: _Value, *, on_host: bool) -> None:
        """Copy a tensor for an operation that reads it in the other memory."""
        if value.on_host == on_host or value.copied or argument.tensor.dtype in WITHOUT_DATA:
            return
        value.copied = True
        if on_host:
            self.counts.to_host += 1
            self.counts.syncs[f"{operation.type} reads {argument.name} ({argument.tensor.dtype.name}) on the host"] += 1
        else:
            self.counts.to_device += 1

    def _count_on_cpu(self, operation: tf.Operation) -> None:
        if operation.type not in CLOCKS and "CPU" not in operation.device:
            self.counts.no_gpu_kernel[_description(operation)] += 1
        if any(_key(before) in self.on_gpu for before in operation.control_inputs):
            self.counts.syncs[f"{operation.type} waits for the GPU"] += 1

    def _count_per_row(self, operation: tf.Operation, on_host: list[_Argument]) -> None:
        growing = dict.fromkeys(f"{own.name} {own.tensor.dtype.name}" for own in on_host if self.grows(own.tensor))
        if growing:
            self.counts.per_row[f"{operation.type} ({', '.join(growing)})"] += 1

    def _count_launch(self, operation: tf.Operation) -> None:
        self.on_gpu.add(_key(operation))
        if operation.type in HOROVOD:
            self.counts.collectives[operation.type] += 1
        elif operation.type not in FREE:
            self.counts.launches[operation.type] += 1
        if operation.type in SYNCHRONIZING:
            self.counts.syncs[_description(operation)] += 1


def type_attributes(operation: tf.Operation) -> dict[str, set[str]]:
    """Return the names of the dtypes of each type attribute of an operation."""
    found, values = {}, operation.node_def.attr
    for definition in op_def_registry.get(operation.type).attr:
        if definition.type in ("type", "list(type)"):
            own = values[definition.name]
            dtypes = [own.type] if definition.type == "type" else own.list.type
            found[definition.name] = {tf.as_dtype(dtype).name for dtype in dtypes}
    return found


def _always(_: str) -> bool:
    return True


def _key(operation: tf.Operation) -> tuple[int, str]:
    return id(operation.graph), operation.name


def _description(operation: tf.Operation) -> str:
    types = {name: "/".join(sorted(own)) for name, own in sorted(type_attributes(operation).items())}
    return f"{operation.type} ({', '.join(f'{name} {own}' for name, own in types.items())})"


def _is_compiled(operation: tf.Operation) -> bool:
    return operation.type in CALLS and operation.node_def.attr["_XlaMustCompile"].b  # False without the attribute


def _is_constant(operation: tf.Operation, inputs: list[_Value]) -> bool:
    """Return whether an operation yields the same in every step."""
    return operation.type == "Const" or (
        bool(inputs) and not op_def_registry.get(operation.type).is_stateful and all(value.constant for value in inputs)
    )


def _needed(graph: tf.Graph) -> Iterator[tf.Operation]:
    """Yield the operations that a graph's results and side effects need, in an order in which they can run."""
    needed: set[str] = set()
    waiting = [*(tensor.op for tensor in graph.outputs), *graph.control_outputs]
    while waiting:
        operation = waiting.pop()
        if operation.name not in needed:
            needed.add(operation.name)
            waiting += [*(tensor.op for tensor in operation.inputs), *operation.control_inputs]
    yield from (operation for operation in graph.get_operations() if operation.name in needed)


def _functions(operation: tf.Operation, *attributes: str) -> list[Any]:
    """Return the graphs of the functions that an operation calls, which its attributes name."""
    values = [operation.node_def.attr[name] for name in attributes]
    functions = [function for value in values for function in (value.list.func or [value.func])]
    return [operation.graph._get_function(function.name).graph for function in functions]


def _arguments(operation: tf.Operation) -> tuple[list[_Argument], list[_Argument]]:
    """Return the inputs and the outputs of an operation with their names."""
    definition = op_def_registry.get(operation.type)
    return (
        _named(operation, definition.input_arg, list(operation.inputs)),
        _named(operation, definition.output_arg, operation.outputs),
    )


def _named(operation: tf.Operation, definitions: Any, tensors: list[tf.Tensor]) -> list[_Argument]:
    names = []
    for own in definitions:
        length = 1
        if own.number_attr:
            length = operation.node_def.attr[own.number_attr].i
        elif own.type_list_attr:
            length = len(operation.node_def.attr[own.type_list_attr].list.type)
        names += [own.name] * length
    return [_Argument(name, tensor) for name, tensor in zip(names, tensors, strict=True)]
