"""The leak-free recipe, in which a row's own click does not enter its features.

Differences to the published recipe: click rates are out-of-fold and smoothed towards the prior; numbers are
standardized; null has its own id; small vocabularies have exact ids, and large ones exact ids for frequent values;
tags are selected by descending confidence; and the features below are added to the 29 published ones.
"""

from typing import Any

from data.outbrain.columns import (
    COUNT_COLUMNS,
    DAYS,
    DISPLAY_ADS,
    DOCUMENT,
    DOCUMENT_PROMO,
    GEO,
    NUMERICAL,
    ONEHOT_SIZES,
    RATE_LEAST_VIEWS,
    SIMILARITIES,
    TAG_ASPECTS,
    TAG_SIZES,
    TIMESTAMP,
)
from data.outbrain.raw_tables import DAY_MS
from data.outbrain.recipe import Fitted, Recipe, count, prefix, tag_counts
from data.outbrain.side_tables import SideTables
from data.outbrain.statistics import days_encoder, log_views, smoothed_rates
from data.preprocess.encoders import Encoder, Numerical, Vocabulary
from data.preprocess.nvtabular_operators import EncodeIds
from data.preprocess.nvtabular_setup import ops

SMOOTHING = 20.0
HOUR_MS = 60 * 60 * 1000
# Hour of the day and day of the week since Outbrain's origin (a Tuesday, 04:00 UTC), and ads in the display.
FURTHER_ONEHOT = {"hour": 30, "weekday": 10, DISPLAY_ADS: 30}
PROMO_TAGS = {name.replace("_list", "_promo_list"): (DOCUMENT_PROMO, aspect) for name, aspect in TAG_ASPECTS.items()}
TAGS = {name: (DOCUMENT, aspect) for name, aspect in TAG_ASPECTS.items()} | PROMO_TAGS
# Maximum cardinalities: the published ones, except that three platforms also need ids for padding, null and unseen.
SIZES = {**ONEHOT_SIZES, "platform": 10, **FURTHER_ONEHOT}


def columns() -> Any:
    """Return the NVTabular node of the columns that one-hot encoders read."""
    made = ("geo_location_country", "geo_location_state", "hour", "weekday")
    hour = [TIMESTAMP] >> ops.LambdaOp(lambda times: times // HOUR_MS % 24) >> ops.Rename(name="hour")
    weekday = [TIMESTAMP] >> ops.LambdaOp(lambda times: times // DAY_MS % 7) >> ops.Rename(name="weekday")
    raw = [name for name in SIZES if name not in made]
    return raw + prefix(GEO, 2, made[0]) + prefix(GEO, 5, made[1]) + hour + weekday


def fit(rows: Any, tables: SideTables, folder: str) -> Fitted:
    """Fit the encoders on training rows, with the arguments of `Recipe.fit`."""
    ids = EncodeIds(1, folder, max_ids=SIZES)
    counted = count(rows, (DOCUMENT, DOCUMENT_PROMO), columns() >> ids)
    encoders: dict[str, Encoder] = dict(ids.vocabularies)
    for name, (document, aspect_name) in TAGS.items():
        aspect, size = tables.aspects[aspect_name], TAG_SIZES[name.replace("_promo_list", "_list")]
        counts = tag_counts(counted.documents[document], aspect)
        occurs = counts > 0
        encoders[name] = Vocabulary.fit(name, aspect.values[occurs], counts[occurs], is_list=True, max_ids=size)
    encoders |= {name: Numerical(name) for name in SIMILARITIES}
    out_of_fold = {}
    for name in RATE_LEAST_VIEWS:
        encoders[f"{name}_ctr"], out_of_fold[f"{name}_ctr"] = smoothed_rates(counted.clicks[name], SMOOTHING)
    encoders |= {f"{name}_count": log_views(counted.clicks[name]) for name in COUNT_COLUMNS}
    encoders |= {name: days_encoder(name, counted.days[name], standardised=True) for name in DAYS}
    return Fitted({name: encoders[name] for name in (*SIZES, *TAGS, *NUMERICAL)}, out_of_fold)


RECIPE = Recipe(
    name="leak_free",
    onehot=tuple(SIZES),
    tags=TAGS,
    numerical=NUMERICAL,
    fill_publishers=False,
    tags_by_confidence=True,
    embedding_sizes={"hour": 8, "weekday": 4, DISPLAY_ADS: 4} | {name: 64 for name in PROMO_TAGS},
    columns=columns,
    fit=fit,
)
