"""Latency, memory and size of variants, measured side by side.

Each variant runs in a process of its own (engines' thread pools disturb each other), and short blocks of runs
are interleaved over the processes, so that a busy moment of the machine hits all of them alike.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import numpy as np

from nlp_distill.errors import RunFailed, UserError
from nlp_distill.exports.formats import FORMATS, form_of
from nlp_distill.vetting import TOKENIZER_DATA

ROUNDS = 6
RUNS = 10
WARM_UP = 3
LEAST, SECONDS = 3, 1.0
"""A block of runs ends early after so many seconds, once it has timed the least number of runs."""


@dataclass(frozen=True)
class Measured:
    """What to measure: a model folder, and the name of an exported variant in it or None for PyTorch.

    `new_tokens`: of a model that generates, how many an answer has.
    """

    name: str
    folder: str
    auto_class: str
    variant: str | None
    new_tokens: int | None = None


class Worker:
    """A process that has loaded one variant and times it on request."""

    def __init__(self, variant: Measured, threads: int) -> None:
        self.name = variant.name
        # A file, not a pipe: nobody reads it while the process works, and a full pipe would stop it for ever.
        self.said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "nlp_distill.measuring",
                json.dumps({**asdict(variant), "threads": threads}),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            text=True,
            env=environment,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer. Raises `RunFailed` when the process has died, and what loading the
        model raised that its user can correct.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self.process.wait()
            self.said.seek(0)
            last = " | ".join(self.said.read().strip().split("\n")[-3:]) or f"exit status {code}"
            raise RunFailed(stage="measure", reason=f"the process that ran {self.name} died ({last})")
        answer: dict[str, Any] = json.loads(line)
        if "wrong" in answer:
            raise UserError(answer["wrong"])
        return answer

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
        self.said.close()


def measure(
    variants: Sequence[Measured],
    sequences: Sequence[int],
    threads: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[str, Any]]:
    """For each variant: `latency_ms` ([{sequence, threads, batch, p50, p90}], batch 1) and `peak_memory_mb`."""
    workers: list[Worker] = []
    times: dict[tuple[str, int], list[float]] = {}
    try:
        for variant in variants:
            workers.append(Worker(variant, threads))
        for worker in workers:
            worker.ask(ready=True)
        total = ROUNDS * len(workers) * len(sequences)
        for round_number in range(ROUNDS):
            for sequence in sequences:
                for place, worker in enumerate(workers):
                    answer = worker.ask(sequence=sequence, runs=RUNS, warm_up=WARM_UP)
                    times.setdefault((worker.name, sequence), []).extend(answer["ms"])
                    done = (round_number * len(sequences) + sequences.index(sequence)) * len(workers) + place + 1
                    on_progress(done, total)
        peaks = {worker.name: worker.ask(memory=True)["peak_memory_mb"] for worker in workers}
    finally:
        for worker in workers:
            worker.close()
    return {
        worker.name: {
            "latency_ms": [_summary(times[worker.name, sequence], sequence, threads) for sequence in sequences],
            "peak_memory_mb": peaks[worker.name],
        }
        for worker in workers
    }


def _summary(times: list[float], sequence: int, threads: int) -> dict[str, float]:
    p50, p90 = np.percentile(times, [50, 90])
    return {
        "sequence": sequence,
        "threads": threads,
        "batch": 1,
        "p50": round(float(p50), 3),
        "p90": round(float(p90), 3),
    }


def files_to_run(folder: Path, variant: str | None) -> list[Path]:
    """All files that a variant needs: its weights, config and tokenizer."""
    form = form_of(variant) if variant else None
    weights = FORMATS[form.format].files(folder, form) if form else sorted(folder.glob("*.safetensors*"))
    needed: tuple[str, ...] = (
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    )
    # A slow tokenizer has files of its own.
    needed += () if (folder / "tokenizer.json").is_file() else TOKENIZER_DATA
    return [*weights, *(folder / name for name in dict.fromkeys(needed) if (folder / name).is_file())]


def _serve(variant: Measured, threads: int, requests: IO[str], answers: IO[str]) -> None:
    """The worker's side: load, then answer requests line by line."""
    import_engine(variant)
    held, start = memory_held(), time.perf_counter()
    try:
        call = _loaded(variant, threads)
    except UserError as error:
        answers.write(json.dumps({"wrong": str(error)}) + "\n")
        answers.flush()
        return
    loaded = {"load_s": round(time.perf_counter() - start, 3), "held_mb": round(held / 1e6, 1)}
    for line in requests:
        request = json.loads(line)
        answer: dict[str, Any] = {**loaded} if "ready" in request else {}
        if "sequence" in request:
            answer["ms"] = call(request["sequence"], request["warm_up"], request["runs"], request.get("batch", 1))
        if "memory" in request:
            answer["peak_memory_mb"] = round(_peak_memory_bytes() / 1e6, 1)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _peak_memory_bytes() -> int:
    """Most memory that this process ever held.

    Not `ru_maxrss` on Linux: a child starts with its parent's peak there, and every variant would show the
    memory of the training.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text(encoding="utf-8").split("\n") if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    # Bytes on macOS, kilobytes elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_held() -> int:
    """Memory that this process holds now, in bytes; 0 where the system does not say."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.is_file() else 0


