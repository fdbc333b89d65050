"""nlp_distill: turn a large Hugging Face transformer into a small student that runs on a CPU, and prove it.

``import nlp_distill; run = nlp_distill.run("quickstart", "distill.epochs=3"); run.pipeline()("…")``
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Client": "service.client",
    "NlpDistillError": "errors",
    "UserError": "errors",
    "Recipe": "recipe",
    "load_recipe": "recipe_file",
    "shipped_recipes": "recipe_file",
    "Task": "task",
    "load_task": "task",
    "task_names": "task",
    "layer_map": "layers",
    "read_splits": "data",
    "hub_reachable": "hub_data",
    "require_column": "data",
    "Options": "task",
    "RunDir": "rundir",
    "load_pipeline": "prediction",
    "push": "hub",
    "pull": "hub",
    "Objective": "objective",
    "cut_student": "student",
    "Run": "stages",
    "run": "stages",
}

__all__ = ["__version__", *sorted(_HOMES)]

if TYPE_CHECKING:
    from nlp_distill.data import read_splits as read_splits
    from nlp_distill.data import require_column as require_column
    from nlp_distill.errors import NlpDistillError as NlpDistillError
    from nlp_distill.errors import UserError as UserError
    from nlp_distill.hub import pull as pull
    from nlp_distill.hub import push as push
    from nlp_distill.hub_data import hub_reachable as hub_reachable
    from nlp_distill.layers import layer_map as layer_map
    from nlp_distill.objective import Objective as Objective
    from nlp_distill.prediction import load_pipeline as load_pipeline
    from nlp_distill.recipe import Recipe as Recipe
    from nlp_distill.recipe_file import load_recipe as load_recipe
    from nlp_distill.recipe_file import shipped_recipes as shipped_recipes
    from nlp_distill.rundir import RunDir as RunDir
    from nlp_distill.service.client import Client as Client
    from nlp_distill.stages import Run as Run
    from nlp_distill.stages import run as run
    from nlp_distill.student import cut_student as cut_student
    from nlp_distill.task import Options as Options
    from nlp_distill.task import Task as Task
    from nlp_distill.task import load_task as load_task
    from nlp_distill.task import task_names as task_names


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'nlp_distill' has no attribute '{name}'")
    return getattr(importlib.import_module(f"nlp_distill.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
