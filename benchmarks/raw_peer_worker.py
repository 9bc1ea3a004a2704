"""Another program's preprocessing of a Criteo-like file, run by benchmarks/raw_preprocessing.py in an own process.

    python raw_peer_worker.py PEER TRAIN.csv OUTPUT

The file has a header: label, I1 to I13 (integers, some empty) and C1 to C26 (texts, some empty). Every peer gives ids
to the texts that occur twice or more, fills and standardizes the numbers, and writes parquet to the folder OUTPUT. It
prints a line of JSON: `vocabulary`, the number of texts with an id of their own per column, and `working_seconds`,
which exclude imports and the start of Ray.

This file does not import anything of this project.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

NUMBERS = [f"I{number}" for number in range(1, 14)]
TEXTS = [f"C{number}" for number in range(1, 27)]
LABEL = "label"
MIN_COUNT = 2

# Takes the file and the output's folder; returns the number of texts with an id of their own per column.
Job = Callable[[Path, Path], dict[str, int]]


def with_polars() -> Job:
    """Return a job for Polars as written by hand, with everything in memory."""
    import polars as pl

    def job(file: Path, output: Path) -> dict[str, int]:
        types = {LABEL: pl.Float32} | dict.fromkeys(NUMBERS, pl.Float32) | dict.fromkeys(TEXTS, pl.String)
        table = pl.read_csv(file, schema_overrides=types)
        filled = (pl.col(name).fill_null(0) for name in NUMBERS)
        table = table.with_columns((numbers - numbers.mean()) / numbers.std() for numbers in filled)
        sizes = {}
        for name in TEXTS:
            counts = table[name].drop_nulls().value_counts(sort=True).filter(pl.col("count") >= MIN_COUNT)
            # 1 is null, 2 is rare.
            ids = counts.select(name, pl.int_range(3, 3 + pl.len(), dtype=pl.Int32).alias("id"))
            found = table.select(name).join(ids, on=name, how="left", maintain_order="left")["id"].fill_null(2)
            is_null = pl.col(name).is_null()
            table = table.with_columns(pl.when(is_null).then(1).otherwise(found).cast(pl.Int32).alias(name))
            sizes[name] = counts.height
        table.write_parquet(output / "train.parquet")
        return sizes

    return job


def with_nvtabular() -> Job:
    """Return a job for NVTabular's own operators in one process."""
    os.environ["DASK_DATAFRAME__QUERY_PLANNING"] = os.environ["DASK_DATAFRAME__CONVERT_STRING"] = "False"
    sys.modules["tensorflow"] = None  # type: ignore[assignment]  # it is imported for its dtypes only
    import nvtabular as nvt
    from nvtabular import ops

    def job(file: Path, output: Path) -> dict[str, int]:
        types = {LABEL: "float32"} | dict.fromkeys(NUMBERS, "float64") | dict.fromkeys(TEXTS, "str")
        ids = TEXTS >> ops.Categorify(freq_threshold=MIN_COUNT, out_path=str(output / "categories"))
        numbers = NUMBERS >> ops.FillMissing() >> ops.Normalize()
        workflow = nvt.Workflow(ids + numbers + [LABEL])
        data = nvt.Dataset(str(file), engine="csv", part_size="128MB", dtype=types)
        workflow.fit(data)
        workflow.transform(data).to_parquet(output_path=str(output / "train"))
        first_known = 3  # after padding, null and values that are rare or unseen
        return {name: size - first_known for name, (size, _) in ops.get_embedding_sizes(workflow).items()}

    return job


def with_fuxictr() -> Job:
    """Return a job for FuxiCTR's preprocessing, configured as for its Criteo data sets."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from fuxictr.preprocess import FeatureProcessor, build_dataset
    from fuxictr.preprocess.build_dataset import init_ray

    init_ray()

    def job(file: Path, output: Path) -> dict[str, int]:
        number = {"active": True, "dtype": "float", "type": "numeric", "normalizer": "StandardScaler", "fill_na": 0}
        text = {"active": True, "dtype": "str", "type": "categorical", "fill_na": ""}
        columns = [{"name": NUMBERS, **number}, {"name": TEXTS, **text}]
        label = {"name": LABEL, "dtype": "float"}
        encoder = FeatureProcessor(columns, label, dataset_id="criteo", data_root=str(output))
        build_dataset(encoder, train_data=str(file), min_categr_count=MIN_COUNT)
        features = encoder.feature_map.features
        return {name: features[name]["vocab_size"] - 2 for name in TEXTS}  # without padding and unseen values

    return job


PEERS = {"polars": with_polars, "nvtabular": with_nvtabular, "fuxictr": with_fuxictr}


def main() -> None:
    peer, file, output = sys.argv[1:]
    with contextlib.redirect_stdout(sys.stderr):
        job = PEERS[peer]()
        begin = time.perf_counter()
        vocabulary = job(Path(file), Path(output))
        seconds = time.perf_counter() - begin
    print(json.dumps({"vocabulary": vocabulary, "working_seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
