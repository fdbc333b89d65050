import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import BertConfig

from nlp_distill.rows import Rows, ahead, padded_in_eights, to_device, token_budget
from nlp_distill.testing import tiny_tokenizer


def test_the_next_item_is_made_while_one_is_in_use():
    begun = []

    def make(item):
        begun.append(item)
        return item * 10

    made = ahead(make, range(4), beside=True)
    assert next(made) == 0
    while len(begun) < 2:  # by the thread: nobody has asked for it
        time.sleep(0.01)
    assert list(made) == [10, 20, 30] and begun == [0, 1, 2, 3]
    begun.clear()
    assert next(ahead(make, range(4), beside=False)) == 0 and begun == [0]
    assert list(ahead(make, [], beside=True)) == []


def test_what_fails_ahead_fails_in_its_turn():
    made = ahead(lambda item: 1 // item, [2, 1, 0, 1], beside=True)
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(made)


@pytest.mark.parametrize(("longest", "width"), [(64, 8), (61, 5)])
def test_a_gpu_gets_widths_in_eights_where_the_model_has_so_many_places(longest, width):
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = longest
    rows = [{"input_ids": [5] * 5, "attention_mask": [1] * 5}, {"input_ids": [5] * 3, "attention_mask": [1] * 3}]
    batch = padded_in_eights(tokenizer).pad(rows, padding=True, return_tensors="pt")
    assert batch["input_ids"].shape == (2, width) and batch["attention_mask"].sum() == 8
    assert tokenizer.pad(rows, padding=True, return_tensors="pt")["input_ids"].shape == (2, 5)


def test_numbers_of_examples_stay_with_the_processor():
    batch = {"input_ids": torch.zeros(2, 3), "row": torch.arange(2), "teacher": {"input_ids": torch.zeros(2, 4)}}
    moved = to_device(batch, torch.device("meta"))
    assert moved["input_ids"].is_meta and moved["teacher"]["input_ids"].is_meta and not moved["row"].is_meta


@pytest.mark.parametrize(("memory", "tokens"), [(1e9, 4096), (16e9, 31_250), (141e9, 65_536)])
def test_a_gpu_is_filled_by_its_memory(memory, tokens, monkeypatch):
    properties = SimpleNamespace(total_memory=int(memory))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    # 6 layers of width 256 and 2,944 words take 256,000 bytes a token.
    config = BertConfig(num_hidden_layers=6, hidden_size=256, vocab_size=2_944)
    assert token_budget(None, config, torch.device("cuda")) == tokens
    assert token_budget(77, config, torch.device("cuda")) == 77
    assert token_budget(None, config, torch.device("cpu")) == 4096


def test_the_budget_counts_the_padding_of_a_gpu():
    rows = Rows(Dataset.from_dict({"input_ids": [[1] * 9] * 64, "example_id": list(range(64))}), Dataset.from_dict({}))
    cuts = []
    rows.batch = lambda cut, seed, collate: cuts.append(len(cut)) or {}
    for device, most in (("cpu", 10), ("cuda", 6)):
        cuts.clear()
        rows.micro_batches(np.arange(64), 96, 0, None, torch.device(device))
        assert max(cuts) == most


def test_where_bf16_is_quick_a_forward_is_worth_more_padding():
    lengths = [5] * 16 + [17] * 16
    made = {"input_ids": [[1] * length for length in lengths], "example_id": list(range(32))}
    rows = Rows(Dataset.from_dict(made), Dataset.from_dict({}))
    rows.batch = lambda cut, seed, collate: {}
    cpu = torch.device("cpu")
    assert len(rows.micro_batches(np.arange(32), 4096, 0, None, cpu)) == 2
    assert len(rows.micro_batches(np.arange(32), 4096, 0, None, cpu, torch.bfloat16)) == 1
