"""Makes the tables of docs/performance.md from the lines of its benchmarks."""

from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu_tables import gpu_section
from benchmarks.harness import Line, System, machines_table, markdown, system_of, systems_of
from benchmarks.scaling_model import scaling_tables


@dataclass(frozen=True)
class Figure:
    """A figure with a target.

    Attributes:
        what: its name on the page.
        benchmark: name of the benchmark whose lines contain it.
        target: the bound.
        at_least: whether the target is a lower bound; an upper one otherwise.
        where: fields that select one of several lines.
        key: field of its value; KEY_spread, if there is one, has the smallest and the largest value.
    """

    what: str
    benchmark: str
    target: float
    at_least: bool = True
    where: dict[str, Any] = field(default_factory=dict)
    key: str = "ratio"

    def lines(self, lines: list[Line]) -> list[Line]:
        """Return the lines that contain it, one per machine."""
        wanted = {"benchmark": self.benchmark} | self.where
        return [line for line in lines if self.key in line and wanted.items() <= line.items()]

    def row(self, line: Line, machine: int) -> list[str]:
        """Return its row in the table of figures."""
        value, spread = line[self.key], line.get(f"{self.key}_spread")
        measured = f"{value:g}" + (f" ({spread[0]:g} to {spread[1]:g})" if spread else "")
        met = value >= self.target if self.at_least else value <= self.target
        return [self.what, self.bound, measured, "yes" if met else "**no**", str(machine), f"`{line['command']}`"]

    @property
    def bound(self) -> str:
        """The target as text, such as "≥ 0.85"."""
        return f"{'≥' if self.at_least else '≤'} {self.target:g}"


