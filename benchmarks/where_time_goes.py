"""Where the time of cached steps goes: torch's profiler over an epoch of ours on SST-2's lengths, one thread.

    python benchmarks/where_time_goes.py [--losses wide|narrow …]

Shares are of the operators' own time, by the clock on the wall: a core of its own is wanted. `operators` says what
share of the epoch that is; the rest is Python's, and the profiler's, which makes it larger than it is in a run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from harness import ARMS, keep, machine
from prepared import Bench, Rows, prepare, texts, write_rows
from torch.profiler import ProfilerActivity, profile, record_function

import nlp_distill
from nlp_distill.recipe import Recipe

sys.path.append(str(ARMS))
from ours import trim_to, without

ROWS, LARGEST = 640, 12
WITHIN = {"clip_grad_norm_": "clipping", "Optimizer.": "optimizer", "aten::dropout": "dropout's noise"}
"""How the name of an operator begins, or of one around it: all that happens inside belongs to the group."""
OPERATORS = {
    "matrix products": ("mm", "addmm", "_addmm_activation", "linear", "mkldnn_linear", "mkldnn_linear_backward"),
    "products of attention": (
        *("bmm", "baddbmm", "matmul", "scaled_dot_product_attention"),
        *("_scaled_dot_product_attention_math", "_scaled_dot_product_flash_attention_for_cpu"),
    ),
    "casts and copies": ("to", "_to_copy", "copy_", "clone", "contiguous", "cat", "stack", "resolve_conj"),
    "GELU, softmax, norms": ("gelu", "_softmax", "softmax", "_log_softmax", "log_softmax", "native_layer_norm", "tanh"),
}
REST = "rest"


def group(event: Any) -> str:
    """What an operator's own time belongs to."""
    around = event
    while around is not None:
        for begins, name in WITHIN.items():
            if around.name.startswith(begins):
                return name
        around = around.cpu_parent
    bare = event.name.removeprefix("aten::").removesuffix("_backward_data").removesuffix("_backward")
    return next((name for name, operators in OPERATORS.items() if bare in operators), REST)


def profiled(bench: Bench, rows: Rows, losses: str) -> dict[str, Any]:
    """Shares of the groups, in per cent, and what is largest among the rest; an epoch before is the warm-up."""
    profiler = profile(activities=[ProfilerActivity.CPU])
    took = 0.0

    def notify(kind: str, **fields: Any) -> None:
        nonlocal took
        if kind == "metric" and fields["stage"] == "distill":
            if fields["epoch"] == 1:
                profiler.start()
                took = -time.perf_counter()
            else:
                took += time.perf_counter()
                profiler.stop()

    recipe = Recipe.model_validate(bench.recipe(rows, losses, epochs=2))
    nlp_distill.run(recipe, out=bench.folder / f"profiled-{losses}", until="distill", notify=notify)
    groups: dict[str, float] = defaultdict(float)
    rest: dict[str, float] = defaultdict(float)
    events: list[Any] = profiler.events()  # type: ignore[no-untyped-call]
    for event in events:
        name = group(event)
        groups[name] += event.self_cpu_time_total
        if name == REST:
            rest[event.name] += event.self_cpu_time_total
    total = sum(groups.values())

    def largest(of: dict[str, float]) -> dict[str, float]:
        ranked = sorted(of.items(), key=lambda item: -item[1])[:LARGEST]
        return {name: round(100 * value / total, 1) for name, value in ranked}

    operators = round(100 * total / 1e6 / took, 1)
    return {"operators": operators, "shares": largest(groups), REST: largest(rest)}


def main() -> None:
    """Profile and keep the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--losses", nargs="+", choices=["wide", "narrow"], default=["wide", "narrow"])
    asked = parser.parse_args()
    about = machine()
    torch.set_num_threads(1)
    clip = torch.nn.utils.clip_grad_norm_

    def named(*given: Any, **more: Any) -> torch.Tensor:
        with record_function("clip_grad_norm_"):
            return clip(*given, **more)

    torch.nn.utils.clip_grad_norm_ = named
    with tempfile.TemporaryDirectory() as temporary:
        bench = prepare(Path(temporary))
        rows = write_rows(bench, "short", texts(ROWS + 1))
        without(["scoring"])
        trim_to(str(bench.corpus))
        found = {losses: profiled(bench, rows, losses) for losses in asked.losses}
        about |= bench.facts
    for losses, said in found.items():
        print(f"{losses}: " + ", ".join(f"{name} {share:.1f} %" for name, share in said["shares"].items()))
        print(f"  operators: {said['operators']} % of the epoch; of the rest: {said[REST]}")
    keep(__file__, {"percent": found, "rows": ROWS, "threads": 1}, about)


if __name__ == "__main__":
    main()
