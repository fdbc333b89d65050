"""Every task down the whole road with tiny models: trained, exported, proven equal, scored, timed, served."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.numpy import load_file

import nlp_distill
from nlp_distill import estimate as estimating
from nlp_distill import shelf, targets
from nlp_distill.doctor import check_model
from nlp_distill.errors import (
    HeadMissing,
    Interrupted,
    ModelUnfit,
    NotYet,
    QuestionTooLong,
    RecipeInvalid,
    SignalMissing,
    TokenizerMismatch,
)
from nlp_distill.loading import load_tokenizer
from nlp_distill.presets import PRESETS
from nlp_distill.testing import (
    save_tiny,
    tiny_config,
    tiny_questions,
    tiny_reversals,
    tiny_rows,
    write_rows,
    write_split,
)

ROOT = Path(__file__).parents[2]
FAST = {"epochs": 1, "learning_rate": 2e-3, "batch_size": 16}
EXPORT = [{"format": "onnx", "profile": "fast", "score_drop": 100}]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NLP_DISTILL_CACHE", str(tmp_path / "cache"))


def evaluated(run, names):
    """Scores by variant of a run that ended before it was timed; the export is proven to be the student."""
    stages = run.dir.manifest()["stages"]
    scores = stages["evaluate"]["scores"]
    assert list(scores) == names
    assert scores["student-onnx-fp32"] == scores["student"]
    assert stages["export"]["exports"][0]["parity"]["flips"] == 0
    return scores


def results(run, names):
    variants = {variant["name"]: variant for variant in run.results["variants"]}
    assert list(variants) == names
    for variant in variants.values():
        if variant["status"] == "passed":
            assert variant["latency_ms"] and variant["bytes"] and variant["n"]
    assert variants["student-onnx-fp32"]["flips"] == 0
    assert variants["student-onnx-fp32"]["score"] == variants["student"]["score"]
    return variants


NAMES = ["teacher", "student", "student-onnx-fp32", "student-onnx-int8"]


@pytest.mark.parametrize("none", [False, True])
def test_question_answering(tiny_recipe, tmp_path, none):
    recipe = tiny_recipe(
        task="question_answering",
        data={"dataset": write_split(tmp_path / "d", tiny_questions(120, none))},
        export=EXPORT,
    )
    until = "evaluate" if none else "results"
    run = nlp_distill.run(recipe, "max_length=24", "options.stride=4", out=tmp_path / "run", until=until)
    if not none:
        results(run, NAMES)
    assert ("f1_best_threshold" in evaluated(run, NAMES)["student"]) is none
    assert json.loads((run.path / "model" / "student.json").read_text())["task"]["options"]["no_answer"] is none
    answer = run.pipeline()(question="good", context="a bad film and a fine story")
    assert answer["answer"] in "a bad film and a fine story"
    lines = (run.path / "predictions" / "student.jsonl").read_text().splitlines()
    assert len(lines) == 30 and "answer" in json.loads(lines[0])


SEQ_TERMS = [
    {"kind": "logits"},
    {"kind": "labels"},
    {"kind": "hidden"},
    {"kind": "attention"},
    {"kind": "attention", "of": "cross"},
    {"kind": "relation", "heads": 4, "stacks": ["decoder"]},
]


def seq2seq_recipe(tiny_recipe, tmp_path, teacher, **parts):
    return tiny_recipe(
        task="seq2seq",
        data={"dataset": write_split(tmp_path / "d", tiny_reversals(80))},
        options={"max_target_length": 8, "num_beams": 2},
        teacher=teacher,
        student={"decoder_layers": 1},
        distill={**FAST, "losses": SEQ_TERMS},
        **{"export": EXPORT, **parts},
    )


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_seq2seq_from_a_new_teacher(tiny_recipe, tmp_path, architecture):
    new = {"architecture": architecture, "layers": 2, "hidden_size": 32, "vocabulary": 300}
    recipe = seq2seq_recipe(tiny_recipe, tmp_path, {"new": new, "finetune": FAST})
    run = nlp_distill.run(recipe, out=tmp_path / "run", until="results" if architecture == "t5" else "evaluate")
    if architecture == "t5":
        results(run, NAMES)
        assert run.results["new_tokens"] and run.results["student"]["copy_map"] == {"encoder": [0, 1], "decoder": [1]}
    assert {"bleu", "chrf", "rougeL"} <= evaluated(run, NAMES)["teacher"].keys()
    names = {file.name for file in (run.path / "model" / "onnx").iterdir()}
    assert {"encoder_model.onnx", "decoder_model_merged.onnx", "decoder_model_merged_quantized.onnx"} <= names
    one = [run.pipeline(name)("good film")[0]["generated_text"] for name in ("student", "student-onnx-fp32")]
    assert one[0] == one[1]


@pytest.mark.parametrize("cache", ["none", "fp32"])
@pytest.mark.parametrize(("theirs", "ours"), [(7, 0), (0, 7)])
def test_tables_of_one_tokenizer_may_have_more_rows_than_it_has_tokens(tiny_recipe, tmp_path, theirs, ours, cache):
    """As BART's, of which some checkpoints count the mask and some do not, and tables that are padded for speed."""
    tokens = tiny_config("bart").vocab_size
    for name, more in (("teacher", theirs), ("student", ours)):
        save_tiny(tmp_path / name, "bart", "AutoModelForSeq2SeqLM", vocab_size=tokens + more)
    teacher = {"model": str(tmp_path / "teacher"), "finetune": "none"}
    recipe = seq2seq_recipe(tiny_recipe, tmp_path, teacher, export=[])
    settings = (f"student={{model: {tmp_path / 'student'}}}", f"distill.cache={cache}")
    terms = "distill.losses=[{kind: logits}, {kind: labels}]"
    run = nlp_distill.run(recipe, *settings, terms, out=tmp_path / "run", until="distill")
    assert run.dir.manifest()["stages"]["distill"]["trained"][0]["steps"] > 0


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_seq2seq_from_an_encoder(tiny_recipe, tmp_path, kind):
    """BERT2BERT and its like: what has no decoder becomes two of itself."""
    encoder = save_tiny(tmp_path / kind, kind, "AutoModel")
    recipe = seq2seq_recipe(tiny_recipe, tmp_path, {"model": str(encoder), "finetune": FAST})
    run = nlp_distill.run(recipe, out=tmp_path / "run", until="evaluate")
    evaluated(run, NAMES)
    stages = run.dir.manifest()["stages"]
    assert stages["teacher"]["how"]["name"].startswith("two of ")
    assert stages["student"]["origin"]["teacher_layers"] == {"encoder": 4, "decoder": 4}


