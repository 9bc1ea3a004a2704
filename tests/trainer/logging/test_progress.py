import fcntl
import io
import os
import pty
import re
import struct
import termios
import threading

import pytest

from data.parallel import in_parallel
from data.progress import Bar
from trainer.logging import progress as progress_module
from trainer.logging.progress import Progress, byte_progress, format_count


class Clock:
    """A clock that a test sets."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    """A terminal that keeps what was written; `screen` is what a user would see."""

    encoding = "ascii"

    def isatty(self):
        return True

    def screen(self) -> list[str]:
        lines, line, column = [], [], 0
        for character in self.getvalue():
            if character == "\r":
                column = 0
            elif character == "\n":
                lines.append("".join(line).rstrip())
                line, column = [], 0
            else:
                line[column : column + 1] = [character]
                column += 1
        return [*lines, "".join(line).rstrip()]


class Broken(io.StringIO):
    """A stream whose reader has gone; counts how often it was written to."""

    def __init__(self, error):
        super().__init__()
        self.error, self.tries = error, 0

    def write(self, text):
        self.tries += 1
        raise self.error


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress_module.time, "monotonic", clock)
    monkeypatch.setattr("tqdm.std.time", clock)
    return clock


def steps(progress: Progress, clock: Clock, numbers, seconds: float, **values) -> None:
    for number in numbers:
        clock.now += seconds
        progress.update(number, **values)


def test_few_lines_are_printed_without_a_terminal(clock):
    """The first and the last step, and others at most every 5 seconds."""
    stream = io.StringIO()
    progress = Progress(100, stream)
    steps(progress, clock, range(1, 101), 0.12, loss=0.5, rate=1234.0)
    lines = stream.getvalue().splitlines()
    progress.close()
    assert stream.getvalue().splitlines() == lines
    assert [re.search(r"(\d+)/100", line).group(1) for line in lines] == ["1", "43", "85", "100"]
    assert lines[1] == " 43% 43/100 [00:05<00:06, loss 0.50000, 1.23k samples/s]"
    assert "\r" not in stream.getvalue()


def test_last_evaluation_is_not_a_line_per_batch(clock):
    """After the last step the step number stays at the total, and lines are limited by time as before."""
    stream = io.StringIO()
    progress = Progress(10, stream)
    progress.update(1)
    progress.update(10)
    for batch in range(1, 101):
        clock.now += 0.01
        progress.update(None, note=f"evaluating {batch}")
    assert len(stream.getvalue().splitlines()) == 2


def test_terminal_redraws_one_line(clock):
    stream = Terminal()
    progress = Progress(100, stream)
    steps(progress, clock, range(1, 51), 1.0, loss=0.25, rate=20_000)
    bar = " 50%|############            | 50/100 [00:49<00:50, loss 0.25000, 20k samples/s]"
    assert stream.screen() == [bar]
    progress.close()
    assert stream.screen() == [bar, ""]


def test_shorter_line_erases_the_longer_one(clock):
    stream = Terminal()
    progress = Progress(10, stream)
    steps(progress, clock, [1, 2], 1, note="a very long note indeed")
    steps(progress, clock, [3], 1)
    assert stream.screen()[-1].endswith("3/10 [00:02<00:07]")
    progress.close()


def test_line_is_cut_to_the_width_of_the_terminal(clock):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 44, 0, 0))
    with os.fdopen(theirs, "w") as stream, os.fdopen(ours, "rb", buffering=0) as screen:
        progress = Progress(10, stream)
        steps(progress, clock, [1, 2], 1, loss=0.5, note="x" * 50)
        progress.close()
        stream.flush()
        lines = screen.read(4096).decode().replace("\r\n", "\r").split("\r")
    assert max(map(len, lines)) in (43, 44)


def test_messages_are_printed_above_the_bar(clock):
    stream = Terminal()
    progress = Progress(10, stream)
    steps(progress, clock, [1], 1)
    progress.message("epoch 1 is done")
    *above, bar = stream.screen()
    assert above == ["epoch 1 is done"] and "1/10" in bar
    progress.close()
    plain = io.StringIO()
    Progress(10, plain).message("epoch 1 is done")
    assert plain.getvalue() == "epoch 1 is done\n"


@pytest.mark.parametrize("stream_type", [io.StringIO, Terminal])
def test_remaining_time_excludes_resumed_steps(clock, stream_type):
    stream = stream_type()
    progress = Progress(1000, stream)
    clock.now += 300
    steps(progress, clock, [500], 0)
    assert "<?" in stream.getvalue()
    steps(progress, clock, [510, 600], 50)
    progress.close()
    assert "600/1000 [01:40<06:40]" in stream.getvalue().splitlines()[-1]


def test_evaluation_keeps_the_step(clock):
    stream = io.StringIO()
    progress = Progress(10, stream)
    steps(progress, clock, [4], 10, loss=0.5)
    steps(progress, clock, [None], 10, note="evaluating 3")
    assert stream.getvalue().splitlines()[-1] == " 40% 4/10 [00:10<?, loss 0.50000, evaluating 3]"


def test_close_prints_the_last_state_once(clock):
    stream = io.StringIO()
    progress = Progress(10, stream)
    steps(progress, clock, [1, 2], 0.1)
    progress.close()
    progress.close()
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["1/10", "2/10"]
    unused = io.StringIO()
    Progress(10, unused).close()
    assert unused.getvalue() == ""


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), ValueError("closed file"), OSError(5)])
@pytest.mark.parametrize("on_terminal", [False, True])
def test_broken_stream_ends_the_display(clock, error, on_terminal):
    stream = Broken(error)
    stream.isatty = lambda: on_terminal
    progress = Progress(100, stream)
    steps(progress, clock, range(1, 101), 60)
    progress.message("text")
    progress.close()
    assert 1 <= stream.tries <= 10, "not once per step"
    # The bars of other threads share a lock with this one.
    other = threading.Thread(target=lambda: Bar(total=1, file=io.StringIO()).close(), daemon=True)
    other.start()
    other.join(timeout=60)
    assert not other.is_alive()


def test_closed_or_missing_stream_shows_nothing(clock, monkeypatch):
    closed = io.StringIO()
    closed.close()
    for stream in (closed, None):
        monkeypatch.setattr("sys.stderr", None)
        progress = Progress(10, stream)
        steps(progress, clock, [1, 10], 60)
        progress.message("text")
        progress.close()


def test_stream_closed_later_ends_the_display(clock):
    for stream in (io.StringIO(), Terminal()):
        progress = Progress(10, stream)
        steps(progress, clock, [1], 60)
        stream.close()
        steps(progress, clock, [2, 10], 60)
        progress.message("text")
        progress.close()


def test_nan_and_infinity_are_shown(clock):
    stream = io.StringIO()
    steps(Progress(5, stream), clock, [1, 5], 9, loss=float("nan"), rate=float("inf"))
    assert stream.getvalue().splitlines()[-1] == "100% 5/5 [00:09<00:00, loss nan, inf samples/s]"


def test_disabled_progress_shows_nothing(capsys):
    progress = Progress(10, enabled=False)
    progress.update(1, loss=0.5, rate=1.0, note="x")
    progress.message("x")
    progress.close()
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (7.5, "7.5"),
        (999, "999"),
        (999.6, "1k"),
        (12_345, "12.3k"),
        (999_600, "1M"),
        (1.641e6, "1.64M"),
        (2e9, "2G"),
    ],
)
def test_counts_have_three_digits(number, text):
    assert format_count(number) == text


@pytest.mark.parametrize("rank", ["0", "1"])
def test_bytes_done_by_threads_are_shown_by_the_first_worker(monkeypatch, capsys, rank):
    monkeypatch.setattr("data.progress.SECONDS_BETWEEN_LINES", 0.0)
    for name, value in {"RANK": rank, "SIZE": "2", "LOCAL_RANK": rank, "LOCAL_SIZE": "2"}.items():
        monkeypatch.setenv(f"HOROVOD_{name}", value)
    with byte_progress("reading step-7", 5_000_000_000) as advance:
        in_parallel(lambda part: advance(1_000_000_000), range(5))
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("reading step-7: 100%") and "5.00G/5.00G" in line for line in lines) == (rank == "0")
    assert bool(lines) == (rank == "0")


def test_bytes_done_quickly_are_not_shown(capsys):
    with byte_progress("reading step-7", 5_000) as advance:
        advance(5_000)
    assert capsys.readouterr().err == ""
