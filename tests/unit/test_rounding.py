"""A model that rounds as its export will."""

import pytest
import torch
from torch import nn

from nlp_distill.compress.rounding import rounded, rounding
from nlp_distill.testing import tiny_model


def test_rounding_has_so_many_levels_and_lets_gradients_through():
    x = torch.linspace(-1, 1, 1001, requires_grad=True)
    y = rounded(x, torch.tensor(-1.0), torch.tensor(1.0), 256)
    assert 255 <= len(y.unique()) <= 256
    assert (y - x).abs().max() <= 2 / 255
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize(("bits", "levels"), [(8, 255), (4, 16)])
def test_weights_round_within_the_block_and_are_themselves_after_it(bits, levels):
    model = nn.Sequential(nn.Linear(64, 64))
    before = model[0].weight.detach().clone()
    x = torch.randn(3, 64)
    exact = model(x)
    with rounding(model, bits):
        assert max(len(row.unique()) for row in model[0].weight) <= levels
        moved = (model(x) - exact).abs().max()
        model(x).sum().backward()
    assert 0 < moved < (0.05 if bits == 8 else 0.5)
    assert torch.equal(model[0].weight, before)
    assert torch.equal(model(x), exact)
    assert {name for name, _ in model.named_parameters()} == {"0.weight", "0.bias"}


def test_a_model_learns_through_it():
    torch.manual_seed(0)
    model = tiny_model(num_hidden_layers=1, num_labels=2).train()
    ids, labels = torch.randint(5, 30, (16, 8)), torch.arange(16) % 2
    with rounding(model, 8):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        losses = []
        for _ in range(40):
            loss = model(input_ids=ids, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2
