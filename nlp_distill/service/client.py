"""The Python client: `Client().jobs.create("quickstart").wait()`.

Requests that change something carry an Idempotency-Key and are sent again when the line breaks; streams go on after
the last event that arrived.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import httpx

from nlp_distill.errors import JobFailed, ServiceRefused, ServiceUnreachable
from nlp_distill.recipe import Recipe
from nlp_distill.recipe_file import load_recipe
from nlp_distill.rundir import sha256_file
from nlp_distill.service.home import Home
from nlp_distill.web.listening import is_loopback

URL_VARIABLE, TOKEN_VARIABLE = "NLP_DISTILL_URL", "NLP_DISTILL_TOKEN"
DEFAULT_URL = "http://127.0.0.1:8000"
TERMINAL = ("succeeded", "failed", "cancelled")
PAUSE_S, LONGEST_PAUSE_S = 0.5, 4.0
AT_FIRST_S = 2.0
"""How long a service that never answered is waited for."""
GATEWAY = (502, 503, 504)


class Client:
    """A service. `url`: else `NLP_DISTILL_URL`, else this machine; `token`: else `NLP_DISTILL_TOKEN`, else the one
    that the service of this machine keeps for its owner. `patience_s`: how long one that did answer may be gone.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        home: str | Path | None = None,
        patience_s: float = 60.0,
    ) -> None:
        self.url = (url or os.environ.get(URL_VARIABLE) or DEFAULT_URL).rstrip("/")
        token = token or os.environ.get(TOKEN_VARIABLE)
        # This machine's own token is for this machine's own service.
        if not token and is_loopback(urlsplit(self.url).hostname or ""):
            token = _own_token(Home(home))
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        timeout = httpx.Timeout(30.0, write=600.0)
        # Nobody closes a client that is used in one line; its connections end with their answers.
        once = httpx.Limits(max_keepalive_connections=0)
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout, limits=once, trust_env=False)
        self.patience_s, self._met = patience_s, False
        self.jobs = Jobs(self)
        self.files = Files(self)

    def ask(self, method: str, path: str, **sent: Any) -> Any:
        """The answer's JSON. Raises `ServiceRefused`, `ServiceUnreachable`."""
        answer = self.send(method, path, **sent)
        return answer.json() if answer.content else None

    def send(self, method: str, path: str, **sent: Any) -> httpx.Response:
        """The answer; asked again while the service starts anew."""
        pause, end = PAUSE_S, time.monotonic() + (self.patience_s if self._met else AT_FIRST_S)
        while True:
            try:
                answer = self.http.request(method, path, **sent)
                self._met = True
                if answer.status_code not in GATEWAY or time.monotonic() > end:
                    return checked(answer)
            except httpx.TransportError as error:
                if time.monotonic() > end:
                    raise ServiceUnreachable(url=self.url, reason=type(error).__name__) from error
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def system(self) -> dict[str, Any]:
        """Versions, devices, disk, queue."""
        found: dict[str, Any] = self.ask("GET", "/v1/system")
        return found

    def compare(self, jobs: Sequence[str]) -> dict[str, Any]:
        """Variants of several jobs, and how their recipes differ."""
        found: dict[str, Any] = self.ask("POST", "/v1/compare", json={"jobs": list(jobs)})
        return found


def _own_token(home: Home) -> str | None:
    try:
        return home.token.read_text(encoding="ascii").strip()
    except OSError:
        return None


def checked(answer: httpx.Response) -> httpx.Response:
    """Raises `ServiceRefused` with the problem's sentence."""
    if answer.is_success:
        return answer
    try:
        document = answer.json()
        places = [f"  {place['pointer']}: {place['message']}" for place in document.get("errors", [])[:8]]
        detail = "\n".join([str(document["detail"]), *places])
    except (ValueError, KeyError, TypeError):
        detail = f"The service answered {answer.status_code}."
    raise ServiceRefused(detail=detail)


