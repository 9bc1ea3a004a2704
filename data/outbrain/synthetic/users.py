"""Users of the synthetic Outbrain: uuid, place, platform and frequency, as functions of the user's number."""

from dataclasses import dataclass

import numpy as np

from data.outbrain.synthetic.random import Draws, cumulative, pick

# Published: 88.4% of the users of events occur once, the most frequent one 49 times; 23,120,126 events are of
# 19,794,967 users. Frequencies that decrease with the fourth power, from two events on, match these numbers.
ONCE, MOST_EVENTS, EVENTS_EXPONENT = 0.884, 49, 4.0
# Published: 39% desktop (1), 47% mobile (2), 13% tablet (3); the remaining 1% is distributed in proportion.
PLATFORM_SHARES = (39 / 99, 47 / 99, 13 / 99)
# Published: about 80% of the events are from the US. Chosen: the fractions of states, roughly by population.
US_SHARE = 0.80
STATES = (
    "CA", "TX", "FL", "NY", "PA", "IL", "OH", "GA", "NC", "MI", "NJ", "VA", "WA", "AZ", "MA", "TN", "IN", "MO",
    "MD", "WI", "CO", "MN", "SC", "AL", "LA", "KY", "OR", "OK", "CT", "UT", "IA", "NV", "AR", "MS", "KS", "NM",
    "NE", "ID", "WV", "HI", "NH", "ME", "MT", "RI", "DE", "SD", "ND", "AK", "DC", "VT", "WY",
)  # fmt: skip
COUNTRIES = (
    "GB", "CA", "AU", "IN", "PH", "ZA", "SG", "MY", "NZ", "DE", "IE", "NL", "FR", "AE", "BR", "ES", "IT", "SE",
    "ID", "MX", "HK", "TH", "NO", "JP", "PK", "DK", "KR", "BE", "SA", "IL", "NG", "KE", "CH", "TR", "VN", "GR",
    "PL", "EG", "PT", "FI", "RO", "RU", "TW", "QA", "KW", "LK", "TT", "JM", "BD", "UA",
)  # fmt: skip
REGIONS = ("00", "02", "07", "H9", "ON", "16")  # codes like those of states in other countries
UNKNOWN_PLACE, NO_PLACE = 0.001, 0.001  # fractions of `--` and of empty cells; chosen so that small sets have some
ONE_PART, TWO_PARTS = 0.02, 0.05  # fractions of US users with country or state only; others have a DMA; chosen
LONGER_UUID = 0.1  # fraction of users with longer uuids, half of them 15 and half 16 hex digits; chosen

HEX_PAIRS = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), np.uint16)


@dataclass(frozen=True)
class Places:
    """All values of geo_location.

    Attributes:
        texts: [n] values, str or None.
        region: [n] int64 number of the US state or other country, which taste depends on.
        num_regions: number of regions.
        shares: [n] float64 fraction of the users at each value.
    """

    texts: np.ndarray
    region: np.ndarray
    num_regions: int
    shares: np.ndarray


def make_places() -> Places:
    """Return all places: the US by state and DMA, other countries by a power law, `--` and no value."""
    rows: list[tuple[str | None, int, float]] = []
    state_shares = US_SHARE / (np.arange(len(STATES)) + 4.0)
    state_shares *= US_SHARE / state_shares.sum()
    nowhere = len(STATES) + len(COUNTRIES)
    rows.append(("US", nowhere, ONE_PART * US_SHARE))
    for number, (state, share) in enumerate(zip(STATES, state_shares * (1 - ONE_PART), strict=True)):
        rows.append((f"US>{state}", number, TWO_PARTS * share))
        areas = 1 + 5 * (len(STATES) - number) // len(STATES)
        rows += [
            (f"US>{state}>{500 + 7 * number + area}", number, (1 - TWO_PARTS) * share / areas) for area in range(areas)
        ]
    country_shares = (np.arange(len(COUNTRIES)) + 1.0) ** -1.2
    country_shares *= (1 - US_SHARE - UNKNOWN_PLACE - NO_PLACE) / country_shares.sum()
    for number, (country, share) in enumerate(zip(COUNTRIES, country_shares, strict=True), len(STATES)):
        rows.append((country, number, 0.1 * share))
        rows += [(f"{country}>{region}", number, 0.9 * share / len(REGIONS)) for region in REGIONS]
    rows += [("--", nowhere, UNKNOWN_PLACE), (None, nowhere, NO_PLACE)]
    texts, regions, shares = zip(*rows, strict=True)
    return Places(np.array(texts, object), np.array(regions), nowhere + 1, np.array(shares) / sum(shares))


@dataclass(frozen=True)
class Users:
    """Attributes of users, computed from their numbers, which are any integers from 0.

    Attributes:
        draws: random draws of the world.
        places: values of geo_location.
    """

    draws: Draws
    places: Places

    def uuids(self, users: np.ndarray) -> np.ndarray:
        """Return uuids of 14 to 16 hex digits, [n] bytes."""
        digits = hex_digits(self.draws.hashes("uuid", users)).view("S1").reshape(-1, 16).copy()
        longer = self.draws.uniform("uuid length", users)
        digits[longer >= LONGER_UUID / 2, 15] = b""
        digits[longer >= LONGER_UUID, 14] = b""
        return digits.view("S16").reshape(-1)

    def place(self, users: np.ndarray) -> np.ndarray:
        """Return indices into `places`, [n] int64."""
        return pick(cumulative(self.places.shares), self.draws.uniform("place", users))

    def platform(self, users: np.ndarray) -> np.ndarray:
        """Return platforms, [n] int64: 1 desktop, 2 mobile, 3 tablet."""
        return 1 + pick(cumulative(np.asarray(PLATFORM_SHARES)), self.draws.uniform("platform", users))


def hex_digits(words: np.ndarray) -> np.ndarray:
    """Convert [n] uint64 words to 16 hex digits each, [n] bytes."""
    return HEX_PAIRS[np.ascontiguousarray(words).view(np.uint8)].view("S16")


def users_of_events(draws: Draws, events: int) -> np.ndarray:
    """Draw the user of each event, [events] int32 numbers in [0, number of users)."""
    times = np.arange(2, MOST_EVENTS + 1)
    shares = times**-EVENTS_EXPONENT
    shares *= (1 - ONCE) / shares.sum()
    users = events / (ONCE + shares @ times)
    # Cumulative counts are rounded, not single ones, so that rare frequencies occur in the right proportion.
    repeated = np.repeat(times, np.diff(np.floor(np.cumsum([0, *shares[::-1]]) * users + 0.5).astype(np.int64))[::-1])
    once = events - int(repeated.sum())
    counts = np.concatenate([np.ones(once, np.int64), repeated])
    return draws.generator("users").permutation(np.repeat(np.arange(len(counts), dtype=np.int32), counts))
