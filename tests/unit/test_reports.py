"""A run's report: its numbers, its pictures, and that nothing in the data becomes a part of the page."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml

from nlp_distill.cutting import slices
from nlp_distill.errors import ResultsMissing, RunFolderDamaged, RunFolderNotFound
from nlp_distill.recipe import Budget, Data
from nlp_distill.reports.curves import trainings
from nlp_distill.reports.insights import MOST_LABELS, mixed
from nlp_distill.reports.pages import plain_markdown, report
from nlp_distill.reports.plots import Axis, Line, Mark, curves, front, trade_off
from nlp_distill.reports.results import recommend
from nlp_distill.reports.table import BUSY, busy, next_lines, verdict
from nlp_distill.scores import raw_lines, read_raw
from nlp_distill.task import Confusion, load_task

EVIL = '<script>alert(1)</script>"><img src=http://evil.example/x onerror=alert(1)>'
NUMBERS = (
    *("88.25", "85.25 to 90.25", "98.1 %", "1.75", "−1.25 to 2.50", "93.2 %", "1.2 %", "18.33", "1.87", "2.06"),
    *("321", "1.5 M"),
)
LABELS = ["good", f"bad {EVIL}"]


def stage(name, state="started"):
    return {"event": "stage", "stage": name, "state": state}


def step(number, value, name="distill", steps=4):
    return {"event": "progress", "stage": name, "step": number, "steps": steps, "losses": {"logits": value}}


def metric(epoch, name="distill", **values):
    return {"event": "metric", "stage": name, "epoch": epoch, "epochs": 2, **values}


def variant(name, score, p50, size, **rest):
    latency = [{"sequence": 9, "threads": 1, "batch": 1, "p50": p50, "p90": p50 * 1.1}]
    return {
        **{"name": name, "path": name, "runtime": "pytorch", "precision": "fp32", "settings": {"note": EVIL}},
        **{"status": "passed", "n": 60, "score": {"accuracy": score, "f1_macro": score - 1.5}},
        **{"score_ci95": [score - 3, score + 2], "retained": score / 90, "drop": round(90 - score, 2)},
        **{"drop_ci95": [-1.25, 2.5], "agreement": 0.9321, "flips": None, "params": 1_500_000, "latency_ms": latency},
        **{"peak_memory_mb": 321.4, "bytes": size},
        **rest,
    }


ATTEMPTS = [
    {
        **{"quantization": f"weights of 4 bits, way {way}", "embedding_bits": 4, "calibration": {"rows": 128}},
        "gate": {"rows": 400, "flips": 30 - way, "drop_on_selection": 12.5 - way, "allowed": 0.5},
    }
    for way in range(6)
]
REFUSED = {
    **{"name": "student-onnx-int4", "path": None, "runtime": "onnxruntime", "precision": "int4", "status": "refused"},
    **{"settings": {**ATTEMPTS[-1], "attempts": ATTEMPTS}, "latency_ms": [], "score": None, "drop": None},
}


@pytest.fixture
def finished(tmp_path):
    """The folder of a finished run of two labels, one of them hostile, made without training."""
    generator = np.random.default_rng(0)
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    for name, count in (("train", 80), ("validation", 60)):
        rows = [{"text": f"row {n} of {name} {EVIL}", "label": LABELS[n % 2]} for n in range(count)]
        (data / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (run / "predictions").mkdir(parents=True)
    recipe = {"task": "classification", "data": {"dataset": str(data)}, "teacher": {"model": "none/such"}}
    (run / "recipe.yaml").write_text(f"# {EVIL}\n" + yaml.safe_dump({**recipe, "student": {"layers": 1}}))
    spec = Data(dataset=str(data))
    found = slices(load_task("classification").load_data(spec), spec)
    logits = generator.normal(size=(60, 2)).astype(np.float32)
    for name, shift in (("teacher", 0.0), ("student", 0.5), ("student-onnx-int8", 0.6)):
        raw = logits + generator.normal(size=(60, 2)).astype(np.float32) * shift
        (run / "predictions" / f"{name}.jsonl").write_text(raw_lines(raw))
    results = {
        **{"schema": 1, "task": "classification", "metric": "accuracy", "recipe_sha256": "ab" * 32, "seed": 0},
        **{"versions": {"torch": "2.13"}, "machine": {"processor": EVIL, "accelerator": None}, "determinism": "strict"},
        **{"precision": {"asked": "auto", "precision": "fp32"}, "selected_on": "9 rows", "real_sequence": 9},
        "data": {
            **{"source": str(data), "revision": None, "split": "validation", "notes": {"labels": EVIL}},
            **{"rows": found.rows, "sha256": found.sha256},
        },
        "teacher": {"name": EVIL, "revision": None, "finetuned": False},
        "student": {"kind": "cut", "copy_map": {"encoder": [1]}},
        "training": {"distill": [{"best_epoch": 2, "steps": 20}], "control": None},
        **{"new_tokens": None, "recommended": "student-onnx-int8"},
        "variants": [
            variant("teacher", 90.0, 40.0, 91_000_000, drop=0.0, agreement=1.0, retained=1.0),
            variant("student", 88.52, 20.0, 70_000_000),
            variant("student-onnx-int8", 88.25, 1.87, 18_330_000, flips=0.0123),
            REFUSED,
        ],
        "timings_s": {"distill": 63.0, "export": 1.5},
        "budget": {
            "latency_ms": {"asked": 1.0, "got": 1.87, "met": False},
            "size_mb": {"asked": 20.0, "got": 18.33, "met": True},
        },
    }
    (run / "results.json").write_text(json.dumps(results))
    events = [stage("distill")]
    for epoch in (1, 2):
        events += [step(10 * epoch - 10 + n, 1 / (10 * epoch + n), steps=20) for n in range(1, 11)]
        events.append(metric(epoch, logits=0.1 / epoch, selection_score=80.0 + epoch))
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return run


class Page(HTMLParser):
    """Tags, their attributes, and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.said = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.said.append(data)