class Files:
    """Uploads."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def upload(self, path: str | Path) -> str:
        """The id of a CSV, TSV, JSON lines or Parquet file, to be named in a recipe's `data.dataset`."""
        path = Path(path)
        with path.open("rb") as stream:
            # Sent once: a stream cannot be sent again.
            query = {"name": path.name, "sha256": sha256_file(path)}
            try:
                answer = self.client.http.post("/v1/files", params=query, content=stream)
            except httpx.TransportError as error:
                raise ServiceUnreachable(url=self.client.url, reason=type(error).__name__) from error
        return str(checked(answer).json()["id"])

    def preview(self, file_id: str) -> dict[str, Any]:
        """Columns, five rows, guessed columns."""
        found: dict[str, Any] = self.client.ask("GET", f"/v1/files/{file_id}/preview")
        return found


class Jobs:
    """Jobs of a service."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def create(
        self,
        recipe: str | Path | dict[str, Any] | Recipe,
        *overrides: str,
        name: str = "",
        tags: Sequence[str] = (),
        priority: int = 0,
        deadline_s: int | None = None,
        resources: dict[str, Any] | None = None,
    ) -> Job:
        """Submit a recipe: a file or the name of a shipped one with overrides, a `Recipe`, or an object.

        Files of this machine that it names as data are uploaded first.
        """
        if isinstance(recipe, str | Path):
            recipe = load_recipe(str(recipe), overrides)
        given = recipe.resolved() if isinstance(recipe, Recipe) else recipe
        body = {
            "recipe": self._uploaded(given),
            "name": name,
            "tags": list(tags),
            "priority": priority,
            "deadline_s": deadline_s,
            "resources": resources or {},
        }
        key = {"Idempotency-Key": uuid.uuid4().hex}
        return Job(self.client, self.client.ask("POST", "/v1/jobs", json=body, headers=key))

    def _uploaded(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """The recipe with ids in place of files."""
        data = recipe.get("data")
        if not isinstance(data, dict):
            return recipe

        def one(value: Any) -> Any:
            return self.client.files.upload(value) if isinstance(value, str) and Path(value).is_file() else value

        named = {name: data[name] for name in ("dataset", "files") if data.get(name) is not None}
        if isinstance(named.get("dataset"), str) and (folder := Path(named["dataset"])).is_dir():
            named = {"dataset": folder.name, "files": {f.stem: str(f) for f in sorted(folder.iterdir()) if f.is_file()}}
        files = named.get("files")
        named = {name: one(value) for name, value in named.items()}
        if isinstance(files, dict):
            named["files"] = {split: one(value) for split, value in files.items()}
        return {**recipe, "data": {**data, **named}}

    def get(self, job_id: str) -> Job:
        """A job as it stands."""
        return Job(self.client, self.client.ask("GET", f"/v1/jobs/{job_id}"))

    def list(self, status: Sequence[str] = (), tag: str | None = None, limit: int = 20) -> list[Job]:
        """Jobs, newest first."""
        found: list[Job] = []
        query: dict[str, Any] = {"status": list(status)} | ({"tag": tag} if tag else {})
        after: dict[str, Any] = {}
        while len(found) < limit:
            page = self.client.ask("GET", "/v1/jobs", params={**query, **after, "limit": min(100, limit - len(found))})
            found += [Job(self.client, data) for data in page["data"]]
            if not page["has_more"]:
                break
            after = {"after": page["next"]}
        return found


class Job:
    """A job; `data` is what the service said of it last."""

    def __init__(self, client: Client, data: dict[str, Any]) -> None:
        self.client, self.data = client, data
        self.id: str = data["id"]

    def __repr__(self) -> str:
        return f"<Job {self.id}: {self.status}>"

    @property
    def status(self) -> str:
        """As it was when last asked."""
        return str(self.data["status"])

    @property
    def path(self) -> str:
        """Where the API has it."""
        return f"/v1/jobs/{self.id}"

    def refresh(self) -> Job:
        """Ask again."""
        self.data = self.client.ask("GET", self.path)
        return self

    def _do(self, what: str) -> Job:
        self.data = self.client.ask("POST", f"{self.path}/{what}")
        return self

    def cancel(self) -> Job:
        """End it for good."""
        return self._do("cancel")

    def pause(self) -> Job:
        """Stop it with a checkpoint."""
        return self._do("pause")

    def resume(self) -> Job:
        """Let it go on."""
        return self._do("resume")

    def retry(self) -> Job:
        """Let it go on after it failed or was cancelled."""
        return self._do("retry")

    def clone(self) -> Job:
        """A new job with the same recipe."""
        key = {"Idempotency-Key": uuid.uuid4().hex}
        return Job(self.client, self.client.ask("POST", f"{self.path}/clone", headers=key))

    def remove(self) -> None:
        """Forget it, with what it made."""
        self.client.ask("DELETE", self.path)

    def events(self, after: int = 0) -> Iterator[dict[str, Any]]:
        """Events as they happen, until the job is over; each once, in order, whatever breaks meanwhile.

        Raises `ServiceUnreachable` when the service is gone for longer than the client's patience.
        """
        gone_since: float | None = None
        while True:
            try:
                for kind, data in self._stream(after):
                    gone_since = None
                    if kind == "end":
                        return
                    after = data["seq"]
                    yield data
            except httpx.TransportError as error:
                gone_since = gone_since or time.monotonic()
                if time.monotonic() - gone_since > self.client.patience_s:
                    raise ServiceUnreachable(url=self.client.url, reason=type(error).__name__) from error
            time.sleep(PAUSE_S)

    def _stream(self, after: int) -> Iterator[tuple[str, dict[str, Any]]]:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
        with self.client.http.stream("GET", f"{self.path}/events", headers=headers) as answer:
            if answer.status_code in (429, *GATEWAY):
                raise httpx.ConnectError("busy")
            if not answer.is_success:
                answer.read()
                checked(answer)
            kind, data = "", ""
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                if name == "event":
                    kind = value
                elif name == "data":
                    data = value
                elif not line and data:
                    yield kind, json.loads(data)
                    kind, data = "", ""

    def wait(self, strict: bool = True) -> Job:
        """Until it is over. Raises `JobFailed` where it did not succeed, unless not `strict`."""
        for _ in self.events():
            pass
        self.refresh()
        if strict and self.status != "succeeded":
            error = self.data["error"] or {"message": "as it was asked to", "fix": ""}
            detail = f"{error['message']} {error['fix']}".strip()
            raise JobFailed(job=self.id, status=self.status, detail=detail)
        return self

    def logs(self, follow: bool = False) -> Iterator[str]:
        """What its last attempt wrote."""
        query = {"follow": "true"} if follow else {}
        with self.client.http.stream("GET", f"{self.path}/logs", params=query, timeout=None) as answer:
            if not answer.is_success:
                answer.read()
            yield from checked(answer).iter_text()

    def artifacts(self) -> list[dict[str, Any]]:
        """The files that it delivered."""
        return list(self.client.ask("GET", f"{self.path}/artifacts")["data"])

    def checkpoints(self) -> list[dict[str, Any]]:
        """Where it would go on from: stage, step, created_at, bytes, state, sha256 of each file."""
        return list(self.client.ask("GET", f"{self.path}/checkpoints")["data"])

    def download(self, folder: str | Path) -> Path:
        """Fetch all that it delivered; what is there already is not fetched again. Sums are checked."""
        folder = Path(folder)
        for artifact in self.artifacts():
            inside = PurePosixPath(artifact["path"])
            if inside.is_absolute() or ".." in inside.parts:
                raise ServiceRefused(detail=f"The service names a file '{inside}', which is no place to write to.")
            target = folder / inside
            if not target.is_file() or sha256_file(target) != artifact["sha256"]:
                self._fetch(artifact, target)
        return folder

    def _fetch(self, artifact: dict[str, Any], target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        part, digest = target.with_name(f".{target.name}.part"), hashlib.sha256()
        try:
            with self.client.http.stream("GET", f"/v1/artifacts/{artifact['id']}/content") as answer:
                if not answer.is_success:
                    answer.read()
                with part.open("wb") as stream:
                    for block in checked(answer).iter_bytes():
                        digest.update(block)
                        stream.write(block)
            if digest.hexdigest() != artifact["sha256"]:
                raise ServiceRefused(detail=f"{artifact['path']} arrived damaged; download again.")
            part.replace(target)
        except httpx.TransportError as error:
            raise ServiceUnreachable(url=self.client.url, reason=type(error).__name__) from error
        finally:
            part.unlink(missing_ok=True)
