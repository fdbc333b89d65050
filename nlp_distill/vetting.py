"""What a model folder may hold, checked before any library parses it; and the clean copy that libraries see instead.

A clean copy is a temporary folder of links to the few files that a load needs. Its JSON is rewritten: keys that could
name code, other files or other places are gone, and of a tokenizer's settings only known ones are left.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nlp_distill.errors import ModelNotFound, ModelUnsafe

CODE = (".py", ".pyc", ".so")
MAX_JSON = 64 << 20
MAX_HEADER = 16 << 20
MAX_DEPTH = 32
MAX_ENTRIES = 100_000
"""Labels that a config may name."""
MAX_NUMBER = 10_000_000
LIMITS = {
    **dict.fromkeys(("num_hidden_layers", "num_layers", "num_decoder_layers", "n_layers", "n_layer"), 512),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_hidden_groups", "inner_group_num"), 512),
    **dict.fromkeys(("vocab_size", "decoder_vocab_size"), 4_000_000),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_length", "max_new_tokens"), 1 << 20),
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences"), 1000),
    **dict.fromkeys(("extra_ids", "offset"), 10_000),
    "num_labels": MAX_ENTRIES,
    "model_max_length": float("inf"),
}
"""Most that a number of this name may be, far above every honest model; any other may be `MAX_NUMBER`."""

UNSAFE_KEYS = (
    *("auto_map", "custom_pipelines", "custom_generate", "trust_remote_code", "code_revision"),
    *("transformers_weights", "base_model_name_or_path", "gguf_file", "compile_config", "attribute_map", "sub_configs"),
    *("_commit_hash", "_name_or_path", "name_or_path"),
)
TOKENIZER_KEYS = {
    *("tokenizer_class", "model_max_length", "model_input_names", "padding_side", "truncation_side"),
    *("added_tokens_decoder", "additional_special_tokens", "clean_up_tokenization_spaces", "split_special_tokens"),
    *("do_lower_case", "do_basic_tokenize", "never_split", "strip_accents", "tokenize_chinese_chars"),
    *("add_prefix_space", "trim_offsets", "errors", "extra_ids", "legacy", "keep_accents", "remove_space"),
    *("split_by_punct", "vocab_type", "offset", "separate_vocabs", "src_lang", "tgt_lang", "source_lang"),
    *("target_lang", "spaces_between_special_tokens", "wordpieces_prefix"),
}
"""Settings of a tokenizer that are kept, beside every `*_token`. No name of a file or class is among them but one."""
TOKENIZER_CLASS = "PreTrainedTokenizerFast"
TOKENIZER_CLASSES = (
    *("Albert", "Bart", "Barthez", "Bert", "Camembert", "DebertaV2", "DistilBert", "Electra", "Herbert"),
    *("MBart", "MBart50", "MPNet", "MT5", "Marian", "Pegasus", "Roberta", "T5", "XLMRoberta"),
)
"""Tokenizers that load, without `Tokenizer` or `TokenizerFast`."""
TOKENIZER_DATA = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "added_tokens.json"),
    *("spiece.model", "sentencepiece.bpe.model", "spm.model", "tokenizer.model", "source.spm", "target.spm"),
)
BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}
INDEX = "model.safetensors.index.json"


def _unsafe(key: str) -> bool:
    return key in UNSAFE_KEYS or "implementation" in key or key.endswith("_internal") or "kernel" in key


def scrub(value: Any) -> Any:
    """Plain data without the keys that could name code, at any depth."""
    if isinstance(value, dict):
        return {key: scrub(child) for key, child in value.items() if not _unsafe(key)}
    if isinstance(value, list):
        return [scrub(child) for child in value]
    return value


def inside(folder: Path, name: str) -> Path | None:
    """A regular file of a folder; None where there is none. Raises `ModelUnsafe` for a link that leaves the folder.

    The Hub's cache keeps files beside its snapshots, in `blobs`, and links to them.
    """
    file = folder / name
    if not file.is_file():
        return None
    root, real = folder.resolve(), file.resolve()
    homes = [root, root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [root]
    if not any(real.is_relative_to(home) for home in homes):
        raise ModelUnsafe(
            reference=folder, reason=f"{name} is a link out of the folder", fix="Put the file itself there."
        )
    return file


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """An object from a JSON file of a model folder, as it is. Raises `ModelNotFound`, `ModelUnsafe`."""
    file = inside(folder, name)
    if file is None:
        raise ModelNotFound(reference=folder, reason=f"it has no {name}", fix="Check the folder.")
    if file.stat().st_size > MAX_JSON:
        raise ModelUnsafe(
            reference=folder, reason=f"{name} has more than {MAX_JSON >> 20} MiB", fix="Check the folder."
        )
    return _parse(folder, name, file.read_bytes())


def _parse(folder: Path, name: str, raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelNotFound(reference=folder, reason=f"its {name} cannot be read", fix="Check the folder.") from error
    if not isinstance(value, dict):
        raise ModelNotFound(reference=folder, reason=f"its {name} is not an object", fix="Check the folder.")
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent)]
    if level:
        raise ModelUnsafe(
            reference=folder, reason=f"{name} is nested deeper than {MAX_DEPTH} levels", fix="Check the folder."
        )
    return value


def _children(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def read_settings(folder: Path, name: str) -> dict[str, Any]:
    """A scrubbed JSON file of settings, its sizes within reason. Raises `ModelNotFound`, `ModelUnsafe`."""
    settings: dict[str, Any] = scrub(read_json(folder, name))
    _check_sizes(folder, name, settings)
    return settings


def _check_sizes(folder: Path, name: str, value: Any) -> None:
    entries = value.items() if isinstance(value, dict) else [("", child) for child in _children(value)]
    for key, child in entries:
        most = LIMITS.get(key, MAX_NUMBER)
        if isinstance(child, int | float) and not isinstance(child, bool) and key in LIMITS and child > most:
            raise ModelUnsafe(
                reference=folder, reason=f"{name} asks for {key} {child} (at most {most})", fix="Check it."
            )
        if isinstance(child, int) and child > most:
            raise ModelUnsafe(reference=folder, reason=f"{name} has the number {child} as {key}", fix="Check it.")
        if key in ("id2label", "label2id") and isinstance(child, dict) and len(child) > MAX_ENTRIES:
            raise ModelUnsafe(reference=folder, reason=f"{name} names {len(child)} labels", fix="Check it.")
        _check_sizes(folder, name, child)


def tokenizer_settings(folder: Path, name: str) -> dict[str, Any]:
    """What is kept of a tokenizer's JSON file of settings. Raises `ModelNotFound`, `ModelUnsafe`."""
    read = {k: v for k, v in scrub(read_json(folder, name)).items() if k in TOKENIZER_KEYS or k.endswith("_token")}
    _check_sizes(folder, name, read)
    check_tokenizer_class(folder, read.get("tokenizer_class"))
    return read


