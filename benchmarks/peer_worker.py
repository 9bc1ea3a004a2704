"""A public peer's training, run by benchmarks/peers.py in the peers' own environment. Knows nothing of this project.

    python peer_worker.py PEER ROWS.npz SHAPE.json THREADS

Reads commands from standard input, a JSON object per line, and answers each with a line on the standard output that it
was started with: {"ready": {package: version}} at first, then {"seconds": wall clock} for each
{"steps": N, "in_hand": whether batches are put together beforehand}. What the peers themselves print is dropped.

SHAPE.json: {"batch", "hidden": [units], "dropout", "onehot": [[name, cardinality, width]], "multihot": [[name,
cardinality, width, hotness]], "numerical": [names]}. ROWS.npz: onehot [rows, features] and multihot [rows, sum of
hotness] int32, numerical [rows, features] float32, labels [rows] float32. Ids of multi-hot features count from 1, for
both peers pad with 0.
"""

import contextlib
import importlib.metadata
import io
import json
import sys
import time
from typing import Any

import numpy as np
import torch


class Rechub:
    """torch-rechub's WideDeep with CTRTrainer, as its tutorial and examples/ranking run it.

    The wide part has the numerical features, as there. All widths are equal, because the model cannot do otherwise, and
    its MLP has batch normalisation, which cannot be switched off.
    """

    package = "torch-rechub"

    def __init__(self, shape, rows):
        from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature
        from torch_rechub.models.ranking import WideDeep
        from torch_rechub.trainers import CTRTrainer
        from torch_rechub.utils.data import DataGenerator

        categorical = [*shape["onehot"], *shape["multihot"]]
        width = round(sum(feature[2] for feature in categorical) / len(categorical))
        self.widths = f"{width} for all"
        dense = [DenseFeature(name) for name in shape["numerical"]]
        deep = [SparseFeature(name, cardinality, width) for name, cardinality, _ in shape["onehot"]]
        deep += [
            SequenceFeature(name, cardinality + 1, width, pooling="sum", padding_idx=0)
            for name, cardinality, _, _ in shape["multihot"]
        ]
        mlp = {"dims": shape["hidden"], "dropout": shape["dropout"], "activation": "relu"}
        model = WideDeep(wide_features=dense, deep_features=deep + dense, mlp_params=mlp)
        self._trainer = CTRTrainer(model, optimizer_params={"lr": 1e-3, "weight_decay": 1e-3}, n_epoch=1, device="cpu")
        self._columns, self._labels, self._batch = named_columns(shape, rows), rows["labels"], shape["batch"]
        self._generator = DataGenerator

    def seconds(self, steps, in_hand):
        count = steps * self._batch
        x, y = {name: column[:count] for name, column in self._columns.items()}, self._labels[:count]
        loader, _, _ = self._generator(x, y).generate_dataloader(
            x_val=x, y_val=y, x_test=x, y_test=y, batch_size=self._batch
        )
        batches = list(loader) if in_hand else loader
        started = time.perf_counter()
        self._trainer.train_one_epoch(batches)
        return time.perf_counter() - started


class DeepCtr:
    """deepctr-torch's WDL with fit, as its quick start and examples run it, with Adam.

    Widths are the features' own. Its default L2 on embeddings stays on, and so do the metrics of its examples.
    """

    package = "deepctr-torch"
    widths = "the same"

    def __init__(self, shape, rows):
        from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat
        from deepctr_torch.models import WDL, basemodel

        columns = [SparseFeat(name, cardinality, embedding_dim=width) for name, cardinality, width in shape["onehot"]]
        columns += [
            VarLenSparseFeat(SparseFeat(name, cardinality + 1, embedding_dim=width), maxlen=hotness, combiner="sum")
            for name, cardinality, width, hotness in shape["multihot"]
        ]
        columns += [DenseFeat(name, 1) for name in shape["numerical"]]
        self._model = WDL(
            columns,
            columns,
            dnn_hidden_units=shape["hidden"],
            dnn_dropout=shape["dropout"],
            task="binary",
            l2_reg_embedding=1e-5,
            device="cpu",
        )
        self._model.compile("adam", "binary_crossentropy", metrics=["binary_crossentropy", "auc"])
        self._columns, self._labels, self._batch = named_columns(shape, rows), rows["labels"], shape["batch"]
        self._module, self._loader = basemodel, basemodel.DataLoader

    def seconds(self, steps, in_hand):
        count = steps * self._batch
        x = {name: column[:count] for name, column in self._columns.items()}
        self._module.DataLoader = slices if in_hand else self._loader
        started = time.perf_counter()
        self._model.fit(x, self._labels[:count], batch_size=self._batch, epochs=1, verbose=2)
        return time.perf_counter() - started


PEERS: dict[str, Any] = {"torch-rechub": Rechub, "deepctr-torch": DeepCtr}


def named_columns(shape, rows):
    """Return feature -> [rows] or, of a multi-hot feature, [rows, hotness]."""
    columns = {name: rows["onehot"][:, index] for index, (name, _, _) in enumerate(shape["onehot"])}
    start = 0
    for name, _, _, hotness in shape["multihot"]:
        columns[name] = rows["multihot"][:, start : start + hotness] + 1
        start += hotness
    return columns | {name: rows["numerical"][:, index] for index, name in enumerate(shape["numerical"])}


def slices(dataset, *, shuffle, batch_size):
    """Replace a DataLoader: batches that are slices of the tensors."""
    return [dataset[start : start + batch_size] for start in range(0, len(dataset), batch_size)]


def main():
    name, rows_file, shape_file, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    answers = sys.stdout
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        open(shape_file) as shape,
    ):
        peer = PEERS[name](json.load(shape), dict(np.load(rows_file)))
        versions = {package: importlib.metadata.version(package) for package in ("torch", peer.package)}
        print(json.dumps({"ready": versions, "widths": peer.widths}), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps({"seconds": peer.seconds(**json.loads(line))}), file=answers, flush=True)


if __name__ == "__main__":
    main()
