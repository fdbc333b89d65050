"""`nlp-distill recipes …`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from nlp_distill.verbs.common import JsonOption, OverrideOption, RecipeArgument, out_console, say

app = typer.Typer(help="List, show, copy and check recipes.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def recipes_list(as_json: JsonOption = False) -> None:
    """List the shipped recipes."""
    from nlp_distill.recipe_file import shipped_recipes

    shipped = {name: _summary(path) for name, path in sorted(shipped_recipes().items())}
    if as_json:
        sys.stdout.write(json.dumps(shipped) + "\n")
        return
    width = max(len(name) for name in shipped)
    for name, summary in shipped.items():
        say(f"{name:<{width}}  {summary}")


def _summary(path: Path) -> str:
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.lstrip("# ")


@app.command("show")
def recipes_show(
    name: RecipeArgument,
    resolved: Annotated[bool, typer.Option("--resolved", help="With every default.")] = False,
) -> None:
    """Print a recipe."""
    from nlp_distill.recipe_file import find_recipe, load_recipe, recipe_text, write_recipe

    text = write_recipe(load_recipe(name)) if resolved else recipe_text(find_recipe(name))
    sys.stdout.write(text)


@app.command("copy")
def recipes_copy(
    name: Annotated[str, typer.Argument(help="A shipped recipe, or the name of a task, for example classification.")],
    target: Annotated[Path, typer.Argument(help="The file to write.")],
    data: Annotated[
        str | None,
        typer.Option("--data", help="Your CSV, TSV, JSON lines or Parquet file, or folder of them."),
    ] = None,
    teacher: Annotated[str | None, typer.Option("--teacher", help="Your teacher: a folder or Hub id.")] = None,
) -> None:
    """Write a recipe to edit, with the columns of your data guessed."""
    from nlp_distill.starter import copy_recipe

    for line in copy_recipe(name, target, data, teacher):
        say(line)


@app.command("validate")
def recipes_validate(name: RecipeArgument, override: OverrideOption = None) -> None:
    """Check a recipe; every problem is listed at once."""
    from nlp_distill.recipe_file import load_recipe
    from nlp_distill.task import load_task

    recipe = load_recipe(name, override or [])
    load_task(recipe.task, recipe.options).check_roles(recipe.data.columns)
    out_console.print(f"{name}: valid (sha256 {recipe.sha256()[:12]})", highlight=False)


@app.command("schema")
def recipes_schema() -> None:
    """Print the JSON Schema of recipes."""
    from nlp_distill.recipe import Recipe

    sys.stdout.write(json.dumps(Recipe.model_json_schema(), indent=2) + "\n")
