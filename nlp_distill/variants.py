"""The last stages of the road: every form of the student exported, scored, measured and put into one table."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlp_distill.errors import Interrupted
from nlp_distill.exports.format import Form, Work
from nlp_distill.exports.formats import FORMATS, forms_there
from nlp_distill.exports.gate import Gate
from nlp_distill.loading import load_model
from nlp_distill.measuring import Measured, files_to_run, measure
from nlp_distill.prediction import variant_pipeline
from nlp_distill.recipe import Export
from nlp_distill.reports.card import write_card
from nlp_distill.reports.results import build_results
from nlp_distill.retraining import retrained
from nlp_distill.road import Road
from nlp_distill.rundir import new_folder, sha256_file, write_json, write_text
from nlp_distill.scores import agreement, interval, paired_interval, predict, raw_lines, read_raw

Array = NDArray[Any]
BATCH = 16
UNKNOWN = tuple("n score score_ci95 retained drop drop_ci95 agreement flips params bytes peak_memory_mb".split())
"""What is not known of an export that was refused."""


@dataclass(frozen=True)
class Variant:
    """One form of a model in this run. `form`: of an export; None where PyTorch runs it."""

    name: str
    folder: Path
    form: Form | None = None

    @property
    def runtime(self) -> str:
        """The engine."""
        return FORMATS[self.form.format].runtime if self.form else "pytorch"

    @property
    def precision(self) -> str:
        """Type of the weights."""
        return self.form.precision if self.form else "fp32"

    @property
    def batch(self) -> int:
        """Rows in a call when it is scored."""
        return self.form.batch if self.form else BATCH


def variants(road: Road) -> list[Variant]:
    """The variants that exist, in the order of the table."""
    run = road.rundir
    scored = run.manifest()["stages"]["teacher"]["how"].get("scored", True)
    found = [Variant("teacher", run.teacher)] if scored else []
    if road.recipe.control:
        found.append(Variant("control", run.control))
    found.append(Variant("student", run.model))
    # The exact form of a format first: the others are judged against it.
    forms = sorted(forms_there(run.model), key=lambda form: (list(FORMATS).index(form.format), not form.exact))
    return found + [Variant(form.variant, run.model, form) for form in forms]


def _heed(road: Road, done: int, stage: str) -> None:
    """End where the user asked to; one process of several must not, as the others wait for it."""
    if road.accelerator.num_processes == 1 and road.stop():
        raise Interrupted(step=done, stage=stage)


def _outputs(road: Road, variant: Variant, rows: Any, stage: str) -> Array:
    pipe = variant_pipeline(variant.folder, road.task, variant.name)

    def progress(done: int, total: int) -> None:
        _heed(road, done, f"{stage}: {variant.name}")
        road.notify("progress", stage=f"{stage}: {variant.name}", step=done, steps=total)

    return predict(pipe, road.task, rows, variant.batch, progress)


Made = tuple[list[str], dict[str, Any]]


def export_stage(road: Road) -> Made:
    """Make each form that the recipe asks for, prove it on the selection rows, refuse what fails."""
    if not road.main:
        return [], {"exports": []}
    model = road.rundir.model
    folders = {model / entry.folder for entry in FORMATS.values()}

    def clear() -> None:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)

    clear()
    try:
        reports = _exported(road)
    except BaseException:
        # Nothing unproven stays in the deliverable.
        clear()
        raise
    files = sorted(file for folder in folders if folder.is_dir() for file in folder.iterdir())
    return [str(file.relative_to(road.rundir.path)) for file in files], {"exports": reports}


def _exported(road: Road) -> list[dict[str, Any]]:
    if not road.recipe.export:
        return []
    # A training takes all processes, and only the main one exports.
    alone = road.accelerator.num_processes == 1
    repair = partial(retrained, road) if alone else None
    work = Work(road.rundir.model, road.task, road.tokenizer, road.selection_rows, road.notify, repair)
    gate = Gate(work, _outputs(road, Variant("student", work.model), work.rows.raw, "checking"))
    asked: dict[str, list[Export]] = {}
    for settings in road.recipe.export:
        asked.setdefault(settings.format, []).append(settings)
    return [
        gate.prove(FORMATS[name], form, settings)
        for name, entries in asked.items()
        for form, settings in FORMATS[name].wanted(entries)
    ]


def evaluate_stage(road: Road) -> Made:
    """Raw outputs of every variant on the reported rows, through the pipeline that a user would call."""
    if not road.main:
        return [], {}
    scores: dict[str, Any] = {}
    with new_folder(road.rundir.predictions) as folder:
        for variant in variants(road):
            raw = _outputs(road, variant, road.slices.evaluation, "scoring")
            write_text(folder / f"{variant.name}.jsonl", raw_lines(raw))
            scores[variant.name] = {k: round(v, 2) for k, v in road.task.score(raw, road.slices.evaluation).items()}
            road.notify("note", message=f"{variant.name}: {_listed(scores[variant.name])}")
    return [f"predictions/{name}.jsonl" for name in scores], {"scores": scores}


def _listed(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in scores.items())


def measure_stage(road: Road) -> Made:
    """Latency at the data's own length, 32 and 128 tokens; memory; size."""
    if not road.main:
        return [], {}
    road.notify("note", message="timing each variant in a process of its own, in turns")
    features = road.rows(road.slices.evaluation).features
    new_tokens = road.task.answer_tokens(features)
    real = road.recipe.budget.sequence or int(np.percentile([len(ids) for ids in features["input_ids"]], 90))
    limit = road.tokenizer.model_max_length
    sequences = sorted({min(length, limit) for length in (real, 32, 128)})
    chosen = [Measured(v.name, str(v.folder), road.task.auto_class, v.name, new_tokens) for v in variants(road)]

    def progress(done: int, total: int) -> None:
        _heed(road, done, "measuring")
        road.notify("progress", stage="measuring", step=done, steps=total)

    measured = measure(chosen, sequences, road.recipe.budget.threads, progress)
    for variant in variants(road):
        files = files_to_run(variant.folder, variant.name)
        measured[variant.name]["bytes"] = sum(file.stat().st_size for file in files)
    return [], {
        "real_sequence": min(real, limit),
        "new_tokens": new_tokens,
        "machine": road.machine(),
        "measured": measured,
    }


