"""What --export_dtype does to exports: their size, the change of their predictions, and the peak memory of export.py.

    python -m benchmarks.export_size --model_dir M --dataset_path DATA [--formats savedmodel onnx triton]
    python -m benchmarks.export_size --rows 6291456 --width 128

The first command exports the model of a run, and measures the change on the mapping `test` of a dataset. The second
one exports a Wide & Deep model with a single table of random numbers, without a dataset.

Prints a JSON line per format and type with `bytes` of the files in the export (hard links count once), `ratio` to
those of float32, `peak_mib` of resident memory of the process, `seconds`, and the entries of export.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import get_args

from benchmarks.harness import ROOT, report
from benchmarks.side_process import peak_bytes
from trainer.export import FORMATS
from trainer.export.request import REPORT_FILE, ExportDtype


def main() -> int:
    """Export, measure, print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_dir", type=Path, help="--model_dir of a run")
    parser.add_argument("--dataset_path", type=Path, help="a dataset of the same features (default: random rows)")
    parser.add_argument("--rows", type=int, default=6 * 2**20, help="rows of the random table (default: %(default)s)")
    parser.add_argument("--width", type=int, default=128, help="numbers in a random row (default: %(default)s)")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=["savedmodel", "onnx"], help="what is written")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model_dir = arguments.model_dir
        if model_dir is None:
            model_dir = Path(folder) / "model"
            _write(model_dir, arguments.rows, arguments.width)
        for name in arguments.formats:
            _measure(name, model_dir, arguments.dataset_path, Path(folder))
    return 0


def _write(model_dir: Path, rows: int, width: int) -> None:
    """Write a model with a large table in a process of its own, whose memory is free afterwards."""
    code = (
        "import sys, pathlib; from tests.trainer.export.models import write_large_run; "
        "write_large_run(pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:]))"
    )
    subprocess.run([sys.executable, "-c", code, str(model_dir), str(rows), str(width)], cwd=ROOT, check=True)


def _measure(name: str, model_dir: Path, dataset: Path | None, folder: Path) -> None:
    of_float32 = 0
    for dtype in get_args(ExportDtype):
        output = folder / f"{name}_{dtype}"
        flags = ["--model_dir", model_dir, "--output", output, "--format", name, "--export_dtype", dtype]
        flags += [] if dataset is None else ["--dataset_path", dataset]
        start = time.perf_counter()
        peak = peak_bytes([sys.executable, "export.py", *flags])
        size = _size(output)
        of_float32 = of_float32 or size
        measured = {
            "onnxruntime": version("onnxruntime"),
            "bytes": size,
            "ratio": round(size / of_float32, 4),
            "peak_mib": round(peak / 2**20),
            "seconds": round(time.perf_counter() - start, 1),
        }
        report(measured | json.loads((output / REPORT_FILE).read_text()))


def _size(output: Path) -> int:
    files = {stat.st_ino: stat.st_size for path in output.rglob("*") if path.is_file() and (stat := path.stat())}
    return sum(files.values())


if __name__ == "__main__":
    sys.exit(main())
