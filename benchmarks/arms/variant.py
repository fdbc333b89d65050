"""One form of a model, called on one row at a time: a variant of a run, or what `optimum-cli` made of the student."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gate import Gate

from nlp_distill.exports.formats import FORMATS, form_of
from nlp_distill.loading import load_model


def loaded(settings: dict[str, Any]) -> Any:
    """The model: PyTorch's, an export's, or Optimum's own."""
    folder, auto_class, threads = Path(settings["folder"]), settings["auto_class"], settings["threads"]
    if settings["kind"] == "optimum":
        import onnxruntime
        from optimum import onnxruntime as engines

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        named = {"file_name": "model_quantized.onnx", "session_options": options, "local_files_only": True}
        return getattr(engines, auto_class.replace("AutoModel", "ORTModel")).from_pretrained(folder, **named)
    form = form_of(settings["name"])
    return FORMATS[form.format].load(folder, auto_class, form, threads) if form else load_model(folder, auto_class)


def main(settings: dict[str, Any]) -> None:
    """`kind`, `name`, `folder`, `auto_class`, `lengths` of the rows of a block, `vocabulary`."""
    torch.set_num_threads(settings["threads"])
    gate = Gate()
    model, lengths = loaded(settings), settings["lengths"]
    names = set(getattr(model, "input_names", None) or ("input_ids", "attention_mask"))
    chance = np.random.default_rng(0)
    rows = [torch.from_numpy(chance.integers(1000, settings["vocabulary"], (1, length))) for length in lengths]
    with torch.inference_mode():
        while True:
            for ids in rows:
                given = {
                    "input_ids": ids,
                    "attention_mask": torch.ones_like(ids),
                    "token_type_ids": torch.zeros_like(ids),
                }
                model(**{name: value for name, value in given.items() if name in names})
            gate.block(examples=len(rows), tokens=float(sum(lengths)))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
