"""A classifier's last block, run for the first token ([CLS]) alone: exact, as its head reads no other.

Keys and values are those of all tokens; query, output and feed-forward are the first token's. Two matrix products
of six are left of the block for every other token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nlp_distill.families import family_of

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel


def can_read_first(config: PretrainedConfig) -> bool:
    """Whether a classifier of this config reads the first token alone, and its last block can be run for it."""
    stacks = family_of(config).stacks
    return len(stacks) == 1 and stacks[0].first


@contextmanager
def first_token_only(model: PreTrainedModel) -> Iterator[None]:
    """Within the block the last layer's outputs, and its queries, are [B, 1, H]; the head's answers stay the same.

    Also while the model is traced for an export. The model must be one that `can_read_first`.
    """
    from torch import Tensor

    stack = family_of(model.config).stacks[0]
    block = stack.blocks(model)[-1]
    attention = block.get_submodule(stack.key.rpartition(".")[0])
    whole: list[Tensor] = []

    def shorten(_block: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """States [B, S, H] become [B, 1, H]; masks and biases [·, ·, S or 1, S] are cut to their first query."""
        whole[:] = [given[0]]
        rest = (x[:, :, :1] if isinstance(x, Tensor) and x.dim() == 4 else x for x in given[1:])
        return given[0][:, :1], *rest

    def lengthen(_projection: nn.Module, _given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (whole[0],)

    def name_whole(_attention: nn.Module, given: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """DistilBERT takes the number of its keys from what it is given as such."""
        return given, {name: whole[0] if name in ("key", "value") else value for name, value in named.items()}

    def forget(*_: Any) -> None:
        whole.clear()

    handles = [
        block.register_forward_pre_hook(shorten),
        block.register_forward_hook(forget),
        attention.register_forward_pre_hook(name_whole, with_kwargs=True),
        *(block.get_submodule(name).register_forward_pre_hook(lengthen) for name in (stack.key, stack.value)),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
