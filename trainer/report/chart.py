"""Line charts as SVG, with colors defined by the page's style sheet."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.logging.progress import format_count
from trainer.report.markup import Markup, element
from trainer.report.runs import HUGE

WIDTH, HEIGHT = 400, 230
TOP, RIGHT, BOTTOM = 10, 14, 40
CHARACTER = 6.8  # width of the widest digit at the font size of labels
COLOURS = 8  # number of colors in the style sheet
TICKS = 5
MOST_POINTS = 300
MOST_MARKS = 60
TINY = 1e-290  # quotients of larger numbers stay within float64


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: name shown when the pointer is over one of the line's markers.
        colour: index of the color; colors repeat after COLOURS.
        x: x coordinates of the points, ascending.
        y: y coordinates of the points; NaN leaves a gap in the line.
        is_thin: whether this is a background line without markers.
    """

    name: str
    colour: int
    x: Sequence[float]
    y: Sequence[float]
    is_thin: bool = False


@dataclass(frozen=True)
class Axis:
    """Range and labels of an axis.

    Attributes:
        label: text below the horizontal axis; unused for the vertical axis, which the title describes.
        low: value that the axis must extend down to.
        high: value that the axis must extend up to.
        top: upper limit of the vertical axis; thin lines above it are clipped.
        show: formats a tick value; None uses as many digits as needed to distinguish the ticks.
    """

    label: str = ""
    low: float = math.inf
    high: float = -math.inf
    top: float = math.inf
    show: Callable[[float], str] | None = None


def line_chart(title: str, lines: Sequence[Line], x: Axis, y: Axis, *, diagonal: bool = False) -> Markup | None:
    """Draws a chart with a title.

    Args:
        title: text above the chart.
        lines: the lines; long ones are downsampled to means of neighboring points.
        x: the horizontal axis.
        y: the vertical axis.
        diagonal: whether to draw the line x = y.

    Returns:
        The chart, or None if there are no points to show.
    """
    drawn = [_thinned(line) for line in lines]
    points = [(a, b) for line in drawn for a, b in zip(line.x, line.y, strict=True) if _is_shown(a, b)]
    if not points:
        return None
    start, end = min(x.low, *(a for a, _ in points)), max(x.high, *(a for a, _ in points))
    x_ticks = [value for value in ticks(start, end) if start <= value <= end + 1e-9 * (end - start)] or [start]
    y_ticks = ticks(min(y.low, *(b for _, b in points)), max(y.high, *(min(b, y.top) for _, b in points)))
    x_labels, y_labels = _labels(x_ticks, x.show), _labels(y_ticks, y.show)
    left = 12 + CHARACTER * max(map(len, y_labels))
    right = WIDTH - RIGHT - CHARACTER / 2 * len(x_labels[-1])

    def place_x(value: float) -> float:
        return left + (value - start) / ((end - start) or 1) * (right - left)

    def place_y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - BOTTOM - TOP)

    parts: list[Markup] = []
    for value, label in zip(y_ticks, y_labels, strict=True):
        parts.append(_rule(left, place_y(value), right, place_y(value), "grid"))
        parts.append(_label(left - 6, place_y(value) + 4, label, "end"))
    for value, label in zip(x_ticks, x_labels, strict=True):
        parts.append(_label(place_x(value), HEIGHT - BOTTOM + 17, label, "middle"))
    parts.append(_label((left + right) / 2, HEIGHT - 5, x.label, "middle"))
    if diagonal:
        low, high = max(start, y_ticks[0]), min(end, y_ticks[-1])
        parts.append(_rule(place_x(low), place_y(low), place_x(high), place_y(high), "diagonal"))
    thin = [part for line in drawn if line.is_thin for part in _drawn(line, place_x, place_y)]
    # A nested svg element clips the thin lines at the top of the chart.
    parts.append(
        element("svg", *thin, y=TOP, width=WIDTH, height=HEIGHT - TOP, viewBox=f"0 {TOP} {WIDTH} {HEIGHT - TOP}")
    )
    for line in drawn:
        parts += [] if line.is_thin else _drawn(line, place_x, place_y)
    svg = element("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title)
    return element("figure", element("figcaption", title), svg)


def ticks(low: float, high: float) -> list[float]:
    """Returns about TICKS round numbers, at least two, the first at most `low` and the last at least `high`."""
    spread = high - low
    if spread <= max(1e-9 * max(abs(low), abs(high)), TINY):
        spread = abs(low) if abs(low) > TINY else 1.0
    power = 10.0 ** math.floor(math.log10(spread / TICKS))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10, 20) if spread / (power * factor) <= TICKS)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _labels(values: Sequence[float], show: Callable[[float], str] | None) -> list[str]:
    """Formats ticks, all with the number of digits needed to distinguish them."""
    if show is not None:
        return [show(value) for value in values]
    largest, step = max(map(abs, values)), values[1] - values[0] if len(values) > 1 else abs(values[0]) or 1.0
    if largest >= 10_000 or step < 1e-5:
        return [format_count(value) for value in values]
    digits = next((digits for digits in range(8) if math.isclose(round(step, digits), step, rel_tol=1e-6)), 8)
    return [f"{value:.{digits}f}" for value in values]


def _thinned(line: Line) -> Line:
    """Downsamples a line to at most MOST_POINTS points, each the mean of neighboring points."""
    stride = -(-len(line.x) // MOST_POINTS)
    if stride <= 1:
        return line
    edges = range(0, len(line.x), stride)
    x, y = (
        np.array([np.mean(values[edge : edge + stride]) for edge in edges]).tolist()
        for values in (np.asarray(line.x, float), np.asarray(line.y, float))
    )
    return Line(line.name, line.colour, x, y, line.is_thin)


def _drawn(line: Line, place_x: Callable[[float], float], place_y: Callable[[float], float]) -> list[Markup]:
    """Draws a line in segments between its gaps, with a marker at each point that shows its values on hover."""
    look = f"c{line.colour % COLOURS}"
    pieces: list[list[tuple[float, float]]] = [[]]
    for a, b in zip(line.x, line.y, strict=True):
        if _is_shown(a, b):
            pieces[-1].append((a, b))
        elif pieces[-1]:
            pieces.append([])
    parts = [
        element(
            "polyline",
            points=" ".join(f"{place_x(a):.1f},{place_y(b):.1f}" for a, b in piece),
            class_=f"{look} thin" if line.is_thin else look,
        )
        for piece in pieces
        if len(piece) > 1
    ]
    known = [point for piece in pieces for point in piece]
    if not line.is_thin and len(known) <= MOST_MARKS or len(known) == 1:
        parts += [
            element(
                "circle",
                element("title", f"{line.name}: {a:.6g}, {b:.6g}".removeprefix(": ")),
                cx=f"{place_x(a):.1f}",
                cy=f"{place_y(b):.1f}",
                r=3,
                class_=look,
            )
            for a, b in known
        ]
    return parts


def _is_shown(a: float, b: float) -> bool:
    return abs(a) < HUGE and abs(b) < HUGE  # false for NaN


def _rule(x1: float, y1: float, x2: float, y2: float, look: str) -> Markup:
    return element("line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}", class_=look)


def _label(x: float, y: float, words: str, anchor: str) -> Markup:
    return element("text", words, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)
