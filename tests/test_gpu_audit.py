"""benchmarks/gpu_audit.py: its counts on small graphs whose answers are known, and the project's graphs."""

import subprocess
import sys

import pytest
import tensorflow as tf

from benchmarks.gpu_audit import (
    ENVIRONMENT,
    EXCHANGES,
    PRECISIONS,
    TWO_LABELS,
    Limit,
    cases,
    kernels_file,
    main,
    set_up,
)
from benchmarks.gpu_graph import GpuKernels, Kernel, count
from benchmarks.harness import read_lines
from tests.helpers import ROOT, environment
from trainer.models import MODELS

BATCH = 64


def kernel(*host: str, **types: str) -> Kernel:
    return Kernel({name: frozenset(dtypes.split()) for name, dtypes in types.items()}, frozenset(host))


SHAPE_ARGUMENTS = ("begin", "end", "strides")
# As the GPU build registers them, for the dtypes of these tests.
KERNELS = GpuKernels(
    {
        "Const": [kernel(dtype="float32 int64 bool"), kernel("output", dtype="int32")],
        "NoOp": [kernel()],
        "Identity": [kernel(T="float32 float64 int64 bool"), kernel("input", "output", T="int32")],
        "AddV2": [kernel(T="float32 int64"), kernel("x", "y", "z", T="int32")],
        "Mul": [kernel(T="float32 int64")],
        "Cast": [kernel()],
        "Reshape": [kernel("shape", T="float32 int64"), kernel("tensor", "shape", "output", T="int32")],
        "StridedSlice": [
            kernel(*SHAPE_ARGUMENTS, T="float32 int64"),
            kernel("input", *SHAPE_ARGUMENTS, "output", T="int32"),
        ],
        "Unique": [kernel(T="int32 int64 float32", out_idx="int32 int64")],
        "GatherV2": [kernel("axis", Tparams="float32", Tindices="int32 int64")],
        "Sum": [kernel("reduction_indices", T="float32")],
        "Greater": [kernel(T="float32")],
        "ReadVariableOp": [kernel("resource")],
        "ResourceScatterUpdate": [kernel("resource", dtype="int64 float64", Tindices="int64")],
        "AssignVariableOp": [kernel("resource")],
    }
)


def counts_of(function, *shapes, dtype=tf.float32):
    """Counts of a function of tensors of one dtype."""
    specs = [tf.TensorSpec(shape, dtype) for shape in shapes]
    graph = tf.function(function, autograph=False).get_concrete_function(*specs).graph
    return count(graph, BATCH, KERNELS)


def test_int32_per_row_is_found_and_int64_is_not():
    counts = counts_of(lambda ids: tf.cast(ids[:, 1:2], tf.float32), [BATCH, 3], dtype=tf.int32)
    assert counts.per_row == {"argument (int32)": 1, "StridedSlice (input int32, output int32)": 1}
    assert counts.launches == {"Cast": 1} and counts.to_device == 1

    counts = counts_of(lambda ids: tf.cast(ids[:, 1:2], tf.float32), [BATCH, 3], dtype=tf.int64)
    assert counts.launches == {"StridedSlice": 1, "Cast": 1} and counts.per_row == {} and counts.to_device == 0


def test_int32_that_does_not_grow_with_the_batch_may_stay_on_the_host():
    counts = counts_of(lambda ids: ids[1:2] + 1, [BATCH - 1], dtype=tf.int32)
    assert counts.totals() == dict.fromkeys(counts.totals(), 0)


def test_arguments_are_the_tensors_that_a_call_brings():
    constant, variable = tf.constant([2.0, 3.0]), tf.Variable(1.0)
    counts = counts_of(lambda x, unused: x * constant[0] * variable, [BATCH], [None])
    assert counts.arguments == 2
    assert counts_of(lambda ids: ids + 1, [BATCH], dtype=tf.int32).arguments == 0  # stays in host memory


def test_unknown_sizes_grow_with_the_batch():
    counts = counts_of(lambda ids: tf.cast(ids + 1, tf.float32), [None], dtype=tf.int32)
    assert counts.per_row == {"argument (int32)": 1, "AddV2 (x int32, z int32)": 1}


