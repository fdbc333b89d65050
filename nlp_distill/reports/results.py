"""`results.json`, a contract: schema 1."""

from __future__ import annotations

from typing import Any

from nlp_distill.recipe import Budget

SCHEMA = 1


def build_results(road: Any, variants: list[dict[str, Any]], records: dict[str, Any]) -> dict[str, Any]:
    """The document, from the variants' entries and the manifest's stage records. `road`: a `nlp_distill.road.Road`."""
    rows, task, budget = road.slices, road.task, road.recipe.budget
    real = records["measure"]["real_sequence"]
    recommended = recommend(variants, task.primary_metric, budget, real)
    manifest = road.rundir.manifest()
    return {
        "schema": SCHEMA,
        "task": task.name,
        "metric": task.primary_metric,
        "recipe_sha256": road.recipe.sha256(),
        "seed": road.recipe.seed,
        "versions": manifest["versions"],
        "machine": records["measure"]["machine"],
        "precision": manifest["precision"],
        "determinism": manifest["determinism"],
        "data": {
            "source": rows.source,
            "revision": rows.revision,
            "split": rows.split,
            "rows": rows.rows,
            "sha256": rows.sha256,
            "notes": records["data"]["notes"],
        },
        "selected_on": f"{len(rows.selection)} rows kept aside from train",
        "teacher": records["teacher"]["how"],
        "student": records["student"]["origin"],
        "training": {name: records[name]["trained"] for name in ("distill", "control")},
        "cache": {name: settled["cache"] for name, settled in manifest.get("teaching", {}).items()},
        "inputs": [*example] if isinstance(example := task.example_inputs()[0], dict) else ["text"],
        "real_sequence": real,
        "new_tokens": records["measure"]["new_tokens"],
        "recommended": recommended["name"],
        "variants": variants,
        "timings_s": {stage: record["seconds"] for stage, record in records.items()},
        "budget": budget_report(recommended, task.primary_metric, budget, real),
    }


def recommend(variants: list[dict[str, Any]], metric: str, budget: Budget, real: int) -> dict[str, Any]:
    """The smallest student that meets every limit; where none does, the smallest that passed.

    A form that surely lost more on the reported rows than it might on those that judged it gives way to one that did
    not; what may be chance among the reported rows chooses nothing.
    """
    students = [v for v in variants if v["name"].startswith("student") and v["status"] in ("passed", "repaired")]
    good = [v for v in students if all(limit["met"] for limit in budget_report(v, metric, budget, real).values())]
    source = next((v for v in students if v["name"] == "student"), None)
    kept = [v for v in good or students if source is None or not _surely_lost(v, source, metric)]
    return min(kept or good or students, key=lambda variant: variant["bytes"])


def _surely_lost(variant: dict[str, Any], source: dict[str, Any], metric: str) -> bool:
    return lost_more(variant, source, metric) is not None and variant["loss_ci95"][0] > 0


def lost_more(variant: dict[str, Any], source: dict[str, Any], metric: str) -> float | None:
    """Points of `source` that a form lost on the reported rows, where it might not lose so many; else None."""
    allowed = variant["settings"].get("gate", {}).get("allowed")
    if allowed is None or not variant["score"]:
        return None
    lost = round(float(source["score"][metric] - variant["score"][metric]), 2)
    return lost if lost > allowed else None


def budget_report(variant: dict[str, Any], metric: str, budget: Budget, real: int) -> dict[str, dict[str, Any]]:
    """Each limit that was set: asked, got, met. A teacher that has no score sets none."""
    sequence = budget.sequence or real
    latency = next(entry["p50"] for entry in variant["latency_ms"] if entry["sequence"] >= min(sequence, real))
    got = {
        "latency_ms": latency,
        "size_mb": round(variant["bytes"] / 1e6, 2),
        "memory_mb": variant["peak_memory_mb"],
        "score_drop": variant["drop"],
    }
    asked = {name: getattr(budget, name) for name in got}
    return {
        name: {"asked": limit, "got": got[name], "met": got[name] is not None and got[name] <= limit}
        for name, limit in asked.items()
        if limit is not None and not (name == "score_drop" and got[name] is None)
    }
