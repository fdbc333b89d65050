"""Load on the job service: 200 requests a second of all kinds, and 100 event streams.

    python benchmarks/load_service.py [--seconds 180] [--training] [--keep load_service.result.json]

The requests come from wrk (Debian's package): 23 connections, each sends the next one 100 ms after an answer, so that a
slow server is asked less often than 200 times a second; `requests_per_s` says how often it was. One request in 40
submits a job, the others read. 10 jobs say something once a second, and each stream must get it all, once and in order.
`--training`: the quickstart trains meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
from torture_service import RECIPE, free_port, serve
from trainings import queue_of, submit_trainings

from nlp_distill.recipe_file import load_recipe
from nlp_distill.service.client import Client
from nlp_distill.service.executors.contract import Spec
from nlp_distill.service.executors.local import LocalExecutor
from nlp_distill.service.home import Home
from nlp_distill.service.launch import prepare
from nlp_distill.service.store.queue import Claim
from nlp_distill.service.worker import Worker, WorkerSettings

SPEAKERS, STREAMS, STREAMS_OF_ONE = 10, 100, 20
TRAINS = 100
"""The seed by which the training is known from the speakers."""
SPEAKS = """
import json, time
while True:
    with open("{run}/events.jsonl", "a") as stream:
        stream.write(json.dumps({"time": time.time(), "event": "note", "message": "."}) + "\\n")
    time.sleep(1)
