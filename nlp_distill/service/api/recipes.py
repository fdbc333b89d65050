"""Recipes: checked, estimated, described. Nothing here changes anything."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from fastapi import APIRouter
from sqlalchemy import select

from nlp_distill.errors import RecipeError, RecipeInvalid
from nlp_distill.recipe import Recipe
from nlp_distill.recipe_file import parse_recipe, recipe_text, shipped_recipes, write_recipe
from nlp_distill.service.api.models import Estimate, Listed, RecipeRequest, Resolved, Template
from nlp_distill.service.api.service import Reader, Served, Service
from nlp_distill.service.launch import PASSED_ON
from nlp_distill.service.references import localised, references, refused
from nlp_distill.service.store.tables import files, jobs
from nlp_distill.task import task_names
from nlp_distill.web.problems import Place, Problem, problems

router = APIRouter(tags=["recipes"])
SOURCE = "recipe"


def read_recipe(service: Service, given: dict[str, Any] | str) -> Recipe:
    """A recipe as it was sent. Raises `Problem` with every place that is wrong."""
    try:
        # JSON is YAML; one reader, one set of limits, one kind of message.
        text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False, allow_nan=False)
        recipe = parse_recipe(text.encode(), SOURCE)
    except RecipeInvalid as error:
        raise _invalid([_place(problem) for problem in error.problems]) from error
    except RecipeError as error:
        raise Problem(422, "invalid_recipe", str(error)) from error
    except (ValueError, RecursionError) as error:
        raise Problem(422, "invalid_recipe", "The recipe cannot be read: it is nested too deeply.") from error
    wrong = [
        Place(pointer=reference.pointer, message=reason)
        for reference in references(recipe.resolved())
        if (reason := refused(reference, lambda name: _known(service, name)))
    ]
    if recipe.task not in task_names():
        wrong.append(Place(pointer="/recipe/task", message=f"installed tasks are {', '.join(task_names())}"))
    if wrong:
        raise _invalid(wrong)
    return recipe


def _invalid(places: list[Place]) -> Problem:
    said = "; ".join(f"{place.pointer}: {place.message}" for place in places[:2])
    more = f" (and {len(places) - 2} more)" if len(places) > 2 else ""
    return Problem(422, "invalid_recipe", f"The recipe needs correcting: {said}{more}.", errors=places[:20])


def _place(problem: str) -> Place:
    """`line 3: distill.epochs: message` as a place."""
    _, _, rest = problem.partition(": ")
    dotted, _, message = rest.partition(": ")
    pointer = "/recipe/" + dotted.replace(".", "/") if dotted != SOURCE else "/recipe"
    return Place(pointer=pointer[:300], message=(message or rest)[:500])


def _known(service: Service, name: str) -> bool:
    if name.startswith("file_"):
        wanted = select(files.c.id).where(files.c.id == name)
    else:
        wanted = select(jobs.c.id).where(jobs.c.id == name, jobs.c.status == "succeeded")
    with service.database.reading() as connection:
        return connection.execute(wanted).first() is not None


def place_of(service: Service, name: str) -> str:
    """Where an id lies on this machine."""
    if name.startswith("job_"):
        return str(service.home.run(name))
    with service.database.reading() as connection:
        ending = connection.execute(select(files.c.ending).where(files.c.id == name)).scalar_one()
    return str(service.home.file(name, ending))


@router.post("/v1/recipes:validate", responses=problems(422))
def validate(request: RecipeRequest, service: Served, _: Reader) -> Resolved:
    """Check a recipe; every problem at once."""
    recipe = read_recipe(service, request.recipe)
    return Resolved(recipe=recipe.resolved(), recipe_sha256=recipe.sha256(), yaml=write_recipe(recipe))


@router.post("/v1/recipes:estimate", responses=problems(422, 429, 503))
async def estimate(request: RecipeRequest, service: Served, _: Reader) -> Estimate:
    """Say what a run will take: parameters, memory, disk, steps, time. Reads the data, no weights."""
    recipe = await asyncio.to_thread(read_recipe, service, request.recipe)
    local = localised(recipe.resolved(), lambda name: place_of(service, name))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text(yaml.safe_dump(local), encoding="utf-8")
        work = Path(folder) / "work"
        work.mkdir()
        return Estimate(**await beside(service, work, "nlp_distill.cli", "estimate", str(file), "--json"))


async def beside(service: Service, folder: Path, *arguments: str) -> dict[str, Any]:
    """What a module says on its standard output, in a process of its own with a time limit. Raises `Problem`."""
    if service.side.locked():
        raise Problem(429, "busy", "Others are being looked at; ask again.", {"Retry-After": "2"})
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    async with service.side:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *arguments,
            cwd=folder,
            env={**environment, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, said = await asyncio.wait_for(process.communicate(), service.limits.side_process_s)
        except asyncio.TimeoutError:
            raise Problem(503, "too_slow", "It took too long to look at; submit it as a job.") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if process.returncode == 2:
        lines = [line for line in said.decode("utf-8", "replace").splitlines() if line.startswith("Error: ")]
        sentence = (lines or ["Error: it cannot be read"])[-1].removeprefix("Error: ")
        raise Problem(422, "invalid_recipe", without_places(service, sentence)[:1000])
    if process.returncode != 0:
        raise Problem(503, "look_failed", "It could not be looked at here; submit it as a job to see why.")
    found: dict[str, Any] = json.loads(out)
    return found


def without_places(service: Service, sentence: str) -> str:
    """A message without the places of this machine."""
    for folder in (service.home.files, service.home.jobs, service.home.path, Path(tempfile.gettempdir())):
        sentence = sentence.replace(f"{folder}/", "")
    return sentence


@router.get("/v1/recipes/schema")
def schema(_: Reader) -> dict[str, Any]:
    """The JSON Schema of resolved recipes."""
    return Recipe.model_json_schema()


@router.get("/v1/templates")
def templates(_: Reader) -> Listed[Template]:
    """The recipes that ship."""
    found = [(name, recipe_text(path)) for name, path in sorted(shipped_recipes().items())]
    return Listed(
        data=[Template(name=name, summary=text.split("\n", 1)[0].lstrip("# "), yaml=text) for name, text in found]
    )
