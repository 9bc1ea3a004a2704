import numpy as np
import pytest

from tests.trainer.small_models import make_model
from trainer.embeddings.costs import Traffic, bytes_rows, bytes_shards, bytes_whole, cheaper_exchange, expected_distinct
from trainer.embeddings.exchange import plan_exchange


def test_expected_distinct_rows_of_uniform_draws():
    rng = np.random.default_rng(0)
    for rows, draws in ((10, 5), (1000, 300), (50, 2000)):
        seen = np.mean([len(np.unique(rng.integers(0, rows, draws))) for _ in range(300)])
        assert expected_distinct(rows, draws) == pytest.approx(seen, rel=0.06)


def test_bytes_of_ring_collectives():
    # Four workers: in the all-reduce of 1000 x 8 values each sends 3/4 of them twice.
    assert bytes_whole(1000, 8, 4) == 2 * 0.75 * 1000 * 8 * 4
    assert bytes_whole(1000, 8, 1) == bytes_rows(1000, 8, 10**6, 1) == 0
    # All rows of the table on every worker, with their int64 numbers, passed on by three of four.
    assert bytes_rows(1000, 8, 10**6, 4) == pytest.approx(3 * 1000 * (8 * 4 + 8))
    # With shards: 3/4 of the rows lie elsewhere. Each is fetched and its gradient delivered, with an int32 number.
    assert bytes_shards(1000, 8, 10**6, 4) == pytest.approx(2 * 750 * (8 * 4 + 4))
    assert bytes_shards(1000, 8, 10**6, 1) == 0


@pytest.mark.parametrize(
    ("rows", "lookups", "workers", "expected"),
    [
        (10, 10_000, 1, "rows"),
        (10, 10_000, 2, "whole"),
        (10**6, 10_000, 1, "rows"),
        (10**6, 10_000, 8, "rows"),
        (1_000, 10_000, 8, "whole"),
        # Sixty-four workers gather almost as many rows as the table has; reducing it is cheaper.
        (200_000, 400_000, 2, "rows"),
        (200_000, 400_000, 64, "whole"),
    ],
)
def test_cheaper_exchange(rows, lookups, workers, expected):
    table = Traffic(rows, lookups)
    assert cheaper_exchange([table], 64, workers=workers) == expected
    assert cheaper_exchange([table, table], 64, workers=workers) == expected


def test_the_larger_table_of_a_group_decides():
    assert cheaper_exchange([Traffic(10, 10_000), Traffic(10**6, 10_000)], 64, workers=2) == "rows"


def test_plan_has_one_entry_per_variable():
    embeddings = make_model().embeddings  # day has width 4, tags 6, and user 8
    names = [f"{part}.{width}.small" for part in ("deep", "wide") for width in (4, 6, 8)]
    for choice in ("whole", "rows"):
        assert list(plan_exchange(embeddings, 16, 2, choice).values()) == [choice] * 6
    auto = plan_exchange(embeddings, 16, 2, "auto")
    assert [path.rpartition("/")[2] for path in auto] == names
    assert list(auto.values())[:3] == ["whole", "rows", "rows"]
