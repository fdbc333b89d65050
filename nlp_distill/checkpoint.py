"""Failure-atomic checkpoints in safetensors and JSON.

A checkpoint is a folder `step-NNNNNNNN` that appears complete or not at all; `manifest.json` in it has the
sha256 of each file. Never fewer than two complete ones are kept while a stage runs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nlp_distill.rundir import new_folder, sha256_file, write_json

KEPT = 2


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
            for name in ("weights", "optimizer", "best"):
                tensors: dict[str, Tensor] = getattr(checkpoint, name)
                save_file(_apart(tensors), temporary / f"{name}.safetensors")
            write_json(temporary / "state.json", {**checkpoint.state, "key": self.key})
            files = sorted(file for file in temporary.iterdir())
            write_json(temporary / "manifest.json", {file.name: sha256_file(file) for file in files})
        for old in self._folders()[:-KEPT]:
            shutil.rmtree(old)

    def load(self) -> Checkpoint | None:
        """The newest complete checkpoint of this key; damaged ones are moved aside (`moved_aside` names them)."""
        for folder in reversed(self._folders()):
            if not self._complete(folder):
                if not self.main:
                    continue
                aside = folder.with_name(f"damaged-{folder.name}")
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
                self.moved_aside.append(aside.name)
                continue
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            if state.pop("key") != self.key:
                return None
            parts = {name: load_file(folder / f"{name}.safetensors") for name in ("weights", "optimizer", "best")}
            return Checkpoint(state=state, **parts)
        return None

    def _folders(self) -> list[Path]:
        return sorted(self.path.glob("step-*")) if self.path.is_dir() else []

    @staticmethod
    def _complete(folder: Path) -> bool:
        manifest = folder / "manifest.json"
        if not manifest.is_file():
            return False
        try:
            sums: Mapping[str, str] = json.loads(manifest.read_text(encoding="utf-8"))
        except ValueError:
            return False
        return all((folder / name).is_file() and sha256_file(folder / name) == sha for name, sha in sums.items())


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
