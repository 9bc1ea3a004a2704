"""Behavior sequences: whether attention finds the step that matters, and how fast a step is. One JSON line per case.

    python -m benchmarks.sequences planted [--encoders din self_attention mean sum] [--train 60000] [--epochs 6]
    python -m benchmarks.sequences speed [--batch 8192] [--length 50] [--width 32] [--encoders din] [--fill 1.0] [--amp]
        [--alone]

`planted` trains on made-up rows whose label depends on one step of the history, that with an item of the target's
topic, at any place among items of other topics: on whether the user liked that item (`similar step`) and, in the second
set, on how long ago that was (`similar step, age`). Topics of items have to be learned from their ids. `reached` is how
far the AUC of new rows has come from 0.5 to `ceiling`, that of the probabilities which the labels are drawn from.

`speed` measures steps of Wide & Deep whose only features are an item and the `--length` items clicked before, with
`--fill` of the steps present on average. Lookups are prepared ahead, as the loader does it: `prepare_ms` of one thread.
`cpu_ms` is the time of all threads in a step. `ratio` is our samples per second over those of the faster of two
variants of FuxiCTR's DIN (fuxictr_din_worker.py), the median over steps in turn: one updates all rows of its table in
every step, as FuxiCTR does, the other those of the batch. FuxiCTR's environment is that of benchmarks/quality.py.
`--alone` measures our steps only, and needs no other program.
"""

import json
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tensorflow as tf

from benchmarks.embedding_step import over_turns
from benchmarks.harness import ROOT, Line, parser_of, report
from benchmarks.mmoe_step import make_step, seconds
from benchmarks.quality import ENVIRONMENT
from benchmarks.side_process import SideProcess, python_of
from data.loading.batch import Batch
from data.loading.lists import Lists, join_columns
from trainer.evaluate import Forward
from trainer.layout import CategoricalInput, InputSchema, SequenceInput
from trainer.models.ranking import RankingModel
from trainer.step import StepInput, step_input

TOPICS, ITEMS_OF_TOPIC, STEPS = 10, 5, 12
STRENGTH, AGED_STRENGTH, DECAY = 2.5, 4.0, 2.0  # of the logit, and how fast it falls with a step's age in [0, 1)
WIDTH, LIKED_WIDTH, PLANTED_BATCH = 16, 4, 256
# Of `speed`.
ITEMS, BATCHES, HIDDEN, ATTENTION_HIDDEN = 100_000, 4, (256, 128), (64, 32)


def planted_layout(encoder: str, *, has_age: bool) -> InputSchema:
    """Describe an item, and the items clicked before with whether the user liked them and, if wanted, their age."""
    item = CategoricalInput("item", 0, 1, False, TOPICS * ITEMS_OF_TOPIC, WIDTH)
    clicked = replace(item, name="clicked_item", start=1, hotness=STEPS, multihot=True, wide="no", sequence="clicks")
    liked = replace(clicked, name="liked", start=1 + STEPS, cardinality=2, width=LIKED_WIDTH, table="liked")
    ages = ("age",) if has_age else ()
    clicks = SequenceInput("clicks", STEPS, encoder, ("clicked_item", "liked"), ages, ("item", ""))
    return InputSchema((item, clicked, liked), (), (clicks,))


def speed_layout(encoder: str, items: int, width: int, length: int) -> InputSchema:
    """Describe an item and the items clicked before."""
    item = CategoricalInput("item", 0, 1, False, items, width)
    clicked = CategoricalInput("clicked_item", 1, length, True, items, width, "item", wide="no", sequence="clicks")
    clicks = SequenceInput("clicks", length, encoder, ("clicked_item",), targets=("item",))
    return InputSchema((item, clicked), (), (clicks,))


def batch_of(item: np.ndarray, clicked: Lists, ages: Lists, labels: np.ndarray) -> Batch:
    """Make rows as the loader hands them over; item and labels are [rows]."""
    rows = len(item)
    return Batch(
        onehot=item[:, np.newaxis].astype(np.int32),
        id_lists=clicked,
        number_lists=ages,
        numerical=np.empty((rows, 0), np.float32),
        vectors=np.empty((rows, 0), np.float32),
        labels=labels[:, np.newaxis].astype(np.float32),
        weights=np.ones(rows, np.float32),
        group=None,
        rows=np.arange(rows),
    )


