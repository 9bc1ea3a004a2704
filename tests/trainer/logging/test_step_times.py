import pytest

from trainer.logging import step_times
from trainer.logging.step_times import StepTimes, timed


def test_means_in_milliseconds_since_the_last_record():
    times = StepTimes()
    times.add(9.0, 5.0)
    assert times.take() == {}, "functions are compiled in the steps before the first record"
    assert times.take() == {}, "no step, no mean"
    for whole, data, collectives in ((0.03, 0.001, 0.004), (0.05, 0.003, 0.006)):
        times.wait(data)
        times.add(whole, collectives)
    assert times.take() == pytest.approx({"step_ms": 40, "wait_for_data_ms": 2, "communicate_ms": 5})
    assert times.take() == {}


def test_only_the_wait_for_batches_is_timed(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(step_times.time, "perf_counter", lambda: clock[0])

    def stream():
        for number, seconds in enumerate((2.0, 3.0)):
            clock[0] += seconds
            yield number

    seen = []
    for batch, waited in timed(stream()):
        seen.append((batch, waited))
        clock[0] += 100
    assert seen == [(0, 2.0), (1, 3.0)]
