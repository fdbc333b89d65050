"""Plots as SVG: small, without a font, a script or a colour of their own; the page's style gives them all three."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

LARGE, SMALL = (380, 260), (300, 160)
"""Width and height of a plot, in its own units: about a pixel each on a page."""
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 12, 38
Size = tuple[int, int]
LOGARITHMIC = 8
"""From this ratio of the largest to the smallest value on, an axis is logarithmic."""
LETTER, LINE = 6.3, 13
"""Size of a label's letter, in the plot's units."""
SHAPES = {
    "square": "M-4.5,-4.5h9v9h-9z",
    "triangle": "M0,-5.8L5.6,4.4H-5.6z",
    "circle": "M-4.8,0a4.8,4.8 0 1,0 9.6,0a4.8,4.8 0 1,0 -9.6,0z",
    "diamond": "M0,-6L6,0L0,6L-6,0z",
}


@dataclass(frozen=True)
class Mark:
    """A variant in a plot. `kind`: of what decides its colour; `low`, `high`: of its score's interval."""

    label: str
    kind: str
    x: float
    y: float
    low: float
    high: float
    chosen: bool = False

    @property
    def shape(self) -> str:
        """Kinds differ in shape as well as in colour."""
        return {"teacher": "square", "control": "triangle", "student": "circle"}.get(self.kind, "diamond")


class Axis:
    """A scale from values to places, with round ticks."""

    def __init__(self, values: Sequence[float], start: float, end: float, log: bool | None = None) -> None:
        low, high = min(values), max(values)
        self.start, self.end = start, end
        self.log = low > 0 and high / low >= LOGARITHMIC if log is None else log
        if self.log:
            self.low, self.high = low / 1.35, high * 1.35
        else:
            room = (high - low) * 0.08 or max(abs(high) * 0.08, 0.5)
            self.low, self.high = low - room, high + room
            if low >= 0:
                self.low = max(0.0, self.low)

    def at(self, value: float) -> float:
        """The place of a value."""
        low, high, value = (
            (math.log(v) for v in (self.low, self.high, value))
            if self.log
            else (
                self.low,
                self.high,
                value,
            )
        )
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values inside the scale."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = (1, 2, 5) if self.high / self.low < 1000 else (1,)
            every = [step * 10.0**power for power in range(first, last + 1) for step in steps]
            return [value for value in every if self.low <= value <= self.high]
        rough = (self.high - self.low) / 4
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough)
        return [n * step for n in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def plain(value: float) -> str:
    """A tick's number, as short as it can be."""
    return f"{value:,.6g}"


def trade_off(marks: Sequence[Mark], title: str, x_label: str, y_label: str) -> Markup:
    """Score against a cost, with each score's interval, and the line of those that nothing beats in both."""
    across = Axis([mark.x for mark in marks], LEFT, LARGE[0] - RIGHT)
    up = Axis([v for mark in marks for v in (mark.low, mark.high)], LARGE[1] - BOTTOM, TOP, log=False)
    parts = [_frame(across, up, x_label, y_label, LARGE)]
    best = front(marks)
    if len(best) > 1:
        steps = [(across.at(best[0].x), up.at(best[0].y))]
        for before, mark in pairwise(best):
            steps += [(across.at(mark.x), up.at(before.y)), (across.at(mark.x), up.at(mark.y))]
        parts.append(_line(steps, "front"))
    # The chosen one last, on top of all; a student's circle leaves the corners of an export's diamond to be seen.
    for mark in sorted(marks, key=lambda mark: (mark.chosen, mark.kind == "student")):
        parts.append(_mark(mark, across, up))
    parts += _labels([(mark.label, across.at(mark.x), up.at(mark.y), mark.chosen) for mark in marks], LARGE)
    told = "; ".join(f"{m.label}: {y_label} {m.y:.2f} at {plain(round(m.x, 3))} ({x_label})" for m in marks)
    return _svg(title, told, LARGE, parts)


def front(marks: Sequence[Mark]) -> list[Mark]:
    """The marks that no other beats in score and cost, the cheapest first (Pareto)."""
    found: list[Mark] = []
    for mark in sorted(marks, key=lambda mark: (mark.x, -mark.y)):
        if not found or mark.y > found[-1].y:
            found.append(mark)
    return found


@dataclass(frozen=True)
class Line:
    """A curve and points on it."""

    label: str
    kind: str
    points: Sequence[tuple[float, float]]
    dots: Sequence[tuple[float, float]] = ()


def curves(lines: Sequence[Line], title: str, x_label: str, y_label: str, size: Size = LARGE) -> Markup:
    """Curves over epochs; several are named at their ends."""
    everything = [point for line in lines for point in (*line.points, *line.dots)]
    across = Axis([0.0, *(x for x, _ in everything)], LEFT, size[0] - RIGHT, log=False)
    across.low, across.high = 0.0, max(x for x, _ in everything) * 1.02
    up = Axis([y for _, y in everything], size[1] - BOTTOM, TOP, log=False)
    parts = [_frame(across, up, x_label, y_label, size)]
    for line in lines:
        placed = [(across.at(x), up.at(y)) for x, y in line.points]
        parts.append(_line(placed, f"curve {line.kind}"))
        for x, y in line.dots:
            parts.append(
                Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(
                    line.kind, across.at(x), up.at(y)
                )
            )
    if len(lines) > 1:
        ends = [(line, line.points[-1]) for line in lines if line.points]
        parts += _labels([(line.label, across.at(x), up.at(y), False) for line, (x, y) in ends], size)
    last = [(line, (line.dots or line.points)) for line in lines]
    told = "; ".join(f"{line.label}: from {p[0][1]:.4g} to {p[-1][1]:.4g}" for line, p in last if p)
    return _svg(title, told, size, parts)


def _svg(title: str, told: str, size: Size, parts: Sequence[Markup]) -> Markup:
    opening = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}. {}">').format(*size, title, told)
    return opening + Markup("").join(parts) + Markup("</svg>")


