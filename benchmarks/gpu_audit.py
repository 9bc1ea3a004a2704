"""What training and evaluation would do on a GPU, counted on a CPU: host operations, syncs, launches and copies.

    python -m benchmarks.gpu_audit --setup       # once: TensorFlow's GPU build in its own environment, with pip
    python -m benchmarks.gpu_audit [--models wide_deep ...] [--output gpu_audit.jsonl]

Traces the training step and the evaluation of every model, in every precision, with and without --xla, for one worker
and for one of two, with every exchange of gradients and with sharded tables. Each operation is then looked up among
the kernels that the GPU build registers. Nothing is trained, and no GPU is needed. gpu_graph.py defines what is
counted. The models have the columns of feature_specs/two_labels.yaml; Wide & Deep is also traced with Outbrain's
columns, whose many tables show in the launches.

Prints three tables: the counts (of several models and precisions, the least and the greatest), the limits, and the
operations that the limits are about. Exits with 1 if a limit is exceeded. --output writes a JSON line per graph.
"""

import argparse
import subprocess
import sys
import tempfile
import venv
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

from benchmarks.harness import ROOT, Line, about, command, markdown, versions, write_lines
from benchmarks.synthetic_rows import write_mapping, write_rows
from data.spec.feature_spec import FeatureSpec
from trainer.models import MODELS

if TYPE_CHECKING:
    import tensorflow as tf

    from benchmarks.gpu_graph import GpuKernels
    from trainer.comm import Comm

ENVIRONMENT = ROOT / ".gpu_kernels"
BATCH = 8192  # rows of a worker's step, more than any dimension that does not grow with the batch
TWO_LABELS, OUTBRAIN = "two labels", "Outbrain"
OUTBRAIN_ROWS = 300  # of each table, so that all of them together have fewer rows than the batch
PRECISIONS = {
    "float32": (),
    "float16": ("--amp", "--amp_dtype", "float16"),
    "bfloat16": ("--amp", "--amp_dtype", "bfloat16"),
}
# How tables are kept and their gradients exchanged: flags of main.py.
TABLES = {
    "whole": ("--table_exchange", "whole"),
    "rows": ("--table_exchange", "rows"),
    "sharded": ("--shard_embeddings",),
}
# Number of workers, and a key of TABLES.
EXCHANGES = ((1, "whole"), (1, "rows"), (2, "whole"), (2, "rows"), (2, "sharded"))
SMALL_LAYERS = ["--deep_hidden_units", "64", "32", "--expert_hidden_units", "32", "16", "--tower_hidden_units", "8"]
TRAINING, EVALUATION = "training step", "evaluation"
KINDS = {
    "no_gpu_kernel": "no GPU kernel",
    "per_row": "per-row host ops",
    "syncs": "host syncs",
    "launches": "launches",
    "recompiles": "XLA inputs of varying size",
    "collectives": "collectives",
    "arguments": "arguments",
    "to_device": "copies to device",
    "to_host": "copies to host",
}


class Limit(NamedTuple):
    """An upper bound on what a graph may do.

    Attributes:
        name: what is limited, and where.
        kind: a key of KINDS.
        at_most: the largest number allowed in a graph.
        graphs: entries of the lines that it applies to.
    """

    name: str
    kind: str
    at_most: int
    graphs: Mapping[str, Any] = {}

    def applies(self, line: Line) -> bool:
        """Return whether it applies to the graph of a line."""
        return self.graphs.items() <= line.items()

    def holds(self, line: Line) -> bool:
        """Return whether the graph of a line keeps the limit; True if the limit does not apply to it."""
        return not self.applies(line) or line[self.kind] <= self.at_most


# Launches of Wide & Deep's training step on Outbrain's columns (one worker, float32, --xla). They were 688 and 703 when
# every table had lookups and updates of its own, and XLA compiled no updates.
LAUNCHES = {"whole": 64, "rows": 200}

LIMITS = (
    Limit("operations without a GPU kernel", "no_gpu_kernel", 0),
    Limit("per-row host operations", "per_row", 0),
    Limit("inputs of varying size to what XLA compiles", "recompiles", 0),
    Limit("host syncs, one worker", "syncs", 1, {"workers": 1}),
    Limit("host syncs, two workers", "syncs", 2, {"workers": 2, "tables": "whole"}),
    Limit("host syncs, two workers, sparse exchange", "syncs", 3, {"workers": 2, "tables": "rows"}),
    Limit("host syncs, two workers, sharded tables", "syncs", 3, {"workers": 2, "tables": "sharded"}),
    Limit("arguments of a step: a batch and the control flags", "arguments", 2, {"part": TRAINING}),
    Limit("arguments of an evaluation: a batch", "arguments", 1, {"part": EVALUATION}),
    Limit("host syncs in an evaluation", "syncs", 0, {"part": EVALUATION}),
    *(
        Limit(
            f"launches, Outbrain's columns, --xla, --table_exchange {tables}",
            "launches",
            at_most,
            {"part": TRAINING, "columns": OUTBRAIN, "xla": True, "tables": tables},
        )
        for tables, at_most in LAUNCHES.items()
    ),
)


