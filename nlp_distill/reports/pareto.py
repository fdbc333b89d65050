"""Score against latency as a picture: SVG, drawn by hand, the same bytes for the same results."""

from __future__ import annotations

import math
from html import escape
from typing import Any

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 44, 52
COLOURS = {"teacher": "#8a4b08", "control": "#6b7280", "student": "#1d4ed8"}


def latency(variant: dict[str, Any], results: dict[str, Any]) -> dict[str, Any] | None:
    """A variant's latency at the data's own length; None where it was not measured."""
    entries = variant["latency_ms"] or []
    return next((entry for entry in entries if entry["sequence"] == results["real_sequence"]), None)


def frontier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points, (latency, score), that no other beats in both, the fastest first (Pareto)."""
    best: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best


def pareto_svg(results: dict[str, Any]) -> str:
    """Every variant that passed: its score with the 95 % interval, its latency (log scale), its size as an area."""
    shown = [(v, found["p50"]) for v in results["variants"] if v["score"] and (found := latency(v, results))]
    metric = results["metric"]
    low = min(v["score_ci95"][0] for v, _ in shown)
    high = max(v["score_ci95"][1] for v, _ in shown)
    edges = [math.log10(ms) for _, ms in shown]
    first, last = min(edges) - 0.12, max(edges) + 0.12

    def x(ms: float) -> float:
        return LEFT + (math.log10(ms) - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y(score: float) -> float:
        return TOP + float(high - score) / ((high - low) or 1.0) * (HEIGHT - TOP - BOTTOM)

    parts = [*_axes(metric, results, x, y, (10**first, 10**last), (low, high))]
    line = " ".join(
        f"{x(ms):.1f},{y(score):.1f}" for ms, score in frontier([(ms, v["score"][metric]) for v, ms in shown])
    )
    parts.append(f'<polyline points="{line}" fill="none" stroke="#1d4ed8" stroke-dasharray="5 4" opacity="0.6"/>')
    largest = max(v["bytes"] for v, _ in shown)
    drawn = [(v, x(ms), 4 + 9 * math.sqrt(v["bytes"] / largest)) for v, ms in sorted(shown, key=lambda pair: pair[1])]
    parts += [part for variant, place, radius in drawn for part in _point(variant, metric, place, y, radius)]
    # Over all circles, above and below in turn: neighbours share the room.
    parts += [_label(v, metric, place, y, radius, bool(n % 2)) for n, (v, place, radius) in enumerate(drawn)]
    about = escape(f"{metric} against latency of {len(shown)} variants")
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="{about}" font-family="system-ui, sans-serif" font-size="12">'
    )
    return "\n".join([head, f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>', *parts, "</svg>", ""])


def _axes(metric: str, results: dict[str, Any], x: Any, y: Any, times: Any, scores: Any) -> list[str]:
    """Ticks, grid and titles."""
    threads = results["variants"][0]["latency_ms"][0]["threads"]
    below = f"median latency in ms, batch 1, {results['real_sequence']} tokens, {threads} thread(s), log scale"
    parts = [f'<text x="{LEFT}" y="20" fill="#111827">{escape(metric)} with 95 % interval; area: size</text>']
    middle = f'x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 12}"'
    parts.append(f'<text {middle} fill="#374151" text-anchor="middle">{below}</text>')
    for tick in _log_ticks(*times):
        parts.append(
            f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#e5e7eb"/>'
        )
        place = f'x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 18}"'
        parts.append(f'<text {place} fill="#374151" text-anchor="middle">{tick:g}</text>')
    for tick in _ticks(*scores):
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" fill="#374151" text-anchor="end">{tick:g}</text>')
    return parts


def _point(variant: dict[str, Any], metric: str, x: float, y: Any, radius: float) -> list[str]:
    colour = COLOURS.get(variant["name"], COLOURS["student"])
    score, (low, high) = variant["score"][metric], variant["score_ci95"]
    return [
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y(high):.1f}" y2="{y(low):.1f}" stroke="{colour}" opacity="0.5"/>',
        f'<circle cx="{x:.1f}" cy="{y(score):.1f}" r="{radius:.1f}" fill="{colour}" fill-opacity="0.75"/>',
    ]


def _label(variant: dict[str, Any], metric: str, x: float, y: Any, radius: float, above: bool) -> str:
    score = variant["score"][metric]
    told = f"{variant['name']}: {score:.2f}, {variant['bytes'] / 1e6:.1f} MB"
    side = "start" if x < WIDTH * 0.2 else "end" if x > WIDTH * 0.8 else "middle"
    place = y(score) - radius - 6 if above else y(score) + radius + 15
    return (
        f'<text x="{x:.1f}" y="{place:.1f}" fill="#111827" text-anchor="{side}" paint-order="stroke" stroke="#ffffff" '
        f'stroke-width="3">{escape(told)}</text>'
    )


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two."""
    rough = (high - low) / 5 or 1.0
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step)
    return [round(number * step, 6) for number in range(first, math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [tick for power in powers for factor in (1, 2, 5) if low <= (tick := factor * 10.0**power) <= high]
