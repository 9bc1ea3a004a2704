"""Ads of the synthetic Outbrain: document, campaign, advertiser, and how often each is shown on which day."""

from dataclasses import dataclass

import numpy as np

from data.outbrain.synthetic.random import Draws, cumulative

TRAIN_DAYS, ALL_DAYS = 13, 15
# Published: 185,709 promoted documents, 35,000 campaigns and 4,385 advertisers for 559,583 ads.
DOCUMENTS_PER_AD, CAMPAIGNS_PER_AD, ADVERTISERS_PER_AD = 185_709 / 559_583, 35_000 / 559_583, 4_385 / 559_583
FEWEST_CAMPAIGNS, FEWEST_ADVERTISERS = 24, 12  # of small worlds
# Training rows that an ad expects: log-logistic with a floor, and a log-uniform tail from 1,000. Solved such that of
# the ads with any row 22.7 % have one, 61.7 % fewer than 10, 97.5 % fewer than 1,000, and 182 on average.
MEDIAN_ROWS, ROWS_EXPONENT, FLOOR_ROWS = 2.601, 1 / 0.62424, 0.8
TAIL_SHARE, TAIL_START, MOST_ROWS = 0.01636, 1000.0, 21_690.0
# No ad is expected in more of the displays than this; small worlds get more ads with fewer rows instead. Chosen.
LARGEST_DISPLAY_SHARE = 0.25
FEWEST_ADS = 60
# Half of the campaigns run for some of the days only; their ads above this many rows run all along. Chosen.
WINDOW_DAYS, WINDOW_ROWS = 5, 1000.0
TEST_ADS_SEEN = 0.829  # published: share of the distinct ads of clicks_test that clicks_train has
LATE_ROWS_SHARE = 0.25  # most of the rows of the last two days that ads first shown then may have. Chosen.


@dataclass(frozen=True)
class Ads:
    """All ads, by ad_id: index 0 is ad 1.

    Attributes:
        document: index of the promoted document, [n] int64.
        campaign, advertiser: 0-based numbers, [n] int64.
        cumulative_by_day: cumulative probabilities of a slot on each day, [15, n] float64.
    """

    document: np.ndarray
    campaign: np.ndarray
    advertiser: np.ndarray
    cumulative_by_day: np.ndarray

    def __len__(self) -> int:
        return len(self.document)


def make_ads(draws: Draws, displays: int, rows_by_day: np.ndarray, num_documents: int) -> Ads:
    """Draws all ads.

    Args:
        draws: of the world.
        displays: number of training displays.
        rows_by_day: expected rows of training (row 0) and test (row 1) on each day, [2, 15] float64.
        num_documents: documents there are; each promoted one has at least one ad.
    """
    random = draws.generator("ads")
    rows = random.permutation(_expected_rows(displays, rows_by_day[0].sum()))
    # An ad that is in a share s of the displays is in a slot with rate -log(1 - s), since no display has it twice.
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
    """Training rows each ad expects, rising, summing to `total`, [number of ads] float64."""
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
    """Rising group numbers of `count` members; every group has one at least, sizes vary. [count] int64."""
    groups = min(groups, count)
    others = random.choice(groups, size=count - groups, p=random.dirichlet(np.full(groups, 2.0)))
    return np.sort(np.concatenate([np.arange(groups), others]))


def _alive(random: np.random.Generator, campaign: np.ndarray) -> np.ndarray:
    """Whether an ad's campaign runs on a day, [ads, 15] bool; every second campaign runs on all."""
    campaigns = int(campaign[-1]) + 1
    begin = random.integers(0, TRAIN_DAYS - WINDOW_DAYS + 1, size=campaigns)
    end = begin + WINDOW_DAYS + random.integers(0, ALL_DAYS - WINDOW_DAYS + 1, size=campaigns)
    begin[::2], end[::2] = 0, ALL_DAYS
    days = np.arange(ALL_DAYS)
    return (begin[campaign][:, None] <= days) & (days < end[campaign][:, None])


def _late_rows(weights: np.ndarray, rows_by_day: np.ndarray) -> np.ndarray:
    """Test rows that each ad first shown on the last two days expects: as many ads as the published share asks.

    Args:
        weights: of the other ads, [ads, 15] float64, summing to 1 on each day.
        rows_by_day: expected rows of training and test, [2, 15].
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
    """Weights [ads, 15] and campaigns [ads] with ads first shown on the last days, in order of campaign.

    Args:
        random: of the ads.
        weights, campaign: of the other ads.
        shares: of the slots of these days, one per new ad.
    """
    added = np.zeros((len(shares), ALL_DAYS))
    added[:, TRAIN_DAYS:] = shares[:, None]
    weights = weights.copy()
    weights[:, TRAIN_DAYS:] *= 1 - shares.sum()
    campaigns = np.concatenate([campaign, random.choice(campaign, size=len(shares))])
    order = np.lexsort([random.random(len(campaigns)), campaigns])
    return np.concatenate([weights, added])[order], campaigns[order]
