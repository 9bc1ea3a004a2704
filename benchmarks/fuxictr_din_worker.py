"""DIN of FuxiCTR's layers, run by benchmarks/sequences.py in the environment of benchmarks/quality.py's peers.

    python fuxictr_din_worker.py ROWS.npz SHAPE.json THREADS

Knows nothing of this project. Reads a JSON line per request from standard input and prints a JSON line for each:
{"versions": {package: version}} at first, then {"seconds": [wall clock of each step]} for each {"steps": N}.

FuxiCTR's package has no models, so the layers are put together as in its model DIN: the embeddings of the target, the
history pooled by the attention, and a perceptron. The table is updated by SparseAdam if SHAPE.json says so; FuxiCTR
itself updates every row of it in every step.

SHAPE.json: {"rows": of the table, "width": of the embeddings, "hidden": [units], "attention_hidden": [units], "sparse":
whether only the rows of a batch are updated}. ROWS.npz: target [batches, batch] int32, history [batches, batch, steps]
int32 with -1 after the last step, labels [batches, batch] float32.
"""

import importlib.metadata
import json
import sys
import time
from itertools import cycle

import numpy as np
import torch
from fuxictr.pytorch.layers import DIN_Attention, MLP_Block


class DIN(torch.nn.Module):
    """Target attention over a history (Zhou et al., KDD 2018)."""

    def __init__(self, shape):
        super().__init__()
        width = shape["width"]
        # Row 0 is padding.
        self.table = torch.nn.Embedding(shape["rows"] + 1, width, padding_idx=0, sparse=shape["sparse"])
        self.attention = DIN_Attention(width, shape["attention_hidden"])
        self.perceptron = MLP_Block(2 * width, output_dim=1, hidden_units=shape["hidden"], hidden_activations="relu")

    def forward(self, target, history):
        query, keys = self.table(target + 1), self.table(history + 1)
        pooled = self.attention(query, keys, (history >= 0).float())
        return self.perceptron(torch.cat([query, pooled], dim=1))


def main():
    rows_file, shape_file, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    with open(shape_file) as file:
        shape = json.load(file)
    rows = {name: torch.from_numpy(values) for name, values in np.load(rows_file).items()}
    model = DIN(shape)
    table, dense = [model.table.weight], [*model.attention.parameters(), *model.perceptron.parameters()]
    if shape["sparse"]:
        optimizers = [torch.optim.SparseAdam(table), torch.optim.Adam(dense)]
    else:
        optimizers = [torch.optim.Adam([*table, *dense])]
    loss_of = torch.nn.BCEWithLogitsLoss()

    def seconds(target, history, labels):
        started = time.perf_counter()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_of(model(target.long(), history.long()), labels[:, None]).backward()
        for optimizer in optimizers:
            optimizer.step()
        return time.perf_counter() - started

    batches = cycle(list(zip(rows["target"], rows["history"], rows["labels"], strict=True)))
    versions = {package: importlib.metadata.version(package) for package in ("torch", "fuxictr")}
    print(json.dumps({"versions": versions}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": [seconds(*next(batches)) for _ in range(json.loads(line)["steps"])]}), flush=True)


if __name__ == "__main__":
    main()