STEP, PEERS = "training step over bare products", "training over public peers"
GROWTH, SENT = "step with larger tables", "bytes sent over a dense all-reduce"
MMOE, LAYER = "mmoe over perceptron", "dense_layer"
SEQUENCE_STEP, PLANTED = "sequence step", "planted sequence"
PLANTED_SETS = {
    "step of a sequence": {"what": "similar step", "encoder": "din"},
    "step of a sequence, weighted by its age": {"what": "similar step, age", "encoder": "din"},
}
EMBEDDINGS, LONG_LISTS = "embedding step", {"variant": "lists, max_hotness 100"}
SHARDING = "sharded tables"
EVALUATION, MEMORY = "evaluation over training", "memory over its estimate"
COST = "cost of reliability"
RAW, RAW_GROWTH = "raw preprocessing", "raw preprocessing, growth"
RAW_4GB, RAW_1GB = {"variant": "preprocess.py, 4GB"}, {"variant": "preprocess.py, 1GB"}
FIGURES = (
    Figure("training step, float32: step FLOP/s ÷ matmul FLOP/s", STEP, 0.85, where={"variant": "float32"}),
    Figure("training step, `--amp`: step FLOP/s ÷ matmul FLOP/s", STEP, 0.55, where={"variant": "bfloat16"}),
    Figure("training, float32: samples/s ÷ samples/s of the faster peer", PEERS, 2.5, where={"variant": "float32"}),
    Figure("training, `--amp`: samples/s ÷ samples/s of the faster peer", PEERS, 8, where={"variant": "--amp"}),
    Figure(
        "tables 16 times as large: step time ÷ step time of the original size",
        GROWTH,
        1.15,
        at_least=False,
        where={"growth": 16},
    ),
    Figure("embedding step: samples/s ÷ FBGEMM samples/s", EMBEDDINGS, 2.2, where={"variant": "criteo"}),
    Figure("embedding step: lower bound of the step time ÷ step time", EMBEDDINGS, 0.7, key="share_of_limit"),
    Figure(
        "lists of 8 ids: step time at max_hotness 100 ÷ step time at max_hotness 8",
        EMBEDDINGS,
        1.2,
        at_least=False,
        where=LONG_LISTS,
        key="over_max_hotness_8",
    ),
    Figure("lists of 8 ids, max_hotness 100: samples/s ÷ FBGEMM samples/s", EMBEDDINGS, 2, where=LONG_LISTS),
    Figure("DIN over 50 steps: samples/s ÷ samples/s of FuxiCTR's DIN", SEQUENCE_STEP, 2),
    *(
        Figure(
            f"planted {what}, DIN: share of the way from AUC 0.5 to the best AUC",
            PLANTED,
            0.85,
            where=where,
            key="reached",
        )
        for what, where in PLANTED_SETS.items()
    ),
    Figure("two workers: bytes sent ÷ bytes of a dense all-reduce", SENT, 0.15, at_least=False),
    Figure(
        "MMoE, 8 experts of 256 and 128: step time ÷ step time of a perceptron",
        MMOE,
        1.25,
        at_least=False,
        where={"what": "whole step"},
    ),
    Figure("loader: rows/s ÷ rows/s of a read by pyarrow", "loader over bare read", 0.45),
    Figure(
        "loader of three lists of 50: rows/s ÷ rows/s of a read by pyarrow", "loader of sequences over bare read", 0.4
    ),
    Figure("loader: rows/s ÷ merlin.dataloader rows/s", "loader over merlin.dataloader", 20),
    Figure("evaluation with metrics: samples/s ÷ training samples/s", EVALUATION, 2.5),
    Figure(
        "memory: largest deviation of a measured peak from its estimate, 8 configurations",
        f"{MEMORY}, all",
        0.15,
        at_least=False,
        where={"configurations": 8},
        key="largest_deviation",
    ),
    Figure(
        "checkpoints every 10 minutes: share of the time", COST, 0.035, at_least=False, where={"what": "checkpoints"}
    ),
    Figure(
        "fingerprints every 500 steps: share of the time", COST, 0.01, at_least=False, where={"what": "fingerprints"}
    ),
    Figure("data validation: share of the time", COST, 0.03, at_least=False, where={"what": "validation"}),
    Figure("raw CSV to dataset: rows/s ÷ FuxiCTR rows/s", RAW, 4, where=RAW_4GB, key="over_fuxictr"),
    Figure("raw CSV to dataset: rows/s ÷ plain NVTabular rows/s", RAW, 8, where=RAW_4GB, key="over_nvtabular"),
    Figure(
        "raw CSV to dataset in 4 GB: rows/s ÷ rows/s of polars in memory", RAW, 0.4, where=RAW_4GB, key="over_polars"
    ),
    Figure(
        "raw CSV to dataset in 1 GB: rows/s ÷ rows/s of polars in memory", RAW, 0.3, where=RAW_1GB, key="over_polars"
    ),
    Figure(
        "raw CSV, 1 to 8 million rows: exponent of time over rows", RAW_GROWTH, 1.1, at_least=False, key="time_exponent"
    ),
    Figure(
        "raw CSV in 1 GB: largest peak at any number of rows, GB", RAW_GROWTH, 1, at_least=False, key="largest_peak_gb"
    ),
)
# Table -> benchmark and its columns: heading -> field, or field and key in it.
DETAILS: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "step": (
        STEP,
        {
            "compute type": ("variant",),
            "samples/s": ("samples_per_second",),
            "step, GFLOP/s": ("step_gflop_per_second",),
            "matmul, GFLOP/s": ("bare_gflop_per_second",),
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
            "matmul, ms": ("ms", "matmul"),
            "layer, ms": ("ms", "ours"),
            "with `--xla`, ms": ("ms", "ours_xla"),
            "Keras, ms": ("ms", "keras"),
            "matmul ÷ layer": ("share_of_matmul",),
            "Keras ÷ layer": ("over_keras",),
        },
    ),
    "mmoe": (
        MMOE,
        {
            "what": ("what",),
            "MMoE, ms": ("ms", "mmoe"),
            "perceptron, ms": ("ms", "perceptron"),
            "MMoE ÷ perceptron": ("ratio",),
        },
    ),
    "peers": (
        PEERS,
        {
            "ours": ("variant",),
            "samples/s": ("samples_per_second",),
            "torch-rechub": ("peers_samples_per_second", "torch-rechub"),
            "deepctr-torch": ("peers_samples_per_second", "deepctr-torch"),
            "torch-rechub without loader": ("peers_in_hand_samples_per_second", "torch-rechub"),
            "deepctr-torch without loader": ("peers_in_hand_samples_per_second", "deepctr-torch"),
            "ours ÷ faster peer without loader": ("ratio_in_hand",),
        },
    ),
    "growth": (
        GROWTH,
        {
            "factor of the cardinalities": ("growth",),
            "tables and their state, GB": ("tables_gb",),
            "step, ms": ("step_ms",),
            "step ÷ step at factor 1": ("ratio",),
        },
    ),
    "embeddings": (
        EMBEDDINGS,
        {
            "case": ("variant",),
            "samples/s": ("samples_per_second",),
            "FBGEMM, samples/s": ("fbgemm_samples_per_second",),
            "samples/s ÷ FBGEMM samples/s": ("ratio",),
            "step, ms": ("step_ms",),
            "preparation of a batch, ms": ("prepare_ms",),
            "matmul alone, ms": ("bare_ms",),
            "memory traffic alone, ms": ("moved_ms",),
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
            "total, MB": ("sent_mb",),
            "dense all-reduce, MB": ("dense_mb",),
        },
    ),
    "sharding": (
        SHARDING,
        {
            "workers": ("workers",),
            "parameters": ("parameters",),
            "`--shard_embeddings`": ("sharded",),
            "peak per worker, GB": ("peak_gb",),
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
            "training step ÷ model time in evaluation": ("forward_ratio",),
        },
    ),
    "cost": (
        COST,
        {
            "what": ("what",),
            "time of one, ms": ("cost_ms",),
            "step, ms": ("step_ms",),
            "share of the time": ("ratio",),
        },
    ),
    "raw": (
        RAW,
        {
            "program": ("variant",),
            "rows": ("rows",),
            "seconds": ("seconds",),
            "seconds without imports": ("working_seconds",),
            "rows/s": ("rows_per_second",),
            "peak, MiB": ("peak_mib",),
            "peak without mapped files, MiB": ("peak_own_mib",),
        },
    ),
    "memory": (
        MEMORY,
        {
            "configuration": ("variant",),
            "peak, GB": ("peak_gb",),
            "estimate, GB": ("estimated_gb",),
            "peak ÷ estimate": ("ratio",),
            "tables": ("parts_gb", "tables"),
            "activations": ("parts_gb", "activations"),
            "evaluation": ("parts_gb", "evaluation"),
        },
    ),
}