def test_sequence_level_distillation_learns_what_the_teacher_says(tiny_recipe, tmp_path, monkeypatch):
    new = {"layers": 1, "hidden_size": 16, "attention_heads": 2, "vocabulary": 300}
    recipe = seq2seq_recipe(tiny_recipe, tmp_path, {"new": new, "finetune": FAST}, export=[])
    with monkeypatch.context() as steady:
        steady.setattr(estimating, "_rate", lambda _: 1e9)
        labels, taught = (estimating.estimate(str(recipe), [f"distill.targets={of}"]) for of in ("data", "teacher"))
    assert taught.seconds > labels.seconds and taught.steps == labels.steps
    run = nlp_distill.run(recipe, "distill.recipe=seqkd", out=tmp_path / "run", until="distill")
    said = [json.loads(line) for line in (run.path / "targets.jsonl").read_text().splitlines()]
    sources = {json.loads(line)["source"] for line in (tmp_path / "d" / "train.jsonl").read_text().splitlines()}
    assert 20 < len(said) <= len(sources) and all(isinstance(t, str) for t in said)
    made = (run.path / "targets.jsonl").stat().st_mtime_ns
    nlp_distill.run(recipe, "distill.recipe=seqkd", out=tmp_path / "run", until="distill")
    assert (run.path / "targets.jsonl").stat().st_mtime_ns == made
    with pytest.raises(NotYet, match="`targets: teacher` for classification"):
        nlp_distill.run(tiny_recipe("other"), "distill.recipe=seqkd", out=tmp_path / "other")


