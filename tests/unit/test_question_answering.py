"""Answers are where they are said to be, windows cut as the pipeline cuts, and only the context can answer."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, DatasetDict
from tokenizers import processors

from nlp_distill.cutting import slices
from nlp_distill.errors import (
    AnswersInvalid,
    ColumnMissing,
    OptionInvalid,
    QuestionTooLong,
    RoleUnknown,
    TextInvalid,
    WindowsTooShort,
)
from nlp_distill.recipe import Data
from nlp_distill.starts import learn_tokenizer
from nlp_distill.task import load_task
from nlp_distill.testing import tiny_config, tiny_model, tiny_tokenizer
from nlp_distill_tasks.question_answering.adapter import _moved
from nlp_distill_tasks.question_answering.rows import Repairs, checked, columns
from nlp_distill_tasks.question_answering.windows import windows

USED = {"question": "question", "context": "context", "answers": "answers"}
CONTEXT = "good film bad story good ending"


def table(*answers, context=CONTEXT, question="the plot is"):
    return Dataset.from_list([{"question": question, "context": context, "answers": given} for given in answers])


def spans(*pairs):
    return {"text": [text for text, _ in pairs], "answer_start": [start for _, start in pairs]}


def test_offsets_that_are_right_are_kept_and_wrong_ones_found_again():
    repairs = Repairs()
    rows = checked(table(spans(("story", 14)), spans(("good", 18)), spans(("film", 0))), USED, "s", repairs)
    assert rows["starts"][:] == [[14], [20], [5]]
    assert repairs.moved == [1, 2] and not repairs.dropped
    assert repairs.note(3) == "of 3 training rows 2 answers lay elsewhere and were found again (rows 1, 2)"


def test_answers_outside_the_context_are_left_out_of_training_and_kept_for_scores():
    repairs = Repairs()
    given = table(spans(("music", 3)), spans(("film", 5)))
    assert checked(given, USED, "s", repairs)["texts"][:] == [["film"]]
    assert "1 rows were left out of training" in repairs.note(2)
    assert checked(given, USED, "s", None)["texts"][:] == [["music"], ["film"]]


def test_answers_in_other_forms():
    one_text = Dataset.from_list([{"question": "q", "context": CONTEXT, "answers": "bad story"}])
    assert checked(one_text, USED, "s", Repairs())["starts"][:] == [[10]]
    several = Dataset.from_list([{"question": "q", "context": CONTEXT, "answers": ["film", "ending"]}])
    assert checked(several, USED, "s", Repairs())["starts"][:] == [[5, 25]]
    none = Dataset.from_list([{"question": "q", "context": CONTEXT, "answers": spans()}])
    assert checked(none, USED, "s", Repairs())["texts"][:] == [[]]
    with pytest.raises(AnswersInvalid, match="column 'answers' at row 0"):
        checked(Dataset.from_list([{"question": "q", "context": CONTEXT, "answers": 3}]), USED, "s", Repairs())


@pytest.mark.parametrize("answers", [{"text": 1912, "answer_start": 10}, {"text": ["film"], "answer_start": 5}])
def test_answers_that_are_neither_texts_nor_lists_name_their_row(answers):
    rows = Dataset.from_list([{"question": "q", "context": CONTEXT, "answers": answers}])
    with pytest.raises(AnswersInvalid, match="column 'answers' at row 0"):
        checked(rows, USED, "s", Repairs())


@pytest.mark.parametrize("role", ["question", "context"])
def test_empty_texts_are_refused_with_their_row(role):
    with pytest.raises(TextInvalid, match=f"column '{role}' has no text at row 0"):
        checked(table(spans(("film", 5)), **{role: "  "}), USED, "s", Repairs())


def test_columns_by_usual_names_or_given():
    rows = Dataset.from_list([{"query": "q", "passage": "c", "answer": "c"}])
    assert columns(rows, {}, "s") == {"question": "query", "context": "passage", "answers": "answer"}
    with pytest.raises(ColumnMissing, match="Did you mean 'passage'"):
        columns(rows, {"context": "pasage"}, "s")
    with pytest.raises(RoleUnknown, match="Did you mean 'question'"):
        load_task("question_answering").columns(rows, {"questions": "q"})


def test_options_are_checked():
    with pytest.raises(OptionInvalid, match=r"unknown option 'strid' \(did you mean 'stride'\?\)"):
        load_task("question_answering", {"strid": 3})
    with pytest.raises(OptionInvalid, match=r"options\.stride: input should be greater than or equal to 0, not -1"):
        load_task("question_answering", {"stride": -1})


def test_windows_hold_all_of_a_long_context_and_know_where_the_answer_is():
    context = " ".join(["film"] * 20 + ["ending"] + ["story"] * 20)
    rows = checked(table(spans(("ending", 100)), context=context), USED, "s", Repairs())
    tokenizer = tiny_tokenizer()
    made = windows(rows, tokenizer, max_length=20, stride=5).columns
    assert len(made["start"]) > 2
    answer = tokenizer.convert_tokens_to_ids("ending")
    for ids, mask, begin, end in zip(made["input_ids"], made["spans"], made["start"], made["end"], strict=True):
        assert mask[0] == 1 and mask[1:5] == [0, 0, 0, 0]  # [CLS], then three words of the question and [SEP]
        assert (ids[begin] == answer and begin == end) if answer in ids else (begin, end) == (0, 0)
    assert sum(begin > 0 for begin in made["start"]) in (1, 2)


def test_a_question_that_leaves_no_room_is_refused():
    rows = checked(table(spans(("film", 5)), question="good " * 30), USED, "s", Repairs())
    with pytest.raises(QuestionTooLong, match=r'question "good good.* has 32 tokens, and max_length 32 leaves no room'):
        windows(rows, tiny_tokenizer(), max_length=32, stride=8)


@pytest.fixture
def world():
    task = load_task("question_answering")
    rows = checked(table(spans(("story", 14)), spans(("ending", 25)), spans()), USED, "s", Repairs())
    tokenizer, model = tiny_tokenizer(), tiny_model("bert", task.auto_class)
    features = task.features(rows, tokenizer, 32)
    batch = task.collate(tokenizer, model.config)(features.to_list())
    with torch.no_grad():
        outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    return task, rows, batch, outputs


def test_only_the_context_and_the_first_token_have_probability(world):
    task, _, batch, outputs = world
    for logits in task.logits(outputs, batch).values():
        probabilities = logits.softmax(-1)
        assert (probabilities[~batch["spans"]] == 0).all()
        assert torch.allclose(probabilities.sum(-1), torch.ones(3))
    assert torch.equal(task.term_mask(batch, "hidden", "encoder"), batch["spans"])
    assert task.term_mask(batch, "labels", "encoder").tolist() == [True] * 3


def test_label_loss_by_hand(world):
    task, _, batch, outputs = world
    logits = task.logits(outputs, batch)
    by_hand = sum(
        -logits[name][row].log_softmax(-1)[batch["labels"][row, column]] / 2
        for column, name in enumerate(("start", "end"))
        for row in range(3)
    )
    assert torch.allclose(task.label_loss(outputs, batch), by_hand)
    assert batch["labels"][2].tolist() == [0, 0]


def test_scores_of_answers(world):
    task, rows, _, _ = world
    raw = task.raw_outputs([{"answer": text, "score": 1.0} for text in ("the story", "good ending", "")])
    assert task.score(raw, rows) == {"f1": pytest.approx(100 * (1 + 2 / 3 + 1) / 3), "exact": pytest.approx(200 / 3)}
    assert task.decisions(raw).tolist() == ["the story", "good ending", ""]


def test_scores_where_there_may_be_no_answer(world):
    task, rows, _, _ = world
    task.options = task.options.model_copy(update={"no_answer": True})
    given = [("story", "story", -0.5), ("", "ending", 0.1), ("film", "film", 0.3)]
    raw = task.raw_outputs([{"answer": a, "score": 1.0, "best": b, "none": n} for a, b, n in given])
    scores = task.score(raw, rows)
    assert scores["f1"] == pytest.approx(100 / 3)
    assert (scores["f1_answerable"], scores["f1_unanswerable"]) == (50.0, 0.0)
    # With a threshold between 0.1 and 0.3 all three are right.
    assert scores["f1_best_threshold"] == 100.0
    assert scores["best_threshold"] == pytest.approx(10.0)


@pytest.mark.parametrize("place", [0, 7, None])
def test_the_score_of_no_answer_is_its_own_or_below_every_candidate(world, place):
    task, _, _, _ = world
    task.options = task.options.model_copy(update={"no_answer": True})
    spans_found = [{"answer": f"span {number}", "score": 0.5 - number / 100} for number in range(20)]

    def pipe(question, context, batch_size, top_k=1):
        found = list(spans_found)
        if place is not None:
            found.insert(place, {"answer": "", "score": 0.6 if place == 0 else 0.435})
        return found[0] if top_k == 1 else found[:top_k]

    (answer,) = task.answers(pipe, [{"question": "q", "context": "c"}], 1)
    assert answer["answer"] == ("" if place == 0 else "span 0") and answer["best"] == "span 0"
    # Not among the candidates: no likelier than the last of them, at 0.31.
    assert answer["none"] == pytest.approx({0: 0.1, 7: -0.065, None: -0.19}[place])


def test_long_reviews_with_answers_far_behind_and_questions_without_any():
    """SubjQA's rows: reviews of many windows, each ending in a word of the annotators, empty lists of answers."""
    far = " ".join(["good", "story"] * 40 + ["ending", "ANSWERNOTFOUND"])
    place = far.index("ending")
    given = [spans(("ending", place), ("story ending", place - 6)), {"text": [], "answer_start": []}]
    rows = checked(table(*given, context=far), USED, "s", Repairs())
    assert rows["texts"][:] == [["ending", "story ending"], []]
    made = windows(rows, tiny_tokenizer(), max_length=24, stride=6)
    assert not made.lost
    begun = list(zip(made.rows, made.columns["start"], strict=True))
    held = [sum(start > 0 for row, start in begun if row == number) for number in (0, 1)]
    assert held[0] >= 1 and held[1] == 0 and made.rows.count(0) == made.rows.count(1) > 4


