"""Generate raw click logs with a known pattern: python -m data.synthetic_logs --output raw.

The logs have the columns of Avazu's click logs (an id per row, text ids of hex digits, the hour as YYMMDDHH, anonymous
integer codes) and three more: `price`, a number with missing values; `interests`, a list of texts; and `install`, a
second label, which only clicks can lead to. Files:

    logs/2014-10-21.csv.gz ...  one file per day, with a header
    new.csv                     the day after, without labels; many of its devices occur in no log
    synthetic.json              the arguments, and the highest achievable ROC AUC per label on the last day of the logs
"""

import datetime
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from data.command_line import Parser, run_tool, whole_number
from data.encoding.hashing import hash_rows
from data.files.new_dataset import new_dataset

SUMMARY_FILE = "synthetic.json"
LOGS_FOLDER = "logs"
NEW_FILE = "new.csv"
LABELS = ("click", "install")
FIRST_DAY = datetime.date(2014, 10, 21)
LEAST_ROWS, LEAST_DAYS = 1000, 3

# Share of rows from apps; the others come from web sites, as in Avazu's logs.
APP_SHARE = 0.4
# Share of rows whose device was never seen on an earlier day.
NEW_DEVICE_SHARE = 0.25
# Share of rows in which the device has no id of its own.
ANONYMOUS_SHARE = 0.5
MISSING_PRICES, MISSING_MODELS = 0.05, 0.01
CLICK_BIAS, INSTALL_BIAS = -2.2, -2.2
MAX_INTERESTS = 5
# Combined with the seed, these give each kind of draw its own random stream.
_EFFECTS, _ROWS = range(2)


@dataclass(frozen=True)
class Entity:
    """A column of ids whose values have an effect on the labels.

    Attributes:
        size: number of values.
        skew: exponent of the values' frequencies, which fall as 1 / rank ** skew.
        effect: standard deviation of the effect of a value on the logits of the labels.
        first: first of the integer codes; None for ids of eight hex digits.
    """

    size: int
    skew: float
    effect: float
    first: int | None = None

    def draw(self, generator: np.random.Generator, rows: int) -> np.ndarray:
        """Draw the values of rows, [rows] int64 in [0, size)."""
        shares = np.cumsum(np.arange(1, self.size + 1, dtype=np.float64) ** -self.skew)
        return np.searchsorted(shares, generator.random(rows) * shares[-1], side="right").clip(0, self.size - 1)

    def names(self, column: str, seed: int) -> pa.Array:
        """Return the values as they are written."""
        numbers = np.arange(self.size)
        if self.first is not None:
            return pa.array(numbers + self.first)
        return hex_ids(numbers, column, seed)


ENTITIES = {
    "C1": Entity(7, 1.0, 0.1, 1001),
    "banner_pos": Entity(5, 1.2, 0.4, 0),
    "site_id": Entity(1500, 1.1, 0.8),
    "site_category": Entity(20, 1.0, 0.3),
    "app_id": Entity(1500, 1.2, 0.8),
    "app_category": Entity(20, 1.2, 0.3),
    "device_model": Entity(2000, 0.9, 0.3),
    "device_type": Entity(4, 1.5, 0.1, 0),
    "device_conn_type": Entity(4, 1.0, 0.3, 0),
    "C14": Entity(1200, 0.8, 0.6, 15000),
    "C17": Entity(300, 0.9, 0.3, 1700),
    "C18": Entity(4, 0.7, 0.1, 0),
    "C21": Entity(50, 0.8, 0.3, 13),
}
INTERESTS = Entity(12, 0.5, 0.3)
DEVICES = Entity(20_000, 0.8, 0.0)
# fmt: off
COLUMNS = (
    "id", "click", "hour", "C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain",
    "app_category", "device_id", "device_ip", "device_model", "device_type", "device_conn_type", "C14", "C15",
    "C16", "C17", "C18", "C19", "C20", "C21", "price", "interests", "install",
)
# fmt: on


def hex_ids(numbers: np.ndarray, column: str, seed: int) -> pa.Array:
    """Return ids of eight hex digits for the numbers of a column, [n] strings."""
    hashes = hash_rows(seed, np.array([column]), numbers) & np.uint64(0xFFFFFFFF)
    digits = np.ascontiguousarray(hashes.astype(">u4")).view(np.uint8).tobytes().hex()
    return pa.array([digits[start : start + 8] for start in range(0, len(digits), 8)])


