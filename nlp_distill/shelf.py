"""What runs share on disk, outside their folders: where it is, what is whole, and what may go.

A cache is a folder that appears complete or not at all, named by the hash of all that it depends on. Its
`manifest.json` says what it holds and the size of each file; its modification time says when it was last used.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nlp_distill.errors import AgeInvalid
from nlp_distill.rundir import disk_errors, place_errors, sha256_file, sha256_json, write_json

MANIFEST, INDEX = "manifest.json", "index.safetensors"
OURS = re.compile(r"[0-9a-f]{20}|\.[0-9a-f]{20}\..+")
"""Names of caches, and of those that are being written; what else lies there is somebody's own."""
AGE = re.compile(r"(\d+(?:\.\d+)?)([dhm])")
UNITS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0}


def cache_folder() -> Path:
    """Where what runs share is kept: `NLP_DISTILL_CACHE`, else `~/.cache/nlp_distill`."""
    return Path(os.environ.get("NLP_DISTILL_CACHE") or Path.home() / ".cache" / "nlp_distill")


def teachers_folder() -> Path:
    """Where teachers' signals are kept."""
    return cache_folder() / "teachers"


def seal(folder: Path, contents: dict[str, Any], index: str = INDEX) -> None:
    """Write the manifest of a folder whose other files are complete. `index`: the file that is hashed."""
    files = sorted(file for file in folder.iterdir() if file.name != MANIFEST)
    body = {
        "contents": contents,
        "bytes": {file.name: file.stat().st_size for file in files},
        "index": index,
        "index_sha256": sha256_file(folder / index),
    }
    write_json(folder / MANIFEST, {**body, "sha256": sha256_json(body)})


def sealed(folder: Path) -> dict[str, Any] | None:
    """What a cache holds; None when it is not there, torn or cut short.

    Sizes of all files are compared, and the hashes of manifest and index; the signals' bytes are not read.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        whole = manifest.pop("sha256") == sha256_json(manifest)
        sizes: dict[str, int] = manifest["bytes"]
        same = all((folder / name).stat().st_size == size for name, size in sizes.items())
        if whole and same and sha256_file(folder / manifest.get("index", INDEX)) == manifest["index_sha256"]:
            contents: dict[str, Any] = manifest["contents"]
            return contents
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return None


def used_now(folder: Path) -> None:
    """Remember that a cache is used; on a read-only disk nothing is remembered."""
    with contextlib.suppress(OSError):
        os.utime(folder / MANIFEST)


def _lock(folder: Path) -> FileLock:
    """The lock of a cache; lock files stay, since removing one while another process waits for it breaks it."""
    locks = folder.parent / ".locks"
    with disk_errors(locks), place_errors(locks):
        locks.mkdir(parents=True, exist_ok=True)
        # A folder that was there already may be somebody else's.
        (locks / folder.name).touch()
    return FileLock(locks / folder.name)


@contextlib.contextmanager
def sole_writer(folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a cache for writing; `waiting()` is called each second that another process holds it.

    What a killed writer left half-written is removed: the operating system frees a dead process's hold.
    """
    lock = _lock(folder)
    while not lock.is_locked:
        try:
            lock.acquire(timeout=1.0)
        except Timeout:
            waiting()
    try:
        for left in _leftovers(folder):
            shutil.rmtree(left)
        yield
    finally:
        lock.release()


def _leftovers(folder: Path) -> list[Path]:
    return list(folder.parent.glob(f".{folder.name}.*"))


@dataclass(frozen=True)
class Shelved:
    """One cache on disk, or what is left of one (`contents` None). `used`: seconds since 1970."""

    folder: Path
    contents: dict[str, Any] | None
    size: int
    used: float

    def line(self) -> dict[str, Any]:
        """As plain data, for tables and JSON."""
        about = self.contents["about"] if self.contents else {"teacher": "(incomplete)"}
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.used))
        return {"name": self.folder.name, **about, "bytes": self.size, "last_used": day}


def shelved() -> list[Shelved]:
    """The caches of teachers, the last used first; damaged and half-written ones, too."""
    found: dict[str, Shelved] = {}
    if not teachers_folder().is_dir():
        return []
    for folder in sorted(teachers_folder().iterdir()):
        if not folder.is_dir() or not OURS.fullmatch(folder.name):
            continue
        with contextlib.suppress(FileNotFoundError):  # published, or removed, while we look
            files = list(folder.iterdir())
            marked = folder / MANIFEST if folder / MANIFEST in files else folder
            size = sum(file.stat().st_size for file in files)
            found[folder.name] = Shelved(folder, sealed(folder), size, marked.stat().st_mtime)
    return sorted(found.values(), key=lambda entry: -entry.used)


def prune(older_than: float) -> list[Shelved]:
    """Remove the caches that were not used for so many seconds, and what killed processes left; those removed.

    A cache that is being written is left alone. One that a run is reading goes on being read: its space is free
    when that run ends.
    """
    removed = []
    for entry in shelved():
        name = entry.folder.name
        half_written = name.startswith(".")
        whole = entry.folder.with_name(name[1:].split(".")[0]) if half_written else entry.folder
        if entry.contents is not None and not half_written and time.time() - entry.used < older_than:
            continue
        lock = _lock(whole)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        try:
            shutil.rmtree(entry.folder, ignore_errors=True)
            removed.append(entry)
        finally:
            lock.release()
    return removed


def age(text: str) -> float:
    """Seconds of an age such as 30d, 12h or 45m. Raises `AgeInvalid`."""
    match = AGE.fullmatch(text.strip())
    if match is None:
        raise AgeInvalid(text=text)
    return float(match[1]) * UNITS[match[2]]
