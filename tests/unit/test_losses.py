"""Losses against definitions written out by hand, and the properties that the step's normalisation rests on."""

import math

import pytest
import torch
import torch.nn.functional as F

from nlp_distill import losses, objective
from nlp_distill.records import Part

B, S, H, A, C = 3, 5, 8, 2, 4


@pytest.fixture
def g():
    return torch.Generator().manual_seed(0)


def rand(g, *shape):
    return torch.randn(*shape, generator=g)


MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]], dtype=torch.bool)
PAIRS = MASK[:, :, None] & MASK[:, None, :]
ROWS = torch.tensor([True, True, False])


def test_kl_is_torchs_with_t_squared(g):
    s, t = rand(g, B, C), rand(g, B, C)
    expected = F.kl_div(F.log_softmax(s / 3, -1)[:2], F.softmax(t / 3, -1)[:2], reduction="sum") * 9
    assert torch.allclose(losses.logits_kl(s, t, ROWS, temperature=3, softmax=True), expected, atol=1e-6)
    reverse = F.kl_div(F.log_softmax(t / 3, -1)[:2], F.softmax(s / 3, -1)[:2], reduction="sum") * 9
    assert torch.allclose(losses.logits_reverse_kl(s, t, ROWS, temperature=3, softmax=True), reverse, atol=1e-6)


def test_jsd_is_symmetric_and_bounded(g):
    s, t = 50 * rand(g, B, C), 50 * rand(g, B, C)
    mask = torch.ones(B, dtype=torch.bool)
    one = losses.logits_jsd(s, t, mask, temperature=1, softmax=True)
    assert torch.allclose(one, losses.logits_jsd(t, s, mask, temperature=1, softmax=True), atol=1e-6)
    assert 0 < one <= B * math.log(2) + 1e-6


def test_sigmoid_form_treats_each_label_as_a_distribution(g):
    s, t = rand(g, B, C), rand(g, B, C)
    p, q = torch.sigmoid(t / 2), torch.sigmoid(s / 2)
    by_hand = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean(-1)[:2].sum() * 4
    assert torch.allclose(losses.logits_kl(s, t, ROWS, temperature=2, softmax=False), by_hand, atol=1e-5)


def test_logits_mse(g):
    s, t = rand(g, B, C), rand(g, B, C)
    expected = (s - t).square().mean(-1)[:2].sum()
    assert torch.allclose(losses.logits_mse(s, t, ROWS, temperature=2, softmax=True), expected)
    # Where nothing can be, as behind the end of a shorter text, there is nothing to learn and nothing to count.
    wider = [torch.cat([logits, torch.full((B, 7), -1e5)], 1) for logits in (s, t)]
    assert torch.allclose(losses.logits_mse(*wider, ROWS, temperature=2, softmax=True), expected)


def test_hidden_mse_and_cosine_by_loop(g):
    s, t = rand(g, B, S, H), rand(g, B, S, H)
    mse = sum(((s[b, i] - t[b, i]) ** 2).mean() for b in range(B) for i in range(S) if MASK[b, i])
    cosine = sum(1 - F.cosine_similarity(s[b, i], t[b, i], dim=0) for b in range(B) for i in range(S) if MASK[b, i])
    assert torch.allclose(losses.hidden_mse(s, t, MASK), mse, atol=1e-5)
    assert torch.allclose(losses.hidden_cosine(s, t, MASK), cosine, atol=1e-5)


def test_gram_by_loop_and_any_widths(g):
    s, t = rand(g, B, S, H), rand(g, B, S, 3)
    total = torch.tensor(0.0)
    for b in range(B):
        n = int(MASK[b].sum())
        x, y = F.normalize(s[b, :n], dim=-1), F.normalize(t[b, :n], dim=-1)
        total += ((x @ x.T - y @ y.T) ** 2).sum() / n
    assert torch.allclose(losses.hidden_gram(s, t, MASK), total, atol=1e-5)


