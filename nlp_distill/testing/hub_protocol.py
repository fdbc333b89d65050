"""Requests of `huggingface_hub` and what the loopback Hub answers."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

from nlp_distill.testing.repositories import Blob, Commit, Refused, Repository, is_large

if TYPE_CHECKING:
    from nlp_distill.testing.hub import LoopbackHub

ID = r"(?P<name>[^/]+/[^/]+)"
KIND = r"(?P<kind>model|dataset)s"
REVISION = r"(?P<revision>[^/]+)"

Route = tuple[str, re.Pattern[str], str]


def _route(methods: str, path: str, answer: str) -> list[Route]:
    return [(method, re.compile(path), answer) for method in methods.split()]


ROUTES: list[Route] = [
    *_route("GET", r"/api/whoami-v2", "who"),
    *_route("POST", r"/api/repos/create", "create"),
    *_route("POST", r"/api/validate-yaml", "validate"),
    *_route("POST", r"/api/collections", "collect"),
    *_route("GET", r"/api/collections/(?P<slug>.+)", "collection"),
    *_route("POST", r"/api/collections/(?P<slug>.+)/items", "collect_item"),
    *_route("GET", rf"/api/{KIND}/{ID}(/revision/{REVISION})?", "info"),
    *_route("GET", rf"/api/{KIND}/{ID}/refs", "refs"),
    *_route("GET", rf"/api/{KIND}/{ID}/tree/{REVISION}(/(?P<path>.+))?", "tree"),
    *_route("POST", rf"/api/{KIND}/{ID}/paths-info/{REVISION}", "paths_info"),
    *_route("POST", rf"/api/{KIND}/{ID}/preupload/{REVISION}", "preupload"),
    *_route("POST", rf"/api/{KIND}/{ID}/commit/{REVISION}", "commit"),
    *_route("POST", rf"/api/{KIND}/{ID}/branch/{REVISION}", "branch"),
    *_route("POST", rf"/(?P<sets>datasets/)?{ID}\.git/info/lfs/objects/batch", "batch"),
    *_route("PUT", r"/upload/(?P<sha>[0-9a-f]{64})(/(?P<part>\d+))?", "upload"),
    *_route("POST", r"/upload/(?P<sha>[0-9a-f]{64})", "join"),
    *_route("POST", r"/verify", "verify"),
    *_route("GET HEAD", r"/large/(?P<sha>[0-9a-f]{64})", "download"),
    *_route("GET HEAD", rf"/(?P<sets>datasets/)?{ID}/resolve/{REVISION}/(?P<path>.+)", "resolve"),
]


class Answers(BaseHTTPRequestHandler):
    """One connection; a method for each route."""

    hub: ClassVar[LoopbackHub]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Find the route, meet the fault, or answer."""
        url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        self.status, self.body = 0, b""
        try:
            fault = self.hub.fault(self.command, self.path)
            self.cut = fault is not None and fault.status is None
            self._read()
            if fault is not None and fault.status is not None:
                raise Refused(fault.status, fault.message, headers=fault.headers)
            self._answer(url.path)
        except Refused as refused:
            headers = {"X-Error-Message": refused.message}
            if refused.code:
                headers["X-Error-Code"] = refused.code
            if "commit" in refused.more:
                headers["X-Repo-Commit"] = str(refused.more["commit"])
            more = {name: value for name, value in refused.more.items() if name not in ("commit", "headers")}
            given: Any = refused.more.get("headers") or {}
            self._json({"error": refused.message, **more}, refused.status, {**headers, **given})
        except ConnectionError:
            # Cut off on request, or the client went away.
            self.close_connection = True
        self.hub.saw(self.command, self.path, len(self.body), self.status)

    do_POST = do_PUT = do_HEAD = do_GET

    def _answer(self, path: str) -> None:
        self.authorized()
        for method, pattern, answer in ROUTES:
            if method == self.command and (found := pattern.fullmatch(path)):
                parts = {name: unquote(value) for name, value in found.groupdict().items() if value is not None}
                reply: Callable[..., None] = getattr(self, f"answer_{answer}")
                with self.hub.lock:
                    return reply(**parts)
        raise Refused(404, f"the loopback Hub has no {self.command} {path}")

    def _read(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length // 2 if self.cut else length)
        if self.cut and length:
            raise ConnectionAbortedError

    def log_message(self, *_: Any) -> None:
        """Nothing on standard error: `LoopbackHub.seen` has it."""

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.status = status
        self.send_response(status)
        # huggingface_hub forgets its sessions without closing them; no socket may outlive its answer.
        self.send_header("Connection", "close")
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if self.cut else content)
        if self.cut:
            raise ConnectionAbortedError

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    # Who may do what

    def authorized(self) -> str | None:
        """`write`, `read` or None without a token. Raises `Refused` for a wrong one."""
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if not given:
            return None
        roles = {self.hub.token: "write", self.hub.read_token: "read"}
        if given not in roles:
            raise Refused(401, "Invalid credentials in Authorization header")
        return roles[given]

    def writer(self, owner: str) -> None:
        """Raises `Refused` unless the token may write to what `owner` has."""
        role = self.authorized()
        if role is None:
            raise Refused(401, "Invalid username or password.")
        if role != "write":
            raise Refused(403, "Forbidden: you must use a write token to upload to a repository.")
        if owner not in (self.hub.name, *self.hub.organizations):
            raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')

    def found(self, name: str, kind: str = "model", sets: str = "") -> Repository:
        """A repository that the token may see; one that it may not see is not there. Raises `Refused`."""
        key = f"{'dataset' if sets else kind}s/{name}"
        there = self.hub.repositories.get(key)
        if self.authorized() is None and (there is None or there.private):
            raise Refused(401, "Invalid username or password.", "RepoNotFound")
        return self.hub.repository(key)

    # Accounts, repositories, collections

    def answer_who(self) -> None:
        """Who the token is of."""
        role = self.authorized()
        if role is None:
            raise Refused(401, "Invalid username or password.")
        organizations = [{"name": name, "type": "org"} for name in self.hub.organizations]
        token = {"type": "access_token", "accessToken": {"role": role}}
        self._json({"type": "user", "name": self.hub.name, "orgs": organizations, "auth": token})

    def answer_create(self) -> None:
        """A new repository."""
        asked = json.loads(self.body)
        owner, kind = asked.get("organization") or self.hub.name, asked.get("type") or "model"
        self.writer(owner)
        name = f"{owner}/{asked['name']}"
        url = f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if f"{kind}s/{name}" in self.hub.repositories:
            raise Refused(409, f"You already created this {kind} repo", url=url)
        self.hub.repositories[f"{kind}s/{name}"] = Repository(name, kind, bool(asked.get("private")))
        self._json({"url": url, "name": name})

    def answer_validate(self) -> None:
        """A card's front matter, as the Hub looks at it before a push."""
        import yaml

        asked = json.loads(self.body)
        front = re.match(r"\s*---\r?\n(.*?)\r?\n---", asked["content"], re.DOTALL)
        try:
            card = yaml.safe_load(front.group(1)) if front else {}
        except yaml.YAMLError as error:
            return self._json({"errors": [{"message": f"Invalid YAML: {error}"}], "warnings": []}, 400)
        errors = [{"message": said} for said in _wrong(card)]
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def answer_collect(self) -> None:
        """A new collection."""
        asked = json.loads(self.body)
        self.writer(asked["namespace"])
        slug = f"{asked['namespace']}/{re.sub(r'[^a-z0-9]+', '-', asked['title'].lower())}-{'0' * 24}"
        if slug in self.hub.collections:
            raise Refused(409, "This collection exists already", slug=slug)
        self.hub.collections[slug] = {
            **{"slug": slug, "title": asked["title"], "owner": {"name": asked["namespace"]}, "items": []},
            **{"lastUpdated": "2026-01-01T00:00:00.000Z", "position": 0, "theme": "green", "upvotes": 0},
            "private": bool(asked.get("private")),
        }
        self._json(self.hub.collections[slug])

    def answer_collection(self, slug: str) -> None:
        """A collection."""
        if slug not in self.hub.collections:
            raise Refused(404, "Collection not found")
        self._json(self.hub.collections[slug])

    def answer_collect_item(self, slug: str) -> None:
        """One more repository in a collection."""
        if slug not in self.hub.collections:
            raise Refused(404, "Collection not found")
        self.writer(slug.split("/")[0])
        item, items = json.loads(self.body)["item"], self.hub.collections[slug]["items"]
        assert isinstance(items, list)
        if any(other["id"] == item["id"] for other in items):
            raise Refused(409, "This item is in the collection already")
        items.append({"_id": str(len(items)), "id": item["id"], "type": item["type"], "position": len(items)})
        self._json(self.hub.collections[slug])

    # What a repository holds

    def answer_info(self, kind: str, name: str, revision: str = "main") -> None:
        """A repository at a revision."""
        repository = self.found(name, kind)
        commit = repository.at(revision)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        said = {"_id": "0", "id": name, "sha": commit.oid, "siblings": siblings, "lastModified": commit.when}
        self._json({**said, "private": repository.private, "tags": [], "downloads": 0, "likes": 0, "gated": False})

    def answer_refs(self, kind: str, name: str) -> None:
        """Branches and pull requests."""
        refs = self.found(name, kind).refs
        branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": refs[n]} for n in refs if "/pr/" not in n]
        pulls = [{"name": n, "ref": n, "targetCommit": refs[n]} for n in refs if "/pr/" in n]
        self._json({"branches": branches, "tags": [], "converts": [], "pullRequests": pulls})

    def answer_tree(self, kind: str, name: str, revision: str, path: str = "") -> None:
        """Files below a path; folders too unless all that is in them is asked for as well."""
        files = self.found(name, kind).at(revision).files
        prefix = f"{path}/" if path else ""
        below = {other: blob for other, blob in files.items() if other.startswith(prefix)}
        if path and not below:
            raise Refused(404, f"{path} does not exist on {revision}", "EntryNotFound")
        deep = self.query.get("recursive", "").lower() in ("true", "1")
        inner = {other[len(prefix) :].rpartition("/")[0] for other in below} - {""}
        folders = inner if deep else {folder.split("/")[0] for folder in inner}
        listed: list[dict[str, Any]] = [
            {"type": "directory", "path": prefix + folder, "oid": "0" * 40, "size": 0} for folder in sorted(folders)
        ]
        shown = [other for other in sorted(below) if deep or "/" not in other[len(prefix) :]]
        self._json([*listed, *(below[other].entry(other) for other in shown)])

    def answer_paths_info(self, kind: str, name: str, revision: str) -> None:
        """What is known of some paths."""
        files = self.found(name, kind).at(revision).files
        asked: list[str] = parse_qs(self.body.decode()).get("paths", [])
        listed: list[dict[str, Any]] = []
        for path in asked:
            if path in files:
                listed.append(files[path].entry(path))
            elif any(other.startswith(f"{path}/") for other in files):
                listed.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
        self._json(listed)

    def answer_resolve(self, name: str, revision: str, path: str, sets: str = "") -> None:
        """A file; of a large one where it lies."""
        repository = self.found(name, sets=sets)
        commit, blob = repository.at(revision), repository.file(revision, path)
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        if blob.sha256:
            linked = {"X-Linked-Size": str(len(blob.content)), "X-Linked-ETag": f'"{blob.sha256}"'}
            place = {"Location": f"{self.hub.url}/large/{blob.sha256}"}
            return self._send(302, b"", {**headers, **linked, **place})
        self._ranged(blob.content, headers)

    def answer_download(self, sha: str) -> None:
        """A large file, or a range of it."""
        self._ranged(self.hub.large[sha], {"ETag": f'"{sha}"', "Accept-Ranges": "bytes"})

    def _ranged(self, content: bytes, headers: dict[str, str]) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            return self._send(200, content, headers)
        begin, end = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
        if begin > end:
            return self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        place = {"Content-Range": f"bytes {begin}-{end}/{len(content)}"}
        self._send(206, content[begin : end + 1], {**headers, **place})

    # A push

    def answer_branch(self, kind: str, name: str, revision: str) -> None:
        """A new branch."""
        self.writer(name.split("/")[0])
        start = (json.loads(self.body) if self.body else {}).get("startingPoint") or "main"
        self.found(name, kind).branch(revision, start)
        self._json({})

    def answer_preupload(self, kind: str, name: str, revision: str) -> None:
        """How each file is to come, and what the repository has under its name."""
        import base64

        repository = self.found(name, kind)
        self.writer(name.split("/")[0])
        files, answers = repository.at(revision).files, []
        for asked in json.loads(self.body)["files"]:
            large = is_large(asked["path"], asked["size"], base64.b64decode(asked["sample"]))
            there = files.get(asked["path"])
            # Of a large file the client compares the sha256, of another git's name.
            oid = None if there is None else there.etag
            mode = "lfs" if large else "regular"
            answers.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": answers})

    def answer_batch(self, name: str, sets: str = "") -> None:
        """Where large files are to be sent; what is here already is not sent again."""
        self.found(name, sets=sets)
        self.writer(name.split("/")[0])
        objects = []
        for asked in json.loads(self.body)["objects"]:
            entry: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.large:
                upload = {"href": f"{self.hub.url}/upload/{asked['oid']}", "header": self._parts(**asked)}
                entry["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/verify", "header": {}}}
            objects.append(entry)
        transfer = "multipart" if self.hub.part_size else "basic"
        self._json({"transfer": transfer, "objects": objects}, headers={"Content-Type": "application/vnd.git-lfs+json"})

    def _parts(self, oid: str, size: int) -> dict[str, str]:
        step = self.hub.part_size
        if step is None or size <= step:
            return {}
        count = -(-size // step)
        places = {str(part): f"{self.hub.url}/upload/{oid}/{part}" for part in range(1, count + 1)}
        return {"chunk_size": str(step), **places}

    def answer_upload(self, sha: str, part: str | None = None) -> None:
        """A large file, or a part of one."""
        if part is None:
            self._keep(sha, self.body)
        else:
            self.hub.parts[sha, int(part)] = self.body
        self._send(200, b"", {"ETag": f'"{hashlib.sha256(self.body).hexdigest()}"'})

    def answer_join(self, sha: str) -> None:
        """All parts of a large file have come."""
        numbers = [part["partNumber"] for part in json.loads(self.body)["parts"]]
        self._keep(sha, b"".join(self.hub.parts[sha, number] for number in numbers))
        self._json({})

    def _keep(self, sha: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != sha:
            raise Refused(400, "the content is not what its sha256 says")
        self.hub.large[sha] = content

    def answer_verify(self) -> None:
        """Whether a large file is here, whole."""
        asked = json.loads(self.body)
        if len(self.hub.large.get(asked["oid"], b"")) != asked["size"]:
            raise Refused(404, "the file is not here")
        self._json({})

    def answer_commit(self, kind: str, name: str, revision: str) -> None:
        """All changes of a push at once, on a branch or as a pull request."""
        repository = self.found(name, kind)
        self.writer(name.split("/")[0])
        lines = [json.loads(line) for line in self.body.split(b"\n") if line]
        header = next(line["value"] for line in lines if line["key"] == "header")
        start: Commit = repository.at(revision)
        if header.get("parentCommit") not in (None, start.oid):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files: dict[str, Blob] = repository.changed(start, [x for x in lines if x["key"] != "header"], self.hub.large)
        asked = self.query.get("create_pr") == "1"
        ref = repository.pull_request() if asked else revision
        commit = repository.commit(ref, header["summary"], files, start.oid)
        url = f"{self.hub.url}/{name}"
        answer = {"commitUrl": f"{url}/commit/{commit.oid}", "commitOid": commit.oid, "success": True}
        if asked:
            answer["pullRequestUrl"] = f"{url}/discussions/{ref.rpartition('/')[2]}"
        self._json(answer)


def _wrong(card: Any) -> list[str]:
    """What the Hub would not take of a card's front matter."""
    if not isinstance(card, dict):
        return ["the metadata must be an object"]
    wrong = [
        f'"{name}" must be a text' for name in ("license", "pipeline_tag") if not isinstance(card.get(name, ""), str)
    ]
    index = card.get("model-index", [])
    if not isinstance(index, list) or any(not isinstance(entry, dict) or "name" not in entry for entry in index):
        return [*wrong, '"model-index" must be a list of models with names']
    for result in (result for entry in index for result in entry.get("results", [])):
        if "type" not in result.get("task", {}) or not {"type", "name"} <= set(result.get("dataset", {})):
            wrong.append('each result of "model-index" needs a task and a dataset with type and name')
        if any(not {"type", "value"} <= set(metric) for metric in result.get("metrics", [{}])):
            wrong.append('each metric of "model-index" needs type and value')
    return wrong
