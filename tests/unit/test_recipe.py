import json

import pytest
import yaml

from nlp_distill.errors import RecipeInvalid, RecipeNotFound, RecipeUnreadable
from nlp_distill.losses import LOSSES
from nlp_distill.overrides import read_value
from nlp_distill.recipe import Recipe
from nlp_distill.recipe_file import load_recipe, parse_recipe, shipped_recipes, write_recipe

GOOD = """
task: classification
data: {dataset: glue/sst2}
teacher: {model: some/model, finetune: {epochs: 2, learning_rate: 5e-5}}
student: {layers: 3}
distill: {epochs: 6, losses: [{kind: logits, temperature: 4}, {kind: hidden}]}
"""


def parse(text, *overrides):
    return parse_recipe(text.encode(), "my.yaml", overrides)


def problems(text, *overrides):
    with pytest.raises(RecipeInvalid) as caught:
        parse(text, *overrides)
    return caught.value.problems


def test_the_resolved_recipe_is_the_same_recipe():
    recipe = parse(GOOD)
    again = parse(write_recipe(recipe))
    assert again == recipe
    assert again.sha256() == recipe.sha256()


def test_short_forms_are_lists_of_one():
    recipe = parse(GOOD)
    assert recipe.task == "classification"
    assert recipe.teacher.finetune.learning_rate == 5e-5
    assert len(recipe.distill.phases) == 1 and recipe.distill.phases[0].epochs == 6


def test_overrides_reach_short_and_long_forms():
    recipe = parse(GOOD, "distill.epochs=3", "distill.phases.0.batch_size=8", "distill.losses.0.weight=0.5", "seed=7")
    phase = recipe.distill.phases[0]
    assert (phase.epochs, phase.batch_size, phase.losses[0].weight, recipe.seed) == (3, 8, 0.5, 7)
    assert parse(GOOD, "teacher.finetune=auto").teacher.finetune == "auto"
    assert parse(GOOD, "teacher.finetune.learning_rate=1e-4").teacher.finetune.learning_rate == 1e-4


def test_an_override_that_names_no_phase_holds_in_every_one():
    epochs = [phase.epochs for phase in parse(GOOD, "distill.recipe=tinybert").distill.phases]
    both = parse(GOOD, "distill.recipe=tinybert", "distill.epochs=9", "distill.phases.1.batch_size=4").distill.phases
    assert (
        len(epochs) == 2
        and [phase.epochs for phase in both] == [9, 9]
        and both[1].batch_size == 4 != both[0].batch_size
    )


def test_every_problem_is_reported_with_line_and_nearest_name():
    text = """task: classification
data: {dataset: glue/sst2, colums: {text: a}}
teacher: {model: x, finetune: {epoch: 2}}
student: {layers: 0}
distill:
  epochs: many
  losses:
    - {kind: logit}
    - {kind: hidden, distance: cosin}
seed: -1
"""
    found = problems(text)
    assert len(found) == 7
    text = "\n".join(found)
    for expected in (
        "line 2: data.colums: unknown setting; did you mean 'columns'?",
        "line 3: teacher.finetune.epoch: unknown setting; did you mean 'epochs'?",
        "line 4: student.layers: input should be greater than or equal to 1 (given: 0)",
        "line 6: distill.epochs:",
        "line 8: distill.losses.0: 'logit' is not one of logits, labels, hidden, attention, relation; did you mean",
        "line 9: distill.losses.1.distance: 'cosin' is not one of mse, cosine, gram; did you mean 'cosine'?",
        "line 10: seed:",
    ):
        assert expected in text


def test_an_override_is_named_as_such():
    assert problems(GOOD, "distill.epochs=0") == [
        "-o: distill.epochs: input should be greater than or equal to 1 (given: 0)"
    ]
    assert "write it as key=value" in problems(GOOD, "distill.epochs")[0]


def test_students_are_one_of_three():
    assert (
        "give exactly one of `layers`, `encoder_layers` and `decoder_layers`, `model`, `config`"
        in problems(GOOD.replace("layers: 3", "layers: 3, model: a/b"))[0]
    )


