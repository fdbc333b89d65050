"""What training looked like, from `events.jsonl`: a curve for each term, and the score after each epoch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

MOST_POINTS = 240
BESIDE = ("time", "event", "stage", "epoch", "epochs", "selection_score")
"""What an epoch's event holds besides losses."""

Points = list[tuple[float, float]]


@dataclass
class Training:
    """One stretch of training. Points are (epochs done, value); `losses`: of each term, the mean since its epoch
    began; `ends`: the mean of each whole epoch; `scores`: in points, on the selection rows.
    """

    name: str
    losses: dict[str, Points] = field(default_factory=dict)
    ends: dict[str, Points] = field(default_factory=dict)
    scores: Points = field(default_factory=list)


@dataclass
class _Heard:
    """What was said of one stretch so far."""

    steps: int = 0
    epochs: int = 0
    progress: dict[int, dict[str, float]] = field(default_factory=dict)
    ended: dict[int, dict[str, float]] = field(default_factory=dict)


def trainings(events: Iterable[dict[str, Any]]) -> list[Training]:
    """The trainings of a run in their order; of what was done twice (`--redo`) only the last time counts."""
    heard: dict[str, _Heard] = {}
    started: str | None = None
    resumed = False
    for event in events:
        kind, stage = event.get("event"), str(event.get("stage"))
        if kind == "stage" and event.get("state") == "started":
            started, resumed = stage, False
        elif kind == "resumed":
            resumed = True
            if said := heard.get(stage):
                # What came after the last checkpoint is done again.
                said.progress = {step: losses for step, losses in said.progress.items() if step <= event["step"]}
        elif "losses" in event or (kind == "metric" and "epochs" in event):
            if started is not None and not resumed:
                heard = {name: said for name, said in heard.items() if name.split(" ")[0] != started}
            started = None
            _hear(heard.setdefault(stage, _Heard()), event)
    return [_training(name, said) for name, said in heard.items()]


def _hear(said: _Heard, event: dict[str, Any]) -> None:
    if "losses" in event:
        said.steps = event["steps"]
        said.progress[event["step"]] = event["losses"]
    else:
        said.epochs = event["epochs"]
        said.ended[event["epoch"]] = {k: v for k, v in event.items() if isinstance(v, float | int)}


def _training(name: str, said: _Heard) -> Training:
    made = Training(name)
    if said.steps and said.epochs:
        for step in _thinned(sorted(said.progress)):
            for term, value in said.progress[step].items():
                made.losses.setdefault(term, []).append((step / said.steps * said.epochs, value))
    for epoch in sorted(said.ended):
        values = said.ended[epoch]
        if "selection_score" in values:
            made.scores.append((float(epoch), values["selection_score"]))
        for term in (term for term in values if term not in BESIDE and term != "selection_loss"):
            made.ends.setdefault(term, []).append((float(epoch), values[term]))
    return made


def _thinned(steps: list[int]) -> list[int]:
    every = max(1, -(-len(steps) // MOST_POINTS))
    return steps[::every]
