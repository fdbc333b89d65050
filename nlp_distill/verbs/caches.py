"""`nlp-distill cache …`."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from nlp_distill.verbs.common import JsonOption, out_console, say

app = typer.Typer(help="List and remove cached teachers' signals.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def cache_list(as_json: JsonOption = False) -> None:
    """List what runs keep of their teachers: whose signals, of which data, how precise, how large, last used when."""
    from nlp_distill.display import caches_table
    from nlp_distill.shelf import shelved, teachers_folder

    entries = shelved()
    if as_json:
        sys.stdout.write(json.dumps([entry.line() for entry in entries]) + "\n")
        return
    if entries:
        out_console.print(caches_table(entries))
    total = sum(entry.size for entry in entries)
    out_console.print(f"{len(entries)} in {teachers_folder()}, {total / 1e6:,.1f} MB", highlight=False, soft_wrap=True)


@app.command("prune")
def cache_prune(
    older_than: Annotated[
        str, typer.Option("--older-than", help="Remove what was not used for so long: 30d, 12h, 45m.")
    ] = "30d",
    everything: Annotated[bool, typer.Option("--all", help="Remove all of it.")] = False,
) -> None:
    """Remove what was not used lately, and what killed runs left; what a later run needs it makes again."""
    from nlp_distill.shelf import age, prune

    removed = prune(0.0 if everything else age(older_than))
    for entry in removed:
        say(f"{entry.folder.name}: {entry.line()['teacher']}, {entry.size / 1e6:,.1f} MB")
    out_console.print(f"freed {sum(entry.size for entry in removed) / 1e6:,.1f} MB", highlight=False)
