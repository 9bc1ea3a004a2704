"""How fast the loader is: over pyarrow's bare read of the same file, and over merlin.dataloader. JSON lines.

    python -m benchmarks.loader_speed [--rows 1000000] [--batch 16384] [--repeats 7] [--id_dtype int64] [--merlin]
    python -m benchmarks.loader_speed --sequences 50 [--rows 200000] [--batch 8192]

The rows are random ones of Outbrain's 29 features, or with `--sequences` a one-hot feature and a sequence in three
columns, two of ids and one of numbers, of that many steps on average. They lie in snappy parquet with page checksums,
which both sides verify. The loader shuffles, checks every value, and hands over arrays per channel. Both sides take
turns; a ratio is the median over the turns of wall clock over wall clock, `ratio_spread` its smallest and largest
value, and `cpu_ratio` the same of CPU time, which a busy machine disturbs less. The lines `row_group_reads` need no
file: how many row groups the busiest of N workers reads in an epoch, over a fair share of them.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.harness import report
from benchmarks.synthetic_rows import write_rows, write_sequences
from data.loading.loader import ParquetLoader
from data.loading.shuffle import ShuffledPlan
from data.spec.feature_spec import FeatureSpec

LAYOUTS = {
    "1 million rows in groups of 131072": [131_072] * 7 + [82_496],
    "59 million rows in 8 files, groups of 131072": ([131_072] * 56 + [35_000]) * 8,
    "59 million rows in 8 files, groups of 65536": ([65_536] * 112 + [35_000]) * 8,
}


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Measure wall clock and CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def over_bare_read(spec: FeatureSpec, batch: int, repeats: int) -> dict[str, object]:
    loader = ParquetLoader(spec, "train", global_batch_size=batch, shuffle=True)
    (file,) = spec.files("train")

    def bare_read() -> None:
        pq.read_table(file, page_checksum_verification=True)

    def epoch(number: int) -> None:
        with closing(loader.epoch(number)) as batches:
            if sum(np.count_nonzero(batch.weights) for batch in batches) != loader.rows:
                raise RuntimeError("the loader lost rows")

    bare, ours = [], []
    for number in range(repeats):
        bare.append(seconds(bare_read))
        ours.append(seconds(lambda number=number: epoch(number)))
    ratios = np.array(bare) / np.array(ours)
    return {
        "benchmark": "loader over bare read",
        "rows": loader.rows,
        "batch": batch,
        "bare_rows_per_second": round(loader.rows / np.median(bare, axis=0)[0]),
        "rows_per_second": round(loader.rows / np.median(ours, axis=0)[0]),
        "ratio": round(np.median(ratios[:, 0]), 3),
        "ratio_spread": np.round([ratios[:, 0].min(), ratios[:, 0].max()], 3).tolist(),
        "cpu_ratio": round(np.median(ratios[:, 1]), 3),
    }


def over_merlin(spec: FeatureSpec, batch: int, repeats: int) -> dict[str, object]:
    """Run Merlin's loader with its defaults, shuffling, on the same file; its first batches are not counted."""
    import tensorflow  # noqa: F401  (first, or Merlin does without)
    from merlin.loader.tensorflow import Loader
    from merlin.schema import Tags

    from data.encoding.nvtabular_setup import Dataset

    dataset = Dataset([str(spec.files("train")[0])], engine="parquet")
    dataset.schema = dataset.schema.select_by_name([*(feature.name for feature in (*spec.inputs, *spec.labels))])
    for label in spec.labels:
        dataset.schema[label.name] = dataset.schema[label.name].with_tags([Tags.TARGET])
    loader = ParquetLoader(spec, "train", global_batch_size=batch, shuffle=True)

    def merlin_epoch() -> None:
        for _ in Loader(dataset, batch_size=batch, shuffle=True):
            pass

    merlin_epoch()
    theirs = [seconds(merlin_epoch)[0] for _ in range(max(1, repeats // 3))]
    ours = [seconds(lambda: list(loader.epoch(0)) and None)[0] for _ in range(repeats)]
    return {
        "benchmark": "loader over merlin.dataloader",
        "rows": loader.rows,
        "batch": batch,
        "merlin_rows_per_second": round(loader.rows / np.median(theirs)),
        "rows_per_second": round(loader.rows / np.median(ours)),
        "ratio": round(np.median(theirs) / np.median(ours), 1),
    }


def row_group_reads(layout: str, batch: int, workers: int) -> dict[str, object]:
    sizes = np.array(LAYOUTS[layout])
    plan = ShuffledPlan(sizes, batch, seed=0, epoch=0)
    reads = [
        sum(len(part.ranges) for stream in range(plan.streams) for part in plan.slices(stream, worker, workers))
        for worker in range(workers)
    ]
    return {
        "benchmark": "row_group_reads",
        "layout": layout,
        "batch": batch,
        "workers": workers,
        "row_groups": len(sizes),
        "busiest_worker": max(reads),
        "over_share": round(max(reads) * workers / len(sizes), 2),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the file")
    parser.add_argument("--batch", type=int, default=16_384, help="rows of a batch")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each side")
    parser.add_argument("--id_dtype", choices=["int32", "int64"], default="int64", help="as ids are stored")
    parser.add_argument("--sequences", type=int, default=0, metavar="STEPS", help="read sequences of this mean length")
    parser.add_argument("--merlin", action="store_true", help="measure merlin.dataloader too; imports TensorFlow")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.sequences:
            spec = write_sequences(Path(folder), arguments.rows, arguments.sequences, id_dtype=arguments.id_dtype)
            result = over_bare_read(spec, arguments.batch, arguments.repeats)
            result |= {"benchmark": "loader of sequences over bare read", "steps": arguments.sequences}
            report(result | {"id_dtype": arguments.id_dtype})
            return 0
        spec = write_rows(Path(folder), arguments.rows, id_dtype=arguments.id_dtype)
        result = over_bare_read(spec, arguments.batch, arguments.repeats)
        report(result | {"id_dtype": arguments.id_dtype})
        if arguments.merlin:
            report(over_merlin(spec, arguments.batch, arguments.repeats))
    for layout in LAYOUTS:
        for workers in (1, 2, 4, 8):
            report(row_group_reads(layout, 131_072, workers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