def test_the_page_and_the_markdown_say_what_the_results_say(finished):
    html, markdown = (file.read_text(encoding="utf-8") for file in report(finished))
    text = " ".join(Page(html).said)
    for said in (text, markdown):
        for number in NUMBERS:
            assert number in said, number
        assert "accuracy, 5.0× smaller, 21.4× as fast" in said
        assert "lost 7.5 points" in said and "refused" in said
        assert "Budget missed: latency" in said.replace("\\", "")
    assert "missed" in text and "met" in text and "1 min 3 s" in text
    assert len(html) < 2_000_000


def test_nothing_in_the_data_is_a_part_of_the_page(finished):
    page = Page(report(finished)[0].read_text(encoding="utf-8"))
    assert not {"script", "img", "iframe", "object", "link rel=stylesheet"} & {*page.tags}
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    for name, value in page.attributes:
        if name in ("src", "href"):
            assert value.startswith(("#", "data:")), value
    assert EVIL in " ".join(page.said), "it is shown as the text that it is"
    assert any(value and value.startswith("default-src 'none'") for _, value in page.attributes)


def test_nothing_in_the_data_is_a_part_of_the_markdown(finished):
    markdown = report(finished)[1].read_text(encoding="utf-8")
    assert "<" not in markdown and "http://" not in markdown
    header, ruler, *rows = [line for line in markdown.splitlines() if line.startswith("|")][:6]
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in (header, ruler, *rows)]
    assert len(set(cells)) == 1, "no cell opens another"
    assert plain_markdown("a|b\n# c [x](http://y) `z`") == r"a\|b \# c \[x\](http:&#47;&#47;y) \`z\`"


def test_groups_confusion_and_disagreements_come_from_the_answers(finished):
    page = Page(report(finished)[0].read_text(encoding="utf-8"))
    text = " ".join(" ".join(page.said).split())
    assert "By label" in text and "What is taken for what" in text
    parted = int(re.search(r"On (\d+) of 60 rows the answers", text)[1])
    raws = {
        name: read_raw((finished / "predictions" / f"{name}.jsonl").read_text())
        for name in ("teacher", "student-onnx-int8")
    }
    assert parted == int((raws["teacher"].argmax(1) != raws["student-onnx-int8"].argmax(1)).sum()) > 3
    assert page.tags.count("li") - len(ATTEMPTS) == min(parted, 20)


