"""What verbs share: where they write, and the options that mean the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

err = Console(stderr=True)
out_console = Console()


def say(*lines: str) -> None:
    """Lines of text for a person, as they are."""
    for line in lines:
        out_console.print(line, highlight=False, markup=False, soft_wrap=True)


RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe file, the name of a shipped recipe, or the folder of a run.")
]
OutOption = Annotated[Path | None, typer.Option("--out", help="Folder of the run (default: runs/NAME).")]
OverrideOption = Annotated[list[str] | None, typer.Option("-o", help="Override a setting: key.path=value; repeatable.")]
RedoOption = Annotated[bool, typer.Option("--redo", help="Make stages whose settings changed anew.")]
ControlOption = Annotated[bool, typer.Option("--control", help="Also train the same student on labels only.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