def results_stage(road: Road) -> Made:
    """`results.json`: scores with intervals, retention, agreement, cost, the recommended variant, the budget."""
    if not road.main:
        return [], {}
    records = road.rundir.manifest()["stages"]
    rows = road.slices.evaluation
    files = {v.name: road.rundir.predictions / f"{v.name}.jsonl" for v in variants(road)}
    raws = {name: read_raw(file.read_text(encoding="utf-8")) for name, file in files.items()}
    entries = [_entry(road, variant, raws, rows, records) for variant in variants(road)]
    entries += _refused(records)
    results = build_results(road, entries, records)
    write_json(road.rundir.results, results)
    road.rundir.update_manifest(results_sha256=sha256_file(road.rundir.results))
    pictures = write_card(road.rundir, results, road.task, road.tokenizer)
    return ["results.json", *pictures], {"recommended": results["recommended"]}


def _entry(road: Road, variant: Variant, raws: dict[str, Array], rows: Any, records: dict[str, Any]) -> dict[str, Any]:
    task, raw = road.task, raws[variant.name]
    metric, seed = task.primary_metric, road.recipe.seed
    score = records["evaluate"]["scores"][variant.name]
    measured = records["measure"]["measured"][variant.name]
    entry: dict[str, Any] = {
        "name": variant.name,
        "path": str(_place(variant).relative_to(road.rundir.path)),
        "runtime": variant.runtime,
        "precision": _report(variant.name, records).get("precision", variant.precision)
        if variant.form
        else variant.precision,
        "settings": {"pipeline_batch": variant.batch, **_export_settings(variant, records)},
        "status": _report(variant.name, records)["status"] if variant.form else "passed",
        "n": len(raw),
        "score": score,
        "score_ci95": interval(task, raw, rows, seed),
        "retained": None,
        "drop": None,
        "drop_ci95": None,
        "agreement": None,
        "flips": None,
        "params": _parameters(road, variant),
        **measured,
    }
    if "teacher" in raws:
        theirs = records["evaluate"]["scores"]["teacher"][metric]
        entry["retained"] = round(score[metric] / theirs, 4) if theirs > 0 else None
        entry["drop"] = round(theirs - score[metric], 2)
        entry["drop_ci95"] = paired_interval(task, raws["teacher"], raw, rows, seed)
        entry["agreement"] = _rounded(agreement(task, raw, raws["teacher"]))
    if variant.form:
        source = raws[_source(variant.form)]
        same = agreement(task, raw, source)
        entry["flips"] = None if same is None else round(1 - same, 4)
        entry["loss_ci95"] = paired_interval(task, raws["student"], raw, rows, seed)
    if variant.name == "student" and "control" in raws:
        entry["gain_over_control"] = round(score[metric] - records["evaluate"]["scores"]["control"][metric], 2)
        entry["gain_over_control_ci95"] = paired_interval(task, raw, raws["control"], rows, seed)
    return entry


def _place(variant: Variant) -> Path:
    if variant.form is None:
        return variant.folder
    return FORMATS[variant.form.format].files(variant.folder, variant.form)[0]


def _source(form: Form) -> str:
    """The variant whose answers an export should have."""
    source = FORMATS[form.format].source
    return FORMATS[form.format].form(source).variant if source and not form.exact else "student"


def _report(name: str, records: dict[str, Any]) -> dict[str, Any]:
    report: dict[str, Any] = next(r for r in records["export"]["exports"] if r["variant"] == name)
    return report


def _export_settings(variant: Variant, records: dict[str, Any]) -> dict[str, Any]:
    """How an exported file was made and is loaded; a number is the user's only under the same settings."""
    if variant.form is None:
        return {}
    loading = FORMATS[variant.form.format].settings(variant.folder, variant.form)
    return {**loading, **_made_as(_report(variant.name, records))}


def _made_as(report: dict[str, Any]) -> dict[str, Any]:
    """What a report says beyond what its entry in the results says already."""
    return {name: value for name, value in report.items() if name not in ("format", "variant", "status", "precision")}


def _refused(records: dict[str, Any]) -> list[dict[str, Any]]:
    """Exports that lost too much: named, without a file."""
    reports = [report for report in records["export"]["exports"] if report["status"] == "refused"]
    return [
        {
            "name": report["variant"],
            "path": None,
            "runtime": FORMATS[report["format"]].runtime,
            "precision": report.get("precision", FORMATS[report["format"]].form(report["profile"]).precision),
            "settings": _made_as(report),
            "status": "refused",
            **dict.fromkeys(UNKNOWN),
            "latency_ms": [],
        }
        for report in reports
    ]


def _parameters(road: Road, variant: Variant) -> int:
    return int(load_model(variant.folder, road.task.auto_class).num_parameters())


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
