"""How long Recommender takes for the ten best items of one user: one JSON line.

    python -m benchmarks.recommender_speed --raw DIR [--default]

Trains for one epoch on MovieLens-1M in DIR, with the model of docs/recommender.md or, with --default, with main.py's
default MMoE, and then ranks all movies for each of 200 users.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from data.movielens.raw import read_movielens
from trainer.recommender import Recommender

USERS = 200
DOCUMENTED = {"num_experts": 4, "expert_hidden_units": (64,), "tower_hidden_units": (32,)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, required=True, help="the unpacked folder of GroupLens")
    parser.add_argument("--default", action="store_true", help="8 experts of 256 and 128 units, towers of 64")
    arguments = parser.parse_args()
    rows = read_movielens(arguments.raw)
    users = rows[["user", "gender", "age", "occupation"]].drop_duplicates("user")
    movies = rows[["movie", "genres", "movie_year"]].drop_duplicates("movie")
    recommender = Recommender("mmoe", epochs=1, batch_size=4096, **({} if arguments.default else DOCUMENTED))
    recommender.fit(rows, user="user", item="movie", tasks={"rating": "regression"}, users=users, items=movies)
    recommender.recommend(users["user"].iloc[0], 10)  # encodes the movies and compiles
    times = []
    for user in users["user"].head(USERS):
        start = time.perf_counter()
        recommender.recommend(user, 10)
        times.append(1000 * (time.perf_counter() - start))
    median, slow = np.percentile(times, [50, 95]).round(1).tolist()
    print(json.dumps({"movies": len(movies), "users": len(times), "median_ms": median, "p95_ms": slow}))


if __name__ == "__main__":
    main()
