"""What each part of the leak-free recipe contributes on a synthetic Outbrain: one JSON line per variant.

    python -m benchmarks.outbrain_recipes [--displays 200000] [--seeds 1] [--only NAME ...]

Every variant is prepared from the same raw tables and trained by main.py with the same settings (those of the
quickstart, in one process); figures are those of the last epoch on the validation rows. Variants but the first two
are the leak-free recipe with one part taken back.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.outbrain.preproc import preprocess
from data.outbrain.recipes import (
    LEAK_FREE,
    ONEHOT_SIZES,
    PROMO_TAGS,
    PUBLISHED,
    RATE_MIN_VIEWS,
    RECIPES,
    TAG_SIZES,
    FittedRecipe,
    Recipe,
)
from data.outbrain.side_tables import SideTables
from data.outbrain.synthesize import synthesize
from trainer.logging.log import read_log

MAIN = Path(__file__).resolve().parent.parent / "main.py"
SETTINGS = (
    "--recipe published --global_batch_size 4096 --eval_batch_size 16384 --deep_hidden_units 256 128 --num_epochs 4 "
    "--deep_learning_rate 0.004 --deep_warmup_epochs 1 --deep_dropout 0.3"
)
RATES = tuple(f"{name}_ctr" for name in RATE_MIN_VIEWS)


def with_published(*features: str) -> Callable[[Any, SideTables, str], FittedRecipe]:
    """Return a fit whose encoders of some features are the published recipe's."""

    def fit(rows: Any, tables: SideTables, folder: str) -> FittedRecipe:
        ours = LEAK_FREE.fit(rows, tables, folder)
        theirs = PUBLISHED.fit(rows, tables, folder).encoders
        encoders = dict(ours.encoders) | {name: theirs[name] for name in features}
        return FittedRecipe(encoders, {name: rates for name, rates in ours.out_of_fold.items() if name not in features})

    return fit


def variants() -> dict[str, Recipe]:
    """Return the recipes by what they are."""
    recipe = LEAK_FREE
    own_tags = {name: source for name, source in recipe.tags.items() if name not in PROMO_TAGS}
    without_ads = tuple(name for name in recipe.onehot if name != "display_ads")
    without_time = tuple(name for name in recipe.onehot if name not in ("hour", "weekday"))
    return {
        "published": PUBLISHED,
        "leak_free": recipe,
        "published rates": replace(recipe, fit=with_published(*RATES)),
        "published ids": replace(recipe, fit=with_published(*ONEHOT_SIZES, *TAG_SIZES)),
        "without the promoted document's tags": replace(recipe, tags=own_tags),
        "without the number of ads in the display": replace(recipe, onehot=without_ads),
        "without hour and weekday": replace(recipe, onehot=without_time),
        "the 29 published features alone": replace(recipe, tags=own_tags, onehot=tuple(ONEHOT_SIZES)),
    }


def trained(dataset: Path, folder: Path, seed: int) -> dict[str, float]:
    """Return the last epoch's figures on the validation rows."""
    paths = ["--dataset_path", dataset, "--model_dir", folder / "model", "--results_dir", folder / "results"]
    command = [sys.executable, MAIN, *paths, *SETTINGS.split(), "--seed", seed]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    logged = [entry.get("data") or {} for entry in read_log(folder / "results" / "log.json")]
    last = [data for data in logged if "auc_roc" in data and "loss_val" in data][-1]
    return {name: round(last[name], 5) for name in ("streaming_map_val", "auc_roc", "loss_val")}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--displays", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each variant")
    parser.add_argument("--only", nargs="+", help="variants to measure")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthesize(folder / "raw", args.displays, seed=1)
        for number, (variant, recipe) in enumerate(variants().items()):
            if args.only and variant not in args.only:
                continue
            key = f"variant_{number}"
            RECIPES[key] = replace(recipe, name=key)
            preprocess(folder / "raw", folder / key, recipe=key)
            for seed in range(args.seeds):
                figures = trained(folder / key, folder / f"{key}_{seed}", seed)
                line = {"benchmark": "outbrain recipes, synthetic", "variant": variant, "seed": seed, **figures}
                print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
