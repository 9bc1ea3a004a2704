"""How much of what a synthetic Outbrain allows a model has learned: one JSON line, and one sentence on stderr.

    python -m benchmarks.outbrain_quality --raw RAW --predictions predictions.parquet

RAW is what data.outbrain.synthesize wrote; the predictions are those of main.py --evaluate --predictions_file on the
dataset that data.outbrain.preproc made of it. All figures are of these rows: MAP@12 and AUC of ranking by popularity
(the ad's click rate over the training displays, smoothed towards the rate of all ads with a weight of 20 views), of
the model, and of the true click probabilities, which no model can beat but by luck. `closed` is how far of the way
from popularity to the truth the model came in MAP@12.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.metrics_speed import Alone
from data.outbrain.synthesize import TRUTH_FILE
from trainer.metrics.auc import RocAuc
from trainer.metrics.ranking import MeanAveragePrecision
from trainer.metrics.rows import Rows

SMOOTHING = 20.0


def quality(raw: Path, predictions: pd.DataFrame) -> dict[str, float]:
    """Measure MAP@12 and AUC of popularity, model and truth on the displays of the predictions."""
    clicks = pd.read_csv(raw / "clicks_train.csv").merge(pd.read_parquet(raw / TRUTH_FILE), how="left")
    shown = clicks["display_id"].isin(predictions["display_id"])
    train, valid = clicks[~shown], clicks[shown]
    prior = train["clicked"].mean()
    views = train.groupby("ad_id")["clicked"].agg(["sum", "count"])
    rates = (views["sum"] + SMOOTHING * prior) / (views["count"] + SMOOTHING)
    popularity = rates.reindex(valid["ad_id"]).fillna(prior).to_numpy()
    labels, displays = valid["clicked"].to_numpy(), valid["display_id"].to_numpy()
    figures = {
        "popularity": measured(popularity, labels, displays),
        "model": measured(
            *(predictions[f"{name}_clicked"] for name in ("prediction", "label")), predictions["display_id"]
        ),
        "truth": measured(valid["probability"].to_numpy(), labels, displays),
    }
    result = {f"{metric}_{name}": value for name, pair in figures.items() for metric, value in pair.items()}
    way = result["map_at_12_truth"] - result["map_at_12_popularity"]
    return {"rows": len(valid), **result, "closed": (result["map_at_12_model"] - result["map_at_12_popularity"]) / way}


def measured(scores: np.ndarray, labels: np.ndarray, displays: np.ndarray) -> dict[str, float]:
    """Measure MAP@12 and AUC of probabilities."""
    scores = np.asarray(scores, np.float64)
    rows = Rows(
        np.log(scores / (1 - scores)).astype(np.float32),
        np.asarray(labels, np.float32),
        np.ones(len(scores), np.float32),
        np.asarray(displays, np.int64),
    )
    metrics = {"map_at_12": MeanAveragePrecision(), "auc": RocAuc()}
    return {name: metric.result(rows, Alone()) for name, metric in metrics.items()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--predictions", type=Path, required=True)
    args = parser.parse_args(argv)
    figures = quality(args.raw, pd.read_parquet(args.predictions))
    print(json.dumps({"benchmark": "outbrain quality, synthetic", **figures}))
    print(
        f"MAP@12 on validation: {figures['map_at_12_popularity']:.4f} by popularity, "
        f"{figures['map_at_12_model']:.4f} by this model, {figures['map_at_12_truth']:.4f} by the true probabilities: "
        f"{figures['closed']:.0%} of the way. AUC: {figures['auc_popularity']:.4f}, {figures['auc_model']:.4f}, "
        f"{figures['auc_truth']:.4f}.",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
