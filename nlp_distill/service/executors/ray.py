"""Attempts as jobs of a Ray cluster: Ray finds the node and watches over the job, `ray_node` runs it there.

What is tied to what: an attempt's processes to the process that Ray started on the node, that one to Ray's supervisor
of the job, nothing to the worker. So a job runs on while no worker watches; whoever takes it over stops it through the
folder that both see, and goes on from its checkpoint. An attempt's id is the id of its Ray job: Ray starts it once.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import ssl
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from nlp_distill.errors import RayUnfit
from nlp_distill.rundir import write_text
from nlp_distill.service.executors.contract import Spec, State, Unavailable
from nlp_distill.service.executors.local import part_of
from nlp_distill.service.executors.ray_node import STOP, read_end, write_spec
from nlp_distill.service.redaction import redact

NODE = "nlp_distill.service.executors.ray_node"
TOKEN_VARIABLE, TOKEN_FILE_VARIABLE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
ANSWER_S, START_S = 5.0, 20.0
"""How long Ray may take to answer: a worker that waits shows no life."""
REST_S = 10.0
"""After Ray did not answer it is not asked for so long."""
ASK_S = 2.0
PATIENCE_S = 60.0
"""A job of which neither Ray nor its node says anything for so long is lost."""
SEEN_S = 5.0
"""How long after its end a job's last words may take to arrive on shared storage."""
REAP_S, DEAF_S = 15.0, 5.0
RAYS_OWN_GRACE_S = 60
"""Between SIGTERM and SIGKILL where somebody stops a job through Ray."""


def ray_token() -> str:
    """The cluster's token, from where Ray itself looks for it; empty where there is none."""
    if token := os.environ.get(TOKEN_VARIABLE, "").strip():
        return token
    named = os.environ.get(TOKEN_FILE_VARIABLE)
    file = Path(named) if named else Path.home() / ".ray" / "auth_token"
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


