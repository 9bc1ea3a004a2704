"""What a user's earlier likes are worth on MovieLens-100K, by encoder of their sequence. One JSON line per run.

    python -m benchmarks.movielens_histories --raw ../shared/data/ml-100k [--encoders none sum ...] [--seeds 3]

The ratings are in the order of time: the first 80% are for training, the next 10% for validation, and the last 10% for
the test. The label is a rating of at least 4. All models know user, movie and genres; `none` knows nothing else, and
the others the last 30 movies that the user liked before (`history:`), which share their table with the movie to be
rated. Everything else is left to the defaults of main.py.
"""

import argparse
import gzip
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from benchmarks.harness import ROOT, report

ENCODERS = ("none", "sum", "mean", "din", "self_attention")
LENGTH = 30


def write_raw(published: Path, folder: Path, encoder: str) -> None:
    """Write the ratings in the order of time, and a raw specification."""
    genres = {}
    with gzip.open(published / "u.item.gz", "rt", encoding="latin-1") as movies:
        for line in movies:
            movie, *others = line.rstrip("\n").split("|")
            genres[movie] = "|".join(str(number) for number, flag in enumerate(others[4:]) if flag == "1")
    with gzip.open(published / "u.data.gz", "rt") as ratings:
        rows = sorted((line.split() for line in ratings), key=lambda row: int(row[3]))
    lines = [",".join([*row, genres[row[1]]]) for row in rows]
    (folder / "ratings.csv").write_text("\n".join(["user,movie,rating,ts,genres", *lines]) + "\n")
    features = {
        "user": {"dtype": "int64"},
        "movie": {"dtype": "int64"},
        "genres": {"separator": "|"},
        "liked": {"column": "rating", "encode": {"threshold": ">= 4"}},
    }
    channels = {"onehot_categorical": ["user", "movie"], "multihot_categorical": ["genres"], "label": ["liked"]}
    if encoder != "none":
        history = {"of": "movie", "by": "user", "order": "ts", "where": "liked", "last": LENGTH}
        features |= {"ts": {"dtype": "int64"}, "likes": {"history": history, "table": "movie"}}
        channels["sequence"] = {"history": {"features": ["likes"], "target": ["movie"], "encoder": encoder}}
    document = {
        "feature_spec": features,
        "source_spec": {"logs": [{"type": "csv", "files": ["ratings.csv"], "header": True}]},
        "split": {"from": "logs", "last": {"valid": 0.1, "test": 0.1}},
        "channel_spec": channels,
    }
    (folder / "feature_spec.yaml").write_text(yaml.safe_dump(document, sort_keys=False))


def call(*arguments: str) -> None:
    """Run a program of this project."""
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=sys.stderr)


def measure(data: Path, folder: Path, seed: int) -> dict[str, float]:
    """Train with a seed; return the AUC and the loss on the validation and on the test rows."""
    places = ["--dataset_path", str(data), "--model_dir", str(folder / "model")]
    call("main.py", *places, "--results_dir", str(folder / "valid"), "--seed", str(seed))
    call("main.py", *places, "--results_dir", str(folder / "test"), "--evaluate", "--eval_mapping", "test")
    found = {mapping: json.loads((folder / mapping / "metrics.json").read_text()) for mapping in ("valid", "test")}
    keys = {"auc": "auc_roc", "log_loss": "loss_val"}
    return {f"{mapping}_{name}": round(own[key], 4) for mapping, own in found.items() for name, key in keys.items()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, required=True, help="folder of the published files")
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=ENCODERS)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to this, exclusive")
    arguments = parser.parse_args(argv)
    for encoder in arguments.encoders:
        with TemporaryDirectory() as name:
            folder = Path(name)
            write_raw(arguments.raw, folder, encoder)
            call("preprocess.py", "--input", str(folder), "--output", str(folder / "data"))
            for seed in range(arguments.seeds):
                run = folder / str(seed)
                found = measure(folder / "data", run, seed)
                report({"benchmark": "MovieLens histories", "encoder": encoder, "seed": seed, **found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
