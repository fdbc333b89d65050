"""The folder of a service: its database, its uploads, its jobs; and names that nobody can guess a path from.

jobs.db · token · session.key · files/FILE_ID.ENDING · jobs/JOB_ID/{recipe.yaml, run/, work/, attempts/ATTEMPT_ID.log}
· ray/ATTEMPT_ID/ (while a Ray cluster runs it)
"""

from __future__ import annotations

import os
import re
import secrets
import time
from pathlib import Path

from filelock import FileLock, Timeout

from nlp_distill.errors import ServiceBusy
from nlp_distill.rundir import place_errors

HOME_VARIABLE = "NLP_DISTILL_SERVICE"
ID = re.compile(r"(job|attempt|file|artifact|token|worker)_[0-9a-f]{32}")


def new_id(kind: str) -> str:
    """A name of its own that sorts by time (RFC 9562, version 7), for example `job_0193…`."""
    stamp = time.time_ns() // 1_000_000
    chance = int.from_bytes(secrets.token_bytes(10), "big")
    number = (stamp & (1 << 48) - 1) << 80 | 7 << 76 | (chance >> 64 & 0xFFF) << 64 | 2 << 62 | chance & (1 << 62) - 1
    return f"{kind}_{number:032x}"


def now_ms() -> int:
    """Milliseconds since 1970, for people; durations are measured otherwise."""
    return time.time_ns() // 1_000_000


class Home:
    """Where a service keeps everything: `NLP_DISTILL_SERVICE`, else `~/.local/share/nlp_distill/service`."""

    def __init__(self, path: str | Path | None = None) -> None:
        default = Path.home() / ".local" / "share" / "nlp_distill" / "service"
        self.path = Path(path or os.environ.get(HOME_VARIABLE) or default).resolve()
        self.database = self.path / "jobs.db"
        self.files = self.path / "files"
        self.jobs = self.path / "jobs"
        self.ray = self.path / "ray"
        self.token = self.path / "token"
        self._server = FileLock(self.path / ".server.lock")

    def make(self) -> Home:
        """Make the folders, for this user only. Raises `NotWritable`."""
        with place_errors(self.path):
            for folder in (self.path, self.files, self.jobs):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self

    def hold(self) -> None:
        """Be the one server of this folder. Raises `ServiceBusy`."""
        try:
            self._server.acquire(timeout=0)
        except Timeout as error:
            raise ServiceBusy(folder=self.path) from error

    def release(self) -> None:
        """Let another server take over."""
        self._server.release()

    def admin_token(self) -> str:
        """The token of whoever owns this folder: made once, readable by its owner alone."""
        return self._secret(self.token)

    def session_key(self) -> bytes:
        """What sessions of browsers are signed with; without the file they all end."""
        return self._secret(self.path / "session.key").encode()

    def _secret(self, file: Path) -> str:
        # An empty file, as a full disk or a power cut may leave one, is no secret.
        if not file.is_file() or not file.read_text(encoding="ascii").strip():
            self._write_secret(file, secrets.token_urlsafe(32))
        return file.read_text(encoding="ascii").strip()

    def use_token(self, token: str) -> None:
        """Let a token that a person chose be the owner's."""
        self._write_secret(self.token, token)

    def _write_secret(self, file: Path, secret: str) -> None:
        temporary = file.with_name(f".{file.name}.{os.getpid()}.{secrets.token_hex(4)}")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(handle, "w", encoding="ascii") as stream:
                stream.write(secret + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)

    def job(self, job_id: str) -> Path:
        """The folder of a job."""
        return self._inside(self.jobs, job_id)

    def run(self, job_id: str) -> Path:
        """The run folder of a job."""
        return self.job(job_id) / "run"

    def log(self, job_id: str, attempt_id: str) -> Path:
        """What an attempt wrote to its terminal."""
        return self._inside(self.job(job_id) / "attempts", attempt_id).with_suffix(".log")

    def file(self, file_id: str, ending: str) -> Path:
        """An uploaded file."""
        return self._inside(self.files, file_id).with_suffix(f".{ending}")

    def _inside(self, folder: Path, name: str) -> Path:
        if not ID.fullmatch(name):
            raise ValueError(f"{name!r} is no id")
        return folder / name
