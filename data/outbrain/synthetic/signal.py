"""What makes a click likely in the synthetic Outbrain: the utility of an ad in a display.

A display's click goes to one of its ads with probability softmax(utilities). A utility is a sum of

    the ad's side      effects of advertiser, campaign, the promoted document's publisher and dominant category, and
                       a small one of the ad itself;
    the user's taste   a vector of place, platform and hours of the day, with a small personal part, times the vector
                       of the promoted document's dominant category and topics;
    the two documents  the cosine of their topic confidences, and a product of low rank of the landing document's
                       publisher and the advertiser's group.

The scales below are chosen: a perfect ranking reaches a MAP@12 of about 0.72, one by click rate of ads about 0.58.
"""

from dataclasses import dataclass

import numpy as np

from data.outbrain.synthetic.ads import Ads
from data.outbrain.synthetic.documents import NUM_CATEGORIES, NUM_TOPICS, Documents
from data.outbrain.synthetic.random import Draws
from data.outbrain.synthetic.users import PLATFORM_SHARES, Places

# Standard deviations over the rows of clicks, each ad as often as it is shown.
ADVERTISER_SD, CAMPAIGN_SD, PUBLISHER_SD, CATEGORY_SD, AD_SD = 0.30, 0.22, 0.22, 0.30, 0.10
TASTE_SD = 1.05
PUBLISHER_BY_ADVERTISER_SD = 0.4
COSINE_WEIGHT = 3.0  # a standard deviation of about 0.4
TASTE_DIMS, PUBLISHER_DIMS, ADVERTISER_GROUPS = 6, 4, 16
# Shares of the taste's variance, and of the promoted document's.
PLACE_PART, PLATFORM_PART, HOURS_PART, PERSONAL_PART = 0.45, 0.25, 0.2, 0.1
CATEGORY_PART, TOPIC_PART = 0.7, 0.3
HOUR_BANDS = 4  # of six hours each


@dataclass(frozen=True)
class Tastes:
    """Vectors of users.

    Attributes:
        draws: of the personal part.
        place: by region, [regions, 6].
        platform: [3, 6].
        hours: by six hours of the day, [4, 6].
    """

    draws: Draws
    place: np.ndarray
    platform: np.ndarray
    hours: np.ndarray

    def of(self, users: np.ndarray, regions: np.ndarray, platforms: np.ndarray, bands: np.ndarray) -> np.ndarray:
        """Taste vectors, [n, 6] float64, of users at places (regions), on platforms 1 to 3, in bands of hours."""
        personal = self.draws.normal("personal taste", users, TASTE_DIMS) * np.sqrt(PERSONAL_PART)
        return self.place[regions] + self.platform[platforms - 1] + self.hours[bands] + personal


@dataclass(frozen=True)
class Signal:
    """All that a utility is computed from.

    Attributes:
        tastes: of users.
        traits: of documents, what taste is multiplied with, [documents, 6] float64.
        ad_effect: the ad's side, [ads] float64.
        landing_publisher: [publishers + 1, 4], the last, zero, for documents without publisher.
        advertiser_group: by ad, [ads, 4].
        promoted: number of each ad's document in `directions`, [ads] int64.
        directions: normed topic confidences of promoted documents, [promoted documents, 300] float32.
    """

    tastes: Tastes
    traits: np.ndarray
    ad_effect: np.ndarray
    landing_publisher: np.ndarray
    advertiser_group: np.ndarray
    promoted: np.ndarray
    directions: np.ndarray

    def utilities(
        self,
        documents: Documents,
        ads: Ads,
        taste: np.ndarray,
        landing: np.ndarray,
        display: np.ndarray,
        ad: np.ndarray,
    ) -> np.ndarray:
        """Utilities of rows, [rows] float64.

        Args:
            documents, ads: of the world.
            taste: of each display, [displays, 6].
            landing: index of each display's document, [displays].
            display: each row's display, an index into `taste` and `landing`, [rows].
            ad: each row's ad, an index, [rows].
        """
        by_taste = np.einsum("rd,rd->r", taste[display], self.traits[ads.document[ad]])
        publishers = self.landing_publisher[documents.publisher[landing]]
        by_publisher = np.einsum("rd,rd->r", publishers[display], self.advertiser_group[ad])
        cosine = self._cosine(documents, landing, display, ad)
        return self.ad_effect[ad] + by_taste + by_publisher + COSINE_WEIGHT * cosine

    def _cosine(self, documents: Documents, landing: np.ndarray, display: np.ndarray, ad: np.ndarray) -> np.ndarray:
        """Cosine of topic confidences of landing and promoted document, 0 where one has no topics, [rows] float64."""
        topics, confidence = documents.topics[landing], documents.topic_confidence[landing]
        norms = np.sqrt((confidence**2).sum(axis=1, keepdims=True))
        confidence = confidence / np.where(norms > 0, norms, 1)
        cosine = np.zeros(len(ad))
        promoted = self.promoted[ad]
        for slot in range(topics.shape[1]):  # an absent topic has confidence 0, whatever -1 points at
            cosine += confidence[display, slot] * self.directions[promoted, topics[display, slot]]
        return cosine


