"""Publish a run to the Hugging Face Hub in one commit, and fetch what was published.

`huggingface_hub` reads the token, from HF_TOKEN or what `hf auth login` left; nothing here hands it on, and what is
published is searched for it first.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from logging import ERROR
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from nlp_distill.errors import (
    CardUntrue,
    CollectionRefused,
    FileExists,
    PublishRefused,
    ResultsMissing,
    RunFolderDamaged,
    RunFolderNotFound,
    SecretFound,
)
from nlp_distill.hub_trouble import LOG_IN, OFFLINE, bars, explained, offline, publishing
from nlp_distill.rundir import RunDir, new_folder, read_json, sha256_file
from nlp_distill.sources import HUB_FILES, HUB_ID, PICKLES, REVISION, hub_id, resolve
from nlp_distill.strict_yaml import front_matter
from nlp_distill.vetting import check_folder

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PLACE = "path/to/model"
"""What a card calls its own model; in a published card its id stands there."""
EXPORTS = ("onnx/", "openvino/", "mobile/")
TEXTS = (".md", ".json", ".yaml", ".txt", ".svg")
MAX_TEXT = 64 << 20
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Published:
    """What a push did. `files`: path in the repository → bytes; `commit` and `url` are None after a dry run."""

    repository: str
    files: dict[str, int]
    removed: list[str] = field(default_factory=list)
    changed: bool = False
    commit: str | None = None
    url: str | None = None


def push(
    run: str | Path,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    collection: str | None = None,
    dry_run: bool = False,
    say: Say = lambda line: None,
) -> Published:
    """Publish a finished run as one commit: model, tokenizer, exports, card, recipe and results.

    What has not changed is not sent again, and nothing is committed when nothing has changed. `repository`:
    `org/name`, made if it is not there; `revision`: a branch, made if it is not there; `collection`: the slug or the
    title of one. Raises `PublishRefused`, `PublishFailed`, `ResultsMissing`, `RunFolderDamaged`, `CardUntrue`,
    `SecretFound`, `CollectionRefused`.
    """
    check_names(repository, revision, create_pr)
    files = _checked(Path(run), repository)
    sizes = {path: len(file) if isinstance(file, bytes) else file.stat().st_size for path, file in files.items()}
    if dry_run:
        return Published(repository, sizes)
    api = _api(repository)
    with publishing(repository), _quiet():
        _prepare(api, repository, private, revision)
        slug = _collection(api, repository, collection)
        head = api.model_info(repository, revision=revision)
        there = [file.rfilename for file in head.siblings or []]
        if "config.json" in there and "student.json" not in there:
            raise PublishRefused(
                repository=repository, reason="it holds a model that was made elsewhere", fix="Choose another name."
            )
        removed = [path for path in there if path not in files and _ours(path)]
        say(f"{len(files)} files, {sum(sizes.values()) / 1e6:,.1f} MB; what is there already is not sent")
        done = api.create_commit(
            repository,
            [*_additions(files), *_deletions(removed)],
            commit_message=_message(Path(run)),
            revision=revision,
            create_pr=create_pr,
            parent_commit=head.sha,
        )
    published = Published(repository, sizes, removed, done.oid != head.sha, done.oid, done.pr_url or done.commit_url)
    if slug is not None:
        _collect(api, repository, slug)
    return published


def check_names(repository: str, revision: str | None, create_pr: bool) -> None:
    """Raises `PublishRefused` for what can be no repository or branch."""
    if "/" not in repository or not HUB_ID.fullmatch(repository) or repository.endswith((".git", ".", "-")):
        fix = "Names look like org/name: letters, digits, `-`, `_` and `.`."
        raise PublishRefused(repository=repository, reason="it is not the name of a repository", fix=fix)
    if revision is not None and not REVISION.fullmatch(revision):
        fix = "Give the name of a branch."
        raise PublishRefused(repository=repository, reason=f"'{revision}' is not a revision", fix=fix)
    if create_pr and revision not in (None, "main"):
        fix = "Leave out the revision, or the pull request."
        raise PublishRefused(repository=repository, reason="pull requests are against main", fix=fix)


def check_access(repository: str, create_pr: bool = False) -> None:
    """Ask the Hub whether the token may write there, before a long run. Raises `PublishRefused`, `PublishFailed`.

    A pull request may go to anybody's repository.
    """
    api = _api(repository)
    with publishing(repository):
        who = api.whoami()
    owners = [who["name"], *(organization["name"] for organization in who.get("orgs", []))]
    owner = repository.split("/")[0]
    role = who.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise PublishRefused(repository=repository, reason="the token may only read", fix=LOG_IN)
    if owner not in owners and not create_pr:
        reason, fix = f"the token is of {', '.join(owners)}", "Choose a name under one of these."
        raise PublishRefused(repository=repository, reason=reason, fix=fix)


def _api(repository: str) -> HfApi:
    from huggingface_hub import HfApi, get_token

    if offline():
        raise PublishRefused(repository=repository, reason=OFFLINE, fix="Unset HF_HUB_OFFLINE, or use --dry-run.")
    if get_token() is None:
        raise PublishRefused(repository=repository, reason="there is no token", fix=LOG_IN)
    return HfApi(library_name="nlp-distill")


@contextmanager
def _quiet() -> Iterator[None]:
    """The library's bars on a terminal only; its advice never."""
    from huggingface_hub.utils import logging
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    level, shown = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity(ERROR)
    if not bars():
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            enable_progress_bars()


