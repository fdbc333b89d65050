"""The arms of the speed rows: ours, the two loops, TextBrewer and torchdistill, on prepared rows."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import ROOT, Arm
from prepared import Bench, Rows, seq2seq_recipe

NAIVE_STEPS, DYNAMIC_STEPS = 1, 4
"""Steps in a block of the loops that are not ours: about as long as an epoch of ours."""


def ours(
    bench: Bench,
    rows: Rows,
    losses: str,
    name: str = "ours",
    without: Sequence[str] = (),
    top: Any = None,
    **distill: Any,
) -> Arm:
    """The product, an epoch a block; `top`, `distill`: settings of the recipe, of its phase."""
    recipe = {**bench.recipe(rows, losses, **distill), **(top or {})}
    return product(bench, rows, recipe, name, without, str(bench.corpus))


def product(
    bench: Bench, rows: Rows, recipe: dict[str, Any], name: str, without: Sequence[str], vocabulary_of: str = ""
) -> Arm:
    """Any recipe of ours, an epoch a block."""
    told = {"recipe": recipe, "examples": rows.examples, "tokens": rows.tokens}
    told |= {"without": [*without], "vocabulary_of": vocabulary_of}
    here = os.pathsep.join([str(ROOT), str(ROOT / "tasks")])
    environment = {"NLP_DISTILL_CACHE": str(bench.folder / "cache"), "PYTHONPATH": here}
    return Arm(name, "ours.py", told, environment=environment)


def fed(bench: Bench, rows: Rows, feed: str) -> dict[str, Any]:
    """What every other loop is told."""
    return {
        "rows": str(rows.batches),
        "feed": feed,
        "steps": NAIVE_STEPS if feed == "padded" else DYNAMIC_STEPS,
        "teacher": str(bench.teacher),
        "student": str(bench.student),
        "precision": bench.precision,
    }


def naive(bench: Bench, rows: Rows, losses: str) -> Arm:
    """Padded to 128, fp32, all outputs."""
    settings = {**fed(bench, rows, "padded"), "loop": "naive", "wide": losses == "wide"}
    return Arm("naive", "loops.py", settings)


def tuned(bench: Bench, rows: Rows, losses: str, feed: str = "dynamic", name: str = "tuned") -> Arm:
    """Padded to the longest row of each batch, fused AdamW, the probed precision."""
    return Arm(name, "loops.py", {**fed(bench, rows, feed), "loop": "tuned", "wide": losses == "wide"})


def products(bench: Bench, rows: Rows, losses: str) -> Arm:
    """The matrix products of ours alone, over steps of one length; where terms read [CLS], its last layer's for it."""
    settings = {**fed(bench, rows, "sorted"), "steps": rows.examples // 32, "lean": losses == "narrow"}
    return Arm("torch.mm", "products.py", settings)


FRAMEWORKS = {"TextBrewer": "with_textbrewer.py", "torchdistill": "with_torchdistill.py"}


def environments() -> Path:
    """Where `make bench-environments` put the frameworks."""
    return Path(os.environ.get("BENCH_ENVIRONMENTS", ROOT / ".bench"))


def framework(bench: Bench, rows: Rows, name: str, feed: str) -> Arm:
    """TextBrewer or torchdistill, fed padded, dynamic or sorted batches, or by a DataLoader with its defaults."""
    python = environments() / name.lower() / "bin" / "python"
    if not python.exists():
        sys.exit(f"{python} is missing: run `make bench-environments`")
    settings = fed(bench, rows, feed)
    return Arm(f"{name}, {feed}", FRAMEWORKS[name], settings, python=str(python))


def seq2seq_ours(
    bench: Bench, rows: Rows, name: str, cache: str, without: Sequence[str] = (), teacher: Path | None = None
) -> Arm:
    """The product on E2E, without its scoring: it generates, and the other loop does not."""
    return product(bench, rows, seq2seq_recipe(bench, rows, cache, teacher), name, ["scoring", *without])


def seq2seq_naive(bench: Bench, rows: Rows) -> Arm:
    """Both models whole at every step, every row padded to the longest."""
    run = rows.folder / "run"
    settings = {"rows": str(rows.batches), "teacher": str(run / "teacher"), "student": str(run / "student")}
    return Arm("naive", "loop_seq2seq.py", settings)
