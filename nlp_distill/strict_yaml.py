"""YAML as data that means one thing: text keys, each given once; no aliases, merge keys or deep nesting."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

MAX_DEPTH = 20
FRONT = re.compile(r"\s*---[\r\n]+(.*?)[\r\n]+---", re.DOTALL)
OPENS = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
CLOSES = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)


class _Loader(yaml.SafeLoader):
    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise _refused(key, "merge keys are not allowed")

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        self.flatten_mapping(node)
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)  # type: ignore[no-untyped-call]
            if not isinstance(name, Hashable):
                raise _refused(key, "a key must be text")
            if not isinstance(name, str):
                raise _refused(key, f"the key {name!r} is not text; put it in quotes")
            if name in seen:
                raise _refused(key, f"the key {name!r} is given twice")
            seen.add(name)
        return super().construct_mapping(node, deep=deep)


_Loader.add_constructor("tag:yaml.org,2002:binary", yaml.SafeLoader.construct_undefined)  # type: ignore[type-var]


def _refused(place: Any, problem: str) -> yaml.MarkedYAMLError:
    """`place`: a node or a token."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)


def read(text: str) -> tuple[Any, yaml.Node | None]:
    """The value and its nodes, which know their lines. Raises `ValueError` with the reason, its line first."""
    loader = None
    try:
        check_limits(text)
        loader = _Loader(text)
        root = loader.get_single_node()
        return (None if root is None else loader.construct_document(root)), root  # type: ignore[no-untyped-call]
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark is not None else ""
        raise ValueError(where + str(error.problem or error.context)) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(f"line {line}: the character #x{error.character:04x} is not allowed") from error
    finally:
        if loader is not None:
            loader.dispose()  # type: ignore[no-untyped-call]


def check_limits(text: str, aliases: bool = False) -> None:
    """Refuse aliases and depth before anything is built: both make much of little. Raises `yaml.YAMLError`.

    Token by token, as a parser takes minutes over fifty thousand brackets.
    """
    depth = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        if isinstance(token, yaml.AliasToken | yaml.AnchorToken) and not aliases:
            raise _refused(token, "anchors and aliases are not allowed")
        depth += isinstance(token, OPENS) - isinstance(token, CLOSES)
        if depth > MAX_DEPTH:
            raise _refused(token, f"nested more than {MAX_DEPTH} deep")


def front_matter(text: str) -> Any:
    """What a card (README.md) says of itself between its first two `---`; None where it says nothing.

    Strangers write cards: aliases are read, within limits. Raises `yaml.YAMLError`, `ValueError`, `RecursionError`.
    """
    front = FRONT.match(text)
    if front is None:
        return None
    check_limits(front.group(1), aliases=True)
    return yaml.safe_load(front.group(1))
