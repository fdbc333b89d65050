"""The last stages of the road: every form of the student exported, scored, measured and put into one table."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlp_distill.exports.onnx import export_fp32, quantize_int8
from nlp_distill.exports.parity import answer_changes, logit_difference, require_parity
from nlp_distill.loading import load_model, load_ort, onnx_files
from nlp_distill.measuring import Measured, files_to_run, measure
from nlp_distill.prediction import variant_pipeline
from nlp_distill.recipe import Export
from nlp_distill.reports.card import write_card
from nlp_distill.reports.results import build_results
from nlp_distill.road import Road
from nlp_distill.rundir import new_folder, sha256_file, write_json, write_text
from nlp_distill.scores import agreement, interval, paired_interval, predict, raw_lines, read_raw

Array = NDArray[Any]
BATCH = 16
UNKNOWN = tuple("n score score_ci95 retained drop drop_ci95 agreement flips params bytes peak_memory_mb".split())
"""What is not known of an export that was refused."""


@dataclass(frozen=True)
class Variant:
    """One form of a model in this run. `onnx`: precision of its ONNX files; `batch`: rows in a call when scored."""

    name: str
    folder: Path
    onnx: str | None = None
    batch: int = BATCH

    @property
    def runtime(self) -> str:
        """The engine."""
        return "onnxruntime" if self.onnx else "pytorch"

    @property
    def precision(self) -> str:
        """Type of the weights."""
        return self.onnx or "fp32"


def variants(road: Road) -> list[Variant]:
    """The variants that exist, in the order of the table."""
    run = road.rundir
    scored = run.manifest()["stages"]["teacher"]["how"].get("scored", True)
    found = [Variant("teacher", run.teacher)] if scored else []
    if road.recipe.control:
        found.append(Variant("control", run.control))
    found.append(Variant("student", run.model))
    if onnx_files(run.model, "fp32"):
        found.append(onnx_fp32(run.model))
    if onnx_files(run.model, "int8"):
        found.append(onnx_int8(run.model))
    return found


def onnx_fp32(model: Path) -> Variant:
    """The student as fp32 ONNX."""
    return Variant("student-onnx-fp32", model, "fp32")


def onnx_int8(model: Path) -> Variant:
    """The student as int8 ONNX. Dynamic int8 scales activations over the whole batch: one row, as a user asks."""
    return Variant("student-onnx-int8", model, "int8", batch=1)


def _outputs(road: Road, variant: Variant, rows: Any, stage: str) -> Array:
    pipe = variant_pipeline(variant.folder, road.task, variant.onnx)

    def progress(done: int, total: int) -> None:
        road.notify("progress", stage=f"{stage}: {variant.name}", step=done, steps=total)

    return predict(pipe, road.task, rows, variant.batch, progress)


Made = tuple[list[str], dict[str, Any]]


def export_stage(road: Road) -> Made:
    """Export, check fp32 against PyTorch and int8 against fp32 on the selection rows; refuse what fails."""
    if not road.main:
        return [], {"exports": []}
    onnx = road.rundir.model / "onnx"
    shutil.rmtree(onnx, ignore_errors=True)
    made = []
    try:
        made = [_export_onnx(road, settings) for settings in road.recipe.export]
    finally:
        if len(made) < len(road.recipe.export):
            # Nothing unproven stays in the deliverable.
            shutil.rmtree(onnx, ignore_errors=True)
    files = sorted(onnx.iterdir()) if made else []
    return [str(file.relative_to(road.rundir.path)) for file in files], {"exports": made}


def _export_onnx(road: Road, settings: Export) -> dict[str, Any]:
    task, model, rows = road.task, road.rundir.model, road.slices.selection
    road.notify("note", message="writing ONNX")
    report: dict[str, Any] = {"format": "onnx", "profile": settings.profile, "status": "passed"}
    with new_folder(model / "onnx") as folder:
        export_fp32(model, task.pipeline_task, folder)
        if settings.profile == "fast":
            report |= quantize_int8(model, folder, settings)
    torch_raw = _outputs(road, Variant("student", model), rows, "checking")
    fp32_raw = _outputs(road, onnx_fp32(model), rows, "checking")
    with_onnx = load_ort(model, task.auto_class, "fp32")
    found = logit_difference(task, road.tokenizer, load_model(model, task.auto_class), with_onnx, road.selection_rows)
    report["parity"] = {**answer_changes(task, torch_raw, fp32_raw), **found}
    require_parity("student-onnx-fp32", report["parity"])
    if settings.profile == "fast":
        int8_raw = _outputs(road, onnx_int8(model), rows, "checking")
        metric = task.primary_metric
        drop = task.score(fp32_raw, rows)[metric] - task.score(int8_raw, rows)[metric]
        report["int8"] = {**answer_changes(task, fp32_raw, int8_raw), "drop_on_selection": round(drop, 2)}
        if not drop <= settings.score_drop:  # NaN is refused too
            report["status"] = "refused"
            for name in onnx_files(model, "int8").values():
                (model / "onnx" / name).unlink()
            road.notify(
                "warning",
                stage="export",
                message=f"int8 lost {drop:.2f} points on the selection rows (allowed {settings.score_drop}): refused",
            )
    return report


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
    chosen = [Measured(v.name, str(v.folder), road.task.auto_class, v.onnx, new_tokens) for v in variants(road)]

    def progress(done: int, total: int) -> None:
        road.notify("progress", stage="measuring", step=done, steps=total)

    measured = measure(chosen, sequences, road.recipe.budget.threads, progress)
    for variant in variants(road):
        files = files_to_run(variant.folder, variant.onnx)
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
        "path": str(variant.folder.relative_to(road.rundir.path))
        + (f"/onnx/{next(iter(onnx_files(variant.folder, variant.onnx).values()))}" if variant.onnx else ""),
        "runtime": variant.runtime,
        "precision": variant.precision,
        "settings": {"pipeline_batch": variant.batch, **_export_settings(variant, records)},
        "status": "passed",
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
    if variant.onnx:
        source = raws["student-onnx-fp32" if variant.precision == "int8" else "student"]
        same = agreement(task, raw, source)
        entry["flips"] = None if same is None else round(1 - same, 4)
    if variant.name == "student" and "control" in raws:
        entry["gain_over_control"] = round(score[metric] - records["evaluate"]["scores"]["control"][metric], 2)
        entry["gain_over_control_ci95"] = paired_interval(task, raw, raws["control"], rows, seed)
    return entry


def _export_settings(variant: Variant, records: dict[str, Any]) -> dict[str, Any]:
    """How an exported file was made; a number is the user's only under the same settings."""
    if not variant.onnx:
        return {}
    report: dict[str, Any] = records["export"]["exports"][0]
    files = onnx_files(variant.folder, variant.onnx)
    settings = {**files, "subfolder": "onnx", "provider": "CPUExecutionProvider"}
    if variant.precision == "int8":
        return {
            **settings,
            "quantization": report["quantization"],
            "target": report["target"],
            "gate": report["int8"],
        }
    return {**settings, "parity": report["parity"]}


def _refused(records: dict[str, Any]) -> list[dict[str, Any]]:
    """Exports that lost too much: named, without a file."""
    reports = [report for report in records["export"]["exports"] if report["status"] == "refused"]
    return [
        {
            "name": "student-onnx-int8",
            "path": None,
            "runtime": "onnxruntime",
            "precision": "int8",
            "settings": {
                "quantization": report["quantization"],
                "target": report["target"],
                "gate": report["int8"],
            },
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
