"""What a run says in its `events.jsonl`, as events and curves of its job."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nlp_distill.service.redaction import redact
from nlp_distill.service.store.journal import Event, Point

MOST_AT_ONCE = 1 << 20
LONGEST_MESSAGE = 2000
LARGEST_DATA = 32 << 10


@dataclass
class Said:
    """News of a run: events, points, how far its file was read, the last progress."""

    consumed: int
    events: list[Event] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    progress: dict[str, Any] | None = None


def news(file: Path, consumed: int) -> Said:
    """Whole lines behind the part that was read; at most 1 MiB of them."""
    said = Said(consumed)
    if not file.is_file():
        return said
    with file.open("rb") as stream:
        # After a power cut the file may be shorter than what was read of it.
        said.consumed = min(consumed, stream.seek(0, 2))
        stream.seek(said.consumed)
        block = stream.read(MOST_AT_ONCE)
    whole = block[: block.rfind(b"\n") + 1]
    said.consumed += len(whole)
    for line in whole.splitlines():
        try:
            fields = json.loads(line)
            kind, created_at = str(fields.pop("event")), int(fields.pop("time") * 1000)
        except (ValueError, KeyError, TypeError, AttributeError):
            said.events.append(Event("warning", "A line of the run's events cannot be read.", level="warning"))
            continue
        _take(said, kind, created_at, fields)
    return said


def _take(said: Said, kind: str, created_at: int, fields: dict[str, Any]) -> None:
    stage, step, steps = str(fields.get("stage", "")), fields.get("step"), fields.get("steps")
    if kind == "progress":
        values = {f"{stage}.loss.{name}": value for name, value in (fields.get("losses") or {}).items()}
        values |= {f"{stage}.{name}": fields[name] for name in ("examples_per_s", "learning_rate") if name in fields}
        _plot(said, values, step, created_at)
        said.progress = {"stage": stage, "step": step, "steps": steps}
        said.events.append(_event("progress", f"{stage} {step}/{steps}", fields, created_at))
    elif kind == "metric":
        values = {n: v for n, v in fields.items() if n not in ("stage", "epoch", "epochs")}
        _plot(said, {f"{stage}.epoch.{name}": value for name, value in values.items()}, fields.get("epoch"), created_at)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if isinstance(value, int | float))
        said.events.append(_event("metric", f"{stage} epoch {fields.get('epoch')}: {shown}", fields, created_at))
    elif kind == "stage":
        said.events.append(_event("stage", f"{stage}: {fields.get('state')}", fields, created_at))
        if fields.get("state") == "started":
            said.progress = {"stage": stage, "step": 0, "steps": None}
    elif kind == "warning":
        said.events.append(_event("warning", str(fields.get("message", "")), fields, created_at, "warning"))
    else:
        said.events.append(_event("log", str(fields.get("message") or kind), {"kind": kind, **fields}, created_at))


def _plot(said: Said, values: dict[str, Any], step: Any, created_at: int) -> None:
    if isinstance(step, int):
        said.points += [
            Point(name[:120], step, float(value), created_at)
            for name, value in values.items()
            if isinstance(value, int | float)
        ]


def _event(kind: Any, message: str, fields: dict[str, Any], created_at: int, level: Any = "info") -> Event:
    data = _without_secrets(fields)
    if len(json.dumps(data)) > LARGEST_DATA:
        data = {"stage": data.get("stage"), "state": data.get("state")}
    return Event(kind, redact(message)[:LONGEST_MESSAGE], data, level, created_at)


def _without_secrets(value: Any) -> Any:
    """Plain data; text by text, as JSON's own marks would hide where a token begins."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redact(str(name)): _without_secrets(child) for name, child in value.items()}
    return [_without_secrets(child) for child in value] if isinstance(value, list) else value
