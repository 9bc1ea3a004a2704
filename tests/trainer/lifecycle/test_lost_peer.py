"""Error messages of collectives that lost a worker, from Horovod 0.28.1 and Gloo."""

import pytest
import tensorflow as tf

from trainer.comm import lost_peer

SHUT_DOWN = "Horovod has been shut down. This was caused by an exception on one of the ranks."


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            "Graph execution error:\n\nDetected at node HorovodGroupedAllgather_Unique_0 defined at (most recent call "
            'last):\n  File "<string>", line 527, in horovod_grouped_allgather\n\n[/build/gloo/transport/tcp/pair.cc:'
            "589] Read error [127.0.0.1]:21402: Connection reset by peer\n\t [[{{node HorovodGroupedAllgather_0}}]] "
            "[Op:__inference___call___1152]",
            "Read error [127.0.0.1]:21402: Connection reset by peer",
        ),
        (f"{SHUT_DOWN}\n\t [[{{{{node HorovodGroupedAllreduce_Sum_0}}}}]]", "Horovod has been shut down"),
        (f"{{{{function_node __wrapped__HorovodAllreduce}}}} {SHUT_DOWN} [Op:A]", "Horovod has been shut down"),
        (
            "{{function_node __wrapped__HorovodAllreduce}} [/build/x.cc:3] Timed out waiting 30000ms [Op:HorovodA]",
            "Timed out waiting 30000ms",
        ),
    ],
)
def test_lost_worker_is_reported_briefly(message, said):
    assert lost_peer(tf.errors.UnknownError(None, None, message)) == said


def test_other_errors_are_not_mistaken_for_a_lost_worker():
    assert lost_peer(tf.errors.UnknownError(None, None, "the disk hums")) is None
    assert lost_peer(tf.errors.FailedPreconditionError(None, None, "HorovodAllreduce: shapes differ")) is None
    assert lost_peer(ValueError(SHUT_DOWN)) is None
