"""The report's first plot, score against latency, as a file of its own: with colours that need no page."""

from __future__ import annotations

from typing import Any

from nlp_distill.reports.document import trade_offs
from nlp_distill.reports.plots import LARGE

SCALE = 1.9
STYLE = """<style>
text { font: 11px system-ui, sans-serif; fill: #59616b } .label { fill: #1b1f24; paint-order: stroke; stroke: #fff;
stroke-width: 3px } .chosen { font-weight: 650 } .grid, .axis, .tick, .front, .interval, .ring { fill: none }
.grid { stroke: #dcdfe3 } .axis, .tick { stroke: #59616b } .front { stroke: #59616b; stroke-dasharray: 4 3 }
.teacher { color: #59616b } .control { color: #a05a00 } .student { color: #1f5fbf } .export { color: #0b7a5b }
.mark { fill: currentColor; stroke: #fff } .interval { stroke: currentColor; opacity: .55 } .ring { stroke: #1b1f24 }
</style>"""


def pareto_svg(results: dict[str, Any]) -> str:
    """Every variant with figures: its score with the 95 % interval, its latency, and the line that nothing beats."""
    (_, drawn), *_ = trade_offs(results)
    opening, _, rest = str(drawn).partition(">")
    width, height = (round(side * SCALE) for side in LARGE)
    opening = opening.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" ', 1)
    return f'{opening}>{STYLE}<rect width="100%" height="100%" fill="#fff"/>{rest}\n'
