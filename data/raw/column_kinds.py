"""What the columns of a sample probably are: timestamps, lists, numbers or ids."""

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.raw.cells import as_texts
from data.raw.sampling import NUMBER

INTEGER = r"^[+-]?\d+$"
LEADING_ZERO = r"^0\d"
MICROSECONDS = 1_000_000
# Timestamps are expected to lie in these years.
FIRST_TIME, LAST_TIME = 631_152_000 * MICROSECONDS, 2_524_608_000 * MICROSECONDS  # 1990 and 2050
EPOCH_UNITS = {"s": 1, "ms": 1000, "us": 1_000_000, "ns": 1_000_000_000}
# Whole numbers whose name does not say so are epoch times if they lie within 20 years and differ often enough.
LONGEST_UNNAMED_SPAN, FEWEST_UNNAMED_TIMES = 20 * 365 * 86_400 * MICROSECONDS, 100

_DATE, _TIME = r"\d{4}-\d\d-\d\d", r"\d\d:\d\d:\d\d"
# (pattern, strptime format); the first that fits all values is taken.
TEXT_FORMATS = (
    (f"^{_DATE}$", "%Y-%m-%d"),
    (f"^{_DATE} {_TIME}$", "%Y-%m-%d %H:%M:%S"),
    (f"^{_DATE}T{_TIME}$", "%Y-%m-%dT%H:%M:%S"),
    (f"^{_DATE}T{_TIME}Z$", "%Y-%m-%dT%H:%M:%SZ"),
    (f"^{_DATE} {_TIME} UTC$", "%Y-%m-%d %H:%M:%S UTC"),
    (rf"^{_DATE} \d\d:\d\d$", "%Y-%m-%d %H:%M"),
    (rf"^{_DATE} \d\d$", "%Y-%m-%d %H"),
    (rf"^\d{{4}}/\d\d/\d\d {_TIME}$", "%Y/%m/%d %H:%M:%S"),
    (r"^\d{4}/\d\d/\d\d$", "%Y/%m/%d"),
    (rf"^\d\d/\d\d/\d{{4}} {_TIME}$", "%m/%d/%Y %H:%M:%S"),
    (rf"^\d\d/\d\d/\d{{4}} {_TIME}$", "%d/%m/%Y %H:%M:%S"),
    (r"^\d\d/\d\d/\d{4}$", "%m/%d/%Y"),
    (r"^\d\d/\d\d/\d{4}$", "%d/%m/%Y"),
    (r"^\d\d-[A-Z][a-z]{2}-\d{4}$", "%d-%b-%Y"),
)
DIGIT_FORMATS = (
    (r"^\d{14}$", "%Y%m%d%H%M%S"),
    (r"^\d{12}$", "%Y%m%d%H%M"),
    (r"^\d{10}$", "%Y%m%d%H"),
    (r"^\d{8}$", "%Y%m%d"),
    (r"^\d{8}$", "%y%m%d%H"),
    (r"^\d{6}$", "%y%m%d"),
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


TIME_WORDS = _words("at created date datetime day ds dt epoch hour time timestamp ts unix updated when")
ID_WORDS = _words(
    "ad adgroup advertiser app author banner brand browser campaign cat category categorical channel city class code "
    "country creative device doc document domain flag gender group has id ids ip is item key label language level "
    "location model movie occupation os page platform pos position postal product publisher region segment seller sex "
    "shop site sku slot song state status store type uid user uuid video zip zipcode"
)
ENTITY_WORDS = _words(
    "ad author device doc document ip item movie product seller shop site sku song uid user uuid video"
)
NUMBER_WORDS = _words(
    "age amount area avg balance bid cnt cost count ctr cvr days distance duration gain height history hours income "
    "latitude len length loss longitude max mean min minutes month months num number numerical percent price quantity "
    "rate ratio recency revenue salary score seconds size spend sum total value views volume weeks weight width years"
)
HISTORY_WORDS = _words("clicked hist history last recent seen seq sequence viewed watched")
LIST_WORDS = HISTORY_WORDS | _words("categories genres ids interests items keywords list tags topics words")
# Criteo's names (I1 to I13 are counts), Avazu's and Criteo's (C1 to C26 are ids).
ANONYMOUS_NUMBER, ANONYMOUS_ID = re.compile(r"I\d+"), re.compile(r"C\d+")
# A name that ends in "id" names an id, except for these words.
NOT_IDS = frozenset(["bid", "covid", "grid", "paid", "said", "solid", "valid", "void"])

LIST_SEPARATORS = ("|", ";", ", ", "\x02", "^", ",", " ", ":", "#")
# Separators that also occur within sentences and names.
COMMON_SEPARATORS = (", ", ",", " ", ":", "#")
LEAST_LIST_SHARE = 0.2
# How many times more items than different items there are in the cells of a list, counting different cells.
LEAST_REPEATS = 2.0
FEW_VALUES = 20
# Quantities: the median of the different values lies below this share of their range, or the logarithms of the
# frequencies of neighbours correlate more than this.
DENSE_AT_LOW_END, SMOOTH = 0.25, 0.6
MOSTLY_ZERO = 0.8
LARGEST_DENSE_RANGE = 400
# A number is skewed if its maximum exceeds this multiple of its median plus one.
SKEWED = 20


@dataclass(frozen=True)
class SampledColumn:
    """The cells of a column in the sample.

    Attributes:
        name: name of the raw column.
        rows: number of rows.
        nulls: number of rows without a value.
        values: the different values as strings, the most frequent first; of a list column, its items.
        counts: [values] how often each occurs.
        cells: [rows] the cells as they are stored.
        texts: [rows] the cells as strings.
        numbers: [values] float64, or None unless all values are numbers.
    """

    name: str
    rows: int
    nulls: int
    values: pa.Array
    counts: np.ndarray
    cells: pa.Array
    texts: pa.Array
    numbers: np.ndarray | None

    @property
    def distinct(self) -> int:
        """Number of different values."""
        return len(self.values)

    @property
    def unique_share(self) -> float:
        """Number of different values over the number of values."""
        return self.distinct / max(1, int(self.counts.sum()))

    @property
    def is_whole(self) -> bool:
        """Whether all values are integers, as 3 and 3.0 are."""
        return self.numbers is not None and bool(np.all(self.numbers == np.floor(self.numbers)))

    @property
    def median(self) -> float:
        """Median over the rows with a value; NaN unless all are numbers."""
        if self.numbers is None:
            return float("nan")
        order = np.argsort(self.numbers)
        below = np.cumsum(self.counts[order])
        return float(self.numbers[order][np.searchsorted(below, below[-1] / 2)])


@dataclass(frozen=True)
class TimestampKind:
    """A column of timestamps.

    Attributes:
        format: strptime format of texts, or None.
        unit: unit of numbers since the epoch, or None.
        micros: [values] int64 microseconds since the epoch, of the column's values.
        is_ambiguous: whether day and month could be exchanged.
    """

    format: str | None
    unit: str | None
    micros: np.ndarray
    is_ambiguous: bool = False


@dataclass(frozen=True)
class ListKind:
    """A column of lists.

    Attributes:
        separator: separator of the items of a text, or None for a list of a parquet file.
        items: the items as a column.
        lengths: [cells] number of items of the cells with a value.
    """

    separator: str | None
    items: SampledColumn
    lengths: np.ndarray


def sampled_column(name: str, cells: pa.Array | pa.ChunkedArray) -> SampledColumn:
    """Summarize a column of the sample.

    Args:
        name: name of the raw column.
        cells: [rows] strings, numbers, booleans, dates or timestamps.
    """
    cells = cells.combine_chunks() if isinstance(cells, pa.ChunkedArray) else cells
    texts = as_texts(cells.cast(pa.int8()) if pa.types.is_boolean(cells.type) else cells)
    counted = pc.value_counts(texts.drop_null())
    counts = counted.field(1).to_numpy()
    order = np.argsort(-counts, kind="stable")
    values = counted.field(0).take(pa.array(order))
    return SampledColumn(name, len(cells), texts.null_count, values, counts[order], cells, texts, _numbers(values))


def _numbers(values: pa.Array) -> np.ndarray | None:
    if not len(values) or not pc.all(pc.match_substring_regex(values, NUMBER)).as_py():
        return None
    numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return numbers if np.isfinite(numbers).all() else None


def words_of(name: str) -> list[str]:
    """Return the words of a column's name in lower case: "userAge_2" has user and age."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return [word.lower() for word in re.findall(r"[^\W\d_]+", spaced)]


# Timestamps.


def find_timestamp(column: SampledColumn, is_time: bool = False) -> TimestampKind | None:
    """Return how a column writes timestamps, or None if it does not.

    Args:
        column: the column.
        is_time: whether the user says that it is a time. Digits are then taken as such whatever the name.
    """
    stored = column.cells.type
    if pa.types.is_date(stored) or pa.types.is_timestamp(stored):
        micros = pc.cast(column.values, pa.timestamp("us")) if pa.types.is_date(stored) else None
        micros = micros if micros is not None else _stored_timestamps(column)
        return TimestampKind(None, None, micros.cast(pa.int64()).to_numpy())
    if not column.distinct:
        return None
    if column.numbers is None:
        return _text_timestamp(column)
    is_named = is_time or bool(TIME_WORDS.intersection(words_of(column.name)))
    return (_digit_timestamp(column, DIGIT_FORMATS) if is_named else None) or _epoch(column, is_named)


def _stored_timestamps(column: SampledColumn) -> pa.Array:
    counted = pc.value_counts(column.cells.drop_null())
    order = np.argsort(-counted.field(1).to_numpy(), kind="stable")
    return counted.field(0).take(pa.array(order)).cast(pa.timestamp("us", column.cells.type.tz), safe=False)


def _text_timestamp(column: SampledColumn) -> TimestampKind | None:
    found = _digit_timestamp(column, TEXT_FORMATS)
    if found is None and pc.all(pc.match_substring_regex(column.values, rf"^{_DATE}[T ]\d\d:\d\d")).as_py():
        for type in (pa.timestamp("us"), pa.timestamp("us", "UTC")):  # ISO 8601 with fractions or an offset
            try:
                return TimestampKind(None, None, column.values.cast(type).cast(pa.int64()).to_numpy())
            except pa.ArrowInvalid:
                continue
    return found


def _digit_timestamp(column: SampledColumn, formats: tuple[tuple[str, str], ...]) -> TimestampKind | None:
    fitting = []
    for pattern, format in formats:
        if pc.all(pc.match_substring_regex(column.values, pattern)).as_py():
            times = pc.strptime(column.values, format=format, unit="us", error_is_null=True)
            micros = times.cast(pa.int64())
            if not times.null_count and _is_plausible(micros.to_numpy()):
                fitting.append(TimestampKind(format, None, micros.to_numpy()))
    if not fitting:
        return None
    exchanged = {kind.format for kind in fitting} >= {"%m/%d/%Y", "%d/%m/%Y"}
    return TimestampKind(fitting[0].format, None, fitting[0].micros, exchanged)


def _epoch(column: SampledColumn, is_named: bool) -> TimestampKind | None:
    if column.numbers is None or not column.is_whole:
        return None
    for unit, per_second in EPOCH_UNITS.items():
        micros = np.clip(column.numbers / per_second * MICROSECONDS, -LAST_TIME, 2 * LAST_TIME).astype(np.int64)
        if _is_plausible(micros):
            is_narrow = np.ptp(micros) <= LONGEST_UNNAMED_SPAN and column.distinct >= FEWEST_UNNAMED_TIMES
            return TimestampKind(None, unit, micros) if is_named or is_narrow else None
    return None


def _is_plausible(micros: np.ndarray) -> bool:
    return bool(micros.min() >= FIRST_TIME and micros.max() <= LAST_TIME)


# Lists.


def find_list(column: SampledColumn) -> ListKind | None:
    """Return the items of a column of lists, or None if it has none."""
    if pa.types.is_list(column.cells.type) or pa.types.is_large_list(column.cells.type):
        return None  # summarized by `stored_list`
    if column.numbers is not None or not column.distinct:
        return None
    is_named = bool(LIST_WORDS.intersection(words_of(column.name)))
    for separator in LIST_SEPARATORS:
        found = _split(column, separator)
        if found is not None and _is_list(column, found, separator, is_named):
            return found
    return None


def stored_list(name: str, cells: pa.Array | pa.ChunkedArray) -> ListKind:
    """Summarize a column of lists of a parquet file."""
    cells = cells.combine_chunks() if isinstance(cells, pa.ChunkedArray) else cells
    lengths = pc.list_value_length(cells.drop_null()).to_numpy(zero_copy_only=False)
    return ListKind(None, sampled_column(name, pc.list_flatten(cells)), lengths)


def _split(column: SampledColumn, separator: str) -> ListKind | None:
    """Split the different values of a column, if enough of its cells have the separator."""
    has = pc.match_substring(column.values, separator).to_numpy(zero_copy_only=False)
    if column.counts[has].sum() < LEAST_LIST_SHARE * column.counts.sum():
        return None
    lists = pc.split_pattern(column.values, separator)
    lengths = pc.list_value_length(lists).to_numpy()
    return ListKind(separator, sampled_column(column.name, pc.list_flatten(lists)), np.repeat(lengths, column.counts))


def _is_list(column: SampledColumn, found: ListKind, separator: str, is_named: bool) -> bool:
    """Return whether the parts of a text are items: they occur in other texts too, and are no words of a sentence."""
    items = found.items
    parts = int(items.counts.sum())
    if np.ptp(found.lengths) == 0 and not is_named:  # of a fixed length, such as A>B or a version number
        return False
    if column.distinct < FEW_VALUES and not is_named:
        return False
    repeats = parts / max(1, items.distinct)
    if separator not in COMMON_SEPARATORS or is_named:
        return repeats >= LEAST_REPEATS or items.numbers is not None
    are_codes = pc.all(pc.match_substring_regex(items.values, r"^\w*\d\w*$")).as_py()
    return bool(are_codes) and (repeats >= LEAST_REPEATS or items.numbers is not None)


# Numbers and ids.


def is_number(column: SampledColumn) -> bool:
    """Return whether the values of a column are quantities rather than ids.

    Its name decides if a word of it says so (the last such word), else the distribution of its values.
    """
    if column.numbers is None:
        return False
    if not column.is_whole:
        return True
    if ANONYMOUS_ID.fullmatch(column.name) or ANONYMOUS_NUMBER.fullmatch(column.name):
        return ANONYMOUS_NUMBER.fullmatch(column.name) is not None
    if pc.any(pc.match_substring_regex(column.values, LEADING_ZERO)).as_py():
        return False
    named = kind_by_name(column.name)
    return named == "number" if named else _is_quantity(column)


def kind_by_name(name: str) -> str | None:
    """Return "id" or "number" if the name of a column says what its values are, else None."""
    for word in reversed(words_of(name)):
        if word in ID_WORDS or (word.endswith("id") and word not in NOT_IDS):
            return "id"
        if word in NUMBER_WORDS:
            return "number"
    return None


def _is_quantity(column: SampledColumn) -> bool:
    """Return whether whole numbers without a telling name look like a quantity.

    A quantity is mostly 0, or its different values are dense at the low end of their range, or neighbours have similar
    frequencies. Ids are spread evenly, and the frequencies of neighbours have little to do with each other.
    """
    if column.numbers is None or column.distinct <= FEW_VALUES:
        return False
    order = np.argsort(column.numbers)
    numbers = column.numbers[order]
    span = numbers[-1] - numbers[0]
    zeros = column.counts[column.numbers == 0].sum() / column.counts.sum()
    if numbers[0] < -1 or zeros > MOSTLY_ZERO or np.median(numbers) - numbers[0] < DENSE_AT_LOW_END * span:
        return True
    if span > LARGEST_DENSE_RANGE or span > 10 * column.distinct:
        return False
    counts = np.log(column.counts[order])
    deviations = counts - counts.mean()
    variance = (deviations**2).sum()
    return bool(variance == 0 or (deviations[1:] * deviations[:-1]).sum() / variance > SMOOTH)


def is_skewed(column: SampledColumn) -> bool:
    """Return whether numbers that are at least 0 have a long tail, which a logarithm shortens."""
    numbers = column.numbers
    return numbers is not None and numbers.min() >= 0 and numbers.max() > SKEWED * (column.median + 1)
