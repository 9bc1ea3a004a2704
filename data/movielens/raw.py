"""Read MovieLens-1M and MovieLens-100K, as published by GroupLens, into one row per rating."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from data.errors import DataError
from data.movielens.text_tables import TextForm, TextTable, find_file, read_text_table

GENRES_100K = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
RATINGS = (
    TextForm("ratings.dat", "::", ("user_id", "movie_id", "rating", "timestamp")),
    TextForm("ratings.csv", ",", ("user_id", "movie_id", "rating"), has_header=True),
    TextForm("u.data", "\t", ("user_id", "movie_id", "rating", "timestamp")),
)
USERS_1M = TextForm("users.dat", "::", ("user_id", "gender", "age", "occupation", "zip_code"))
USERS_100K = TextForm("u.user", "|", ("user_id", "age", "gender", "occupation", "zip_code"))
MOVIES_1M = TextForm("movies.dat", "::", ("movie_id", "title", "genres"))
MOVIES_100K = TextForm("u.item", "|", ("movie_id", "title", "release", "video_release", "address", *GENRES_100K))
ZIP_PREFIX_LENGTH = 3
# The last year in parentheses: "Land Before Time III (1995) (V)", "Cop Land (1997)".
YEAR_IN_TITLE = r".*\((?P<year>[0-9]{4})\)"


def read_movielens(folder: Path) -> pd.DataFrame:
    """Read all ratings joined with their users and movies, sorted by user and movie.

    Args:
        folder: folder with the published files, plain or gzip-compressed.

    Returns:
        A frame with the columns user and movie (int64 published ids), rating (int64, 1 to 5), gender, occupation and
        zip_prefix (text or None), age (int64, or float64 with NaN), genres (lists of texts) and movie_year (float64,
        possibly NaN).

    Raises:
        DataError: if a file is missing, or a line is not as published, naming file and line.
    """
    folder = Path(folder)
    ratings = _read(folder, "ratings", RATINGS)
    is_100k = ratings.path.name.startswith("u.")
    users = _read(folder, "users", (USERS_100K if is_100k else USERS_1M,))
    movies = _read(folder, "movies", (MOVIES_100K if is_100k else MOVIES_1M,))

    user, movie, rating = (ratings.whole_numbers(name) for name in ("user_id", "movie_id", "rating"))
    ratings.reject((rating < 1) | (rating > 5), "rating", "1 to 5")
    order = np.lexsort((movie, user))
    _check_rated_once(ratings, user[order], movie[order], order)
    user_rows = _rows_of(users, "user_id", ratings, user)[order]
    movie_rows = _rows_of(movies, "movie_id", ratings, movie)[order]
    about_users = {name: column[user_rows] for name, column in _about_users(users).items()}
    about_movies = {name: column[movie_rows] for name, column in _about_movies(movies, is_100k).items()}
    return pd.DataFrame(
        {"user": user[order], "movie": movie[order], "rating": rating[order], **about_users, **about_movies}
    )


def _read(folder: Path, what: str, forms: tuple[TextForm, ...]) -> TextTable:
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder; pass the one that holds the {what} file of MovieLens")
    for form in forms:
        path = find_file(folder, [form.file])
        if path is not None:
            return read_text_table(path, form)
    names = ", ".join(form.file for form in forms)
    raise DataError(
        f"{folder}: no {what} file; looked for {names}, each also with .gz. "
        "Unpack ml-1m.zip or ml-100k.zip of https://grouplens.org/datasets/movielens/ there"
    )


def _check_rated_once(ratings: TextTable, user: np.ndarray, movie: np.ndarray, order: np.ndarray) -> None:
    """Raise a DataError if a user rates a movie twice.

    Args:
        ratings: ratings as read.
        user, movie: [rows] ids, sorted by user and movie.
        order: [rows] row in `ratings` of each sorted pair.
    """
    repeated = np.flatnonzero((user[1:] == user[:-1]) & (movie[1:] == movie[:-1]))
    if len(repeated):
        first = int(repeated[0])
        lines = sorted(ratings.line(int(order[row])) for row in (first, first + 1))
        raise DataError(
            f"{ratings.path}, line {lines[1]}: user {user[first]} rates movie {movie[first]} again, after line "
            f"{lines[0]} ({len(repeated)} such lines in all); keep one rating of each"
        )


def _rows_of(table: TextTable, key: str, ratings: TextTable, wanted: np.ndarray) -> np.ndarray:
    """Return the row of `table` for each of the wanted ids, which come from the ratings."""
    keys = pd.Index(table.whole_numbers(key))
    table.reject(keys.duplicated(), key, "an id that no line above has")
    rows = keys.get_indexer(wanted)
    ratings.reject(rows < 0, key, f"one that {table.path.name} lists")
    return rows


def _about_users(users: TextTable) -> dict[str, np.ndarray]:
    zip_codes = users.optional_texts("zip_code")
    prefixes = [None if code is None else code[:ZIP_PREFIX_LENGTH] for code in zip_codes]
    return {
        "gender": users.optional_texts("gender"),
        "age": _optional_whole_numbers(users, "age"),
        "occupation": users.optional_texts("occupation"),
        "zip_prefix": _objects(prefixes),
    }


def _about_movies(movies: TextTable, is_100k: bool) -> dict[str, np.ndarray]:
    titles = pc.extract_regex(movies.texts.column("title"), YEAR_IN_TITLE)
    years = pc.cast(pc.struct_field(titles, "year"), pa.float64()).to_numpy()
    genres = _flagged_genres(movies) if is_100k else _listed_genres(movies)
    return {"genres": _objects(genres), "movie_year": years}


def _listed_genres(movies: TextTable) -> list[list[str]]:
    return [genres.split("|") if genres else [] for genres in movies.optional_texts("genres")]


def _flagged_genres(movies: TextTable) -> list[list[str]]:
    flags = []
    for genre in GENRES_100K:
        flag = movies.whole_numbers(genre)
        movies.reject(flag > 1, genre, "0 or 1")
        flags.append(flag == 1)
    names = np.array(GENRES_100K, object)
    return [names[row].tolist() for row in np.stack(flags, axis=1)]


def _optional_whole_numbers(table: TextTable, column: str) -> np.ndarray:
    """Return a column as int64, or as float64 with NaN if some cells are empty."""
    texts = table.optional_texts(column)
    missing = np.array([text is None for text in texts])
    wrong = np.array([text is not None and not (text.isascii() and text.isdigit()) for text in texts])
    table.reject(wrong, column, "a whole number, or nothing")
    numbers = np.where(missing, np.nan, np.where(missing, "0", texts).astype(np.float64))
    return numbers if missing.any() else numbers.astype(np.int64)


def _objects(entries: list) -> np.ndarray:
    """Return a one-dimensional object array; np.array would make lists of equal length two-dimensional."""
    array = np.empty(len(entries), object)
    for row, entry in enumerate(entries):
        array[row] = entry
    return array
