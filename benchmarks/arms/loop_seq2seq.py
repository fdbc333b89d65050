"""The loop that people write for seq2seq: both models whole, every row padded to the data's longest, fp32."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gate import Gate
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM

BATCH, STEPS = 32, 1


def padded(stored: Any, name: str, fill: int) -> Tensor:
    """All rows, to the longest."""
    starts = stored[f"{name}_starts"]
    rows = np.full((len(starts) - 1, int(np.diff(starts).max())), fill)
    for number in range(len(rows)):
        ids = stored[name][starts[number] : starts[number + 1]]
        rows[number, : len(ids)] = ids
    return torch.from_numpy(rows)


def main(settings: dict[str, Any]) -> None:
    """`rows`, `teacher`, `student`."""
    torch.set_num_threads(settings["threads"])
    gate = Gate()
    stored = np.load(settings["rows"])
    sources, targets = padded(stored, "input_ids", 0), padded(stored, "labels", -100)
    teacher, student = (AutoModelForSeq2SeqLM.from_pretrained(settings[who]) for who in ("teacher", "student"))
    teacher.eval()
    student.train()
    student.get_encoder().requires_grad_(False)
    learnt = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=1e-4, weight_decay=0.01)
    order = np.random.default_rng(0)
    tokens = float(stored["tokens"]) / len(sources) * BATCH * STEPS
    while True:
        for _ in range(STEPS):
            rows = torch.from_numpy(order.choice(len(sources), BATCH, replace=False))
            batch = {"input_ids": sources[rows], "attention_mask": (sources[rows] != 0).long(), "labels": targets[rows]}
            with torch.no_grad():
                theirs = teacher(**batch).logits
            counts = batch["labels"] != -100
            ours = F.log_softmax(student(**batch).logits[counts], dim=-1)
            loss = F.kl_div(ours, F.log_softmax(theirs[counts], dim=-1), log_target=True, reduction="batchmean")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learnt, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        gate.block(examples=BATCH * STEPS, tokens=tokens)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