def test_unique_is_a_sync_and_a_launch():
    counts = counts_of(lambda ids: tf.unique(ids).y, [BATCH], dtype=tf.int64)
    assert counts.syncs == {"Unique (T int64, out_idx int32)": 1}
    assert counts.launches == {"Unique": 1} and counts.to_host == 0


def test_tensor_read_by_several_operations_is_copied_once():
    def gather_twice(first, second):
        ids = tf.constant([1, 0]) + tf.cast(second[:2], tf.int32)  # the sum is computed on the host
        return tf.gather(first, ids), tf.gather(second, ids)

    counts = counts_of(gather_twice, [BATCH], [BATCH])
    assert counts.syncs == {"AddV2 reads y (int32) on the host": 1} and counts.to_host == 1
    assert counts.to_device == 1  # the sum, for both gathers
    assert counts.launches == {"StridedSlice": 1, "Cast": 1, "GatherV2": 2}


def test_predicate_is_a_sync_and_branches_count():
    def function(x):
        return tf.cond(tf.reduce_sum(x) > 0.0, lambda: x * 2.0, lambda: x + 1.0)

    counts = counts_of(function, [BATCH])
    assert counts.syncs == {"StatelessIf reads cond (bool) on the host": 1} and counts.to_host == 1
    assert counts.launches == {"Sum": 1, "Greater": 1, "Mul": 1, "AddV2": 1}


def test_index_of_a_case_is_a_sync():
    def function(x):
        return tf.switch_case(tf.cast(x[0], tf.int32), [lambda: x * 2.0, lambda: x + 1.0])

    counts = counts_of(function, [BATCH])
    assert counts.syncs == {"StatelessCase reads branch_index (int32) on the host": 1}
    assert counts.launches == {"StridedSlice": 1, "Cast": 1, "Mul": 1, "AddV2": 1}


def test_int32_passes_into_a_branch_through_host_memory():
    def function(x):
        _, index = tf.unique(x)
        return tf.cond(tf.reduce_sum(x) > 0.0, lambda: tf.gather(x, index), lambda: x)

    counts = counts_of(function, [BATCH])
    assert counts.per_row == {"StatelessIf (input int32)": 1}
    assert counts.to_host == 2 and counts.to_device == 1  # predicate and index; index in the branch


def test_functions_count_where_they_are_called():
    inner = tf.function(lambda x: x * 2.0, autograph=False)
    assert counts_of(lambda x: inner(inner(x)) + 1.0, [BATCH]).launches == {"Mul": 2, "AddV2": 1}


def test_compiled_function_is_one_launch():
    inner = tf.function(lambda ids, x: tf.gather(x, ids[:, 0] + 1) * 2.0, autograph=False, jit_compile=True)

    def function(x):
        return inner(tf.cast(x, tf.int32)[:, tf.newaxis], x) + 1.0

    counts = counts_of(function, [BATCH])
    assert counts.launches == {"Cast": 1, "function compiled by XLA": 1, "AddV2": 1}
    assert counts.per_row == {"StridedSlice (input int32, output int32)": 1}  # the new axis, outside of the function


def test_input_of_unknown_size_makes_xla_compile_again():
    inner = tf.function(lambda x, unused: x * 2.0, autograph=False, jit_compile=True)
    assert counts_of(inner, [BATCH, 3], [None, 3]).recompiles == {"float32 (None, 3)": 1}
    assert counts_of(lambda x, other: inner(x, other[:2]), [BATCH, 3], [BATCH]).recompiles == {}


def test_round_of_a_loop_counts_once():
    def function(x):
        return tf.while_loop(lambda x: tf.reduce_sum(x) > 0.0, lambda x: [x * 2.0], [x])[0]

    counts = counts_of(function, [BATCH])
    assert counts.syncs == {"StatelessWhile reads cond (bool) on the host": 1}
    assert counts.launches == {"Sum": 1, "Greater": 1, "Mul": 1}


def test_operation_without_a_kernel_runs_on_the_host():
    counts = counts_of(lambda x: tf.sin(x + 1.0) + 1.0, [BATCH])
    assert counts.no_gpu_kernel == {"Sin (T float32)": 1}
    assert counts.per_row == {"Sin (x float32, y float32)": 1}
    assert counts.launches == {"AddV2": 2} and counts.to_host == counts.to_device == 1
    assert counts.syncs == {"Sin reads x (float32) on the host": 1}


