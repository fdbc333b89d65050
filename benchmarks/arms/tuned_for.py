"""The tuned loop on a data folder for some minutes, its learning rate decayed over them; kept as a model folder."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from feed import BATCH
from loops import objective
from transformers import AutoModelForSequenceClassification, AutoTokenizer

LENGTH, WARM_UP = 128, 0.1


def main(settings: dict[str, Any]) -> None:
    """`data`, `teacher`, `student`, `out`, `minutes`, `learning_rate`, `precision`."""
    texts = pd.read_parquet(Path(settings["data"]) / "train.parquet")["sentence"].tolist()
    tokenizer = AutoTokenizer.from_pretrained(settings["teacher"])
    ids = tokenizer(texts, truncation=True, max_length=LENGTH, padding=False)["input_ids"]
    asked = {"output_hidden_states": True, "output_attentions": True}
    teacher, student = (
        AutoModelForSequenceClassification.from_pretrained(settings[who], attn_implementation="eager")
        for who in ("teacher", "student")
    )
    teacher.eval()
    student.train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.0, weight_decay=0.01, fused=True)
    order, steps, start = np.random.default_rng(0), 0, time.monotonic()
    queue: list[Any] = []
    while (share := (time.monotonic() - start) / 60 / settings["minutes"]) < 1:
        if not queue:
            queue = list(order.permutation(len(ids) // BATCH * BATCH).reshape(-1, BATCH))
        batch = dict(tokenizer.pad({"input_ids": [ids[row] for row in queue.pop()]}, return_tensors="pt"))
        factor = share / WARM_UP if share < WARM_UP else (1 - share) / (1 - WARM_UP)
        optimizer.param_groups[0]["lr"] = settings["learning_rate"] * factor
        with torch.autocast("cpu", torch.bfloat16, enabled=settings["precision"] == "bf16"):
            with torch.inference_mode():
                theirs = teacher(**batch, **asked)
            ours = student(**batch, **asked)
        objective(ours, theirs, batch["attention_mask"], wide=True).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    student.save_pretrained(settings["out"])
    tokenizer.save_pretrained(settings["out"])
    taken = {"minutes": (time.monotonic() - start) / 60, "epochs": steps * BATCH / len(ids)}
    print(json.dumps({name: round(value, 2) for name, value in taken.items()}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
