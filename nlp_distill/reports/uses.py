"""Code for a card: how to ask the model in three runtimes. A test runs all of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from nlp_distill.hub import PLACE

if TYPE_CHECKING:
    from nlp_distill.task import Task

DTYPES = {"_quantized": "q8", "_uint8": "uint8", "_int8": "int8", "_q4": "q4", "": "fp32"}
"""How a file's name ends → what transformers.js calls it (its DEFAULT_DTYPE_SUFFIX_MAPPING)."""
FOR_BROWSERS = "student-onnx-mobile"


class Engine(NamedTuple):
    """Where Optimum has what runs an engine's files."""

    models: str
    pipelines: str
    kind: str
    accelerator: str


ONNX = Engine("optimum.onnxruntime", "optimum.pipelines", "ORTModel", "ort")
OPENVINO = Engine("optimum.intel", "optimum.intel.pipelines", "OVModel", "openvino")


def uses(results: dict[str, Any], task: Task, tokenizer: Any) -> list[dict[str, str]]:
    """Title, language and code, a runtime each: transformers, Optimum with ONNX Runtime, transformers.js."""
    asked = task.shown_input(results.get("inputs") or ["text"], tokenizer)
    settings = _settings(task.pipeline_settings(tokenizer))
    found = [{"title": "With transformers", "language": "python", "code": _transformers(task, asked, settings)}]
    if (variant := _delivered(results, "onnx")) is not None:
        code = _optimum(task, asked, settings, variant, ONNX)
        title = f"With Optimum and ONNX Runtime ({variant['name']}; without the names of its files Optimum takes fp32)"
        found.append({"title": title, "language": "python", "code": code})
    if variant is not None and tokenizer.is_fast:
        variant = next((v for v in results["variants"] if v["score"] and v["name"] == FOR_BROWSERS), variant)
        where = "In the browser or in Node" if _in_browsers(variant) else "In Node (browsers need the profile `mobile`)"
        title = f"{where}, with transformers.js (@huggingface/transformers)"
        found.append({"title": title, "language": "js", "code": _javascript(task, asked, variant)})
    variant = _delivered(results, "openvino")
    if variant is not None and "file_name" in variant["settings"]:
        code = _optimum(task, asked, settings, variant, OPENVINO)
        title = f"With Optimum Intel and OpenVINO ({variant['name']})"
        found.append({"title": title, "language": "python", "code": code})
    return found


def _delivered(results: dict[str, Any], folder: str) -> dict[str, Any] | None:
    """The recommended variant where its files lie in the folder, else the smallest of those that do."""
    ready = [v for v in results["variants"] if v["score"] and v["settings"].get("subfolder") == folder]
    named = [variant for variant in ready if variant["name"] == results["recommended"]]
    return next(iter(named or sorted(ready, key=lambda variant: int(variant["bytes"]))), None)


def _in_browsers(variant: dict[str, Any]) -> bool:
    """Whether WebAssembly has a kernel for each node: it has none for tables of 4 bits (`GatherBlockQuantized`)."""
    file = variant["settings"].get("file_name") or variant["settings"]["decoder_file_name"]
    tables_of_4_bits = ("_q4.onnx",) if "decoder_file_name" in variant["settings"] else ("_q4.onnx", "_quantized.onnx")
    return not file.endswith(tables_of_4_bits)


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


def _optimum(task: Task, asked: Any, settings: str, variant: dict[str, Any], engine: Engine) -> str:
    kind = task.auto_class.replace("AutoModel", engine.kind)
    names = {name: value for name, value in variant["settings"].items() if name.endswith("file_name")}
    if "merged" in names.get("decoder_file_name", ""):
        names["decoder_with_past_file_name"] = names["decoder_file_name"]
    chosen = "".join(f', {name}="{value}"' for name, value in names.items())
    if "ov_config" in variant["settings"]:
        chosen += f", ov_config={_quoted(variant['settings']['ov_config'])}"
    made = f'"{task.pipeline_task}", model=model, tokenizer=tokenizer, accelerator="{engine.accelerator}"{settings}'
    return "\n".join(
        [
            f"from {engine.models} import {kind}",
            f"from {engine.pipelines} import pipeline",
            "from transformers import AutoTokenizer",
            "",
            f'model = {kind}.from_pretrained("{PLACE}", subfolder="{variant["settings"]["subfolder"]}"{chosen})',
            f'tokenizer = AutoTokenizer.from_pretrained("{PLACE}")',
            f"pipe = pipeline({made})",
            f"print(pipe({_call(asked)}))",
        ]
    )


def _javascript(task: Task, asked: Any, variant: dict[str, Any]) -> str:
    file = variant["settings"].get("file_name") or variant["settings"]["decoder_file_name"]
    dtype = next(dtype for suffix, dtype in DTYPES.items() if file.endswith(f"{suffix}.onnx"))
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
