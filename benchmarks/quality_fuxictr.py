"""Wide & Deep and DCN-V2 of FuxiCTR's layers, for quality_peer_worker.py.

FuxiCTR's package contains the layers and the training of its models, but not the models themselves (its model_zoo), so
they are put together here in the same way. This file does not import anything of this project.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import CrossNetV2, FeatureEmbedding, LogisticRegression, MLP_Block
from fuxictr.pytorch.models import BaseModel


class Batches:
    """Batches of rows in memory.

    Args:
        columns: values by feature or label, [rows, ...].
        batch_size: rows of a batch; the last one may be smaller.
        shuffle: whether each pass has another random order.
    """

    def __init__(self, columns: dict[str, np.ndarray], batch_size: int, *, shuffle: bool):
        self._columns = {name: torch.from_numpy(values) for name, values in columns.items()}
        self._rows = len(next(iter(columns.values())))
        self._batch_size, self._shuffle = batch_size, shuffle

    def __len__(self) -> int:
        return -(-self._rows // self._batch_size)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        order = torch.randperm(self._rows) if self._shuffle else torch.arange(self._rows)
        for part in order.split(self._batch_size):
            yield {name: values[part] for name, values in self._columns.items()}


class Network(BaseModel):
    """What both models share: embeddings, a perceptron, and how they are trained.

    Args:
        features: FuxiCTR's description of the features.
        folder: folder of the best checkpoint.
        settings: embedding_dim, hidden_units, batch_norm, net_dropout, embedding_regularizer and learning_rate as in
            FuxiCTR's configuration files, and num_cross_layers of DCN-V2.
    """

    def __init__(self, features: FeatureMap, folder: str, settings: dict[str, Any]):
        super().__init__(
            features,
            model_id="best",
            monitor={"AUC": 1, "logloss": -1},
            embedding_regularizer=settings["embedding_regularizer"],
            metrics=["logloss", "AUC"],
            model_root=folder,
            verbose=0,
        )
        self.embedding_layer = FeatureEmbedding(features, settings["embedding_dim"])
        self.add_layers(features, features.sum_emb_out_dim(), settings)
        self.compile("adam", "binary_crossentropy", settings["learning_rate"])
        self.reset_parameters()
        self.model_to_device()

    def add_layers(self, features: FeatureMap, width: int, settings: dict[str, Any]) -> None:
        """Add the layers on top of the embeddings, which have `width` values in all."""
        raise NotImplementedError

    def logits(self, inputs: dict[str, torch.Tensor], embeddings: torch.Tensor) -> torch.Tensor:
        """Return the logits, [rows, 1], of the features and their embeddings, [rows, width]."""
        raise NotImplementedError

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the probabilities as FuxiCTR's training expects them."""
        features = self.get_inputs(inputs)
        embeddings = self.embedding_layer(features, flatten_emb=True)
        return {"y_pred": self.output_activation(self.logits(features, embeddings))}


class WideDeep(Network):
    """Wide & Deep."""

    def add_layers(self, features: FeatureMap, width: int, settings: dict[str, Any]) -> None:
        """See `Network`."""
        self.wide = LogisticRegression(features, use_bias=False)
        self.deep = _perceptron(width, 1, settings)

    def logits(self, inputs: dict[str, torch.Tensor], embeddings: torch.Tensor) -> torch.Tensor:
        """See `Network`."""
        return self.wide(inputs) + self.deep(embeddings)


class DcnV2(Network):
    """DCN-V2 with cross layers and a perceptron side by side, FuxiCTR's default."""

    def add_layers(self, features: FeatureMap, width: int, settings: dict[str, Any]) -> None:
        """See `Network`."""
        self.cross = CrossNetV2(width, settings["num_cross_layers"])
        self.deep = _perceptron(width, None, settings)
        self.top = torch.nn.Linear(width + settings["hidden_units"][-1], 1)

    def logits(self, inputs: dict[str, torch.Tensor], embeddings: torch.Tensor) -> torch.Tensor:
        """See `Network`."""
        return self.top(torch.cat([self.cross(embeddings), self.deep(embeddings)], dim=-1))


NETWORKS = {"wide_deep": WideDeep, "dcn_v2": DcnV2}


def _perceptron(width: int, outputs: int | None, settings: dict[str, Any]) -> MLP_Block:
    return MLP_Block(
        input_dim=width,
        output_dim=outputs,
        hidden_units=settings["hidden_units"],
        dropout_rates=settings["net_dropout"],
        batch_norm=settings["batch_norm"],
    )


def feature_map(dataset: dict[str, Any], embedding_dim: int, padding: int) -> FeatureMap:
    """Describe the features of a dataset as FuxiCTR's own preprocessing would, with the ids that they have.

    Args:
        dataset: see quality_peer_worker.py.
        embedding_dim: width of all embeddings.
        padding: id that fills up lists.
    """
    described = FeatureMap(dataset_id="", data_dir="")
    for name, cardinality in dataset["onehot"].items():
        described.features[name] = {"type": "categorical", "source": "", "vocab_size": cardinality}
    for name, (cardinality, most) in dataset["multihot"].items():
        described.features[name] = {
            "type": "sequence",
            "source": "",
            "vocab_size": cardinality,
            "max_len": most,
            "padding_idx": padding,
            "feature_encoder": "layers.MaskedAveragePooling()",
        }
    for name in dataset["numerical"]:
        described.features[name] = {"type": "numeric", "source": ""}
    described.labels = [dataset["label"]]
    described.num_fields = described.get_num_fields()
    described.default_emb_dim = embedding_dim
    described.set_column_index()
    return described