def test_gram_ignores_a_rotation_of_the_student(g):
    t = rand(g, B, S, H)
    rotation, _ = torch.linalg.qr(rand(g, H, H))
    assert losses.hidden_gram(t @ rotation, t, MASK) < 1e-8


def test_attention_losses_by_loop(g):
    s, t = rand(g, B, A, S, S), rand(g, B, A, S, S)
    mse, kl = torch.tensor(0.0), torch.tensor(0.0)
    for b in range(B):
        n = int(MASK[b].sum())
        x, y = s[b, :, :n, :n], t[b, :, :n, :n]
        mse += ((x - y) ** 2).mean(0).sum() / n
        kl += F.kl_div(F.log_softmax(x, -1), F.softmax(y, -1), reduction="sum") / A
    assert torch.allclose(losses.attention_mse(s, t, PAIRS), mse, atol=1e-5)
    assert torch.allclose(losses.attention_kl(s, t, PAIRS), kl, atol=1e-5)


def test_relation_takes_different_widths_and_is_zero_on_itself(g):
    s, t = rand(g, B, S, H), rand(g, B, S, 2 * H)
    assert losses.relation_kl(s, t, PAIRS, heads=4) > 0
    assert losses.relation_kl(t, t, PAIRS, heads=4).abs() < 1e-5


def cases(g):
    yield losses.logits_kl, (rand(g, B, C), rand(g, B, C)), ROWS, {"temperature": 2.0, "softmax": True}
    yield (
        losses.logits_reverse_kl,
        (rand(g, B, C), rand(g, B, C)),
        ROWS,
        {"temperature": 2.0, "softmax": False},
    )
    yield losses.logits_jsd, (rand(g, B, C), rand(g, B, C)), ROWS, {"temperature": 2.0, "softmax": True}
    yield losses.hidden_mse, (rand(g, B, S, H), rand(g, B, S, H)), MASK, {}
    yield losses.hidden_cosine, (rand(g, B, S, H), rand(g, B, S, H)), MASK, {}
    yield losses.hidden_gram, (rand(g, B, S, H), rand(g, B, S, H)), MASK, {}
    yield losses.attention_mse, (rand(g, B, A, S, S), rand(g, B, A, S, S)), PAIRS, {}
    yield losses.attention_kl, (rand(g, B, A, S, S), rand(g, B, A, S, S)), PAIRS, {}
    yield losses.relation_kl, (rand(g, B, S, H), rand(g, B, S, H)), PAIRS, {"heads": 2}


def test_sums_add_over_examples_and_ignore_what_is_masked(g):
    """What accumulation rests on: a batch's sum is the sum of its parts' sums, whatever the padding holds."""
    for loss, (s, t), mask, settings in cases(g):
        whole = loss(s, t, mask, **settings)
        parts = sum(loss(s[i : i + 1], t[i : i + 1], mask[i : i + 1], **settings) for i in range(B))
        assert torch.allclose(whole, parts, rtol=1e-5), loss.__name__
        noisy = s.clone()
        if mask.dim() == 1:
            noisy[~mask] = 99.0
        elif s.dim() == 3:
            noisy[~MASK] = 99.0
        else:
            noisy = noisy.masked_fill(~mask[:, None], 99.0)
        assert torch.allclose(whole, loss(noisy, t, mask, **settings), rtol=1e-5), loss.__name__


def test_gradients_are_finite_for_extreme_inputs(g):
    for loss, (s, t), mask, settings in cases(g):
        student = (100 * s).requires_grad_()
        loss(student, 100 * t, mask, **settings).backward()
        assert torch.isfinite(student.grad).all(), loss.__name__


def test_losses_are_computed_in_float32(g):
    for loss, (s, t), mask, settings in cases(g):
        if loss not in (
            losses.attention_mse,
            losses.attention_kl,
        ):  # their scores are float32 by construction
            assert loss(s.bfloat16(), t.bfloat16(), mask, **settings).dtype == torch.float32, loss.__name__


