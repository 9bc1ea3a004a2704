"""A small Outbrain of our own with every kind of gap, as CSV files in the publisher's form."""

import gzip
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

HEADERS = {
    "clicks_train": "display_id,ad_id,clicked",
    "clicks_test": "display_id,ad_id",
    "events": "display_id,uuid,document_id,timestamp,platform,geo_location",
    "promoted_content": "ad_id,document_id,campaign_id,advertiser_id",
    "documents_meta": "document_id,source_id,publisher_id,publish_time",
    "documents_categories": "document_id,category_id,confidence_level",
    "documents_topics": "document_id,topic_id,confidence_level",
    "documents_entities": "document_id,entity_id,confidence_level",
}
ORIGIN_MS, DAY_MS = 1_465_876_799_998, 86_400_000


@dataclass
class SampleTables:
    """Raw tables as lists of rows; None is a missing value."""

    tables: dict[str, list[tuple]] = field(default_factory=dict)

    def rows(self, name: str) -> list[dict]:
        return [dict(zip(HEADERS[name].split(","), row, strict=True)) for row in self.tables[name]]


def make_sample(displays: int = 150, seed: int = 0) -> SampleTables:
    """Ads that promoted_content lacks, documents that documents_meta lacks, or without tags, or with a tag twice."""
    rng = np.random.default_rng(seed)
    documents = sorted(rng.choice(5000, 60, replace=False).tolist())
    ads = sorted(rng.choice(9000, 35, replace=False).tolist())
    popularity = rng.dirichlet(np.full(len(ads), 0.3)) * 0.9 + 0.1 / len(ads)
    meta = [_about(rng, document) for document in documents if rng.random() > 0.08]
    promoted = [
        (ad, int(rng.choice(documents)), int(rng.integers(1, 9)), int(rng.integers(1, 5)))
        for ad in ads
        if rng.random() > 0.06
    ]
    clicks, events = [], []
    for display in rng.permutation(np.arange(1, displays + 1) * 7).tolist():
        shown = rng.choice(ads, rng.integers(2, 7), replace=False, p=popularity).tolist()
        clicked = int(rng.integers(len(shown)))
        clicks += [(display, ad, int(number == clicked)) for number, ad in enumerate(shown)]
        events.append(_event(rng, display, documents))
    tests = [(display, int(ad)) for display in (90_001, 90_002) for ad in rng.choice(ads, 3, replace=False)]
    events += [_event(rng, display, documents) for display in (90_001, 90_002)]
    rng.shuffle(events)
    return SampleTables(
        {
            "clicks_train": clicks,
            "clicks_test": tests,
            "events": [tuple(event) for event in events],
            "promoted_content": promoted,
            "documents_meta": meta,
            "documents_categories": _tags(rng, documents, [int(tag) for tag in rng.choice(2100, 12, replace=False)]),
            "documents_topics": _tags(rng, documents, list(range(20))),
            "documents_entities": _tags(rng, documents, [f"{number:032x}" for number in rng.integers(0, 2**60, 30)]),
        }
    )


def _event(rng: np.random.Generator, display: int, documents: list[int]) -> list:
    geo = str(rng.choice(["US>CA>803", "US>CA>807", "US>NY", "US", "GB>H9", "--", "", "GB"])) or None
    platform = [1, 2, 3, None][rng.choice(4, p=[0.4, 0.4, 0.15, 0.05])]
    time = int(rng.integers(61, 13 * DAY_MS))
    return [display, f"{rng.integers(2**40):014x}", int(rng.choice(documents)), time, platform, geo]


def _about(rng: np.random.Generator, document: int) -> tuple:
    """Publish times years ago, of that day, in the future, and missing."""
    source = None if rng.random() < 0.1 else int(rng.integers(1, 12))
    publisher = None if rng.random() < 0.2 else int(rng.integers(1, 8))
    days = int(rng.choice([0, 1, 10, 400, 3649, 3651, 9000, -3]))
    moment = np.datetime64(ORIGIN_MS - days * DAY_MS + int(rng.integers(DAY_MS)), "ms").astype("datetime64[s]")
    return (document, source, publisher, None if rng.random() < 0.3 else str(moment).replace("T", " "))


def _tags(rng: np.random.Generator, documents: list[int], tags: list) -> list[tuple]:
    rows = []
    for document in documents:
        chosen = rng.choice(len(tags), rng.integers(0, 6), replace=True)
        confidences = rng.uniform(0.01, 1, len(chosen)).round(3).tolist()
        rows += [(document, tags[tag], confidence) for tag, confidence in zip(chosen, confidences, strict=True)]
    return rows


def write_sample(folder: Path, sample: SampleTables, *, ending: str = ".csv", null: str = r"\N") -> Path:
    """The tables as files: plain, `.csv.gz` or `.csv.zip`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in sample.tables.items():
        lines = [",".join(null if cell is None else str(cell) for cell in row) for row in rows]
        data = "\n".join([HEADERS[name], *lines, ""]).encode()
        path = folder / (name + ending)
        if ending == ".csv.zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(f"{name}.csv", data)
        else:
            path.write_bytes(gzip.compress(data) if ending == ".csv.gz" else data)
    return folder
