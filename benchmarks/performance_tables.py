"""The tables of docs/performance.md, made of the lines of its benchmarks."""

from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness import Line, System, machines_table, markdown, system_of, systems_of


@dataclass(frozen=True)
class Figure:
    """A ratio that is asked for.

    Attributes:
        what: it is of, for people.
        benchmark: the lines that hold it.
        reach: the bound.
        at_least: whether it is a lower bound; else an upper one.
        where: fields by which one of several lines is chosen.
        key: its field; KEY_spread, where there is one, holds its least and greatest value.
    """

    what: str
    benchmark: str
    reach: float
    at_least: bool = True
    where: dict[str, Any] = field(default_factory=dict)
    key: str = "ratio"

    def lines(self, lines: list[Line]) -> list[Line]:
        """Those that hold it: one per machine."""
        wanted = {"benchmark": self.benchmark} | self.where
        return [line for line in lines if self.key in line and wanted.items() <= line.items()]

    def row(self, line: Line, machine: int) -> list[str]:
        """Its row in the table of figures."""
        value, spread = line[self.key], line.get(f"{self.key}_spread")
        reached = f"{value:g}" + (f" ({spread[0]:g} to {spread[1]:g})" if spread else "")
        holds = value >= self.reach if self.at_least else value <= self.reach
        asked = f"{'≥' if self.at_least else '≤'} {self.reach:g}"
        return [self.what, asked, reached, "yes" if holds else "**no**", str(machine), f"`{line['command']}`"]


