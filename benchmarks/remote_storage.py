"""How fast the loader reads a dataset from an object store, over local files. JSON lines.

    python -m benchmarks.remote_storage [--rows 1000000] [--batch 16384] [--repeats 3]

The rows are random ones of Outbrain's 29 features. The store is moto's S3 server, a process of its own on loopback
that shares the cores with the loader: it shows what the client costs, not what a network does. In turns, a process
each reads an epoch of the local files, and of the store: with an empty cache (cold), with one that holds all row
groups (warm), and with an empty one limited to a quarter of the dataset (small). A ratio is the median over the turns
of the rows per second over those of the local files; `spread` has its smallest and largest value. `peak_mib` is the
largest peak memory of a process, `disk_mib` the disk that the cache takes in the end.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np

from benchmarks.harness import ROOT, report
from benchmarks.synthetic_rows import write_rows
from data.loading.loader import ParquetLoader
from data.spec.feature_spec import FeatureSpec
from data.storage import range_cache, remote
from tests.object_store import BUCKET, s3_server

SPEC = "feature_spec.yaml"


def read_epoch(spec_file: Path, batch: int) -> dict[str, float]:
    """Read an epoch in this process."""
    loader = ParquetLoader(FeatureSpec.read(spec_file), "train", global_batch_size=batch, shuffle=True)
    start, rows = time.perf_counter(), 0
    with closing(loader.epoch(0)) as batches:
        for read in batches:
            rows += np.count_nonzero(read.weights)
    if rows != loader.rows:
        raise RuntimeError("the loader lost rows")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {"rows_per_second": rows / (time.perf_counter() - start), "peak_mib": peak}


def in_process(spec_file: Path, batch: int, limit: int | None = None) -> dict[str, float]:
    """Read an epoch in a new process, with a limit of the cache in bytes."""
    command = [sys.executable, "-m", "benchmarks.remote_storage", "--read", str(spec_file), "--batch", str(batch)]
    variables = {} if limit is None else {range_cache.CACHE_LIMIT_VARIABLE: str(limit)}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | variables, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def compare(folder: Path, rows: int, batch: int, repeats: int) -> None:
    """Measure all cases in turns, and report them."""
    os.environ[remote.CACHE_DIR_VARIABLE] = str(folder / "cache")
    (folder / "data").mkdir()
    spec = write_rows(folder / "data", rows)
    stored = sum(path.stat().st_size for path in spec.files("train"))
    url = f"s3://{BUCKET}/data"
    remote.push_folder(folder / "data", url, SPEC)
    far = remote.pull_folder(url, SPEC, lambda name: name == SPEC) / SPEC
    parts = remote.cache_dir() / range_cache.FOLDER
    cases: dict[str, list[dict[str, float]]] = {name: [] for name in ("local", "cold", "warm", "small")}
    for _ in range(repeats):
        for name, found in cases.items():
            if name in ("cold", "small"):
                shutil.rmtree(parts, ignore_errors=True)
            path, limit = folder / "data" / SPEC if name == "local" else far, stored // 4 if name == "small" else None
            found.append(in_process(path, batch, limit))
            taken = sum(part.stat().st_blocks * 512 for part in parts.iterdir()) if name != "local" else 0
            found[-1]["disk_mib"] = taken / 2**20
    local = np.array([turn["rows_per_second"] for turn in cases["local"]])
    for name, found in cases.items():
        speed = np.array([turn["rows_per_second"] for turn in found])
        ratios = speed / local
        report(
            {
                "benchmark": "loader over local files",
                "files": name,
                "rows": rows,
                "batch": batch,
                "data_mib": round(stored / 2**20),
                "rows_per_second": round(float(np.median(speed))),
                "ratio": round(float(np.median(ratios)), 3),
                "spread": [round(float(ratios.min()), 3), round(float(ratios.max()), 3)],
                "peak_mib": round(max(turn["peak_mib"] for turn in found)),
                "disk_mib": round(max(turn["disk_mib"] for turn in found)),
            }
        )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the dataset")
    parser.add_argument("--batch", type=int, default=16_384, help="rows of a batch")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each case")
    parser.add_argument("--read", type=Path, metavar="SPEC", help="only read an epoch of this dataset")
    arguments = parser.parse_args(argv)
    if arguments.read is not None:
        print(json.dumps(read_epoch(arguments.read, arguments.batch)))
        return 0
    with tempfile.TemporaryDirectory() as folder, s3_server() as variables:
        os.environ.update(variables)
        compare(Path(folder), arguments.rows, arguments.batch, arguments.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