def planted_rows(rows: int, seed: int, *, has_age: bool) -> tuple[Batch, np.ndarray]:
    """Draw rows of `planted`, and the logit of each one's label, [rows]."""
    rng = np.random.default_rng(seed)
    topic = rng.integers(0, TOPICS, rows)
    lengths = rng.integers(1, STEPS + 1, rows)
    cells = np.repeat(np.arange(rows), lengths)
    topics = (topic[cells] + rng.integers(1, TOPICS, len(cells))) % TOPICS  # any other than the target's
    similar = np.cumsum(lengths) - 1 - (rng.random(rows) * lengths).astype(int)  # the step that counts
    topics[similar] = topic
    items, liked = topics * ITEMS_OF_TOPIC + rng.integers(0, ITEMS_OF_TOPIC, len(cells)), rng.integers(0, 2, len(cells))
    ages = rng.random(len(cells)).astype(np.float32)
    logits = (2 * liked[similar] - 1) * (AGED_STRENGTH * np.exp(-DECAY * ages[similar]) if has_age else STRENGTH)
    labels = rng.random(rows) < 1 / (1 + np.exp(-logits))
    lists = lengths[:, np.newaxis].astype(np.int32)
    clicked = join_columns([Lists(own.astype(np.int32), lists) for own in (items, liked)])
    numbers = Lists(ages, lists) if has_age else Lists(ages[:0], lists[:, :0])
    item = topic * ITEMS_OF_TOPIC + rng.integers(0, ITEMS_OF_TOPIC, rows)
    return batch_of(item, clicked, numbers, labels), logits


def input_of(batch: Batch, model: RankingModel) -> StepInput[np.ndarray]:
    """Return the arrays of a training step."""
    return step_input(batch, model.embeddings.lookups(batch.ids), model.layout.row_values(batch), model.tasks)


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of pairs of a positive and a negative row in the right order; no ties are expected."""
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores, kind="stable")] = np.arange(1, len(scores) + 1)
    positives = labels.sum()
    return float((ranks[labels > 0].sum() - positives * (positives + 1) / 2) / (positives * (len(labels) - positives)))


def rows_of(batch: Batch, rows: np.ndarray) -> Batch:
    """Return the rows at the given positions."""
    columns = {
        name: getattr(batch, name)[rows] for name in ("onehot", "numerical", "vectors", "labels", "weights", "rows")
    }
    return batch._replace(id_lists=batch.id_lists.take(rows), number_lists=batch.number_lists.take(rows), **columns)


def train_planted(
    encoder: str, train: int, test: int, epochs: int, *, has_age: bool, seed: int = 0
) -> dict[str, float]:
    """Train on planted rows and return the AUC of new ones, the ceiling, and the share of the way to it."""
    layout = planted_layout(encoder, has_age=has_age)
    flags = (
        "--optimizer adam --deep_schedule constant --deep_learning_rate 0.003 --deep_hidden_units 64 --deep_dropout 0"
    )
    step = make_step([*flags.split(), "--seed", str(seed)], layout, PLANTED_BATCH, tasks=1)
    batch, _ = planted_rows(train, 2 * seed, has_age=has_age)
    rng, number = np.random.default_rng(seed), 0
    for _ in range(epochs):
        order = rng.permutation(train)
        for first in range(0, train - PLANTED_BATCH + 1, PLANTED_BATCH):
            number += 1
            rows = rows_of(batch, order[first : first + PLANTED_BATCH])
            step(step.packing.pack(input_of(rows, step.model)), tf.constant(number))
    new, logits = planted_rows(test, 2 * seed + 1, has_age=has_age)
    inputs = input_of(new, step.model)
    forward = Forward(step.model, test, xla=False)
    scores = forward.run(forward.packing.pack((inputs.lookups, inputs.values))).numpy()[:, 0]
    found, ceiling = auc(scores, new.labels[:, 0]), auc(logits, new.labels[:, 0])
    return {"auc": found, "ceiling": ceiling, "reached": (found - 0.5) / (ceiling - 0.5)}


def speed(
    encoder: str, batch: int, length: int, width: int, fill: float, repeats: int, flags: list[str], peers: Path | None
) -> Line:
    """Measure steps over batches of random rows, and those of the peers in turn with them."""
    rng, layout = np.random.default_rng(0), speed_layout(encoder, ITEMS, width, length)
    units = "--deep_hidden_units", *map(str, HIDDEN), "--attention_hidden_units", *map(str, ATTENTION_HIDDEN)
    step = make_step([*flags, *units], layout, batch, tasks=1)
    lengths = np.full(batch, length) if fill == 1 else rng.binomial(length, fill, batch)
    lists = lengths[:, np.newaxis].astype(np.int32)
    inputs, prepare, rows = [], [], []
    for _ in range(BATCHES):
        ids, labels = (ITEMS * rng.random(lengths.sum() + batch) ** 2).astype(np.int32), rng.random(batch) < 0.2
        clicked = Lists(ids[batch:], lists)
        made = batch_of(ids[:batch], clicked, Lists(np.empty(0, np.float32), lists[:, :0]), labels)
        started = time.perf_counter()
        inputs.append(step.packing.pack(input_of(made, step.model)))
        prepare.append(time.perf_counter() - started)
        rows.append({"target": ids[:batch], "history": clicked.padded([length], -1), "labels": labels.astype("f4")})
    with TemporaryDirectory() as folder, ExitStack() as stack:
        sides = start_peers(rows, width, Path(folder), peers, stack) if peers else {}
        times: dict[str, list[float]] = {name: [] for name in ("ours", *sides)}
        cpu = []
        for number in range(1, repeats + 3):
            started = time.process_time()
            times["ours"].append(seconds(step, inputs[number % len(inputs)], number))
            cpu.append(time.process_time() - started)
            for name, side in sides.items():
                times[name] += side.ask(steps=1)["seconds"]
        found = {name: np.array(own[2:]) for name, own in times.items()}  # the first two trace and warm up
        versions = next((side.ready["versions"] for side in sides.values()), {})
    step_ms = 1000 * np.percentile(found["ours"], [25, 50, 75])
    line = {
        "step_ms": round(float(step_ms[1]), 1),
        "step_ms_spread": np.round(step_ms[[0, 2]], 1).tolist(),
        "cpu_ms": round(1000 * float(np.median(cpu[2:])), 1),
        "samples_per_s": round(batch / step_ms[1] * 1000),
        "prepare_ms": round(1000 * float(np.median(prepare)), 1),
    }
    if sides:
        line |= {"peer_versions": versions}
        line |= {f"{name}_step_ms": round(1000 * float(np.median(found[name])), 1) for name in sides}
        fastest = min(sides, key=lambda name: np.median(found[name]))
        line |= over_turns("ratio", found[fastest] / found["ours"])
    return line


def start_peers(
    rows: list[dict[str, np.ndarray]], width: int, folder: Path, environment: Path, stack: ExitStack
) -> dict[str, SideProcess]:
    """Start FuxiCTR's DIN on the same rows, once with updates of all rows of its table, once with those of a batch."""
    np.savez(folder / "rows.npz", **{name: np.stack([each[name] for each in rows]) for name in rows[0]})
    program = [
        str(python_of(environment)),
        str(ROOT / "benchmarks" / "fuxictr_din_worker.py"),
        str(folder / "rows.npz"),
    ]
    sides = {}
    for name, sparse in (("fuxictr", False), ("fuxictr_sparse", True)):
        shape = {
            "rows": ITEMS,
            "width": width,
            "hidden": HIDDEN,
            "attention_hidden": ATTENTION_HIDDEN,
            "sparse": sparse,
        }
        (folder / f"{name}.json").write_text(json.dumps(shape))
        command = [*program, str(folder / f"{name}.json"), str(len(os.sched_getaffinity(0)))]
        sides[name] = stack.enter_context(SideProcess(name, command))
    return sides


