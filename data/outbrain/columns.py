"""Names of the columns of joined rows and of their features, in the order of the published table."""

DISPLAY, AD, CLICKED = "display_id", "ad_id", "clicked"
TIMESTAMP, DOCUMENT, DOCUMENT_PROMO = "timestamp", "document_id", "document_id_promo"
GEO = "geo_location"
# Derived columns of joined rows: the fold, and the number of ads in the row's display.
FOLD, DISPLAY_ADS = "fold", "display_ads"
PUBLISH_TIMES = ("publish_time", "publish_time_promo")

# Published number of hash buckets of each feature.
ONEHOT_SIZES = {
    "ad_id": 250_000,
    "document_id": 300_000,
    "platform": 4,
    "document_id_promo": 100_000,
    "campaign_id": 5_000,
    "advertiser_id": 2_500,
    "source_id": 4_000,
    "geo_location": 2_500,
    "geo_location_country": 300,
    "geo_location_state": 2_000,
    "publisher_id": 1_000,
    "source_id_promo": 4_000,
    "publisher_id_promo": 1_000,
}
TAG_SIZES = {"topic_id_list": 350, "entity_id_list": 10_000, "category_id_list": 100}
TAG_ASPECTS = {"topic_id_list": "topics", "entity_id_list": "entities", "category_id_list": "categories"}
TAGS_PER_ROW = 3
NUMERICAL = (
    "document_id_document_id_promo_sim_categories",
    "document_id_document_id_promo_sim_topics",
    "document_id_document_id_promo_sim_entities",
    "document_id_promo_ctr",
    "publisher_id_promo_ctr",
    "source_id_promo_ctr",
    "document_id_promo_count",
    "publish_time_days_since_published",
    "ad_id_ctr",
    "advertiser_id_ctr",
    "campaign_id_ctr",
    "ad_id_count",
    "publish_time_promo_days_since_published",
)
SIMILARITIES = NUMERICAL[:3]
DAYS = tuple(f"{name}_days_since_published" for name in PUBLISH_TIMES)
# Columns with a click rate, and the number of views below which the published rate is 0.
RATE_LEAST_VIEWS = {
    "ad_id": 5,
    "source_id_promo": 10,
    "document_id_promo": 5,
    "publisher_id_promo": 10,
    "advertiser_id": 10,
    "campaign_id": 10,
}
COUNT_COLUMNS = ("ad_id", "document_id_promo")
