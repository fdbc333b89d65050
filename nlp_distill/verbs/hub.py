"""`nlp-distill push` and `nlp-distill pull`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nlp_distill.verbs.common import JsonOption, err, say

if TYPE_CHECKING:
    from nlp_distill.hub import Published


def push(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    repository: Annotated[str, typer.Argument(help="org/name; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Make it private.")] = False,
    revision: Annotated[str | None, typer.Option("--revision", help="A branch; made if it is not there.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")] = False,
    collection: Annotated[str | None, typer.Option("--collection", help="Slug or title of a collection.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be published; ask nobody.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Publish a run to the Hugging Face Hub in one commit. The token comes from HF_TOKEN or `hf auth login`."""
    from nlp_distill.hub import push as publish

    done = publish(
        run,
        repository,
        private=private,
        revision=revision,
        create_pr=create_pr,
        collection=collection,
        dry_run=dry_run,
        say=lambda line: err.print(f"  {line}", highlight=False, markup=False, soft_wrap=True),
    )
    if as_json:
        sys.stdout.write(json.dumps(asdict(done)) + "\n")
        return
    say(*_told(done, dry_run))


def _told(done: Published, dry_run: bool) -> list[str]:
    if dry_run:
        width = max(len(path) for path in done.files)
        lines = [f"{path:<{width}}  {size:>13,}" for path, size in sorted(done.files.items())]
        total = sum(done.files.values())
        return [*lines, f"{len(lines)} files, {total / 1e6:,.1f} MB, for {done.repository}; nothing was sent"]
    if not done.changed:
        return [f"{done.repository} has all of it already; nothing was committed"]
    removed = [f"removed: {', '.join(done.removed)}"] if done.removed else []
    return [*removed, f"published: {done.url}", f"  nlp-distill predict {done.repository} 'A text of yours.'"]


def pull(
    reference: Annotated[str, typer.Argument(help="org/name, or org/name@revision.")],
    folder: Annotated[Path | None, typer.Argument(help="Where to put it (default: its name, here).")] = None,
) -> None:
    """Fetch a published model with all its exports, card, recipe and results into a folder."""
    from nlp_distill.hub import pull as fetch

    say(str(fetch(reference, folder)))
