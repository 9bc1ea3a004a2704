import numpy as np
import pytest

from tests.trainer.small_models import make_model
from trainer.embeddings.exchange import bytes_rows, bytes_whole, cheaper_exchange, expected_distinct, plan_exchange


def test_expected_distinct_rows_of_uniform_draws():
    rng = np.random.default_rng(0)
    for rows, draws in ((10, 5), (1000, 300), (50, 2000)):
        seen = np.mean([len(np.unique(rng.integers(0, rows, draws))) for _ in range(300)])
        assert expected_distinct(rows, draws) == pytest.approx(seen, rel=0.06)


def test_bytes_of_ring_collectives():
    # Four workers: in the all-reduce of 1000 x 8 values each sends 3/4 of them twice.
    assert bytes_whole(1000, 8, 4) == 2 * 0.75 * 1000 * 8 * 4
    assert bytes_whole(1000, 8, 1) == bytes_rows(1000, 8, 10**6, 1) == 0
    # All rows of the table on every worker, with their numbers, passed on by three of four.
    assert bytes_rows(1000, 8, 10**6, 4) == pytest.approx(3 * 1000 * 9 * 4)


@pytest.mark.parametrize(
    ("rows", "lookups", "workers", "expected"),
    [
        (10, 10_000, 1, "whole"),
        (10**6, 10_000, 1, "rows"),
        (10**6, 10_000, 8, "rows"),
        (1_000, 10_000, 8, "whole"),
        # Sixty-four workers gather almost as many rows as the table has; reducing it is cheaper.
        (200_000, 400_000, 2, "rows"),
        (200_000, 400_000, 64, "whole"),
    ],
)
def test_cheaper_exchange(rows, lookups, workers, expected):
    assert cheaper_exchange(rows, 64, lookups=lookups, workers=workers) == expected


def test_plan_has_one_entry_per_table():
    embeddings = make_model().embeddings
    names = ["deep.user", "deep.day", "deep.tags", "wide"]
    for choice in ("whole", "rows"):
        assert list(plan_exchange(embeddings, 16, 2, choice).values()) == [choice] * 4
    auto = plan_exchange(embeddings, 16, 2, "auto")
    assert [path.rpartition("/")[2] for path in auto] == names
    assert list(auto.values())[:2] == ["rows", "whole"]
