"""Wide & Deep on this project's tables, run by benchmarks/embedding_step.py: the counterpart of fbgemm_worker.py.

    python -m benchmarks.embedding_worker ROWS.npz SHAPE.json MAX_HOTNESS

Takes the files and answers the requests described there; its first line is {"prepare_ms": time per batch}.
"""

import contextlib
import json
import sys
import time
from itertools import count, cycle

import numpy as np
import tensorflow as tf

from benchmarks.mmoe_step import make_step
from data.loading.batch import Batch
from data.loading.lists import Lists, empty_lists
from trainer.layout import CategoricalInput, InputSchema
from trainer.step import step_input


def layout_of(cardinalities: list[int], width: int, numbers: int, max_hotness: int) -> InputSchema:
    features = (
        CategoricalInput(f"f{index}", index * max_hotness, max_hotness, max_hotness > 1, cardinality, width)
        for index, cardinality in enumerate(cardinalities)
    )
    return InputSchema(tuple(features), tuple(f"n{index}" for index in range(numbers)))


def batch_of(ids: np.ndarray, numbers: np.ndarray, labels: np.ndarray, *, has_lists: bool) -> Batch:
    """Return rows as the loader hands them over; ids are [batch, features, n], in lists or one per feature."""
    rows, features, count = ids.shape
    multihot = Lists(ids.reshape(-1), np.full((rows, features), count, np.int32))
    onehot = np.empty((rows, 0), np.int32) if has_lists else ids.reshape(rows, features)
    return Batch(
        onehot=onehot,
        id_lists=multihot if has_lists else empty_lists(rows, 0),
        number_lists=empty_lists(rows, 0, np.float32),
        numerical=numbers,
        vectors=np.zeros((rows, 0), np.float32),
        labels=labels[:, np.newaxis],
        weights=np.ones(rows, np.float32),
        group=None,
        rows=np.arange(rows),
    )


def main() -> None:
    rows_file, shape_file, hotness = sys.argv[1:]
    max_hotness = int(hotness)
    with open(shape_file) as file:
        shape = json.load(file)
    rows = dict(np.load(rows_file))
    layout = layout_of(shape["cardinalities"], shape["width"], rows["numbers"].shape[2], max_hotness)
    flags = ["--deep_hidden_units", *map(str, shape["hidden"]), "--deep_dropout", "0"]
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        step = make_step(flags, layout, rows["ids"].shape[1], tasks=1)
        model, inputs, prepare_ms = step.model, [], []
        for ids, numbers, labels in zip(rows["ids"], rows["numbers"], rows["labels"], strict=True):
            batch = batch_of(ids, numbers, labels, has_lists=max_hotness > 1)
            started = time.perf_counter()
            lookups, values = model.embeddings.lookups(batch.ids), model.layout.row_values(batch)
            inputs.append(step.packing.pack(step_input(batch, lookups, values, model.tasks)))
            prepare_ms.append(1000 * (time.perf_counter() - started))
        print(json.dumps({"prepare_ms": round(float(np.median(prepare_ms)), 1)}), file=answers, flush=True)
        batches, numbers_of_steps = cycle(inputs), count(1)
        for line in sys.stdin:
            seconds = []
            for _ in range(json.loads(line)["steps"]):
                started = time.perf_counter()
                step(next(batches), tf.constant(next(numbers_of_steps))).numpy()
                seconds.append(time.perf_counter() - started)
            print(json.dumps({"seconds": seconds}), file=answers, flush=True)


if __name__ == "__main__":
    main()
