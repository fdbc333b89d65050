"""Policies that choose teacher layers; plain integers.

Layer *i* is the output of block *i*, counted from 0; the embedding output is never "layer 0".
A *copy map* says which teacher layers initialise the student, a *supervise map* which teacher layer each
student layer imitates. Both are lists ``[teacher layer of student layer 0, of 1, …]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nlp_distill.errors import LayerMapInvalid


def _alternate(teacher: int, student: int) -> list[int]:
    return [(i + 1) * teacher // student - 1 for i in range(student)]


def _first(teacher: int, student: int) -> list[int]:
    return list(range(student))


def _last(teacher: int, student: int) -> list[int]:
    return list(range(teacher - student, teacher))


def _first_last(teacher: int, student: int) -> list[int]:
    """Evenly spaced, with the first and the last layer always among them (one layer: the last)."""
    if student == 1:
        return [teacher - 1]
    return [round(i * (teacher - 1) / (student - 1)) for i in range(student)]


def _distilbert(teacher: int, student: int) -> list[int]:
    if (teacher, student) != (12, 6):
        raise LayerMapInvalid(
            policy="distilbert",
            reason=f"defined for 12 to 6 layers only, not {teacher} to {student}",
            fix="use `alternate` or an explicit list",
        )
    return [0, 2, 4, 7, 9, 11]


POLICIES: dict[str, Callable[[int, int], list[int]]] = {
    "alternate": _alternate,
    "first": _first,
    "last": _last,
    "first_last": _first_last,
    "distilbert": _distilbert,
}


def layer_map(policy: str | Sequence[int], teacher: int, student: int) -> list[int]:
    """Teacher layers for a student of `student` layers.

    `alternate`: layer i = ⌊(i+1)·n/m⌋ − 1, evenly spaced and ending on the last (12→6: 1,3,5,7,9,11).
    An explicit list needs one teacher layer for each student layer. Raises `LayerMapInvalid`.
    """
    if isinstance(policy, str):
        if policy not in POLICIES:
            raise LayerMapInvalid(
                policy=policy,
                reason="no such policy",
                fix=f"use one of {', '.join(POLICIES)} or an explicit list",
            )
        if not 1 <= student <= teacher:
            raise LayerMapInvalid(
                policy=policy,
                reason=f"cannot choose {student} of {teacher} layers",
                fix=f"choose 1 to {teacher} layers or give an explicit list",
            )
        return POLICIES[policy](teacher, student)
    chosen = list(policy)
    if len(chosen) != student:
        raise LayerMapInvalid(
            policy=chosen,
            reason=f"{len(chosen)} entries for {student} student layers",
            fix="give one entry per student layer",
        )
    outside = [i for i in chosen if not 0 <= i < teacher]
    if outside:
        raise LayerMapInvalid(
            policy=chosen,
            reason=f"the teacher has no layer {outside[0]}",
            fix=f"layers count from 0 to {teacher - 1}",
        )
    return chosen


def stack_maps(
    policy: str | Sequence[int] | Mapping[Any, Any], depths: Mapping[str, tuple[int, int]]
) -> dict[str, list[int]]:
    """A layer map for each stack. `depths`: stack → (teacher's layers, student's layers).

    A stack that `policy` does not name is mapped by `alternate`. Raises `LayerMapInvalid`, also for one explicit
    list over two stacks.
    """
    if isinstance(policy, Mapping):
        unknown = [name for name in policy if name not in depths]
        if unknown:
            raise LayerMapInvalid(
                policy=dict(policy), reason=f"the model has no {unknown[0]}", fix=f"its stacks: {', '.join(depths)}"
            )
        return {name: layer_map(policy.get(name, "alternate"), *depth) for name, depth in depths.items()}
    if not isinstance(policy, str) and len(depths) > 1:
        raise LayerMapInvalid(
            policy=list(policy),
            reason="one list for a model with an encoder and a decoder",
            fix="give `{encoder: […], decoder: […]}`",
        )
    return {name: layer_map(policy, *depth) for name, depth in depths.items()}
