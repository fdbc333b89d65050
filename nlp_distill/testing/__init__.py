"""What we test with and users may too: tiny models made from configs, a tokenizer made in memory, tiny data.

Nothing here needs the network or takes longer than a blink.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from nlp_distill.families import COMPOSED
from nlp_distill.loading import load_config, new_model, save_model

WORDS = (
    "good great fine lovely superb bad awful poor dreadful dull film story actor scene plot the a is was and not very "
    "quite it this that ending music camera"
).split()
GOOD, BAD = WORDS[:5], WORDS[5:10]

_ENCODER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_ROBERTA = {**_ENCODER, "max_position_embeddings": 66, "bos_token_id": 2, "eos_token_id": 3, "type_vocab_size": 1}
_BART: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
_T5: dict[str, Any] = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 4,
    "num_decoder_layers": 4,
    "num_heads": 4,
    "pad_token_id": 0,
    "eos_token_id": 3,
    "decoder_start_token_id": 0,
}

WITH_TYPES = ("bert",)
"""Models whose tiny tokenizer gives token types."""
SHAPES: dict[str, dict[str, Any]] = {
    "bert": _ENCODER,
    "electra": {**_ENCODER, "embedding_size": 16},
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "mpnet": {**_ENCODER, "max_position_embeddings": 66, "bos_token_id": 2, "eos_token_id": 3},
    "deberta-v2": {**_ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16},
    "albert": {**_ENCODER, "embedding_size": 16},
    "distilbert": {
        "dim": 32,
        "n_layers": 4,
        "n_heads": 4,
        "hidden_dim": 64,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    },
    "bart": _BART,
    "mbart": _BART,
    "marian": {**_BART, "decoder_start_token_id": 0},
    "pegasus": {**_BART, "decoder_start_token_id": 0},
    "t5": _T5,
    "mt5": _T5,
}
"""Settings of a tiny config of each architecture: 4 layers a stack, width 32, 4 heads."""

ENCODERS = ("bert", "roberta", "xlm-roberta", "electra", "distilbert", "mpnet", "deberta-v2", "albert")
SEQ2SEQ = ("t5", "mt5", "bart", "mbart", "marian", "pegasus", "encoder-decoder")


def tiny_tokenizer(model_type: str = "bert") -> Any:
    """A word-level tokenizer over `WORDS`, fast, made in memory."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = ["input_ids", "attention_mask"] + (["token_type_ids"] if model_type in WITH_TYPES else [])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=names,
        model_max_length=64,
    )


def tiny_config(model_type: str = "bert", **settings: Any) -> Any:
    """A config of a few layers, without dropout unless asked; `encoder-decoder` is made of two `bert`."""
    from transformers import CONFIG_MAPPING

    if model_type in COMPOSED:
        parts = {
            "encoder": tiny_config("bert").to_dict(),
            "decoder": tiny_config("bert", is_decoder=True, add_cross_attention=True).to_dict(),
        }
        ids = {"pad_token_id": 0, "decoder_start_token_id": 2, "eos_token_id": 3}
        return CONFIG_MAPPING[model_type](**parts, **ids, **settings)
    template = CONFIG_MAPPING[model_type]().to_dict()
    drops = {name: 0.0 for name in template if "dropout" in name and isinstance(template[name], float)}
    return CONFIG_MAPPING[model_type](**{"vocab_size": 5 + len(WORDS), **SHAPES[model_type], **drops, **settings})


def tiny_model(
    model_type: str = "bert", auto_class: str = "AutoModelForSequenceClassification", **settings: Any
) -> Any:
    """A model with random weights in a tiny shape."""
    return new_model(tiny_config(model_type, **settings), auto_class, seed=1)


def save_tiny(
    folder: Path,
    model_type: str = "bert",
    auto_class: str = "AutoModelForSequenceClassification",
    **settings: Any,
) -> Path:
    """A tiny model with its tokenizer as a model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_model(tiny_model(model_type, auto_class, **settings), tiny_tokenizer(model_type), folder)
    load_config(folder)
    return folder


def tiny_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Sentences whose sentiment a tiny model can learn: label 1 when good words outnumber bad ones."""
    generator = random.Random(seed)
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        words = [generator.choice(WORDS) for _ in range(generator.randint(3, 20))]
        balance = sum(word in GOOD for word in words) - sum(word in BAD for word in words)
        if balance:
            rows.append({"text": " ".join(words), "label": int(balance > 0)})
    return rows


def write_rows(folder: Path, train: int = 160, validation: int = 60) -> Path:
    """A data folder with `train.jsonl` and `validation.jsonl` of `tiny_rows`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, seed in (("train", train, 0), ("validation", validation, 1)):
        lines = (json.dumps(row) for row in tiny_rows(count, seed))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def tiny_questions(count: int, none: bool = False) -> list[dict[str, Any]]:
    """Questions in SQuAD's form: which word follows another in a context of 20. `none`: a third have no answer."""
    chance = random.Random(0)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        words = [chance.choice(WORDS) for _ in range(20)]
        place = chance.randrange(5, 15)
        answers: dict[str, Any] = {"text": [words[place]], "answer_start": [len(" ".join(words[:place])) + 1]}
        if none and number % 3 == 0:
            answers = {"text": [], "answer_start": []}
        rows.append({"id": str(number), "question": words[place - 1], "context": " ".join(words), "answers": answers})
    return rows


def tiny_reversals(count: int) -> list[dict[str, str]]:
    """Pairs of a few words and the same words backwards."""
    chance = random.Random(0)
    rows = []
    for _ in range(count):
        words = [chance.choice(WORDS[:8]) for _ in range(chance.randint(2, 4))]
        rows.append({"source": " ".join(words), "target": " ".join(words[::-1])})
    return rows


def write_split(folder: Path, rows: list[dict[str, Any]], validation: float = 0.25) -> str:
    """A data folder with the first rows as `validation.jsonl` and the others as `train.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    cut = int(len(rows) * validation)
    for name, part in (("validation", rows[:cut]), ("train", rows[cut:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return str(folder)
