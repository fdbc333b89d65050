"""What seq2seq and masked-LM adapters do to rows, batches and answers."""

import json

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, models, pre_tokenizers

import nlp_distill
from nlp_distill.cutting import slices
from nlp_distill.errors import ColumnsUnclear, OptionInvalid, TextInvalid, TokenizerSlow, TokenizerUnfit
from nlp_distill.loading import load_tokenizer, new_model
from nlp_distill.preflight import check_model
from nlp_distill.recipe import Data
from nlp_distill.sources import resolve
from nlp_distill.starts import learn_tokenizer
from nlp_distill.task import load_task
from nlp_distill.testing import WORDS, tiny_config, tiny_model, tiny_reversals, tiny_tokenizer, write_split
from nlp_distill_tasks.masked_lm.adapter import _hidden
from nlp_distill_tasks.seq2seq.rows import checked, columns

USED = {"source": "source", "target": "target"}


def pairs(*rows):
    return Dataset.from_dict({"source": [s for s, _ in rows], "target": [t for _, t in rows]})


def test_rows_of_one_source_share_their_references_when_they_are_scored():
    rows = pairs(("a", "x"), ("b", "y"), ("a", "z"))
    grouped = checked(rows, USED, "s", group=True)
    assert grouped["references"][:] == [["x", "z"], ["y"]] and grouped["target"][:] == ["x", "y"]
    assert checked(rows, USED, "s", group=False)["target"][:] == ["x", "y", "z"]
    lists = checked(pairs(("a", ["x", "z"])), USED, "s", group=False)
    assert lists["source"][:] == ["a", "a"] and lists["target"][:] == ["x", "z"]


def test_no_source_is_learnt_from_where_it_is_scored():
    several = [(f"source {n}", [f"{n} {reference}" for reference in "abc"]) for n in range(60)]
    made = DatasetDict(train=checked(pairs(*several), USED, "s", group=False))
    cut = slices(made, Data(dataset="rows"), load_task("seq2seq"))
    parts = [cut.train, cut.selection, cut.evaluation]
    sources = [set(part["source"][:]) for part in parts]
    assert len(set.union(*sources)) == sum(map(len, sources)) == 60
    assert {len(row) for part in parts[1:] for row in part["references"]} == {3}
    assert len(cut.train) == 3 * len(sources[0])


@pytest.mark.parametrize("row", [("", "x"), ("a", " "), ("a", []), ("a", None)])
def test_pairs_without_text_are_refused(row):
    with pytest.raises(TextInvalid, match="at row 0"):
        checked(pairs(row), USED, "s", group=False)


def test_columns_are_guessed_or_asked_for():
    rows = Dataset.from_dict({"document": ["d"], "summary": ["s"], "id": [1]})
    assert columns(rows, {}, "s") == {"source": "document", "target": "summary"}
    with pytest.raises(ColumnsUnclear, match=r"set data\.columns\.source"):
        columns(Dataset.from_dict({"en": ["a"], "de": ["b"]}), {}, "s")


@pytest.fixture
def seq2seq():
    task = load_task("seq2seq", {"max_target_length": 6, "num_beams": 2})
    rows = checked(pairs(("good film", "bad"), ("dull", "good fine lovely superb great film plot")), USED, "s", True)
    return task, task.features(rows, tiny_tokenizer("t5"), 16)


def test_the_decoder_reads_what_it_is_to_say_one_place_later(seq2seq):
    task, features = seq2seq
    config = tiny_config("t5")
    batch = task.collate(tiny_tokenizer("t5"), config)(features.to_list())
    labels, read = batch["labels"], batch["decoder_input_ids"]
    assert read[:, 0].tolist() == [config.decoder_start_token_id] * 2
    assert torch.equal(read[:, 1:][labels[:, :-1] >= 0], labels[:, :-1][labels[:, :-1] >= 0])
    assert (labels[0] == -100).sum() == 3 and (read[0, 4:] == 0).all()
    assert task.term_mask(batch, "hidden", "decoder").sum() == 3 + 6
    assert task.term_mask(batch, "hidden", "encoder").sum() == 4 + 3
    said = "1 of 2 are cut at max_target_length 6 ('good fine lovely superb great …')"
    assert task._noted == {"sources": "", "targets": said, "spelling": ""}


