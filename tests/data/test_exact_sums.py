from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.encoding.exact_sums import LARGEST, UNIT, GroupSums, Moments, exact_sum
from data.encoding.order_statistics import SortedRuns

NUMBERS = st.floats(-1e140, 1e140)
# Their squares have no bits below the unit.
LARGE_NUMBERS = NUMBERS.filter(lambda number: number == 0 or abs(number) > 1e-140)
COLUMNS = st.lists(st.one_of(NUMBERS, st.sampled_from([0.1, -0.1, 1e100, 1.0, 2.0**-1060, -0.0])), max_size=40)
ANY_COLUMNS = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=40)


def exact(numbers: list[float]) -> Fraction:
    return sum(map(Fraction, numbers), Fraction(0))


def cut(numbers: list, places: list[int]) -> list[list]:
    """Cut a list at the given places."""
    bounds = [0, *sorted(place % (len(numbers) + 1) for place in places), len(numbers)]
    return [numbers[first:last] for first, last in zip(bounds[:-1], bounds[1:], strict=True)]


@settings(deadline=None)
@given(COLUMNS)
def test_a_sum_is_exact(numbers):
    # Each number is rounded to a multiple of the unit.
    assert (
        abs(exact_sum(np.array(numbers)) * Fraction(2) ** UNIT - exact(numbers)) <= len(numbers) * Fraction(2) ** UNIT
    )


def test_a_sum_of_many_blocks_is_exact():
    numbers = np.random.default_rng(0).lognormal(0, 8, 200_000)
    assert exact_sum(numbers) * Fraction(2) ** UNIT == exact(numbers.tolist())


@settings(deadline=None)
@given(st.lists(LARGE_NUMBERS, min_size=2, max_size=40), st.lists(st.integers(0, 100), max_size=4), st.randoms())
def test_moments_do_not_depend_on_the_order(numbers, places, random):
    whole = Moments.of(np.array(numbers))
    parts = [Moments.of(np.array(part)) for part in cut(random.sample(numbers, len(numbers)), places)]
    random.shuffle(parts)
    assert sum(parts, Moments()) == whole
    mean = exact(numbers) / len(numbers)
    variance = sum((Fraction(number) - mean) ** 2 for number in numbers) / (len(numbers) - 1)
    assert whole.mean == float(mean)
    assert whole.std == pytest.approx(float(variance) ** 0.5, rel=1e-15)


@settings(deadline=None)
@given(NUMBERS, st.integers(0, 9))
def test_a_repeated_number(number, count):
    assert Moments.repeated(number, count) == Moments.of(np.full(count, number))
    assert Moments.repeated(number, count).std == 0
    assert not count or Moments.repeated(number, count).mean == pytest.approx(number, rel=0, abs=2.0**UNIT)


def test_small_spread_around_a_large_mean():
    numbers = (1e9 + 0.1 * np.arange(10)).tolist()
    mean = exact(numbers) / len(numbers)
    variance = sum((Fraction(number) - mean) ** 2 for number in numbers) / (len(numbers) - 1)
    assert Moments.of(np.array(numbers)).std == pytest.approx(float(variance) ** 0.5, rel=1e-15)


def test_moments_near_the_largest_number():
    assert Moments.of(np.array([LARGEST, -LARGEST])).std == pytest.approx(LARGEST * 2**0.5)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), NUMBERS), min_size=1, max_size=40), st.lists(st.integers(0, 100)))
def test_sums_by_group_do_not_depend_on_the_order(rows, places):
    def sums_of(rows):
        return GroupSums.of(np.array([group for group, _ in rows], np.int64), np.array([x for _, x in rows]), 4)

    whole = sums_of(rows).sums(4)
    parts = [sums_of(part) for part in reversed(cut(rows, places))]
    assert sum(parts, GroupSums({})).sums(4).tolist() == whole.tolist()
    wanted = [exact([number for group, number in rows if group == wanted]) for wanted in range(4)]
    scale = max(abs(number) for _, number in rows)
    atol = scale * 1e-15 + len(rows) * 2.0**UNIT
    np.testing.assert_allclose(whole, [float(total) for total in wanted], rtol=1e-15, atol=atol)


def test_a_small_sum_survives_large_terms():
    groups, numbers = np.zeros(4, np.int64), np.array([2.0**60, 1.0, -(2.0**60), 2.0**-40])
    assert GroupSums.of(groups, numbers, 1).sums(1).tolist() == [1 + 2.0**-40]


def test_groups_are_renumbered():
    sums = GroupSums.of(np.array([0, 1, 1]), np.array([0.5, 1.0, 2.0]), 2).moved(np.array([2, 0]), 3)
    assert sums.sums(3).tolist() == [3.0, 0.0, 0.5]


@settings(deadline=None)
@given(ANY_COLUMNS, st.lists(st.integers(0, 100), max_size=4), st.sampled_from([0, 64, 10**6]))
def test_order_statistics_are_exact(tmp_path_factory, numbers, places, budget):
    parts = [SortedRuns.of(np.array(part)) for part in cut(numbers, places)]
    runs = SortedRuns.merged(parts, budget, tmp_path_factory.mktemp("runs"))
    assert runs.at(range(len(numbers))).tolist() == sorted(numbers)
    lower, upper = sorted(numbers)[(len(numbers) - 1) // 2], sorted(numbers)[len(numbers) // 2]
    assert runs.median() == (lower if lower == upper else lower / 2 + upper / 2)
    assert bool(runs.files) == (budget < 8 * len(numbers))


def test_runs_on_disk_are_merged_again(tmp_path):
    first = SortedRuns.merged([SortedRuns.of(np.array([3.0, 1.0]))], 0, tmp_path)
    both = SortedRuns.merged([first, SortedRuns.of(np.array([2.0]))], 100, tmp_path)
    assert both.at([0, 1, 2]).tolist() == [1.0, 2.0, 3.0] and len(both.files) == len(both.runs) == 1
