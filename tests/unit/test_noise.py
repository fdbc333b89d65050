"""Dropout's noise: of the probability asked for, a function of torch's seed, and torch's own again afterwards."""

import pytest
import torch
import torch.nn.functional as F

from nlp_distill.noise import fast_dropout

TYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.bool]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("p", [0.9, 0.5, 0.01])
def test_ones_have_their_probability_wherever_they_stand(dtype, p):
    torch.manual_seed(0)
    with fast_dropout():
        drawn = torch.empty(400_000, dtype=dtype).bernoulli_(p).double()
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    # Four numbers are cut from one; neighbours know nothing of each other either.
    error = 5 * (p * (1 - p) / 100_000) ** 0.5
    assert all(abs(float(lane.mean()) - p) < error for lane in drawn.view(-1, 4).T)
    pairs = (drawn[1:] * drawn[:-1]).mean()
    assert abs(float(pairs) - p * p) < 2 * error


@pytest.mark.parametrize(("p", "all_of_them"), [(0.0, 0.0), (1.0, 1.0), (0.99999, 1.0)])
def test_never_and_always(p, all_of_them):
    with fast_dropout():
        assert torch.empty(3, 7, dtype=torch.bfloat16).bernoulli_(p).eq(all_of_them).all()
        assert torch.empty(0).bernoulli_(p).numel() == 0


def test_it_is_a_function_of_the_seed_and_ends_with_its_context():
    x = torch.ones(64, 33)

    def dropped(seed):
        torch.manual_seed(seed)
        return F.dropout(x, 0.1)

    before = dropped(1)
    with fast_dropout():
        inside = dropped(1)
        assert torch.equal(inside, dropped(1)) and not torch.equal(inside, dropped(2))
        torch.manual_seed(1)
        assert not torch.equal(F.dropout(x, 0.1), F.dropout(x, 0.1))
    assert not torch.equal(before, inside) and torch.equal(before, dropped(1))


def test_the_dropout_of_attention_is_drawn_so_too():
    query = torch.randn(2, 2, 16, 8, requires_grad=True)
    torch.manual_seed(0)
    own = F.scaled_dot_product_attention(query, query, query, dropout_p=0.5)
    with fast_dropout():
        torch.manual_seed(0)
        fast = F.scaled_dot_product_attention(query, query, query, dropout_p=0.5)
        fast.sum().backward()
    assert not torch.equal(own, fast) and query.grad.isfinite().all()


def test_a_part_of_a_tensor_and_another_order_of_its_axes():
    whole = torch.full((6, 8), 3.0)
    with fast_dropout():
        whole.T[2:5].bernoulli_(0.5)
    assert set(whole[:, 2:5].unique().tolist()) == {0.0, 1.0} and whole[:, [0, 1, 5, 6, 7]].eq(3).all()
