"""A Hub on this machine, for tests: the parts of the Hub's protocol that `huggingface_hub` uses.

It keeps models, datasets and collections in memory, answers on loopback only, and fails on request. Large files go
over LFS, whole or in parts; a client that offers Xet is answered with LFS, which it falls back to.

    with LoopbackHub() as hub:
        subprocess.run(["nlp-distill", "push", "runs/mine", "org/mine"], env={**os.environ, **hub.environment(home)})
        assert "model.safetensors" in hub.files("org/mine")
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path

from nlp_distill.testing.hub_protocol import Answers
from nlp_distill.testing.repositories import Blob, Refused, Repository, is_large


@dataclass
class Fault:
    """What the Hub does with the next requests that match, instead of answering them.

    `status`: it refuses with this; None: it drops the connection when half of the body has passed.
    """

    path: re.Pattern[str]
    method: str | None
    status: int | None
    times: int
    message: str = "a fault on request"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """A request: what was asked for, how many bytes of body came, the answer's status (0: cut off)."""

    method: str
    path: str
    received: int
    status: int


class LoopbackHub:
    """The Hub. `name` and `organizations`: what `token` may write to; `part_size`: bytes of an upload's parts."""

    def __init__(
        self, name: str = "me", organizations: tuple[str, ...] = ("org",), part_size: int | None = None
    ) -> None:
        self.name, self.organizations, self.part_size = name, organizations, part_size
        self.token, self.read_token = "hf_loopback_write", "hf_loopback_read"
        self.repositories: dict[str, Repository] = {}
        self.collections: dict[str, dict[str, object]] = {}
        self.large: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.seen: list[Seen] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Answers,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    # What a test prepares and looks at

    def environment(self, home: Path, token: str | None = None, offline: bool = False) -> dict[str, str]:
        """Variables for a process that is to use this Hub, with a cache of its own in `home`; `token=""`: without."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_DATASETS_CACHE": str(home / "datasets"),
            "HF_HUB_OFFLINE": "1" if offline else "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": self.token if token is None else token,
            "NO_PROXY": "127.0.0.1",
        }

    @contextlib.contextmanager
    def here(self, home: Path, token: str | None = None, offline: bool = False) -> Iterator[None]:
        """Let `huggingface_hub` in this very process use this Hub; `datasets` needs a process of its own."""
        from unittest import mock

        from huggingface_hub import constants, file_download
        from huggingface_hub.utils._http import reset_sessions

        variables = self.environment(home, token, offline)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.dict("os.environ", variables))
            for name, value in (
                ("ENDPOINT", self.url),
                ("HF_HUB_OFFLINE", offline),
                ("HF_HUB_CACHE", variables["HF_HUB_CACHE"]),
                ("HF_TOKEN_PATH", str(home / "token")),
                ("HUGGINGFACE_CO_URL_TEMPLATE", template),
            ):
                stack.enter_context(mock.patch.object(constants, name, value))
            stack.enter_context(mock.patch.object(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, create=True))
            # A session remembers whether it is offline.
            reset_sessions()
            stack.callback(reset_sessions)
            yield

    def fail(
        self,
        path: str,
        status: int | None = None,
        method: str | None = None,
        times: int = 1,
        message: str = "a fault on request",
        headers: dict[str, str] | None = None,
    ) -> None:
        """Refuse the next `times` requests whose path matches, or with no status cut them off halfway."""
        self.faults.append(Fault(re.compile(path), method, status, times, message, headers or {}))

    def add(self, name: str, files: dict[str, bytes] | Path, kind: str = "model", private: bool = False) -> str:
        """A repository with these files, or those of a folder; returns its commit. `kind`: model or dataset."""
        with self.lock:
            repository = self.repositories.setdefault(f"{kind}s/{name}", Repository(name, kind, private))
            if isinstance(files, Path):
                found = (file for file in sorted(files.rglob("*")) if file.is_file())
                files = {file.relative_to(files).as_posix(): file.read_bytes() for file in found}
            blobs = {path: self.blob(path, content) for path, content in files.items()}
            head = repository.at()
            return repository.commit("main", "files added", {**head.files, **blobs}, head.oid).oid

    def blob(self, path: str, content: bytes) -> Blob:
        """A file as the Hub keeps one of this name."""
        if not is_large(path, len(content), content[:512]):
            return Blob(content)
        sha256 = hashlib.sha256(content).hexdigest()
        self.large[sha256] = content
        return Blob(content, sha256)

    def files(self, name: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """The files of a repository."""
        return {path: blob.content for path, blob in self.repository(f"{kind}s/{name}").at(revision).files.items()}

    def commits(self, name: str, kind: str = "model") -> list[str]:
        """Titles of all commits, the first one's first."""
        return [commit.title for commit in self.repository(f"{kind}s/{name}").commits.values()]

    def received(self, method: str = "PUT") -> int:
        """Bytes of bodies that came with requests of this method; uploads of large files by default."""
        return sum(seen.received for seen in self.seen if seen.method == method)

    # What the protocol needs

    def repository(self, key: str) -> Repository:
        """A repository by `models/org/name`. Raises `Refused`."""
        if key not in self.repositories:
            raise Refused(404, "Repository not found", "RepoNotFound")
        return self.repositories[key]

    def saw(self, method: str, path: str, received: int, status: int) -> None:
        """Note a request."""
        self.seen.append(Seen(method, path, received, status))

    def fault(self, method: str, path: str) -> Fault | None:
        """The fault that a request meets."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method in (None, method) and fault.path.search(path):
                    fault.times -= 1
                    return fault
        return None
