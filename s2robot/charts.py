"""Charts as inline SVG text: no script, no font, no request, readable on light and dark pages.

Text and axes take the page's own text colour (`currentColor`); series colours are CSS variables `--series-1`, ...
with mid-tone defaults, so that a page may choose better ones for its dark mode.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#2f78d0", "#d9730d", "#2e9e6b", "#b4479f", "#8a7a2f", "#c23b4e", "#2b9aa3", "#6a5acd", "#7d7d7d")
WIDTH, HEIGHT = 640, 330
LEFT, RIGHT, TOP, BOTTOM = 66, 610, 64, 270  # the plot's box; the rest is for words
ROW, MARK, LEAST = 20, 30, 6.5  # of a legend: the height of a row, the width of a mark, and of a letter at least
MOST_POINTS = 600  # a series longer than this is drawn by its extremes: no eye sees the difference


@dataclass(frozen=True)
class Series:
    """One line: its name in the legend, and its points. Values that are not finite are left out.

    low, high: the ends of each point's interval, drawn as a whisker.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Dot:
    """One mark: where, what it says when pointed at, and whether it is a plain disc or a crossed one."""

    x: float
    y: float
    label: str
    crossed: bool = False


@dataclass(frozen=True)
class Mark:
    """One measured value with its interval, and its name written beside it."""

    x: float
    y: float
    low: float
    high: float
    name: str


def line_chart_svg(series: Sequence[Series], title: str, x_label: str, y_label: str, *, log_y: bool = False) -> str:
    """Lines over a common pair of axes. With `log_y`, values of zero and below are left out."""
    points = [_drawable(s, log_y) for s in series]
    every = [point for line in points for point in line]
    whiskers = [_whiskers(s, log_y) for s in series]
    ends = [(x, y) for each in whiskers for x, *pair in each for y in pair]
    axes = _Axes.around([*every, *ends], log_y=log_y)
    parts, legend = axes.svg(x_label, y_label), _legend([s.name for s in series], y_label)
    for index, line in enumerate(points):
        colour = _colour(index)
        path = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in _thin(line))
        parts.append(
            f'<polyline points="{path}" fill="none" style="stroke:{colour}" stroke-width="2" stroke-linejoin="round"/>'
        )
        if len(line) <= 40:
            parts += [_disc(axes.x(x), axes.y(y), colour=colour, radius=3) for x, y in line]
        parts += [_whisker(axes, x, low, high, colour) for x, low, high in whiskers[index]]
    return _svg(title, parts, legend)


def mark_chart_svg(marks: Sequence[Mark], title: str, x_label: str, y_label: str) -> str:
    """One value a mark, each with its interval and its name; colours go by the order given, not by place."""
    ends = [(mark.x, y) for mark in marks for y in (mark.low, mark.high)]
    axes = _Axes.around(ends, floor=0.0)
    parts = axes.svg(x_label, y_label)
    named: list[tuple[float, float, float]] = []  # of the names that stand: from where to where, and how high
    for index in sorted(range(len(marks)), key=lambda k: marks[k].y):  # upwards, so that names pile up as marks do
        mark = marks[index]
        x, y, colour = axes.x(mark.x), axes.y(mark.y), _colour(index)
        parts += [_whisker(axes, mark.x, mark.low, mark.high, colour), _disc(x, y, colour=colour)]
        begins = x < (LEFT + RIGHT) / 2
        width, at = 8 * len(mark.name), x + 8 if begins else x - 8
        left, height = at if begins else at - width, y + 4
        for other_left, other_right, other in named:
            if left < other_right and other_left < left + width:
                height = min(height, other - 14)
        named.append((left, left + width, height))
        parts.append(_text(at, height, mark.name, "start" if begins else "end"))
    return _svg(title, parts)