class Case(NamedTuple):
    """A configuration to trace.

    Attributes:
        columns: the dataset, TWO_LABELS or OUTBRAIN.
        model: a key of MODELS.
        precision: a key of PRECISIONS.
        xla: whether XLA compiles the passes.
        workers: number of workers.
        tables: a key of TABLES.
    """

    columns: str
    model: str
    precision: str
    xla: bool
    workers: int
    tables: str

    @property
    def flags(self) -> list[str]:
        """The flags of main.py."""
        batches = ["--global_batch_size", str(BATCH * self.workers), "--eval_batch_size", str(BATCH * self.workers)]
        xla = ["--xla"] if self.xla else []
        return ["--model", self.model, *batches, *PRECISIONS[self.precision], *TABLES[self.tables], *xla, *SMALL_LAYERS]


def cases(models: list[str]) -> list[Case]:
    """Return the configurations of the given models.

    Every model comes in every precision, with and without --xla. Exchanges rotate over these: with all models, each one
    comes with every model, and in every precision with and without --xla.
    """
    passes = list(product(PRECISIONS, (False, True)))
    rotated = [
        Case(TWO_LABELS, model, *own, *EXCHANGES[(row + column) % len(EXCHANGES)])
        for (row, model), (column, own) in product(enumerate(models), enumerate(passes))
    ]
    outbrain = [Case(OUTBRAIN, "wide_deep", "float32", True, 1, tables) for tables in LAUNCHES]
    return rotated + (outbrain if "wide_deep" in models else [])


def write_datasets(folder: Path) -> dict[str, Path]:
    """Write a batch for each of two workers; return the folder of each dataset."""
    folders = {name: folder / name.replace(" ", "_") for name in (TWO_LABELS, OUTBRAIN)}
    for own in folders.values():
        own.mkdir()
    write_rows(folders[OUTBRAIN], 2 * BATCH, cardinality=OUTBRAIN_ROWS)
    document = FeatureSpec.read(ROOT / "feature_specs" / "two_labels.yaml").to_dict()
    spec = FeatureSpec.from_dict(document, folders[TWO_LABELS])
    chunks = {mapping: (write_mapping(spec, mapping, 2 * BATCH),) for mapping in ("train", "test")}
    spec.with_sources(chunks, spec.folder).write(spec.folder / "feature_spec.yaml")
    return folders


@contextmanager
def as_if_on_gpu() -> Iterator[None]:
    """Make the trainer build what it builds on a GPU."""
    with mock.patch("tensorflow.config.get_visible_devices", return_value=["GPU:0"]):
        yield


def one_of(workers: int) -> "Comm":
    """Return the collectives of one of several workers whose steps are traced, but never run."""
    from trainer.comm import HorovodWorkers, SingleWorker

    class TracedWorkers(HorovodWorkers):
        def __init__(self) -> None:
            super().__init__()
            self.rank, self.size = 0, workers

    return SingleWorker() if workers == 1 else TracedWorkers()


def graphs_of(case: Case, dataset: Path) -> "dict[str, tf.Graph]":
    """Trace a configuration on a dataset; return the graphs of its training step and of its evaluation."""

    from trainer.build import make_model, make_training
    from trainer.cli import parse
    from trainer.evaluate import Evaluator
    from trainer.inputs import open_inputs
    from trainer.process.worker_env import WorkerEnv
    from trainer.tasks.evaluation import Evaluation

    folders = ["--dataset_path", str(dataset), "--results_dir", str(dataset / "results"), "--recipe", "published"]
    config = parse([*folders, *case.flags], case.workers)
    data = open_inputs(config, WorkerEnv(size=case.workers, local_size=case.workers))
    comm = one_of(case.workers)
    model = make_model(config, data, comm)
    step = make_training(config, model, comm, 1, data.train_loader.local_batch_size).step
    evaluator = Evaluator(model, data.eval_loader, Evaluation(model.tasks, with_group=False), comm, xla=case.xla)
    return {
        TRAINING: step.run.get_concrete_function().graph,
        EVALUATION: evaluator._forward.run.get_concrete_function().graph,
    }