def import_engine(variant: Measured) -> None:
    """Import what a variant runs on, so that the time to load is that of the model alone."""
    from transformers import AutoModel  # noqa: F401

    if form := form_of(variant.variant) if variant.variant else None:
        import_module(FORMATS[form.format].loader)


def _loaded(variant: Measured, threads: int) -> Callable[[int, int, int, int], list[float]]:
    import torch

    from nlp_distill.loading import load_model

    torch.set_num_threads(threads)
    folder = Path(variant.folder)
    model: Any
    form = form_of(variant.variant) if variant.variant else None
    if form:
        model = FORMATS[form.format].load(folder, variant.auto_class, form, threads)
        names = getattr(model, "input_names", ["input_ids", "attention_mask"])
    else:
        model = load_model(folder, variant.auto_class)
        names = ["input_ids", "attention_mask"]
    if variant.new_tokens is not None:
        run = partial(model.generate, min_new_tokens=variant.new_tokens, max_new_tokens=variant.new_tokens)
    else:
        run = model
    generator = torch.Generator().manual_seed(0)

    def call(sequence: int, warm_up: int, runs: int, batch: int = 1) -> list[float]:
        ids = torch.randint(10, _vocabulary(model.config), (batch, sequence), generator=generator)
        if getattr(model.config, "is_encoder_decoder", False) and isinstance(model.config.eos_token_id, int):
            # Where BART's classifier looks.
            ids[:, -1] = model.config.eos_token_id
        given = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "token_type_ids": torch.zeros_like(ids),
        }
        inputs = {name: given[name] for name in names if name in given}
        times: list[float] = []
        begun = time.perf_counter()
        with torch.inference_mode():
            for number in range(warm_up + runs):
                start = time.perf_counter()
                if len(times) >= LEAST and start - begun > SECONDS:
                    break
                run(**inputs)
                if number >= warm_up:
                    times.append((time.perf_counter() - start) * 1e3)
        return times

    return call


def _vocabulary(config: Any) -> int:
    return int(getattr(config, "encoder", config).vocab_size)


if __name__ == "__main__":
    described = json.loads(sys.argv[1])
    asked_threads = described.pop("threads")
    import transformers.utils.import_utils

    # Where scikit-learn is there, transformers imports it for assisted generation: a third of a worker's start.
    transformers.utils.import_utils._sklearn_available = False
    # What libraries print goes to stderr; the original stdout carries answers only.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as only_answers:
        os.dup2(2, 1)
        _serve(Measured(**described), asked_threads, sys.stdin, only_answers)
