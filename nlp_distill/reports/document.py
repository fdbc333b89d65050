"""What a report says, as plain data: every number is formatted here once, for the page and for Markdown alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from nlp_distill.errors import shown
from nlp_distill.reports.curves import Training, trainings
from nlp_distill.reports.insights import disagreements, grouped, mixed
from nlp_distill.reports.plots import SMALL, Line, Mark, curves, trade_off
from nlp_distill.reports.table import at_real, per_cent, refusal, verdict
from nlp_distill.rundir import RunDir, read_json

if TYPE_CHECKING:
    from datasets import Dataset
    from markupsafe import Markup

    from nlp_distill.task import Task

LIMITS = {
    "latency_ms": ("Latency, p50", "ms"),
    "size_mb": ("Size", "MB"),
    "memory_mb": ("Peak memory", "MB"),
    "score_drop": ("Score lost against the teacher", "points"),
}
STAGES = {
    "teacher": "Teacher",
    "distill": "Student",
    "control": "Control",
}


def document(run: RunDir, task: Task, rows: Dataset | None) -> dict[str, Any]:
    """All that a report shows of a finished run. `rows`: those that scores are of; None where they cannot be had."""
    results = read_json(run.results)
    lead, *more = verdict(results)
    heard = trainings(run.events())
    return {
        "name": run.path.resolve().name,
        "task": results["task"].replace("_", " "),
        "source": results["data"]["source"],
        "metric": results["metric"],
        "lead": lead,
        "findings": more,
        "tiles": _tiles(results),
        "variants": _variants(results),
        "table_note": _table_note(results),
        "plots": trade_offs(results),
        "curves": [part for part in (_curves(training) for training in heard) if part],
        "selection": _selection(heard, results["metric"]),
        "insights": _insights(run, task, rows, results),
        "budget": [_limit(name, limit) for name, limit in results["budget"].items()],
        "making": _making(results),
        "environment": _environment(results),
        "timings": [(stage, seconds(spent)) for stage, spent in results["timings_s"].items() if spent >= 0.05],
        "command": "nlp-distill run recipe.yaml",
        "recipe_sha256": results["recipe_sha256"],
        "recipe": run.recipe.read_text(encoding="utf-8"),
        "written": time.strftime("%Y-%m-%d", time.gmtime(run.results.stat().st_mtime)),
    }


def seconds(spent: float) -> str:
    """A duration."""
    minutes, rest = divmod(round(spent), 60)
    return f"{minutes} min {rest} s" if minutes else f"{spent:.1f} s"


def _tiles(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Name, figure and what it stands beside, of the recommended variant."""
    by_name = {variant["name"]: variant for variant in results["variants"]}
    best, teacher, metric = by_name[results["recommended"]], by_name.get("teacher"), results["metric"]
    score, size = f"{best['score'][metric]:.2f}", f"{best['bytes'] / 1e6:.1f} MB"
    p50 = f"{at_real(best, results)['p50']:.2f} ms"
    low, high = best["score_ci95"]
    tiles = [
        (metric, score, f"{low:.1f} to {high:.1f}"),
        ("size", size, "all files that it needs"),
        ("latency", p50, f"p50, {results['real_sequence']} tokens"),
    ]
    if teacher is None:
        return tiles
    tiles[0] = (metric, score, f"teacher {teacher['score'][metric]:.2f}")
    tiles[1] = ("size", size, f"teacher {teacher['bytes'] / 1e6:.1f} MB")
    tiles[2] = ("latency", p50, f"teacher {at_real(teacher, results)['p50']:.2f} ms")
    if best["agreement"] is not None:
        tiles.append(("same answers", per_cent(best["agreement"]), "as the teacher"))
    return tiles


Cell = tuple[str, str]
"""A figure, and what stands smaller beside it."""
COLUMNS: list[tuple[str, Callable[[dict[str, Any], dict[str, Any]], Cell]]] = [
    ("score", lambda v, r: (f"{v['score'][r['metric']]:.2f}", _span(v["score_ci95"]))),
    ("kept", lambda v, r: (per_cent(v["retained"]), "")),
    ("points lost", lambda v, r: _lost(v)),
    ("same as teacher", lambda v, r: (per_cent(v["agreement"]), "")),
    ("changed by export", lambda v, r: (per_cent(v["flips"]), "")),
    ("MB", lambda v, r: (f"{v['bytes'] / 1e6:.2f}", "")),
    ("p50 ms", lambda v, r: (f"{at_real(v, r)['p50']:.2f}", f"p90 {at_real(v, r)['p90']:.2f}")),
    ("memory MB", lambda v, r: (f"{v['peak_memory_mb']:.0f}", "")),
    ("parameters", lambda v, r: (f"{v['params'] / 1e6:.1f} M", "")),
]


