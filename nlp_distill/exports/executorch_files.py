"""ExecuTorch programs (`.pte`) for phones: XNNPACK, any length, one row at a time.

Linear layers have int8 weights per channel and activations that are scaled for each token alone, so an answer never
depends on what else is asked. Embeddings are kept in 8 or 4 bits with core operators only: a runtime needs XNNPACK
and the portable kernels, no quantized ones.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

EXAMPLE_TOKENS = 9
"""Length of the rows that a program is traced with; any other between `SHORTEST` and its longest will do."""
SHORTEST = 2
"""Tokens of the shortest input: the special ones around an empty text."""


Kept = Callable[[nn.Embedding], nn.Module]
"""Makes what stands for an embedding."""


class Int8Embedding(nn.Module):
    """An embedding in int8, a scale for each row."""

    rows: Tensor
    scales: Tensor

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        weight = embedding.weight.detach()
        scales = _scales(weight, 127)
        self.register_buffer("scales", scales)
        self.register_buffer("rows", (weight / scales).round().to(torch.int8))

    @property
    def weight(self) -> Tensor:
        """The whole table in float32, [rows, width]."""
        return self.rows.float() * self.scales

    def forward(self, ids: Tensor) -> Tensor:
        """Rows of the table, [..., width]."""
        return torch.embedding(self.rows, ids).float() * torch.embedding(self.scales, ids)


class Int4Embedding(nn.Module):
    """An embedding in 4 bits, two numbers a byte, a float16 scale for each `group` of neighbours in a row."""

    rows: Tensor
    scales: Tensor

    def __init__(self, embedding: nn.Embedding, group: int) -> None:
        super().__init__()
        weight = embedding.weight.detach()
        count, width = weight.shape
        self.group = group if width % group == 0 else width
        scales = _scales(weight.view(count, -1, self.group), 7).half()
        numbers = (weight.view(count, -1, self.group) / scales.float()).round().clamp(-7, 7).view(count, width) + 8
        low, high = numbers.chunk(2, dim=1) if width % 2 == 0 else (numbers, torch.zeros_like(numbers))
        self.register_buffer("scales", scales.squeeze(-1))
        self.register_buffer("rows", (low + 16 * high).to(torch.uint8))
        self.width = width

    @property
    def weight(self) -> Tensor:
        """The whole table in float32, [rows, width]."""
        return self.forward(torch.arange(len(self.rows)))

    def forward(self, ids: Tensor) -> Tensor:
        """Rows of the table, [..., width]; unpacked by plain arithmetic, which every runtime has."""
        bytes_ = torch.embedding(self.rows, ids).float()
        high = (bytes_ / 16).floor()
        numbers = torch.cat([bytes_ - 16 * high, high], dim=-1)[..., : self.width] - 8
        scales = torch.embedding(self.scales, ids).float().unsqueeze(-1)
        return (numbers.view(*ids.shape, -1, self.group) * scales).flatten(-2)


def _scales(values: Tensor, top: int) -> Tensor:
    """What the largest number of each last axis is divided by to become `top`."""
    return values.abs().amax(-1, keepdim=True).clamp(min=1e-8) / top


class Program(nn.Module):
    """What a file computes: all outputs of a model for one row of any length, none of it padding."""

    def __init__(self, model: PreTrainedModel, inputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.inputs = model, tuple(inputs)

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Each input [1, tokens] in the order of `inputs`; each output as the model gives it."""
        whole = torch.ones_like(given[0])
        outputs: tuple[Tensor, ...] = self.model(
            **dict(zip(self.inputs, given, strict=True)), attention_mask=whole, return_dict=True
        ).to_tuple()
        return outputs


def write_program(
    model: PreTrainedModel, inputs: Sequence[str], longest: int, file: Path, embedding: Kept | None
) -> None:
    """Write a model as a program for one row of up to `longest` tokens.

    `inputs`: names of the tensors that it takes, in order, `input_ids` first. `embedding`: how embeddings are kept,
    with int8 linear layers; None: all in float32. The file says `max_length`, `inputs` and `outputs` itself.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    with quiet(), torch.no_grad():
        program = Program(_eager(model), inputs)
        # A tensor for each: of the same one given twice torch.export makes one input.
        example = tuple(torch.ones(1, EXAMPLE_TOKENS, dtype=torch.long) for _ in program.inputs)
        names = list(program.model(**dict(zip(program.inputs, example, strict=True))).keys())
        if embedding is not None:
            _quantize(program, embedding)
        tokens = torch.export.Dim("tokens", min=SHORTEST, max=longest)
        exported = torch.export.export(
            program, example, dynamic_shapes={"given": ({1: tokens},) * len(example)}, strict=False
        )
        lowered = to_edge_transform_and_lower(
            exported,
            partitioner=[XnnpackPartitioner()],
            # Its check knows no int8 tables behind `embedding`; ours is the comparison on real rows.
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
            constant_methods={"max_length": longest, "inputs": ",".join(program.inputs), "outputs": ",".join(names)},
        )
        file.write_bytes(lowered.to_executorch().buffer)


def _eager(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with plain attention: what SDPA becomes in a program takes three times as long at 128 tokens."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"
    plain = type(model)(config).eval()
    plain.load_state_dict(model.state_dict())
    return plain


def _quantize(program: Program, embedding: Kept) -> None:
    """Int8 linear layers, activations scaled for each token; tables of embeddings as they are to be kept."""
    from torchao.quantization.granularity import PerAxis
    from torchao.quantization.quant_api import Int8DynamicActivationIntxWeightConfig, quantize_

    dynamic = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=PerAxis(0))
    quantize_(program, dynamic, lambda module, _: isinstance(module, nn.Linear))
    for parent in list(program.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Embedding):
                setattr(parent, name, embedding(child))


@contextmanager
def quiet(level: int = logging.WARNING) -> Iterator[None]:
    """torch.export, torchao and ExecuTorch warn about what we check ourselves, by parity on real rows."""
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
