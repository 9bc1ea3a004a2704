"""The published recipe (NVIDIA's DeepLearningExamples, TensorFlow2 Wide & Deep), for comparable figures.

All ids are hash buckets, using the hash of `data.preprocess.hashing` instead of cuDF's. As published, the click rates
of a training row include its own click.
"""

from typing import Any

from data.outbrain.columns import (
    COUNT_COLUMNS,
    DAYS,
    DOCUMENT,
    GEO,
    NUMERICAL,
    ONEHOT_SIZES,
    RATE_LEAST_VIEWS,
    SIMILARITIES,
    TAG_ASPECTS,
    TAG_SIZES,
)
from data.outbrain.recipe import Fitted, Recipe, count, prefix, tag_counts
from data.outbrain.side_tables import SideTables
from data.outbrain.statistics import days_encoder, log_views, published_rate
from data.preprocess.encoders import Encoder, HashedIds, HashedRanks, Numerical, Vocabulary
from data.preprocess.nvtabular_setup import ops


def columns() -> Any:
    """Return the NVTabular node of the columns that one-hot encoders read; platform is 0 to 2, and 0 if missing."""
    raw = [name for name in ONEHOT_SIZES if name not in ("platform", "geo_location_country", "geo_location_state")]
    platform = ["platform"] >> ops.LambdaOp(lambda platforms: platforms.fillna(1) - 1)
    return raw + platform + prefix(GEO, 2, "geo_location_country") + prefix(GEO, 5, "geo_location_state")


def fit(rows: Any, tables: SideTables, folder: str) -> Fitted:
    """Fit the encoders on training rows, with the arguments of `Recipe.fit`."""
    counted = count(rows, (DOCUMENT,))
    encoders: dict[str, Encoder] = {name: HashedIds(name, size) for name, size in ONEHOT_SIZES.items()}
    for name, size in TAG_SIZES.items():
        aspect = tables.aspects[TAG_ASPECTS[name]]
        counts = tag_counts(counted.documents[DOCUMENT], aspect)
        ranked = Vocabulary.fit(name, aspect.values[counts > 0], counts[counts > 0])
        encoders[name] = HashedRanks(name, ranked.values, size)
    encoders |= {name: Numerical(name) for name in SIMILARITIES}
    encoders |= {f"{name}_ctr": published_rate(counted.clicks[name], least) for name, least in RATE_LEAST_VIEWS.items()}
    encoders |= {f"{name}_count": log_views(counted.clicks[name]) for name in COUNT_COLUMNS}
    encoders |= {name: days_encoder(name, counted.days[name], standardised=False) for name in DAYS}
    return Fitted({name: encoders[name] for name in (*ONEHOT_SIZES, *TAG_SIZES, *NUMERICAL)})


RECIPE = Recipe(
    name="published",
    onehot=tuple(ONEHOT_SIZES),
    tags={name: (DOCUMENT, aspect) for name, aspect in TAG_ASPECTS.items()},
    numerical=NUMERICAL,
    fill_publishers=True,
    tags_by_confidence=False,
    embedding_sizes={},
    columns=columns,
    fit=fit,
)
