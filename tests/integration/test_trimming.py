"""A trimmed vocabulary through the command line: the same learning, a smaller model, and what it does is said."""

import contextlib
import io
import json

import pytest
from safetensors.numpy import load_file
from transformers import BertTokenizerFast

import nlp_distill
from nlp_distill.cli import main
from nlp_distill.loading import load_tokenizer, save_model
from nlp_distill.testing import WORDS, tiny_model, tiny_questions, tiny_rows, write_split

LETTERS = [chr(number) for number in range(ord("a"), ord("z") + 1)]
UNUSED = [f"{one}{two}q" for one in LETTERS for two in "xyz"]


def here(*arguments):
    """The command line in this process: exit code and all that it printed."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown), pytest.raises(SystemExit) as stopped:
        main(list(map(str, arguments)))
    return stopped.value.code, " ".join(shown.getvalue().split())


def agree(one, two):
    """Two runs had the same losses and scores in every epoch."""
    histories = []
    for run in (one, two):
        stages = json.loads((run / "manifest.json").read_text())["stages"]
        histories.append(stages["distill"]["trained"][0]["history"])
    for a, b in zip(*histories, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-7)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A teacher's folder whose tokenizer has word pieces, most of them in no text."""
    folder = tmp_path_factory.mktemp("pieces")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, *UNUSED[:40], *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS, *UNUSED[40:]]
    (folder / "vocab.txt").write_text("\n".join(sorted(set(vocabulary), key=vocabulary.index)), encoding="utf-8")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64)
    save_model(tiny_model("bert", "AutoModel", vocab_size=len(tokenizer)), tokenizer, folder)
    return folder


def parts(pieces, vocabulary, **distill):
    return {
        "teacher": {"model": str(pieces), "finetune": {"epochs": 1, "learning_rate": 1e-3}},
        "student": {"layers": 2, "vocabulary": vocabulary},
        "distill": {
            "epochs": 2,
            "learning_rate": 1e-3,
            "batch_size": 16,
            "losses": [{"kind": "logits"}, {"kind": "hidden"}, {"kind": "attention"}, {"kind": "relation", "heads": 4}],
            **distill,
        },
    }


@pytest.mark.parametrize("cache", ["none", "fp32"])
def test_a_student_learns_the_same_under_the_smaller_vocabulary(pieces, write_recipe, tmp_path, cache):
    for vocabulary in ("keep", "trim"):
        recipe = write_recipe(tmp_path, vocabulary, **parts(pieces, vocabulary, cache=cache))
        code, shown = here("distill", recipe, "--out", tmp_path / "runs" / vocabulary)
        assert code == 0, shown
        # The teacher reads its own ids: what it said of the one run's rows is what it says of the other's.
        assert ("cached already" in shown) == (cache == "fp32" and vocabulary == "trim")
    keep, trim = tmp_path / "runs" / "keep", tmp_path / "runs" / "trim"
    agree(keep, trim)
    one, two = (load_file(run / "model" / "model.safetensors") for run in (keep, trim))
    table = "bert.embeddings.word_embeddings.weight"
    assert len(two[table]) < len(one[table]) and one["classifier.weight"].shape == two["classifier.weight"].shape
    code, shown = here("distill", recipe, "--out", trim, "-o", "student.vocabulary=keep")
    assert code == 2 and "student.vocabulary: 'trim' → 'keep'" in shown


def test_questions_can_be_answered_with_fewer_pieces(pieces, write_recipe, tmp_path):
    data = {"dataset": write_split(tmp_path / "questions", tiny_questions(120))}
    for vocabulary in ("keep", "trim"):
        given = {**parts(pieces, vocabulary), "task": "question_answering", "data": data, "max_length": 24}
        recipe = write_recipe(tmp_path, vocabulary, **given, options={"stride": 4})
        code, shown = here("distill", recipe, "--out", tmp_path / "runs" / vocabulary)
        assert code == 0, shown
    agree(tmp_path / "runs" / "keep", tmp_path / "runs" / "trim")


def test_the_whole_road_says_what_the_vocabulary_costs_and_resumes(pieces, write_recipe, tmp_path):
    rows = tiny_rows(200)
    for row in rows[:20]:
        row["text"] += f" {UNUSED[0]}"
    data = {"dataset": write_split(tmp_path / "data", rows, validation=0.2)}
    given = {**parts(pieces, "trim"), "data": data, "export": [{"format": "onnx", "profile": "exact"}]}
    recipe = write_recipe(tmp_path, **given)
    code, shown = here("doctor", recipe)
    assert code == 0 and "the vocabulary trimmed to the training rows" in shown, shown
    code, shown = here("run", recipe, "--out", tmp_path / "run")
    assert code == 0, shown
    assert "tokens are kept;" in shown and "in 50.0% of them" in shown
    run = nlp_distill.Run(tmp_path / "run")
    about = run.results["student"]["vocabulary"]
    kept = load_tokenizer(tmp_path / "run" / "model")
    assert about["tokens"] == len(kept) < about["before"] and about["rows"] == 0.5 and about["longer"] > 0
    assert kept.tokenize(UNUSED[0]) == [UNUSED[0][0], *(f"##{letter}" for letter in UNUSED[0][1:])]
    assert not set(UNUSED) & set(kept.get_vocab())
    whole = load_tokenizer(tmp_path / "run" / "teacher")
    assert len(whole) == about["before"]
    by_name = {variant["name"]: variant for variant in run.results["variants"]}
    assert by_name["student-onnx-fp32"]["flips"] == 0
    assert run.pipeline()("a lovely film")[0]["label"] in ("0", "1", "LABEL_0", "LABEL_1")
    code, shown = here("run", tmp_path / "run")
    assert code == 0 and "Student: already there" in shown
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["vocab_size"] == about["tokens"]


def test_what_cannot_be_trimmed_is_refused_before_anything_starts(pieces, tiny_teacher, write_recipe, tmp_path):
    def refused(name, **given):
        code, shown = here("run", write_recipe(tmp_path, name, **given), "--out", tmp_path / "run")
        assert code == 2 and not (tmp_path / "run").exists(), shown
        return shown

    words = refused("words", student={"layers": 2, "vocabulary": "trim"})
    assert "student.vocabulary: trim: a WordLevel tokenizer cannot spell" in words
    masked = {"losses": [{"kind": "hidden"}]}
    general = refused("general", **{**parts(pieces, "trim"), "task": "masked_lm", "distill": masked})
    assert "`vocabulary: trim` for masked_lm" in general
    other = refused("other", student={"model": str(tiny_teacher), "vocabulary": "trim"})
    assert "needs the teacher's tokenizer" in other