def test_what_a_tokenizer_cannot_write_is_told(seq2seq):
    task = load_task("seq2seq", {})
    rows = checked(pairs(("good film", "Good film ."), ("bad", "bad  film")), USED, "s", True)
    task.features(rows, tiny_tokenizer("bert"), 16)
    assert task._noted["spelling"] == (
        "1 of 2 targets are not what the tokenizer can write ('Good film .' becomes 'film'): nor will the student, "
        "and BLEU and chrF count it"
    )


def test_a_start_token_that_the_tokenizer_wrote_is_not_an_answer(seq2seq):
    task, features = seq2seq
    config = tiny_config("encoder-decoder")
    batch = task.collate(tiny_tokenizer("t5"), config)(features.to_list())
    assert features["labels"][0][0] == config.decoder_start_token_id == 2
    assert batch["labels"][0].tolist()[:2] == features["labels"][0][1:]


def test_how_to_generate_is_saved_with_the_model(seq2seq, tmp_path):
    task, _ = seq2seq
    model = tiny_model("bart", task.auto_class)
    model.generation_config.forced_bos_token_id = 7
    task.configure(model)
    model.save_pretrained(tmp_path)
    saved = type(model.generation_config).from_pretrained(tmp_path)
    assert (saved.num_beams, saved.max_length, saved.forced_bos_token_id) == (2, 7, None)
    assert saved.decoder_start_token_id == model.config.decoder_start_token_id


def test_lengths_and_repeats_that_were_asked_for_are_saved(tmp_path):
    asked = {"length_penalty": 0.6, "no_repeat_ngram_size": 3, "min_target_length": 2, "max_target_length": 9}
    task = load_task("seq2seq", {**asked, "num_beams": 3})
    model = tiny_model("t5", task.auto_class)
    task.configure(model)
    model.save_pretrained(tmp_path)
    saved = type(model.generation_config).from_pretrained(tmp_path)
    assert (saved.num_beams, saved.length_penalty, saved.no_repeat_ngram_size) == (3, 0.6, 3)
    assert saved.max_length > saved.min_length > 1


def test_a_models_own_way_to_generate_gives_way_and_is_named(seq2seq, tmp_path):
    """An older config.json would win over the options when the model is saved."""
    task, _ = seq2seq
    config = tiny_config("bart", num_beams=4, min_length=56)
    model = new_model(config, task.auto_class, seed=1)
    model.generation_config.update(bad_words_ids=[[9000]], no_repeat_ngram_size=3, temperature=0.2, do_sample=True)
    said = task.configure(model)
    for setting in (
        "bad_words_ids [[9000]]",
        "min_length 56",
        "num_beams 4",
        "no_repeat_ngram_size 3",
        "do_sample True",
    ):
        assert setting in said
    model.save_pretrained(tmp_path)
    saved = type(model.generation_config).from_pretrained(tmp_path)
    assert (saved.num_beams, saved.min_length, saved.no_repeat_ngram_size, saved.bad_words_ids) == (2, 0, 0, None)
    assert task.configure(model) is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"decoder_start_token_id": None}, "the decoder_start_token_id None"),
        ({"decoder_start_token_id": 5000}, "the decoder_start_token_id 5000, which is no token of its 34"),
        ({"pad_token_id": None}, "the pad_token_id None"),
        ({"eos_token_id": None}, "the eos_token_id None"),
    ],
)
def test_a_config_that_cannot_generate_is_refused(seq2seq, settings, words):
    task, _ = seq2seq
    config = tiny_config("t5")
    for name, value in settings.items():
        setattr(config, name, value)
    assert words in task.unfit(config)
    for kind in ("t5", "bart", "marian", "encoder-decoder"):
        assert task.unfit(tiny_config(kind)) is None


def test_a_report_of_two_rows_has_no_empty_group():
    task = load_task("seq2seq")
    rows = checked(pairs(("good film", "bad"), ("dull good fine lovely superb great", "plot")), USED, "s", True)
    found = task.groups(np.array(["bad", "plot"], dtype=object), rows)
    assert found.rows == [1, 1] and found.names == ["2 to 2 words", "6 to 6 words"]