def dot_chart_svg(dots: Sequence[Dot], names: tuple[str, str], title: str, x_label: str, y_label: str) -> str:
    """One mark a thing. `names` says in the legend what a disc and what a cross means."""
    axes = _Axes.around([(dot.x, dot.y) for dot in dots], floor=0.0)
    counted = all(dot.x == round(dot.x) for dot in dots)
    parts, legend = axes.svg(x_label, y_label, counted=counted), _legend(names, y_label, crossed=1)
    for dot in dots:
        x, y, tip = axes.x(dot.x), axes.y(dot.y), f"<title>{escape(dot.label)}</title>"
        mark = _cross(x, y, tip) if dot.crossed else _disc(x, y, tip)
        parts.append(mark)
    return _svg(title, parts, legend)


@dataclass(frozen=True)
class _Axes:
    """Data ranges, and where they lie in the box."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]  # in log10 where log_y
    log_y: bool

    @classmethod
    def around(cls, points: Iterable[tuple[float, float]], *, log_y: bool = False, floor: float | None = None) -> _Axes:
        points = list(points) or [(0.0, 1.0), (1.0, 1.0)]
        xs, ys = [x for x, _ in points], [math.log10(y) if log_y else y for _, y in points]
        low = min(ys) if floor is None else min(floor, *ys)
        x_margin = 0.0 if floor is None else 0.03  # marks are wider than the points of a line
        return cls(_widen(min(xs), max(xs), x_margin), _widen(low, max(ys), 0.05), log_y)

    def x(self, value: float) -> float:
        low, high = self.x_range
        return LEFT + (value - low) / (high - low) * (RIGHT - LEFT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        value = math.log10(value) if self.log_y else value
        return BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP)

    def svg(self, x_label: str, y_label: str, *, counted: bool = False) -> list[str]:
        """Grid, ticks and labels; counted: x is of whole things."""
        y_ticks = _log_ticks(*self.y_range) if self.log_y else _ticks(*self.y_range)
        parts = [_text(0, TOP - 20, y_label), _text((LEFT + RIGHT) / 2, HEIGHT - 8, x_label, "middle")]
        for value in y_ticks:
            y = self.y(value)
            parts.append(f'<path d="M{LEFT} {y:.1f}H{RIGHT}" stroke="currentColor" stroke-opacity=".15"/>')
            parts.append(_text(LEFT - 8, y + 5, _number(value), "end"))
        parts.append(f'<path d="M{LEFT} {BOTTOM}H{RIGHT}" stroke="currentColor" stroke-opacity=".5"/>')
        x_ticks = _ticks(*self.x_range, least=float(counted))
        parts += [_text(self.x(value), BOTTOM + 22, _number(value), "middle") for value in x_ticks]
        return parts


def as_file(svg: str) -> str:
    """A chart that is no part of a page: alone it must say that it is SVG, and bring its own paper and ink."""
    alone = 'xmlns="http://www.w3.org/2000/svg" style="background:#fff;color:#1b1f24"'
    return svg.replace("<svg ", f"<svg {alone} ", 1)


def _svg(title: str, parts: Sequence[str], legend: Sequence[Sequence[str]] = ()) -> str:
    """The plot, below as many rows of its legend as that has."""
    lower = ROW * max(0, len(legend) - 1)
    plot = "".join(parts) if not lower else f'<g transform="translate(0 {lower})">{"".join(parts)}</g>'
    names = "".join(mark for row in legend for mark in row)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT + lower}" role="img" aria-label="{escape(title)}"'
        f' font-size="13" font-family="system-ui, sans-serif">{_text(0, 16, title, weight="600")}{plot}{names}</svg>'
    )


def _text(x: float, y: float, words: str, anchor: str = "start", weight: str = "400") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="currentColor">'
        f"{escape(words)}</text>"
    )


def _legend(names: Sequence[str], y_label: str, crossed: int = -1) -> list[list[str]]:
    """Rows in the upper right, last name last; only needed when there is something to tell apart."""
    if len(names) < 2:
        return []
    room, used = RIGHT - 8 * len(y_label), 0.0  # the label stands at the left of the last row
    rows: list[list[int]] = [[]]
    for index, name in enumerate(names):
        width = MARK + LEAST * len(name)
        if rows[-1] and used + width > room:
            rows.append([])
            used = 0.0
        rows[-1].append(index)
        used += width
    return [_legend_row({k: names[k] for k in row}, room, TOP + ROW * r, crossed) for r, row in enumerate(rows)]


def _legend_row(names: dict[int, str], room: float, top: float, crossed: int) -> list[str]:
    parts, right = [], float(RIGHT)
    beside = (room - MARK * len(names)) / max(1, len("".join(names.values())))
    letter = min(9.5, max(LEAST, beside))  # room for the larger text of narrow screens
    for index, name in reversed(names.items()):
        right -= letter * len(name)
        parts.append(_text(right, top - 20, name))
        right -= 13
        parts.append(_cross(right, top - 25) if index == crossed else _disc(right, top - 25, colour=_colour(index)))
        right -= MARK - 13
    return parts


def _whisker(axes: _Axes, x: float, low: float, high: float, colour: str) -> str:
    top, bottom = axes.y(high), axes.y(low)
    return f'<path d="M{axes.x(x):.1f} {top:.1f}V{bottom:.1f}" style="stroke:{colour}" stroke-opacity=".6"/>'


def _disc(x: float, y: float, inside: str = "", colour: str | None = None, radius: int = 5) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" style="fill:{colour or _colour(0)}">{inside}</circle>'


def _cross(x: float, y: float, inside: str = "") -> str:
    return (
        f'<path d="M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10" style="stroke:{_colour(1)}" stroke-width="3">'
        f"{inside}</path>"
    )


def _colour(index: int) -> str:
    index %= len(COLOURS)
    return f"var(--series-{index + 1},{COLOURS[index]})"


def _drawable(series: Series, log_y: bool) -> list[tuple[float, float]]:
    points = zip(series.x, series.y, strict=True)
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log_y)]


def _whiskers(series: Series, log_y: bool) -> list[tuple[float, float, float]]:
    """(x, low, high) of every point that has both ends; where the axis cannot go down to `low`, none."""
    each = zip(series.x, series.low, series.high, strict=False)
    return [w for w in each if all(map(math.isfinite, w)) and (w[1] > 0 or not log_y)]


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Keep each stretch's lowest and highest point: spikes stay, the file stays small."""
    if len(points) <= MOST_POINTS:
        return points
    stride = math.ceil(2 * len(points) / MOST_POINTS)
    kept = {0, len(points) - 1}
    for start in range(0, len(points), stride):
        stretch = range(start, min(start + stride, len(points)))
        kept |= {extreme(stretch, key=lambda place: points[place][1]) for extreme in (min, max)}
    return [points[i] for i in sorted(kept)]


def _widen(low: float, high: float, margin: float) -> tuple[float, float]:
    """Room above and below (a range that starts at zero keeps its zero); never an empty range."""
    if low == high:
        return low - 0.5, high + 0.5
    room = margin * (high - low)
    return (low - room if low else low), high + room


def _ticks(low: float, high: float, about: int = 5, least: float = 0.0) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart, and no nearer than `least`) within a range."""
    rough = max((high - low) / about, least)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.9g}") for i in range(first, last + 1)]  # 0.3, not 0.30000000000000004


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten; also their doubles and fives where fewer than three powers would show."""
    bottom, top = math.floor(low), math.ceil(high)
    powers = range(bottom, top + 1, max(1, (top - bottom) // 8))
    multiples = (1,) if sum(low <= p <= high for p in powers) >= 3 else (1, 2, 5)
    ticks = [m * 10.0**p for p in powers for m in multiples]
    return [tick for tick in ticks if low - 1e-9 <= math.log10(tick) <= high + 1e-9]


def _number(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10_000 and value % 100 == 0 else f"{value:g}"
