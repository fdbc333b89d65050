"""What settings are made of: a base that knows its keys, and numbers that are numbers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


def _no_boolean(value: Any) -> Any:
    """True and false are no numbers, though Python takes them for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError(f"give a number, not {str(value).lower()}")
    return value


Whole = Annotated[int, BeforeValidator(_no_boolean)]
WholeOrNone = Annotated[int | None, BeforeValidator(_no_boolean)]
Number = Annotated[float, BeforeValidator(_no_boolean)]
NumberOrNone = Annotated[float | None, BeforeValidator(_no_boolean)]


class Settings(BaseModel):
    """Base of every part: unknown keys are errors, values are fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)
