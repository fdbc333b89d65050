"""Compiled graphs against the same model run step by step."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache

from nlp_distill.errors import CompilerMissing, NotCompiled
from nlp_distill.families import family_of
from nlp_distill.first_token import first_token_only
from nlp_distill.graphs import check_compiler, compiled
from nlp_distill.signals import Request, capture
from nlp_distill.testing import SEQ2SEQ, tiny_model

KINDS = ("hidden", "query", "key")


def tiny(kind):
    """A model without dropout: a compiler draws noise of its own."""
    if kind in SEQ2SEQ:
        return tiny_model(kind, "AutoModelForSeq2SeqLM", num_layers=2, num_decoder_layers=2).eval()
    return tiny_model(kind).eval()


def inputs(kind, rows, length):
    torch.manual_seed(length)
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[0, -1] = 0
    decoder = {"decoder_input_ids": torch.randint(5, 20, (rows, length + 1)), "use_cache": False}
    ids = torch.randint(5, 20, (rows, length))
    return {"input_ids": ids, "attention_mask": mask} | (decoder if kind in SEQ2SEQ else {})


def learnt(model, outputs, signal):
    """All that terms could read, made one loss, and its gradients."""
    read = [getattr(signal, kind)[place] for kind in KINDS for place in sorted(getattr(signal, kind))]
    loss = outputs.logits.square().sum() + sum(x.square().mean() for x in [*read, *signal.bias.values()])
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return loss.detach(), gradients


@pytest.fixture
def without_compiler():
    """A machine without a compiler, and nothing compiled before."""
    torch._dynamo.reset()
    with fresh_cache(), torch._inductor.config.patch({"cpp.cxx": (None, "/no/such/compiler")}):
        yield


@pytest.mark.parametrize(("kind", "backend"), [("bert", "inductor"), ("albert", "aot_eager"), ("t5", "aot_eager")])
def test_a_graph_says_and_learns_what_the_model_does(kind, backend, monkeypatch):
    # Traced as ever, but not made into C++: that takes most of a minute.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    model = tiny(kind)
    stacks = family_of(model.config).stacks
    places = frozenset((stack.name, layer) for stack in stacks for layer in (0, 1))
    biased = frozenset(stack.name for stack in stacks if stack.bias)
    request = Request(logits=True, hidden=places, query=places, key=places, bias=biased)
    counters.clear()
    with first_token_only(model) if kind == "bert" else nullcontext(), compiled(model, request) as speak:
        for batch in (inputs(kind, 4, 7), inputs(kind, 5, 9), inputs(kind, 3, 12)):
            loss, gradients = learnt(model, *speak(batch))
            with capture(model, request) as signal:
                outputs = model(**batch)
            for kept in KINDS:
                assert set(getattr(signal, kept)) == places
            expected, theirs = learnt(model, outputs, signal)
            assert torch.allclose(loss, expected, rtol=1e-5)
            assert gradients.keys() == theirs.keys()
            for name, gradient in theirs.items():
                assert torch.allclose(gradients[name], gradient, rtol=1e-3, atol=1e-5), name
    assert counters["stats"]["unique_graphs"] == 1, "a graph for each length"
    assert not counters["graph_break"]


def test_its_hooks_hear_nothing_of_other_forwards_and_go_in_the_end(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    model = tiny("bert")
    batch, place = inputs("bert", 4, 7), frozenset({("encoder", 1)})
    with compiled(model, Request(hidden=place)) as speak:
        model(**batch)
        _, signal = speak(batch)
        assert set(signal.hidden) == place and signal.hidden["encoder", 1].shape[:2] == (4, 7)
        model(**inputs("bert", 2, 5))
        _, again = speak(batch)
        assert torch.equal(again.hidden["encoder", 1], signal.hidden["encoder", 1])
    assert not any(module._forward_hooks for module in model.modules())


def test_without_a_compiler_there_is_one_sentence(without_compiler):
    with pytest.raises(CompilerMissing, match=r"for a cpu here \(.*No working C\+\+ compiler.*compile: false"):
        check_compiler(torch.device("cpu"))


def test_a_model_that_cannot_be_compiled_is_named(without_compiler):
    model = tiny("bert")
    with compiled(model, Request()) as speak, pytest.raises(NotCompiled, match=r"this 'bert' .*compile: false"):
        speak(inputs("bert", 2, 5))
    assert not any(module._forward_hooks for module in model.modules())
