"""The model card, `model/README.md`: what `results.json` says, for people and for the Hub."""

from __future__ import annotations

import os
import re
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from nlp_distill.hub import PLACE
from nlp_distill.reports.pareto import pareto_svg
from nlp_distill.reports.table import at_real, verdict
from nlp_distill.reports.uses import uses
from nlp_distill.rundir import RunDir, write_text
from nlp_distill.sources import HUB_ID

if TYPE_CHECKING:
    from nlp_distill.task import Task

SHOWN = 12
"""Labels that a card names."""


class Plain(str):
    """Text that is right for the card as it is: code, or escaped already."""


def escaped(value: object) -> str:
    """A value as Markdown shows it: one line, nothing that is markup, no link."""
    if isinstance(value, Plain):
        return value
    text = " ".join(str(value).split())
    for found, shown in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(found, shown)
    text = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", text)
    return text.replace("://", ":\\//").replace("www.", "www\\.")


def write_card(rundir: RunDir, results: dict[str, Any], task: Task, tokenizer: Any) -> list[str]:
    """Write the card and its picture into `model/`; the picture is the run's, the card may be edited."""
    write_text(rundir.model / "pareto.svg", pareto_svg(results))
    write_text(rundir.model / "README.md", card(results, task, tokenizer, hub_dataset(results["data"]["source"])))
    return ["model/pareto.svg"]


def hub_dataset(source: str) -> tuple[str, str | None] | None:
    """Name and configuration of a dataset on the Hub; None for what lies here."""
    if source.startswith("glue/"):
        return "nyu-mll/glue", source.removeprefix("glue/")
    if source.startswith("sample:") or os.path.exists(os.path.expanduser(source)) or not HUB_ID.fullmatch(source):
        return None
    return source, None


def card(results: dict[str, Any], task: Task, tokenizer: Any, dataset: tuple[str, str | None] | None) -> str:
    """The whole card."""
    import jinja2

    # Markdown, not HTML: every value goes through `escaped`.
    environment = jinja2.Environment(finalize=escaped, undefined=jinja2.StrictUndefined, autoescape=False)
    template = environment.from_string(files("nlp_distill.reports").joinpath("card.md.jinja").read_text("utf-8"))
    best = _named(results)[results["recommended"]]
    teacher = (results["teacher"] or {}).get("name")
    kind = task.pipeline_task.replace("-", " ")
    text = template.render(
        front=Plain(metadata(results, task, dataset)),
        title=f"A student for {kind}" + (f", distilled from {teacher}" if teacher else ""),
        summary=_summary(results, best, teacher, kind),
        purpose=_purpose(results, task, kind),
        counted=_counted(results),
        metric=results["metric"],
        rows=[_row(variant, results) for variant in results["variants"]],
        reading=Plain(READING),
        verdict=verdict(results),
        uses=[{name: Plain(said) for name, said in use.items()} for use in uses(results, task, tokenizer)],
        place=Plain(PLACE),
        made=_made(results),
        time=_time(results),
        limits=_limits(results, best, tokenizer),
    )
    return text.rstrip() + "\n"


READING = (
    "Scores are in points, 0 to 100, with a bootstrap interval over the rows. *kept* is the share of the teacher's\n"
    "score, *agreement* the share of equal predictions; both in per cent. MB are all files that a variant needs."
)


def metadata(results: dict[str, Any], task: Task, dataset: tuple[str, str | None] | None) -> str:
    """The card's front matter: lineage, licence, data, and the scores of `results.json` as `model-index`."""
    from huggingface_hub import EvalResult, ModelCardData

    data, lineage = results["data"], _lineage(results)
    about = {
        "task_type": task.pipeline_task,
        "dataset_type": dataset[0] if dataset else _short(data["source"]),
        "dataset_name": _short(data["source"]),
        "dataset_config": dataset[1] if dataset else None,
        "dataset_split": data["split"] if data["split"] in ("validation", "test") else None,
        "dataset_revision": data["revision"],
    }
    scored = [v for v in results["variants"] if v["name"].startswith("student") and v["score"]]
    exported = any(variant["runtime"] == "onnxruntime" for variant in scored)
    told = ModelCardData(
        license=lineage.get("licence"),
        base_model=lineage.get("base_model"),
        base_model_relation="finetune" if lineage.get("base_model") else None,
        datasets=[dataset[0]] if dataset else None,
        library_name="transformers",
        pipeline_tag=task.pipeline_task,
        tags=["knowledge-distillation", "nlp-distill", *(["onnx", "transformers.js"] if exported else [])],
        metrics=[*scored[0]["score"]],
        model_name=PLACE,
        eval_results=[
            EvalResult(**about, metric_type=name, metric_name=f"{name} ({variant['name']})", metric_value=value)
            for variant in scored
            for name, value in variant["score"].items()
        ],
    )
    return told.to_yaml() + "\n"


def _lineage(results: dict[str, Any]) -> dict[str, Any]:
    """Where the student's weights come from: another checkpoint, else its teacher."""
    student = results["student"]
    chosen: dict[str, Any] = student if student.get("kind") == "checkpoint" else results["teacher"] or {}
    return chosen


