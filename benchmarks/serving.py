"""Requests a second of `nlp-distill serve` beside the server that one writes first, and what overload does to it.

    python benchmarks/serving.py runs/quickstart --keep

The other server (`arms/naive_server.py`) has the student's PyTorch weights, or the teacher's. All run at once, and all
but one are idle: `wrk` (apt install wrk) asks them in turn, block by block, over loopback, with 64 connections and the
sentences of SST-2's validation sample. Servers and wrk share the machine's cores. Ours is there twice: the A/A control.

Overload: connections that send at random times, so many that five times the capacity is asked for, whatever is
answered. A client beside them, with one connection, notes what it hears and when.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from harness import ARMS, CLOCKS, Block, Blocks, clock_of, in_turn, interval, keep, machine, speed_ratio

from nlp_distill.task import task_folders

OURS, AGAIN, OTHERS = "ours", "ours_again", ("naive_student", "naive_teacher")
CONNECTIONS = 64
TIMES = 5
FLOOD_CONNECTIONS = 512
LUA = """
local texts, i = {}, 0
for line in io.lines("%s") do texts[#texts + 1] = line end
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
request = function() i = i %% #texts + 1; return wrk.format(nil, nil, nil, texts[i]) end
"""
PAUSES = "delay = function() return math.random(0, %d) end\n"
PATTERNS = {
    "requests": r"(\d+) requests in",
    "seconds": r"requests in ([\d.]+)s",
    "refused": r"Non-2xx.*: (\d+)",
    "p99": r"99%\s+([\d.]+[a-z]+)",
    "max": r"Latency\s+\S+\s+\S+\s+([\d.]+[a-z]+)",
}
UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 60e3}


class Server:
    """A server in a process of its own, on a port of its own, that has answered once."""

    def __init__(self, arguments: Sequence[str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.said = tempfile.TemporaryFile()
        begin = time.perf_counter()
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [sys.executable, *(part.replace("PORT", str(self.port)) for part in arguments)],
            env={**os.environ, **quiet},
            stdout=self.said,
            stderr=self.said,
        )
        while self.status() != 200:
            if self.process.poll() is not None:
                self.said.seek(0)
                raise RuntimeError(self.said.read().decode(errors="replace")[-2000:])
            time.sleep(0.01)
        self.started_s = time.perf_counter() - begin

    def status(self, connection: http.client.HTTPConnection | None = None) -> int:
        """What one small request hears; 0 where nobody listens."""
        asking = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            asking.request("POST", "/predict", b'{"inputs": "fine"}', {"content-type": "application/json"})
            answer = asking.getresponse()
            answer.read()
            return answer.status
        except OSError:
            return 0

    @property
    def processes(self) -> list[psutil.Process]:
        """All of it."""
        first = psutil.Process(self.process.pid)
        return [first, *first.children(recursive=True)]

    def memory(self) -> dict[str, float]:
        """Megabytes: `rss` counts what processes share once for each, `pss` once."""
        infos = [one.memory_full_info() for one in self.processes]
        return {kind: round(sum(getattr(info, kind) for info in infos) / 1e6, 1) for kind in ("rss", "pss")}

    def cpu(self) -> float:
        """Seconds of all processes."""
        return sum(sum(one.cpu_times()[:2]) for one in self.processes)

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(60)
        self.said.close()


def load(server: Server, script: Path, connections: int, seconds: float) -> dict[str, float]:
    """What wrk measures: requests, seconds, answers that were no 2xx, the 99th percentile and the longest in ms."""
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds:.0f}s",
        "--latency",
        "--timeout",
        "60s",
        "-s",
        str(script),
    ]
    url = f"http://127.0.0.1:{server.port}/predict"
    said = subprocess.run([*command, url], capture_output=True, text=True, check=True).stdout
    found = {name: re.search(pattern, said) for name, pattern in PATTERNS.items()}
    return {name: _number(match[1]) if match else 0.0 for name, match in found.items()}


def _number(said: str) -> float:
    """A number, or a time in ms."""
    number, unit = re.fullmatch(r"([\d.]+)([a-z]*)", said).groups()  # type: ignore[union-attr]
    return float(number) * UNITS.get(unit, 1.0)


def blocks_of(servers: dict[str, Server], script: Path, rounds: int, seconds: float) -> tuple[Blocks, dict[str, Any]]:
    """Blocks of all servers in turn, and their latencies."""
    blocks: Blocks = {name: [] for name in servers}
    latencies: dict[str, Any] = {name: {"p99": [], "max": []} for name in servers}
    for server in servers.values():
        load(server, script, CONNECTIONS, 2)
    for number in range(rounds):
        for name in in_turn([*servers], number):
            before = servers[name].cpu()
            measured = load(servers[name], script, CONNECTIONS, seconds)
            cpu, answered = servers[name].cpu() - before, int(measured["requests"] - measured["refused"])
            if not answered:
                sys.exit(f"{name} answered nothing within a block; take longer ones.")
            memory = servers[name].memory()["pss"]
            blocks[name].append(Block(measured["seconds"], cpu, answered, answered, memory))
            for kind, values in latencies[name].items():
                values.append(measured[kind])
            print(f"  {name}: {answered / measured['seconds']:.0f} a second, p99 {measured['p99']:.0f} ms", flush=True)
    return blocks, latencies


def summary(blocks: Blocks, latencies: dict[str, Any]) -> dict[str, Any]:
    """Rates, latencies and ratios with their intervals over blocks."""
    controls = {clock: speed_ratio(blocks, OURS, AGAIN, clock) for clock in CLOCKS}
    return {
        "requests_per_s": {
            name: interval([block.examples / block.wall for block in values]) for name, values in blocks.items()
        },
        "cpu_ms_per_request": {
            name: interval([1e3 * block.per_example("cpu") for block in values]) for name, values in blocks.items()
        },
        "latency_ms": {
            name: {"p99": interval(values["p99"]), "longest": max(values["max"])} for name, values in latencies.items()
        },
        "pss_mb": {name: max(block.peak_mb for block in values) for name, values in blocks.items()},
        "clock": clock_of(controls),
        "control": controls,
        "times": {other: {clock: speed_ratio(blocks, OURS, other, clock) for clock in CLOCKS} for other in OTHERS},
    }


def overload(server: Server, scratch: Path, script: Path, capacity: float, seconds: float) -> dict[str, Any]:
    """Five times what the server can do; how soon 429 comes, memory, and whether all is as before at once."""
    pause = _pause(server, scratch, script, TIMES * capacity)
    before, heard, sizes = server.memory(), [], []
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    with flood(server, scratch, script, pause, seconds) as flooding:
        # Connecting is not yet asking.
        time.sleep(1)
        while flooding.poll() is None:
            begin = time.perf_counter()
            status = server.status(connection)
            heard.append((status, (time.perf_counter() - begin) * 1e3))
            if len(heard) % 50 == 1:
                sizes.append(server.memory())
            time.sleep(0.005)
        found = _flooded(flooding)
    begin = time.perf_counter()
    while server.status() != 200:
        time.sleep(0.01)
    recovered = time.perf_counter() - begin
    after = load(server, script, CONNECTIONS, 5)
    asked = found["requests"] / found["seconds"]
    return {
        "capacity_per_s": round(capacity, 1),
        "asked_per_s": round(asked, 1),
        "times_the_capacity": round(asked / capacity, 2),
        "answered_per_s": round((found["requests"] - found["refused"]) / found["seconds"], 1),
        "refused_ms": _times([ms for status, ms in heard if status == 429]),
        "answered_ms": _times([ms for status, ms in heard if status == 200]),
        "other_answers": sorted({status for status, _ in heard} - {200, 429}),
        "memory_mb": {
            "before": before,
            "highest": {kind: max(size[kind] for size in sizes) for kind in before},
            "after": server.memory(),
        },
        "first_answer_after_s": round(recovered, 3),
        "requests_per_s_after": round(after["requests"] / after["seconds"], 1),
    }


def flood(server: Server, scratch: Path, script: Path, pause: float, seconds: float) -> subprocess.Popen[str]:
    """Connections that each wait between 0 and twice `pause` ms after an answer, whatever it was."""
    flooding = scratch / "flood.lua"
    flooding.write_text(script.read_text() + PAUSES % (2 * pause))
    command = ["wrk", "-t1", f"-c{FLOOD_CONNECTIONS}", f"-d{seconds:.0f}s", "--timeout", "60s", "-s", str(flooding)]
    url = f"http://127.0.0.1:{server.port}/predict"
    return subprocess.Popen([*command, url], stdout=subprocess.PIPE, text=True)


def _flooded(flooding: subprocess.Popen[str]) -> dict[str, float]:
    assert flooding.stdout is not None
    said = flooding.stdout.read()
    return {name: float(re.search(PATTERNS[name], said)[1]) for name in ("requests", "seconds", "refused")}  # type: ignore[index]


def _pause(server: Server, scratch: Path, script: Path, wanted: float) -> float:
    """How long connections must wait, in ms, for `wanted` requests a second in all: found by trying."""
    pause = 1e3 * FLOOD_CONNECTIONS / wanted
    for _ in range(6):
        with flood(server, scratch, script, pause, 5) as flooding:
            found = _flooded(flooding)
        asked = found["requests"] / found["seconds"]
        print(f"  flood: {asked:.0f} of {wanted:.0f} a second", flush=True)
        if wanted <= asked < 1.15 * wanted:
            return pause
        # What an answer takes is what the connections do not wait of their own will.
        pause = max(0.0, pause + 1e3 * FLOOD_CONNECTIONS * (1 / (1.07 * wanted) - 1 / asked))
    return pause


def _times(values: list[float]) -> dict[str, Any]:
    if not values:
        return {"n": 0}
    ranked = sorted(values)
    share = {f"p{p}": round(ranked[min(len(ranked) - 1, len(ranked) * p // 100)], 1) for p in (50, 99)}
    return {"n": len(values), **share, "longest": round(ranked[-1], 1)}


def prepare(scratch: Path) -> Path:
    """What wrk sends."""
    sentences = pd.read_parquet(task_folders()["classification"] / "data" / "sst2" / "validation.parquet")
    texts, script = scratch / "texts.jsonl", scratch / "post.lua"
    texts.write_text("".join(json.dumps({"inputs": text}) + "\n" for text in sentences["sentence"]))
    script.write_text(LUA % texts)
    return script


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seconds", type=float, default=8, help="of a block")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--keep", action="store_true", help="write the result beside this script")
    given = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed; run `apt-get install wrk`.")
    about = machine()
    naive = [str(ARMS / "naive_server.py")]
    ours = ["-m", "nlp_distill.cli", "serve", str(given.run), "--port", "PORT"]
    commands = {
        OURS: ours,
        AGAIN: ours,
        "naive_student": [*naive, str(given.run / "model"), "PORT"],
        "naive_teacher": [*naive, str(given.run / "teacher"), "PORT"],
    }
    with tempfile.TemporaryDirectory() as folder, ExitStack() as closing:
        script = prepare(Path(folder))
        servers = {}
        for name, command in commands.items():
            servers[name] = Server(command)
            closing.callback(servers[name].close)
            print(f"  {name}: first answer after {servers[name].started_s:.1f} s", flush=True)
        started = {name: round(server.started_s, 2) for name, server in servers.items()}
        idle = servers[OURS].memory()
        blocks, latencies = blocks_of(servers, script, given.rounds, given.seconds)
        capacity = statistics.median(block.examples / block.wall for block in blocks[OURS])
        flooded = overload(servers[OURS], Path(folder), script, capacity, 4 * given.seconds)
    result = {
        "connections": CONNECTIONS,
        "rounds": given.rounds,
        "seconds": given.seconds,
        "first_answer_s": started,
        "memory_idle_mb": idle,
        **summary(blocks, latencies),
        "overload": flooded,
    }
    print(json.dumps(result, indent=2))
    if given.keep:
        keep(__file__, result, about)


if __name__ == "__main__":
    main()
