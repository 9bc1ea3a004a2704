import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.config import DeepOptimizer
from trainer.optimizers.loss_scale import GROWTH_STEPS, LossScale
from trainer.optimizers.moving_average import MovingAverage
from trainer.optimizers.optimizer import Optimizer, ParameterGroup
from trainer.optimizers.rules import OPTIMIZERS, SGD, Adam, AdamW, Ftrl, RMSprop, UpdateRule
from trainer.optimizers.schedules import Constant, Plateau, Steps, make_schedule


def skewed_updates(steps: int, rows: int, width: int):  # type: ignore[no-untyped-def]
    """For each step: ids with repeats, 9 in 10 of them among few rows, and a gradient for each."""
    rng = np.random.default_rng(1)
    for _ in range(steps):
        ids = np.where(rng.random(64) < 0.9, rng.integers(0, 10, 64), rng.integers(0, rows, 64)).astype(np.int32)
        yield ids, rng.normal(size=(64, width)).astype(np.float32)


def make(
    rule: UpdateRule, rate: float, weights: dict[str, tf.Variable], tables: dict[str, tf.Variable], **l2: dict
) -> Optimizer:
    return Optimizer(ParameterGroup(rule, Constant(rate), weights, tables, **l2))


def sparse(gradient: np.ndarray, ids: np.ndarray) -> tf.IndexedSlices:
    return tf.IndexedSlices(tf.constant(gradient[ids]), tf.constant(ids))


@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_lazy_rmsprop_equals_dense_rmsprop(rho):
    start = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    lazy, whole = tf.Variable(start), tf.Variable(start)
    optimizers = [make(RMSprop(rho), 0.01, {}, {"table": table}) for table in (lazy, whole)]
    square, expected = np.zeros((500, 4)), start.astype(np.float64)
    for step, (ids, gradients) in enumerate(skewed_updates(200, 500, 4), start=1):
        dense = np.zeros((500, 4), np.float32)
        np.add.at(dense, ids, gradients)
        present = np.unique(ids)
        optimizers[0].apply({"table": sparse(dense, present)}, tf.constant(step))
        optimizers[1].apply({"table": tf.constant(dense)}, tf.constant(step))
        square = rho * square + (1 - rho) * dense.astype(np.float64) ** 2
        expected -= 0.01 * dense / (np.sqrt(square) + 1e-7)
    np.testing.assert_allclose(lazy.numpy(), whole.numpy(), atol=1e-6)
    np.testing.assert_allclose(lazy.numpy(), expected, atol=2e-5)


def test_lazy_ftrl_equals_keras_dense_ftrl():
    lazy, dense = tf.Variable(np.zeros((500, 1), np.float32)), keras.Variable(np.zeros((500, 1), np.float32))
    own = make(Ftrl(), 0.02, {}, {"wide": lazy})
    other = keras.optimizers.Ftrl(0.02)
    other.build([dense])
    for step, (ids, gradients) in enumerate(skewed_updates(200, 500, 1), start=1):
        summed = np.zeros((500, 1), np.float32)
        np.add.at(summed, ids, gradients)
        present = np.unique(ids)
        own.apply({"wide": sparse(summed, present)}, tf.constant(step))
        other.apply([tf.constant(summed)], [dense])
    np.testing.assert_allclose(lazy.numpy(), dense.numpy(), atol=1e-6)


def test_dense_and_sparse_updates_of_a_table_alternate():
    start = np.ones((6, 2), np.float32)
    mixed, whole = tf.Variable(start), tf.Variable(start)
    first = make(RMSprop(), 0.1, {}, {"table": mixed})
    second = make(RMSprop(), 0.1, {}, {"table": whole})
    gradient = np.arange(12, dtype=np.float32).reshape(6, 2)
    for step in range(1, 7):
        second.apply({"table": tf.constant(gradient)}, tf.constant(step))
        if step % 2:
            first.apply({"table": tf.constant(gradient)}, tf.constant(step))
        else:
            rows = tf.range(6)
            first.apply({"table": tf.IndexedSlices(tf.constant(gradient), rows)}, tf.constant(step))
    np.testing.assert_allclose(mixed.numpy(), whole.numpy(), rtol=1e-6)


