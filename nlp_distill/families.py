"""What we know of an architecture: a table from `model_type` to the names of its parts.

Paths of stacks are relative to the base model (`model.base_model`), per-layer names to one block. Adding an
architecture is adding a row. A model has one stack of blocks, or two: `encoder` and `decoder`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nlp_distill.errors import UnknownFamily

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

Place = tuple[str, int]
"""A layer: the name of its stack and its number in it, from 0."""


@dataclass(frozen=True)
class Stack:
    """Names of the parts of one stack of blocks.

    `depth`: config fields with the number of blocks; the first is read, all are written. `cross`: query, key and
    value of the attention to the encoder. `scores`: how queries and keys give the attention scores: `scaled` (by
    1/√d), `plain`, or `none` where they do not do so alone. `bias`: an embedding, called once a forward, whose
    output [Q, K, heads] is added to the scores of every layer. `shared`: one block, applied `depth` times: a
    layer is then an application of it, and fewer layers are fewer applications. `part`: the part of a composed
    config that describes the stack. `first`: a classifier's head reads the first token alone, and the last block can
    be run for it alone (`first_token`).
    """

    name: str
    layers: str
    query: str
    key: str
    value: str
    depth: tuple[str, ...] = ("num_hidden_layers",)
    heads: str = "num_attention_heads"
    head_width: str | None = None
    intermediate_size: str = "intermediate_size"
    cross: tuple[str, str, str] | None = None
    scores: str = "scaled"
    bias: str | None = None
    shared: bool = False
    part: str | None = None
    first: bool = False

    @property
    def projections(self) -> tuple[str, ...]:
        """Names of all queries, keys and values of a block."""
        return (self.query, self.key, self.value, *(self.cross or ()))

    def config(self, config: PretrainedConfig) -> Any:
        """The config that describes this stack."""
        return config if self.part is None else getattr(config, self.part)

    def count(self, config: PretrainedConfig) -> int:
        """Number of layers."""
        return int(getattr(self.config(config), self.depth[0]))

    def set_count(self, config: PretrainedConfig, layers: int) -> None:
        """Write the number of layers into a config."""
        for field in self.depth:
            setattr(self.config(config), field, layers)

    def width(self, config: PretrainedConfig) -> int:
        """Width of a layer's output."""
        return int(self.config(config).hidden_size)

    def head_count(self, config: PretrainedConfig) -> int:
        """Attention heads of a layer."""
        return int(getattr(self.config(config), self.heads))

    def projection_width(self, config: PretrainedConfig) -> int:
        """Width of the queries, keys and values of all heads."""
        if self.head_width is None:
            return self.width(config)
        return self.head_count(config) * int(getattr(self.config(config), self.head_width))

    def prefix(self, model: PreTrainedModel) -> str:
        """Start of the names of the blocks' weights in the whole model's state, up to the layer's number."""
        base = model.base_model_prefix if model.base_model is not model else ""
        return ".".join(part for part in (base, self.layers) if part) + "."

    def blocks(self, model: PreTrainedModel) -> list[nn.Module]:
        """The blocks, in order; a shared block once for each of its applications."""
        module = model.base_model.get_submodule(self.layers)
        if self.shared:
            return [module] * self.count(model.config)
        return list(module.children())


@dataclass(frozen=True)
class Family:
    """The stacks of an architecture."""

    model_types: tuple[str, ...]
    stacks: tuple[Stack, ...]

    def stack(self, name: str) -> Stack:
        """A stack by name."""
        return next(stack for stack in self.stacks if stack.name == name)


BERT = Stack(
    "encoder", "encoder.layer", "attention.self.query", "attention.self.key", "attention.self.value", first=True
)
BART: dict[str, Any] = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
}
BART_CROSS = ("encoder_attn.q_proj", "encoder_attn.k_proj", "encoder_attn.v_proj")
T5: dict[str, Any] = {
    "query": "layer.0.SelfAttention.q",
    "key": "layer.0.SelfAttention.k",
    "value": "layer.0.SelfAttention.v",
    "heads": "num_heads",
    "head_width": "d_kv",
    "intermediate_size": "d_ff",
    "scores": "plain",
}
T5_CROSS = ("layer.1.EncDecAttention.q", "layer.1.EncDecAttention.k", "layer.1.EncDecAttention.v")