def test_a_learnt_tokenizer_gives_texts_back():
    texts = ["Ein grüner Hund läuft.", "name[The Punter], food[Thai]", "two  blanks"]
    tokenizer = learn_tokenizer(texts * 3, 400)
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text
    assert len(tokenizer) <= 400


@pytest.fixture
def masked(tmp_path):
    lines = [f'{{"text": "{" ".join(WORDS[i : i + 12])}"}}' for i in range(0, 12)] * 5
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
    task = load_task("masked_lm")
    return task, task.load_data(Data(dataset=str(tmp_path)))["train"]


def test_hidden_tokens_depend_on_the_noise_alone(masked):
    task, rows = masked
    tokenizer = tiny_tokenizer()
    features = task.features(rows, tokenizer, 32).to_list()[:8]
    collate = task.collate(tokenizer, tiny_config("bert"))
    one, again, other = (collate([{**row, "noise": noise} for row in features]) for noise in (1, 1, 2))
    assert torch.equal(one["input_ids"], again["input_ids"]) and torch.equal(one["labels"], again["labels"])
    assert not torch.equal(one["labels"], other["labels"])
    alone = collate([{**features[3], "noise": 1}])
    assert torch.equal(alone["labels"][0], one["labels"][3][: alone["labels"].shape[1]])


def test_shares_of_hidden_tokens(masked):
    task, rows = masked
    tokenizer = tiny_tokenizer()
    features = task.features(rows, tokenizer, 32).to_list() * 40
    batch = task.collate(tokenizer, tiny_config("bert"))([{**row, "noise": i} for i, row in enumerate(features)])
    hidden, ids = batch["labels"] != -100, batch["input_ids"]
    assert not hidden[(ids == 2) & (batch["labels"] == 2)].any() and not hidden[batch["attention_mask"] == 0].any()
    assert hidden.sum() / (12 * len(features)) == pytest.approx(2 / 12, abs=0.01)
    masks = (ids[hidden] == tokenizer.mask_token_id).float().mean()
    kept = (ids[hidden] == batch["labels"][hidden]).float().mean()
    assert masks == pytest.approx(0.8, abs=0.03) and kept == pytest.approx(0.1 + 0.1 / 39, abs=0.02)
    assert task.term_mask(batch, "labels", "encoder").sum() == hidden.sum()


@pytest.mark.parametrize("between", [" ", "\n", ""])
def test_the_hidden_word_stays_within_the_models_limit(between):
    """Also where no blanks tell words apart."""
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 32
    before = between.join(["film"] * 100) + " "
    row = {"text": before + "good" + " " + between.join(["story"] * 100), "begin": len(before), "end": len(before) + 4}
    shown = _hidden(row, tokenizer)
    read = tokenizer(shown, truncation=True)["input_ids"]
    assert read.count(tokenizer.mask_token_id) == 1 and "good" not in shown
    assert shown in row["text"].replace("good", "[MASK]")


def test_a_mask_that_the_text_has_itself_hides_nothing():
    row = {"text": "a [MASK] film and a good [MASK] story", "begin": 20, "end": 24}
    assert row["text"][20:24] == "good"
    assert _hidden(row, tiny_tokenizer()) == "a  film and a [MASK]  story"


def test_guesses_are_scored_where_a_word_was_asked_for(masked):
    task, rows = masked
    words = [text[b:e] for text, b, e in zip(rows["text"][:], rows["begin"][:], rows["end"][:], strict=True)]
    guesses = [[word, "x"] if i % 2 else ["x", word] for i, word in enumerate(words)]
    raw = task.raw_outputs([[{"token_str": f" {g.upper()}"} for g in row] for row in guesses])
    assert task.score(raw, rows) == {"accuracy": 50.0, "accuracy_top5": 100.0}