def test_steps_follow_the_published_schedule():
    schedule = Steps(base=0.00012, warmup_steps=6 * 457, total_steps=20 * 457)
    rates = {step: float(schedule(tf.constant(step))) for step in (1, 2741, 2742, 5941, 5942, 9140)}
    expected = {
        1: 0.00012 / 2742,
        2741: 0.00012 * 2741 / 2742,
        2742: 0.00003,
        5941: 0.00003,
        5942: 0.000015,
        9140: 0.000015,
    }
    for step, rate in expected.items():
        np.testing.assert_allclose(rates[step], rate, rtol=1e-5)


def test_steps_without_warm_up():
    schedule = Steps(base=1.0, warmup_steps=0, total_steps=10)
    assert [float(schedule(tf.constant(step))) for step in (1, 5, 6)] == [0.25, 0.25, 0.125]


def test_loss_scale_halves_on_overflow_and_grows_later():
    scale = LossScale(dynamic=True)
    scale.update(tf.constant(False))
    assert float(scale.scale) == 2.0**14
    for _ in range(GROWTH_STEPS):
        scale.update(tf.constant(True))
    assert float(scale.scale) == 2.0**15
    assert int(scale.good_steps) == 0


def test_state_names_every_slot_once():
    optimizer = make(RMSprop(), 1.0, {"w": tf.Variable([1.0])}, {"t": tf.Variable([[1.0]])})
    assert list(optimizer.weight_state) == ["w.mean_square"]
    assert sorted(optimizer.table_state("t")) == [".last_step", ".mean_square"]


KERAS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "adagrad": lambda: keras.optimizers.Adagrad(0.01),
    "sgd": lambda: keras.optimizers.SGD(0.01),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.004),
}


def rule_of(name: str) -> UpdateRule:
    config = DeepOptimizer(rule=name, rate=0.01, schedule="constant", warmup_epochs=0, weight_decay=0.004)
    return OPTIMIZERS[name].from_config(config)


@pytest.mark.parametrize("rule", KERAS)
def test_rules_equal_those_of_keras(rule):
    start = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    own, other = tf.Variable(start), keras.Variable(start)
    optimizer = make(rule_of(rule), 0.01, {"w": own}, {})
    reference = KERAS[rule]()
    reference.build([other])
    rng = np.random.default_rng(2)
    for step in range(1, 31):
        gradient = tf.constant(rng.normal(size=(20, 4)), tf.float32)
        optimizer.apply({"w": gradient}, tf.constant(step))
        reference.apply([gradient], [other])
    np.testing.assert_allclose(own.numpy(), other.numpy(), atol=1e-5)


@pytest.mark.parametrize("rule", ["adagrad", "sgd"])
def test_lazy_equals_dense_without_time_decay(rule):
    start = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    lazy, whole = tf.Variable(start), tf.Variable(start)
    rules = [make(rule_of(rule), 0.01, {}, {"table": table}) for table in (lazy, whole)]
    for step, (ids, gradients) in enumerate(skewed_updates(200, 500, 4), start=1):
        dense = np.zeros((500, 4), np.float32)
        np.add.at(dense, ids, gradients)
        present = np.unique(ids)
        rules[0].apply({"table": sparse(dense, present)}, tf.constant(step))
        rules[1].apply({"table": tf.constant(dense)}, tf.constant(step))
    np.testing.assert_allclose(lazy.numpy(), whole.numpy(), atol=1e-6)