@pytest.mark.parametrize("distance", ["kl", "reverse_kl", "jsd", "mse"])
@pytest.mark.parametrize("top", [False, True])
def test_wide_logits_in_chunks_give_the_same_loss_and_gradient(distance, top, monkeypatch):
    torch.manual_seed(0)
    student, teacher = (torch.randn(3, 5, 80) * 3 for _ in range(2))
    mask = torch.rand(3, 5) > 0.3
    theirs = teacher
    if top:
        records = Part("logits", ("logits",), "logits", 80, "top", temperatures=(2.0,))
        theirs = records.decode(records.encode(teacher[mask]), mask)

    def loss(ours, theirs, counted):
        if top:
            ours, theirs = theirs.against(ours, 2.0)
        return losses.LOSSES["logits"][distance](ours, theirs, counted, temperature=2.0, softmax=True)

    found = []
    for chunk in (1 << 20, 80, 300):
        monkeypatch.setattr(objective, "CHUNK", chunk)
        monkeypatch.setattr(losses, "CHUNK", chunk)
        leaf = student.clone().requires_grad_()
        value = objective._wide(loss, leaf, theirs, mask)
        (value * 0.7).backward()
        found.append((value.detach(), leaf.grad))
    for value, gradient in found[1:]:
        assert torch.allclose(value, found[0][0], rtol=1e-6)
        assert torch.allclose(gradient, found[0][1], rtol=1e-5, atol=1e-7)
    assert found[0][1].abs().sum() > 0


def test_chunks_keep_no_copies_of_the_logits():
    """What the loss adds to the student's logits is a gradient and a few chunks."""
    made = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.numel() >= 3 * losses.CHUNK and "view" not in str(func):
                made.append(str(func))
            return out

    student = torch.randn(2, 64, 4 * losses.CHUNK // 128, requires_grad=True)
    teacher, mask = torch.randn_like(student), torch.ones(2, 64, dtype=torch.bool)
    with Watch():
        objective._wide(
            lambda s, t, m: losses.logits_kl(s, t, m, temperature=2.0, softmax=True), student, teacher, mask
        )
    assert made == ["aten.empty_like.default"]


def test_attention_by_examples_gives_the_same_loss_and_gradients(g, monkeypatch):
    query, key, their_query, their_key = (rand(g, B, S, H) for _ in range(4))

    def attention(q, k, their_q, their_k, pairs):
        scores = losses.attention_scores(q, k, A), losses.attention_scores(their_q, their_k, A)
        return losses.attention_mse(*scores, pairs) + losses.attention_kl(*scores, pairs)

    found = []
    for scores in (1 << 18, A * S * S, 2 * A * S * S, 1):
        monkeypatch.setattr(losses, "SCORES", scores)
        leaves = [query.clone().requires_grad_(), key.clone().requires_grad_()]
        value = losses.by_examples(attention, leaves, [their_query, their_key, PAIRS], A * S * S)
        (value * 0.7).backward()
        found.append([value.detach(), *(leaf.grad for leaf in leaves)])
    for cut in found[1:]:
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(cut, found[0], strict=True))
    assert all(part.abs().sum() > 0 for part in found[0])


