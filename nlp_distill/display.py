"""What a person sees while a run goes on: bars with ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from nlp_distill.shelf import Shelved

PLAIN_SECONDS = 20.0
"""Off a terminal a line of progress this often."""

TITLES = {
    "data": "Data",
    "teacher": "Teacher",
    "student": "Student",
    "distill": "Distilling",
    "control": "Control (labels only)",
    "export": "Exporting",
    "evaluate": "Scoring",
    "measure": "Measuring",
    "results": "Results",
    "report": "Report",
    "publish": "Publishing",
}


class Display:
    """Turns a run's events into text. Use as a context manager around the run."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.bars: dict[str, TaskID] = {}
        self.last_line = 0.0
        self.started: dict[str, float] = {}

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def notify(self, kind: str, **fields: Any) -> None:
        """One event of a run; kinds without a line of their own are only written to `events.jsonl`."""
        line = getattr(self, f"_{kind}", None)
        if line is not None:
            line(**fields)

    def _say(self, text: str, style: str = "") -> None:
        self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    def _stage(self, stage: str, state: str, seconds: float = 0.0, **facts: Any) -> None:
        for bar in list(self.bars.values()):
            self.progress.remove_task(bar)
        self.bars.clear()
        if state == "skipped" and stage not in ("data", "publish"):
            self._say(f"{TITLES[stage]}: already there")
        elif state == "started" and stage not in ("data", "results", "report"):
            self._say(f"{TITLES[stage]} …")
        elif state == "done" and seconds >= 1:
            self._say(f"  done in {_duration(seconds)}", style="dim")

    def _data(self, split: str, rows: dict[str, int], notes: dict[str, str]) -> None:
        counts = ", ".join(f"{count:,} {name}" for name, count in rows.items())
        self._say(f"Data: {counts} rows; scores are on {split}")
        for name, note in notes.items():
            self._say(f"  {name}: {note}", style="dim")

    def _precision(self, precision: str, speedup: float | None = None) -> None:
        measured = f" (bf16 runs {speedup}× as fast as fp32 here)" if speedup is not None else ""
        self._say(f"  arithmetic: {precision}{measured}", style="dim")

    def _resumed(self, stage: str, step: int) -> None:
        self._say(f"  {stage}: resumed at step {step}")

    def _warning(self, message: str, **_: Any) -> None:
        self._say(f"  warning: {message}", style="yellow")

    def _note(self, message: str, **_: Any) -> None:
        self._say(f"  {message}", style="dim")

    def _metric(self, stage: str, epoch: int, epochs: int, **values: float) -> None:
        shown = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in values.items())
        self._say(f"  {stage} epoch {epoch}/{epochs}: {shown}")

    def _progress(self, stage: str, step: int, steps: int, **fields: Any) -> None:
        rate = fields.get("examples_per_s")
        note = f"{rate:.0f} examples/s" if rate else ""
        if stage not in self.bars:
            self.bars[stage] = self.progress.add_task(stage, total=steps, note=note)
            self.started[stage] = time.monotonic()
            self.last_line = time.monotonic()
        self.progress.update(self.bars[stage], completed=step, total=steps, note=note)
        if not self.console.is_terminal and time.monotonic() - self.last_line >= PLAIN_SECONDS:
            self.last_line = time.monotonic()
            task = self.progress.tasks[[t.id for t in self.progress.tasks].index(self.bars[stage])]
            left = f", {_duration(task.time_remaining)} left" if task.time_remaining else ""
            self._say(f"  {stage} {step}/{steps}{left} {note}")


def caches_table(entries: Sequence[Shelved]) -> Table:
    """Teachers' signals on disk, one a row."""
    table = Table(
        "name", "teacher", "data", "signals", "precision", Column("MB", justify="right"), "last used", box=None
    )
    for line in (entry.line() for entry in entries):
        about = [escape(str(line.get(name, ""))) for name in ("name", "teacher", "data", "signals", "precision")]
        table.add_row(*about, f"{line['bytes'] / 1e6:,.1f}", line["last_used"])
    return table


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