def test_without_rows_or_answers_the_rest_is_there(finished, tmp_path):
    shutil.rmtree(tmp_path / "data")
    text = report(finished)[0].read_text(encoding="utf-8")
    assert "the rows of this run are not here" in text and "88.25" in text and "By label" not in text


def test_other_rows_than_those_of_the_run_are_not_shown(finished, tmp_path):
    file = tmp_path / "data" / "validation.jsonl"
    file.write_text(file.read_text().replace("row 3", "another"))
    assert "the rows of this run are not here" in report(finished)[0].read_text(encoding="utf-8")


def test_a_run_without_results_is_told_to_finish(tmp_path):
    with pytest.raises(RunFolderNotFound):
        report(tmp_path)
    (tmp_path / "recipe.yaml").write_text("x")
    with pytest.raises(ResultsMissing, match="has no results yet"):
        report(tmp_path)


def test_results_that_miss_something_are_named(finished):
    results = json.loads((finished / "results.json").read_text())
    del results["determinism"]
    (finished / "results.json").write_text(json.dumps(results))
    with pytest.raises(RunFolderDamaged, match="determinism"):
        report(finished)


def test_curves_are_of_epochs_and_terms():
    (made,) = trainings(
        [stage("distill"), step(1, 3.0), step(2, 2.0), metric(1, logits=2.5, selection_score=80.0, selection_loss=1.0)]
    )
    assert made.losses == {"logits": [(0.5, 3.0), (1.0, 2.0)]}
    assert made.ends == {"logits": [(1.0, 2.5)]} and made.scores == [(1.0, 80.0)]


def test_what_was_done_twice_is_drawn_once():
    first = [stage("distill"), step(1, 9.0), step(2, 9.0), step(3, 9.0), metric(1, logits=9.0)]
    again = {"event": "resumed", "stage": "distill", "step": 1}
    (made,) = trainings([*first, stage("distill"), again, step(2, 5.0), metric(1, logits=5.0)])
    assert made.losses["logits"] == [(0.5, 9.0), (1.0, 5.0)] and made.ends["logits"] == [(1.0, 5.0)]
    (made,) = trainings([*first, stage("distill"), step(1, 5.0), metric(1, logits=5.0)])
    assert made.losses["logits"] == [(0.5, 5.0)], "a stage made anew forgets what was"


def test_the_front_is_what_nothing_beats():
    marks = [
        Mark(name, "export", x, y, y, y) for name, x, y in [("a", 1, 80), ("b", 2, 79), ("c", 3, 90), ("d", 3, 85)]
    ]
    assert [mark.label for mark in front(marks)] == ["a", "c"]


def test_axes_are_round_and_logarithmic_where_it_helps():
    assert not Axis([1, 7], 0, 100).log and Axis([1, 70], 0, 100).log
    assert Axis([1, 70], 0, 100).ticks() == [1, 2, 5, 10, 20, 50]
    axis = Axis([80, 90], 0, 100, log=False)
    assert axis.ticks() == [80, 82.5, 85, 87.5, 90] or axis.ticks() == [80, 85, 90]
    assert 0 < axis.at(80) < axis.at(90) < 100
    assert Axis([5.0], 0, 1).at(5.0) == pytest.approx(0.5), "one value alone has room"


def test_plots_are_told_to_those_who_do_not_see_them():
    marks = [Mark(EVIL, "teacher", 10, 90, 88, 91), Mark("b", "student", 1, 80, 70, 90, True)]
    drawn = str(trade_off(marks, "Score against size", "MB", "accuracy"))
    assert 'role="img"' in drawn and "b: accuracy 80.00 at 1 (MB)" in drawn and "<script" not in drawn
    assert str(curves([Line("a", "student", [(0, 1.0), (1, 1.0)])], "t", "epoch", "")).startswith("<svg")


