"""Training against two public peers on the same rows: one JSON line per precision of ours.

    python -m benchmarks.peers --setup       # once: makes the peers' environment, with pip
    python -m benchmarks.peers [--batch 16384] [--hidden 1024 1024 1024 1024 1024] [--turns 5]

torch-rechub 0.9.0's WideDeep and deepctr-torch 0.3.0's WDL train as their documentation runs them (peer_worker.py says
how, and where they differ), with Adam, on as many threads as the default Wide & Deep here: Outbrain's 29 features, the
same tables, widths where the peer allows it, hidden layers, dropout 0.1, rows and batch. Each peer is a process of its
own; all take turns, a step each, loaders included. A loader of ours has its next batches ready when its turn comes,
which is worth the `wait_for_data_ms` of step_speed.

`ratio` is samples per second over the faster peer's, the median over the turns, `ratio_spread` its smallest and largest
value. `ratio_in_hand` is the same with the peers' batches put together before the clock starts, and ours not.
"""

import argparse
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.harness import ROOT, measure_and_report, parser_of
from benchmarks.side_process import SideProcess, make_environment, python_of
from benchmarks.synthetic_rows import write_rows
from data.loading.batch import PAD
from data.loading.lists import join_rows
from data.loading.loader import ParquetLoader
from data.spec.feature_spec import FeatureSpec

ENVIRONMENT = ROOT / ".peers"
# deepctr-torch imports requests and does not ask for it.
PACKAGES = ("torch==2.13.0", "torch-rechub==0.9.0", "deepctr-torch==0.3.0", "requests==2.34.2")
PEERS = ("torch-rechub", "deepctr-torch")
BATCHES = 4  # of the dataset
DROPOUT = 0.1


class Peer(SideProcess):
    """A peer in its own process.

    Args:
        name: one of PEERS.
        environment: folder of the virtual environment that holds it.
        rows, shape: files as peer_worker.py wants them.
    """

    def __init__(self, name: str, environment: Path, rows: Path, shape: Path):
        program = [str(python_of(environment)), str(ROOT / "benchmarks" / "peer_worker.py")]
        threads = str(len(os.sched_getaffinity(0)))
        # Importing deepctr-torch starts a thread that asks a package index for a newer version: not from here.
        offline = os.environ | {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
        super().__init__(name, [*program, name, str(rows), str(shape), threads], offline)
        self.versions: dict[str, str] = self.ready["ready"]
        self.widths: str = self.ready["widths"]

    def seconds(self, steps: int, *, in_hand: bool) -> float:
        """Measure the wall clock of training steps; with `in_hand` batches are put together before the clock starts."""
        return self.ask(steps=steps, in_hand=in_hand)["seconds"]


def write_for_peers(spec: FeatureSpec, widths: dict[str, int], arguments: argparse.Namespace, folder: Path) -> None:
    """Write the training rows and what describes them, as peer_worker.py wants them."""
    loader = ParquetLoader(spec, "train", global_batch_size=arguments.batch, shuffle=False)
    batches = list(loader.epoch(0))
    widths_of_lists = [feature.max_hotness or 1 for feature in spec.multihot]
    np.savez(
        folder / "rows.npz",
        onehot=np.concatenate([batch.onehot for batch in batches]),
        multihot=join_rows([batch.id_lists for batch in batches]).padded(widths_of_lists, PAD),
        numerical=np.concatenate([batch.numerical for batch in batches]),
        labels=np.concatenate([batch.labels[:, 0] for batch in batches]),
    )
    shape = {
        "batch": arguments.batch,
        "hidden": arguments.hidden,
        "dropout": DROPOUT,
        "onehot": [[feature.name, feature.cardinality, widths[feature.name]] for feature in spec.onehot],
        "multihot": [
            [feature.name, feature.cardinality, widths[feature.name], feature.max_hotness] for feature in spec.multihot
        ],
        "numerical": [feature.name for feature in spec.numerical],
    }
    (folder / "shape.json").write_text(json.dumps(shape))


def measure(folder: Path, arguments: argparse.Namespace) -> list[dict[str, object]]:
    from benchmarks.training_run import TrainingRun

    spec = write_rows(folder, BATCHES * arguments.batch)
    sizes = ["--global_batch_size", str(arguments.batch), "--deep_hidden_units", *map(str, arguments.hidden)]
    flags = [*sizes, "--deep_dropout", str(DROPOUT)]
    with ExitStack() as stack:
        ours = {"float32": TrainingRun(folder, *flags), "--amp": TrainingRun(folder, *flags, "--amp")}
        layout = ours["float32"].trainer.data.layout
        write_for_peers(spec, {columns.name: columns.width for columns in layout.categorical}, arguments, folder)
        files = (folder / "rows.npz", folder / "shape.json")
        peers = {name: stack.enter_context(Peer(name, arguments.environment, *files)) for name in PEERS}
        for run in ours.values():
            run.seconds(2)
        for peer in peers.values():
            peer.seconds(1, in_hand=True)
        turns = [
            (
                [run.seconds(1) for run in ours.values()],
                [peer.seconds(1, in_hand=False) for peer in peers.values()],
                [peer.seconds(1, in_hand=True) for peer in peers.values()],
            )
            for _ in range(arguments.turns)
        ]
        versions = {package: number for peer in peers.values() for package, number in peer.versions.items()}
        widths = {name: peer.widths for name, peer in peers.items()}
    results: list[dict[str, object]] = []
    own, documented, in_hand = (np.array(side) for side in zip(*turns, strict=True))
    for index, variant in enumerate(ours):
        ratios = documented.min(axis=1) / own[:, index]
        results.append(
            {
                "benchmark": "training over public peers",
                "variant": variant,
                "batch": arguments.batch,
                "hidden": arguments.hidden,
                "samples_per_second": rate(arguments.batch, own[:, index]),
                "peers_samples_per_second": dict(zip(PEERS, rates(arguments.batch, documented), strict=True)),
                "peers_in_hand_samples_per_second": dict(zip(PEERS, rates(arguments.batch, in_hand), strict=True)),
                "peers_versions": versions,
                "peers_widths": widths,
                "ratio": round(float(np.median(ratios)), 2),
                "ratio_spread": np.round([ratios.min(), ratios.max()], 2).tolist(),
                "ratio_in_hand": round(float(np.median(in_hand.min(axis=1) / own[:, index])), 2),
            }
        )
    return results


def rate(batch: int, seconds: np.ndarray) -> int:
    """Return the samples per second of the median step."""
    return round(batch / float(np.median(seconds)))


def rates(batch: int, seconds: np.ndarray) -> list[int]:
    """Return the same for each column of seconds [turns, sides]."""
    return [rate(batch, column) for column in seconds.T]


def main(argv: list[str] | None = None) -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--setup", action="store_true", help="make the environment and measure nothing")
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT, help="folder of the peers' environment")
    parser.add_argument("--hidden", type=int, nargs="+", default=[1024] * 5, help="hidden layers of the deep part")
    parser.add_argument("--turns", type=int, default=5, help="steps of each side that count")
    arguments = parser.parse_args(argv)
    if arguments.setup:
        make_environment(arguments.environment, PACKAGES)
        return 0
    if not python_of(arguments.environment).exists():
        parser.error(f"{arguments.environment} holds no environment: make it with python -m benchmarks.peers --setup")
    return measure_and_report(measure, arguments)


if __name__ == "__main__":
    sys.exit(main())
