"""Teachers that no checkpoint gives: random weights with a tokenizer learnt from the data, or a warm start.

A start is an ordinary model folder in the cache, named by the hash of all that it depends on, so that two runs
on the same data share it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from nlp_distill.errors import ModelUnfit
from nlp_distill.families import BASES
from nlp_distill.loading import has_class, load_config, load_tokenizer, new_model, save_model, warm_start
from nlp_distill.recipe import NewModel, Recipe
from nlp_distill.rundir import new_folder, place_errors, sha256_json
from nlp_distill.shelf import cache_folder
from nlp_distill.sources import Source, resolve
from nlp_distill.task import Task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def first_source(recipe: Recipe, task: Task, rows: Dataset, data_sha256: Any) -> Source:
    """Where the teacher comes from, or a student that has none.

    A teacher is made first where the recipe says `new`, or where it lacks a decoder. Raises what `resolve` raises.
    """
    teacher, seed = recipe.teacher, recipe.seed
    if teacher is None:
        return resolve(str(recipe.student.model))
    if teacher.new is not None:
        read = {"task": task.name, "options": task.options.model_dump(mode="json"), "data": data_sha256}
        described = {"new": teacher.new.model_dump(mode="json"), "seed": seed, **read}
        folder = cache_folder() / "starts" / sha256_json(described)[:16]
        with _once(folder) as missing:
            if missing:
                _write_new(folder, teacher.new, task, rows, seed)
        return replace(_started(folder), name=f"a new {teacher.new.architecture}")
    assert teacher.model is not None
    source = resolve(teacher.model)
    if task.warm_start and not has_class(source.folder, task.auto_class):
        check_warm(source, task)
        described = {"warm": source.identity(), "seed": seed}
        folder = cache_folder() / "starts" / sha256_json(described)[:16]
        with _once(folder) as missing:
            if missing:
                _write_warm(folder, source, seed)
        return replace(_started(folder), name=f"two of {source.name}", licence=source.licence, base=source.base)
    return source


@contextmanager
def _once(folder: Path) -> Iterator[bool]:
    """Whether the folder is still to be written; by one process at a time, of this run and of all others."""
    with place_errors(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        yield not (folder / "config.json").is_file()


def _started(folder: Path) -> Source:
    return replace(resolve(str(folder)), untrained=True)


def _write_new(folder: Path, new: NewModel, task: Task, rows: Dataset, seed: int) -> None:
    tokenizer = learn_tokenizer(task.texts(rows), new.vocabulary)
    ids = {name.replace("token", "token_id"): getattr(tokenizer, name.replace("token", "token_id")) for name in SPECIAL}
    settings = {**SHAPES[new.architecture](new), "vocab_size": len(tokenizer), **ids}
    settings["decoder_start_token_id"] = tokenizer.pad_token_id
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[new.architecture](**settings)
    with new_folder(folder) as temporary:
        save_model(new_model(config, task.auto_class, seed), tokenizer, temporary)


def _t5(new: NewModel) -> dict[str, Any]:
    return {
        "d_model": new.hidden_size,
        "d_kv": new.hidden_size // new.attention_heads,
        "d_ff": 4 * new.hidden_size,
        "num_layers": new.layers,
        "num_decoder_layers": new.layers,
        "num_heads": new.attention_heads,
        "dropout_rate": 0.1,
    }


def _bart(new: NewModel) -> dict[str, Any]:
    return {
        "d_model": new.hidden_size,
        "encoder_layers": new.layers,
        "decoder_layers": new.layers,
        "encoder_attention_heads": new.attention_heads,
        "decoder_attention_heads": new.attention_heads,
        "encoder_ffn_dim": 4 * new.hidden_size,
        "decoder_ffn_dim": 4 * new.hidden_size,
        "max_position_embeddings": 512,
        "forced_eos_token_id": None,
    }


SHAPES = {"t5": _t5, "bart": _bart}


def learn_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (Sennrich et al. 2016) of at most `vocabulary` tokens; it ends texts with `</s>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[*SPECIAL.values()], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    eos = SPECIAL["eos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {eos}", pair=f"$A {eos} $B {eos}", special_tokens=[(eos, tokenizer.token_to_id(eos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **SPECIAL,
    )


def check_warm(source: Source, task: Task) -> None:
    """Refuse what cannot be made an encoder and a decoder of one model. Raises `ModelUnfit`."""
    model_type, tokenizer = load_config(source.folder).model_type, load_tokenizer(source.folder)
    if model_type in BASES and tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None:
        return
    raise ModelUnfit(
        reference=source.reference,
        model_type=model_type,
        task=task.name,
        reason=f"it has no encoder and decoder and cannot be made both ({', '.join(BASES)} can); give one of these, a "
        "model that has both, such as a T5, or `teacher: {new: {architecture: t5}}`",
    )


def warm_config(encoder: PretrainedConfig) -> PretrainedConfig:
    """The config of two copies of an encoder as encoder and decoder of one model."""
    from transformers import EncoderDecoderConfig

    both: PretrainedConfig = EncoderDecoderConfig.from_encoder_decoder_configs(encoder, encoder)
    return both


def _write_warm(folder: Path, source: Source, seed: int) -> None:
    """Two copies of an encoder as encoder and decoder (Rothe et al. 2020, arXiv:1907.12461)."""
    tokenizer = load_tokenizer(source.folder)
    model = warm_start(source.folder, seed)
    model.config.decoder_start_token_id = tokenizer.cls_token_id
    model.config.eos_token_id = tokenizer.sep_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.vocab_size = model.config.decoder.vocab_size
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    with new_folder(folder) as temporary:
        save_model(model, tokenizer, temporary)
