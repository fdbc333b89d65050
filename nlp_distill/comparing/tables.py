"""What was measured, as tables and sentences for a person."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table


def models_table(found: dict[str, Any]) -> Table:
    """One row a model: score, agreement, size, time to load, memory."""
    data = found["data"]
    title = f"{escape(data['source'])}: {data['metric']} on {data['rows']:,} rows ({data['split']})" if data else None
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("model", overflow="fold")
    for name in ("engine", "score", "95 % CI", "agree", "MB", "load s", "peak MB", "of it model"):
        table.add_column(name, justify="right", no_wrap=True)
    for model in found["models"]:
        table.add_row(escape(model["name"]), *_figures(model, data))
    return table


def _figures(model: dict[str, Any], data: dict[str, Any] | None) -> list[str]:
    score, span = "–", ""
    if data and model["score"] is not None:
        score = f"{model['score'][data['metric']]:.2f}"
        span = "–".join(f"{value:.1f}" for value in model["score_ci95"])
    same = model.get("agreement")
    return [
        model["runtime"],
        score,
        span,
        "–" if same is None else f"{100 * same:.1f} %",
        f"{model['bytes'] / 1e6:.1f}",
        f"{model['load_s']:.2f}",
        f"{model['peak_memory_mb']:.0f}",
        "–" if model["model_memory_mb"] is None else f"{model['model_memory_mb']:.0f}",
    ]


def latency_table(found: dict[str, Any]) -> Table:
    """A block for each way to call, a row a model; with a model to compare with also ratios and the control."""
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("threads", "batch", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("model", overflow="fold")
    for name in ("p50 ms", "p90 ms", "rows/s", *(["times as fast"] if found["against"] else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for number, way in enumerate(found["models"][0]["latency_ms"]):
        where = [str(way[name]) for name in ("threads", "batch", "tokens")]
        ratios = {e["name"]: _ratio(e["ratio"], e["ci95"]) for e in found["ratios"] if _same_way(e, way)}
        for model in found["models"]:
            row = _latency(model["latency_ms"][number])
            against = [ratios.get(model["name"], "")] if found["against"] else []
            table.add_row(*where, escape(model["name"]), *row, *against)
            where = ["", "", ""]
        if control := next((entry for entry in found["ratios"] if _same_way(entry, way)), None):
            again = _ratio(control["control"], control["control_ci95"])
            table.add_row("", "", "", "control: the first again", "", "", "", again, style="dim")
        table.add_section()
    return table


def _same_way(entry: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(entry[name] == other[name] for name in ("threads", "batch", "tokens"))


def _latency(entry: dict[str, Any]) -> list[str]:
    return [f"{entry['p50']:.2f}", f"{entry['p90']:.2f}", f"{entry['rows_per_s']:,.0f}"]


def _ratio(value: float, span: list[float]) -> str:
    return f"{value:.2f} ({span[0]:.2f}–{span[1]:.2f})"


def findings(found: dict[str, Any]) -> list[str]:
    """What was not scored and why, what was gained or lost, and whether the ratios can be believed."""
    lines = []
    notes: dict[str, list[str]] = {}
    for model in found["models"]:
        if model.get("note"):
            notes.setdefault(model["note"], []).append(model["name"])
    lines += [f"{', '.join(names)}: {note}" for note, names in notes.items()]
    for model in found["models"]:
        if "gain" in model:
            low, high = model["gain_ci95"]
            lines.append(f"{model['name']}: {model['gain']:+.2f} points (95 % interval {low:+.2f} to {high:+.2f})")
    if found["ratios"]:
        unsteady = [entry for entry in found["ratios"] if not entry["steady"]]
        lines.append("control: the first model against itself, in two processes; 1.00 where nothing disturbs.")
        if unsteady:
            lines.append(
                f"The machine was busy: in {len(unsteady)} of {len(found['ratios'])} rows the control is more than "
                "3 % away from 1, and their ratios are as unsure. Measure again, or with more --rounds."
            )
    return lines