@dataclass(frozen=True)
class Effects:
    """The pattern of the labels.

    Attributes:
        by_column: {column: [2, size] effects of its values on the logits of click and install}.
        interests: [2, size] effects of an interest.
        pairs: [app and site categories, C21] effects of a combination on the logit of a click.
        devices: number that seeds the effect of a device.
    """

    by_column: Mapping[str, np.ndarray]
    interests: np.ndarray
    pairs: np.ndarray
    devices: int

    @classmethod
    def drawn(cls, seed: int) -> "Effects":
        """Draw the pattern of a seed."""
        generator = np.random.default_rng([_EFFECTS, seed])
        by_column = {
            name: entity.effect * generator.standard_normal((2, entity.size)) for name, entity in ENTITIES.items()
        }
        interests = INTERESTS.effect * generator.standard_normal((2, INTERESTS.size))
        pairs = 0.4 * generator.standard_normal((ENTITIES["site_category"].size, ENTITIES["C21"].size))
        return cls(by_column, interests, pairs, seed)

    def of_devices(self, devices: np.ndarray) -> np.ndarray:
        """Return the effect of each device on the logit of a click, [rows]; 0 for an anonymous one (-1)."""
        uniform = hash_rows(self.devices, np.array(["effect"]), devices).astype(np.float64) / 2.0**64
        return np.where(devices < 0, 0.0, 2.0 * uniform - 1.0)


@dataclass(frozen=True)
class Day:
    """The rows of a day.

    Attributes:
        table: the columns as they are written.
        probabilities: {label: [rows] true probability}.
        labels: {label: [rows] 0 or 1}.
    """

    table: pa.Table
    probabilities: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]


