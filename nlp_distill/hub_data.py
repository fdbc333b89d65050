"""Tables of a dataset on the Hub: the repository's own CSV, TSV, JSON lines and Parquet files, and nothing else.

A dataset's card may name files by URL, through archives or on this machine; such cards are refused before
`datasets` follows them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlp_distill.errors import DataNotFound, DataUnsafe, HubUnreachable
from nlp_distill.hub_trouble import offline_mode, reason
from nlp_distill.sources import HUB_ID, MAX_CARD, REVISION
from nlp_distill.strict_yaml import front_matter

if TYPE_CHECKING:
    from datasets import DatasetDict

BUILDERS = {"csv", "json", "parquet", "cache"}
ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
CARDS = ("README.md", ".huggingface.yaml")
ELSEWHERE = re.compile(r"://|::|^[/\\~]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)")
FIX = "To work offline set data.files to a local folder with train and validation files."


def load_hub_tables(name: str, config: str | None, revision: str | None) -> DatasetDict:
    """All splits of a dataset. Raises `DataNotFound`, `DataUnsafe`, `HubUnreachable`."""
    repository, config = ("nyu-mll/glue", name.removeprefix("glue/")) if name.startswith("glue/") else (name, config)
    check_names(name, repository, revision)
    from datasets import load_dataset_builder
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import (
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from requests import RequestException

    offline = "for data set data.files to a local folder"
    # Offline mode reads the cache at once; without it, libraries would retry for minutes.
    if not offline_mode() and not hub_reachable():
        raise HubUnreachable(reference=name, reason=f"no connection; {offline}")
    try:
        commit = revision if offline_mode() else _vetted_commit(name, repository, revision)
        builder = load_dataset_builder(repository, config, revision=commit)
        check_builder(name, repository, builder)
        builder.download_and_prepare()
        loaded: DatasetDict = builder.as_dataset()
    except (DatasetNotFoundError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise DataNotFound(name=name, reason="the Hub has no such dataset, or it is private", fix=FIX) from error
    except (ConnectionError, OfflineModeIsEnabled, HfHubHTTPError, RequestException) as error:
        raise HubUnreachable(reference=name, reason=f"{reason(error)}; {offline}") from error
    except ValueError as error:
        raise DataNotFound(name=name, reason=str(error).split("\n")[0], fix="Set data.config.") from error
    except (DatasetsError, FileNotFoundError, RuntimeError) as error:
        # A loading script, no tables at all, or tables that do not go together; the last says why one step down.
        cause = (isinstance(error, DatasetGenerationError) and error.__cause__) or error
        if isinstance(cause, OSError) and cause is not error:
            raise cause from None
        raise DataNotFound(name=name, reason=str(cause).split("\n")[0].rstrip("."), fix=FIX) from error
    return loaded


def check_names(name: str, repository: str, revision: str | None) -> None:
    """Only Hub ids: no URL, no chained filesystem, no builder of `datasets`. Raises `DataNotFound`."""
    builtin = "/" not in repository and repository.lower() in (
        "csv",
        "json",
        "parquet",
        "text",
        "pandas",
        "arrow",
        "xml",
    )
    if builtin or not HUB_ID.fullmatch(repository) or (revision is not None and not REVISION.fullmatch(revision)):
        raise DataNotFound(
            name=name,
            reason="it is neither a file or folder here nor the id of a dataset on the Hub",
            fix="Ids look like org/name; download what a URL names first.",
        )


def _vetted_commit(name: str, repository: str, revision: str | None) -> str:
    """The commit that a revision is now, once its cards were read: what is checked is what is loaded."""
    from huggingface_hub import HfApi, hf_hub_download

    found = HfApi().dataset_info(repository, revision=revision)
    commit = str(found.sha)
    for card in {file.rfilename for file in found.siblings or []} & {*CARDS}:
        check_card(name, Path(hf_hub_download(repository, card, repo_type="dataset", revision=commit)))
    return commit


def check_card(name: str, file: Path) -> None:
    """Refuse a card whose files lie outside its repository. Raises `DataUnsafe`."""
    import yaml

    if file.stat().st_size > MAX_CARD:
        raise DataUnsafe(name=name, reason=f"its {file.name} has more than {MAX_CARD >> 20} MiB", fix=FIX)
    text = file.read_text(encoding="utf-8")
    try:
        card = front_matter(text if file.suffix == ".md" else f"---\n{text}\n---")
        texts = [*_texts((card or {}).get("configs"), set())]
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:
        raise DataUnsafe(name=name, reason=f"its {file.name} cannot be read", fix=FIX) from error
    away = [value for value in texts if ELSEWHERE.search(value)]
    if away:
        raise DataUnsafe(name=name, reason=f"its {file.name} names {away[0]!r}, outside the repository", fix=FIX)


def _texts(value: Any, seen: set[int]) -> Iterator[str]:
    """All texts in plain data, each part once however often it is referred to."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list) and id(value) not in seen:
        seen.add(id(value))
        for child in (*value.keys(), *value.values()) if isinstance(value, dict) else value:
            yield from _texts(child, seen)


def check_builder(name: str, repository: str, builder: Any) -> None:
    """Only tables, and only those of the repository. Raises `DataUnsafe`."""
    modules = [kind.__module__.split(".") for kind in type(builder).__mro__]
    kinds = {parts[2] for parts in modules if parts[:2] == ["datasets", "packaged_modules"]}
    if not kinds or not kinds <= BUILDERS:
        found = ", ".join(sorted(kinds)) or "something else"
        raise DataUnsafe(name=name, reason=f"it is not made of CSV, JSON lines or Parquet files ({found})", fix=FIX)
    for split in (builder.config.data_files or {}).values():
        for file in map(str, split):
            inside = file.removeprefix(f"hf://datasets/{repository}@")
            if inside == file or ELSEWHERE.search(inside) or not inside.endswith(ENDINGS):
                raise DataUnsafe(name=name, reason=f"its file {file!r} is no table of the repository", fix=FIX)


def hub_reachable(seconds: float = 3.0) -> bool:
    """Whether the Hub answers at all: asked before libraries that would retry for minutes."""
    import socket
    from urllib.parse import urlsplit
    from urllib.request import getproxies, proxy_bypass

    if offline_mode():
        return False
    url = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    proxies = getproxies()
    if (proxy := proxies.get(url.scheme) or proxies.get("all")) and not proxy_bypass(url.hostname or ""):
        # The proxy asks for us, as the libraries let it.
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    try:
        port = url.port or (80 if url.scheme == "http" else 443)
        with socket.create_connection((url.hostname or "", port), timeout=seconds):
            return True
    except OSError:
        return False