def _span(interval: list[float]) -> str:
    return " to ".join(f"{value:.2f}" for value in interval).replace("-", "−")


def _lost(variant: dict[str, Any]) -> Cell:
    if variant["drop"] is None or variant["name"] == "teacher":
        return "–", ""
    return f"{variant['drop']:.2f}".replace("-", "−"), _span(variant["drop_ci95"])


def _variants(results: dict[str, Any]) -> dict[str, Any]:
    """The table: columns, and a row a variant; those without a file say why instead."""
    rows = []
    for variant in results["variants"]:
        made = bool(variant["latency_ms"])
        rows.append(
            {
                "name": variant["name"],
                "kind": _kind(variant["name"]),
                "status": variant["status"],
                "recommended": variant["name"] == results["recommended"],
                "cells": [show(variant, results) for _, show in COLUMNS] if made else [],
                "reason": "" if made else refusal(variant),
                "settings": _flat({name: it for name, it in variant["settings"].items() if name != "attempts"}),
                "attempts": [_attempt(tried) for tried in variant["settings"].get("attempts", [])],
            }
        )
    others = [name for name in results["variants"][0]["score"] if name != results["metric"]]
    scored = [variant for variant in results["variants"] if variant["score"] is not None]
    scores = [(variant["name"], [f"{variant['score'][name]:.2f}" for name in others]) for variant in scored]
    return {"columns": [name for name, _ in COLUMNS], "rows": rows, "metrics": others, "scores": scores}


def _kind(name: str) -> str:
    return name if name in ("teacher", "control", "student") else "export"


