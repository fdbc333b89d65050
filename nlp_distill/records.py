"""How a teacher's signal lies on disk: a flat file of records, in one of five forms, written and read without loss of
order. What a record is of (a token, a row) is the cache's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nlp_distill.signals import Signal, TopLogits, moved

TOP = 64
"""Logits kept of a token whose distribution is wide."""
WIDE = 4 * TOP
FORMS = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}


@dataclass(frozen=True)
class Part:
    """One signal: a flat file of records. `axis`: what its records are of; `width`: numbers in one.

    `form`: float32, bfloat16, int8 (with a scale a record), top or, in half precision, top16 (`TopLogits`).
    `fill`: what stands at padding.
    """

    kind: str
    place: tuple[Any, ...]
    axis: str
    width: int
    form: str
    scalar: bool = False
    fill: float = 0.0
    temperatures: tuple[float, ...] = ()

    @property
    def file(self) -> str:
        """Its name."""
        return ".".join(map(str, (self.kind, *self.place))) + ".bin"

    @property
    def key(self) -> Any:
        """Where a `Signal` keeps it, among others of its kind."""
        return self.place[0] if self.kind == "logits" else self.place

    def of(self, signal: Signal) -> Tensor:
        """Its values in what a teacher gave."""
        kept = getattr(signal, self.kind)
        values: Tensor = kept if self.kind == "encoded" else kept[self.key]
        return values

    def put(self, signal: Signal, values: Tensor | TopLogits) -> None:
        """Fill its place in a signal."""
        if self.kind == "encoded":
            signal.encoded = values  # type: ignore[assignment]
        else:
            getattr(signal, self.kind)[self.key] = values

    @property
    def record(self) -> np.dtype[Any]:
        """The layout of a record."""
        fields: dict[str, list[Any]] = {
            "float32": [("values", "<f4", (self.width,))],
            "bfloat16": [("values", "<i2", (self.width,))],
            "int8": [("values", "i1", (self.width,)), ("scale", "<f4", (1,))],
        }
        for form, values in (("top", "<f4"), ("top16", "<f2")):
            tails = ("tails", "<f4", (len(self.temperatures),))
            fields[form] = [("values", values, (TOP,)), ("indices", "<i4", (TOP,)), tails]
        return np.dtype(fields[self.form])

    def encode(self, rows: Tensor) -> NDArray[Any]:
        """Records of rows [N, width]."""
        rows, records = rows.float(), np.empty(len(rows), self.record)
        if not self.form.startswith("top"):
            rows = rows.cpu()
        if self.form == "float32":
            records["values"] = rows.numpy()
        elif self.form == "bfloat16":
            records["values"] = rows.bfloat16().view(torch.int16).numpy()
        elif self.form == "int8":
            scale = (rows.abs().amax(1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
            records["values"], records["scale"] = (rows / scale).round().to(torch.int8).numpy(), scale.numpy()
        else:
            top = rows.topk(TOP, dim=-1)
            largest, others = top.values[:, :1], rows.scatter(-1, top.indices, -torch.inf)
            # Half precision ends at 65504; what lies so far below the largest has no probability.
            records["values"] = (top.values - largest).clamp(min=-6e4).cpu().numpy()
            records["indices"] = top.indices.cpu().numpy()
            for number, temperature in enumerate(self.temperatures):
                records["tails"][:, number] = ((others - largest) / temperature).logsumexp(-1).cpu().numpy()
        return records

    def decode(self, records: NDArray[Any], mask: Tensor) -> Tensor | TopLogits:
        """What the teacher gave, at the places that the mask counts."""

        def spread(field: str, fill: float = 0.0) -> Tensor:
            return padded(torch.from_numpy(np.ascontiguousarray(records[field])), mask, fill)

        if self.form.startswith("top"):
            tails = spread("tails")
            by_temperature = {temperature: tails[..., number] for number, temperature in enumerate(self.temperatures)}
            return TopLogits(spread("values"), spread("indices").long(), by_temperature)
        if self.form == "bfloat16":
            values = torch.from_numpy(np.ascontiguousarray(records["values"])).view(torch.bfloat16)
            return padded(values, mask, self.fill)
        values = spread("values", self.fill)
        if self.form == "int8":
            values = values.float() * spread("scale")
        return values.squeeze(-1) if self.scalar else values


def padded(values: Tensor, mask: Tensor, fill: float) -> Tensor:
    """Values [N, W] at the N places of a mask [B] or [B, S]; `fill` at the others."""
    values = moved(values, mask.device)
    if bool(mask.all()):
        return values.view(*mask.shape, values.shape[-1])
    spread = values.new_full((*mask.shape, values.shape[-1]), fill)
    spread[mask] = values
    return spread