def test_across_vocabularies_a_seq2seq_student_learns_what_its_teacher_writes_and_nothing_else(tiny_recipe, tmp_path):
    new = {"architecture": "t5", "layers": 2, "hidden_size": 16, "vocabulary": 300}
    recipe = seq2seq_recipe(tiny_recipe, tmp_path, {"new": new, "finetune": FAST}, export=[])
    other = save_tiny(tmp_path / "other", "t5", "AutoModelForSeq2SeqLM")
    settings = (f"student={{model: {other}}}", "distill.recipe=seqkd")
    with pytest.raises(TokenizerMismatch, match="keep only labels"):
        nlp_distill.run(recipe, settings[0], out=tmp_path / "refused")
    run = nlp_distill.run(recipe, *settings, out=tmp_path / "taught", until="evaluate")
    sizes = [
        len(json.loads((run.path / f / "tokenizer.json").read_text())["model"]["vocab"]) for f in ("model", "teacher")
    ]
    assert sizes[0] != sizes[1] and (run.path / "targets.jsonl").stat().st_size
    assert "student" in run.dir.manifest()["stages"]["evaluate"]["scores"]


def test_what_is_asked_twice_is_answered_once():
    task = SimpleNamespace(pipeline_inputs=lambda rows: rows)
    first, like = targets._distinct(SimpleNamespace(task=task), ["b", "a", "b", "c", "a"])
    assert (first, like) == ([0, 1, 3], [0, 1, 0, 2, 1])


def test_a_teacher_that_is_stopped_while_it_generates_goes_on_where_it_was(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "TARGETS_AT_ONCE", 16)
    new = {"layers": 1, "hidden_size": 16, "attention_heads": 2, "vocabulary": 300}
    recipe = seq2seq_recipe(tiny_recipe, tmp_path, {"new": new, "finetune": FAST}, export=[])

    def until_told(at):
        told = []
        return {
            "stop": lambda: bool(told),
            "notify": lambda kind, **fields: fields.get("step") == at and told.append(at),
        }

    def texts(name):
        return (tmp_path / name / "targets.jsonl").read_text()

    taught, settings = ("distill.recipe=seqkd", "distill.cache=none"), {"until": "distill"}
    nlp_distill.run(recipe, *taught, out=tmp_path / "whole", **settings)
    with pytest.raises(Interrupted):
        nlp_distill.run(recipe, *taught, out=tmp_path / "cut", **settings, **until_told(32))
    begun = texts("cut")
    assert begun.count("\n") == 32
    (tmp_path / "cut" / "targets.jsonl").write_text(begun + '"half a li')
    nlp_distill.run(recipe, *taught, out=tmp_path / "cut", **settings)
    assert texts("cut") == texts("whole")


def test_what_a_teacher_says_is_shared_between_runs(tiny_recipe, tmp_path, monkeypatch):
    new = {"layers": 1, "hidden_size": 16, "attention_heads": 2, "vocabulary": 300}
    recipe = seq2seq_recipe(tiny_recipe, tmp_path, {"new": new, "finetune": FAST}, export=[])

    def said(name, *settings):
        told = []

        def notify(kind, **fields):
            told.append(str(fields.get("message")))
            assert not (name == "again" and fields.get("stage") == targets.TARGETS), "it was generated anew"

        run = nlp_distill.run(
            recipe, "distill.recipe=seqkd", *settings, out=tmp_path / name, until="distill", notify=notify
        )
        return (run.path / "targets.jsonl").read_text(), any("cached already, in" in message for message in told)

    def kept():
        return [entry for entry in shelf.shelved() if entry.contents and entry.line()["precision"] == "text"]

    first, _ = said("alone", "distill.cache=none")
    assert not kept()
    assert said("first") == (first, False) and [entry.line()["signals"] for entry in kept()] == ["what it says"]
    assert said("again") == (first, True)
    file = kept()[0].folder / "targets.jsonl"
    file.write_text(first.replace('"', "'", 1))
    assert not kept() and said("torn") == (first, False) and len(kept()) == 1
    assert said("beams", "options.num_beams=3")[1] is False and len(kept()) == 2
    monkeypatch.setenv("NLP_DISTILL_CACHE", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "teachers").write_text("a file is in the way")
    assert said("unwritable") == (first, False)