"""
REQUESTS = """
local paths, n, bad, threads = PATHS, 0, 0, {}
function setup(thread) table.insert(threads, thread) end
function delay() return 100 end
function request()
  n = n + 1
  local headers = {["Authorization"] = "Bearer TOKEN", ["Content-Type"] = "application/json"}
  if n % 40 == 0 then return wrk.format("POST", "/v1/jobs", headers, [[BODY]]) end
  return wrk.format("GET", paths[n % #paths + 1], headers)
end
function init() failed, refused = 0, 0 end
function response(status)
  if status >= 500 then failed = failed + 1 elseif status >= 400 then refused = refused + 1 end
end
function done(summary, latency)
  local f = '{"requests": %d, "p50_ms": %.1f, "p95_ms": %.1f, "p99_ms": %.1f, "most_ms": %.1f, "status_5xx": %d, '
  f = f .. '"status_4xx": %d, "connection_errors": %d}\\n'
  local e, at = summary.errors, function(p) return latency:percentile(p) / 1000 end
  io.write(string.format(f, summary.requests, at(50), at(95), at(99), latency.max / 1000, threads[1]:get("failed"),
    threads[1]:get("refused"), e.connect + e.read + e.write + e.timeout))
end
"""


def prepared(home: Home, claim: Claim, place: Any, online: bool, niceness: int) -> Spec:
    """Jobs that speak, and one that trains."""
    spec = prepare(home, claim, place, online, niceness)
    if claim.recipe["seed"] == TRAINS:
        return spec
    run = home.run(claim.job_id)
    run.mkdir(parents=True, exist_ok=True)
    (run.parent / "acting.py").write_text(SPEAKS.replace("{run}", str(run)), encoding="utf-8")
    path = f"{run.parent}:{spec.environment.get('PYTHONPATH', '')}"
    return Spec(spec.attempt_id, ("acting",), spec.folder, spec.log, {**spec.environment, "PYTHONPATH": path})


async def listen(url: str, token: str, job: str, lags: list[float], over: asyncio.Event) -> bool:
    """One stream until the end of the test; whether it had every event once and in order."""
    last, whole = 0, True
    headers = {"Authorization": f"Bearer {token}", "Accept": "text/event-stream"}
    async with httpx.AsyncClient(timeout=None, trust_env=False) as client:
        async with client.stream("GET", f"{url}/v1/jobs/{job}/events", headers=headers) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: ") and "seq" in (event := json.loads(line[6:])):
                    whole, last = whole and event["seq"] == last + 1, event["seq"]
                    if event["type"] == "log":
                        lags.append(time.time() - event["created_at"])
                if over.is_set():
                    break
    return whole and last > 0


async def load(url: str, tokens: list[str], names: list[str], seconds: int) -> dict[str, Any]:
    """Streams and requests together."""
    over, lags = asyncio.Event(), []
    streams = [
        asyncio.create_task(listen(url, tokens[n // STREAMS_OF_ONE], names[n % len(names)], lags, over))
        for n in range(STREAMS)
    ]
    await asyncio.sleep(5)
    lags.clear()
    paths = ["/v1/jobs?limit=20", f"/v1/jobs/{names[0]}", f"/v1/jobs/{names[1]}/events?after=0&limit=100"]
    paths += [f"/v1/jobs/{names[2]}/metrics", f"/v1/jobs/{names[3]}/attempts", "/v1/system", "/health/live"]
    body = json.dumps({"recipe": RECIPE, "priority": -100})
    script = REQUESTS.replace("PATHS", "{" + ", ".join(f'"{path}"' for path in paths) + "}")
    script = script.replace("TOKEN", tokens[0]).replace("BODY", body)
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        line = ["wrk", "-t1", "-c23", f"-d{seconds}s", "--timeout", "30s", "-s", file.name, url]
        wrk = await asyncio.create_subprocess_exec(*line, stdout=subprocess.PIPE)
        told, _ = await wrk.communicate()
    heard = sorted(lags)
    over.set()
    whole = await asyncio.gather(*streams)
    found: dict[str, Any] = json.loads(told.decode().strip().rpartition("\n")[2])
    return {
        "seconds": seconds,
        "requests_per_s": round(found["requests"] / seconds, 1),
        **found,
        "streams": STREAMS,
        "streams_whole": sum(whole),
        "events_streamed": len(heard),
        "event_lag_ms": {f"p{p}": round(1000 * heard[int(len(heard) * p / 100)], 1) for p in (50, 95)},
    }


def cpu_s(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Start a service, load it, say how it answered."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=int, default=180)
    parser.add_argument("--training", action="store_true")
    parser.add_argument("--keep", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["NLP_DISTILL_CACHE"] = str(Path(scratch) / "cache")
        home, port = Home(Path(scratch) / "home").make(), free_port()
        queue = queue_of(home)
        worker = Worker(home, queue, LocalExecutor(), WorkerSettings(slots=SPEAKERS + asked.training))
        worker.prepare = prepared
        server, ready = serve(home, port)
        client = Client(f"http://127.0.0.1:{port}", home.admin_token())
        scopes = ["read", "submit"]
        made = [client.ask("POST", "/v1/tokens", json={"name": f"{n}", "scopes": scopes}) for n in range(5)]
        names = [client.jobs.create(RECIPE).id for _ in range(SPEAKERS)]
        if asked.training:
            recipe = load_recipe("quickstart", (f"seed={TRAINS}", "distill.epochs=1000")).resolved()
            [trained] = submit_trainings(queue, recipe, 1)
        over = threading.Event()
        working = threading.Thread(target=worker.serve, args=(over.is_set,))
        working.start()
        while any(client.jobs.get(name).status != "running" for name in names):
            time.sleep(0.2)
        if asked.training:
            time.sleep(30)
        before, used = os.getloadavg()[0], cpu_s(server.pid)
        try:
            found = asyncio.run(load(client.url, [token["token"] for token in made], names, asked.seconds))
            found["server_cpu_s"] = round(cpu_s(server.pid) - used, 1)
            if asked.training and client.jobs.get(trained).status != "running":
                sys.exit("The training ended before the load did.")
        finally:
            over.set()
            working.join()
            server.terminate()
            server.wait()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    machine = {"commit": commit, "cores": os.cpu_count(), "load": [round(before, 1), round(os.getloadavg()[0], 1)]}
    part = {"training" if asked.training else "idle": {**found, "ready_s": round(ready, 2), **machine}}
    sys.stdout.write(json.dumps(part, indent=2) + "\n")
    if asked.keep:
        kept = json.loads(asked.keep.read_text(encoding="utf-8")) if asked.keep.is_file() else {}
        asked.keep.write_text(json.dumps({**kept, **part}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
