"""Distillations named after the papers that they follow: `distill: {recipe: tinybert}`; see docs/papers.md.

Each is a list of phases as a recipe would write them. Settings given beside `recipe` replace those of every phase.
"""

from __future__ import annotations

import copy
from typing import Any

PRESETS: dict[str, list[dict[str, Any]]] = {
    "distilbert": [
        {
            "losses": [
                {"kind": "logits", "weight": 5.0, "temperature": 2.0},
                {"kind": "labels", "weight": 2.0},
                {"kind": "hidden", "weight": 1.0, "distance": "cosine", "layers": "last"},
            ]
        }
    ],
    "pkd": [
        {
            "losses": [
                {"kind": "logits", "weight": 0.5, "temperature": 5.0},
                {"kind": "labels", "weight": 0.5},
                {"kind": "hidden", "weight": 10.0, "distance": "cosine"},
            ]
        }
    ],
    "tinybert": [
        {"keep": "last", "losses": [{"kind": "hidden"}, {"kind": "attention"}]},
        {"losses": [{"kind": "logits", "temperature": 1.0}]},
    ],
    "minilm": [
        {"keep": "last", "losses": [{"kind": "relation", "of": ["query", "key", "value"], "layers": "last"}]},
        {"losses": [{"kind": "logits"}, {"kind": "labels", "weight": 0.5}]},
    ],
    "distilbart": [{"losses": [{"kind": "labels"}]}],
    "seqkd": [{"targets": "teacher", "losses": [{"kind": "labels"}]}],
}


def phases_of(name: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The phases of a named distillation with `settings` on top of each. Raises `KeyError`."""
    return [{**copy.deepcopy(phase), **settings} for phase in PRESETS[name]]
