"""Ads of the synthetic Outbrain: document, campaign, advertiser, and how often each is shown per day."""

from dataclasses import dataclass

import numpy as np

from data.outbrain.synthetic.random import Draws, cumulative

TRAIN_DAYS, ALL_DAYS = 13, 15
# Published: 185,709 promoted documents, 35,000 campaigns and 4,385 advertisers for 559,583 ads.
DOCUMENTS_PER_AD, CAMPAIGNS_PER_AD, ADVERTISERS_PER_AD = 185_709 / 559_583, 35_000 / 559_583, 4_385 / 559_583
FEWEST_CAMPAIGNS, FEWEST_ADVERTISERS = 24, 12  # in small worlds
# Expected training rows per ad: log-logistic with a floor, and a log-uniform tail from 1,000. Fitted so that of the ads
# with any row, 22.7% have one, 61.7% fewer than 10 and 97.5% fewer than 1,000, with a mean of 182.
MEDIAN_ROWS, ROWS_EXPONENT, FLOOR_ROWS = 2.601, 1 / 0.62424, 0.8
TAIL_SHARE, TAIL_START, MOST_ROWS = 0.01636, 1000.0, 21_690.0
# Maximum fraction of displays that an ad is expected in; small worlds get more ads with fewer rows instead. Chosen.
LARGEST_DISPLAY_SHARE = 0.25
FEWEST_ADS = 60
# Half of the campaigns run on some days only, but their ads with more rows than this run on all days. Chosen.
WINDOW_DAYS, WINDOW_ROWS = 5, 1000.0
TEST_ADS_SEEN = 0.829  # published: fraction of the distinct ads of clicks_test that are in clicks_train
LATE_ROWS_SHARE = 0.25  # maximum fraction of the rows of the last two days for ads first shown then. Chosen.


@dataclass(frozen=True)
class Ads:
    """All ads, in order of ad_id: index 0 is ad 1.

    Attributes:
        document: [n] int64 index of the promoted document.
        campaign, advertiser: [n] int64 numbers, from 0.
        cumulative_by_day: [15, n] float64 cumulative probabilities that a slot shows each ad, by day.
    """

    document: np.ndarray
    campaign: np.ndarray
    advertiser: np.ndarray
    cumulative_by_day: np.ndarray

    def __len__(self) -> int:
        return len(self.document)


def make_ads(draws: Draws, displays: int, rows_by_day: np.ndarray, num_documents: int) -> Ads:
    """Draw all ads.

    Args:
        draws: random draws of the world.
        displays: number of training displays.
        rows_by_day: [2, 15] float64 expected rows of training (row 0) and test (row 1) on each day.
        num_documents: number of documents; some are promoted, by at least one ad each.
    """
    random = draws.generator("ads")
    rows = random.permutation(_expected_rows(displays, rows_by_day[0].sum()))
    # No display shows an ad twice, so an ad in a fraction s of the displays needs slots at a rate of -log(1 - s).
    intensity = -np.log1p(-rows / displays)
    campaign = _groups(random, len(rows), max(FEWEST_CAMPAIGNS, round(CAMPAIGNS_PER_AD * len(rows))))
    alive = _alive(random, campaign) | (rows > min(WINDOW_ROWS, 0.1 * displays))[:, None]
    share_of_training = rows_by_day[0] / rows_by_day[0].sum()
    weights = alive * (intensity / (alive @ share_of_training))[:, None]
    weights /= weights.sum(axis=0)
    late = random.permutation(_late_rows(weights, rows_by_day))
    if len(late):
        weights, campaign = _with_late(random, weights, campaign, late / rows_by_day[1, TRAIN_DAYS:].sum())
    count = len(campaign)
    num_campaigns = int(campaign[-1]) + 1
    advertiser = _groups(random, num_campaigns, max(FEWEST_ADVERTISERS, round(ADVERTISERS_PER_AD * count)))
    promoted = _groups(random, count, min(num_documents, round(DOCUMENTS_PER_AD * count)))
    documents = random.permutation(num_documents)[: promoted[-1] + 1]
    return Ads(documents[promoted], campaign, advertiser[campaign], cumulative(weights.T))


