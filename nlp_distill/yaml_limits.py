"""Limits of a YAML text, checked token by token before anything is built from it."""

from __future__ import annotations

import yaml

OPENS = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
CLOSES = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)


def beyond_limits(text: str, depth: int, aliases: bool = False) -> str | None:
    """Why a text is refused: nested too deeply, which also takes its parser minutes, or with aliases; else None.

    Raises `yaml.YAMLError`.
    """
    level = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        level += isinstance(token, OPENS) - isinstance(token, CLOSES)
        if level > depth:
            return f"it is nested deeper than {depth} levels"
        if isinstance(token, yaml.AliasToken) and not aliases:
            return "anchors and aliases are not allowed"
    return None
