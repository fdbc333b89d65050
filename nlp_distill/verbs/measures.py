"""`nlp-distill measure`: models side by side, or a run as far as its measurements."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from nlp_distill.errors import NotMeasurable
from nlp_distill.verbs.common import JsonOption, OutOption, OverrideOption, RedoOption, err, out_console, say

Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL…",
        help="Model folders, their .onnx or .safetensors files, finished runs, package: references, Hub ids. Or one "
        "recipe, or a run that has no results yet: it then goes on until every variant is measured.",
    ),
]


def add(app: typer.Typer, go_on: Callable[..., None]) -> None:
    """Register the verb. `go_on`: takes a recipe as far as a stage."""

    @app.command("measure")
    def measure(
        models: Models,
        against: Annotated[
            str | None, typer.Option("--against", help="A model that all others are compared with: ratios, agreement.")
        ] = None,
        data: Annotated[
            str | None,
            typer.Option("--data", help="Score on these rows: a Hub dataset, sample:NAME, a folder or a file."),
        ] = None,
        task: Annotated[str | None, typer.Option("--task", help="What the data are for.")] = None,
        length: Annotated[
            list[int] | None, typer.Option("--length", min=1, help="Tokens; repeatable (default: 32, 128, 384).")
        ] = None,
        batch: Annotated[
            list[int] | None, typer.Option("--batch", min=1, help="Rows in a call; repeatable (default: 1, 8).")
        ] = None,
        threads: Annotated[
            list[int] | None, typer.Option("--threads", min=1, help="Threads; repeatable (default: 1 and all).")
        ] = None,
        rounds: Annotated[int, typer.Option("--rounds", min=3, help="Blocks of calls each; more: narrower.")] = 15,
        out: OutOption = None,
        override: OverrideOption = None,
        redo: RedoOption = False,
        as_json: JsonOption = False,
    ) -> None:
        """Measure any models side by side: score, agreement, latency, throughput, load time, memory, size."""
        of_recipe = bool(out or override or redo)
        of_model = bool(against or data or task or length or batch or threads)
        if one_recipe(models, of_recipe, of_model):
            go_on(models[0], out, override, redo, False, "measure", as_json)
            return
        from nlp_distill.comparing.measure import BATCHES, LENGTHS, measure_models
        from nlp_distill.display import Display

        with Display(err if as_json else out_console) as display:
            found = measure_models(
                models,
                against,
                data,
                task,
                length or LENGTHS,
                batch or BATCHES,
                sorted({*threads}) if threads else None,
                rounds,
                display.notify,
            )
        show(found, as_json)


def one_recipe(models: list[str], of_recipe: bool, of_model: bool) -> bool:
    """Whether a recipe is to go on, and not models to be measured. Raises `NotMeasurable` where nobody can say.

    A recipe is a .yaml file, the name of a shipped recipe, a run that has no results yet, or a run with one of the
    options of a run (--out, -o, --redo).
    """
    recipes = [name for name in models if is_recipe(name) or of_recipe]
    if not recipes:
        for name in models:
            _refuse_unknown(name)
        return False
    if len(models) > 1:
        raise NotMeasurable(
            reference=recipes[0], reason="it is a recipe or a run to go on with", fix="Give it alone, or models only."
        )
    if of_model:
        fix = "Finish the run first, or leave out the options that are about models."
        raise NotMeasurable(reference=recipes[0], reason="it is a recipe or a run to go on with", fix=fix)
    return True


def is_recipe(name: str) -> bool:
    """Whether a name stands for something to go on with."""
    from nlp_distill.recipe_file import shipped_recipes
    from nlp_distill.rundir import RunDir

    path = Path(name)
    if path.is_dir():
        run = RunDir(path)
        return run.exists() and not run.results.is_file()
    return path.suffix in (".yaml", ".yml") or (not path.exists() and name in shipped_recipes())


def _refuse_unknown(name: str) -> None:
    """A bare word that is nothing here: a mistyped recipe or folder, or a Hub id that must say so."""
    from nlp_distill.recipe_file import shipped_recipes

    if Path(name).exists() or {"/", "@", ":"} & {*name}:
        return
    near = difflib.get_close_matches(name, shipped_recipes(), n=1)
    hint = f" (did you mean the recipe {near[0]}?)" if near else ""
    raise NotMeasurable(
        reference=name,
        reason=f"there is no recipe, file or folder of this name{hint}",
        fix=f"A model of the Hub is org/name, or {name}@main where it has no organisation.",
    )


def show(found: dict[str, Any], as_json: bool) -> None:
    """The tables and what follows from them, or all of it as JSON."""
    if as_json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    from nlp_distill.comparing.tables import findings, latency_table, models_table

    out_console.width = max(out_console.width, 100)
    out_console.print(models_table(found))
    out_console.print(latency_table(found))
    for line in findings(found):
        say(line)
