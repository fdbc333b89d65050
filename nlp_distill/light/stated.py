"""Whether `tokenizer.json` alone says all that a folder's tokenizer does.

transformers changes what it describes where `tokenizer_config.json` says otherwise. Folders where the two disagree are
left to transformers; those that this project saves agree.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nlp_distill.vetting import inside, read_json, tokenizer_settings

STATED = {
    "lowercase": ("do_lower_case", True),
    "strip_accents": ("strip_accents", None),
    "handle_chinese_chars": ("tokenize_chinese_chars", True),
    "add_prefix_space": ("add_prefix_space", False),
    "trim_offsets": ("trim_offsets", True),
}
"""What `tokenizer.json` says of its parts: the setting that transformers would put there, and its default."""
PLAIN = "PreTrainedTokenizerFast"


def says_all(folder: Path) -> bool:
    """Whether `tokenizer.json` describes all that transformers would make of the folder's tokenizer."""
    if inside(folder, "tokenizer.json") is None or inside(folder, "tokenizer_config.json") is None:
        return False
    settings, described = tokenizer_settings(folder, "tokenizer_config.json"), read_json(folder, "tokenizer.json")
    if settings.get("padding_side", "right") != "right" or settings.get("split_special_tokens"):
        return False
    known = {entry["id"]: entry for entry in described.get("added_tokens", [])}
    for number, entry in (settings.get("added_tokens_decoder") or {}).items():
        if {"id": int(number), **entry} != known.get(int(number)):
            return False
    if settings.get("tokenizer_class") == PLAIN:
        return True
    return all(_agree(part, settings) for part in _parts(described))


def _parts(described: dict[str, Any]) -> list[dict[str, Any]]:
    """Every part that cuts, changes or surrounds text."""
    found: list[dict[str, Any]] = []
    waiting: list[Any] = [described.get(name) for name in ("normalizer", "pre_tokenizer", "post_processor")]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            found.append(part)
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)
    return found


def _agree(part: dict[str, Any], settings: dict[str, Any]) -> bool:
    return all(part[said] == settings.get(name, default) for said, (name, default) in STATED.items() if said in part)
