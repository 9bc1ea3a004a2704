"""Which ids are replaced in training, and by what."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from data.loading.batch import PAD, Batch, empty_batch
from data.loading.lists import Lists, from_padded, join_columns
from data.spec.feature_spec import FeatureSpec
from data.spec.features import Feature, FeatureSequence
from tests.data.sample_data import nested, random_rows, write_dataset
from tests.data.scalar_hash import mix
from trainer.cli import parse
from trainer.embeddings.unseen import UnseenIds, has_reserved_ids
from trainer.inputs import open_inputs
from trainer.process.worker_env import WorkerEnv

ROWS, HOTNESS, SHARE = 40_000, 3, 0.05
FEATURES = {
    "user": Feature(name="user", cardinality=500, null_id=1, unseen_id=2),
    "shop": Feature(name="shop", cardinality=500, unseen_id=2, oov_buckets=4),
    "plain": Feature(name="plain", cardinality=500),
    "hashed": Feature(name="hashed", cardinality=500, null_id=1),
    "tags": Feature(name="tags", cardinality=500, max_hotness=HOTNESS, null_id=1, unseen_id=2),
    "age": Feature(name="age"),
    "user_count": Feature(name="user_count", unseen_with="user", unseen_value=-5.5),
    "click": Feature(name="click"),
}
ONEHOT = ("user", "shop", "plain", "hashed")


@pytest.fixture
def spec(tmp_path):
    channels = {
        "onehot_categorical": ONEHOT,
        "multihot_categorical": ("tags",),
        "numerical": ("age", "user_count"),
        "label": ("click",),
        "map": (),
    }
    return FeatureSpec(tmp_path, FEATURES, {}, channels, {})


def rows_of(spec: FeatureSpec, low: int = 10, seed: int = 0) -> Batch:
    """Rows with ids from `low` on, lists of any length, and positions in random order."""
    rng, batch = np.random.default_rng(seed), empty_batch(spec, ROWS, with_group=False)
    batch.onehot[:] = rng.integers(low, 500, batch.onehot.shape)
    lengths = rng.integers(0, HOTNESS + 1, ROWS)
    tags = np.where(np.arange(HOTNESS) < lengths[:, None], rng.integers(low, 500, (ROWS, HOTNESS)), PAD)
    batch.numerical[:] = rng.normal(size=batch.numerical.shape)
    batch.labels[:], batch.weights[:] = 0, 1
    batch.rows[:] = rng.permutation(ROWS)
    return batch._replace(id_lists=from_padded(tags.astype(np.int32), [HOTNESS]))


def copied(batch: Batch, rows: Any = slice(None)) -> Batch:
    positions = np.arange(len(batch.rows))[rows]
    arrays = {name: array[rows].copy() for name, array in batch._asdict().items() if isinstance(array, np.ndarray)}
    return batch._replace(id_lists=batch.id_lists.take(positions), **arrays)


def replaced(spec: FeatureSpec, batch: Batch, epoch: int = 0, sample: Batch | None = None, **options: Any) -> Batch:
    options = {"share": SHARE, "seed": 7} | options
    changed = copied(batch)
    UnseenIds(spec, **options, sample=lambda: sample or batch).replace(changed, epoch)
    return changed


def shares(before: Batch, after: Batch) -> Iterator[tuple[str, float, set[int]]]:
    """By feature: the share of its ids that changed, and the new ones."""
    for column, name in enumerate((*ONEHOT, "tags")):
        old, new = (batch.id_lists.values if name == "tags" else batch.onehot[:, column] for batch in (before, after))
        changed = new[old != new]
        yield name, len(changed) / len(old), set(changed.tolist())


def test_share_of_each_feature_gets_new_ids(spec):
    before = rows_of(spec)
    expected = {"user": {1, 2}, "shop": {2, 3, 4, 5}, "plain": set(), "hashed": {1}, "tags": {1, 2}}
    wanted = {"user": SHARE, "shop": SHARE, "plain": 0, "hashed": SHARE / 8, "tags": SHARE}
    for name, share, new in shares(before, replaced(spec, before)):
        assert new == expected[name], name
        assert share == pytest.approx(wanted[name], abs=0.005), name


def test_new_ids_are_shared_out(spec):
    before = rows_of(spec)
    after = replaced(spec, before, share=0.5).onehot
    for column, parts in ((0, {1: 1 / 8, 2: 7 / 8}), (1, dict.fromkeys([2, 3, 4, 5], 1 / 4))):
        for one, part in parts.items():
            assert np.count_nonzero(after[:, column] == one) == pytest.approx(part * 0.5 * ROWS, rel=0.1)


def test_everything_else_stays(spec):
    before = rows_of(spec)
    after = replaced(spec, before)
    assert np.array_equal(before.id_lists.lengths, after.id_lists.lengths)
    for name in ("labels", "weights", "rows"):
        assert np.array_equal(getattr(before, name), getattr(after, name))
    assert np.array_equal(before.numerical[:, 0], after.numerical[:, 0])


def test_numbers_of_the_same_raw_column_follow(spec):
    before = rows_of(spec)
    after = replaced(spec, before)
    is_new = before.onehot[:, 0] != after.onehot[:, 0]
    assert np.array_equal(after.numerical[:, 1], np.where(is_new, np.float32(-5.5), before.numerical[:, 1]))


def test_draws_depend_on_row_epoch_and_seed_alone(spec):
    """Not on the batches that hold the rows, and so not on the number of workers."""
    before = rows_of(spec)
    whole = replaced(spec, before)
    unseen = UnseenIds(spec, SHARE, 7, lambda: before)
    for part in np.array_split(np.random.default_rng(1).permutation(ROWS), 3):
        cut = copied(before, part)
        unseen.replace(cut, 0)
        assert np.array_equal(cut.onehot, whole.onehot[part])
        assert np.array_equal(cut.id_lists.values, whole.id_lists.take(part).values)
        assert np.array_equal(cut.numerical, whole.numerical[part])
    changed = whole.onehot != before.onehot
    for other in (replaced(spec, before, epoch=1), replaced(spec, before, seed=8)):
        both = np.count_nonzero(changed & (other.onehot != before.onehot))
        assert both < 3 * SHARE * np.count_nonzero(changed)
    # The columns of a row are drawn independently, too.
    assert np.count_nonzero(changed[:, 0] & changed[:, 1]) == pytest.approx(SHARE**2 * ROWS, rel=0.5)


def test_each_place_of_a_list_has_a_draw_of_its_own(spec):
    """The draws are those of a row with max_hotness columns for each list, in plain Python integers."""
    more = {
        "plain_tags": Feature(name="plain_tags", cardinality=500, max_hotness=2),
        "topics": Feature(name="topics", cardinality=500, max_hotness=6, unseen_id=2, oov_buckets=4),
    }
    channels = spec.channels | {"multihot_categorical": ("tags", "plain_tags", "topics")}
    spec = replace(spec, features=spec.features | more, channels=channels)
    rng = np.random.default_rng(3)
    widths = [HOTNESS, 2, 6]
    lengths = np.stack([rng.integers(0, width + 1, ROWS) for width in widths], axis=1).astype(np.int32)
    lists = Lists(rng.integers(10, 500, lengths.sum()).astype(np.int32), lengths)
    before = rows_of(spec)._replace(id_lists=lists)
    after, epoch, seed, threshold = replaced(spec, before, epoch=4, share=0.3), 4, 7, round(0.3 * 2**16)
    new = 0
    for row in range(300):
        row_hash = mix(int(before.rows[row]) ^ mix(mix(seed) ^ (2 * epoch + 1)))
        old_lists, new_lists = (nested(batch.id_lists[row : row + 1])[0] for batch in (before, after))
        for column, first, unseen, null in ((0, 0, [2], 1), (1, None, [], None), (2, HOTNESS, [2, 3, 4, 5], None)):
            for place, old in enumerate(old_lists[column]):
                expected = old
                if first is not None:
                    number = first + place
                    draw = mix(row_hash ^ number // 4) >> 16 * (number % 4) & 0xFFFF
                    choice = mix((row_hash + number) % 2**64)
                    if draw < threshold:
                        is_null = null is not None and (choice >> 32) % 8 == 0
                        expected = null if is_null else unseen[choice % len(unseen)]
                        new += 1
                assert new_lists[column][place] == expected
    assert new > 300


def test_ids_of_the_data_count_and_stay(spec):
    before = rows_of(spec)
    before.onehot[: round(0.03 * ROWS), 0] = 2  # rare users, which share the id of unseen ones
    before.onehot[: round(0.2 * ROWS), 1] = 4
    before.onehot[:100, 3] = 1
    before.onehot[-50:, 0] = 1
    after = replaced(spec, before)
    found = {name: (share, new) for name, share, new in shares(before, after)}
    assert found["user"] == (pytest.approx(0.02, abs=0.004), {2})  # null has rows of its own
    assert found["shop"] == (0, set())
    assert found["hashed"] == (0, set())
    for column, own in ((0, 2), (0, 1), (1, 4), (3, 1)):
        there = before.onehot[:, column] == own
        assert (after.onehot[there, column] == own).all()


def test_unseen_id_that_is_also_null(spec):
    shared = replace(spec, features=FEATURES | {"user": replace(FEATURES["user"], null_id=2)})
    before = rows_of(spec)
    assert next(shares(before, replaced(shared, before)))[2] == {2}


def test_features_without_such_ids(spec):
    bare = {name: replace(one, null_id=None, unseen_id=None, oov_buckets=None) for name, one in FEATURES.items()}
    without = replace(spec, features=bare)
    assert has_reserved_ids(spec) and not has_reserved_ids(without)
    before = rows_of(spec)
    after = replaced(without, before)
    assert np.array_equal(before.onehot, after.onehot) and np.array_equal(before.numerical, after.numerical)


def test_ids_of_sequences_are_replaced_like_those_of_other_lists(spec):
    """The lists keep their lengths, and so stay aligned; the numbers of steps and ids without reserved ones stay."""
    clicked, kind = replace(FEATURES["tags"], name="clicked"), replace(FEATURES["plain"], name="kind", max_hotness=3)
    features = FEATURES | {"clicked": clicked, "kind": kind, "waited": Feature(name="waited")}
    clicks = FeatureSequence("clicks", ("kind", "clicked", "waited"), length=HOTNESS)
    spec = replace(spec, features=features, sequences=(clicks,))
    before = rows_of(spec)
    steps = Lists(before.id_lists.values + 1, before.id_lists.lengths)
    waited = before.id_lists.astype(np.float32)
    before = before._replace(id_lists=join_columns([before.id_lists, steps, steps]), number_lists=waited)
    after = replaced(spec, before)
    of = before.id_lists.cells() % 3  # tags, kind, clicked
    changed = after.id_lists.values != before.id_lists.values
    assert not changed[of == 1].any() and set(after.id_lists.values[changed & (of == 2)].tolist()) <= {1, 2}
    for column in (0, 2):
        assert abs(changed[of == column].mean() - SHARE) < 0.005
    assert (changed[of == 0] != changed[of == 2]).any()  # drawn by themselves
    np.testing.assert_array_equal(after.id_lists.lengths, before.id_lists.lengths)
    np.testing.assert_array_equal(after.number_lists.values, waited.values)
    only = replace(spec, features=features, channels={"label": ("click",)})
    assert has_reserved_ids(only) and not has_reserved_ids(replace(only, sequences=()))


def ids_by_row(folder: Any, workers: int, *flags: str) -> tuple[np.ndarray, np.ndarray]:
    """The users and items [rows, 2] of an epoch of training, and those of the evaluation, in the dataset's order."""
    found: list[dict[int, list[int]]] = [{}, {}]
    words = ["--dataset_path", str(folder), "--global_batch_size", "500", "--disable_map_calculation"]
    words += ["--recipe", "published", *flags]
    for rank in range(workers):
        data = open_inputs(parse(words, workers), WorkerEnv(rank=rank, size=workers))
        for loader, rows in zip((data.train_loader, data.eval_loader), found, strict=True):
            for batch in loader.epoch(3):
                here = batch.rows != PAD
                rows |= dict(zip(batch.rows[here].tolist(), batch.onehot[here].tolist(), strict=True))
    first, second = (np.array([rows[row] for row in sorted(rows)]) for rows in found)
    return first, second


def test_training_of_any_number_of_workers(tmp_path):
    """Training rows get new ids, the same under any number of workers; evaluated rows do not."""
    frame = random_rows(3000)
    user, item = {"cardinality": 1000, "null_id": 1, "unseen_id": 2}, {"cardinality": 7}
    spec, _ = write_dataset(tmp_path, [[1000, 500], [1500]], frame=frame, user=user, item=item)
    spec.write(tmp_path / "feature_spec.yaml")
    stored = frame[["user", "item"]].to_numpy()
    trained, evaluated = ids_by_row(tmp_path, 1, "--unseen_share", "0.1")
    is_new = trained[:, 0] != stored[:, 0]
    assert is_new.mean() == pytest.approx(0.1, abs=0.03)
    assert set(trained[is_new, 0]) == {2}  # the data has null
    assert np.array_equal(trained[:, 1], stored[:, 1])
    assert np.array_equal(evaluated, stored)
    assert np.array_equal(ids_by_row(tmp_path, 3, "--unseen_share", "0.1")[0], trained)
    assert np.array_equal(ids_by_row(tmp_path, 1, "--unseen_share", "0")[0], stored)
