"""Docs that cannot rot."""

import json
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


def test_the_tables_of_measured_recipes_say_what_their_results_say():
    text = (ROOT / "tasks" / "nlp_distill_tasks" / "classification" / "README.md").read_text(encoding="utf-8")
    measured = [file for file in shipped_recipes().values() if file.with_suffix(".result.json").is_file()]
    for recipe in (file for file in measured if file.parts[-3] == "classification"):
        found = json.loads(recipe.with_suffix(".result.json").read_text(encoding="utf-8"))
        first, *others = found["seeds"]
        if "control" not in first["scores"]:  # `general-then-task`, whose table is beside the other half
            continue
        names = ("teacher", "control", "student", "student-onnx-int8")
        scores = " | ".join(f"{first['scores'][name]:.2f}" for name in names)
        low, high = first["gain_over_control_ci95"]
        gain = f"{first['gain_over_control']:+.2f} ({low:+.2f} to {high:+.2f})"
        more = ", ".join(f"{seed['gain_over_control']:+.2f}".replace("+0.00", "0.00") for seed in others)
        row = f"| {recipe.stem} | {found['metric']} | {scores} | {gain} | {more} |".replace("-", "−")
        assert row.replace(" |  |", " | |") in text.replace("-", "−")


def test_the_readme_says_of_the_quickstarts_what_their_results_say():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("quickstart-qa", "quickstart-seq2seq"):
        kept = json.loads(shipped_recipes()[name].with_suffix(".result.json").read_text(encoding="utf-8"))
        scores = kept["seeds"][0]["scores"]
        of_it = f"({scores['student']:.1f} of {scores['teacher']:.1f}; int8 {scores['student-onnx-int8']:.1f})"
        assert of_it in page and f"{100 * scores['student'] / scores['teacher']:.0f} % of its" in page, (
            f"{name}: {of_it}"
        )


def test_the_tables_of_seeds_say_what_the_results_say():
    checked = 0
    for recipe in shipped_recipes().values():
        kept, room = recipe.with_suffix(".result.json"), recipe.parents[1]
        if room.name not in ("question_answering", "seq2seq") or not kept.is_file():
            continue
        lines = (room / "README.md").read_text(encoding="utf-8").replace("−", "-").split("\n")
        for seed in json.loads(kept.read_text(encoding="utf-8"))["seeds"]:
            if "gain_over_control" in seed:
                low, high = seed["gain_over_control_ci95"]
                gain = f"{seed['gain_over_control']:+.2f} ({low:+.2f} to {high:+.2f})"
                scores = [f"{seed['scores'][name]:.2f}" for name in ("control", "student", "student-onnx-int8")]
                rows = [line for line in lines if line.startswith(f"| {seed['seed']} |")]
                assert any(all(said in row for said in (gain, *scores)) for row in rows), f"{recipe.stem}: {gain}"
                checked += 1
    assert checked >= 11