def test_lazy_adam_has_the_moments_of_dense_adam():
    lazy, dense = tf.Variable(np.ones((2, 1), np.float32)), tf.Variable(np.ones((2, 1), np.float32))
    own = make(Adam(), 0.01, {}, {"table": lazy})
    other = make(Adam(), 0.01, {"table": dense}, {})
    for step in range(1, 6):
        gradient = np.array([[1.0], [1.0 if step in (1, 5) else 0.0]], np.float32)
        present = [0, 1] if step in (1, 5) else [0]
        before = lazy.numpy()[1].item()
        own.apply({"table": sparse(gradient, present)}, tf.constant(step))
        other.apply({"table": tf.constant(gradient)}, tf.constant(step))
        assert (lazy.numpy()[1].item() == before) == (step not in (1, 5))
    for slot in (".mean", ".mean_square"):
        expected = other.weight_state[f"table{slot}"]
        np.testing.assert_allclose(own.table_state("table")[slot].numpy(), expected.numpy(), rtol=1e-5)
    np.testing.assert_allclose(lazy.numpy()[0], dense.numpy()[0], rtol=1e-6)


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_dense_and_sparse_gradients_agree(rule):
    start = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    by_rows, whole = tf.Variable(start), tf.Variable(start)
    both = [make(rule_of(rule), 0.01, {}, {"t": table}, l2={"t": 0.1}) for table in (by_rows, whole)]
    for step, (ids, gradients) in enumerate(skewed_updates(30, 50, 4), start=1):
        dense = np.zeros((50, 4), np.float32)
        np.add.at(dense, ids[:8], gradients[:8])
        present = np.unique(ids[:8])
        both[0].apply({"t": sparse(dense, present)}, tf.constant(step))
        both[1].apply({"t": tf.constant(dense)}, tf.constant(step))
        # The two forms may alternate.
        both.reverse()
    assert not np.array_equal(by_rows.numpy(), start)
    for name, variable in both[0].table_state("t").items():
        np.testing.assert_allclose(variable.numpy(), both[1].table_state("t")[name].numpy(), atol=1e-6, err_msg=name)
    np.testing.assert_allclose(by_rows.numpy(), whole.numpy(), atol=1e-6)


def test_constant_schedule_rises_over_its_warm_up():
    schedule = make_schedule(
        DeepOptimizer(rule="adam", rate=0.01, schedule="constant", warmup_epochs=0.5, weight_decay=0), 8, 3
    )
    rates = [float(schedule(tf.constant(step))) for step in (1, 2, 4, 5, 24)]
    np.testing.assert_allclose(rates, [0.0025, 0.005, 0.01, 0.01, 0.01], rtol=1e-6)
    assert float(Constant(0.01, 0)(tf.constant(1))) == pytest.approx(0.01)


@pytest.mark.parametrize("form", ["whole", "rows"])
@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_l2_and_decay_of_the_first_step(rule, form):
    table, plain = tf.Variable(tf.ones((4, 2))), tf.Variable(tf.ones((4, 2)))
    l2, decay = (0.5, 0.0) if rule == "sgd" else (0.0, 0.2)
    rules = (SGD(), SGD()) if rule == "sgd" else (AdamW(weight_decay=decay), Adam())
    values, ids = tf.constant([[1.0, 1.0], [3.0, 0.0]]), tf.constant([3, 1])
    gradient = tf.IndexedSlices(values, ids) if form == "rows" else tf.scatter_nd(ids[:, tf.newaxis], values, (4, 2))
    make(rules[0], 0.1, {}, {"t": table}, l2={"t": l2}).apply({"t": gradient}, tf.constant(1))
    make(rules[1], 0.1, {}, {"t": plain}).apply({"t": gradient}, tf.constant(1))
    # L2 shrinks an updated row by rate * 2 l2, and decay takes rate * decay * w from it.
    expected = 0.1 * plain.numpy()[1::2] if rule == "sgd" else np.full((2, 2), 0.02)
    np.testing.assert_allclose((plain - table)[1::2], expected, rtol=1e-5)
    np.testing.assert_array_equal(table[::2], np.ones((2, 2)))


def test_l2_of_other_names_is_zero():
    weight = tf.Variable([1.0])
    make(SGD(), 0.5, {"bias": weight}, {}, l2={"kernel": 0.5}).apply({"bias": tf.constant([0.0])}, tf.constant(1))
    assert weight.numpy() == [1.0]


GAPS = [1, 4, 7, 12]  # steps between two lookups of each of four rows


def updates_of_rows_with_gaps(rule: UpdateRule, form: str, l2: float) -> tuple[np.ndarray, list[np.ndarray]]:
    """The table after 12 steps, in which row n is looked up every GAPS[n] steps, and the mask of rows of each step."""
    table = tf.Variable(np.full((4, 2), 3.0, np.float32))
    optimizer, looked_up = make(rule, 0.01, {}, {"t": table}, l2={"t": l2}), []
    for step in range(1, 13):
        rows = [row for row, gap in enumerate(GAPS) if step % gap == 0]
        dense = np.zeros((4, 2), np.float32)
        dense[rows] = 0.5
        optimizer.apply({"t": sparse(dense, rows) if form == "rows" else tf.constant(dense)}, tf.constant(step))
        looked_up.append(rows)
    return table.numpy(), looked_up