def test_a_frozen_encoder_stays_its_teachers(tiny_recipe, tmp_path):
    new = {"layers": 2, "hidden_size": 32, "vocabulary": 300}
    recipe = seq2seq_recipe(tiny_recipe, tmp_path, {"new": new, "finetune": FAST}, export=[])
    run = nlp_distill.run(recipe, "distill.freeze=[embeddings, encoder]", out=tmp_path / "run", until="distill")
    before, after = (load_file(run.path / name / "model.safetensors") for name in ("student", "model"))
    changed = {name for name in after if not (after[name] == before[name]).all()}
    assert changed and all(name.startswith("decoder.") for name in changed)
    with pytest.raises(SignalMissing, match="the only part that is compared, is frozen"):
        settings = ("distill.freeze=[encoder]", "distill.losses=[{kind: hidden, stacks: [encoder]}]")
        nlp_distill.run(recipe, *settings, out=tmp_path / "nothing")
    with pytest.raises(NotYet, match=r"`freeze: \[encoder\]` of a model without a decoder"):
        nlp_distill.run(tiny_recipe("other"), "distill.freeze=[encoder]", out=tmp_path / "other")


def test_the_doctor_says_what_a_model_can_give(tmp_path):
    def said(kind, task, auto="AutoModel"):
        return "\n".join(check_model(str(save_tiny(tmp_path / kind, kind, auto)), task))

    assert "terms: logits, labels, hidden, relation; attention: no" in said("deberta-v2", "classification")
    assert "one shared block" in said("albert", "question_answering")
    bert = said("bert", "seq2seq")
    assert "4 layers" in bert and "as encoder and decoder of one model" in bert
    assert "cut to fewer layers: yes" in bert and "relation, attention (`of: cross`, too)" in bert
    assert "export to ONNX: small, fast" in bert
    blind = save_tiny(tmp_path / "blind", "bert", "AutoModel")
    settings = json.loads((blind / "tokenizer_config.json").read_text())
    (blind / "tokenizer_config.json").write_text(json.dumps({**settings, "sep_token": None}))
    (blind / "special_tokens_map.json").unlink(missing_ok=True)
    assert "seq2seq: no; " in "\n".join(check_model(str(blind), "seq2seq"))
    t5 = said("t5", "seq2seq", "AutoModelForSeq2SeqLM")
    assert "4 encoder layers and 4 decoder layers" in t5 and "export to ONNX: small, fast" in t5
    assert "classification: no; transformers has no" in said("marian", "classification", "AutoModelForSeq2SeqLM")


def test_a_new_teacher_is_made_once_and_depends_on_the_seed(tiny_recipe, tmp_path):
    new = {"layers": 1, "hidden_size": 16, "attention_heads": 2, "vocabulary": 300}
    recipe = seq2seq_recipe(tiny_recipe, tmp_path, {"new": new, "finetune": FAST}, export=[])
    for seed in (0, 0, 1):
        nlp_distill.run(recipe, f"seed={seed}", out=tmp_path / f"run{seed}", until="data")
    assert len(list((tmp_path / "cache" / "starts").glob("*/config.json"))) == 2