def _flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Settings, however deep, as names and texts."""
    if isinstance(value, dict):
        return [pair for name, child in value.items() for pair in _flat(child, f"{path}.{name}" if path else str(name))]
    return [(path, shown(value))]


def _attempt(tried: dict[str, Any]) -> str:
    """How a form was made once, and what that lost on the selection rows."""
    gate = tried.get("gate", {})
    made = [
        f"{name.replace('_', ' ')} {value}" for name, value in _flat({**tried, "gate": {}}) if name != "quantization"
    ]
    lost = gate.get("drop_on_selection")
    found = "cannot be judged" if lost is None else f"lost {lost:.2f} points".replace("-", "−")
    if "flips" in gate:
        found += f", {gate['flips']} of {gate['rows']} answers changed"
    return "; ".join([str(tried.get("quantization", "as it is")), *made, found])


def _table_note(results: dict[str, Any]) -> list[str]:
    data, first = results["data"], results["variants"][0]["latency_ms"][0]
    tokens = f"{results['real_sequence']} tokens"
    if results.get("new_tokens"):
        tokens += f" and an answer of {results['new_tokens']}"
    notes = [
        f"Scores are {results['metric']} in points on {data['rows']['evaluation']:,} rows ({data['split']}), taken "
        "through the pipeline that a user would call. Beside them are 95 % bootstrap intervals over these rows, 1,000 "
        "resamples; those of what was lost are paired with the teacher on the same rows.",
        f"Latency: batch 1, {tokens}, {first['threads']} thread(s); each variant in a process of its own, timed in "
        "turns. The size is of all files that a variant needs; memory is the whole process's peak.",
    ]
    return notes


def trade_offs(results: dict[str, Any]) -> list[tuple[str, Markup]]:
    """Score against each cost of all variants that have figures: title and plot."""
    there = [variant for variant in results["variants"] if variant["latency_ms"]]
    metric = results["metric"]

    def marks(cost: Callable[[dict[str, Any]], float]) -> list[Mark]:
        return [
            Mark(
                v["name"].removeprefix("student-"),
                _kind(v["name"]),
                cost(v),
                v["score"][metric],
                v["score_ci95"][0],
                v["score_ci95"][1],
                v["name"] == results["recommended"],
            )
            for v in there
        ]

    sides = [
        ("Score against latency", "p50 in ms, batch 1", lambda v: at_real(v, results)["p50"]),
        ("Score against size", "size in MB", lambda v: v["bytes"] / 1e6),
    ]
    return [(title, trade_off(marks(cost), title, label, metric)) for title, label, cost in sides]


def _curves(training: Training) -> dict[str, Any] | None:
    stage, _, phase = training.name.partition(" ")
    kind = "student" if stage == "distill" else stage
    title = f"{STAGES.get(stage, stage)}{f', {phase}' if phase else ''}"
    terms = [
        (term, curves([Line(term, kind, points, training.ends.get(term, []))], f"{title}: {term}", "epoch", "", SMALL))
        for term, points in training.losses.items()
    ]
    return {"title": title, "terms": terms} if terms else None


def _selection(heard: Sequence[Training], metric: str) -> Markup | None:
    """The score after each epoch on the rows that choose the epoch, of all trainings."""
    lines = []
    for training in heard:
        if training.scores:
            stage, _, phase = training.name.partition(" ")
            label = f"{STAGES.get(stage, stage).lower()} {phase}".strip()
            kind = "student" if stage == "distill" else stage
            lines.append(Line(label, kind, training.scores, training.scores))
    return curves(lines, "Score on the selection rows after each epoch", "epoch", metric) if lines else None


def _insights(run: RunDir, task: Task, rows: Dataset | None, results: dict[str, Any]) -> dict[str, Any]:
    """What only the answers themselves can tell; empty parts where answers or rows are not there."""
    from nlp_distill.scores import read_raw

    best, raws = results["recommended"], {}
    for name in ("teacher", best):
        file = run.predictions / f"{name}.jsonl"
        if file.is_file():
            raws[name] = read_raw(file.read_text(encoding="utf-8"))
    if rows is None or best not in raws:
        missing = "the rows" if rows is None else "the answers"
        said = f"Scores by group and single answers are left out: {missing} of this run are not here."
        return {"missing": said, **dict.fromkeys(("groups", "confusion", "disagreements", "best"))}
    ours, theirs = raws[best], raws.get("teacher")
    return {
        "missing": None,
        "groups": grouped(task.groups(ours, rows), None if theirs is None else task.groups(theirs, rows)),
        "confusion": mixed(task.confusion(ours, rows)),
        "disagreements": None if theirs is None else disagreements(task, ours, theirs, rows),
        "best": best,
    }


def _limit(name: str, limit: dict[str, Any]) -> dict[str, str | bool]:
    title, unit = LIMITS.get(name, (name.replace("_", " "), ""))
    got = "unknown" if limit["got"] is None else f"{limit['got']:g} {unit}"
    return {"name": title, "asked": f"at most {limit['asked']:g} {unit}", "got": got, "met": limit["met"]}


def _making(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Where everything came from."""
    data, teacher = results["data"], results["teacher"]
    rows = ", ".join(f"{count:,} {name}" for name, count in data["rows"].items())
    made = [
        ("data", f"{_at(data['source'], data['revision'])}: {rows}"),
        *((name, note) for name, note in data["notes"].items()),
        ("selected on", results["selected_on"]),
    ]
    if teacher.get("name"):
        how = "used as it is"
        if teacher.get("finetuned"):
            settings = teacher["settings"]
            how = f"fine-tuned, learning rate {settings['learning_rate']:g}, epoch {teacher['best_epoch']} kept"
        made.append(("teacher", f"{_at(teacher['name'], teacher['revision'])}, {how}"))
    made.append(("student", ", ".join(f"{name} {value}" for name, value in _flat(results["student"]))))
    for stage, phases in results["training"].items():
        for number, trained in enumerate(phases or [], start=1):
            phase = f" {number}/{len(phases)}" if len(phases) > 1 else ""
            name = f"{STAGES[stage].lower()}{phase}"
            made.append((name, f"{trained['steps']:,} steps, epoch {trained['best_epoch']} kept"))
    for name, cache in results.get("cache", {}).items():
        signals = "from the teacher beside the student" if cache == "none" else f"from a cache in {cache}"
        made.append((f"signals of {name}", signals))
    return made


def _at(name: str, revision: str | None) -> str:
    return f"{name}@{revision}" if revision else name


def _environment(results: dict[str, Any]) -> list[tuple[str, str]]:
    machine = [(name, shown(value)) for name, value in results["machine"].items() if value is not None]
    precision = results["precision"]
    return [
        *machine,
        ("arithmetic", f"{precision['precision']} (asked: {precision['asked']})"),
        ("determinism", results["determinism"]),
        ("seed", str(results["seed"])),
        *results["versions"].items(),
    ]
