"""Outbrain's preprocessing on cuDF frames against the same on pandas: one JSON line. gpu.py starts this.

    python -m benchmarks.gpu_preprocessing [--displays 20000]

data.outbrain.preproc prepares generated raw tables twice, once with the GPU and once without one, which has to give the
same rows in the same order: ids exactly, numbers within `limit`. Skipped where cuDF, NVTabular or a GPU is missing.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.gpu_parts import Skipped, parser_of_parts, run_parts
from benchmarks.harness import ROOT, Line

LIMIT = 1e-6  # relative for numbers beyond 1
PART = "cudf"


def measure(displays: int) -> Line:
    """Prepare the same tables twice."""
    require_gpu()
    from data.outbrain.synthesize import synthesize

    with tempfile.TemporaryDirectory() as folder:
        raw, outputs = Path(folder) / "raw", {name: Path(folder) / name for name in ("cudf", "pandas")}
        synthesize(raw, displays, seed=1)
        seconds = {
            "cudf": prepare(raw, outputs["cudf"], {}),
            "pandas": prepare(raw, outputs["pandas"], {"CUDA_VISIBLE_DEVICES": ""}),
        }
        tables = {name: stored_rows(output) for name, output in outputs.items()}
    difference = largest_difference(*tables.values())
    return {
        "rows": len(tables["cudf"]),
        "preparation_seconds": seconds,
        "largest_difference": difference,
        "limit": LIMIT,
        "passed": difference <= LIMIT,
    }


def require_gpu() -> None:
    """Raise Skipped if NVTabular would not work on cuDF frames here."""
    try:
        import cudf  # noqa: F401
    except Exception as error:  # without a driver, cuDF raises errors of several kinds
        raise Skipped(f"cuDF cannot be imported: {error}") from error
    try:
        from data.encoding.nvtabular_setup import ON_GPU
    except ImportError as error:
        raise Skipped(f"NVTabular cannot be imported: {error}") from error
    if not ON_GPU:
        raise Skipped("NVTabular sees no GPU")


def prepare(raw: Path, output: Path, environment: dict[str, str]) -> float:
    """Run the command; return its seconds."""
    command = [sys.executable, "-m", "data.outbrain.preproc", "--data_path", str(raw), "--metadata_path", str(output)]
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=os.environ | environment, stdout=sys.stderr, check=True)
    return round(time.perf_counter() - started, 1)


def stored_rows(dataset: Path) -> pa.Table:
    """Return the rows of all files of a dataset."""
    return pa.concat_tables(pq.read_table(file) for file in sorted(dataset.rglob("*.parquet")))


def largest_difference(found: pa.Table, expected: pa.Table) -> float:
    """Return the largest difference of two numbers; infinite if an id, a list, the columns or the rows differ."""
    if found.schema != expected.schema or len(found) != len(expected):
        return float("inf")
    return max((_difference(found[name], expected[name]) for name in found.column_names), default=0.0)


def _difference(found: pa.ChunkedArray, expected: pa.ChunkedArray) -> float:
    """Return the largest difference of two columns."""
    if found.equals(expected):
        return 0.0
    if not pa.types.is_floating(expected.type):
        return float("inf")
    one, other = found.to_numpy(), expected.to_numpy()
    off_by = np.abs(one - other) / np.maximum(1, np.abs(other))
    return float(np.max(np.where(np.isnan(one) & np.isnan(other), 0, np.nan_to_num(off_by, nan=np.inf)), initial=0))


def main(argv: list[str] | None = None) -> int:
    parser = parser_of_parts(__doc__, [PART])
    parser.add_argument("--displays", type=int, default=20_000, help="size of the generated tables")
    arguments = parser.parse_args(argv)
    run_parts({PART: lambda: measure(arguments.displays)}, arguments.parts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