STEP, PEERS = "training step over bare products", "training over public peers"
GROWTH, SENT = "step with larger tables", "bytes sent over a dense all-reduce"
MMOE, LAYER = "mmoe over perceptron", "dense_layer"
EMBEDDINGS, LONG_LISTS = "embedding step", {"variant": "lists, max_hotness 100"}
SHARDING = "sharded tables"
EVALUATION, MEMORY = "evaluation over training", "memory of training"
COST = "cost of reliability"
RAW, RAW_GROWTH = "raw preprocessing", "raw preprocessing, growth"
RAW_4GB, RAW_1GB = {"variant": "preprocess.py, 4GB"}, {"variant": "preprocess.py, 1GB"}
FIGURES = (
    Figure("training step, float32: FLOP/s over bare products'", STEP, 0.85, where={"variant": "float32"}),
    Figure("training step, `--amp`: FLOP/s over bare products'", STEP, 0.55, where={"variant": "bfloat16"}),
    Figure("training, float32: samples/s over the faster peer's", PEERS, 2.5, where={"variant": "float32"}),
    Figure("training, `--amp`: samples/s over the faster peer's", PEERS, 8, where={"variant": "--amp"}),
    Figure("tables 16 times as large: step time over the first", GROWTH, 1.15, at_least=False, where={"growth": 16}),
    Figure("embedding step: samples/s over FBGEMM's", EMBEDDINGS, 2.2, where={"variant": "criteo"}),
    Figure("embedding step: share of the limit", EMBEDDINGS, 0.7, key="share_of_limit"),
    Figure(
        "lists of 8 ids: step time at max_hotness 100 over 8",
        EMBEDDINGS,
        1.2,
        at_least=False,
        where=LONG_LISTS,
        key="over_max_hotness_8",
    ),
    Figure("lists of 8 ids, max_hotness 100: samples/s over FBGEMM's", EMBEDDINGS, 2, where=LONG_LISTS),
    Figure("two workers: bytes sent over a dense all-reduce's", SENT, 0.15, at_least=False),
    Figure(
        "MMoE, 8 experts of 256 and 128: step time over a perceptron's",
        MMOE,
        1.25,
        at_least=False,
        where={"what": "whole step"},
    ),
    Figure("loader: rows/s over pyarrow's bare read", "loader over bare read", 0.45),
    Figure("loader: rows/s over merlin.dataloader's", "loader over merlin.dataloader", 20),
    Figure("evaluation with metrics: samples/s over training's", EVALUATION, 2.5),
    Figure("training: peak memory over what is needed", MEMORY, 1.2, at_least=False),
    Figure(
        "checkpoints every 10 minutes: share of the time", COST, 0.035, at_least=False, where={"what": "checkpoints"}
    ),
    Figure(
        "fingerprints every 500 steps: share of the time", COST, 0.01, at_least=False, where={"what": "fingerprints"}
    ),
    Figure("checks of the data: share of the time", COST, 0.03, at_least=False, where={"what": "validation"}),
    Figure("raw CSV to dataset: rows/s over FuxiCTR's", RAW, 4, where=RAW_4GB, key="over_fuxictr"),
    Figure("raw CSV to dataset: rows/s over plain NVTabular's", RAW, 8, where=RAW_4GB, key="over_nvtabular"),
    Figure("raw CSV to dataset in 4 GB: rows/s over polars' in memory", RAW, 0.4, where=RAW_4GB, key="over_polars"),
    Figure("raw CSV to dataset in 1 GB: rows/s over polars' in memory", RAW, 0.3, where=RAW_1GB, key="over_polars"),
    Figure("raw CSV, 1 to 4 million rows: exponent of time", RAW_GROWTH, 1.1, at_least=False, key="time_exponent"),
    Figure("raw CSV in 1 GB: largest peak at any size, GB", RAW_GROWTH, 1, at_least=False, key="largest_peak_gb"),
)
# Table -> benchmark and its columns: heading -> field, or field and key in it.
DETAILS: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "step": (
        STEP,
        {
            "compute type": ("variant",),
            "samples/s": ("samples_per_second",),
            "step, GFLOP/s": ("step_gflop_per_second",),
            "bare products, GFLOP/s": ("bare_gflop_per_second",),
            "loader, ms": ("wait_for_data_ms",),
            "forward and backward, ms": ("compute_ms",),
            "exchange, ms": ("communicate_ms",),
            "update, ms": ("update_ms",),
        },
    ),
    "layer": (
        LAYER,
        {
            "type": ("dtype",),
            "dropout": ("dropout",),
            "bare products, ms": ("ms", "matmul"),
            "layer, ms": ("ms", "ours"),
            "with `--xla`, ms": ("ms", "ours_xla"),
            "Keras, ms": ("ms", "keras"),
            "share of the products": ("share_of_matmul",),
            "Keras' time over ours": ("over_keras",),
        },
    ),
    "mmoe": (
        MMOE,
        {
            "what": ("what",),
            "MMoE, ms": ("ms", "mmoe"),
            "perceptron, ms": ("ms", "perceptron"),
            "ratio": ("ratio",),
        },
    ),
    "peers": (
        PEERS,
        {
            "ours": ("variant",),
            "samples/s": ("samples_per_second",),
            "torch-rechub": ("peers_samples_per_second", "torch-rechub"),
            "deepctr-torch": ("peers_samples_per_second", "deepctr-torch"),
            "torch-rechub, batch in hand": ("peers_in_hand_samples_per_second", "torch-rechub"),
            "deepctr-torch, batch in hand": ("peers_in_hand_samples_per_second", "deepctr-torch"),
            "ratio, their batches in hand": ("ratio_in_hand",),
        },
    ),
    "growth": (
        GROWTH,
        {
            "cardinalities": ("growth",),
            "tables and their state, GB": ("tables_gb",),
            "step, ms": ("step_ms",),
            "over the first": ("ratio",),
        },
    ),
    "embeddings": (
        EMBEDDINGS,
        {
            "case": ("variant",),
            "samples/s": ("samples_per_second",),
            "FBGEMM, samples/s": ("fbgemm_samples_per_second",),
            "ratio": ("ratio",),
            "step, ms": ("step_ms",),
            "preparation of a batch, ms": ("prepare_ms",),
            "bare products, ms": ("bare_ms",),
            "bytes to move, ms": ("moved_ms",),
            "peak, GB": ("peak_gb",),
            "FBGEMM, GB": ("fbgemm_peak_gb",),
        },
    ),
    "exchange": (
        SENT,
        {
            "workers": ("workers",),
            "rows per table": ("table_rows",),
            "sums, MB": ("sent_mb_by_collective", "sum"),
            "rows gathered, MB": ("sent_mb_by_collective", "gather"),
            "rows exchanged, MB": ("sent_mb_by_collective", "exchange"),
            "all, MB": ("sent_mb",),
            "dense all-reduce, MB": ("dense_mb",),
        },
    ),
    "sharding": (
        SHARDING,
        {
            "workers": ("workers",),
            "parameters": ("parameters",),
            "`--shard_embeddings`": ("sharded",),
            "peak of a worker, GB": ("peak_gb",),
            "step, ms": ("step_ms",),
        },
    ),
    "evaluation": (
        EVALUATION,
        {
            "training, samples/s": ("training_samples_per_second",),
            "evaluation, samples/s": ("evaluation_samples_per_second",),
            "loader, ms per batch": ("wait_for_data_ms",),
            "model, ms per batch": ("forward_ms",),
            "metrics, ms per batch": ("metrics_ms",),
            "ratio of the model alone": ("forward_ratio",),
        },
    ),
    "cost": (
        COST,
        {
            "of": ("what",),
            "one takes, ms": ("cost_ms",),
            "step, ms": ("step_ms",),
            "share": ("ratio",),
        },
    ),
    "raw": (
        RAW,
        {
            "program": ("variant",),
            "rows": ("rows",),
            "seconds": ("seconds",),
            "without imports": ("working_seconds",),
            "rows/s": ("rows_per_second",),
            "peak, MiB": ("peak_mib",),
            "without mapped files": ("peak_own_mib",),
        },
    ),
    "memory": (
        MEMORY,
        {
            "peak, GB": ("peak_gb",),
            "needed, GB": ("needed_gb",),
            "weights": ("weights_gb",),
            "optimizer state": ("optimizer_gb",),
            "activations": ("activations_gb",),
            "TensorFlow": ("tensorflow_gb",),
        },
    ),
}


def all_tables(lines: list[Line]) -> dict[str, str]:
    """Every table of the page by name, as markdown."""
    systems = systems_of(lines)
    details = {name: _details(lines, systems, *about) for name, about in DETAILS.items()}
    return {"figures": _figures(lines, systems), "machines": machines_table(systems)} | details


def _figures(lines: list[Line], systems: list[System]) -> str:
    rows = []
    for figure in FIGURES:
        found = figure.lines(lines)
        rows += [figure.row(line, systems.index(system_of(line)) + 1) for line in found]
        if not found:
            rows.append(
                [figure.what, f"{'≥' if figure.at_least else '≤'} {figure.reach:g}", "not measured", "", "", ""]
            )
    return markdown(["what", "asked", "reached (least to greatest)", "holds", "machine", "command"], rows)


def _details(lines: list[Line], systems: list[System], benchmark: str, columns: dict[str, tuple[str, ...]]) -> str:
    rows = [
        [*(_text(line, path) for path in columns.values()), str(systems.index(system_of(line)) + 1)]
        for line in lines
        if line["benchmark"] == benchmark
    ]
    return markdown([*columns, "machine"], rows)


def _text(line: Line, path: tuple[str, ...]) -> str:
    value: Any = line
    for key in path:
        value = value.get(key, "")
    return f"{value:,}" if isinstance(value, int | float) else str(value)