# What is published


def publication(run: Path, repository: str) -> dict[str, Path | bytes]:
    """Path in the repository → file; the card as it will read there. Raises `RunFolderNotFound`, `ResultsMissing`."""
    rundir = RunDir(run)
    if not rundir.exists():
        raise RunFolderNotFound(folder=run)
    card = rundir.model / "README.md"
    if not rundir.results.is_file() or "results" not in rundir.manifest().get("stages", {}):
        raise ResultsMissing(folder=run)
    if not card.is_file():
        raise CardUntrue(file=card, reason="it is not there")
    found = (file for file in sorted(rundir.model.rglob("*")) if file.is_file())
    inside = {file.relative_to(rundir.model).as_posix(): file for file in found}
    files: dict[str, Path | bytes] = {path: file for path, file in inside.items() if not _hidden(path)}
    files["README.md"] = card.read_text(encoding="utf-8").replace(PLACE, repository).encode()
    return {**files, "recipe.yaml": rundir.recipe, "results.json": rundir.results}


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _checked(run: Path, repository: str) -> dict[str, Path | bytes]:
    """The files of a publication, once it is sure that they are what was measured and hold no secret."""
    files = publication(run, repository)
    rundir = RunDir(run)
    check_folder(rundir.model)
    # OpenVINO's weights end like pickles.
    if pickles := [path for path in files if path.endswith(PICKLES) and not path.startswith("openvino/")]:
        raise PublishRefused(repository=repository, reason=f"{pickles[0]} may be a pickle", fix="Remove it.")
    made = rundir.manifest()["stages"]
    for stage in ("distill", "export", "results"):
        for name, sha256 in made.get(stage, {}).get("outputs", {}).items():
            file = rundir.path / name
            if not file.is_file() or sha256_file(file) != sha256:
                raise RunFolderDamaged(file=file, reason="it is not the file that was measured")
    check_card(rundir)
    _search(files)
    return files


