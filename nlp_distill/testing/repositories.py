"""Repositories in memory, as the Hub keeps them: blobs, commits, branches, pull requests; large files by sha256."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timezone

LARGE = 10 << 20
"""Bytes from which text is a large file, too."""
LARGE_ENDINGS = (".safetensors", ".onnx", ".onnx_data", ".bin", ".ort", ".pte", ".parquet", ".model", ".png")


class Refused(Exception):
    """An answer of the Hub that is no success."""

    def __init__(self, status: int, message: str, code: str | None = None, **more: object) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.more = status, message, code, more


@dataclass(frozen=True)
class Blob:
    """A file: its content and, of a large one, its sha256."""

    content: bytes
    sha256: str | None = None

    @property
    def oid(self) -> str:
        """Git's name of the file; of a large one, of its pointer."""
        text = self.pointer if self.sha256 else self.content
        return hashlib.sha1(b"blob %d\0" % len(text) + text, usedforsecurity=False).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git keeps of a large file."""
        lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{self.sha256}", f"size {len(self.content)}")
        return ("\n".join(lines) + "\n").encode()

    @property
    def etag(self) -> str:
        """What the client's cache calls the file."""
        return self.sha256 or self.oid

    def entry(self, path: str) -> dict[str, object]:
        """The file as trees list it."""
        entry: dict[str, object] = {"type": "file", "path": path, "oid": self.oid, "size": len(self.content)}
        if self.sha256:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": len(self.pointer)}
        return entry


@dataclass(frozen=True)
class Commit:
    """A state of all files."""

    oid: str
    title: str
    files: dict[str, Blob]
    when: str


@dataclass
class Repository:
    """One repository. `refs`: branch or `refs/pr/N` → the oid of its last commit."""

    name: str
    kind: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit("main", "initial commit", {".gitattributes": Blob(b"*.safetensors filter=lfs\n")}, None)

    def commit(self, ref: str, title: str, files: dict[str, Blob], parent: str | None) -> Commit:
        """Add a commit whose files are these, and move the ref to it."""
        body = "\n".join([parent or "", title, ref, *(f"{path} {files[path].oid}" for path in sorted(files))])
        oid = hashlib.sha1(body.encode(), usedforsecurity=False).hexdigest()
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        self.commits[oid] = Commit(oid, title, dict(files), now)
        self.refs[ref] = oid
        return self.commits[oid]

    def at(self, revision: str = "main") -> Commit:
        """The commit that a branch, a pull request or an oid names. Raises `Refused`."""
        oid = self.refs.get(revision, revision)
        if oid not in self.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def file(self, revision: str, path: str) -> Blob:
        """A file at a revision. Raises `Refused`."""
        files = self.at(revision).files
        if path not in files:
            raise Refused(404, "Entry not found", "EntryNotFound", commit=self.at(revision).oid)
        return files[path]

    def branch(self, name: str, start: str) -> None:
        """A new branch. Raises `Refused` where it is there."""
        if name in self.refs:
            raise Refused(409, f"Reference {name} already exists")
        self.refs[name] = self.at(start).oid

    def pull_request(self) -> str:
        """A new pull request that stands where main does."""
        name = f"refs/pr/{1 + sum(ref.startswith('refs/pr/') for ref in self.refs)}"
        self.branch(name, "main")
        return name

    def changed(self, start: Commit, operations: list[dict[str, object]], large: dict[str, bytes]) -> dict[str, Blob]:
        """The files of a commit after the operations of a push. Raises `Refused`."""
        files = dict(start.files)
        for operation in operations:
            value = operation["value"]
            assert isinstance(value, dict)
            path = str(value["path"])
            if operation["key"] == "file":
                files[path] = Blob(_decoded(value["content"]))
            elif operation["key"] == "lfsFile":
                if value["oid"] not in large:
                    raise Refused(400, f"LFS pointer pointed to a file that does not exist: {path}")
                files[path] = Blob(large[value["oid"]], value["oid"])
            elif operation["key"] == "deletedFile":
                if files.pop(path, None) is None:
                    raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
        return files


def _decoded(content: str) -> bytes:
    import base64

    return base64.b64decode(content)


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether the Hub wants a file by its sha256: by name, by size, and whatever is no text."""
    if path.endswith(LARGE_ENDINGS) or size > LARGE:
        return True
    try:
        # A sample may end in the middle of a letter.
        sample[: max(0, len(sample) - 4)].decode("utf-8")
    except UnicodeDecodeError:
        return True
    return b"\0" in sample
