"""Fetch what a recipe names from the Hub into its cache: the only process of a job that goes online."""

from __future__ import annotations

import sys

from nlp_distill.errors import NlpDistillError
from nlp_distill.outcome import leave_outcome


def fetch(path: str) -> None:
    """Models (safetensors only) and tables. Raises what a run would."""
    from nlp_distill.data import read_splits
    from nlp_distill.recipe_file import load_recipe
    from nlp_distill.sources import resolve

    recipe = load_recipe(path)
    models = [teacher.model for teacher in recipe.teachers] + [recipe.student.model]
    for model in models:
        if model is not None:
            resolve(model)
    if recipe.data.files is None:
        read_splits(recipe.data)


def main() -> None:
    """Exit codes as everywhere."""
    try:
        fetch(sys.argv[1])
    except NlpDistillError as error:
        leave_outcome(error)
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
