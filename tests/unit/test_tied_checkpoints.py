"""Tied weights, one tensor under several names, are checkpointed and come back tied."""

import pytest
import torch

from nlp_distill.checkpoint import Checkpoint, CheckpointFolder
from nlp_distill.testing import tiny_model


@pytest.mark.parametrize(("kind", "auto"), [("t5", "AutoModelForSeq2SeqLM"), ("bert", "AutoModelForMaskedLM")])
def test_tied_weights_come_back(tmp_path, kind, auto):
    model = tiny_model(kind, auto)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    CheckpointFolder(tmp_path, "k").save(Checkpoint({"step": 1}, dict(model.state_dict()), {}, before))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    found = CheckpointFolder(tmp_path, "k").load()
    model.load_state_dict(found.weights)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