def main(argv: list[str] | None = None) -> int:
    parser = parser_of(__doc__)
    parser.set_defaults(batch=8192)
    parser.add_argument("what", choices=["planted", "speed"])
    parser.add_argument("--encoders", nargs="+", help="default: all for planted, din for speed")
    parser.add_argument("--train", type=int, default=60_000, help="planted: training rows")
    parser.add_argument("--test", type=int, default=20_000, help="planted: new rows")
    parser.add_argument("--epochs", type=int, default=6, help="planted: passes over the training rows")
    parser.add_argument("--length", type=int, default=50, help="speed: largest number of steps")
    parser.add_argument("--width", type=int, default=32, help="speed: width of the embeddings")
    parser.add_argument("--fill", type=float, default=1.0, help="speed: share of the steps that exist")
    parser.add_argument("--repeats", type=int, default=9, help="speed: steps that are measured")
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT, help="speed: folder of FuxiCTR's environment")
    parser.add_argument("--amp", action="store_true", help="speed: products in bfloat16")
    parser.add_argument("--alone", action="store_true", help="speed: without FuxiCTR")
    arguments = parser.parse_args(argv)
    if arguments.what == "planted":
        for has_age in (False, True):
            for encoder in arguments.encoders or ["din", "self_attention", "mean", "sum"]:
                found = train_planted(encoder, arguments.train, arguments.test, arguments.epochs, has_age=has_age)
                what = "similar step, age" if has_age else "similar step"
                rounded = {name: round(value, 4) for name, value in found.items()}
                report({"benchmark": "planted sequence", "what": what, "encoder": encoder, **rounded})
        return 0
    flags = ["--amp", "--amp_dtype", "bfloat16"] if arguments.amp else []
    if not arguments.alone and not python_of(arguments.environment).is_file():
        parser.error(f"{arguments.environment} is missing: make it with python -m benchmarks.quality --setup")
    for encoder in arguments.encoders or ["din"]:
        sizes = {name: getattr(arguments, name) for name in ("batch", "length", "width", "fill")}
        peers = arguments.environment if encoder == "din" and not arguments.alone else None
        found = speed(encoder, **sizes, repeats=arguments.repeats, flags=flags, peers=peers)
        report({"benchmark": "sequence step", "encoder": encoder, **sizes, "amp": arguments.amp, **found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