def draw_day(effects: Effects, names: Mapping[str, pa.Array], number: int, rows: int, seed: int) -> Day:
    """Draw the rows of one day.

    Args:
        effects: pattern of the labels.
        names: {column: its values as they are written}.
        number: index of the day, from 0.
        rows: number of rows.
        seed: seed of all draws.
    """
    generator = np.random.default_rng([_ROWS, seed, number])
    codes = {name: entity.draw(generator, rows) for name, entity in ENTITIES.items()}
    is_app = generator.random(rows) < APP_SHARE
    for kind, other in (("site", ~is_app), ("app", is_app)):  # the most frequent value stands for "none"
        for column in (f"{kind}_id", f"{kind}_category"):
            codes[column] = np.where(other, codes[column], 0)
    hours = np.sort(generator.choice(24, rows, p=_hour_shares()))
    devices = _draw_devices(generator, number, rows)
    anonymous = np.where(generator.random(rows) < ANONYMOUS_SHARE, -1, devices)
    price = np.round(np.exp(generator.normal(2.5, 1.0, rows)), 2)
    liked = _draw_interests(generator, rows)  # [rows, MAX_INTERESTS], -1 where there is none

    logits = sum(effects.by_column[name][:, codes[name]] for name in ENTITIES)  # [2, rows]
    logits = logits + np.array([[CLICK_BIAS], [INSTALL_BIAS]]) - 0.3 * (np.log(price) - 2.5)
    logits = logits + np.where(liked < 0, 0.0, effects.interests[:, liked]).sum(axis=-1)
    logits[0] += effects.pairs[codes["site_category"], codes["C21"]] + 0.3 * np.sin(hours / 24 * 2 * np.pi)
    logits[0] += effects.of_devices(anonymous)
    click, install = 1 / (1 + np.exp(-logits))
    clicked = generator.random(rows) < click
    installed = clicked & (generator.random(rows) < install)

    day = FIRST_DAY + datetime.timedelta(days=number)
    ids = hash_rows(seed, np.array(["row"]), np.full(rows, number), np.arange(rows))
    values = {name: names[name].take(pa.array(codes[name])) for name in ENTITIES}
    values["device_model"] = _blanked(values["device_model"], generator.random(rows) < MISSING_MODELS)
    values |= {
        "id": pa.array(ids % np.uint64(8 * 10**18) + np.uint64(10**19)),
        "hour": pa.array(int(f"{day:%y%m%d}") * 100 + hours),
        "site_domain": names["site_domain"].take(pa.array(codes["site_id"] // 2)),
        "app_domain": names["app_domain"].take(pa.array(codes["app_id"] // 5)),
        "device_id": hex_ids(anonymous, "device_id", seed),
        "device_ip": hex_ids(devices * 2 + generator.integers(0, 2, rows), "device_ip", seed),
        "C15": pa.array(np.where(codes["C14"] % 7 == 0, 300, 320)),
        "C16": pa.array(np.where(codes["C14"] % 7 == 0, 250, 50)),
        "C19": pa.array(33 + codes["C17"] % 60 * 2),
        "C20": pa.array(np.where(codes["C14"] % 3 == 0, -1, 100000 + codes["C17"] % 150)),
        "price": pa.array(price, mask=generator.random(rows) < MISSING_PRICES),
        "interests": _joined(names["interests"], liked),
        "click": pa.array(clicked.astype(np.int8)),
        "install": pa.array(installed.astype(np.int8)),
    }
    table = pa.table({name: values[name] for name in COLUMNS})
    return Day(table, {"click": click, "install": click * install}, {"click": clicked, "install": installed})


def _hour_shares() -> np.ndarray:
    shares = 1.2 - np.cos(np.arange(24) / 24 * 2 * np.pi)
    return shares / shares.sum()


def _draw_devices(generator: np.random.Generator, day: int, rows: int) -> np.ndarray:
    """Draw devices: most come back on every day, the others appear on this day only."""
    is_new = generator.random(rows) < NEW_DEVICE_SHARE
    new = DEVICES.size * (day + 1) + generator.integers(0, DEVICES.size, rows)
    return np.where(is_new, new, DEVICES.draw(generator, rows))


def _draw_interests(generator: np.random.Generator, rows: int) -> np.ndarray:
    """Draw 0 to MAX_INTERESTS different interests per row, [rows, MAX_INTERESTS], and -1 for none."""
    order = np.argsort(generator.random((rows, INTERESTS.size)), axis=1)[:, :MAX_INTERESTS]
    length = generator.integers(0, MAX_INTERESTS + 1, rows)
    return np.where(np.arange(MAX_INTERESTS) < length[:, None], order, -1)


def _joined(names: pa.Array, codes: np.ndarray) -> pa.Array:
    """Return the names of a row's codes joined with "|"; null where it has none."""
    lengths = (codes >= 0).sum(axis=1)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), names.take(pa.array(codes[codes >= 0])))
    return _blanked(pc.binary_join(lists, "|"), lengths == 0)


def _blanked(values: pa.Array, is_missing: np.ndarray) -> pa.Array:
    return pc.if_else(pa.array(is_missing), None, values)


def write_logs(output: Path, *, rows: int = 200_000, days: int = 10, seed: int = 0) -> None:
    """Write the logs, the new rows and the summary, atomically.

    Args:
        output: folder for the files.
        rows: number of rows of all logs; the new rows are as many as one day has.
        days: number of days, each with a log of its own.
        seed: seed of all draws.

    Raises:
        DataError: if `output` already holds logs or cannot be written to.
    """
    effects, names = Effects.drawn(seed), value_names(seed)
    per_day = -(-rows // days)
    with new_dataset(output, SUMMARY_FILE, [LOGS_FOLDER, NEW_FILE]) as draft:
        (draft / LOGS_FOLDER).mkdir()
        for number in range(days):
            day = draw_day(effects, names, number, min(per_day, rows - number * per_day), seed)
            date = FIRST_DAY + datetime.timedelta(days=number)
            path = draft / LOGS_FOLDER / f"{date.isoformat()}.csv.gz"
            with pa.CompressedOutputStream(str(path), "gzip") as file:
                _write_csv(day.table, file)
        best = {label: roc_auc(day.labels[label], day.probabilities[label]) for label in LABELS}
        new = draw_day(effects, names, days, per_day, seed)
        with pa.OSFile(str(draft / NEW_FILE), "wb") as file:
            _write_csv(new.table.drop_columns(list(LABELS)), file)
        summary = {"rows": rows, "days": days, "seed": seed, "best_auc_of_last_day": best}
        (draft / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n")
    print(f"{output}: {rows:,} rows of {days} days in {LOGS_FOLDER}/, {new.table.num_rows:,} new rows in {NEW_FILE}")


def value_names(seed: int) -> dict[str, pa.Array]:
    """Return {column: its values as they are written} of a seed."""
    names = {name: entity.names(name, seed) for name, entity in ENTITIES.items()}
    names |= {name: hex_ids(np.arange(2000), name, seed) for name in ("site_domain", "app_domain")}
    words = "autos books cooking fashion finance games health music news sports tech travel"
    return names | {"interests": pa.array(words.split())}


def _write_csv(table: pa.Table, file: pa.NativeFile) -> None:
    pa_csv.write_csv(table, file, pa_csv.WriteOptions(quoting_style="none"))


def roc_auc(labels: np.ndarray, scores: np.ndarray) -> float | None:
    """Return the ROC AUC of untied scores, or None unless both classes occur."""
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return None
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores)] = np.arange(1, len(scores) + 1)
    return float((ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0 success, 1 failure, 2 invalid input or arguments."""
    parser = Parser(
        prog="python -m data.synthetic_logs",
        description="Generates raw click logs, similar to Avazu's, whose labels follow a known pattern.",
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the logs, created if missing")
    add("--rows", type=whole_number(LEAST_ROWS), default=200_000, help="rows of all logs together")
    add("--days", type=whole_number(LEAST_DAYS), default=10, help="days, one file each")
    add("--seed", type=whole_number(0), default=0, help="seed of all random numbers")
    args = parser.parse(argv)

    def job() -> int:
        write_logs(args.output, rows=args.rows, days=args.days, seed=args.seed)
        return 0

    return run_tool("synthetic_logs", job)


if __name__ == "__main__":
    sys.exit(main())