@pytest.mark.parametrize("dtype", [tf.int64, tf.float64])
def test_integers_are_scattered_on_the_host(dtype):
    """Although there is a kernel."""
    variable = tf.Variable(tf.zeros(9, dtype))

    def function(rows):
        tf.raw_ops.ResourceScatterUpdate(resource=variable.handle, indices=rows, updates=tf.ones(BATCH, dtype))

    counts = counts_of(function, [BATCH], dtype=tf.int64)
    on_host = {"ResourceScatterUpdate (Tindices int64, dtype int64)": 1}
    assert counts.no_gpu_kernel == (on_host if dtype == tf.int64 else {})


def test_operation_placed_on_the_cpu_runs_on_the_host():
    def function(x):
        with tf.device("/CPU:0"):
            return x * 2.0

    counts = counts_of(function, [BATCH])
    assert counts.no_gpu_kernel == {} and counts.per_row == {"Mul (x float32, z float32)": 1}


def test_clock_between_operations_is_a_sync():
    def function(x):
        doubled = x * 2.0
        with tf.control_dependencies([doubled]):
            return doubled, tf.timestamp()

    counts = counts_of(function, [BATCH])
    assert counts.no_gpu_kernel == counts.per_row == {}
    assert counts.syncs == {"Timestamp waits for the GPU": 1} and counts.launches == {"Mul": 1}


def test_unused_operations_and_operations_on_constants_do_not_count():
    def function(x):
        tf.unique(x)
        return x * (tf.constant([1.0, 2.0]) + 1.0)[0]

    assert counts_of(function, [BATCH]).launches == {"Mul": 1}


def test_assignments_count_without_a_result():
    variable = tf.Variable(1.0)

    def function(x):
        variable.assign(variable * x[0])

    assert counts_of(function, [BATCH]).launches == {"StridedSlice": 1, "Mul": 1}


def test_cases_cover_models_precisions_and_exchanges():
    own = [case for case in cases(list(MODELS)) if case.columns == TWO_LABELS]
    exchanges = [(case.workers, case.tables) for case in own]
    passes = [(case.precision, case.xla) for case in own]
    models = [case.model for case in own]
    combinations = len(PRECISIONS) * 2
    assert len(set(zip(models, passes, strict=True))) == len(MODELS) * combinations == len(own)
    assert len(set(zip(models, exchanges, strict=True))) == len(MODELS) * len(EXCHANGES)
    assert len(set(zip(exchanges, passes, strict=True))) == len(EXCHANGES) * combinations


def test_limit_applies_to_its_graphs_only():
    limit = Limit("host syncs, one worker", "syncs", 1, {"workers": 1})
    assert limit.holds({"workers": 1, "syncs": 1}) and limit.holds({"workers": 2, "syncs": 2})
    assert not limit.holds({"workers": 1, "syncs": 2})


def test_list_of_another_version_is_rejected(tmp_path):
    (tmp_path / "kernels.json").write_text('{"tensorflow": "1.0", "kernels": {}}')
    with pytest.raises(ValueError, match=f"has the kernels of TensorFlow 1.0, this is {tf.__version__}"):
        GpuKernels.read(tmp_path / "kernels.json")


def test_an_outdated_environment_is_reported_with_the_fix(tmp_path):
    (tmp_path / "kernels.json").write_text('{"tensorflow": "1.0", "kernels": {}}')
    with pytest.raises(SystemExit) as ended:
        main(["--environment", str(tmp_path)])
    message = str(ended.value)
    assert message.startswith(f"gpu_audit: {tmp_path / 'kernels.json'} has the kernels of")
    assert message.endswith("--setup")


@pytest.mark.slow
def test_project_keeps_the_limits(tmp_path):
    folder = ENVIRONMENT
    if not kernels_file(folder).exists():
        folder = tmp_path / "environment"
        try:
            set_up(folder)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"TensorFlow's GPU build cannot be installed: {error}")
    output = tmp_path / "lines.jsonl"
    command = [sys.executable, "-m", "benchmarks.gpu_audit", "--environment", folder, "--output", output]
    ended = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert output.exists(), ended.stderr
    lines = read_lines(output)
    assert {line["model"] for line in lines} == set(MODELS)
    for line in lines:
        assert not line["exceeded"], line
