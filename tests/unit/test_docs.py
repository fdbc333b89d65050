"""Docs that cannot rot."""

import re
from pathlib import Path

from typer.main import get_command

from nlp_distill.cli import app
from nlp_distill.recipe_file import parse_recipe, shipped_recipes
from nlp_distill.reference import reference

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_reference_of_recipes_is_the_models():
    assert (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8") == reference(), "run `make docs`"


def test_every_recipe_in_the_readme_is_valid():
    recipes = [block for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if "teacher:" in block]
    assert recipes
    for text in recipes:
        parse_recipe(text.encode(), "README.md")
        assert len(text.strip().split("\n")) <= 15


def test_every_command_in_the_readme_exists():
    commands = get_command(app).commands
    used = set(re.findall(r"nlp-distill ([a-z]+)", README))
    assert {"run", "recipes", "predict", "doctor"} <= used <= set(commands)
    for name in re.findall(r"nlp-distill run ([a-z0-9-]+)(?=\s|`)", README):
        assert name in shipped_recipes(), name


def test_every_make_target_in_the_docs_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in (README, (ROOT / "CONTRIBUTING.md").read_text()):
        assert set(re.findall(r"`make ([a-z-]+)`", page)) <= targets


def test_links_between_pages_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
