"""The same loop on a GPU: does it learn the same, repeat its bits, and how fast is it? Under eight minutes.

    python benchmarks/gpu.py              # on a machine with CUDA
    python benchmarks/gpu.py --dry-cpu    # every line of it on a CPU, small: shows that it runs, nothing else

Checks: losses of an epoch on CPU and GPU agree (fp32, no dropout); bf16 is what the probe finds faster; an interrupted
run goes on to the same bits under `determinism: strict`; compiled graphs learn what the loop without them does; two
processes learn what one does, where there are two GPUs.
Measured: ours against the two loops, wall time, SST-2's lengths; ours compiled; with larger steps, by the token budget.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from engines import naive, ours, tuned
from harness import ARMS, ROOT, holds, keep, machine, measured, speed_ratio, speeds
from prepared import LENGTH, MINILM, Bench, Rows, prepare, texts, write_rows

from nlp_distill.loading import load_tokenizer, save_model
from nlp_distill.sources import resolve
from nlp_distill.testing import tiny_model

LIMIT_MINUTES = 8
RUN_SECONDS = 180
"""What one run of a check may take; on a CPU with others on it, too."""
LOSS_RTOL, LEAST_LOSS = 2e-3, 1e-4
"""Losses agree so well; smaller ones, as a tiny teacher's are, are differences of rounded numbers."""
BUDGET = 65_536
"""Tokens in one forward."""


@dataclass
class World:
    """The bench, its rows, the device that is checked."""

    bench: Bench
    rows: Rows
    device: str
    folder: Path
    gpus: int

    def recipe(self, **phase: Any) -> dict[str, Any]:
        """Two epochs without dropout: CPU and GPU draw other noise."""
        settled = {"epochs": 2, "schedule": "linear", "micro_batch_tokens": BUDGET, "cache": "none", **phase}
        return self.bench.recipe(self.rows, "wide", **settled)

    def run(
        self, name: str, device: str, recipe: dict[str, Any], stop_at: int = 0, processes: int = 1
    ) -> dict[str, Any]:
        """A run in a process of its own; what it said. Raises `TimeoutError` where it takes too long."""
        answer = self.folder / "answer.json"
        told = {"recipe": recipe, "out": str(self.folder / name), "stop_at": stop_at, "answer": str(answer)}
        python = [sys.executable]
        if processes > 1:
            python = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tasks")])}
        if device == "cpu":
            environment["ACCELERATE_USE_CPU"] = "true"
        command = [*python, str(ARMS / "run.py"), json.dumps(told)]
        code, trouble = finished(command, environment, name)
        if code:
            raise RuntimeError(f"{name} failed:\n{trouble[-2000:]}")
        said: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return said