def _short(source: str) -> str:
    """A data source without the folders of somebody's machine."""
    return os.path.basename(source.rstrip("/")) if os.path.isabs(os.path.expanduser(source)) else source


def _named(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {variant["name"]: variant for variant in results["variants"]}


def _summary(results: dict[str, Any], best: dict[str, Any], teacher: str | None, kind: str) -> str:
    metric, found = results["metric"], at_real(best, results)
    said = f"Its {metric} is {best['score'][metric]:.2f}"
    if teacher and best["retained"] is not None:
        said += f", {100 * best['retained']:.1f} % of its teacher's,"
    said += f" in {best['bytes'] / 1e6:.1f} MB"
    said += f", and answers in {found['p50']:.2f} ms on {found['threads']} thread(s)"
    return f"{said} as {best['name']}, the recommended of its variants. Made with nlp_distill for {kind}."


def _purpose(results: dict[str, Any], task: Task, kind: str) -> list[str]:
    names = task.label_names
    labels = f" with the labels {', '.join(names[:SHOWN])}{' …' if len(names) > SHOWN else ''}" if names else ""
    rows = results["data"]["rows"]
    return [
        f"For {kind}{labels}, on texts like those that it learnt from: {_short(results['data']['source'])}, "
        f"{rows['train']:,} rows of train.",
        "For machines without a GPU. Not for other kinds of text before it was scored on them, and not for decisions "
        "about people without a person who looks.",
    ]


def _counted(results: dict[str, Any]) -> str:
    data = results["data"]
    return (
        f"On {data['rows']['evaluation']:,} rows ({data['split']}) of {_short(data['source'])}, which chose nothing; "
        f"epochs and exports were chosen on {results['selected_on']}."
    )


def _row(variant: dict[str, Any], results: dict[str, Any]) -> list[str]:
    name = variant["name"] + (" (recommended)" if variant["name"] == results["recommended"] else "")
    if not variant["score"]:
        return [name, variant["status"], *["–"] * 6]
    low, high = variant["score_ci95"]
    found = at_real(variant, results)
    return [
        name,
        f"{variant['score'][results['metric']]:.2f}",
        f"{low:.2f} to {high:.2f}",
        *("–" if variant[share] is None else f"{100 * variant[share]:.1f}" for share in ("retained", "agreement")),
        f"{variant['params'] / 1e6:.1f} M",
        f"{variant['bytes'] / 1e6:.1f}",
        f"{found['p50']:.2f} / {found['p90']:.2f}",
    ]


def _made(results: dict[str, Any]) -> str:
    versions = results["versions"]
    told = ", ".join(
        f"{name} {versions[name]}" for name in ("nlp-distill", "torch", "transformers") if name in versions
    )
    return f"Seed {results['seed']}, {told}; the recipe's sha256 begins with {results['recipe_sha256'][:12]}."


def _time(results: dict[str, Any]) -> str:
    spent = results["timings_s"]
    machine = results["machine"]
    parts = ", ".join(
        f"{name} {_duration(spent[name])}" for name in ("teacher", "distill", "control") if spent.get(name)
    )
    where = machine.get("accelerator") or f"{machine['threads']} thread(s) of {machine['processor']}"
    total = _duration(sum(spent.values()))
    return f"It took {total} on {where}" + (f" ({parts})" if parts else "") + ". Energy was not measured."


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _limits(results: dict[str, Any], best: dict[str, Any], tokenizer: Any) -> list[str]:
    limits = [
        f"Inputs are cut at {tokenizer.model_max_length} tokens.",
        "Latencies are of one machine; compare them with each other rather than with another table's.",
        "A student inherits the biases of its teacher and of its data. None was measured.",
    ]
    if words := results["student"].get("vocabulary"):
        limits.insert(
            1,
            f"It knows {words['tokens']:,} of its teacher's {words['before']:,} pieces of words and spells the others: "
            f"{100 * words['respelled']:.2f} % of the pieces of the reported rows, in {100 * words['rows']:.1f} % of "
            "them.",
        )
    # ExecuTorch's programs run each row alone by themselves.
    if best["settings"].get("pipeline_batch") == 1 and best["runtime"] != "executorch":
        limits.insert(0, f"Ask {best['name']} one text at a time, as it was scored: its answers depend on batch mates.")
    if best["settings"].get("target"):
        target = best["settings"]["target"]
        limits.insert(0, f"The file of {best['name']} was made for {target}, and runs elsewhere at other speeds.")
    if best["runtime"] == "onnxruntime" and best["precision"] == "int8":
        limits.append(
            "Its int8 was proven with whole sums; an x86 CPU without VNNI cuts them off unless the session's options "
            "say session.x64quantprecision 1."
        )
    if not _lineage(results).get("licence"):
        limits.append("The teacher's licence is not known here. Find out before you pass the model on.")
    limits += [
        f"{variant['name']} was {variant['status']}: it lost too much against its source, and is not delivered."
        for variant in results["variants"]
        if variant["status"] in ("refused", "failed")
    ]
    return limits
