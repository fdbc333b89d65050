"""Low-rank adapters: beside what is learned already, and never on a copy of a tied table."""

from dataclasses import replace

import pytest
import torch

from nlp_distill.errors import LoraOnNew
from nlp_distill.loading import load_model, save_model
from nlp_distill.recipe import Finetune, Lora, Teacher
from nlp_distill.sources import resolve
from nlp_distill.task import load_task
from nlp_distill.teacher import plan, with_lora
from nlp_distill.testing import save_tiny, tiny_model, tiny_tokenizer


@pytest.mark.parametrize(
    ("model_type", "auto_class"),
    [
        ("bart", "AutoModelForSeq2SeqLM"),
        ("marian", "AutoModelForSeq2SeqLM"),
        ("t5", "AutoModelForSeq2SeqLM"),
        ("bert", "AutoModelForMaskedLM"),
        ("roberta", "AutoModelForMaskedLM"),
    ],
)
def test_what_was_tied_is_tied_after_the_merge(model_type, auto_class, tmp_path):
    model = tiny_model(model_type, auto_class).eval()
    before, words = model.num_parameters(), model.get_input_embeddings().weight.clone()
    adapted = with_lora(model, Lora(rank=2), seed=0)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    merged = adapted.merge_and_unload()
    assert merged.num_parameters() == before and torch.equal(merged.get_input_embeddings().weight, words)
    save_model(merged, tiny_tokenizer(model_type), tmp_path)
    again = load_model(tmp_path, auto_class).eval()
    ids = torch.tensor([[2, 7, 8, 3]])
    given = {"input_ids": ids, **({"decoder_input_ids": ids} if merged.config.is_encoder_decoder else {})}
    assert torch.equal(merged(**given).logits, again(**given).logits)


def test_a_new_head_is_trained_in_full():
    model = tiny_model("bert", "AutoModelForTokenClassification")
    trained = {name for name, it in with_lora(model, Lora(), 0).named_parameters() if it.requires_grad}
    assert any("classifier" in name for name in trained)
    model = tiny_model("bert", "AutoModelForMaskedLM")
    trained = {name for name, it in with_lora(model, Lora(), 0).named_parameters() if it.requires_grad}
    assert any("predictions.transform" in name for name in trained) and not any("decoder" in name for name in trained)


def test_adapters_beside_random_weights_are_refused(tmp_path):
    source = resolve(str(save_tiny(tmp_path, "t5", "AutoModelForSeq2SeqLM")))
    teacher, task = Teacher(model="x", finetune=Finetune(lora=Lora())), load_task("seq2seq")
    assert plan(teacher, source, task, 10)
    with pytest.raises(LoraOnNew, match="random ones that would stay so; remove lora"):
        plan(teacher, replace(source, untrained=True), task, 10)
