"""`model/` loads unchanged in transformers.js (Node, a browser), ExecuTorch, ONNX Runtime and a plain Python server."""

import json
import re
import shutil
import subprocess
import sys
import threading
import unicodedata
import urllib.error
import urllib.request
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.parquet as parquet
import pytest

import nlp_distill
from nlp_distill.exports.executorch_files import quiet
from nlp_distill.loading import load_tokenizer
from nlp_distill.prediction import load_pipeline

ROOT = Path(__file__).parents[2]
HERE = ROOT / "tests" / "browser"
DATA = ROOT / "tasks" / "nlp_distill_tasks"
LIBRARY = HERE / "node_modules"
FILES = (
    "@huggingface/transformers/dist/transformers.min.js",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.wasm",
)
ROWS = 25
EXACT = 1e-5
"""Difference of a score between engines that compute the same."""
VARIANTS = {"fp32": "student-onnx-fp32", "q8": "student-onnx-int8", "uint8": "student-onnx-mobile"}
IN_A_BROWSER = ("fp32", "uint8")
"""Without q8: WebAssembly has no kernel for the few-bit tables of `fast`."""
TASKS = {"classifier": "text-classification", "answerer": "question-answering"}

pytestmark = pytest.mark.slow


def short_run(folder, recipe, sample, *settings):
    """A shipped recipe on few rows: real texts, a real teacher, the files that everybody gets, and those rows."""
    data, rows = folder / "data", {}
    data.mkdir()
    for split, count in (("train", 200), ("validation", ROWS)):
        table = parquet.read_table(DATA / sample / f"{split}.parquet").slice(0, count)
        parquet.write_table(table, data / f"{split}.parquet")
        rows[split] = table.to_pylist()
    common = ["teacher.finetune.epochs=1", "distill.epochs=1"]
    # `model/` is whole by then; timing it would take longer than making it.
    run = nlp_distill.run(recipe, *common, f"data.dataset={data}", *settings, out=folder / "run", until="evaluate")
    return run.path / "model", rows["validation"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model and real rows for each task. Questions whose context fits whole: JavaScript cuts longer ones."""
    phone = "{format: executorch, profile: mobile, score_drop: 100}"
    profiles = ("fast", "small", "mobile")
    graphs = ", ".join(f"{{format: onnx, profile: {profile}, score_drop: 100}}" for profile in profiles)
    classifier, texts = short_run(
        tmp_path_factory.mktemp("classifier"),
        "quickstart",
        "classification/data/sst2",
        "student.vocabulary=trim",
        f"export=[{graphs}, {{format: ort, profile: mobile, score_drop: 100}}, {phone}]",
    )
    answerer, questions = short_run(
        tmp_path_factory.mktemp("answerer"),
        "quickstart-qa",
        "question_answering/data/squad",
        "data.selection=20",
        f"export=[{graphs}, {phone}]",
    )
    tokenizer = load_tokenizer(answerer)
    asked = [{"question": row["question"], "context": row["context"]} for row in questions]
    fitting = [row for row in asked if len(tokenizer(*row.values())["input_ids"]) < tokenizer.model_max_length]
    assert len(fitting) > ROWS / 2
    return {"classifier": (classifier, [{"text": row["sentence"]} for row in texts]), "answerer": (answerer, fitting)}


def python_says(model, rows, variant):
    """Answers of any length and of pieces of words, as transformers.js gives them."""
    pipe, free = load_pipeline(model, variant), {"max_answer_len": 1000, "align_to_words": False}
    return [pipe(row["text"], top_k=None) if "text" in row else pipe(**row, **free) for row in rows]


def letters(answer):
    """transformers.js puts an answer's tokens together; spaces, capitals and accents are not the context's."""
    return re.sub(r"\W", "", unicodedata.normalize("NFD", answer.lower()))


def compare(ours, theirs, tolerance):
    """Scores within the tolerance; the same answers, unless numbers so near may fall either way."""
    for mine, other in zip(ours, theirs, strict=True):
        if isinstance(mine, dict):
            assert letters(mine["answer"]) == letters(other["answer"]) or tolerance > EXACT
            assert mine["score"] == pytest.approx(other["score"], abs=tolerance)
        else:
            scores = [{entry["label"]: entry["score"] for entry in said} for said in (mine, other)]
            assert scores[0] == pytest.approx(scores[1], abs=tolerance)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("dtype", VARIANTS)
def test_node(models, name, dtype):
    model, rows = models[name]
    assert (LIBRARY / FILES[0]).is_file(), "run `make javascript`"
    node = shutil.which("node")
    assert node, "install Node.js 20 (`apt-get install nodejs npm`)"
    done = subprocess.run(
        [node, HERE / "score.mjs", model.parent, model.name, TASKS[name], dtype],
        input="".join(json.dumps(row) + "\n" for row in rows),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    theirs = [json.loads(line) for line in done.stdout.strip().split("\n")]
    compare(python_says(model, rows, VARIANTS[dtype]), theirs, EXACT)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        """Nothing."""


@contextmanager
def served(folder):
    """The folder on loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("dtype", IN_A_BROWSER)
def test_browser(models, browser, tmp_path, name, dtype):
    """The sample page of docs/deploy, as it stands, with the model's folder as it stands."""
    model, rows = models[name]
    shutil.copyfile(ROOT / "docs" / "deploy" / "browser" / "index.html", tmp_path / "index.html")
    (tmp_path / "lib").mkdir()
    for file in FILES:
        shutil.copyfile(LIBRARY / file, tmp_path / "lib" / Path(file).name)
    (tmp_path / "model").symlink_to(model)
    with served(tmp_path) as address:
        page = browser.new_page()
        asked, failed = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto(f"{address}/?dtype={dtype}")
        page.wait_for_function("document.getElementById('answer').textContent != 'Loading …'", timeout=120_000)
        assert page.text_content("#answer") == "Ready.", page.text_content("#answer")
        theirs = []
        for row in rows:
            page.evaluate("document.getElementById('answer').textContent = ''")
            page.fill("#text", row.get("text") or row["question"])
            if "context" in row:
                page.fill("#context", row["context"])
            page.click("button")
            page.wait_for_function("document.getElementById('answer').textContent != ''", timeout=60_000)
            theirs.append(json.loads(page.text_content("#answer")))
        page.close()
    assert not failed
    # Nothing came from anywhere else.
    assert asked and all(url.startswith((address, "blob:", "data:")) for url in asked)
    compare(python_says(model, rows, VARIANTS[dtype]), theirs, EXACT if dtype == "fp32" else 2e-2)


@pytest.mark.parametrize(
    ("name", "variant", "tolerance"),
    [
        ("classifier", "student-executorch-int8", 2e-2),
        ("classifier", "student-ort-int8", 5e-2),
        ("answerer", "student-executorch-int8", 2e-2),
    ],
)
def test_phone_formats_answer_as_pytorch_does(models, name, variant, tolerance):
    model, rows = models[name]
    compare(python_says(model, rows, "student"), python_says(model, rows, variant), tolerance)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("variant", ["student-onnx-int8", "student-onnx-q4", "student-onnx-mobile"])
def test_answers_do_not_depend_on_batch_mates(models, name, variant):
    """Dynamic int8 moves scores by hundredths here; a padded sum in another order may move a rounding, no more."""
    model, rows = models[name]
    pipe = load_pipeline(model, variant)
    alone = [python_says(model, [row], variant)[0] for row in rows]
    if name == "classifier":
        together = pipe([row["text"] for row in rows], top_k=None, batch_size=len(rows))
    else:
        columns = {key: [row[key] for row in rows] for key in ("question", "context")}
        together = pipe(**columns, max_answer_len=1000, align_to_words=False, batch_size=8)
    compare(alone, together, 2e-3)


def test_a_program_as_an_app_calls_it(models):
    """The runtime alone: no padding, int64, logits out; a small file."""
    with quiet():
        from executorch.runtime import Runtime
    model, rows = models["classifier"]
    file = model / "mobile" / "model_quantized.pte"
    program, tokenizer = Runtime.get().load_program(file), load_tokenizer(model)
    said = [program.load_method(method).execute(())[0] for method in ("max_length", "inputs", "outputs")]
    assert said == [tokenizer.model_max_length, "input_ids,token_type_ids", "logits"]
    labels = json.loads((model / "config.json").read_text())["id2label"]
    for row, expected in zip(rows, python_says(model, rows, "student-executorch-int8"), strict=True):
        inputs = tokenizer(row["text"], return_tensors="pt")
        (logits,) = program.load_method("forward").execute([inputs["input_ids"], inputs["token_type_ids"]])
        assert labels[str(int(logits.argmax()))] == expected[0]["label"]
    assert file.stat().st_size < 8e6


@pytest.mark.parametrize("name", TASKS)
def test_the_sample_server(models, name):
    model, rows = models[name]
    with subprocess.Popen(
        [sys.executable, ROOT / "docs" / "deploy" / "python" / "server.py", model, "0"],
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            address = server.stdout.readline().strip()
            for row, expected in zip(rows[:5], load_and_ask(model, rows[:5]), strict=True):
                asked = json.dumps({"inputs": row.get("text") or row}).encode()
                with urllib.request.urlopen(urllib.request.Request(address, data=asked)) as answer:
                    said = json.loads(answer.read())
                said = said if isinstance(said, dict) else said[0]
                assert said["score"] == pytest.approx(expected["score"], abs=1e-6)
            with pytest.raises(urllib.error.HTTPError, match="400"):
                urllib.request.urlopen(urllib.request.Request(address, data=b"no JSON"))
        finally:
            server.terminate()


def load_and_ask(model, rows):
    """The top answer of the int8 ONNX pipeline."""
    pipe = load_pipeline(model, "student-onnx-int8")
    return [pipe(row["text"])[0] if "text" in row else pipe(**row) for row in rows]