@pytest.fixture
def two_readers():
    """Words for the student, pieces of them behind blanks for the teacher."""
    pieces = learn_tokenizer(["go od fi lm ba d sto ry en ding plot", CONTEXT[:4]] * 3, 300)
    pieces.model_max_length = 64
    pieces.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    words = tiny_tokenizer()
    words.model_max_length = 20
    return words, pieces


def test_a_teacher_that_reads_other_tokens_is_understood_by_characters(two_readers):
    words, pieces = two_readers
    task = load_task("question_answering", {"stride": 5})
    context = " ".join([CONTEXT] * 3)
    rows = checked(table(spans(("bad story", 10)), spans(("ending", 25)), context=context), USED, "s", Repairs())
    ours, theirs = task.features(rows, words, 20), task.twins(rows, words, pieces)
    assert len(ours) == len(theirs) == 4
    batch, read = (
        task.collate(tokenizer, None)(made.to_list()) for tokenizer, made in ((words, ours), (pieces, theirs))
    )
    assert read["input_ids"].shape[1] > batch["input_ids"].shape[1]
    torch.manual_seed(0)
    outputs = SimpleNamespace(
        start_logits=torch.randn(read["spans"].shape), end_logits=torch.randn(read["spans"].shape)
    )
    moved = task.align(task.logits(outputs, read), batch, read)
    for name, given in (("start", outputs.start_logits), ("end", outputs.end_logits)):
        mass = given.masked_fill(~read["spans"], -1e5).softmax(-1)
        assert torch.allclose(moved[name].softmax(-1)[:, 0], mass[:, 0], atol=1e-3)
        for window, ids in enumerate(batch["input_ids"].tolist()):
            # Both readings of a window are the same words: the n-th of ours begins where the n-th of theirs does.
            inside = [p for p in range(1, len(ids)) if batch["spans"][window, p]]
            shown = [p for p in range(1, mass.shape[1]) if read["spans"][window, p]]
            pieces_of = group(pieces.convert_ids_to_tokens(read["input_ids"][window].tolist()), shown)
            assert len(pieces_of) == len(inside)
            for position, parts in zip(inside, pieces_of, strict=True):
                expected = mass[window, parts].sum()
                assert moved[name].softmax(-1)[window, position] == pytest.approx(expected.item(), abs=1e-4)


