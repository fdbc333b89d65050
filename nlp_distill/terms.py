"""The terms of a distillation, as a recipe gives them; `objective` computes them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nlp_distill.settings import Number, Settings, Whole

StackName = Literal["encoder", "decoder"]


class Term(Settings):
    """One term of the objective."""

    weight: Number = Field(1.0, gt=0, description="Factor of the term in the sum.")


class LogitsTerm(Term):
    """The teacher's outputs (Hinton et al. 2015). Regression always uses `mse`."""

    kind: Literal["logits"] = "logits"
    distance: Literal["kl", "reverse_kl", "jsd", "mse"] = Field("kl", description="Distance of the distributions.")
    temperature: Number = Field(
        2.0, gt=0, le=100, description="Softens both distributions; the term is multiplied by T²."
    )


class LabelsTerm(Term):
    """The task's own loss on the true labels (cross entropy, its multi-label form, or squared error)."""

    kind: Literal["labels"] = "labels"


class LayerTerm(Term):
    """A term about the supervised layers."""

    layers: Literal["all", "last"] = Field("all", description="All supervised layers, or the last of each stack.")
    stacks: list[StackName] | None = Field(
        None, min_length=1, description="Of a seq2seq model: which stacks; unset: all that the model has."
    )


class HiddenTerm(LayerTerm):
    """Outputs of the supervised layers (FitNets, TinyBERT; `gram`: similarity of tokens)."""

    kind: Literal["hidden"] = "hidden"
    distance: Literal["mse", "cosine", "gram"] = Field("mse", description="Distance of the layer outputs.")
    tokens: Literal["all", "first"] = Field("all", description="All tokens, or the first alone ([CLS], as PKD).")

    @model_validator(mode="after")
    def _several(self) -> HiddenTerm:
        if self.distance == "gram" and self.tokens == "first":
            raise ValueError("`gram` compares the tokens of an example with each other: it needs `tokens: all`")
        return self


class AttentionTerm(LayerTerm):
    """Attention scores of the supervised layers, before (`mse`) or after (`kl`) the softmax (TinyBERT)."""

    kind: Literal["attention"] = "attention"
    distance: Literal["mse", "kl"] = Field("mse", description="Distance of the attention scores.")
    of: Literal["self", "cross"] = Field(
        "self", description="`cross`: the decoder's attention to the encoder, instead of each stack's to itself."
    )


class RelationTerm(LayerTerm):
    """Query, key and value relations (MiniLM, MiniLMv2)."""

    kind: Literal["relation"] = "relation"
    of: list[Literal["query", "key", "value"]] = Field(
        ["query", "key", "value"], description="Which vectors to relate to themselves.", min_length=1
    )
    heads: Whole = Field(12, ge=1, description="Relation heads; must divide both widths.")
    layers: Literal["all", "last"] = Field("last", description="All supervised layers, or the last (as MiniLM).")


AnyTerm = Annotated[LogitsTerm | LabelsTerm | HiddenTerm | AttentionTerm | RelationTerm, Field(discriminator="kind")]
