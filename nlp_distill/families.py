"""What we know of an architecture: a table from `model_type` to the names of its parts.

Paths are relative to the base model (`model.base_model`), per-layer names to one block. Adding an architecture
is adding a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nlp_distill.errors import UnknownFamily

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Family:
    """Names of the parts of an encoder.

    `attention_scores`: queries and keys give the scores as QKᵀ/√d under a padding mask, with no position bias.
    """

    model_types: tuple[str, ...]
    layers: str
    query: str
    key: str
    value: str
    intermediate_size: str
    attention_scores: bool = True

    def layer_prefix(self, model: PreTrainedModel) -> str:
        """Start of the names of the blocks' weights in the whole model's state, up to the layer's number."""
        base = model.base_model_prefix if model.base_model is not model else ""
        return ".".join(part for part in (base, self.layers) if part) + "."

    def blocks(self, model: PreTrainedModel) -> nn.ModuleList:
        """The blocks, in order."""
        blocks: nn.ModuleList = model.base_model.get_submodule(self.layers)
        return blocks


FAMILIES = (
    Family(
        model_types=("bert", "roberta", "xlm-roberta"),
        layers="encoder.layer",
        query="attention.self.query",
        key="attention.self.key",
        value="attention.self.value",
        intermediate_size="intermediate_size",
    ),
    Family(
        model_types=("distilbert",),
        layers="transformer.layer",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        intermediate_size="hidden_dim",
    ),
)


def known_model_types() -> list[str]:
    """All model types of the table."""
    return sorted(name for family in FAMILIES for name in family.model_types)


def family_of(config: PretrainedConfig, reference: str = "") -> Family:
    """The row of a config's model type. Raises `UnknownFamily`."""
    for family in FAMILIES:
        if config.model_type in family.model_types:
            return family
    raise UnknownFamily(
        reference=reference or config.model_type,
        model_type=config.model_type,
        known=", ".join(known_model_types()),
    )