def audit(case: Case, dataset: Path, kernels: "GpuKernels") -> list[Line]:
    """Count what the graphs of a configuration would do; return a line for each."""
    from benchmarks.gpu_graph import count

    with as_if_on_gpu():
        graphs = graphs_of(case, dataset)
    lines: list[Line] = []
    for part, graph in graphs.items():
        counts = count(graph, BATCH, kernels)
        operations = {kind: dict(own.most_common()) for kind, own in vars(counts).items() if isinstance(own, Counter)}
        line = {"benchmark": "GPU audit", "part": part, **case._asdict(), **counts.totals(), "operations": operations}
        exceeded = [limit.name for limit in LIMITS if not limit.holds(line)]
        lines.append(about(command()) | line | {"exceeded": exceeded})
    return lines


def counts_table(lines: list[Line]) -> str:
    """Format the counts of graphs that differ only in model and precision as one row."""
    keys = ("part", "columns", "workers", "tables", "xla")
    groups: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        groups.setdefault(tuple(line[key] for key in keys), []).append(line)
    rows = []
    for (*names, xla), own in sorted(groups.items(), key=lambda group: tuple(map(str, group[0]))):
        ranges = [(min(line[kind] for line in own), max(line[kind] for line in own)) for kind in KINDS]
        numbers = [f"{least}" if least == most else f"{least} to {most}" for least, most in ranges]
        rows.append([*map(str, names), "yes" if xla else "no", str(len(own)), *numbers])
    return markdown([*keys[:-1], "--xla", "graphs", *KINDS.values()], rows)


def limits_table(lines: list[Line]) -> str:
    """Format the limits, each with the graph that has the greatest count."""
    rows = []
    for limit in LIMITS:
        worst = max(filter(limit.applies, lines), key=lambda line: line[limit.kind], default=None)
        if worst is not None:
            workers = f"{worst['workers']} worker(s)"
            where = ", ".join([worst["part"], worst["model"], worst["precision"], workers, worst["tables"]])
            holds = "yes" if limit.holds(worst) else "**no**"
            rows.append([limit.name, str(limit.at_most), str(worst[limit.kind]), where, holds])
    return markdown(["limit", "at most", "found", "in", "holds"], rows)


def operations_table(lines: list[Line]) -> str:
    """Format the operations that the limits are about, other than launches."""
    rows = []
    for kind in ("no_gpu_kernel", "per_row", "syncs", "recompiles"):
        most: Counter[str] = Counter()
        graphs: Counter[str] = Counter()
        for line in lines:
            most |= Counter(line["operations"][kind])
            graphs.update(line["operations"][kind].keys())
        rows += [[KINDS[kind], name, str(number), str(graphs[name])] for name, number in most.most_common()]
    return markdown(["what", "operation", "most in a graph", "graphs"], rows)


def set_up(environment: Path) -> None:
    """Install TensorFlow's GPU build, where pip's own settings say, and list its kernels.

    Raises:
        subprocess.CalledProcessError: pip or the list failed.
    """
    venv.create(environment, with_pip=True, symlinks=True)
    python = environment / "bin" / "python"
    package = f"tensorflow=={versions()['tensorflow']}"  # on PyPI, tensorflow is the GPU build
    subprocess.run([python, "-m", "pip", "install", "--no-compile", package], check=True)
    program = [python, "-P", ROOT / "benchmarks" / "gpu_kernels.py"]
    kernels_file(environment).write_bytes(subprocess.run(program, stdout=subprocess.PIPE, check=True).stdout)


def kernels_file(environment: Path) -> Path:
    """Return the list of kernels in an environment."""
    return environment / "kernels.json"


def measure(models: list[str], environment: Path) -> list[Line]:
    """Audit all configurations of the given models; return a line for each graph."""
    from trainer.process.startup import import_tensorflow

    import_tensorflow()
    from benchmarks.gpu_graph import GpuKernels

    try:
        kernels = GpuKernels.read(kernels_file(environment))
    except ValueError as error:
        raise SystemExit(f"gpu_audit: {error}; make it again with python -m benchmarks.gpu_audit --setup") from None
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as folder:
        datasets = write_datasets(Path(folder))
        for case in cases(models):
            lines += audit(case, datasets[case.columns], kernels)
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", action="store_true", help="make the environment and audit nothing")
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT, help="folder of TensorFlow's GPU build")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="models to audit")
    parser.add_argument("--output", type=Path, help="file the lines are written to")
    arguments = parser.parse_args(argv)
    if arguments.setup:
        set_up(arguments.environment)
        return 0
    if not kernels_file(arguments.environment).exists():
        parser.error(f"{arguments.environment} lists no kernels: make it with python -m benchmarks.gpu_audit --setup")
    lines = measure(arguments.models, arguments.environment)
    if arguments.output:
        write_lines(arguments.output, lines)
    print(counts_table(lines), limits_table(lines), operations_table(lines), sep="\n\n")
    return 1 if any(line["exceeded"] for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
