"""TextBrewer 0.2.1 in its own environment: GeneralDistiller, its own losses of the same names, AdamW, clipping to 1."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from feed import Batch, DefaultFeed, Feed, feed_of
from gate import Gate
from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
from transformers import AutoModelForSequenceClassification

LAYERS = {0: 1, 1: 3, 2: 5}
NEVER = 10**7


class Loader:
    """A data loader that never ends: at the end of an epoch TextBrewer writes a checkpoint, which is not counted."""

    def __init__(self, feed: Feed | DefaultFeed, gate: Gate) -> None:
        self.feed, self.gate = feed, gate

    def __len__(self) -> int:
        return NEVER

    def __iter__(self) -> Iterator[Batch]:
        return self.feed.batches(self.gate)


def adaptor(batch: Batch, outputs: Any) -> dict[str, Any]:
    """What TextBrewer reads of a model's outputs."""
    return {
        "logits": outputs.logits,
        "hidden": outputs.hidden_states,
        "attention": outputs.attentions,
        "inputs_mask": batch["attention_mask"],
    }


def main(settings: dict[str, Any]) -> None:
    """`feed`, `rows`, `steps`, `teacher`, `student`."""
    torch.set_num_threads(settings["threads"])
    gate = Gate()
    teacher, student = (
        AutoModelForSequenceClassification.from_pretrained(
            settings[who], attn_implementation="eager", output_hidden_states=True, output_attentions=True
        )
        for who in ("teacher", "student")
    )
    hidden = [
        {"layer_S": s + 1, "layer_T": t + 1, "feature": "hidden", "loss": "hidden_mse", "weight": 1 / 3}
        for s, t in LAYERS.items()
    ]
    maps = [
        {"layer_S": s, "layer_T": t, "feature": "attention", "loss": "attention_mse", "weight": 1 / 3}
        for s, t in LAYERS.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        training = TrainingConfig(output_dir=folder, log_dir=None, device="cpu")
        distillation = DistillationConfig(temperature=2, intermediate_matches=hidden + maps)
        distiller = GeneralDistiller(training, distillation, teacher, student, adaptor, adaptor)
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=0.01)
        loader = Loader(feed_of(settings), gate)
        with distiller:
            distiller.train(optimizer, loader, num_epochs=1, max_grad_norm=1.0)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