def _expected_rows(displays: int, total: float) -> np.ndarray:
    """Return the expected training rows of each ad, ascending and summing to `total`, [ads] float64."""
    most = min(MOST_ROWS, LARGEST_DISPLAY_SHARE * displays)
    count = max(FEWEST_ADS, round(total / _rows_at_quantiles(100_000, most).mean()))
    rows = _rows_at_quantiles(count, most)
    return rows * total / rows.sum()


def _rows_at_quantiles(count: int, most: float) -> np.ndarray:
    quantiles = (np.arange(count) + 0.5) / count
    body = MEDIAN_ROWS * (quantiles / (1 - quantiles)) ** ROWS_EXPONENT
    into_tail = np.maximum(0, quantiles - (1 - TAIL_SHARE)) / TAIL_SHARE
    tail = TAIL_START * (MOST_ROWS / TAIL_START) ** into_tail
    rows = np.where(into_tail > 0, tail, np.minimum(body, TAIL_START))
    return np.clip(rows, FLOOR_ROWS, most)


def _groups(random: np.random.Generator, count: int, groups: int) -> np.ndarray:
    """Return ascending group numbers of members, [count] int64; groups have at least one member and varying sizes."""
    groups = min(groups, count)
    others = random.choice(groups, size=count - groups, p=random.dirichlet(np.full(groups, 2.0)))
    return np.sort(np.concatenate([np.arange(groups), others]))


def _alive(random: np.random.Generator, campaign: np.ndarray) -> np.ndarray:
    """Return whether the campaign of each ad runs on each day, [ads, 15] bool; every second one runs on all days."""
    campaigns = int(campaign[-1]) + 1
    begin = random.integers(0, TRAIN_DAYS - WINDOW_DAYS + 1, size=campaigns)
    end = begin + WINDOW_DAYS + random.integers(0, ALL_DAYS - WINDOW_DAYS + 1, size=campaigns)
    begin[::2], end[::2] = 0, ALL_DAYS
    days = np.arange(ALL_DAYS)
    return (begin[campaign][:, None] <= days) & (days < end[campaign][:, None])


def _late_rows(weights: np.ndarray, rows_by_day: np.ndarray) -> np.ndarray:
    """Return the expected test rows of each ad first shown on the last two days, [late ads] float64.

    The number of such ads is chosen to match TEST_ADS_SEEN.

    Args:
        weights: [ads, 15] float64 weights of the other ads, summing to 1 on each day.
        rows_by_day: [2, 15] expected rows of training and test.
    """
    in_train, in_test = (-np.expm1(-(weights @ rows)) for rows in rows_by_day)
    seen = (in_train * in_test).sum()
    unseen = seen / TEST_ADS_SEEN - in_test.sum()
    last_days = rows_by_day[1, TRAIN_DAYS:].sum()
    quantiles = (np.arange(1000) + 0.5) / 1000
    scale = 3.0
    while unseen > 0:
        rows = scale * (quantiles / (1 - quantiles)) ** 0.7
        count = round(unseen / -np.expm1(-rows).mean())
        if count * rows.mean() <= LATE_ROWS_SHARE * last_days or scale < 0.5:
            return np.interp((np.arange(count) + 0.5) / max(1, count), quantiles, rows)
        scale *= 0.8
    return np.empty(0)


def _with_late(
    random: np.random.Generator, weights: np.ndarray, campaign: np.ndarray, shares: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Add the ads first shown on the last days.

    Args:
        random: generator of the ads.
        weights: [ads, 15] float64 weights of the other ads.
        campaign: [ads] int64 campaigns of the other ads.
        shares: [late ads] fraction of the slots of the last days, for each new ad.

    Returns:
        Weights and campaigns of all ads, in order of campaign.
    """
    added = np.zeros((len(shares), ALL_DAYS))
    added[:, TRAIN_DAYS:] = shares[:, None]
    weights = weights.copy()
    weights[:, TRAIN_DAYS:] *= 1 - shares.sum()
    campaigns = np.concatenate([campaign, random.choice(campaign, size=len(shares))])
    order = np.lexsort([random.random(len(campaigns)), campaigns])
    return np.concatenate([weights, added])[order], campaigns[order]
