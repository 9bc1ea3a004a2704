"""A small MovieLens of our own, in every form of its files, and what must become of it, in plain Python."""

import gzip
import statistics
from collections import Counter
from dataclasses import dataclass
from math import log
from pathlib import Path

import numpy as np

from data.movielens.raw import GENRES_100K
from tests.data.scalar_hash import scalar_hash, scalar_row_hash

NUM_FOLDS, SMOOTHING = 10, 20.0


@dataclass(frozen=True)
class MovieSample:
    users: dict[int, tuple[str, str, str, str]]  # id -> gender, age, occupation, zip code
    movies: dict[int, tuple[str, int | None, tuple[str, ...]]]  # id -> title, year, genres
    ratings: list[tuple[int, int, int]]  # user, movie, rating


def make_sample(seed: int = 0) -> MovieSample:
    """40 users and 30 movies, with every kind of null, and movies that are rated once only."""
    rng = np.random.default_rng(seed)
    users = {}
    for user in rng.choice(9000, 40, replace=False).tolist():
        zip_code = str(rng.choice(["", "9", "02460", "02139", "55117", "T8H1N"]))
        occupation = str(rng.choice(["", "writer", "doctor/health care", "10"]))
        users[user] = (str(rng.choice(["", "F", "M"])), str(rng.choice(["1", "25", "56"])), occupation, zip_code)
    movies = {}
    for movie in rng.choice(3952, 30, replace=False).tolist():
        year = None if rng.random() < 0.1 else int(rng.integers(1920, 2001))
        title = "Amélie: 8 ½" if year is None else f"Twelve (12) (1900) ({year})" + ("", " (V)")[rng.integers(2)]
        chosen = np.sort(rng.choice(len(GENRES_100K), rng.integers(0, 5), replace=False))
        movies[movie] = (title, year, tuple(GENRES_100K[genre] for genre in chosen))
    popular, rare = list(movies)[:24], list(movies)[24:]
    ratings = []
    for user in users:
        for movie in rng.choice(popular, rng.integers(2, 20), replace=False).tolist():
            ratings.append((user, movie, int(rng.integers(1, 6))))
    ratings += [(user, movie, 5) for user, movie in zip(users, rare, strict=False)]
    rng.shuffle(ratings)
    return MovieSample(users, movies, [tuple(map(int, rating)) for rating in ratings])


def write_1m(folder: Path, sample: MovieSample, *, compress: bool = False, as_csv: bool = False) -> Path:
    """ratings.dat (or ratings.csv), users.dat and movies.dat."""
    if as_csv:
        lines = [f"{user},{movie},{rating}" for user, movie, rating in sample.ratings]
        _write(folder / "ratings.csv", ["user_id,movie_id,rating", *lines], compress)
    else:
        lines = [f"{user}::{movie}::{rating}::978300760" for user, movie, rating in sample.ratings]
        _write(folder / "ratings.dat", lines, compress)
    users = ["::".join((str(user), *about)) for user, about in sample.users.items()]
    _write(folder / "users.dat", users, compress)
    movies = [f"{movie}::{title}::{'|'.join(genres)}" for movie, (title, _, genres) in sample.movies.items()]
    _write(folder / "movies.dat", movies, compress)
    return folder


def write_100k(folder: Path, sample: MovieSample) -> Path:
    """u.data, u.user and u.item."""
    _write(folder / "u.data", [f"{user}\t{movie}\t{rating}\t881250949" for user, movie, rating in sample.ratings])
    users = [f"{user}|{age}|{gender}|{job}|{code}" for user, (gender, age, job, code) in sample.users.items()]
    _write(folder / "u.user", users)
    flags = {
        name: "|".join(str(int(genre in about[2])) for genre in GENRES_100K) for name, about in sample.movies.items()
    }
    movies = [f"{movie}|{about[0]}|01-Jan-1995||http://x/|{flags[movie]}" for movie, about in sample.movies.items()]
    _write(folder / "u.item", movies)
    return folder