def _frame(across: Axis, up: Axis, x_label: str, y_label: str, size: Size) -> Markup:
    width, height = size
    floor = height - BOTTOM
    parts = []
    for value in up.ticks():
        y = up.at(value)
        parts.append(Markup('<path class="grid" d="M{:.1f},{:.1f}H{:.1f}"/>').format(LEFT, y, width - RIGHT))
        parts.append(
            Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(LEFT - 6, y + 4, plain(value))
        )
    for value in across.ticks():
        x = across.at(value)
        parts.append(Markup('<path class="tick" d="M{:.1f},{}v4"/>').format(x, floor))
        parts.append(
            Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(x, floor + 16, plain(value))
        )
    parts.append(Markup('<path class="axis" d="M{},{}H{}"/>').format(LEFT, floor, width - RIGHT))
    middle = (LEFT + width - RIGHT) / 2
    parts.append(
        Markup('<text class="name" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
            middle, height - 5, x_label
        )
    )
    place = (TOP + floor) / 2
    turned = Markup('<text class="name" transform="translate(10,{:.1f}) rotate(-90)" text-anchor="middle">{}</text>')
    parts.append(turned.format(place, y_label))
    return Markup("").join(parts)


def _line(points: Sequence[tuple[float, float]], kind: str) -> Markup:
    path = "L".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return Markup('<path class="{}" d="M{}"/>').format(kind, path) if points else Markup("")


def _mark(mark: Mark, across: Axis, up: Axis) -> Markup:
    x = across.at(mark.x)
    whisker = Markup('<path class="interval {}" d="M{:.1f},{:.1f}V{:.1f}"/>').format(
        mark.kind, x, up.at(mark.low), up.at(mark.high)
    )
    ring = Markup('<circle class="ring" cx="{:.1f}" cy="{:.1f}" r="9.5"/>').format(x, up.at(mark.y))
    shape = Markup('<path class="mark {}" transform="translate({:.1f},{:.1f})" d="{}"/>').format(
        mark.kind, x, up.at(mark.y), SHAPES[mark.shape]
    )
    return whisker + (ring if mark.chosen else Markup("")) + shape


def _labels(places: Sequence[tuple[str, float, float, bool]], size: Size) -> list[Markup]:
    """Each label where it covers the least: beside its mark, above or below it."""
    taken = [(x - 6, y - 6, x + 6, y + 6) for _, x, y, _ in places]
    parts = []
    for label, x, y, chosen in places:
        wide = len(label) * LETTER
        ways = [
            *((x + 12, y + 4 + shift, "start") for shift in (0, -LINE, LINE, -2 * LINE, 2 * LINE)),
            *((x - 12, y + 4 + shift, "end") for shift in (0, -LINE, LINE, -2 * LINE, 2 * LINE)),
            *((x, y + shift, "middle") for shift in (-14, 22, -27, 35)),
        ]
        boxes = {way: _box(*way, wide) for way in ways}
        best = min(ways, key=lambda way: (_trouble(boxes[way], taken, size), ways.index(way)))
        taken.append(boxes[best])
        parts.append(
            Markup('<text class="label{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
                " chosen" if chosen else "", best[0], best[1], best[2], label
            )
        )
    return parts


Box = tuple[float, float, float, float]


def _box(x: float, y: float, anchor: str, wide: float) -> Box:
    left = {"start": x, "end": x - wide, "middle": x - wide / 2}[anchor]
    return left, y - 11, left + wide, y + 3


def _trouble(box: Box, taken: Sequence[Box], size: Size) -> float:
    """How much of a label lies outside of the plot or on something else."""
    left, top, right, bottom = box
    outside = max(0.0, LEFT - left) + max(0.0, right - size[0]) + max(0.0, TOP - 8 - top) * 9
    outside += max(0.0, bottom - (size[1] - BOTTOM)) * 9
    covered = sum(
        max(0.0, min(right, r) - max(left, x)) * max(0.0, min(bottom, b) - max(top, y)) for x, y, r, b in taken
    )
    return covered + outside * 14