def make_signal(draws: Draws, documents: Documents, ads: Ads, places: Places) -> Signal:
    """Draws all effects and vectors, scaled over the rows that ads expect."""
    random = draws.generator("signal")
    shown = np.diff(ads.cumulative_by_day, axis=1, prepend=0).mean(axis=0)
    traits = _traits(random, documents)
    # A vector's length is fixed on average over what is shown, such that worlds of every seed are equally hard.
    traits *= TASTE_SD / np.sqrt(shown @ (traits[ads.document] ** 2).sum(axis=1))
    groups = random.standard_normal((ADVERTISER_GROUPS, PUBLISHER_DIMS))
    groups = groups[random.integers(ADVERTISER_GROUPS, size=int(ads.advertiser.max()) + 1)][ads.advertiser]
    groups *= PUBLISHER_BY_ADVERTISER_SD / np.sqrt(shown @ (groups**2).sum(axis=1))
    landing = _centred(random.standard_normal((documents.num_publishers, PUBLISHER_DIMS)))
    promoted, numbers = np.unique(ads.document, return_inverse=True)
    return Signal(
        tastes=_tastes(draws, random, places),
        traits=traits,
        ad_effect=_ad_effect(random, documents, ads, shown),
        landing_publisher=np.concatenate([landing, np.zeros((1, PUBLISHER_DIMS))]),
        advertiser_group=groups,
        promoted=numbers,
        directions=documents.topic_directions(promoted),
    )


def _ad_effect(random: np.random.Generator, documents: Documents, ads: Ads, shown: np.ndarray) -> np.ndarray:
    publisher, category = documents.publisher[ads.document], documents.categories[ads.document, 0]
    levels = [
        (ads.advertiser, ADVERTISER_SD),
        (ads.campaign, CAMPAIGN_SD),
        (publisher, PUBLISHER_SD),
        (category, CATEGORY_SD),
        (np.arange(len(ads)), AD_SD),
    ]
    total = np.zeros(len(ads))
    for numbers, deviation in levels:
        effects = random.standard_normal(int(numbers.max()) + 2)
        effects[-1] = 0  # of those that have none, number -1
        by_ad = effects[numbers] - shown @ effects[numbers]
        total += deviation * by_ad / np.sqrt(shown @ by_ad**2)
    # With few advertisers the levels are correlated by chance; the sum has the deviation that they have together.
    return total * np.sqrt(sum(deviation**2 for _, deviation in levels) / (shown @ total**2))


def _traits(random: np.random.Generator, documents: Documents) -> np.ndarray:
    by_category = np.concatenate([random.standard_normal((NUM_CATEGORIES, TASTE_DIMS)), np.zeros((1, TASTE_DIMS))])
    by_topic = random.standard_normal((NUM_TOPICS, TASTE_DIMS))
    traits = np.sqrt(CATEGORY_PART) * by_category[documents.categories[:, 0]]
    norms = np.sqrt((documents.topic_confidence**2).sum(axis=1))
    weights = np.sqrt(TOPIC_PART) * documents.topic_confidence / np.where(norms > 0, norms, 1)[:, None]
    for slot in range(weights.shape[1]):
        traits += weights[:, slot, None] * by_topic[documents.topics[:, slot]]
    return traits


def _tastes(draws: Draws, random: np.random.Generator, places: Places) -> Tastes:
    # Centred by the shares of users, so that taste favours no document on average.
    region_shares = np.bincount(places.region, places.shares, places.num_regions)
    platform_shares, hour_shares = np.asarray(PLATFORM_SHARES), np.full(HOUR_BANDS, 1 / HOUR_BANDS)
    parts = [(region_shares, PLACE_PART), (platform_shares, PLATFORM_PART), (hour_shares, HOURS_PART)]
    place, platform, hours = (
        np.sqrt(part) * _centred(random.standard_normal((len(shares), TASTE_DIMS)), shares) for shares, part in parts
    )
    return Tastes(draws, place, platform, hours)


def _centred(vectors: np.ndarray, shares: np.ndarray | None = None) -> np.ndarray:
    """Vectors with mean 0 and variance 1 in each dimension, [n, dims]."""
    shares = np.full(len(vectors), 1 / len(vectors)) if shares is None else shares
    vectors = vectors - shares @ vectors
    return vectors / np.sqrt(shares @ vectors**2)
