import fcntl
import io
import os
import pty
import re
import struct
import termios

import pytest

from trainer.logging import progress as progress_module
from trainer.logging.progress import NullProgress, Progress, format_count, format_seconds


class Clock:
    """A clock that a test sets."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    """A terminal that keeps what it was sent; `screen` is what a person would see."""

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
    """A stream whose reader is gone; counts how often it was tried."""

    def __init__(self, error):
        super().__init__()
        self.error, self.tries = error, 0

    def write(self, text):
        self.tries += 1
        raise self.error


@pytest.fixture
def clock() -> Clock:
    return Clock()


def steps(progress: Progress, clock: Clock, numbers, seconds: float, **values) -> None:
    for number in numbers:
        clock.now += seconds
        progress.update(number, **values)


def test_where_there_is_no_terminal_few_lines_are_printed_the_first_and_the_last_among_them(clock):
    stream = io.StringIO()
    progress = Progress(100, stream, clock=clock)
    steps(progress, clock, range(1, 101), 0.12, loss=0.5, rate=1234.0)
    lines = stream.getvalue().splitlines()
    progress.close()
    assert stream.getvalue().splitlines() == lines
    assert [re.search(r"(\d+)/100", line).group(1) for line in lines] == ["1", "43", "85", "100"]
    assert lines[1] == " 43%  43/100  loss 0.50000  1.23k samples/s  6s left"
    assert "\r" not in stream.getvalue()


def test_on_a_terminal_one_line_is_redrawn(clock):
    stream = Terminal()
    progress = Progress(100, stream, clock=clock)
    steps(progress, clock, range(1, 51), 1.0, loss=0.25, rate=20_000)
    assert stream.screen() == [" 50% [############------------]  50/100  loss 0.25000  20k samples/s  50s left"]
    progress.close()
    assert stream.screen() == [*stream.screen()[:1], ""] and "50/100" in stream.screen()[0]


def test_a_shorter_line_leaves_nothing_of_the_longer_one(clock):
    stream = Terminal()
    progress = Progress(10, stream, clock=clock)
    steps(progress, clock, [1], 1, note="a very long note indeed")
    steps(progress, clock, [1], 1)
    assert stream.screen()[-1].endswith("1/10")


def test_the_line_is_cut_to_the_width_of_the_terminal(clock, monkeypatch):
    monkeypatch.setattr(Progress, "_columns", lambda self: 30)
    stream = Terminal()
    steps(Progress(10, stream, clock=clock), clock, [1, 2], 1, loss=0.5, note="x" * 50)
    assert len(stream.screen()[-1]) == 29 and len(stream.screen()) == 1


def test_the_width_of_a_real_terminal_is_used(clock):
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream, os.fdopen(ours, "rb"):
        progress = Progress(10, stream, clock=clock)
        assert progress._columns() == progress_module.DEFAULT_COLUMNS
        fcntl.ioctl(stream.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", 24, 44, 0, 0))
        assert progress._columns() == 44


def test_messages_stand_above_the_bar(clock):
    stream = Terminal()
    progress = Progress(10, stream, clock=clock)
    steps(progress, clock, [1], 1)
    progress.message("epoch 1 is done")
    *above, bar = stream.screen()
    assert above == ["epoch 1 is done"] and "1/10" in bar
    plain = io.StringIO()
    Progress(10, plain, clock=clock).message("epoch 1 is done")
    assert plain.getvalue() == "epoch 1 is done\n"


def test_the_time_left_is_reckoned_from_the_first_step_of_this_life(clock):
    stream = io.StringIO()
    progress = Progress(1000, stream, clock=clock)
    clock.now += 300
    steps(progress, clock, [500], 0)
    assert "left" not in stream.getvalue()
    steps(progress, clock, [510, 600], 50)
    assert stream.getvalue().splitlines()[-1].endswith("600/1000  6m40s left")


def test_during_an_evaluation_the_step_stays(clock):
    stream = io.StringIO()
    progress = Progress(10, stream, clock=clock)
    steps(progress, clock, [4], 10, loss=0.5)
    steps(progress, clock, [None], 10, note="evaluating 3")
    assert stream.getvalue().splitlines()[-1] == " 40%  4/10  loss 0.50000  evaluating 3"


def test_close_prints_what_was_held_back_and_nothing_twice(clock):
    stream = io.StringIO()
    progress = Progress(10, stream, clock=clock)
    steps(progress, clock, [1, 2], 0.1)
    progress.close()
    progress.close()
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["1/10", "2/10"]
    untouched = io.StringIO()
    Progress(10, untouched).close()
    assert untouched.getvalue() == ""


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), ValueError("closed file"), OSError(5)])
def test_a_broken_stream_is_left_alone_and_stops_nothing(clock, error):
    stream = Broken(error)
    progress = Progress(10, stream, clock=clock)
    steps(progress, clock, range(1, 11), 60)
    progress.message("text")
    progress.close()
    assert stream.tries == 1


def test_a_stream_that_is_closed_or_missing_stops_nothing(clock, monkeypatch):
    closed = io.StringIO()
    closed.close()
    for stream in (closed, None):
        monkeypatch.setattr("sys.stderr", None)
        progress = Progress(10, stream, clock=clock)
        steps(progress, clock, [1, 10], 60)
        progress.message("text")
        progress.close()


def test_what_a_terminal_cannot_write_is_escaped(clock):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    progress = Progress(10, stream, clock=clock)
    progress.message("épocas")
    steps(progress, clock, [1], 1)
    assert stream.buffer.getvalue().splitlines()[0] == rb"\xe9pocas" and b"1/10" in stream.buffer.getvalue()


def test_odd_numbers_are_shown_as_they_are(clock):
    stream = io.StringIO()
    steps(Progress(0, stream, clock=clock), clock, [0, 5], 9, loss=float("nan"), rate=float("inf"))
    assert stream.getvalue().splitlines()[-1] == "100%  5/0  loss nan  inf samples/s  0s left"


def test_other_workers_show_nothing(capsys):
    progress = NullProgress()
    progress.update(1, loss=0.5, rate=1.0, note="x")
    progress.message("x")
    progress.close()
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.9, "59s"), (60, "1m00s"), (185, "3m05s"), (3720, "1h02m"), (86_400 * 2 + 3 * 3600, "2d03h")],
)
def test_times_are_for_people(seconds, text):
    assert format_seconds(seconds) == text


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
def test_counts_are_for_people(number, text):
    assert format_count(number) == text
