"""Wide & Deep on FBGEMM's fused tables, run by benchmarks/embedding_step.py in FBGEMM's own environment.

    python fbgemm_worker.py ROWS.npz SHAPE.json THREADS

Knows nothing of this project. Reads a JSON line per request from standard input and prints a JSON line for each:
{"versions": {package: version}} at first, then {"seconds": [wall clock of each step]} for each {"steps": N}.

SHAPE.json: {"cardinalities": [rows of each table], "width": of the embeddings, "hidden": [units]}. ROWS.npz: ids
[batches, batch, features, ids per feature] int32, numbers [batches, batch, numbers] float32, labels [batches, batch]
float32.
"""

import importlib.metadata
import json
import sys
import time
from itertools import cycle

import numpy as np
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)

WIDE_WIDTH = 4  # the smallest that FBGEMM takes; one column is used
RATE = 0.01


def fused_tables(cardinalities, width):
    """Create tables that are updated with row-wise Adagrad during the backward pass."""
    tables = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, width, EmbeddingLocation.HOST, ComputeDevice.CPU) for rows in cardinalities],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=RATE,
        pooling_mode=PoolingMode.SUM,
    )
    tables.init_embedding_weights_uniform(-0.01, 0.01)
    return tables


class WideDeep(torch.nn.Module):
    """Sum-pooled embeddings and numbers through a perceptron, plus a weight for each id."""

    def __init__(self, shape, numbers):
        super().__init__()
        self._features = len(shape["cardinalities"])
        self.deep = fused_tables(shape["cardinalities"], shape["width"])
        self.wide = fused_tables(shape["cardinalities"], WIDE_WIDTH)
        widths = [self._features * shape["width"] + numbers, *shape["hidden"]]
        layers = []
        for inputs, outputs in zip(widths[:-1], widths[1:], strict=True):
            layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
        self.perceptron = torch.nn.Sequential(*layers, torch.nn.Linear(widths[-1], 1))
        self.wide_numbers = torch.nn.Linear(numbers, 1)

    def forward(self, values, offsets, numbers):
        deep = self.perceptron(torch.cat([self.deep(values, offsets), numbers], dim=1))
        wide = self.wide(values, offsets).view(-1, self._features, WIDE_WIDTH)[:, :, 0].sum(dim=1, keepdim=True)
        return deep + wide + self.wide_numbers(numbers)


def batches_of(rows):
    """Return the values and offsets (feature by feature, as FBGEMM wants them), numbers and labels of each batch."""
    batches = []
    for ids, numbers, labels in zip(rows["ids"], rows["numbers"], rows["labels"], strict=True):
        values = torch.from_numpy(np.ascontiguousarray(ids.swapaxes(0, 1)).reshape(-1).astype(np.int64))
        offsets = torch.arange(0, len(values) + 1, ids.shape[2])
        batches.append((values, offsets, torch.from_numpy(numbers), torch.from_numpy(labels)[:, None]))
    return batches


def main():
    rows_file, shape_file, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    with open(shape_file) as file:
        shape = json.load(file)
    rows = dict(np.load(rows_file))
    model = WideDeep(shape, rows["numbers"].shape[2])
    # FBGEMM's tables update themselves.
    dense = [*model.perceptron.parameters(), *model.wide_numbers.parameters()]
    optimizer, loss_of = torch.optim.Adam(dense), torch.nn.BCEWithLogitsLoss()

    def seconds(values, offsets, numbers, labels):
        started = time.perf_counter()
        optimizer.zero_grad()
        loss_of(model(values, offsets, numbers), labels).backward()
        optimizer.step()
        return time.perf_counter() - started

    batches = cycle(batches_of(rows))
    versions = {package: importlib.metadata.version(package) for package in ("torch", "fbgemm-gpu-cpu")}
    print(json.dumps({"versions": versions}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": [seconds(*next(batches)) for _ in range(json.loads(line)["steps"])]}), flush=True)


if __name__ == "__main__":
    main()