class Cluster:
    """Ray's job API. `address`: that of the dashboard, `http://HEAD:8265`."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        if not self.address.startswith(("http://", "https://")) or "@" in self.address:
            raise self._unfit("it is no address of a dashboard", "give http://HEAD:8265")
        self._tls = ssl.create_default_context()
        token = ray_token()
        self._token = {"Authorization": f"Bearer {token}"} if token else {}
        self._rest_until = 0.0

    def _unfit(self, reason: str, fix: str) -> RayUnfit:
        return RayUnfit(address=self.address, reason=reason, fix=fix)

    def check(self) -> None:
        """The cluster must ask everybody for a token, and take ours. Raises `RayUnfit`, `Unavailable`."""
        if self._send("GET", "/api/version", {}).status_code not in (401, 403):
            raise self._unfit("it lets anybody in", "start it with RAY_AUTH_MODE=token (docs/scale-out.md)")
        if self._send("GET", "/api/version", self._token).status_code in (401, 403):
            place = f"{TOKEN_VARIABLE}, {TOKEN_FILE_VARIABLE} or ~/.ray/auth_token"
            raise self._unfit("it does not take our token", f"put the cluster's into {place}")

    def job(self, name: str) -> dict[str, Any] | None:
        """What Ray says of a job; None: it knows none of this name. Raises `Unavailable`."""
        answer = self._send("GET", f"/api/jobs/{name}", self._token)
        return None if answer.status_code == 404 else self._good(answer).json()

    def start(self, name: str, **job: Any) -> None:
        """Start a job, unless one of this name was. Raises `Unavailable`."""
        answer = self._send("POST", "/api/jobs/", self._token, {"submission_id": name, **job}, START_S)
        if answer.status_code != 400 or self.job(name) is None:
            self._good(answer)

    def stop(self, name: str) -> None:
        """SIGTERM to every process of a job, SIGKILL later. Raises `Unavailable`."""
        self._send("POST", f"/api/jobs/{name}/stop", self._token)

    def _good(self, answer: httpx.Response) -> httpx.Response:
        if answer.is_success:
            return answer
        said = redact(answer.text.strip().rpartition("\n")[2])[:300]
        raise Unavailable(f"The Ray cluster at {self.address} answered {answer.status_code}: {said}")

    def _send(
        self, method: str, path: str, headers: dict[str, str], body: Any = None, seconds: float | None = None
    ) -> httpx.Response:
        if time.monotonic() < self._rest_until:
            raise Unavailable(f"The Ray cluster at {self.address} does not answer.")
        try:
            # A connection each: there are few, and none goes stale.
            return httpx.request(
                method,
                self.address + path,
                headers=headers,
                json=body,
                timeout=seconds or ANSWER_S,
                verify=self._tls,
                trust_env=False,
            )
        except httpx.TransportError as error:
            self._rest_until = time.monotonic() + REST_S
            why = type(error).__name__
            raise Unavailable(f"The Ray cluster at {self.address} does not answer ({why}).") from error


@dataclass
class _Watched:
    """When Ray is asked again, when it answered last, since when it says that the job is over; by our clock."""

    ask_at: float = 0.0
    answered: float = field(default_factory=time.monotonic)
    over: float | None = None


class RayExecutor:
    """Jobs of a Ray cluster. `shared`: a folder that every node sees at the same place, as it does the jobs'."""

    name = "ray"

    def __init__(self, address: str, shared: Path) -> None:
        self.cluster, self.shared = Cluster(address), shared
        self._watched: dict[str, _Watched] = {}

    def check(self) -> None:
        """Before anything is submitted. Raises `RayUnfit`."""
        try:
            self.cluster.check()
        except Unavailable as error:
            fix = "start it, or give another --ray"
            raise RayUnfit(address=self.cluster.address, reason="it does not answer", fix=fix) from error

    def submit(self, spec: Spec) -> str:
        """Have Ray start the attempt, where there are as many processors and GPUs as it asks for."""
        folder = self.shared / spec.attempt_id
        try:
            self.cluster.check()
            if self.cluster.job(spec.attempt_id) is None:
                write_spec(folder, spec)
                self.cluster.start(spec.attempt_id, **_request(spec, folder))
        except (Unavailable, RayUnfit) as error:
            # A job that Ray starts nevertheless finds nothing to do.
            shutil.rmtree(folder, ignore_errors=True)
            raise Unavailable(str(error)) from error
        return json.dumps({"ray": self.cluster.address, "attempt": spec.attempt_id, "log": str(spec.log)})

    def poll(self, handle: str) -> State:
        """What its node said of it, else what Ray does."""
        attempt = json.loads(handle)["attempt"]
        folder = self.shared / attempt
        if not folder.is_dir():
            return State("lost")
        if (end := read_end(folder)) is not None:
            return end
        watched, now = self._watched.setdefault(attempt, _Watched()), time.monotonic()
        if now < watched.ask_at:
            return State("running")
        watched.ask_at = now + ASK_S
        try:
            job = self.cluster.job(attempt)
        except Unavailable as error:
            return State("running") if now - watched.answered < PATIENCE_S else State("lost", detail=str(error))
        watched.answered = now
        return self._judged(job, watched, (folder / STOP).exists())

    def _judged(self, job: dict[str, Any] | None, watched: _Watched, asked: bool) -> State:
        if job is None:
            return State("lost", detail=f"The Ray cluster at {self.cluster.address} does not know it any more.")
        if job["status"] == "PENDING" and asked:
            return State("lost", detail="It was stopped before Ray had room for it.")
        if job["status"] in ("PENDING", "RUNNING"):
            return State("running")
        watched.over = watched.over or watched.answered
        if watched.answered - watched.over < SEEN_S:
            return State("running")
        return State("lost", detail=redact((job["message"] or job["status"]).strip().rpartition("\n")[2])[:300])

    def logs(self, handle: str, offset: int, limit: int = 1 << 20) -> bytes:
        """Its node writes them where the worker would."""
        return part_of(Path(json.loads(handle)["log"]), offset, limit)

    def stop(self, handle: str, grace_s: float) -> None:
        """Leave word for its node. Ray would tell every process, and torchrun again: that costs the checkpoint."""
        self._ask_to_stop(self.shared / json.loads(handle)["attempt"], grace_s)

    def _ask_to_stop(self, folder: Path, grace_s: float) -> None:
        if folder.is_dir():
            write_text(folder / STOP, str(grace_s))

    def reap(self, attempt_id: str, handle: str | None) -> None:
        """End it and forget it. A job that waits for room finds no folder, and does nothing.

        Where Ray does not answer the word stays: a node that sees it ends the attempt, one that does not see it
        cannot write to the job either.
        """
        folder = self.shared / attempt_id
        self._ask_to_stop(folder, 0.0)
        began, told, gone = time.monotonic(), False, False
        while folder.is_dir() and not gone and read_end(folder) is None:
            late = time.monotonic() - began
            try:
                job = self.cluster.job(attempt_id)
                gone = job is None or job["status"] != "RUNNING"
                if not gone and late > DEAF_S and not told:
                    told = True
                    self.cluster.stop(attempt_id)
            except Unavailable:
                if late > REAP_S:
                    return
            if not gone and late > REAP_S:
                raise TimeoutError(f"the Ray job {attempt_id} does not end")
            time.sleep(0.2)
        shutil.rmtree(folder, ignore_errors=True)
        self._watched.pop(attempt_id, None)


def _request(spec: Spec, folder: Path) -> dict[str, Any]:
    """A job of Ray's: no secret, and of the attempt's environment only where the node finds our modules."""
    threads = int(spec.environment.get("OMP_NUM_THREADS", "1"))
    known = {name: spec.environment[name] for name in ("PYTHONPATH",) if name in spec.environment}
    return {
        "entrypoint": "exec " + shlex.join([sys.executable, "-m", NODE, str(folder)]),
        "runtime_env": {"env_vars": {**known, "RAY_JOB_STOP_WAIT_TIME_S": str(RAYS_OWN_GRACE_S)}},
        "entrypoint_num_cpus": spec.processes * threads,
        "entrypoint_num_gpus": spec.gpus,
    }