def check_tokenizer_class(folder: Path, name: Any) -> None:
    """Raises `ModelUnsafe` for a class of tokenizers that is none of ours."""
    known = {TOKENIZER_CLASS, *(f"{kind}Tokenizer{fast}" for kind in TOKENIZER_CLASSES for fast in ("", "Fast"))}
    if name is not None and not (isinstance(name, str) and name in known):
        raise ModelUnsafe(
            reference=folder,
            reason=f"its tokenizer_class {name!r} is unknown",
            fix=f"Known are {TOKENIZER_CLASS} and {', '.join(f'{kind}Tokenizer' for kind in TOKENIZER_CLASSES)}.",
        )


def weight_files(folder: Path) -> list[str]:
    """`model.safetensors`, or the files that its index names; none where neither is there.

    Raises `ModelNotFound`, `ModelUnsafe`.
    """
    if inside(folder, "model.safetensors"):
        return ["model.safetensors"]
    if not inside(folder, INDEX):
        return []
    placed = read_json(folder, INDEX).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise ModelNotFound(reference=folder, reason=f"its {INDEX} has no weight_map", fix="Get the files anew.")
    for name in placed.values():
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*\.safetensors", name, re.ASCII):
            raise ModelUnsafe(
                reference=folder,
                reason=f"{INDEX} names {name!r}, which is not a safetensors file of the folder",
                fix="Get it from its source again.",
            )
        if not inside(folder, name):
            raise ModelNotFound(reference=folder, reason=f"it lacks {name}, which its index names", fix="Get it anew.")
    return sorted(set(placed.values()))


def check_weights(folder: Path) -> int:
    """Elements of all tensors, from the headers alone. Raises `ModelNotFound` where one makes no sense."""
    files = weight_files(folder)
    headers = {name: _header(folder, name) for name in files}
    if files != ["model.safetensors"] and files:
        there = {tensor: name for name in files for tensor in headers[name]}
        if there != read_json(folder, INDEX)["weight_map"]:
            raise ModelNotFound(reference=folder, reason=f"its files are not as {INDEX} says", fix="Get them anew.")
    return sum(count for header in headers.values() for count in header.values())


