"""Requests a second of `nlp-distill serve` beside the server that one writes first, and what overload does to it.

    python benchmarks/serving.py runs/quickstart --seconds 20 --out benchmarks/serving.result.json

The other server is FastAPI around `transformers.pipeline`, one process, as tutorials have it; with the student's
PyTorch weights, and with the teacher's. All are asked by `wrk` (apt install wrk), one after the other, over loopback,
with 64 connections and the sentences of SST-2's validation sample in turn. `--rounds` repeats the whole, interleaved.
Overload: five times the connections that fill the queue; a client beside them notes how soon it hears 429.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import psutil

from nlp_distill.task import task_folders

CONNECTIONS = 64
QUEUE = 64
PORT = 8765
NAIVE = """
import sys, uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline
pipe = pipeline("text-classification", model=sys.argv[1])
app = FastAPI()
class Body(BaseModel):
    inputs: str
@app.post("/predict")
def predict(body: Body):
    return pipe(body.inputs)
uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
"""
LUA = """
local texts, i = {}, 0
for line in io.lines("%s") do texts[#texts + 1] = line end
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
request = function() i = i %% #texts + 1; return wrk.format(nil, nil, nil, texts[i]) end
"""


@contextmanager
def server(arguments: list[str]) -> Iterator[psutil.Process]:
    """A server on PORT that has answered once."""
    with subprocess.Popen(arguments, env={**os.environ, "HF_HUB_OFFLINE": "1"}) as process:
        try:
            for _ in range(6000):
                try:
                    if ask().status_code == 200:
                        break
                except httpx.HTTPError:
                    time.sleep(0.1)
            yield psutil.Process(process.pid)
        finally:
            process.terminate()


def ask() -> httpx.Response:
    """One small request on a connection of its own."""
    return httpx.post(f"http://127.0.0.1:{PORT}/predict", json={"inputs": "fine"}, timeout=60, verify=False)


def load(script: Path, connections: int, seconds: int) -> dict[str, float]:
    """What wrk measures: requests a second, the 99th percentile in ms, answers that were no 2xx."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "30s", "-s", str(script)]
    said = subprocess.run(
        [*command, f"http://127.0.0.1:{PORT}/predict"], capture_output=True, text=True, check=True
    ).stdout
    found = {name: re.search(pattern, said) for name, pattern in PATTERNS.items()}
    value, unit = found["p99"].groups() if found["p99"] else ("nan", "ms")
    return {
        "requests_per_second": float(found["rate"][1]) if found["rate"] else 0.0,
        "p99_ms": float(value) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit],
        "not_2xx": float(found["refused"][1]) if found["refused"] else 0.0,
    }


PATTERNS = {"rate": r"Requests/sec:\s+([\d.]+)", "p99": r"99%\s+([\d.]+)(us|ms|s)", "refused": r"Non-2xx.*: (\d+)"}


def memory(process: psutil.Process) -> float:
    """Megabytes that the process and its children share or own."""
    return sum(one.memory_full_info().pss for one in [process, *process.children(recursive=True)]) / 1e6


def overload(process: psutil.Process, script: Path, seconds: int) -> dict[str, Any]:
    """Five times what the queue holds; how soon 429 comes, memory, and the time until all is as before."""
    before = memory(process)
    command = ["wrk", "-t1", f"-c{5 * QUEUE}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script)]
    with subprocess.Popen([*command, f"http://127.0.0.1:{PORT}/predict"], stdout=subprocess.DEVNULL) as flood:
        refused, accepted, sizes = [], [], []
        with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=60, verify=False) as client:
            while flood.poll() is None:
                begin = time.perf_counter()
                status = client.post("/predict", json={"inputs": "fine"}).status_code
                (refused if status == 429 else accepted).append((time.perf_counter() - begin) * 1e3)
                sizes.append(memory(process))
                time.sleep(0.02)
    begin = time.perf_counter()
    while ask().status_code != 200:
        time.sleep(0.01)
    return {
        "connections": 5 * QUEUE,
        "refused_ms": {"n": len(refused), "p50": middle(refused), "max": max(refused, default=None)},
        "accepted_ms": {"n": len(accepted), "p50": middle(accepted), "max": max(accepted, default=None)},
        "memory_mb": {"before": before, "highest": max(sizes, default=before), "after": memory(process)},
        "recovered_after_s": time.perf_counter() - begin,
    }


def middle(values: list[float]) -> float | None:
    """The median, where there is one."""
    return statistics.median(values) if values else None


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed; run `apt-get install wrk`.")
    ours = [sys.executable, "-m", "nlp_distill.cli", "serve", str(given.run), "--port", str(PORT)]
    with tempfile.TemporaryDirectory() as scratch:
        script, naive = Path(scratch) / "post.lua", Path(scratch) / "naive.py"
        sentences = pd.read_parquet(task_folders()["classification"] / "data" / "sst2" / "validation.parquet")
        lines = [json.dumps({"inputs": text}) for text in sentences["sentence"]]
        (Path(scratch) / "texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        script.write_text(LUA % (Path(scratch) / "texts.jsonl"), encoding="utf-8")
        naive.write_text(NAIVE, encoding="utf-8")
        servers = {
            "ours": ours,
            "naive_student": [sys.executable, str(naive), str(given.run / "model"), str(PORT)],
            "naive_teacher": [sys.executable, str(naive), str(given.run / "teacher"), str(PORT)],
        }
        found: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
        for _ in range(given.rounds):
            for name, command in servers.items():
                with server(command) as process:
                    load(script, CONNECTIONS, max(2, given.seconds // 5))
                    measured = load(script, CONNECTIONS, given.seconds)
                    found[name].append({**measured, "memory_mb": memory(process)})
                    print(name, found[name][-1], flush=True)
        with server([*ours, "--queue", str(QUEUE)]) as process:
            flooded = overload(process, script, given.seconds)
    rates = {name: statistics.median(one["requests_per_second"] for one in several) for name, several in found.items()}
    result = {
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "connections": CONNECTIONS,
        "seconds": given.seconds,
        "rounds": found,
        "requests_per_second": rates,
        "times_naive_student": rates["ours"] / rates["naive_student"],
        "times_naive_teacher": rates["ours"] / rates["naive_teacher"],
        "overload": flooded,
    }
    print(json.dumps({name: value for name, value in result.items() if name != "rounds"}, indent=2))
    if given.out:
        given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
