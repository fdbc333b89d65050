"""The table at the end of a run, its verdict, and the lines that a person would type next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from nlp_distill.reports.results import lost_more
from nlp_distill.task import load_task

BESIDE = "'Another text of yours.'"
BUSY = 2.0
"""Where p90 is so many times p50, something else was running."""


def results_table(results: dict[str, Any]) -> Table:
    """One row a variant; fits 80 columns. `kept`: per cent of the teacher's score; `agree`: per cent equal."""
    real, metric, data = results["real_sequence"], results["metric"], results["data"]
    table = Table(
        title=f"{escape(data['source'])}: {metric} on {data['rows']['evaluation']:,} rows ({data['split']})",
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
    if not variant["latency_ms"]:
        return [
            variant["name"],
            variant["status"],
            refusal(variant),
            *[""] * 5,
        ]
    low, high = variant["score_ci95"]
    latency = at_real(variant, results)
    return [
        variant["name"],
        f"{variant['score'][results['metric']]:.2f}",
        f"{low:.1f}–{high:.1f}",
        per_cent(variant["retained"]).removesuffix(" %"),
        per_cent(variant["agreement"]).removesuffix(" %"),
        f"{variant['params'] / 1e6:.1f}M",
        f"{variant['bytes'] / 1e6:.1f}",
        f"{latency['p50']:.2f}/{latency['p90']:.2f}",
    ]


def _generated(results: dict[str, Any]) -> str:
    return f" and an answer of {results['new_tokens']}" if results["new_tokens"] else ""


def per_cent(share: float | None) -> str:
    """A share, of which nothing may be known."""
    return "–" if share is None else f"{100 * share:.1f} %"


def refusal(variant: dict[str, Any]) -> str:
    """Why a variant has no file."""
    lost = variant["settings"].get("gate", {}).get("drop_on_selection")
    return variant["status"] if lost is None else f"lost {lost} points"


def at_real(variant: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """A variant's latency at the length of the data."""
    found: dict[str, Any] = next(e for e in variant["latency_ms"] if e["sequence"] == results["real_sequence"])
    return found


def busy(results: dict[str, Any]) -> str | None:
    """A warning where latencies scatter as they do on a machine that has other work."""
    there = [variant for variant in results["variants"] if variant["latency_ms"]]
    worst = max(there, key=lambda variant: _scatter(variant, results))
    if _scatter(worst, results) < BUSY:
        return None
    entry = at_real(worst, results)
    return (
        f"Latencies are unsure: the machine was busy (p50 of {worst['name']} is {entry['p50']:.2f} ms, its p90 "
        f"{entry['p90']:.2f}); measure again on an idle one."
    )


def _scatter(variant: dict[str, Any], results: dict[str, Any]) -> float:
    entry = at_real(variant, results)
    return float(entry["p90"] / entry["p50"])


def verdict(results: dict[str, Any]) -> list[str]:
    """What the numbers say, the budget's misses included."""
    by_name = {variant["name"]: variant for variant in results["variants"]}
    metric = results["metric"]
    best = by_name[results["recommended"]]
    lines = [f"Recommended: {best['name']}"]
    if teacher := by_name.get("teacher"):
        lines[0] += (
            f": {per_cent(best['retained'])} of the teacher's {metric}, "
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
        elif high < 0:
            lines.append(f"Distillation did harm: {gain}.")
        elif teacher and control["score"][metric] >= teacher["score"][metric]:
            lines.append(f"Distillation has nothing to give here: the control is as good as the teacher; {gain}.")
        else:
            lines.append(f"Distillation made no sure difference: {gain}.")
    lines += [line for variant in results["variants"] if (line := _lost_here(variant, by_name, metric))]
    for name, limit in results["budget"].items():
        if not limit["met"]:
            lines.append(f"Budget missed: {name} is {limit['got']}, asked {limit['asked']}.")
    if noise := busy(results):
        lines.append(noise)
    return lines


def _lost_here(variant: dict[str, Any], by_name: dict[str, Any], metric: str) -> str | None:
    """That a form lost more on the reported rows than it might on those that judged it."""
    lost = lost_more(variant, by_name["student"], metric) if "student" in by_name else None
    if lost is None:
        return None
    allowed = variant["settings"]["gate"]["allowed"]
    sure = " (95 % interval {:.2f} to {:.2f})".format(*variant["loss_ci95"]) if "loss_ci95" in variant else ""
    return (
        f"{variant['name']} lost {lost:.2f} points against the student on the reported rows{sure}; {allowed:g} were "
        "allowed on the selection rows, which it passed."
    )


def _speed(teacher: dict[str, Any], best: dict[str, Any], results: dict[str, Any]) -> float:
    return float(at_real(teacher, results)["p50"] / at_real(best, results)["p50"])


def next_lines(run: Path, results: dict[str, Any]) -> list[str]:
    """What a person would type next."""
    folder = shlex.quote(str(run))
    command, call = load_task(results["task"]).usage
    if "text_pair" in results.get("inputs", ()):
        command, call = f"{command} --text-pair {BESIDE}", f"{{'text': {call}, 'text_pair': {BESIDE}}}"
    return [
        *([f"  {run / 'report.html'}"] if (run / "report.html").is_file() else []),
        f"  nlp-distill predict {folder} {command}",
        f'  python -c "import nlp_distill; print(nlp_distill.load_pipeline({str(run)!r})({call}))"',
        f"  nlp-distill run {folder} --control -o distill.phases.0.epochs=8 --out {folder}-longer",
    ]