@pytest.mark.parametrize("form", ["rows", "whole"])
@pytest.mark.parametrize(
    "rule", [SGD(), OPTIMIZERS["adagrad"](), RMSprop(), Adam()], ids=lambda rule: type(rule).__name__
)
def test_l2_of_a_row_covers_the_steps_since_its_last_update(rule, form):
    found, looked_up = updates_of_rows_with_gaps(rule, form, l2=0.3)
    # By hand: Adagrad's sum, the others' decayed mean of squares, and the data's update before the shrinkage.
    for row, gap in enumerate(GAPS):
        weight, mean, square, last = 3.0, 0.0, 0.1 if "Adagrad" in type(rule).__name__ else 0.0, 0
        for step in [number for number, rows in enumerate(looked_up, start=1) if row in rows]:
            elapsed, rate, direction = step - last, 0.01, 0.5
            if isinstance(rule, SGD):
                size = rate
            elif isinstance(rule, RMSprop):
                square = 0.5**elapsed * square + 0.5 * 0.25
                size = rate / (square**0.5 + 1e-7)
            elif isinstance(rule, Adam):
                mean = 0.9**elapsed * mean + 0.1 * 0.5
                square = 0.999**elapsed * square + 0.001 * 0.25
                size = rate * (1 - 0.999**step) ** 0.5 / (1 - 0.9**step) / (square**0.5 + 1e-7)
                direction = mean
            else:
                square += 0.25
                size = rate / (square + 1e-7) ** 0.5
            weight = (weight - size * direction) * max(0.0, 1 - 2 * 0.3 * elapsed * size)
            last = step
        np.testing.assert_allclose(found[row], weight, rtol=1e-4, err_msg=f"row looked up every {gap} steps")


def test_l2_of_sgd_rows_is_close_to_that_of_every_step():
    dense, lazy = 1.0, 1.0
    for step in range(1, 101):
        dense *= 1 - 0.01 * 2 * 0.05
        if step % 10 == 0:
            lazy *= max(0.0, 1 - 0.01 * 2 * 0.05 * 10)
    table = tf.Variable([[1.0]])
    optimizer = make(SGD(), 0.01, {}, {"t": table}, l2={"t": 0.05})
    for step in range(10, 101, 10):
        optimizer.apply({"t": sparse(np.zeros((1, 1), np.float32), [0])}, tf.constant(step))
    np.testing.assert_allclose(table.numpy(), lazy, rtol=1e-5)
    assert abs(lazy - dense) < 0.001 < 1 - dense


def test_decay_of_adamw_covers_the_steps_since_the_last_update():
    table, plain = tf.Variable([[2.0]]), tf.Variable([[2.0]])
    for rule, variable in ((AdamW(weight_decay=0.1), table), (Adam(), plain)):
        make(rule, 0.01, {}, {"t": variable}).apply({"t": sparse(np.ones((1, 1), np.float32), [0])}, tf.constant(25))
    np.testing.assert_allclose((plain - table).numpy(), (1 - (1 - 0.01 * 0.1) ** 25) * 2.0, rtol=1e-5)


@pytest.mark.parametrize(("decay", "rates"), [(0.004, (1e-3, 1e-4)), (3.0, (0.01, 0.001)), (200.0, (0.01, 1e-3))])
def test_decay_of_adamw_rows_equals_that_of_every_step(decay, rates):
    """Over 200 steps, with a rate that falls in step 101; all rows are looked up in the step before."""
    rng, rate = np.random.default_rng(0), Plateau(rates[0])
    rows = rng.normal(size=(8, 3)).astype(np.float32)
    table, dense = tf.Variable(rows), rows.astype(np.float64)
    optimizer = Optimizer(ParameterGroup(AdamW(weight_decay=decay), rate, {}, {"t": table}))
    for step in range(1, 201):
        if step == 101:
            rate.factor.assign(rates[1] / rates[0])
        ids = np.arange(8) if step in (100, 200) else np.flatnonzero(rng.random(8) < 0.1)
        optimizer.apply({"t": sparse(np.zeros((8, 3), np.float32), ids)}, tf.constant(step))
        dense *= 1 - min(1.0, rates[step > 100] * decay)
    np.testing.assert_allclose(table.numpy(), dense, rtol=0, atol=1e-6)


