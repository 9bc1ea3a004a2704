"""Click logs of consecutive days with drifting items, for `benchmarks.daily` and tests of scripts/daily.sh."""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

USERS, ITEMS, LATENT = 3_000, 1_000, 4
# Share of the items on offer that is replaced every day.
REPLACED = 0.2
SPECIFICATION = {
    "feature_spec": {
        "user": {"dtype": "string"},
        "item": {"dtype": "string"},
        "hour": {"dtype": "int64", "cardinality": 24, "encode": "identity"},
        "price": {"dtype": "float32"},
        "click": {},
    },
    "source_spec": {"logs": [{"type": "csv", "files": ["logs.csv"], "header": True}]},
    "split": {"from": "logs", "random": {"test": 0.05}},
    "channel_spec": {
        "onehot_categorical": ["user", "item", "hour"],
        "numerical": ["price"],
        "label": ["click"],
    },
}


class Day(NamedTuple):
    """The logs of a day.

    Attributes:
        columns: columns by name, each [rows].
        probabilities: true probability of a click, [rows].
    """

    columns: dict[str, np.ndarray]
    probabilities: np.ndarray


def draw_day(day: int, rows: int, seed: int = 0) -> Day:
    """Draw the logs of a day, counted from 0. Users and items keep their taste, quality and popularity."""
    rng = np.random.default_rng([seed, day])
    first = int(day * REPLACED * ITEMS)
    popularity = np.exp(_normal(seed, 4, first + ITEMS, 1)[first:, 0])
    item = first + rng.choice(ITEMS, rows, p=popularity / popularity.sum())
    user, hour = rng.integers(USERS, size=rows), rng.integers(24, size=rows)
    price = np.round(rng.gamma(2.0, 10.0, rows), 2)
    taste, topic = _normal(seed, 1, USERS, LATENT), _normal(seed, 2, first + ITEMS, LATENT)
    quality = _normal(seed, 3, first + ITEMS, 1)[:, 0]
    logits = -1.5 + 0.8 * quality[item] + 0.5 * (taste[user] * topic[item]).sum(1) - 0.02 * (price - 20)
    probabilities = 1 / (1 + np.exp(-logits))
    click = (rng.random(rows) < probabilities).astype(int)
    columns = {"user": user, "item": item, "hour": hour, "price": price, "click": click}
    return Day(columns, probabilities)


def write_day(folder: Path, day: Day) -> None:
    """Write the logs of a day to a new folder, with their raw specification."""
    folder.mkdir(parents=True)
    with (folder / "logs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(day.columns)
        for user, item, *others in zip(*(column.tolist() for column in day.columns.values()), strict=True):
            writer.writerow([f"user-{user}", f"item-{item}", *others])
    (folder / "feature_spec.yaml").write_text(yaml.safe_dump(SPECIFICATION, sort_keys=False))


def _normal(seed: int, stream: int, rows: int, width: int) -> np.ndarray:
    """Draw [rows, width] normal values; more rows begin with the same ones."""
    return np.random.default_rng([seed, stream, 1 << 20]).standard_normal((rows, width))