def test_many_labels_are_told_by_the_pairs_that_are_mixed_up_most():
    count = MOST_LABELS + 1
    counts = np.eye(count, dtype=int) * 9
    counts[2, 5], counts[1, 0] = 3, 7
    made = mixed(Confusion([f"l{n}" for n in range(count)], counts.tolist()))
    assert made["rows"] == [] and made["pairs"] == [("l1", "l0", "7", "16"), ("l2", "l5", "3", "12")]


def test_a_busy_machine_is_said_to_be(finished):
    results = json.loads((finished / "results.json").read_text())
    assert busy(results) is None
    latency = results["variants"][2]["latency_ms"][0]
    latency["p90"] = latency["p50"] * BUSY
    assert "the machine was busy" in busy(results) and busy(results) in verdict(results)


def test_a_sure_loss_is_called_one(finished):
    results = json.loads((finished / "results.json").read_text())
    student = next(variant for variant in results["variants"] if variant["name"] == "student")
    results["variants"] = [variant for variant in results["variants"] if variant["name"] != "control"]
    results["variants"].append({**student, "name": "control"})
    student |= {"gain_over_control": -3.0, "gain_over_control_ci95": [-4.1, -1.9]}
    assert any(line.startswith("Distillation did harm: -3.00 points") for line in verdict(results))


def test_every_attempt_at_a_form_is_in_the_report(finished):
    page, markdown = (file.read_text(encoding="utf-8") for file in report(finished))
    for way, lost in enumerate(("12.50", "11.50", "10.50", "9.50", "8.50", "7.50")):
        said = f"weights of 4 bits, way {way}; embedding bits 4; calibration.rows 128; "
        said += f"lost {lost} points, {30 - way} of 400 answers changed"
        assert said in page and f"student-onnx-int4, {way + 1}: {said}" in markdown


def test_a_form_that_lost_more_on_the_reported_rows_than_it_might_is_named(finished):
    results = json.loads((finished / "results.json").read_text())
    int8 = next(v for v in results["variants"] if v["name"] == "student-onnx-int8")
    int8["settings"]["gate"] = {"rows": 400, "flips": 3, "drop_on_selection": 0.1, "allowed": 0.25}
    int8["loss_ci95"] = [-0.1, 0.64]
    said = (
        "student-onnx-int8 lost 0.27 points against the student on the reported rows (95 % interval -0.10 to 0.64); "
        "0.25 were allowed on the selection rows, which it passed."
    )
    assert said in verdict(results)
    int8["settings"]["gate"]["allowed"] = 0.3
    assert not any("student-onnx-int8 lost" in line for line in verdict(results))


def test_the_lines_to_type_next_give_a_model_of_pairs_both_texts(finished):
    results = json.loads((finished / "results.json").read_text())
    alone = next_lines(finished, {**results, "inputs": ["text"]})
    both = next_lines(finished, {**results, "inputs": ["text", "text_pair"]})
    assert not any("text_pair" in line or "--text-pair" in line for line in alone)
    assert any("'A text of yours.' --text-pair 'Another text of yours.'" in line for line in both)
    assert any("({'text': 'A text of yours.', 'text_pair': 'Another text of yours.'})" in line for line in both)


def test_what_surely_lost_more_than_it_might_is_not_recommended_where_another_did_not(finished):
    variants = json.loads((finished / "results.json").read_text())["variants"]
    int8 = next(v for v in variants if v["name"] == "student-onnx-int8")
    smaller = {**int8, "name": "student-onnx-q4", "bytes": 9_000_000, "score": {"accuracy": 87.0}}
    smaller |= {"settings": {"gate": {"allowed": 0.5}}, "loss_ci95": [0.4, 3.0]}
    int8["settings"] = {"gate": {"allowed": 0.5}}

    def chosen(*entries):
        return recommend([variants[0], *entries], "accuracy", Budget(), 9)["name"]

    student = next(v for v in variants if v["name"] == "student")
    assert chosen(student, int8, smaller) == "student-onnx-int8"
    smaller["loss_ci95"] = [-0.1, 3.5]  # It may be chance.
    assert chosen(student, int8, smaller) == "student-onnx-q4"
    smaller["loss_ci95"] = [0.4, 3.0]
    smaller["settings"] = {"gate": {"allowed": 2.0}}
    assert chosen(student, int8, smaller) == "student-onnx-q4"
