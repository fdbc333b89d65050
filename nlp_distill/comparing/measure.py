"""`nlp-distill measure MODEL…` as a function: what models answer, how fast, how large, side by side."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from nlp_distill.comparing.blocks import Times, ratio, time_in_turns
from nlp_distill.comparing.rows import Known, answer_tokens, cells, known_rows, scored
from nlp_distill.comparing.subjects import Subject, run_of, subjects
from nlp_distill.rundir import versions

SCHEMA = 1
LENGTHS, BATCHES, ROUNDS = (32, 128, 384), (1, 8), 15
STEADY = 0.03
"""Most by which a model's ratio with itself may differ from 1 (performance is a ratio, noise is what this shows)."""
Notify = Callable[..., None]


def all_threads() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure_models(
    models: Sequence[str],
    against: str | None = None,
    data: str | None = None,
    task: str | None = None,
    lengths: Sequence[int] = LENGTHS,
    batches: Sequence[int] = BATCHES,
    threads: Sequence[int] | None = None,
    rounds: int = ROUNDS,
    notify: Notify = lambda kind, **fields: None,
) -> dict[str, Any]:
    """Score and time models, ours or not; a document of plain data, schema 1.

    `models`, `against`: folders, files, runs, `package:` references, Hub ids; `data`: as `data.dataset` of a recipe;
    `lengths`: tokens; `rounds`: blocks of each model, length, batch and number of threads.
    Times are in ms, sizes in MB of 10⁶ bytes, scores in points. Raises `UserError`, `RunFailed`.
    """
    with ExitStack() as stack:
        references = [*([against] if against is not None else []), *models]
        run = next(filter(None, map(_run, references)), None)
        known = known_rows(references[0], run, data, task)
        found = subjects(references, known.task, stack)
        base = found[0] if against is not None else None
        scores = scored(found, base, known, notify)
        limit = min(subject.limit for subject in found)
        wanted = {subject.name: cells(subject, known, lengths, batches, limit) for subject in found}
        new_tokens = {subject.name: answer_tokens(subject, known) for subject in found}
        timed = {
            count: _timed(found, base, wanted, new_tokens, count, rounds, notify)
            for count in threads or sorted({1, all_threads()})
        }
        return {
            "schema": SCHEMA,
            "data": _data(known),
            "against": base.name if base else None,
            "models": [_entry(subject, scores[subject.name], timed, wanted[subject.name]) for subject in found],
            "ratios": _ratios(found, base, timed, wanted) if base else [],
            "rounds": rounds,
            "machine": {"platform": platform.platform(), "cores": os.cpu_count(), "may_use": all_threads()},
            "versions": versions(("nlp-distill", "torch", "transformers", "onnxruntime")),
        }


def _run(reference: str) -> Any:
    from pathlib import Path

    return run_of(Path(os.path.expanduser(reference)))


def _again(name: str) -> str:
    return f"{name} (again)"


def _timed(
    found: Sequence[Subject],
    base: Subject | None,
    wanted: dict[str, Any],
    new_tokens: dict[str, int | None],
    threads: int,
    rounds: int,
    notify: Notify,
) -> dict[str, Times]:
    """Times by name; those of the base's second process under a name of their own."""
    told = [subject.measured(subject.name, new_tokens[subject.name]) for subject in found]
    ways = dict(wanted)
    if base is not None:
        told.append(replace(told[0], name=_again(base.name)))
        ways[_again(base.name)] = wanted[base.name]

    def progress(done: int, total: int) -> None:
        notify("progress", stage=f"timing, {threads} thread(s)", step=done, steps=total)

    return time_in_turns(told, ways, threads, rounds, progress)


def _data(known: Known) -> dict[str, Any] | None:
    if known.slices is None or known.task is None:
        return None
    rows = known.slices
    return {
        "task": known.task.name,
        "metric": known.task.primary_metric,
        "source": rows.source,
        "split": rows.split,
        "rows": len(rows.evaluation),
        "sha256": rows.sha256["evaluation"],
    }


def _entry(
    subject: Subject, score: dict[str, Any], timed: dict[int, dict[str, Times]], wanted: Sequence[Any]
) -> dict[str, Any]:
    fewest = min(timed)
    first = timed[fewest][subject.name]
    return {
        "name": subject.name,
        "variant": subject.variant if subject.ours else None,
        "runtime": subject.runtime,
        "task": subject.task.name if subject.task else None,
        "bytes": subject.bytes,
        **score,
        "load_s": first.load_s,
        "peak_memory_mb": first.peak_memory_mb,
        # Nothing was held where the system does not say.
        "model_memory_mb": round(first.peak_memory_mb - first.held_mb, 1) if first.held_mb else None,
        "latency_ms": [
            {"threads": threads, **times[subject.name].latency(cell)}
            for threads, times in timed.items()
            for cell in wanted
        ],
    }


def _ratios(
    found: Sequence[Subject], base: Subject, timed: dict[int, dict[str, Times]], wanted: dict[str, Any]
) -> list[dict[str, Any]]:
    """How many times as fast as the base each model is, the base's own second process among them."""
    entries = []
    for threads, times in timed.items():
        for number, cell in enumerate(wanted[base.name]):
            same = ratio(times[base.name], times[_again(base.name)], cell, cell)
            control = {"control": same["ratio"], "control_ci95": same["ci95"], "steady": _steady(same)}
            for subject in found[1:]:
                theirs = wanted[subject.name][number]
                found_ratio = ratio(times[base.name], times[subject.name], cell, theirs)
                entries.append({"name": subject.name, "threads": threads, **found_ratio, **control})
    return entries


def _steady(same: dict[str, Any]) -> bool:
    return bool(abs(same["ratio"] - 1) <= STEADY)