def test_general_distillation_and_then_a_task_without_a_teacher(tiny_recipe, tiny_teacher, tiny_data, tmp_path):
    texts = [{"text": row["text"]} for row in tiny_rows(200)]
    body = [{"kind": "labels"}, {"kind": "hidden"}, {"kind": "relation", "heads": 4}]
    general = tiny_recipe(
        task="masked_lm",
        data={"dataset": write_split(tmp_path / "d", texts)},
        teacher={"model": str(tiny_teacher), "finetune": "none"},
        distill={**FAST, "losses": body},
        export=EXPORT,
    )
    run = nlp_distill.run(general, out=tmp_path / "general")
    found = results(run, NAMES[1:])
    assert found["student"]["retained"] is None and run.results["recommended"]
    assert {"accuracy", "accuracy_top5"} == found["student"]["score"].keys()
    with pytest.raises(SignalMissing, match="has no fill-mask head and is not trained"):
        nlp_distill.run(general, "distill.losses=[{kind: logits}]", out=tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    task = tiny_recipe(
        "then",
        task="classification",
        data={"dataset": str(tiny_data)},
        teacher=None,
        student={"model": str(run.path / "model")},
        distill={**FAST, "losses": [{"kind": "labels"}]},
        export=EXPORT,
    )
    then = nlp_distill.run(task, out=tmp_path / "then", until="evaluate")
    evaluated(then, NAMES[1:])
    assert then.pipeline()("good film")[0]["label"] in ("0", "1")


def test_a_masked_teacher_is_trained_first_unless_told_otherwise(tiny_recipe, tiny_teacher, tmp_path):
    texts = [{"text": row["text"]} for row in tiny_rows(120)]
    recipe = tiny_recipe(
        task="masked_lm",
        data={"dataset": write_split(tmp_path / "d", texts)},
        teacher={"model": str(tiny_teacher), "finetune": FAST},
    )
    run = nlp_distill.run(recipe, out=tmp_path / "run", until="evaluate")
    assert list(run.dir.manifest()["stages"]["evaluate"]["scores"]) == ["teacher", "student"]


def another_vocabulary(folder):
    """The same weights with their words in another order: fed with the teacher's ids, a student would learn nothing."""
    other = save_tiny(folder, auto_class="AutoModel")
    vocabulary = json.loads((other / "tokenizer.json").read_text())
    order = list(vocabulary["model"]["vocab"])
    vocabulary["model"]["vocab"] = {word: number for number, word in enumerate([*order[:5], *order[:4:-1]])}
    (other / "tokenizer.json").write_text(json.dumps(vocabulary))
    return other, vocabulary


def test_answers_are_learnt_across_tokenizers(tiny_recipe, tiny_teacher, tmp_path):
    other, _ = another_vocabulary(tmp_path / "other")
    recipe = tiny_recipe(
        task="question_answering",
        data={"dataset": write_split(tmp_path / "d", tiny_questions(80))},
        max_length=24,
        options={"stride": 4},
        teacher={"model": str(tiny_teacher), "finetune": FAST},
        student={"model": str(other)},
    )
    with pytest.raises(TokenizerMismatch, match=r"\(attention, hidden, relation\); keep only labels and logits"):
        nlp_distill.run(recipe, out=tmp_path / "refused")
    losses = "distill.losses=[{kind: logits}, {kind: labels}]"
    run = nlp_distill.run(recipe, losses, "distill.epochs=3", out=tmp_path / "run", until="distill")
    history = run.dir.manifest()["stages"]["distill"]["trained"][0]["history"]
    assert 0 < history[-1]["logits"] < history[0]["logits"]


def test_a_shared_encoder_and_models_that_do_not_fit(tiny_recipe, tmp_path):
    new = {"layers": 2, "hidden_size": 32, "vocabulary": 300}
    recipe = seq2seq_recipe(tiny_recipe, tmp_path, {"new": new, "finetune": FAST}, export=[])
    events = []
    settings = ("distill.losses=[{kind: logits}, {kind: labels}]", "distill.freeze=[encoder]")
    nlp_distill.run(
        recipe, *settings, out=tmp_path / "run", until="distill", notify=lambda kind, **fields: events.append(fields)
    )
    assert any("share one pass" in str(event.get("message")) for event in events)
    for kind, words in (("distilbert", "no encoder and decoder"), ("deberta-v2", "cannot be made both")):
        teacher = {"model": str(save_tiny(tmp_path / kind, kind, "AutoModel")), "finetune": FAST}
        with pytest.raises(ModelUnfit, match=words):
            nlp_distill.run(seq2seq_recipe(tiny_recipe, tmp_path, teacher), out=tmp_path / "refused")
    bert = str(save_tiny(tmp_path / "bert", "bert", "AutoModel"))
    recipe = seq2seq_recipe(tiny_recipe, tmp_path, {"new": new, "finetune": FAST}, export=[])
    with pytest.raises(ModelUnfit, match="no AutoModelForSeq2SeqLM of this type"):
        nlp_distill.run(recipe, f"student={{model: {bert}}}", out=tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_question_without_room_is_refused_before_the_folder_is_made(tiny_recipe, tmp_path, split):
    rows = tiny_questions(60)
    rows[0 if split == "validation" else -1]["question"] = "good " * 40
    recipe = tiny_recipe(task="question_answering", max_length=24, data={"dataset": write_split(tmp_path / "d", rows)})
    with pytest.raises(QuestionTooLong, match="has 42 tokens, and max_length 24 leaves no room"):
        nlp_distill.run(recipe, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_different_tokenizers_read_the_text_twice_or_are_refused(tiny_recipe, tiny_teacher, tmp_path):
    other, vocabulary = another_vocabulary(tmp_path / "other")
    data = {"dataset": str(write_rows(tmp_path / "d", train=400, validation=100))}
    tuned = {"model": str(tiny_teacher), "finetune": {"epochs": 10, "learning_rate": 2e-3, "batch_size": 16}}
    recipe = tiny_recipe(data=data, teacher=tuned, student={"model": str(other)})
    with pytest.raises(
        TokenizerMismatch, match=r"no meaning \(attention, hidden, relation\); keep only labels and logits"
    ):
        nlp_distill.run(recipe, out=tmp_path / "refused")
    terms = "distill.losses=[{kind: logits, temperature: 1.0}]"
    settings = ("distill.epochs=10", "distill.learning_rate=2e-3")
    run = nlp_distill.run(recipe, terms, *settings, out=tmp_path / "run", until="evaluate")
    scores = run.dir.manifest()["stages"]["evaluate"]["scores"]
    assert scores["student"]["accuracy"] > 75
    own = json.loads((run.path / "model" / "tokenizer.json").read_text())["model"]["vocab"]
    theirs = json.loads((run.path / "teacher" / "tokenizer.json").read_text())["model"]["vocab"]
    assert own == vocabulary["model"]["vocab"] != theirs


def test_one_vocabulary_read_in_another_way_is_another_tokenizer(tiny_recipe, tiny_teacher, tmp_path):
    other = save_tiny(tmp_path / "other", auto_class="AutoModel")
    cut = json.loads((other / "tokenizer.json").read_text())
    isolated = {"type": "Split", "pattern": {"String": "o"}, "behavior": "Isolated", "invert": False}
    (other / "tokenizer.json").write_text(json.dumps({**cut, "pre_tokenizer": isolated}))
    recipe = tiny_recipe(teacher={"model": str(tiny_teacher), "finetune": FAST}, student={"model": str(other)})
    with pytest.raises(TokenizerMismatch, match="read a text as different tokens"):
        nlp_distill.run(recipe, out=tmp_path / "refused")


def test_a_checkpoint_that_takes_other_inputs_keeps_its_own_tokenizer(tiny_recipe, tiny_teacher, tmp_path):
    """DistilBERT has no token types, and this one fewer positions than its teacher, whose words it shares."""
    student = save_tiny(tmp_path / "distil", "distilbert", "AutoModel", max_position_embeddings=16)
    recipe = tiny_recipe(student={"model": str(student)}, teacher={"model": str(tiny_teacher), "finetune": FAST})
    run = nlp_distill.run(recipe, "distill.epochs=1", out=tmp_path / "run", until="evaluate")
    kept = load_tokenizer(run.path / "model")
    assert kept.model_max_length == 16 and "token_type_ids" not in kept.model_input_names
    notes = run.dir.manifest()["stages"]["data"]["notes"]
    assert notes["max_length"] == "16, as the model has no more positions"
    assert {"logits", "hidden"} <= run.dir.manifest()["stages"]["distill"]["trained"][0]["history"][0].keys()


def test_what_cannot_be_without_a_teacher_is_refused(tiny_recipe, tiny_teacher, tmp_path):
    with pytest.raises(RecipeInvalid, match="without a `teacher` the only term is"):
        nlp_distill.run(tiny_recipe(teacher=None, student={"model": str(tiny_teacher)}), out=tmp_path / "run")
    with pytest.raises(RecipeInvalid, match=r"give a `teacher`, or `student.model`"):
        nlp_distill.run(tiny_recipe(teacher=None), out=tmp_path / "run")
    with pytest.raises(HeadMissing):
        nlp_distill.run(tiny_recipe(teacher={"model": str(tiny_teacher), "finetune": "none"}), out=tmp_path / "run")


def test_students_of_every_encoder_train_with_every_term_they_can_give(tiny_recipe, tmp_path):
    for kind in ("electra", "mpnet", "albert", "roberta", "xlm-roberta", "distilbert"):
        teacher = save_tiny(tmp_path / kind, kind, "AutoModel")
        recipe = tiny_recipe(kind, teacher={"model": str(teacher), "finetune": {**FAST, "epochs": 1}})
        run = nlp_distill.run(
            recipe, "data.limit=60", "distill.epochs=1", out=tmp_path / f"run-{kind}", until="distill"
        )
        history = run.dir.manifest()["stages"]["distill"]["trained"][0]["history"]
        assert {"logits", "labels", "hidden", "attention", "relation"} <= history[0].keys()
    teacher = save_tiny(tmp_path / "deberta", "deberta-v2", "AutoModel")
    recipe = tiny_recipe("deberta", teacher={"model": str(teacher), "finetune": FAST})
    with pytest.raises(SignalMissing, match="a deberta-v2, has scores that queries and keys alone do not give"):
        nlp_distill.run(recipe, out=tmp_path / "run-deberta")


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"distilbart", "seqkd"}))
def test_distillations_named_after_papers_train(tiny_recipe, tmp_path, name):
    wide = save_tiny(tmp_path / "wide", auto_class="AutoModel", hidden_size=48)  # minilm has 12 relation heads
    recipe = tiny_recipe(
        teacher={"model": str(wide), "finetune": {**FAST, "epochs": 1}}, distill={"recipe": name, "epochs": 1}
    )
    run = nlp_distill.run(recipe, "data.limit=60", out=tmp_path / "run", until="distill")
    trained = run.dir.manifest()["stages"]["distill"]["trained"]
    assert len(trained) == len(PRESETS[name]) and all(phase["steps"] > 0 for phase in trained)
    for phase, told in zip(trained, PRESETS[name], strict=True):
        assert {term["kind"] for term in told["losses"]} <= phase["history"][0].keys()


