"""The two loops that people write: `naive`, as it is copied from tutorials, and `tuned`, as a good engineer has it.

Both: the teacher at every step, mean squared error of hidden states and attention maps at the tokens that count, KL
of the logits at temperature 2, AdamW, gradients clipped to 1. They read what transformers returns: attention maps,
after the softmax.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from feed import Batch, Feed
from gate import Gate
from torch import Tensor
from transformers import AutoModelForSequenceClassification

LAYERS = {0: 1, 1: 3, 2: 5}
"""Student layer → the teacher layer that it imitates."""
TEMPERATURE = 2.0


def objective(student: Any, teacher: Any, mask: Tensor, wide: bool) -> Tensor:
    """Logits; hidden states of all tokens and attention maps (`wide`) or of [CLS] alone."""
    pair = (student.logits.float() / TEMPERATURE, teacher.logits.float() / TEMPERATURE)
    ours, theirs = (F.log_softmax(logits, dim=-1) for logits in pair)
    loss = F.kl_div(ours, theirs, log_target=True, reduction="batchmean") * TEMPERATURE**2
    for s, t in LAYERS.items():
        hidden = student.hidden_states[s + 1].float(), teacher.hidden_states[t + 1].float()
        if not wide:
            loss = loss + (hidden[0][:, 0] - hidden[1][:, 0]).square().mean() / len(LAYERS)
            continue
        loss = loss + ((hidden[0] - hidden[1]).square().mean(-1) * mask).sum() / mask.sum() / len(LAYERS)
        maps = (student.attentions[s].float() - teacher.attentions[t].float()).square().mean(1)
        keys = (maps * mask[:, None, :]).sum(-1) / mask.sum(-1, keepdim=True)
        loss = loss + (keys * mask).sum() / mask.sum() / len(LAYERS)
    return loss


def main(settings: dict[str, Any]) -> None:
    """`loop`: naive or tuned; `wide`; `precision` of the tuned loop; `feed`, `rows`, `steps`, `teacher`, `student`.

    `device`: cpu unless given.
    """
    torch.set_num_threads(settings["threads"])
    gate = Gate()
    tuned, wide = settings["loop"] == "tuned", settings["wide"]
    bf16 = tuned and settings["precision"] == "bf16"
    # Maps come from eager attention only.
    attention = "eager" if wide or not tuned else "sdpa"
    asked = {"output_hidden_states": True, "output_attentions": wide or not tuned}
    device = settings.get("device", "cpu")
    teacher, student = (
        AutoModelForSequenceClassification.from_pretrained(settings[who], attn_implementation=attention).to(device)
        for who in ("teacher", "student")
    )
    teacher.eval()
    student.train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=0.01, fused=True if tuned else None)
    without_gradients = torch.inference_mode if tuned else torch.no_grad

    def step(batch: Batch) -> None:
        with torch.autocast(device, torch.bfloat16) if bf16 else nullcontext():
            with without_gradients():
                theirs = teacher(**batch, **asked)
            ours = student(**batch, **asked)
        loss = objective(ours, theirs, batch["attention_mask"], wide)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for batch in Feed(Path(settings["rows"]), settings["feed"], settings["steps"]).batches(gate):
        step({name: values.to(device) for name, values in batch.items()})


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