def _header(folder: Path, name: str) -> dict[str, int]:
    """Names and elements of a file's tensors, which must fill it exactly."""

    def refuse(why: str) -> ModelNotFound:
        fix = "Get the files anew; one of them may be cut short, or is no safetensors file."
        return ModelNotFound(reference=folder, reason=f"{name} cannot be read ({why})", fix=fix)

    size = (folder / name).stat().st_size
    with (folder / name).open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise refuse(f"its header would have {length} bytes")
        entries = _parse(folder, f"{name} (its header)", stream.read(length))
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or metadata.get("format", "pt") not in ("pt", "mlx"):
        raise refuse("it was not saved for PyTorch")
    counts, spans = {}, []
    for tensor, entry in entries.items():
        try:
            shape, (begin, end), width = entry["shape"], entry["data_offsets"], BYTES[entry["dtype"]]
        except (KeyError, TypeError, ValueError):
            raise refuse(f"{tensor} is not described") from None
        if not isinstance(shape, list) or any(type(n) is not int or n < 0 for n in (*shape, begin, end)):
            raise refuse(f"{tensor} has no sizes")
        counts[tensor] = _product(shape)
        if counts[tensor] * width != end - begin:
            raise refuse(f"{tensor} has another size than its place")
        spans.append((begin, end))
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise refuse("its tensors overlap or leave gaps")
        position = end
    if position != size - 8 - length:
        raise refuse(f"it has {size} bytes instead of {position + 8 + length}")
    return counts


def _product(shape: list[int]) -> int:
    count = 1
    for n in shape:
        # Above this no file can hold it; numbers with thousands of digits would take their time.
        count = min(count * n, 1 << 62)
    return count


def check_folder(folder: Path) -> None:
    """Refuse a folder with code in it, or with weights that are not what they say. Raises `ModelUnsafe` and so on."""
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        code = sorted(name for name in files if name.endswith(CODE) and not name.startswith("."))
        if code:
            file = (Path(where) / code[0]).relative_to(folder)
            raise ModelUnsafe(
                reference=folder,
                reason=f"it holds code ({file}), which never runs here",
                fix="Remove it where the model needs none, else choose another model.",
            )
    check_weights(folder)


@contextmanager
def clean_copy(folder: Path, weights: bool = False, tokenizer: bool = False) -> Iterator[Path]:
    """The only form in which libraries see a model folder; it is gone after the block.

    Raises `ModelNotFound`, `ModelUnsafe`.
    """
    check_folder(folder)
    written = {"config.json": read_settings(folder, "config.json")}
    linked: list[str] = []
    if weights:
        linked += weight_files(folder)
        if not linked:
            raise ModelNotFound(reference=folder, reason="it has no model.safetensors", fix="Get the files anew.")
        if linked != ["model.safetensors"]:
            written[INDEX] = {"metadata": {}, "weight_map": read_json(folder, INDEX)["weight_map"]}
        if inside(folder, "generation_config.json"):
            written["generation_config.json"] = read_settings(folder, "generation_config.json")
    if tokenizer:
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            if inside(folder, name):
                written[name] = tokenizer_settings(folder, name)
        check_tokenizer_class(folder, written["config.json"].get("tokenizer_class"))
        linked += [name for name in TOKENIZER_DATA if _checked_data(folder, name)]
    with tempfile.TemporaryDirectory(prefix="nlp-distill-") as scratch:
        clean = Path(scratch)
        for name, value in written.items():
            (clean / name).write_text(json.dumps(value), encoding="utf-8")
        for name in linked:
            _link((folder / name).resolve(), clean / name)
        yield clean


def _checked_data(folder: Path, name: str) -> bool:
    """Whether a tokenizer's file is there, within reason."""
    file = inside(folder, name)
    if file is None:
        return False
    if name.endswith(".json"):
        read_json(folder, name)
    elif file.stat().st_size > MAX_JSON:
        raise ModelUnsafe(
            reference=folder, reason=f"{name} has more than {MAX_JSON >> 20} MiB", fix="Check the folder."
        )
    return True


def _link(target: Path, place: Path) -> None:
    try:
        place.symlink_to(target)
    except OSError:
        # Some systems let only administrators make links.
        shutil.copyfile(target, place)
