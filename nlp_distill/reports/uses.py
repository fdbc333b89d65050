"""Code for a card: how to ask the model in three runtimes. A test runs all of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from nlp_distill.hub import PLACE

if TYPE_CHECKING:
    from nlp_distill.task import Task

WORDS = {
    "text": "A text of yours.",
    "text_pair": "Another text of yours.",
    "question": "Who wrote it?",
    "context": "Jane wrote it.",
}
DTYPES = {"fp32": "fp32", "int8": "q8"}
"""Precision of our files → transformers.js's name of it."""


def uses(results: dict[str, Any], task: Task, tokenizer: Any) -> list[dict[str, str]]:
    """Title, language and code, a runtime each: transformers, Optimum with ONNX Runtime, transformers.js."""
    asked = _asked(results, task, tokenizer)
    settings = _settings(task.pipeline_settings(tokenizer))
    found = [{"title": "With transformers", "language": "python", "code": _transformers(task, asked, settings)}]
    if (variant := _onnx(results)) is not None:
        code = _optimum(task, asked, settings, variant)
        title = f"With Optimum and ONNX Runtime ({variant['name']}; without the names of its files Optimum takes fp32)"
        found.append({"title": title, "language": "python", "code": code})
        title = "In the browser or in Node, with transformers.js (@huggingface/transformers)"
        found.append({"title": title, "language": "js", "code": _javascript(task, asked, variant)})
    return found


def _onnx(results: dict[str, Any]) -> dict[str, Any] | None:
    """The recommended variant where it is ONNX, else the smallest that is."""
    ready = [
        v for v in results["variants"] if v["runtime"] == "onnxruntime" and v["score"] and v["precision"] in DTYPES
    ]
    named = [variant for variant in ready if variant["name"] == results["recommended"]]
    return next(iter(named or sorted(ready, key=lambda variant: int(variant["bytes"]))), None)


def _asked(results: dict[str, Any], task: Task, tokenizer: Any) -> Any:
    """What the pipeline is given in the examples."""
    if task.pipeline_task == "fill-mask":
        return f"A {tokenizer.mask_token} of yours."
    first, *rest = (WORDS[name] for name in results.get("inputs") or ["text"])
    return task.asked(first, rest[0] if rest else None)


def _settings(settings: dict[str, Any]) -> str:
    return "".join(f", {name}={value!r}" for name, value in settings.items())


def _call(asked: Any) -> str:
    if isinstance(asked, dict) and "question" in asked:
        return ", ".join(f"{name}={_quoted(value)}" for name, value in asked.items())
    return _quoted(asked)


def _quoted(value: Any) -> str:
    """A text, or a mapping of texts, as Python and JavaScript both write it."""
    return json.dumps(value, ensure_ascii=False)


def _transformers(task: Task, asked: Any, settings: str) -> str:
    return "\n".join(
        [
            "from transformers import pipeline",
            "",
            f'pipe = pipeline("{task.pipeline_task}", model="{PLACE}"{settings})',
            f"print(pipe({_call(asked)}))",
        ]
    )


def _optimum(task: Task, asked: Any, settings: str, variant: dict[str, Any]) -> str:
    kind = task.auto_class.replace("AutoModel", "ORTModel")
    names = {name: value for name, value in variant["settings"].items() if name.endswith("file_name")}
    if "merged" in names.get("decoder_file_name", ""):
        names["decoder_with_past_file_name"] = names["decoder_file_name"]
    chosen = "".join(f', {name}="{value}"' for name, value in names.items())
    return "\n".join(
        [
            f"from optimum.onnxruntime import {kind}",
            "from optimum.pipelines import pipeline",
            "from transformers import AutoTokenizer",
            "",
            f'model = {kind}.from_pretrained("{PLACE}", subfolder="onnx"{chosen})',
            f'tokenizer = AutoTokenizer.from_pretrained("{PLACE}")',
            f'pipe = pipeline("{task.pipeline_task}", model=model, tokenizer=tokenizer, accelerator="ort"{settings})',
            f"print(pipe({_call(asked)}))",
        ]
    )


def _javascript(task: Task, asked: Any, variant: dict[str, Any]) -> str:
    dtype = DTYPES[variant["precision"]]
    if isinstance(asked, dict) and "text_pair" in asked:
        # Its pipelines take no pairs.
        first, second = _quoted(asked["text"]), _quoted(asked["text_pair"])
        return "\n".join(
            [
                'import { AutoModelForSequenceClassification, AutoTokenizer } from "@huggingface/transformers";',
                "",
                f'const tokenizer = await AutoTokenizer.from_pretrained("{PLACE}");',
                f'const model = await AutoModelForSequenceClassification.from_pretrained("{PLACE}", '
                f'{{ dtype: "{dtype}" }});',
                f"const inputs = tokenizer({first}, {{ text_pair: {second}, truncation: true }});",
                "console.log((await model(inputs)).logits.tolist());",
            ]
        )
    call = ", ".join(_quoted(part) for part in (asked.values() if isinstance(asked, dict) else [asked]))
    return "\n".join(
        [
            'import { pipeline } from "@huggingface/transformers";',
            "",
            f'const pipe = await pipeline("{task.pipeline_task}", "{PLACE}", {{ dtype: "{dtype}" }});',
            f"console.log(JSON.stringify(await pipe({call})));",
        ]
    )
