"""TensorBoard's files are read back with TensorFlow's own record reader and protocol buffers."""

import resource
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.util import event_pb2

from tests.trainer.small_models import make_batches, make_model, make_step
from trainer.logging.log import RunLog, read_log
from trainer.logging.tensorboard import BUCKETS, TensorBoard


def events(folder: Path) -> list[event_pb2.Event]:
    files = sorted(str(path) for path in folder.glob("events.out.tfevents.*"))
    return [event_pb2.Event.FromString(record.numpy()) for record in tf.data.TFRecordDataset(files)]


def values(folder: Path) -> dict[tuple[str, int], tf.compat.v1.Summary.Value]:
    return {(value.tag, event.step): value for event in events(folder) for value in event.summary.value}


def test_numbers_of_log_records_are_scalars(tmp_path):
    board = TensorBoard(tmp_path / "board" / "deep")
    log = RunLog(tmp_path / "log.json", False, [board])
    log.log([10, 40], {"loss": 0.5, "auc_roc/click": np.float32(0.75), "slowest_worker": 1, "text": "x", "on": True})
    log.log([20], {"loss": float("nan"), "calibration_curve": {"weight": [1.0]}})
    log.log([], {"loss": 0.125})
    log.parameters({"seed": 1})
    found = {key: value.simple_value for key, value in values(tmp_path / "board" / "deep").items()}
    assert np.isnan(found.pop(("loss", 20)))
    assert found == {("loss", 10): 0.5, ("auc_roc/click", 10): 0.75, ("slowest_worker", 10): 1.0}
    assert [record["step"] for record in read_log(tmp_path / "log.json")] == [[10, 40], [20], [], "PARAMETER"]
    log.close()


def test_histogram_counts_every_row(tmp_path):
    board, random = TensorBoard(tmp_path), np.random.default_rng(0)
    shares = random.random(1000).astype(np.float32)
    board.histograms(7, {"gate/click/1": shares, "gate/click/2": np.zeros(0, np.float32)})
    ((key, value),) = values(tmp_path).items()
    histogram = value.histo
    assert key == ("gate/click/1", 7) and len(histogram.bucket) == BUCKETS
    assert (histogram.num, sum(histogram.bucket)) == (1000, 1000)
    assert histogram.sum == pytest.approx(shares.astype(float).sum())
    assert histogram.sum_squares == pytest.approx((shares.astype(float) ** 2).sum())
    low = 0.0
    for limit, count in zip(histogram.bucket_limit, histogram.bucket, strict=True):
        assert count == np.sum((shares >= low) & (shares < limit))
        low = limit


def test_graph_is_written_once_without_retracing(tmp_path):
    step, board = make_step(make_model()), TensorBoard(tmp_path)
    for number, batch in enumerate(make_batches(2), start=1):
        arguments = step.packing.pack(batch.input(step.model)), tf.constant(number), tf.zeros(3)
        step.run(*arguments)
        traces = step.run.experimental_get_tracing_count()
        board.graph_of(step.run, *arguments)
        assert step.run.experimental_get_tracing_count() == traces
    (graph,) = (event.graph_def for event in events(tmp_path) if event.graph_def)
    definition = tf.compat.v1.GraphDef.FromString(graph)
    assert len(definition.node) > 10


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    board = TensorBoard(None)
    board.scalars(1, {"loss": 1.0})
    board.histograms(1, {"gate": np.ones(2)})
    board.graph_of(None)
    board.close()
    assert not list(tmp_path.iterdir())


def test_full_disk_warns_once(tmp_path, capsys):
    board = TensorBoard(tmp_path / "board")
    board.scalars(1, {"loss": 1.0})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        for step in range(2, 50):
            board.scalars(step, {"loss": 1.0})
        board.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err
    assert error.count("warning: the files in --tensorboard_dir") == 1 and str(tmp_path / "board") in error


def test_unwritable_folder_warns_once(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    board = TensorBoard(tmp_path / "file" / "board")
    board.scalars(1, {"loss": 1.0})
    board.scalars(2, {"loss": 1.0})
    board.close()
    assert capsys.readouterr().err.count("warning: the files in --tensorboard_dir") == 1
