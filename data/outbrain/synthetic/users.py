"""Users of the synthetic Outbrain: uuid, place, platform and how often each occurs; all by the user's number."""

from dataclasses import dataclass

import numpy as np

from data.outbrain.synthetic.random import Draws, cumulative, pick

# Published: 88.4 % of the users of the events occur once, the most frequent 49 times. 23,120,126 events are of
# 19,794,967 users, which a fall with the fourth power from two events on gives.
ONCE, MOST_EVENTS, EVENTS_EXPONENT = 0.884, 49, 4.0
# Published: 39 % desktop (1), 47 % mobile (2), 13 % tablet (3); the remaining 1 % in proportion.
PLATFORM_SHARES = (39 / 99, 47 / 99, 13 / 99)
# Published: about 80 % of the events are from the US. Their split over states, chosen, falls roughly as populations.
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
REGIONS = ("00", "02", "07", "H9", "ON", "16")  # how states of other countries look
UNKNOWN_PLACE, NO_PLACE = 0.001, 0.001  # `--` and an empty cell; chosen such that small sets have some
ONE_PART, TWO_PARTS = 0.02, 0.05  # of the US users, the rest tell a DMA; chosen
LONGER_UUID = 0.1  # of the users, half of them 15 and half 16 hex digits; chosen

HEX_PAIRS = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), np.uint16)


@dataclass(frozen=True)
class Places:
    """All values of geo_location.

    Attributes:
        texts: [n] of str or None.
        region: number of the state, or of the country outside the US, on which taste depends, [n] int64.
        num_regions: regions are 0 ... num_regions - 1.
        shares: of the users, [n] float64.
    """

    texts: np.ndarray
    region: np.ndarray
    num_regions: int
    shares: np.ndarray


def make_places() -> Places:
    """The US by state and DMA, other countries by a power law, `--` and no value."""
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
    """What is known of users by their number; numbers are any whole numbers from 0.

    Attributes:
        draws: of the world.
        places: values of geo_location.
    """

    draws: Draws
    places: Places

    def uuids(self, users: np.ndarray) -> np.ndarray:
        """14 to 16 hex digits, [n] of bytes."""
        digits = hex_digits(self.draws.hashes("uuid", users)).view("S1").reshape(-1, 16).copy()
        longer = self.draws.uniform("uuid length", users)
        digits[longer >= LONGER_UUID / 2, 15] = b""
        digits[longer >= LONGER_UUID, 14] = b""
        return digits.view("S16").reshape(-1)

    def place(self, users: np.ndarray) -> np.ndarray:
        """Indices into `places`, [n] int64."""
        return pick(cumulative(self.places.shares), self.draws.uniform("place", users))

    def platform(self, users: np.ndarray) -> np.ndarray:
        """1 desktop, 2 mobile, 3 tablet, [n] int64."""
        return 1 + pick(cumulative(np.asarray(PLATFORM_SHARES)), self.draws.uniform("platform", users))


def hex_digits(words: np.ndarray) -> np.ndarray:
    """Words as 16 hex digits, [n] uint64 to [n] of bytes."""
    return HEX_PAIRS[np.ascontiguousarray(words).view(np.uint8)].view("S16")


def users_of_events(draws: Draws, events: int) -> np.ndarray:
    """The user's number of each event, 0 ... number of users - 1, [events] int32."""
    times = np.arange(2, MOST_EVENTS + 1)
    shares = times**-EVENTS_EXPONENT
    shares *= (1 - ONCE) / shares.sum()
    users = events / (ONCE + shares @ times)
    # Rounded cumulatively, such that rare numbers occur as often as they ought to.
    repeated = np.repeat(times, np.diff(np.floor(np.cumsum([0, *shares[::-1]]) * users + 0.5).astype(np.int64))[::-1])
    once = events - int(repeated.sum())
    counts = np.concatenate([np.ones(once, np.int64), repeated])
    return draws.generator("users").permutation(np.repeat(np.arange(len(counts), dtype=np.int32), counts))
