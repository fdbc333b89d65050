import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nlp_distill.embedding import embeddings_in_place

NUMBERS = torch.tensor([[1, 2, 2], [0, 7, 1]])


class Tied(nn.Module):
    """Words in and words out of one table, as T5 has them."""

    def __init__(self, padding: int | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(9, 4, padding_idx=padding)

    def forward(self, numbers):
        return F.linear(self.words(numbers).tanh(), self.words.weight)


def gradient(module: nn.Module) -> torch.Tensor:
    for micro in NUMBERS:
        module(micro).square().sum().backward()
    return module.get_parameter("words.weight").grad


@pytest.mark.parametrize("padding", [None, 0, 1])
def test_the_gradient_over_micro_batches_is_torchs(padding):
    plain = gradient(Tied(padding))
    with embeddings_in_place():
        module = Tied(padding)
        assert (module(NUMBERS) == Tied(padding)(NUMBERS)).all()
        torch.testing.assert_close(gradient(module), plain)
        first = module.words.weight.grad
        assert gradient(module) is first  # added to, not made again


def test_what_does_not_learn_is_left_alone():
    table = torch.ones(3, 2)
    with embeddings_in_place(), torch.no_grad():
        assert F.embedding(torch.tensor([2]), nn.Parameter(table)).grad_fn is None
    with embeddings_in_place():
        assert F.embedding(torch.tensor([2]), table).grad_fn is None
        made = nn.Parameter(table) * 2  # a table that is computed: its gradient goes on
        made.retain_grad()
        F.embedding(torch.tensor([2, 2]), made).sum().backward()
        assert made.grad.tolist() == [[0, 0], [0, 0], [2, 2]]
        listened = nn.Parameter(torch.ones(3, 2))
        listened.register_hook(lambda gradient: gradient * 10)
        F.embedding(torch.tensor([1]), listened).sum().backward()
        assert listened.grad.tolist() == [[0, 0], [10, 10], [0, 0]]


def test_a_padding_from_the_end_is_counted_as_torch_counts_it():
    table = nn.Parameter(torch.ones(5, 2))
    with embeddings_in_place():
        F.embedding(torch.tensor([4, 4, 1]), table, -1).sum().backward()
    assert table.grad.sum(1).tolist() == [0, 2, 0, 0, 0]


def test_numbers_outside_the_table_are_refused():
    with embeddings_in_place(), pytest.raises(IndexError):
        nn.Embedding(3, 2)(torch.tensor([3]))
    with embeddings_in_place(), pytest.raises(IndexError):
        nn.Embedding(3, 2)(torch.tensor([-1]))
