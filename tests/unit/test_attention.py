"""Attention with dropout, by heads: what torch's own gives for the same noise, forward and backward."""

import pytest
import torch
import torch.nn.functional as F

from nlp_distill.attention import attention_by_heads


def vectors(examples=3, heads=4, queries=80, keys=96, width=8, dtype=torch.float32):
    torch.manual_seed(1)
    shapes = (queries, keys, keys)
    return [torch.randn(examples, heads, n, width).to(dtype).requires_grad_() for n in shapes]


def attend(query, key, value, seed=0, p=0.3, **settings):
    torch.manual_seed(seed)
    with attention_by_heads():
        return F.scaled_dot_product_attention(query, key, value, dropout_p=p, **settings)


def noise_of(query, key, seed=0, p=0.3, **settings):
    """What was kept, read off the output where the values are the unit matrix: [B, heads, T, S]."""
    unit = torch.eye(key.shape[-2]).expand(*key.shape[:2], -1, -1)
    return attend(query.detach().float(), key.detach().float(), unit, seed, p, **settings).ne(0)


def by_hand(query, key, value, kept, p=0.3, mask=0.0):
    chances = torch.softmax(query.float() @ key.float().transpose(-1, -2) * query.shape[-1] ** -0.5 + mask, -1)
    return (chances * kept / (1 - p)) @ value.float()


padding = torch.zeros(3, 1, 1, 96).index_fill(3, torch.arange(90, 96), torch.finfo(torch.float32).min)
pairs = torch.rand(3, 1, 80, 96, generator=torch.Generator().manual_seed(0)).log()


@pytest.mark.parametrize(
    ("settings", "mask"),
    [
        ({}, 0.0),
        ({"attn_mask": padding.expand(3, 1, 80, 96)}, padding),
        ({"attn_mask": padding == 0}, padding),
        ({"attn_mask": pairs}, pairs),
        ({"is_causal": True}, torch.zeros(80, 96).masked_fill(torch.ones(80, 96).tril() == 0, float("-inf"))),
    ],
    ids=["nothing masked", "padding", "padding as truth", "pairs", "the past alone"],
)
def test_it_is_attention_forward_and_backward(settings, mask):
    query, key, value = vectors()
    kept = noise_of(query, key, **settings)
    expected = by_hand(query, key, value, kept, mask=mask)
    slope = torch.randn(expected.shape)
    wanted = torch.autograd.grad(expected, (query, key, value), slope)
    out = attend(query, key, value, **settings)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(torch.autograd.grad(out, (query, key, value), slope), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", [64, 200, 600])
def test_examples_heads_and_rows_have_noise_of_their_own(tokens):
    """Several examples a part, several heads of one, and one head that is more than a part."""
    query, key, _ = vectors(heads=8, queries=tokens, keys=tokens)
    kept = noise_of(query, key, p=0.1).float()
    assert kept.mean().item() == pytest.approx(0.9, abs=5 * (0.09 / kept.numel()) ** 0.5)
    rows = kept.flatten(0, 2)[:500] - kept.mean()
    alike = (rows @ rows.T / tokens / 0.09).fill_diagonal_(0)
    assert alike.abs().max() < 8 / tokens**0.5


def test_it_is_a_function_of_the_seed_and_ends_with_its_context():
    query, key, value = vectors()
    torchs = F.scaled_dot_product_attention
    assert torch.equal(attend(query, key, value), attend(query, key, value))
    assert not torch.equal(attend(query, key, value), attend(query, key, value, seed=1))
    with pytest.raises(ZeroDivisionError), attention_by_heads():
        assert F.scaled_dot_product_attention is not torchs
        raise ZeroDivisionError
    assert F.scaled_dot_product_attention is torchs


@pytest.mark.parametrize(("queries", "p"), [(80, 0.0), (8, 0.3)], ids=["without dropout", "short rows"])
def test_what_torch_does_well_is_left_to_it(queries, p):
    query, key, value = vectors(queries=queries)
    torch.manual_seed(0)
    expected = F.scaled_dot_product_attention(query, key, value, dropout_p=p)
    assert torch.equal(attend(query, key, value, p=p), expected)


def test_products_in_bf16_and_the_softmax_in_fp32():
    query, key, value = vectors()
    kept = noise_of(query.bfloat16(), key.bfloat16())
    expected = by_hand(query.bfloat16(), key.bfloat16(), value.bfloat16(), kept)
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(query, key, value)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=0.02, atol=0.02)
    out.sum().backward()
    assert query.grad.dtype == torch.float32 and value.grad.isfinite().all()
    torch.testing.assert_close(value.grad, torch.autograd.grad(expected.sum(), value)[0], rtol=0.05, atol=0.05)
