"""The table at the end of a run, its verdict, and the lines that a person would type next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from nlp_distill.task import load_task


def results_table(results: dict[str, Any]) -> Table:
    """One row a variant; fits 80 columns. `kept`: per cent of the teacher's score; `agree`: per cent equal."""
    real, metric, data = results["real_sequence"], results["metric"], results["data"]
    table = Table(
        title=f"{data['source']}: {metric} on {data['rows']['evaluation']:,} rows ({data['split']})",
        caption=f"latency: batch 1, {real} tokens{_generated(results)}, "
        f"{results['variants'][0]['latency_ms'][0]['threads']} thread(s)",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("variant", no_wrap=True)
    for name in ("score", "95 % CI", "kept", "agree", "params", "MB", "p50/p90 ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for variant in results["variants"]:
        table.add_row(*_row(variant, results), style="bold" if variant["name"] == results["recommended"] else "")
    return table


def _row(variant: dict[str, Any], results: dict[str, Any]) -> list[str]:
    if variant["status"] == "refused":
        return [
            variant["name"],
            "refused",
            f"lost {variant['settings']['gate']['drop_on_selection']} points",
            *[""] * 5,
        ]
    low, high = variant["score_ci95"]
    latency = next(entry for entry in variant["latency_ms"] if entry["sequence"] == results["real_sequence"])
    return [
        variant["name"],
        f"{variant['score'][results['metric']]:.2f}",
        f"{low:.1f}–{high:.1f}",
        _percent(variant["retained"]).removesuffix(" %"),
        _percent(variant["agreement"]).removesuffix(" %"),
        f"{variant['params'] / 1e6:.1f}M",
        f"{variant['bytes'] / 1e6:.1f}",
        f"{latency['p50']:.2f}/{latency['p90']:.2f}",
    ]


def _generated(results: dict[str, Any]) -> str:
    return f" and an answer of {results['new_tokens']}" if results["new_tokens"] else ""


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def verdict(results: dict[str, Any]) -> list[str]:
    """What the numbers say, the budget's misses included."""
    by_name = {variant["name"]: variant for variant in results["variants"]}
    metric = results["metric"]
    best = by_name[results["recommended"]]
    lines = [f"Recommended: {best['name']}"]
    if teacher := by_name.get("teacher"):
        lines[0] += (
            f": {_percent(best['retained'])} of the teacher's {metric}, "
            f"{teacher['bytes'] / best['bytes']:.1f}× smaller, {_speed(teacher, best, results):.1f}× as fast"
        )
    lines[0] += "."
    if "control" in by_name:
        student, control = by_name["student"], by_name["control"]
        low, high = student["gain_over_control_ci95"]
        gain = (
            f"{student['gain_over_control']:+.2f} points against the control (95 % interval {low:+.2f} to {high:+.2f})"
        )
        if low > 0:
            lines.append(f"Distillation helped: {gain}.")
        elif teacher and control["score"][metric] >= teacher["score"][metric]:
            lines.append(f"Distillation has nothing to give here: the control is as good as the teacher; {gain}.")
        else:
            lines.append(f"Distillation made no sure difference: {gain}.")
    for name, limit in results["budget"].items():
        if not limit["met"]:
            lines.append(f"Budget missed: {name} is {limit['got']}, asked {limit['asked']}.")
    return lines


def _speed(teacher: dict[str, Any], best: dict[str, Any], results: dict[str, Any]) -> float:
    pair = [
        next(entry["p50"] for entry in variant["latency_ms"] if entry["sequence"] == results["real_sequence"])
        for variant in (teacher, best)
    ]
    return float(pair[0] / pair[1])


def next_lines(run: Path, results: dict[str, Any]) -> list[str]:
    """What a person would type next."""
    folder = shlex.quote(str(run))
    command, call = load_task(results["task"]).usage
    return [
        f"  nlp-distill predict {folder} {command}",
        f'  python -c "import nlp_distill; print(nlp_distill.load_pipeline({str(run)!r})({call}))"',
        f"  nlp-distill run {folder} --control -o distill.phases.0.epochs=8 --out {folder}-longer",
    ]
