"""Names of MovieLens columns; raw columns and the features derived from them share their names."""

ONEHOT_COLUMNS = ("user", "movie", "gender", "age", "occupation", "zip_prefix")
MULTIHOT_COLUMNS = ("genres",)
NUMERICAL_COLUMNS = ("movie_year", "movie_count", "user_count", "movie_mean", "user_mean")
LIKED, RATING = "liked", "rating"
LABELS = {LIKED: "binary", RATING: "regression"}
LIKED_FROM = 4
MAP_COLUMN = "user_id"
FOLD = "fold"
NUM_FOLDS = 10
