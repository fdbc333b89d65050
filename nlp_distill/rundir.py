"""The folder of a run: layout, manifest, events, atomic publication.

Everything that is published goes through a temporary name, fsync and rename: a reader sees the old file, the
new one, or none.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from nlp_distill.errors import (
    DiskFull,
    NotWritable,
    RunFolderBusy,
    RunFolderDamaged,
    RunFolderForeign,
    RunFolderUnusable,
)

REFUSALS = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.ENOENT, errno.EEXIST, errno.EISDIR),
)
"""What the system says of a place where nothing can be written."""


def sha256_file(path: Path) -> str:
    """Hash of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Hash of plain data, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn "no space left" into a `DiskFull` that names the place; what safetensors says of a disk into an OSError."""
    try:
        try:
            yield
        except SafetensorError as error:
            if said := re.search(r"os error (\d+)", str(error)):
                raise OSError(int(said[1]), os.strerror(int(said[1])), str(path)) from error
            raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(path=path, reason=error.strerror) from error
        raise


@contextlib.contextmanager
def place_errors(path: Path) -> Iterator[None]:
    """Turn a place where nothing can be made into a `NotWritable`."""
    try:
        yield
    except OSError as error:
        if error.errno in REFUSALS:
            raise NotWritable(path=path, reason=error.strerror) from error
        raise


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[IO[str]]:
    """A text file to write into, published when the block ends well, and gone otherwise."""
    with disk_errors(path), place_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("w", encoding="utf-8") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _fsync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Publish a text file atomically."""
    with new_file(path) as stream:
        stream.write(text)


def write_json(path: Path, value: Any) -> None:
    """Publish plain data as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """An object that `write_json` wrote. Raises `RunFolderDamaged`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFolderDamaged(file=path, reason="it is not JSON") from error
    if not isinstance(value, dict):
        raise RunFolderDamaged(file=path, reason="it is not an object")
    return value


def _parts(manifest: dict[str, Any]) -> Iterator[tuple[str, Any, dict[str, type]]]:
    """Each part of a manifest that others build on: its place, what it says, and the kinds of what it must say."""
    stages = manifest.get("stages", {})
    yield "stages", stages, {}
    for stage, record in stages.items():
        yield f"stages.{stage}", record, {"key": str, "settings": dict, "outputs": dict}
    if "machine" in manifest:
        yield "machine", manifest["machine"], {"threads": int}
    if "precision" in manifest:
        yield "precision", manifest["precision"], {"asked": str, "precision": str}


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `path` when the block ends well, and vanishes otherwise."""
    with disk_errors(path):
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with place_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
        try:
            yield temporary
            for file in temporary.rglob("*"):
                _fsync(file)
            _fsync(temporary)
            if path.exists():
                old = path.with_name(f".{path.name}.{os.getpid()}.old")
                path.rename(old)
                temporary.rename(path)
                shutil.rmtree(old)
            else:
                temporary.rename(path)
            _fsync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def place_files(made: Path, folder: Path) -> None:
    """Move the files of a scratch folder into `folder`, each of them whole or not at all."""
    with disk_errors(folder), place_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(made.iterdir()):
            temporary = folder / f".{file.name}.{os.getpid()}.tmp"
            shutil.copyfile(file, temporary)
            _fsync(temporary)
            temporary.rename(folder / file.name)
        _fsync(folder)


def _left_over(file: Path) -> bool:
    """Whether a file is what a killed process was about to publish."""
    return file.name.startswith(".") and file.suffix in (".tmp", ".old")


class RunDir:
    """The folder of one run.

    `recipe.yaml` (resolved), `manifest.json`, `events.jsonl`, `teacher/`, `student/`, `control/`,
    `checkpoints/`, `predictions/`, `model/` (the deliverable), `results.json`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.results = self.path / "results.json"
        self.teacher = self.path / "teacher"
        self.student = self.path / "student"
        self.control = self.path / "control"
        self.model = self.path / "model"
        self.checkpoints = self.path / "checkpoints"
        self.predictions = self.path / "predictions"
        self._manifest = self.path / "manifest.json"
        self._owner = self.path / ".owner"
        self._lock = FileLock(self.path / ".lock")
        self._events = self.path / "events.jsonl"

    def create(self) -> None:
        """Make the folder and hold it; clears what a killed process left half-written.

        Raises `RunFolderForeign` for a folder that holds something else, `RunFolderBusy` for one that another
        process works in. The operating system frees a dead process's hold.
        """
        try:
            with disk_errors(self.path), place_errors(self.path):
                if self.path.exists() and not self.exists():
                    self._refuse_foreign()
                self.path.mkdir(parents=True, exist_ok=True)
                self._hold()
        except NotWritable as error:
            raise RunFolderUnusable(folder=self.path, reason=error.fields["reason"]) from error
        for left in [file for file in self.path.rglob(".*") if _left_over(file)]:
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
        self._mend_events()

    def _mend_events(self) -> None:
        """Drop the line that a killed process did not finish."""
        if self._events.is_file() and not (text := self._events.read_bytes()).endswith(b"\n"):
            os.truncate(self._events, text.rfind(b"\n") + 1)

    def _refuse_foreign(self) -> None:
        ours = (self._lock.lock_file, str(self._owner))
        if not self.path.is_dir() or any(not _left_over(f) and str(f) not in ours for f in self.path.iterdir()):
            raise RunFolderForeign(folder=self.path)

    def _hold(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            # Who it is may not be written yet, or the process may run on another machine.
            owner = self._owner.read_text(encoding="utf-8").strip() if self._owner.is_file() else "another process"
            raise RunFolderBusy(folder=self.path, owner=owner) from error
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        write_text(self._owner, f"process {os.getpid()} on {platform.node()} since {now}\n")

    def release(self) -> None:
        """Let others work in the folder."""
        if self._lock.is_locked:
            self._owner.unlink(missing_ok=True)
            self._lock.release()

    def exists(self) -> bool:
        """Whether this is the folder of a run: a published model has a recipe, too, but lies at the top itself."""
        return os.path.isfile(self.recipe) and not os.path.isfile(self.path / "config.json")

    def manifest(self) -> dict[str, Any]:
        """Versions, machine and the stages that are complete; empty before the first."""
        if not self._manifest.is_file():
            return {}
        manifest = read_json(self._manifest)
        for place, said, kinds in _parts(manifest):
            if not isinstance(said, dict) or any(not isinstance(said.get(name), kind) for name, kind in kinds.items()):
                raise RunFolderDamaged(file=self._manifest, reason=f"its part '{place}' is not as it was written")
        return manifest

    def update_manifest(self, **parts: Any) -> None:
        """Replace parts of the manifest."""
        write_json(self._manifest, {**self.manifest(), **parts})

    def event(self, kind: str, **fields: Any) -> None:
        """Append one line to `events.jsonl`: kinds are stage, progress, metric, warning."""
        line = json.dumps({"time": round(time.time(), 3), "event": kind, **fields}, ensure_ascii=False)
        with disk_errors(self._events), self._events.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def events(self) -> list[dict[str, Any]]:
        """All complete lines of `events.jsonl`."""
        if not self._events.is_file():
            return []
        lines = self._events.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines if line]


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
