"""A trimmed vocabulary reads what it was made from as the whole one does, and spells everything else."""

import copy
import json
import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, BertTokenizer, BertTokenizerFast, PreTrainedTokenizerFast, RobertaTokenizerFast

from nlp_distill.errors import VocabularyUntrimmable
from nlp_distill.loading import load_model, load_tokenizer, save_model
from nlp_distill.testing import tiny_model, tiny_tokenizer
from nlp_distill.vocabulary import check_trimmable, reads_alike, trim_model, trimmed

SYLLABLES = "ba be bi bo bu da de di do du ka ke ki ko ku ra re ri ro ru sha stre ing ed er ly é".split()
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
KINDS = ("wordpiece", "bpe", "byte-bpe", "unigram")


def texts(count, seed):
    chance = random.Random(seed)

    def word():
        return "".join(chance.choice(SYLLABLES) for _ in range(chance.randint(1, 4)))

    return [" ".join(word() for _ in range(chance.randint(1, 12))) for _ in range(count)]


def learnt(kind):
    """A tokenizer of each kind, learnt from made-up words."""
    special = list(SPECIAL.values())
    common = {"special_tokens": special, "show_progress": False}
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer, tokenizer.decoder = normalizers.BertNormalizer(), decoders.WordPiece()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=400, **common)
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=300, unk_token="[UNK]", **common)
    elif kind == "bpe":
        tokenizer = Tokenizer(models.BPE(unk_token="[UNK]", end_of_word_suffix="</w>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.BpeTrainer(vocab_size=400, end_of_word_suffix="</w>", **common)
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, **common)
    tokenizer.train_from_iterator(texts(800, 0), trainer)
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[SEP]", "[CLS]")]
    if kind == "byte-bpe":
        tokenizer.post_processor = processors.Sequence([processors.RobertaProcessing(*ids)])
    else:
        single, pair = "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"
        tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    made = {"wordpiece": BertTokenizerFast, "byte-bpe": RobertaTokenizerFast}.get(kind, PreTrainedTokenizerFast)
    more = {"bos_token": "[CLS]", "eos_token": "[SEP]", "mask_token": "[PAD]"} if kind == "byte-bpe" else {}
    return made(tokenizer_object=tokenizer, **SPECIAL, **more)


def read(tokenizer, rows):
    return Dataset.from_dict(dict(tokenizer(rows)))


@pytest.fixture(scope="module", params=KINDS)
def pair(request):
    """A tokenizer, what it was trimmed to by some rows, and the rows."""
    whole, rows = learnt(request.param), texts(60, 1)
    return whole, trimmed(whole, read(whole, rows)), rows


def test_the_rows_it_was_made_from_are_the_same_tokens_under_other_ids(pair):
    whole, trim, rows = pair
    assert len(trim.kept) < 0.9 * len(whole)
    theirs = read(whole, rows)
    ours = trim.ours(theirs)
    assert ours["input_ids"][:] == trim.tokenizer(rows)["input_ids"]
    assert ours["attention_mask"][:] == theirs["attention_mask"][:]
    assert trim.theirs(ours)["input_ids"][:] == theirs["input_ids"][:]
    for row in rows:
        assert trim.tokenizer.tokenize(row) == whole.tokenize(row)


def test_other_text_is_spelled_to_the_last_letter(pair):
    whole, trim, rows = pair
    others = texts(300, 2)
    for text in others:
        ours, theirs = trim.tokenizer.tokenize(text), whole.tokenize(text)
        assert ours.count("[UNK]") == theirs.count("[UNK]") and set(ours) <= set(whole.get_vocab())
        assert "".join(ours).replace("##", "") == "".join(theirs).replace("##", "")
    about = trim.about(read(whole, others), read(trim.tokenizer, others))
    assert about["tokens"] == len(trim.kept) and about["before"] == len(whole)
    assert 0 < about["respelled"] < about["rows"] <= 1 and about["longer"] > 0
    assert trim.about(read(whole, rows), read(trim.tokenizer, rows))["respelled"] == 0


def test_it_is_saved_and_loaded_as_any_other(pair, tmp_path):
    _, trim, _ = pair
    trim.tokenizer.save_pretrained(tmp_path)
    others = texts(50, 3)
    expected = trim.tokenizer(others)["input_ids"]
    assert AutoTokenizer.from_pretrained(tmp_path)(others)["input_ids"] == expected
    # What transformers.js and the tokenizers library read.
    plain = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert [plain.encode(text).ids for text in others] == expected
    if type(trim.tokenizer) is BertTokenizerFast:
        assert BertTokenizer.from_pretrained(tmp_path)(others)["input_ids"] == expected


def test_a_piece_whose_letters_are_no_pieces_stays():
    vocabulary = {
        piece: number for number, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "aé", "##b", "ab"])
    }
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)
    kept = trimmed(whole, read(whole, ["a"])).tokenizer.get_vocab()
    assert "aé" in kept and "ab" not in kept


def test_a_tokenizer_that_cannot_spell_is_refused():
    with pytest.raises(VocabularyUntrimmable, match="a WordLevel tokenizer cannot spell"):
        check_trimmable(tiny_tokenizer())


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "mpnet", "electra", "albert", "deberta-v2"])
def test_a_model_says_the_same_of_the_new_ids(kind, tmp_path):
    whole, rows = learnt("wordpiece"), texts(30, 1)
    trim = trimmed(whole, read(whole, rows))
    model = tiny_model(kind, vocab_size=len(whole), bos_token_id=2, eos_token_id=3).eval()
    old, new = (tokenizer(rows[:4], padding=True, return_tensors="pt") for tokenizer in (whole, trim.tokenizer))
    with torch.no_grad():
        expected = model(input_ids=old["input_ids"], attention_mask=old["attention_mask"]).logits
        trim_model(model, trim)
        save_model(model, trim.tokenizer, tmp_path)
        small = load_model(tmp_path, "AutoModelForSequenceClassification")
        found = small(input_ids=new["input_ids"], attention_mask=new["attention_mask"]).logits
    assert torch.equal(found, expected)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["vocab_size"] == len(trim.kept) == len(load_tokenizer(tmp_path))
    assert config["pad_token_id"] == trim.tokenizer.pad_token_id == whole.pad_token_id
    assert np.array_equal(trim.kept, np.sort(trim.kept))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer", "post_processor", None])
def test_tokenizers_of_one_vocabulary_that_read_otherwise_are_others(kind, part):
    theirs = learnt(kind)
    ours = copy.deepcopy(theirs)
    others = {
        "normalizer": normalizers.Replace("b", "d"),
        "pre_tokenizer": pre_tokenizers.Split("a", "isolated"),
        "post_processor": processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[]),
    }
    if part is not None:
        setattr(ours.backend_tokenizer, part, others[part])
    assert ours.get_vocab() == theirs.get_vocab()
    assert reads_alike(ours, theirs) is (part is None)


def test_capitals_tell_tokenizers_of_one_vocabulary_apart():
    heeding, words = tiny_tokenizer(), tiny_tokenizer()
    words.backend_tokenizer.normalizer = normalizers.Lowercase()
    heeding.backend_tokenizer.normalizer = normalizers.NFC()
    assert heeding.get_vocab() == words.get_vocab()
    assert not reads_alike(heeding, words) and reads_alike(words, words)