def _write(path: Path, lines: list[str], compress: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(f"{line}\n" for line in lines).encode("latin-1")
    if compress:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


def split(
    sample: MovieSample, *, seed: int, test: float = 0.2, valid: float = 0.0
) -> dict[str, list[tuple[int, int, int]]]:
    """The ratings of each mapping, in the order in which the dataset has them."""
    parts: dict[str, list[tuple[int, int, int]]] = {"train": [], "test": [], "valid": []}
    for user in sample.users:
        own = [rating for rating in sample.ratings if rating[0] == user]
        own.sort(key=lambda rating: scalar_row_hash(seed, 0, *rating[:2]))
        num_test, num_valid = int(len(own) * test + 0.5), int(len(own) * valid + 0.5)
        parts["test"] += own[:num_test]
        parts["valid"] += own[num_test : num_test + num_valid]
        parts["train"] += own[num_test + num_valid :]
    parts["train"].sort(key=lambda rating: scalar_row_hash(seed, 2, *rating[:2]))
    return {mapping: part if mapping == "train" else sorted(part) for mapping, part in parts.items()}


def raw_columns(sample: MovieSample, ratings: list[tuple[int, int, int]]) -> dict[str, list]:
    """What is known of ratings before any encoding; None for what is not."""
    users = [sample.users[user] for user, _, _ in ratings]
    movies = [sample.movies[movie] for _, movie, _ in ratings]
    return {
        "user": [user for user, _, _ in ratings],
        "movie": [movie for _, movie, _ in ratings],
        "gender": [about[0] or None for about in users],
        "age": [int(about[1]) for about in users],
        "occupation": [about[2] or None for about in users],
        "zip_prefix": [about[3][:3] or None for about in users],
        "genres": [list(about[2]) for about in movies],
        "movie_year": [about[1] for about in movies],
    }


class Expected:
    """The features of a sample, by their definitions."""

    def __init__(self, sample: MovieSample, *, seed: int, oov_buckets: int) -> None:
        self.sample, self.seed, self.oov_buckets = sample, seed, oov_buckets
        self.train = split(sample, seed=seed)["train"]
        raw = raw_columns(sample, self.train)
        raw["genres"] = [genre for genres in raw["genres"] for genre in genres]
        self.vocabularies = {name: self._vocabulary(values) for name, values in raw.items() if name != "movie_year"}
        self.median_year = statistics.median(year for year in raw["movie_year"] if year is not None)
        self.scales = {}
        for name, numbers in self._numbers("train", self.train).items():
            self.scales[name] = (statistics.fmean(numbers), statistics.stdev(numbers))

    def rows(self, mapping: str, ratings: list[tuple[int, int, int]]) -> dict[str, list]:
        columns: dict[str, list] = {}
        for name, values in raw_columns(self.sample, ratings).items():
            if name == "genres":
                columns[name] = [[self._id(name, genre) for genre in genres] for genres in values]
            elif name != "movie_year":
                columns[name] = [self._id(name, value) for value in values]
        for name, numbers in self._numbers(mapping, ratings).items():
            mean, deviation = self.scales[name]
            columns[name] = [(number - mean) / deviation for number in numbers]
        columns["liked"] = [float(rating >= 4) for _, _, rating in ratings]
        columns["user_id"] = [user for user, _, _ in ratings]
        return columns

    def _vocabulary(self, values: list) -> dict:
        counts = Counter(value for value in values if value is not None)
        ranked = sorted(counts, key=lambda value: (-counts[value], value))
        return {value: 2 + self.oov_buckets + rank for rank, value in enumerate(ranked)}

    def _id(self, name: str, value: object) -> int:
        if value is None:
            return 1
        return self.vocabularies[name].get(value, 2 + scalar_hash(value) % self.oov_buckets)

    def _numbers(self, mapping: str, ratings: list[tuple[int, int, int]]) -> dict[str, list[float]]:
        years = [self.sample.movies[movie][1] for _, movie, _ in ratings]
        numbers: dict[str, list[float]] = {"movie_year": [self.median_year if y is None else float(y) for y in years]}
        for position, key in ((1, "movie"), (0, "user")):
            counts = Counter(rating[position] for rating in self.train)
            numbers[f"{key}_count"] = [log(1 + counts[rating[position]]) for rating in ratings]
            numbers[f"{key}_mean"] = [self._mean(mapping, position, rating) for rating in ratings]
        return numbers

    def _mean(self, mapping: str, position: int, rating: tuple[int, int, int]) -> float:
        others = self.train
        if mapping == "train":
            fold = self._fold(rating)
            others = [other for other in self.train if self._fold(other) != fold]
        likes = [other[2] >= 4 for other in others]
        prior = sum(likes) / len(likes)
        same = [like for other, like in zip(others, likes, strict=True) if other[position] == rating[position]]
        return (sum(same) + SMOOTHING * prior) / (len(same) + SMOOTHING)

    def _fold(self, rating: tuple[int, int, int]) -> int:
        return scalar_row_hash(self.seed, 1, *rating[:2]) % NUM_FOLDS
