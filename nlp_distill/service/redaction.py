"""Secrets never reach a log, an event or an answer."""

from __future__ import annotations

import os
import re

NAMES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "NLP_DISTILL_TOKEN", "WANDB_API_KEY", "RAY_AUTH_TOKEN")
LOOKS = re.compile(r"\bhf_[A-Za-z0-9]{8,}|(?i:bearer)\s+[\w.~+/-]{8,}=*|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
HIDDEN = "[secret]"


def redact(text: str) -> str:
    """The text without what looks like a token, and without the tokens of this process's environment."""
    for name in NAMES:
        if len(secret := os.environ.get(name, "")) >= 8:
            text = text.replace(secret, HIDDEN)
    return LOOKS.sub(HIDDEN, text)
