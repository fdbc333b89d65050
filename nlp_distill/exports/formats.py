"""The table of formats: the only place that knows them all."""

from __future__ import annotations

from pathlib import Path

from nlp_distill.exports.executorch import Executorch
from nlp_distill.exports.format import Form, Format
from nlp_distill.exports.onnx import Onnx
from nlp_distill.exports.openvino import OpenVino
from nlp_distill.exports.ort import Ort

FORMATS: dict[str, Format] = {entry.name: entry for entry in (Onnx(), OpenVino(), Ort(), Executorch())}


def form_of(variant: str) -> Form | None:
    """The form that a variant's name stands for; None for what PyTorch runs (`teacher`, `student` …)."""
    return next((form for entry in FORMATS.values() for form in entry.forms if form.variant == variant), None)


def forms_there(model: Path) -> list[Form]:
    """The forms whose files a model's folder holds, in the order of the table."""
    return [form for entry in FORMATS.values() for form in entry.forms if entry.files(model, form)]