def test_by_examples_never_holds_the_scores_of_all(g):
    """Of 16 examples' scores, 64 MB with a copy or two, at most a few examples' are there at a time."""
    seen = []

    def loss(q, k, pairs):
        scores = losses.attention_scores(q, k, 4)
        seen.append(scores.numel())
        return scores.masked_fill(~pairs[:, None], 0.0).square().sum()

    leaves = [rand(g, 16, 256, H).requires_grad_() for _ in range(2)]
    losses.by_examples(loss, leaves, [torch.ones(16, 256, 256, dtype=torch.bool)], 4 * 256 * 256).backward()
    assert max(seen) <= losses.SCORES and sum(seen) == 16 * 4 * 256 * 256


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_projected_outputs_give_the_same_loss_and_gradients_some_tokens_at_a_time(g, distance, monkeypatch):
    theirs, weight, loss = rand(g, B, S, 2 * H), rand(g, 2 * H, H), losses.LOSSES["hidden"][distance]
    mask, sizes, found = torch.rand(B, S, generator=g) < 0.7, [], []

    def watched(ours, *rest):
        sizes.append(ours.numel())
        return loss(ours, *rest)

    for most in (1 << 18, 2 * H, 3 * 2 * H):
        monkeypatch.setattr(losses, "SCORES", most)
        leaves = [rand(torch.Generator().manual_seed(3), B, S, H).requires_grad_(), weight.clone().requires_grad_()]
        sizes.clear()
        value = losses.projected(watched, *leaves, theirs, mask)
        (value * 0.7).backward()
        assert max(sizes) <= most
        found.append([value.detach(), *(leaf.grad for leaf in leaves)])
    for cut in found[1:]:
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(cut, found[0], strict=True))
    assert all(part.abs().sum() > 0 for part in found[0])


def by_scores(q, k, their_q, their_k, queries, keys, scaled=True):
    """The loss from scores, in the arithmetic of what it is given."""
    cut = [x.view(*x.shape[:2], A, -1).transpose(1, 2) for x in (q, k, their_q, their_k)]
    differences = cut[0] @ cut[1].transpose(2, 3) - cut[2] @ cut[3].transpose(2, 3)
    squares = differences.square() / (q.shape[-1] / A if scaled else 1)
    pairs = (queries[:, :, None] & keys[:, None])[:, None]
    return (squares * pairs).sum((1, 2, 3)).div(keys.sum(1).clamp(min=1) * A).sum()


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("apart", [1.0, 1e-3])
def test_attention_by_width_is_attention_by_scores(g, scaled, apart):
    """Also of as many keys as are no queries; where both sides are nearly alike, too, it agrees with float64."""
    their_q, their_k = rand(g, B, 7, H), rand(g, B, S, H)
    near = [their_q + apart * rand(g, B, 7, H), their_k + apart * rand(g, B, S, H)]
    queries = torch.tensor([[1] * 7, [0, 1, 1, 0, 0, 0, 0], [0] * 7], dtype=torch.bool)
    leaves = [x.clone().requires_grad_() for x in near]
    value = losses.attention_mse_by_width(*leaves, their_q, their_k, queries, MASK, heads=A, scaled=scaled)
    (value * 0.7).backward()
    exact = [x.double().requires_grad_() for x in near]
    expected = by_scores(*exact, their_q.double(), their_k.double(), queries, MASK, scaled)
    (expected * 0.7).backward()
    assert value > 0 and torch.allclose(value.double(), expected, rtol=1e-3 if apart < 1 else 1e-5)
    for ours, theirs in zip(leaves, exact, strict=True):
        assert torch.allclose(ours.grad.double(), theirs.grad, rtol=1e-3, atol=1e-3 * theirs.grad.abs().max())
    if scaled and apart == 1:
        pairs = queries[:, :, None] & MASK[:, None]
        scores = [losses.attention_scores(q, k, A) for q, k in (near, (their_q, their_k))]
        assert torch.allclose(losses.attention_mse(*scores, pairs), value, rtol=1e-5)


def test_attention_by_width_makes_no_scores(g):
    """2,048 tokens: their scores would be 8 million numbers; nothing is larger than what it is given."""
    made = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            made.extend(part.numel() for part in (out if isinstance(out, tuple) else [out]) if part is not None)
            return out

    tensors = [rand(g, 1, 2048, H) for _ in range(4)]
    leaves = [tensor.requires_grad_() for tensor in tensors[:2]]
    everywhere = torch.ones(1, 2048, dtype=torch.bool)
    with Watch():
        losses.attention_mse_by_width(*leaves, *tensors[2:], everywhere, everywhere, heads=A, scaled=True).backward()
    assert max(made) <= 2048 * H