@pytest.mark.parametrize("length", [18, 19, 20])
def test_answers_are_as_long_as_they_may_be_in_a_stock_pipeline(length):
    """A `max_length` of 20, transformers' default, would count as none, and answers would have 256 tokens."""
    task = load_task("seq2seq", {"max_target_length": length})
    model = tiny_model("t5", task.auto_class)
    task.configure(model)
    model.generation_config.eos_token_id = None
    pipe = transformers.pipeline(task.pipeline_task, model=model, tokenizer=tiny_tokenizer("t5"))
    said = pipe("good film", return_tensors=True)[0]["generated_token_ids"]
    assert len(said) == (21 if length == 19 else length + 1)


def test_what_a_config_puts_before_texts_is_not_put_there_twice(seq2seq):
    task, _ = seq2seq
    model = tiny_model("t5", task.auto_class)
    model.config.prefix = "summarize: "
    model.config.task_specific_params = {"summarization": {"prefix": "summarize: "}}
    task.configure(model)
    pipe = transformers.pipeline(task.pipeline_task, model=model, tokenizer=tiny_tokenizer("t5"))
    assert pipe.prefix is None and model.config.task_specific_params is None


def test_a_tokenizer_that_marks_languages_and_was_told_none_is_refused(seq2seq):
    task, _ = seq2seq
    rows = checked(pairs(("good film", "bad")), USED, "s", True)
    tokenizer = tiny_tokenizer("t5")
    tokenizer.tgt_lang = None
    with pytest.raises(TokenizerUnfit, match="write src_lang and tgt_lang, such as en_XX"):
        task.features(rows, tokenizer, 16)


def test_a_tokenizer_that_marks_languages_marks_both(seq2seq):
    """mBART's: a source ends in its language, a target in its own, which generation then begins with."""
    task, _ = seq2seq
    words = [(word, 0.0) for word in ("<s>", "<pad>", "</s>", "<unk>", "\u2581good", "\u2581film", "\u2581bad")]
    unigram = Tokenizer(models.Unigram(words, unk_id=3))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = transformers.MBartTokenizerFast(tokenizer_object=unigram, src_lang="en_XX", tgt_lang="de_DE")
    rows = checked(pairs(("good film", "bad")), USED, "s", True)
    (row,) = task.features(rows, tokenizer, 16).to_list()
    source, target = (tokenizer.convert_ids_to_tokens(row[name]) for name in ("input_ids", "labels"))
    assert source[-2:] == ["</s>", "en_XX"] and target[-2:] == ["</s>", "de_DE"]
    assert "\u2581bad" in target


def test_all_references_are_scored_where_a_column_lists_them():
    """As WebNLG has them: a text a row in train, where the list is empty; all texts of an entry in validation."""
    train = Dataset.from_list([{"input_text": "a | b", "target": "b of a", "references": []}] * 2)
    entry = {"input_text": "a | b", "target": "b of a", "references": ["b of a", "a has b"]}
    used = columns(train, {}, "s")
    assert used == {"source": "input_text", "target": "target", "references": "references"}
    assert checked(train, used, "s", group=False)["target"] == ["b of a", "b of a"]
    scored = checked(Dataset.from_list([entry]), used, "s", group=True)
    assert scored["references"] == [["b of a", "a has b"]]
    given = columns(train, {"source": "input_text", "target": "target"}, "s")
    assert checked(Dataset.from_list([entry]), given, "s", group=True)["references"] == [["b of a"]]


def test_references_may_be_the_target_and_a_wrong_one_is_named():
    rows = Dataset.from_list([{"input_text": "a", "target": "b", "references": ["b", ""]}])
    chosen = columns(rows, {"target": "references"}, "s")
    assert chosen == {"source": "input_text", "target": "references"}
    with pytest.raises(TextInvalid, match="column 'references' has no text at row 0"):
        checked(rows, columns(rows, {}, "s"), "s", group=True)


def test_a_table_with_more_rows_than_words_hides_none_behind_them():
    """A teacher of the same tokenizer may have no such rows."""
    tokenizer = tiny_tokenizer()
    task, config = load_task("masked_lm", {"mask_share": 0.9}), tiny_config("bert", vocab_size=100_000)
    features = task.features(Dataset.from_list([{"text": "good film " * 7}] * 64), tokenizer, 32)
    rows = [{**row, "noise": number} for number, row in enumerate(features)]
    assert int(task.collate(tokenizer, config)(rows)["input_ids"].max()) < len(tokenizer)