FAMILIES = (
    Family(("bert", "roberta", "xlm-roberta", "electra"), (BERT,)),
    Family(
        ("distilbert",),
        (
            Stack(
                "encoder",
                "transformer.layer",
                "attention.q_lin",
                "attention.k_lin",
                "attention.v_lin",
                intermediate_size="hidden_dim",
                first=True,
            ),
        ),
    ),
    Family(
        ("mpnet",),
        (
            Stack(
                "encoder",
                "encoder.layer",
                "attention.attn.q",
                "attention.attn.k",
                "attention.attn.v",
                bias="encoder.relative_attention_bias",
                first=True,
            ),
        ),
    ),
    # Disentangled attention adds content-to-position scores: queries and keys alone do not give them.
    Family(
        ("deberta-v2",),
        (
            Stack(
                "encoder",
                "encoder.layer",
                "attention.self.query_proj",
                "attention.self.key_proj",
                "attention.self.value_proj",
                scores="none",
            ),
        ),
    ),
    Family(
        ("albert",),
        (
            Stack(
                "encoder",
                "encoder.albert_layer_groups.0.albert_layers.0",
                "attention.query",
                "attention.key",
                "attention.value",
                shared=True,
            ),
        ),
    ),
    Family(
        ("bart", "mbart", "marian", "pegasus"),
        (
            Stack(
                "encoder",
                "encoder.layers",
                **BART,
                depth=("encoder_layers", "num_hidden_layers"),
                heads="encoder_attention_heads",
                intermediate_size="encoder_ffn_dim",
            ),
            Stack(
                "decoder",
                "decoder.layers",
                **BART,
                depth=("decoder_layers",),
                heads="decoder_attention_heads",
                intermediate_size="decoder_ffn_dim",
                cross=BART_CROSS,
            ),
        ),
    ),
    Family(
        ("t5", "mt5"),
        (
            Stack(
                "encoder",
                "encoder.block",
                **T5,
                depth=("num_layers",),
                bias="encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
            ),
            Stack(
                "decoder",
                "decoder.block",
                **T5,
                depth=("num_decoder_layers",),
                cross=T5_CROSS,
                bias="decoder.block.0.layer.0.SelfAttention.relative_attention_bias",
            ),
        ),
    ),
)


def _encoder_decoder(config: PretrainedConfig) -> Family:
    """Two encoders' stacks in one model, the second with attention to the first (BERT2BERT)."""
    (encoder,) = family_of(config.encoder).stacks
    (decoder,) = family_of(config.decoder).stacks
    base = BASES[config.decoder.model_type]
    cross = tuple(
        name.replace("attention.", "crossattention.", 1) for name in (decoder.query, decoder.key, decoder.value)
    )
    return Family(
        ("encoder-decoder",),
        (
            replace(encoder, layers=f"encoder.{encoder.layers}", part="encoder"),
            replace(
                decoder,
                name="decoder",
                layers=f"decoder.{base}.{decoder.layers}",
                cross=(cross[0], cross[1], cross[2]),
                part="decoder",
            ),
        ),
    )


BASES = {"bert": "bert", "roberta": "roberta", "xlm-roberta": "roberta", "electra": "electra"}
"""Name of the body inside a causal model of a type that can be the decoder of an `encoder-decoder`: these alone can
be made an encoder and a decoder of one model (a warm start)."""

COMPOSED: dict[str, Callable[[PretrainedConfig], Family]] = {"encoder-decoder": _encoder_decoder}
"""Types that are made of two others: what we know of them depends on the config."""


GROUPS = ("num_hidden_groups", "inner_group_num")
"""Numbers of ALBERT's blocks: the table knows models of one, which all of its checkpoints are."""


def known_model_types() -> list[str]:
    """All model types of the table."""
    return sorted([*COMPOSED, *(name for family in FAMILIES for name in family.model_types)])


def unknown_family(reference: str, model_type: Any) -> UnknownFamily:
    """The error for a type that is not in the table; it says so where the type is a decoder alone."""
    from transformers.models.auto import modeling_auto as auto

    others = (auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
    kind = str(model_type)
    alone = kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not any(kind in kinds for kinds in others)
    hint = " A decoder alone is not distilled here; take an encoder, or an encoder with a decoder." if alone else ""
    return UnknownFamily(reference=reference, model_type=model_type, known=", ".join(known_model_types()), hint=hint)


def family_of(config: PretrainedConfig, reference: str = "") -> Family:
    """The row of a config's model type. Raises `UnknownFamily`."""
    if config.model_type in COMPOSED:
        return COMPOSED[config.model_type](config)
    for family in FAMILIES:
        if config.model_type in family.model_types:
            groups = ", ".join(f"{name} {n}" for name in GROUPS if (n := getattr(config, name, 1)) != 1)
            if groups:
                raise unknown_family(reference or config.model_type, f"{config.model_type} with {groups}")
            return family
    raise unknown_family(reference or config.model_type, config.model_type)


def encoder_of(model: Any) -> Any:
    """The encoder of a model that has a decoder; LoRA around it and a classifier's head have no door of their own."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    return whole.base_model.get_encoder()