def test_a_task_from_another_package_needs_no_change_here(tiny_recipe, tmp_path):
    """Token classification, about 140 lines, installed as its users would install it."""
    source = ROOT / "tests" / "packages" / "word_tags"
    lines = (source / "word_tags" / "__init__.py").read_text().splitlines()
    assert len(lines) <= 150
    installed = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(installed), str(source)]
    subprocess.run(pip, check=True, capture_output=True)
    rows = [row["text"].split() for row in tiny_rows(160)]
    data = write_split(
        tmp_path / "d", [{"words": row, "tags": ["G" if "o" in word else "B" for word in row]} for row in rows]
    )
    recipe = tiny_recipe(
        task="word_tags",
        data={"dataset": data},
        export=EXPORT,
        distill={
            "epochs": 3,
            "learning_rate": 5e-3,
            "batch_size": 16,
            "losses": [{"kind": "logits"}, {"kind": "labels"}, {"kind": "hidden"}],
        },
    )
    program = (
        "import nlp_distill, sys; run = nlp_distill.run(sys.argv[1], out=sys.argv[2], until='report');"
        "print(run.pipeline()('good film')[0]['entity'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(recipe), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    scores = evaluated(nlp_distill.Run(tmp_path / "run"), NAMES)
    assert scores["student"]["accuracy"] > 90
    assert done.stdout.strip().endswith(("G", "B"))
    assert "student-onnx-int8" in (tmp_path / "run" / "report.html").read_text()
    assert 'pipeline("token-classification"' in (tmp_path / "run" / "model" / "README.md").read_text()
