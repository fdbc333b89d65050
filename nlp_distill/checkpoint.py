"""Failure-atomic checkpoints in safetensors and JSON.

A checkpoint is a folder `step-NNNNNNNN` that appears complete or not at all: temporary folder → fsync → sha256
manifest → rename → older ones dropped, never below two → `LATEST`. What is read was verified first.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nlp_distill.rundir import new_folder, sha256_file, write_json, write_text

KEPT = 2
TENSORS = ("weights", "optimizer", "best")
FILES = {"state.json", *(f"{name}.safetensors" for name in TENSORS)}


@dataclass
class Checkpoint:
    """A moment of a training: weights, optimizer moments, best weights so far, and plain state."""

    state: dict[str, Any]
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    best: dict[str, Tensor]


class CheckpointFolder:
    """The checkpoints of one stage. `key`: those written under another key are never resumed from."""

    def __init__(self, path: Path, key: str, main: bool = True) -> None:
        self.path, self.key, self.main = path, key, main
        self.moved_aside: list[str] = []

    def save(self, checkpoint: Checkpoint) -> None:
        """Write, publish, then drop all but the newest two."""
        folder = self.path / f"step-{checkpoint.state['step']:08d}"
        if folder.exists():
            return
        with new_folder(folder) as temporary:
            for name in TENSORS:
                tensors: dict[str, Tensor] = getattr(checkpoint, name)
                save_file(_apart(tensors), temporary / f"{name}.safetensors")
            write_json(temporary / "state.json", {**checkpoint.state, "key": self.key})
            write_json(temporary / "manifest.json", {name: sha256_file(temporary / name) for name in sorted(FILES)})
        for old in self._folders()[:-KEPT]:
            shutil.rmtree(old)
        write_text(self.path / "LATEST", f"{folder.name}\n")

    def load(self) -> Checkpoint | None:
        """The newest intact checkpoint of this key; damaged ones are moved aside (`moved_aside` names them)."""
        for folder in reversed(self._folders()):
            found = _read(folder)
            if found is not None:
                return found if found.state.pop("key") == self.key else None
            if self.main:
                aside = folder.with_name(f"damaged-{folder.name}")
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
                self.moved_aside.append(aside.name)
        return None

    def _folders(self) -> list[Path]:
        return sorted(self.path.glob("step-*")) if self.path.is_dir() else []


def _read(folder: Path) -> Checkpoint | None:
    """A checkpoint whose every file is what its manifest says; None for any other."""
    try:
        sums: Any = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        whole = isinstance(sums, dict) and sums == {name: sha256_file(folder / name) for name in FILES}
        if not whole:
            return None
        state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if folder.name != f"step-{state['step']:08d}":
            return None
        return Checkpoint(state, *(load_file(folder / f"{name}.safetensors") for name in TENSORS))
    except (OSError, ValueError, SafetensorError):
        return None


def optimizer_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's state as named tensors: `PARAMETER|exp_avg` and so on."""
    named = {}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            named[f"{name}|{key}"] = value
    return named


def restore_optimizer(module: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put named tensors back as the optimizer's state."""
    parameters = dict(module.named_parameters())
    for full_name, value in tensors.items():
        name, key = full_name.rsplit("|", 1)
        parameter = parameters[name]
        optimizer.state[parameter][key] = value.to(parameter.device)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, each in memory of its own: safetensors refuses tied weights, one tensor under several names."""
    seen: set[int] = set()
    made = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        made[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return made