def check_card(rundir: RunDir) -> None:
    """Whether the numbers in the card's metadata are those of `results.json`. Raises `CardUntrue`."""
    card = rundir.model / "README.md"
    try:
        said = front_matter(card.read_text(encoding="utf-8"))
        told = {
            (metric["name"], metric["value"])
            for model in said.get("model-index", [])
            for result in model["results"]
            for metric in result["metrics"]
        }
    except (yaml.YAMLError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CardUntrue(file=card, reason="its metadata cannot be read") from error
    known = {
        (f"{name} ({variant['name']})", value)
        for variant in read_json(rundir.results)["variants"]
        for name, value in (variant["score"] or {}).items()
    }
    if untrue := sorted(told - known):
        raise CardUntrue(file=card, reason=f"{untrue[0][0]} is {untrue[0][1]} there, and not so in results.json")


def _search(files: dict[str, Path | bytes]) -> None:
    """Raises `SecretFound` where a text holds a token of the Hub, this user's or another."""
    from huggingface_hub import get_token

    own = get_token()
    for path, file in files.items():
        if not path.endswith(TEXTS) or (isinstance(file, Path) and file.stat().st_size > MAX_TEXT):
            continue
        text = (file if isinstance(file, bytes) else file.read_bytes()).decode("utf-8", errors="replace")
        if (own and own in text) or TOKEN.search(text):
            raise SecretFound(file=path, what="a token of the Hub")


# The commit


def _prepare(api: HfApi, repository: str, private: bool, revision: str | None) -> None:
    """Make the repository and the branch that are not there."""
    api.create_repo(repository, private=private or None, exist_ok=True)
    if private and not api.model_info(repository).private:
        fix = "Make it private on the Hub first, or choose another name."
        raise PublishRefused(repository=repository, reason="it is public, and --private was asked for", fix=fix)
    if revision not in (None, "main") and not str(revision).startswith("refs/"):
        api.create_branch(repository, branch=str(revision), exist_ok=True)


def _ours(path: str) -> bool:
    """Whether an earlier push put a file there: weights, tokenizer, exports; what else there is stays."""
    kept = ("README.md",)
    # The star of a pattern would cross folders.
    at_the_top = "/" not in path and any(fnmatch(path, name) for name in HUB_FILES if name not in kept)
    return path.startswith(EXPORTS) or at_the_top


def _additions(files: dict[str, Path | bytes]) -> Iterator[Any]:
    from huggingface_hub import CommitOperationAdd

    return (CommitOperationAdd(path, file) for path, file in files.items())


def _deletions(paths: list[str]) -> Iterator[Any]:
    from huggingface_hub import CommitOperationDelete

    return (CommitOperationDelete(path) for path in paths)


def _message(run: Path) -> str:
    results = read_json(RunDir(run).results)
    teacher = (results.get("teacher") or {}).get("name")
    return f"nlp_distill: {results['task']} student" + (f" of {teacher}" if teacher else "")


def _collection(api: HfApi, repository: str, collection: str | None) -> str | None:
    """The slug of a collection; a title that has none yet makes one."""
    if collection is None:
        return None
    if "/" in collection:
        return str(api.get_collection(collection).slug)
    owner = repository.split("/")[0]
    return str(api.create_collection(collection, namespace=owner, exists_ok=True).slug)


def _collect(api: HfApi, repository: str, slug: str) -> None:
    from huggingface_hub.errors import HfHubHTTPError
    from requests import RequestException

    try:
        api.add_collection_item(slug, repository, "model", exists_ok=True)
    except (HfHubHTTPError, RequestException) as error:
        found = explained(repository, error)
        said = {"reason": found.fields["reason"], "fix": found.fields.get("fix", "Run the same command again.")}
        raise CollectionRefused(repository=repository, collection=slug, **said) from error


def pull(reference: str, folder: str | Path | None = None) -> Path:
    """Fetch a published model with all its exports into a folder (default: its name, here).

    A download that broke off goes on where it was. Raises `ModelNotFound`, `HubUnreachable`, `FileExists` and what
    the loading door raises.
    """
    repository, _ = hub_id(reference)
    target = Path(folder or repository.rpartition("/")[2])
    if target.exists():
        raise FileExists(path=target)
    with _quiet():
        source = resolve(reference, exports=True)
    with new_folder(target) as temporary:
        for file in (file for file in sorted(source.folder.rglob("*")) if file.is_file()):
            place = temporary / file.relative_to(source.folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            # The cache keeps links to blobs; a folder of one's own has the files.
            shutil.copyfile(file.resolve(), place)
    return target