def test_more_than_one_teacher_is_not_yet():
    text = GOOD.replace(
        "teacher: {model: some/model, finetune: {epochs: 2, learning_rate: 5e-5}}",
        "teachers: [{model: a}, {model: b}]",
    )
    assert "not supported yet" in problems(text)[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1", "line 1"),
        ("- 1\n- 2", "mapping"),
        ("a: &x 1\nb: *x", "anchors"),
        ("\xff".encode("latin1"), "UTF-8"),
    ],
)
def test_unreadable_files(text, words):
    raw = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(RecipeUnreadable, match=words):
        parse_recipe(raw, "my.yaml")


def test_tags_cannot_run_code():
    with pytest.raises(RecipeUnreadable):
        parse("task: !!python/object/apply:os.system ['true']")


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(RecipeNotFound, match="Did you mean 'quickstart'"):
        load_recipe("quikstart")


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipes_are_valid_and_short(name):
    recipe = load_recipe(name)
    assert parse(write_recipe(recipe)).sha256() == recipe.sha256()
    text = shipped_recipes()[name].read_text()
    assert text.startswith("# ")
    assert "Run:" in text


def test_term_kinds_are_the_names_of_the_loss_table():
    terms = Recipe.model_json_schema()["$defs"]
    kinds = {
        d["properties"]["kind"]["const"]: d["properties"] for d in terms.values() if "kind" in d.get("properties", {})
    }
    assert set(kinds) == set(LOSSES)
    for kind, properties in kinds.items():
        if "distance" in properties:
            assert set(properties["distance"]["enum"]) == set(LOSSES[kind])


def test_every_setting_is_documented():
    for name, definition in [
        *Recipe.model_json_schema()["$defs"].items(),
        ("Recipe", Recipe.model_json_schema()),
    ]:
        assert definition.get("description"), name
        for field, schema in definition["properties"].items():
            assert field == "kind" or schema.get("description"), f"{name}.{field}"


def test_schema_is_plain_json():
    json.dumps(Recipe.model_json_schema())
    yaml.safe_load(GOOD)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("distill={recipe: tinybert}", lambda r: len(r.distill.phases), 2),
        ("distill={epochs: 5}", lambda r: r.distill.phases[0].epochs, 5),
        ("export={format: openvino}", lambda r: [e.format for e in r.export], ["openvino"]),
        ("task=seq2seq", lambda r: r.task, "seq2seq"),
        ("teacher={model: x, finetune: none}", lambda r: r.teachers[0].model, "x"),
        ("export.0.score_drop=2", lambda r: (r.export[0].format, r.export[0].score_drop), ("onnx", 2)),
        ("distill.losses.0.weight=0.5", lambda r: [t.weight for t in r.distill.phases[0].losses], [0.5, 1.0, 1.0]),
        ("publish.repository=org/x", lambda r: r.publish.repository, "org/x"),
        ("teacher.finetune.epochs=7", lambda r: r.teachers[0].finetune.epochs, 7),
        ('publish={repository: org/x, revision: "1.0"}', lambda r: r.publish.revision, "1.0"),
    ],
)
@pytest.mark.parametrize("resolved", [False, True])
def test_whole_parts_and_parts_that_are_not_written_can_be_given(override, path, value, resolved):
    text = b"task: classification\ndata: {dataset: d}\nteacher: {model: m}\nstudent: {layers: 1}\n"
    if resolved:
        text = write_recipe(parse_recipe(text, "r")).encode()
    assert path(parse_recipe(text, "r", [override])) == value


def test_text_in_quotes_is_text():
    assert (read_value('"1.0"'), read_value("1.0"), read_value("5e-5")) == ("1.0", 1.0, 5e-5)


def test_a_named_distillation_keeps_what_all_phases_were_given():
    text = b"task: classification\ndata: {dataset: d}\nteacher: {model: m}\nstudent: {layers: 1}\n"
    text += b"distill: {epochs: 9, learning_rate: 3e-4}\n"
    resolved = write_recipe(parse_recipe(text, "r")).encode()
    from_file, from_run = (parse_recipe(it, "r", ["distill.recipe=tinybert"]) for it in (text, resolved))
    assert from_file.resolved() == from_run.resolved()
    assert [phase.epochs for phase in from_run.distill.phases] == [9, 9]
