"""Scores are what others compute of the same pipelines: `evaluate.evaluator`, and the library functions of a metric."""

import datasets
import evaluate
import pytest
import sacrebleu
from datasets import Dataset

from nlp_distill.loading import load_model, load_tokenizer, save_model
from nlp_distill.prediction import variant_pipeline
from nlp_distill.recipe import Data
from nlp_distill.scores import predict
from nlp_distill.task import load_task
from nlp_distill.testing import save_tiny, tiny_questions, tiny_reversals, write_split
from nlp_distill_tasks.question_answering.squad import exact_match, f1

TEXT = datasets.Value("string")
ANSWERS = datasets.Sequence({"text": TEXT, "answer_start": datasets.Value("int32")})


class Squad(evaluate.Metric):
    def _info(self):
        said = {"id": TEXT, "prediction_text": TEXT}
        if self.config_name == "v2":
            said["no_answer_probability"] = datasets.Value("float32")
        features = datasets.Features({"predictions": said, "references": {"id": TEXT, "answers": ANSWERS}})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        golden = {row["id"]: row["answers"]["text"] for row in references}
        pairs = [(row["prediction_text"], golden[row["id"]]) for row in predictions]
        means = {"exact": exact_match, "f1": f1}
        return {name: 100 * sum(score(*pair) for pair in pairs) / len(pairs) for name, score in means.items()}


@pytest.mark.parametrize("none", [False, True])
def test_question_answering_as_the_evaluator_scores_it(tmp_path, none):
    given = tiny_questions(24, none)
    task = load_task("question_answering", {"no_answer": none, "stride": 4})
    rows = task.load_data(Data(dataset=write_split(tmp_path / "d", given, 0.5)))["validation"]
    pipe = variant_pipeline(save_tiny(tmp_path / "m", "bert", task.auto_class), task, None)
    raw = predict(pipe, task, rows)
    found = evaluate.evaluator("question-answering").compute(
        model_or_pipeline=pipe,
        data=Dataset.from_list(given[:12]),
        metric=Squad(config_name="v2" if none else "v1"),
        squad_v2_format=none,
    )
    scores = task.score(raw, rows)
    assert {name: scores[name] for name in ("exact", "f1")} == pytest.approx(
        {name: found[name] for name in ("exact", "f1")}
    )


class Bleu(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": TEXT, "references": TEXT})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        texts = [text.strip() for text in predictions]
        metrics = {"bleu": sacrebleu.corpus_bleu, "chrf": sacrebleu.corpus_chrf}
        return {name: metric(texts, [references]).score for name, metric in metrics.items()}


@pytest.mark.parametrize(("kind", "beams"), [("t5", 1), ("bart", 3)])
def test_generated_texts_as_the_evaluator_scores_them(tmp_path, kind, beams):
    given = list({row["source"]: row for row in tiny_reversals(40)}.values())
    task = load_task("seq2seq", {"num_beams": beams, "max_target_length": 8})
    rows = task.load_data(Data(dataset=write_split(tmp_path / "d", given, 0.5)))["validation"]
    folder = save_tiny(tmp_path / "m", kind, task.auto_class)
    model = load_model(folder, task.auto_class)
    task.configure(model)
    save_model(model, load_tokenizer(folder), folder)
    pipe = variant_pipeline(folder, task, None)
    raw = predict(pipe, task, rows)  # one by one, as the evaluator asks: padding may turn near ties of beams
    found = evaluate.evaluator("text2text-generation").compute(
        model_or_pipeline=pipe,
        data=Dataset.from_list(given[: len(rows)]),
        metric=Bleu(),
        input_column="source",
        label_column="target",
    )
    scores = task.score(raw, rows)
    assert {name: scores[name] for name in ("bleu", "chrf")} == pytest.approx(
        {name: found[name] for name in ("bleu", "chrf")}
    )