def all_tables(lines: list[Line]) -> dict[str, str]:
    """Return every table of the page by name, as Markdown. Those of the scaling model are calculated, not measured."""
    systems = systems_of(lines)
    details = {name: _details(lines, systems, *about) for name, about in DETAILS.items()}
    tables = {
        "figures": _figures(lines, systems),
        "machines": machines_table(systems),
        "gpu": gpu_section(lines, systems),
    }
    return tables | details | scaling_tables()


def _figures(lines: list[Line], systems: list[System]) -> str:
    rows = []
    for figure in FIGURES:
        found = figure.lines(lines)
        rows += [figure.row(line, systems.index(system_of(line)) + 1) for line in found]
        if not found:
            rows.append([figure.what, figure.bound, "not measured", "", "", ""])
    return markdown(["what", "target", "measured, median (min to max)", "met", "machine", "command"], rows)


def _details(lines: list[Line], systems: list[System], benchmark: str, columns: dict[str, tuple[str, ...]]) -> str:
    rows = [
        [*(_text(line, path) for path in columns.values()), str(systems.index(system_of(line)) + 1)]
        for line in lines
        if line["benchmark"] == benchmark
    ]
    return markdown([*columns, "machine"], rows) if rows else "Not measured yet."


def _text(line: Line, path: tuple[str, ...]) -> str:
    value: Any = line
    for key in path:
        value = value.get(key, "")
    return f"{value:,}" if isinstance(value, int | float) else str(value)