def group(tokens, positions):
    """Positions of byte-level tokens by word: a token that begins with a blank (Ġ) begins a word."""
    found = []
    for position in positions:
        if tokens[position].startswith("Ġ") or not found:
            found.append([])
        found[-1].append(position)
    return found


def test_places_where_the_teacher_never_begins_are_the_least_likely():
    spans = torch.tensor([[True, False, True, True, True]])
    moved = _moved(torch.tensor([[0.0, 3.0, 1.0, 2.0, 9.0]]), torch.tensor([[0, 2, 2, 3, -1]]), spans)
    assert moved[0, 2] == pytest.approx(math.log(math.exp(3) + math.exp(1)))
    assert moved[0].tolist()[::3] == pytest.approx([0.0, 2.0])
    assert (moved[0, 4], moved[0, 1]) == (0.0, -1e5)


def test_answers_that_no_window_holds_leave_training_and_are_counted():
    context = " ".join(["film"] * 30)
    rows = checked(table(spans((context, 0)), spans(("film", 5)), context=context), USED, "s", Repairs())
    task = load_task("question_answering", {"stride": 2})
    task._notes = {}
    kept = task.features(rows, tiny_tokenizer(), 20)
    assert all(begin > 0 for begin in kept["start"][:1]) and len(kept) == len(
        task.features(rows.select([1]), tiny_tokenizer(), 20)
    )
    assert "1 of 2 were left out of training, as no window of 20 tokens holds their answer" in task.notes()["windows"]


