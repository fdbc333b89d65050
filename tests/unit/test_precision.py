"""The probe of bf16 ends in time."""

import pytest
import torch

from nlp_distill import precision
from nlp_distill.testing import tiny_model


@pytest.mark.parametrize(("seconds", "rounds"), [(1e9, precision.ROUNDS), (0.0, precision.LEAST)])
def test_a_probe_goes_on_while_it_has_time_and_times_both_at_least_so_often(monkeypatch, seconds, rounds):
    monkeypatch.setattr(precision, "SECONDS", seconds)
    model, forwards = tiny_model("bert", "AutoModelForSequenceClassification"), []
    model.register_forward_hook(lambda *_: forwards.append(1))
    ids = torch.ones(2, 5, dtype=torch.long)
    found = precision.probe(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    # One round of warming up, and both kinds of arithmetic in each.
    assert len(forwards) == 2 * (rounds + 1)
    assert found["precision"] in ("fp32", "bf16") and all(p.grad is None for p in model.parameters())
