"""Measurement side by side: a process for each engine, short blocks in turn, ratios of neighbouring blocks.

Every arm is a process that runs a block on command. Rounds go through the arms forwards and backwards in turn, so that
each pair of arms runs as A B B A and a drift of the machine falls on both alike. A ratio is taken in each round; its
median and its 95 % bootstrap interval over rounds are reported. Two arms of the same engine are the A/A control.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ARMS = Path(__file__).parent / "arms"
ROOT = Path(__file__).parents[1]
CONTROL = 0.03
"""How far an A/A ratio may lie from 1."""
DRAWS = 2000
CLOCKS = ("wall", "cpu")


@dataclass
class Block:
    """What a block took. `wall` and `cpu` (of the process, all threads): seconds; `tokens`: without padding."""

    wall: float
    cpu: float
    examples: int
    tokens: float
    peak_mb: float

    def per_example(self, clock: str) -> float:
        """Seconds."""
        return float(getattr(self, clock)) / self.examples


@dataclass
class Arm:
    """An engine to measure: a script of `arms/` and what it is told, the Python that has its libraries."""

    name: str
    script: str
    settings: Mapping[str, Any]
    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)


class Child:
    """A running arm."""

    def __init__(self, arm: Arm, threads: int) -> None:
        self.arm = arm
        # A file, not a pipe: nobody reads it while the process works, and a full pipe would stop it for ever.
        self.said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen(
            [arm.python, str(ARMS / arm.script), json.dumps({**arm.settings, "threads": threads})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            text=True,
            env={**os.environ, **counts, **quiet, **arm.environment},
        )

    def answer(self) -> dict[str, Any]:
        """Its next line. Raises `RuntimeError` with its last words when it died."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.said.seek(0)
            raise RuntimeError(f"{self.arm.name} died:\n{self.said.read()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def pin(self, threads: int) -> None:
        """Keep it to as many cores as it has threads."""
        if sys.platform == "linux":
            cores = sorted(os.sched_getaffinity(0))[-threads:]
            for thread in Path(f"/proc/{self.process.pid}/task").iterdir():
                os.sched_setaffinity(int(thread.name), cores)

    def block(self) -> Block:
        """Run one."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return Block(**self.answer())

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
        self.said.close()


Blocks = dict[str, list[Block]]


def in_turn(names: Sequence[str], round_number: int) -> list[str]:
    """The order of a round: forwards, then backwards."""
    return list(names) if round_number % 2 == 0 else list(reversed(names))


def measured(arms: Sequence[Arm], rounds: int, threads: int, said: Callable[[str], None] = lambda line: None) -> Blocks:
    """The blocks of all arms, `rounds` each, after a warm-up."""
    blocks: Blocks = {arm.name: [] for arm in arms}
    with ExitStack() as closing:
        children: dict[str, Child] = {}
        for arm in arms:
            children[arm.name] = Child(arm, threads)
            closing.callback(children[arm.name].close)
        for child in children.values():
            child.answer()
            child.pin(threads)
            said(f"  {child.arm.name} is ready")
        for number in range(rounds):
            for name in in_turn([*children], number):
                blocks[name].append(children[name].block())
    return blocks


def interval(values: Sequence[float], statistic: Callable[..., Any] = np.median) -> dict[str, Any]:
    """A statistic with its 95 % bootstrap interval."""
    sample = np.asarray(values, dtype=float)
    draws = np.random.default_rng(0).integers(0, len(sample), (DRAWS, len(sample)))
    low, high = np.percentile(statistic(sample[draws], axis=1), [2.5, 97.5])
    return {"value": round(float(statistic(sample)), 3), "ci95": [round(float(low), 3), round(float(high), 3)]}


def speed_ratio(blocks: Blocks, ours: str, theirs: str, clock: str) -> dict[str, Any]:
    """How many times as fast as `theirs` `ours` is, by example, from the blocks of the same rounds."""
    pairs = zip(blocks[ours], blocks[theirs], strict=True)
    return interval([b.per_example(clock) / a.per_example(clock) for a, b in pairs])


def holds(control: Mapping[str, Any]) -> bool:
    """Whether an A/A control lets the run count."""
    return round(abs(float(control["value"]) - 1), 6) <= CONTROL


def clock_of(controls: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The clock that a run is judged by: wall time where its control holds, else processor time; None: void."""
    return next((clock for clock in CLOCKS if holds(controls[clock])), None)


def compared(blocks: Blocks, ours: str, again: str) -> dict[str, Any]:
    """All ratios of `ours`, by both clocks, with the control that says which clock counts, and speeds."""
    others = [name for name in blocks if name not in (ours, again)]
    controls = {clock: speed_ratio(blocks, ours, again, clock) for clock in CLOCKS}
    return {
        "clock": clock_of(controls),
        "control": controls,
        "ratio": {name: {clock: speed_ratio(blocks, ours, name, clock) for clock in CLOCKS} for name in others},
        "speed": {name: speeds(values) for name, values in blocks.items()},
    }


def speeds(blocks: Sequence[Block]) -> dict[str, float]:
    """Medians: examples and unpadded tokens a second by both clocks; the most memory above the imports."""
    result: dict[str, float] = {}
    for clock in CLOCKS:
        rate = float(np.median([1 / block.per_example(clock) for block in blocks]))
        result[f"examples_per_s_{clock}"] = round(rate, 1)
        result[f"tokens_per_s_{clock}"] = round(rate * blocks[0].tokens / blocks[0].examples)
    return {**result, "peak_mb": round(max(block.peak_mb for block in blocks), 1)}


def machine() -> dict[str, Any]:
    """Where and with what a result was taken."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().split("\n") if line.startswith("model name")]
    known = {name: version(name) for name in ("torch", "transformers", "onnxruntime")}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    return {
        "commit": commit.stdout.strip(),
        "versions": {"python": platform.python_version(), **known},
        "machine": {
            "platform": platform.platform(),
            "processor": cpu[0].split(":")[1].strip() if cpu else platform.processor(),
            "cores": os.cpu_count(),
            "load_1_5_15_minutes": [round(load, 1) for load in os.getloadavg()],
        },
    }


def keep(script: str, result: Mapping[str, Any], about: Mapping[str, Any]) -> Path:
    """Write a result beside its script, with `about` (`machine()`, taken before the measurement).

    `script`: or the file itself, `….json`.
    """
    target = Path(script) if script.endswith(".json") else Path(script).with_suffix(".result.json")
    target.write_text(json.dumps({**about, **result}, indent=2) + "\n", encoding="utf-8")
    return target
