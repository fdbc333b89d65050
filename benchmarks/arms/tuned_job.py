"""The job that ours replaces: the tuned loop, a score in PyTorch, `optimum-cli` to ONNX and to int8."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from feed import BATCH, Feed
from loops import objective
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline


def main(settings: dict[str, Any]) -> None:
    """`rows`, `teacher`, `student`, `test`, `out`, `epochs`, `precision`."""
    asked = {"output_hidden_states": True, "output_attentions": True}
    teacher, student = (
        AutoModelForSequenceClassification.from_pretrained(settings[who], attn_implementation="eager")
        for who in ("teacher", "student")
    )
    teacher.eval()
    feed = Feed(Path(settings["rows"]), "dynamic", 1)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    rows = (len(feed.starts) - 1) // BATCH * BATCH
    student.train()
    for epoch in range(settings["epochs"]):
        for numbers in np.random.default_rng(epoch).permutation(rows).reshape(-1, BATCH):
            batch = feed.batch(numbers)
            with torch.autocast("cpu", torch.bfloat16) if settings["precision"] == "bf16" else nullcontext():
                with torch.inference_mode():
                    theirs = teacher(**batch, **asked)
                ours = student(**batch, **asked)
            objective(ours, theirs, batch["attention_mask"], wide=True).backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    out = settings["out"]
    tokenizer = AutoTokenizer.from_pretrained(settings["teacher"])
    student.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)
    test = [json.loads(line) for line in Path(settings["test"]).read_text(encoding="utf-8").split("\n") if line]
    said = pipeline("text-classification", model=student, tokenizer=tokenizer)(
        [row["text"] for row in test], batch_size=BATCH
    )
    names = [student.config.id2label[row["label"]] for row in test]
    print(np.mean([answer["label"] == name for answer, name in zip(said, names, strict=True)]))
    cli = [str(Path(sys.executable).with_name("optimum-cli"))]
    subprocess.run([*cli, "export", "onnx", "-m", out, "--task", "text-classification", f"{out}/onnx"], check=True)
    quantize = ["onnxruntime", "quantize", "--onnx_model", f"{out}/onnx", "--avx512_vnni", "-o", f"{out}/int8"]
    subprocess.run([*cli, *quantize], check=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