def test_shrinkage_never_changes_signs():
    table = tf.Variable([[5.0], [-5.0]])
    optimizer = make(SGD(), 1.0, {}, {"t": table}, l2={"t": 10.0})
    optimizer.apply({"t": sparse(np.zeros((2, 1), np.float32), [0, 1])}, tf.constant(100))
    np.testing.assert_array_equal(table.numpy(), [[0.0], [0.0]])


def test_ftrl_regularizes_as_in_its_paper():
    weight, rng = tf.Variable(np.zeros((3, 1), np.float32)), np.random.default_rng(0)
    optimizer = make(Ftrl(l2=0.7), 0.2, {"w": weight}, {})
    z, n, w = np.zeros((3, 1)), np.full((3, 1), 0.1), np.zeros((3, 1))
    for step in range(1, 30):
        gradient = rng.normal(size=(3, 1)).astype(np.float32)
        optimizer.apply({"w": tf.constant(gradient)}, tf.constant(step))
        sigma = (np.sqrt(n + gradient**2.0) - np.sqrt(n)) / 0.2
        z += gradient - sigma * w
        n += gradient**2.0
        w = -z / (np.sqrt(n) / 0.2 + 0.7)
    np.testing.assert_allclose(weight.numpy(), w, rtol=1e-4)


@pytest.mark.parametrize("kind", ["cosine", "exponential"])
def test_smooth_schedules_fall_to_a_hundredth(kind):
    config = DeepOptimizer(rule="adam", rate=0.5, schedule=kind, warmup_epochs=1, weight_decay=0)
    schedule = make_schedule(config, 10, 11)
    rates = np.array([float(schedule(tf.constant(step))) for step in (5, 10, 60, 110, 200)])
    half = 0.5 * (0.01**0.5 if kind == "exponential" else 0.505)
    np.testing.assert_allclose(rates, [0.25, 0.5, half, 0.005, 0.005], rtol=1e-5)


def test_plateau_lowers_the_rate_with_each_epoch_without_improvement():
    config = DeepOptimizer(rule="adam", rate=0.5, schedule="plateau", warmup_epochs=0, weight_decay=0)
    schedule = make_schedule(config, 10, 11)
    rates = []
    for epochs in (0, 1, 2):
        schedule.reduce(epochs)
        rates.append(float(schedule(tf.constant(7))))
    np.testing.assert_allclose(rates, [0.5, 0.05, 0.005], rtol=1e-6)
    assert schedule == make_schedule(config, 10, 11)


@pytest.mark.parametrize("rule", [pytest.param(RMSprop(), marks=pytest.mark.slow), AdamW()])
def test_compiled_updates_equal_others(rule):
    """Weights, a table with whole gradients and one with rows, with L2 and averages, in a branch as in a step."""
    results = []
    for compiled in (False, True):
        weights = {"w": tf.Variable(tf.ones([3, 2]))}
        tables = {name: tf.Variable(tf.ones([12, 2])) for name in ("whole", "rows")}
        group = ParameterGroup(rule, Constant(0.1, warmup_steps=3), weights, tables, l2={"w": 0.01, "rows": 0.01})
        optimizer = Optimizer(group, average=MovingAverage(0.9), compiled=compiled)

        @tf.function
        def update(dense, rows, ids, step, optimizer=optimizer):
            gradients = {"w": dense[:3], "whole": dense, "rows": tf.IndexedSlices(rows, ids)}
            tf.cond(dense[0, 0] < 9.0, lambda: (optimizer.apply(gradients, step), True)[1], lambda: False)

        for step, (ids, gradients) in enumerate(skewed_updates(5, 12, 2), start=1):
            present = np.unique(ids[: step * 2])
            dense = np.zeros((12, 2), np.float32)
            dense[present] = gradients[: len(present)]
            update(dense, dense[present], present, tf.constant(step))
        state = [optimizer.weight_state, *map(optimizer.table_state, tables)]
        results.append([variable.numpy() for own in (weights, tables, *state) for variable in own.values()])
    for plain, compiled in zip(*results, strict=True):
        np.testing.assert_allclose(compiled, plain, rtol=1e-5)
    assert not np.allclose(results[0][0], 1)