def finished(
    command: list[str], environment: dict[str, str], name: str, seconds: float = RUN_SECONDS
) -> tuple[int, str]:
    """Exit code and stderr of a command. Raises `TimeoutError` where it takes longer."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        # Asked first: torch's launcher takes its processes with it then.
        process.terminate()
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        raise TimeoutError(f"the run `{name}` was stopped: it took longer than {seconds:g} s") from None
    return process.returncode, said


def losses_agree(world: World) -> dict[str, Any]:
    """The losses of each epoch, CPU against the device."""
    recipe = world.recipe() | {"precision": "fp32"}
    here, there = (world.run(f"losses-{n}", device, recipe) for n, device in enumerate(("cpu", world.device)))
    return compared_histories(here, there)


def compared_histories(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    """Largest relative difference of any loss."""
    pairs = [
        (first[name], second[name])
        for first, second in zip(one["history"], two["history"], strict=True)
        for name in first
        if name in ("logits", "hidden", "attention")
    ]
    worst = max(abs(a - b) / max(abs(a), LEAST_LOSS) for a, b in pairs)
    return {"largest_relative_difference": worst, "passed": bool(pairs) and worst <= LOSS_RTOL}


def bf16_is_found(world: World) -> dict[str, Any]:
    """What the probe chose."""
    said = world.run("probe", world.device, world.recipe(epochs=1) | {"precision": "auto"})
    return {
        **said["precision"],
        "accelerator": said["machine"]["accelerator"],
        "passed": "speedup" in said["precision"],
    }


def resume_repeats_its_bits(world: World) -> dict[str, Any]:
    """Interrupted in the second epoch and started again, against undisturbed."""
    recipe = world.recipe() | {"determinism": "strict", "precision": "fp32"}
    whole = world.run("whole", world.device, recipe)
    stopped = world.run("stopped", world.device, recipe, stop_at=whole["steps"] // 2)
    again = world.run("stopped", world.device, recipe)
    return {
        "interrupted": stopped["interrupted"],
        "passed": stopped["interrupted"] and again["sha256"] == whole["sha256"],
    }


def compiled_graphs_learn_the_same(world: World) -> dict[str, Any]:
    """`compile: true` against `false`, on the device."""
    recipe = world.recipe() | {"precision": "fp32"}
    step_by_step = world.run("steps", world.device, recipe)
    return compared_histories(step_by_step, world.run("compiled", world.device, recipe | {"compile": True}))


def two_processes_learn_the_same(world: World) -> dict[str, Any]:
    """Two GPUs against one."""
    if world.gpus < 2:
        return {"passed": None, "why": f"{world.gpus} GPU"}
    recipe = world.recipe() | {"precision": "fp32"}
    return compared_histories(
        world.run("one", world.device, recipe), world.run("two", world.device, recipe, processes=2)
    )


def speed(world: World, rounds: int) -> dict[str, Any]:
    """Ours against the two loops, and with steps that fill the device."""
    bench, rows = world.bench, world.rows
    budget: dict[str, Any] = {"micro_batch_tokens": BUDGET}
    arms = [ours(bench, rows, "wide", **budget), ours(bench, rows, "wide", name="again", **budget)]
    arms += [tuned(bench, rows, "wide"), naive(bench, rows, "wide")]
    arms += [ours(bench, rows, "wide", name="compiled", top={"compile": True}, **budget)]
    arms += [ours(bench, rows, "wide", name="ours, 256 a step", batch_size=min(256, rows.examples), **budget)]
    for arm in arms:
        arm.settings = {**arm.settings, "device": world.device}
        if world.device == "cpu":
            arm.environment = {**arm.environment, "ACCELERATE_USE_CPU": "true"}
    blocks = measured(arms, rounds, os.cpu_count() or 1, lambda line: print(line, flush=True))
    control = speed_ratio(blocks, "ours", "again", "wall")
    ratios = {name: speed_ratio(blocks, "ours", name, "wall") for name in blocks if name not in ("ours", "again")}
    per_s = {name: speeds(values)["examples_per_s_wall"] for name, values in blocks.items()}
    return {"ratio": ratios, "control": control, "void": not holds(control), "examples_per_s": per_s}


CHECKS: dict[str, Callable[[World], dict[str, Any]]] = {
    "losses on CPU and GPU agree": losses_agree,
    "the probe's precision": bf16_is_found,
    "an interrupted run repeats its bits": resume_repeats_its_bits,
    "compiled graphs learn the same": compiled_graphs_learn_the_same,
    "two processes learn what one does": two_processes_learn_the_same,
}


def tiny(folder: Path) -> str:
    """The teacher of a dry run: six layers of width 32, with MiniLM's tokenizer."""
    tokenizer = load_tokenizer(resolve(MINILM).folder, LENGTH)
    shape: dict[str, Any] = {"num_hidden_layers": 6, "max_position_embeddings": LENGTH, "vocab_size": len(tokenizer)}
    folder.mkdir()
    save_model(tiny_model(**shape), tokenizer, folder)
    return str(folder)


def without_dropout(folder: Path) -> None:
    """Teacher and student of a bench draw no noise."""
    for who in ("teacher", "student"):
        file = folder / "run" / who / "config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        config |= {name: 0.0 for name in config if "dropout" in name and isinstance(config[name], float)}
        file.write_text(json.dumps(config), encoding="utf-8")


def main() -> int:
    """All checks, then the speeds; 1 when a check failed, or a GPU took too long."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dry-cpu", action="store_true", help="on a CPU, small")
    parser.add_argument("--keep", type=Path, help="write the result here; default: beside the script, unless dry")
    asked = parser.parse_args()
    gpus = torch.cuda.device_count()
    if not gpus and not asked.dry_cpu:
        sys.exit("no CUDA device here; --dry-cpu tries the script itself")
    device = "cpu" if asked.dry_cpu else "cuda"
    about, start, result = machine(), time.monotonic(), dict[str, Any]()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bench = prepare(folder, 64, tiny(folder / "tiny")) if asked.dry_cpu else prepare(folder)
        without_dropout(folder)
        rows = write_rows(bench, "short", texts(65 if asked.dry_cpu else 3201))
        world = World(bench, rows, device, folder, gpus)
        for name, check in CHECKS.items():
            try:
                result[name] = check(world)
            except TimeoutError as late:
                result[name] = {"passed": False, "why": str(late)}
            print(f"{name}: {result[name]}", flush=True)
        result["speed"] = speed(world, 1 if asked.dry_cpu else 8)
        print(json.dumps(result["speed"], indent=1), flush=True)
    result |= {"device": device, "gpus": [torch.cuda.get_device_name(n) for n in range(gpus)]}
    result["minutes"] = round((time.monotonic() - start) / 60, 1)
    result["within_limit"] = result["minutes"] <= LIMIT_MINUTES
    # A CPU is only tried: how fast it is says nothing.
    too_long = not (asked.dry_cpu or result["within_limit"])
    if too_long:
        print(f"it took {result['minutes']} minutes, more than {LIMIT_MINUTES}", flush=True)
    if asked.keep or not asked.dry_cpu:
        keep(str(asked.keep or __file__), result, about)
    failed = any(check.get("passed") is False for check in result.values() if isinstance(check, dict))
    return int(failed or too_long)


if __name__ == "__main__":
    sys.exit(main())
