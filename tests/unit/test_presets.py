"""Named distillations are phases that a recipe could have written, with settings on top of each."""

import pytest

from nlp_distill.errors import RecipeInvalid
from nlp_distill.objective import Objective
from nlp_distill.presets import PRESETS
from nlp_distill.recipe import Distill
from nlp_distill.recipe_file import parse_recipe, write_recipe
from nlp_distill.task import load_task
from nlp_distill.terms import HiddenTerm
from nlp_distill.testing import tiny_config

BASE = "task: classification\ndata: {dataset: d}\nteacher: {model: m}\nstudent: {layers: 2}\n"


def parsed(distill, *overrides):
    return parse_recipe(f"{BASE}distill: {distill}\n".encode(), "r.yaml", overrides)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_each_name_gives_its_phases_and_reads_back_the_same(name):
    recipe = parsed(f"{{recipe: {name}}}")
    assert recipe.distill.recipe == name and len(recipe.distill.phases) == len(PRESETS[name])
    assert parse_recipe(write_recipe(recipe).encode(), "again").sha256() == recipe.sha256()
    assert name in str(Distill.model_json_schema())


def test_settings_beside_the_name_hold_in_every_phase():
    recipe = parsed("{recipe: tinybert, epochs: 7, supervise: last}", "distill.learning_rate=3e-4")
    assert [phase.epochs for phase in recipe.distill.phases] == [7, 7]
    assert recipe.distill.phases[1].supervise == "last"
    assert recipe.distill.phases[0].learning_rate == 3e-4
    assert [term.kind for term in recipe.distill.phases[0].losses] == ["hidden", "attention"]


def test_a_name_on_the_command_line_replaces_written_terms():
    recipe = parsed("{epochs: 2, losses: [{kind: labels}]}", "distill.recipe=minilm")
    assert recipe.distill.recipe == "minilm" and recipe.distill.phases[0].losses[0].kind == "relation"
    assert [phase.epochs for phase in recipe.distill.phases] == [2, 2]


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(RecipeInvalid, match="tinybert"):
        parsed("{recipe: tinybertt}")


def test_a_term_may_be_about_the_last_layer_only():
    config = tiny_config("bert")
    task = load_task("classification")
    objective = Objective([HiddenTerm(layers="last")], task, config, config, {"encoder": [0, 1, 3]})
    assert objective.teacher_request.hidden == frozenset({("encoder", 3)})
    assert objective.student_request.hidden == frozenset({("encoder", 2)})


def test_another_name_leaves_nothing_of_the_one_before():
    """A run's recipe is written whole: that targets are the teacher's came with `seqkd`, not from the user."""
    resolved = write_recipe(parsed("{recipe: seqkd, epochs: 2, learning_rate: 4e-4}"))
    recipe = parse_recipe(resolved.encode(), "run", ["distill.recipe=distilbart"])
    (phase,) = recipe.distill.phases
    assert (phase.targets, phase.epochs, phase.learning_rate) == ("data", 2, 4e-4)


def test_an_override_adds_no_phase():
    with pytest.raises(RecipeInvalid, match="there is nothing at '1'"):
        parsed("{losses: [{kind: labels}]}", "distill.phases.1.epochs=3")


def test_an_override_adds_a_term():
    recipe = parsed("{losses: [{kind: labels}]}", "distill.losses.1.kind=logits")
    assert [term.kind for term in recipe.distill.phases[0].losses] == ["labels", "logits"]


@pytest.mark.parametrize("override", ["distill.recipe", "teacher={modle: b}", "export=[{format: onx}]"])
def test_an_override_of_a_whole_part_is_named_where_it_is_wrong(override):
    with pytest.raises(RecipeInvalid, match=r"-o[ :]"):
        parsed("{losses: [{kind: labels}]}", override)
