"""torchdistill 1.1 in its own environment: DistillationBox, forward hooks, a weighted sum of mid-level losses.

torchdistill imports torchvision, of which there is no build for a CPU build of this torch: empty modules stand for it
here. Nothing of it is used. Its cache of teacher outputs is off: it writes one file a row and stacks rows of one width.
"""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from feed import feed_of
from gate import Gate
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

STUBS = {
    "": ("models", "datasets", "transforms"),
    "models": ("detection", "segmentation", "densenet", "resnet"),
    "models.densenet": ("_DenseBlock", "_Transition"),
    "models.resnet": ("BasicBlock", "conv1x1"),
}
LAYERS = {0: 1, 1: 3, 2: 5}


def stub_torchvision() -> None:
    """Empty modules where torchdistill expects torchvision's."""

    def module(name: str) -> ModuleType:
        made = ModuleType(f"torchvision.{name}".rstrip("."))
        made.__path__, made.__spec__ = [], ModuleSpec(made.__name__, None)
        sys.modules[made.__name__] = made
        return made

    root = module("")
    modules = {"": root}
    for parent, names in STUBS.items():
        for name in names:
            path = f"{parent}.{name}".lstrip(".")
            modules[path] = module(path)
            modules[path].__version__ = "0"
            value = type(name, (nn.Module,), {}) if name[0].isupper() or name[0] == "_" else modules[path]
            setattr(modules[parent], name, value)


stub_torchvision()
from torchdistill.core.distillation import get_distillation_box  # noqa: E402
from torchdistill.losses.registry import register_mid_level_loss  # noqa: E402


class Matching(nn.Module):
    """A loss between what was hooked at two modules; the mask is the student's input."""

    def __init__(self, student: str, teacher: str) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def forward(self, student: Any, teacher: Any, targets: Tensor, *rest: Any, **named: Any) -> Tensor:
        """`targets`: the attention mask, handed through as the targets of the batch."""
        ours, theirs = student[self.student]["output"], teacher[self.teacher]["output"]
        return self.distance(ours, theirs, targets)


@register_mid_level_loss
class Hidden(Matching):
    """Mean squared error of a block's output at the tokens that count."""

    def distance(self, ours: Any, theirs: Any, mask: Tensor) -> Tensor:
        """Over tokens and width."""
        return ((ours[0] - theirs[0]).square().mean(-1) * mask).sum() / mask.sum()


@register_mid_level_loss
class Maps(Matching):
    """Mean squared error of attention maps at the tokens that count."""

    def distance(self, ours: Any, theirs: Any, mask: Tensor) -> Tensor:
        """Over heads and pairs of tokens."""
        keys = ((ours[1] - theirs[1]).square().mean(1) * mask[:, None, :]).sum(-1) / mask.sum(-1, keepdim=True)
        return (keys * mask).sum() / mask.sum()


def sub_term(kind: str, ours: str, theirs: str, weight: float) -> dict[str, Any]:
    """One term of the sum."""
    return {"criterion": {"key": kind, "kwargs": {"student": ours, "teacher": theirs}}, "weight": weight}


def main(settings: dict[str, Any]) -> None:
    """`feed`, `rows`, `steps`, `teacher`, `student`."""
    torch.set_num_threads(settings["threads"])
    gate = Gate()
    teacher, student = (
        AutoModelForSequenceClassification.from_pretrained(
            settings[who], attn_implementation="eager", output_attentions=True
        )
        for who in ("teacher", "student")
    )
    blocks, maps = "bert.encoder.layer.{}", "bert.encoder.layer.{}.attention.self"
    places = [(form.format(s), form.format(t)) for form in (blocks, maps) for s, t in LAYERS.items()]
    terms = {
        f"{kind} {s}": sub_term(kind, form.format(s), form.format(t), 1 / 3)
        for kind, form in (("Hidden", blocks), ("Maps", maps))
        for s, t in LAYERS.items()
    }
    kd = {"student_module_path": "classifier", "teacher_module_path": "classifier", "temperature": 2.0, "alpha": 0.0}
    kd |= {"student_module_io": "output", "teacher_module_io": "output"}
    terms["logits"] = {"criterion": {"key": "KDLoss", "kwargs": kd}, "weight": 4.0}
    forward = {"forward_proc": "forward_batch_only_as_kwargs"}
    config = {
        "num_epochs": 1,
        "teacher": forward | {"requires_grad": False, "forward_hook": hooks([place[1] for place in places])},
        "student": forward | {"forward_hook": hooks([place[0] for place in places])},
        "optimizer": {"key": "AdamW", "kwargs": {"lr": 1e-4, "weight_decay": 0.01}, "max_grad_norm": 1.0},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": terms},
            "func2extract_model_loss": "extract_model_loss_dict",
        },
    }
    box = get_distillation_box(teacher, student, {}, config, torch.device("cpu"), None, False, 1)
    student.train()
    teacher.eval()
    for batch in feed_of(settings).batches(gate):
        loss = box.forward_process(batch, targets=batch["attention_mask"], supp_dict=None)
        box.post_forward_process(loss=loss)


def hooks(modules: list[str]) -> dict[str, Any]:
    """Keep the outputs of these modules, and of the classifier."""
    return {"input": [], "output": [*modules, "classifier"]}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