def test_long_texts_are_learnt_from_in_pieces(tmp_path):
    task = load_task("masked_lm")
    rows = [{"text": "good film"}, {"text": "fine plot " * 40}]
    task.load_data(Data(dataset=write_split(tmp_path / "d", rows * 10)))
    features = task.features(Dataset.from_list(rows), tiny_tokenizer(), 16)
    pieces = [ids for ids in features["input_ids"][:]]
    assert len(pieces) == 1 + -(-80 // 14) and max(map(len, pieces)) == 16
    assert sum(len(ids) - 2 for ids in pieces) == 82 and features["example_id"][:] == [*range(len(pieces))]
    said = "1 of 2 have more than 16 tokens and are cut in pieces ('fine plot fine plot fine plot' …)"
    assert task.notes()["texts"] == said


def test_answers_have_a_least_length():
    task = load_task("seq2seq", {"min_target_length": 5})
    model = tiny_model("bart", task.auto_class)
    task.configure(model)
    said = model.generate(torch.tensor([[2, 7, 3]]), do_sample=False)
    assert model.generation_config.min_length == 6 and said.shape[1] >= 6


def test_the_least_length_is_not_above_the_most():
    with pytest.raises(OptionInvalid, match=r"min_target_length is above max_target_length \(8\)"):
        load_task("seq2seq", {"min_target_length": 9, "max_target_length": 8})


def slow_marian(folder):
    """A checkpoint as the Hub's: two SentencePiece models and a vocabulary, no tokenizer.json."""
    import sentencepiece

    folder.mkdir()
    texts = [" ".join(row.values()) for row in tiny_reversals(80)]
    for side in ("source", "target"):
        with (folder / f"{side}.spm").open("wb") as stream:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts), model_writer=stream, vocab_size=60, minloglevel=2, hard_vocab_limit=False
            )
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "source.spm"))
    pieces = [model.id_to_piece(number) for number in range(model.get_piece_size())]
    words = ["</s>", "<unk>", *(piece for piece in pieces if piece not in ("<s>", "</s>", "<unk>")), "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    settings = {"tokenizer_class": "MarianTokenizer", "source_lang": "en", "target_lang": "de"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    ids = {"pad_token_id": len(words) - 1, "decoder_start_token_id": len(words) - 1, "eos_token_id": 0}
    made = tiny_model("marian", "AutoModelForSeq2SeqLM", vocab_size=len(words), forced_eos_token_id=None, **ids)
    made.save_pretrained(folder)
    return folder


def test_a_slow_tokenizer_serves_where_no_places_are_asked_for(tiny_recipe, tmp_path):
    marian = slow_marian(tmp_path / "marian")
    assert not load_tokenizer(marian).is_fast
    recipe = tiny_recipe(
        task="seq2seq",
        data={"dataset": write_split(tmp_path / "d", tiny_reversals(60))},
        options={"max_target_length": 8},
        teacher={"model": str(marian), "finetune": {"epochs": 1, "batch_size": 16}},
        student={"decoder_layers": 1},
        distill={"epochs": 1, "batch_size": 16, "losses": [{"kind": "logits"}, {"kind": "labels"}]},
        export=[{"format": "onnx", "profile": "fast", "score_drop": 100}],
    )
    run = nlp_distill.run(recipe, out=tmp_path / "run", until="evaluate")
    assert {"source.spm", "target.spm", "vocab.json"} <= {file.name for file in (run.path / "model").iterdir()}
    said = run.pipeline("student")("good film")[0]["generated_text"]
    assert isinstance(said, str)
    assert run.pipeline("student-onnx-fp32")("good film")[0]["generated_text"] == said
    assert isinstance(run.pipeline("student-onnx-int8")("good film")[0]["generated_text"], str)


def test_a_slow_tokenizer_is_refused_where_places_are(tmp_path):
    slow = slow_marian(tmp_path / "slow")
    tiny_model("bert", "AutoModelForQuestionAnswering").save_pretrained(slow)
    with pytest.raises(TokenizerSlow, match="which question_answering needs"):
        check_model(resolve(str(slow)), load_task("question_answering"))
