"""The click model of the synthetic Outbrain: the utility of an ad in a display.

The clicked ad of a display is drawn with probabilities softmax(utilities). A utility is the sum of

    ad effects       of the advertiser, the campaign, the promoted document's publisher and dominant category, and a
                     small one of the ad itself;
    user taste       dot product of a vector of the user's place, platform and time of day, with a small personal part,
                     and a vector of the promoted document's dominant category and topics;
    document match   cosine of the topic confidences of both documents, and a low-rank product of the landing document's
                     publisher and the advertiser's group.

The scales below are chosen. A perfect ranking has a MAP@12 of about 0.72, one by the click rate of ads about 0.58.
"""

from dataclasses import dataclass

import numpy as np

from data.outbrain.synthetic.ads import Ads
from data.outbrain.synthetic.documents import NUM_CATEGORIES, NUM_TOPICS, Documents
from data.outbrain.synthetic.random import Draws
from data.outbrain.synthetic.users import PLATFORM_SHARES, Places

# Standard deviations over ads, weighted by how often each is shown.
ADVERTISER_SD, CAMPAIGN_SD, PUBLISHER_SD, CATEGORY_SD, AD_SD = 0.30, 0.22, 0.22, 0.30, 0.10
TASTE_SD = 1.05
PUBLISHER_BY_ADVERTISER_SD = 0.4
COSINE_WEIGHT = 3.0  # gives a standard deviation of about 0.4
TASTE_DIMS, PUBLISHER_DIMS, ADVERTISER_GROUPS = 6, 4, 16
# Fractions of the variance of tastes, and of the vectors of promoted documents.
PLACE_PART, PLATFORM_PART, HOURS_PART, PERSONAL_PART = 0.45, 0.25, 0.2, 0.1
CATEGORY_PART, TOPIC_PART = 0.7, 0.3
HOUR_BANDS = 4  # of six hours each


@dataclass(frozen=True)
class Tastes:
    """Taste vectors of users, as sums of several parts.

    Attributes:
        draws: random draws of the personal part.
        place: [regions, 6] part of each region.
        platform: [3, 6] part of each platform.
        hours: [4, 6] part of each six-hour band of the day.
    """

    draws: Draws
    place: np.ndarray
    platform: np.ndarray
    hours: np.ndarray

    def of(self, users: np.ndarray, regions: np.ndarray, platforms: np.ndarray, bands: np.ndarray) -> np.ndarray:
        """Return the taste vectors, [n, 6] float64, of users in regions, on platforms 1 to 3, in bands of hours."""
        personal = self.draws.normal("personal taste", users, TASTE_DIMS) * np.sqrt(PERSONAL_PART)
        return self.place[regions] + self.platform[platforms - 1] + self.hours[bands] + personal


@dataclass(frozen=True)
class Signal:
    """Parameters of the utilities.

    Attributes:
        tastes: taste vectors of users.
        traits: [documents, 6] float64 vectors of documents, which are multiplied with tastes.
        ad_effect: [ads] float64 sum of the ad effects.
        landing_publisher: [publishers + 1, 4] vectors of publishers; the last one is zero, for documents without one.
        advertiser_group: [ads, 4] vector of each ad's advertiser group.
        promoted: [ads] int64 row of each ad's document in `directions`.
        directions: [promoted documents, 300] float32 L2-normalized topic confidences.
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
        """Return the utilities of rows, [rows] float64.

        Args:
            documents, ads: documents and ads of the world.
            taste: [displays, 6] taste vectors.
            landing: [displays] indices of the documents that show the displays.
            display: [rows] display of each row, an index into `taste` and `landing`.
            ad: [rows] index of each row's ad.
        """
        by_taste = np.einsum("rd,rd->r", taste[display], self.traits[ads.document[ad]])
        publishers = self.landing_publisher[documents.publisher[landing]]
        by_publisher = np.einsum("rd,rd->r", publishers[display], self.advertiser_group[ad])
        cosine = self._cosine(documents, landing, display, ad)
        return self.ad_effect[ad] + by_taste + by_publisher + COSINE_WEIGHT * cosine

    def _cosine(self, documents: Documents, landing: np.ndarray, display: np.ndarray, ad: np.ndarray) -> np.ndarray:
        """Return the cosine of the documents' topic confidences, [rows] float64; 0 if one has no topics."""
        topics, confidence = documents.topics[landing], documents.topic_confidence[landing]
        norms = np.sqrt((confidence**2).sum(axis=1, keepdims=True))
        confidence = confidence / np.where(norms > 0, norms, 1)
        cosine = np.zeros(len(ad))
        promoted = self.promoted[ad]
        for slot in range(topics.shape[1]):  # an absent topic (-1) has confidence 0
            cosine += confidence[display, slot] * self.directions[promoted, topics[display, slot]]
        return cosine


def make_signal(draws: Draws, documents: Documents, ads: Ads, places: Places) -> Signal:
    """Draw all effects and vectors, scaled to the variances above, weighted by how often ads are shown."""
    random = draws.generator("signal")
    shown = np.diff(ads.cumulative_by_day, axis=1, prepend=0).mean(axis=0)
    traits = _traits(random, documents)
    # The mean squared norm over shown ads is fixed, so that worlds of all seeds are equally hard.
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
        effects[-1] = 0  # for number -1, no value
        by_ad = effects[numbers] - shown @ effects[numbers]
        total += deviation * by_ad / np.sqrt(shown @ by_ad**2)
    # With few advertisers, the levels are correlated by chance; rescale the sum to the variance of independent levels.
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
    # Centered with the fractions of users as weights, so that tastes favor no document on average.
    region_shares = np.bincount(places.region, places.shares, places.num_regions)
    platform_shares, hour_shares = np.asarray(PLATFORM_SHARES), np.full(HOUR_BANDS, 1 / HOUR_BANDS)
    parts = [(region_shares, PLACE_PART), (platform_shares, PLATFORM_PART), (hour_shares, HOURS_PART)]
    place, platform, hours = (
        np.sqrt(part) * _centred(random.standard_normal((len(shares), TASTE_DIMS)), shares) for shares, part in parts
    )
    return Tastes(draws, place, platform, hours)


def _centred(vectors: np.ndarray, shares: np.ndarray | None = None) -> np.ndarray:
    """Standardize [n, dims] vectors to mean 0 and variance 1 in each dimension, weighted by `shares`."""
    shares = np.full(len(vectors), 1 / len(vectors)) if shares is None else shares
    vectors = vectors - shares @ vectors
    return vectors / np.sqrt(shares @ vectors**2)
