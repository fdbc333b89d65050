"""ExecuTorch programs (`.pte`) for phones: XNNPACK, any length, one row at a time.

Linear layers have int8 weights per channel and activations that are scaled for each token alone, so an answer never
depends on what else is asked. Embeddings are kept in 8 or 4 bits with core operators only: a runtime needs XNNPACK
and the portable kernels, no quantized ones.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nlp_distill.first_token import first_token_only

EXAMPLE_TOKENS = 9
"""Length of the rows that a program is traced with; any other between `SHORTEST` and its longest will do."""
SHORTEST = 2
"""Tokens of the shortest input: the special ones around an empty text."""


GROUP = 16
"""Neighbours in a row of a 4-bit table that share a scale; of 2,000 sentences 32 changed 23 labels, 16 changed 9."""


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
    """An embedding in 4 bits, two numbers a byte, a float16 scale for each `GROUP` of neighbours in a row."""

    rows: Tensor
    scales: Tensor

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        groups = embedding.weight.detach().view(embedding.num_embeddings, -1, GROUP)
        scales = _scales(groups, 7).half()
        numbers = (groups / scales.float()).round().clamp(-7, 7).flatten(1) + 8
        low, high = numbers.chunk(2, dim=1)
        self.register_buffer("scales", scales.squeeze(-1))
        self.register_buffer("rows", (low + 16 * high).to(torch.uint8))

    @property
    def weight(self) -> Tensor:
        """The whole table in float32, [rows, width]."""
        return self.forward(torch.arange(len(self.rows)))

    def forward(self, ids: Tensor) -> Tensor:
        """Rows of the table, [..., width]; unpacked by plain arithmetic, which every runtime has."""
        pairs = torch.embedding(self.rows, ids).float()
        high = (pairs / 16).floor()
        numbers = torch.cat([pairs - 16 * high, high], dim=-1) - 8
        scales = torch.embedding(self.scales, ids).float().unsqueeze(-1)
        return (numbers.view(*ids.shape, -1, GROUP) * scales).flatten(-2)


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
    model: PreTrainedModel,
    inputs: Sequence[str],
    longest: int,
    file: Path,
    word_bits: int | None = None,
    first_token: bool = False,
) -> None:
    """Write a model as a program for one row of up to `longest` tokens.

    `inputs`: names of the tensors that it takes, in order, `input_ids` first. `word_bits`: of the table of words,
    8 or 4, with int8 linear layers and other tables; None: all in float32. `first_token`: the last layer is run for
    [CLS] alone. The file itself says its `max_length`, `inputs` and `outputs`.
    """
    with quiet(), torch.no_grad():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

        program = Program(_eager(model), inputs)
        # A tensor for each: of the same one given twice torch.export makes one input.
        example = tuple(torch.ones(1, min(EXAMPLE_TOKENS, longest), dtype=torch.long) for _ in program.inputs)
        names = list(program.model(**dict(zip(program.inputs, example, strict=True))).keys())
        if word_bits is not None:
            _quantize(program, word_bits)
        tokens = torch.export.Dim("tokens", min=SHORTEST, max=longest)
        with first_token_only(program.model) if first_token else nullcontext():
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


def _quantize(program: Program, word_bits: int) -> None:
    """Int8 linear layers, activations scaled for each token; the table of words in `word_bits`, others in int8."""
    from torchao.quantization.granularity import PerAxis
    from torchao.quantization.quant_api import Int8DynamicActivationIntxWeightConfig, quantize_

    dynamic = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=PerAxis(0))
    quantize_(program, dynamic, lambda module, _: isinstance(module, nn.Linear))
    words = program.model.get_input_embeddings()
    # A width that groups do not divide stays in 8 bits.
    small = word_bits == 4 and words.embedding_dim % (2 * GROUP) == 0
    for parent in list(program.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Embedding):
                setattr(parent, name, Int4Embedding(child) if small and child is words else Int8Embedding(child))


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