@pytest.mark.parametrize("start", [None, 5.0, float("nan"), 5])
def test_offsets_that_are_no_numbers_are_found_again(start):
    rows = Dataset.from_list(
        [{"question": "q", "context": CONTEXT, "answers": {"text": ["film"], "answer_start": [start]}}]
    )
    assert checked(rows, USED, "s", Repairs())["starts"][:] == [[5]]


def test_models_with_a_decoder_are_refused():
    task = load_task("question_answering")
    assert "this model has a decoder" in task.unfit(tiny_config("t5")) and task.unfit(tiny_config("bert")) is None


@pytest.mark.parametrize(("context", "answer", "start"), [("film bad ", "bad ", 5), (" good film", " good", 0)])
def test_blanks_at_the_edge_of_a_context_belong_to_no_token(context, answer, start):
    rows = checked(table(spans((answer, start)), context=context), USED, "s", Repairs())
    made = windows(rows, tiny_tokenizer(), max_length=32, stride=5).columns
    assert made["start"][0] > 0 and made["start"] == made["end"]


def test_no_paragraph_is_learnt_from_where_it_is_scored():
    rows = [
        {"question": f"the plot {n}", "context": f"{CONTEXT} {n % 40}", "answers": spans(("film", 5))}
        for n in range(200)
    ]
    task, made = load_task("question_answering"), checked(Dataset.from_list(rows), USED, "s", Repairs())
    cut = slices(DatasetDict(train=made), Data(dataset="rows"), task)
    parts = [set(part["context"][:]) for part in (cut.train, cut.selection, cut.evaluation)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 40


@pytest.mark.parametrize("contexts", [1, 2, 5])
def test_many_questions_about_few_contexts_are_cut_by_the_question(contexts):
    rows = [
        {"question": f"q{n}", "context": f"{CONTEXT} {n % contexts}", "answers": spans(("film", 5))} for n in range(200)
    ]
    made, task = checked(Dataset.from_list(rows), USED, "s", Repairs()), load_task("question_answering")
    for there in (DatasetDict(train=made), DatasetDict(train=made, validation=made)):
        cut = slices(there, Data(dataset="rows"), task)
        assert 90 < len(cut.train) and 5 <= len(cut.selection) <= 30 and len(cut.evaluation) >= 30


def test_the_official_file_is_read_as_it_is(tmp_path):
    asked = {"id": "7", "question": "what is good", "answers": [{"text": "film", "answer_start": 5}]}
    none = {"id": "8", "question": "what is bad", "answers": [], "is_impossible": True}
    articles = [{"title": "T", "paragraphs": [{"context": CONTEXT, "qas": [asked, none] * 10}]}]
    for name in ("train", "validation"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"version": "v2.0", "data": articles}))
    task = load_task("question_answering")
    rows = task.load_data(Data(dataset=str(tmp_path)))
    assert len(rows["train"]) == len(rows["validation"]) == 20 and rows["train"]["texts"][:2] == [["film"], []]
    assert task.options.no_answer is True


def test_windows_that_hold_no_answer_at_all_are_refused():
    whole = " ".join([CONTEXT] * 5)
    long = Dataset.from_list([{"question": "q", "context": whole, "texts": [whole], "starts": [0]}])
    with pytest.raises(WindowsTooShort, match="max_length 16"):
        load_task("question_answering", {"stride": 2}).features(long, tiny_tokenizer(), 16)
