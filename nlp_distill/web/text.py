"""Text as it may arrive in JSON."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator


def _whole(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"it has half of a surrogate pair at character {error.start}, which is no text") from error
    return text


Text = Annotated[str, AfterValidator(_whole)]
"""A string that can be written again: JSON's escapes can say halves of surrogate pairs, which nothing can encode."""
