"""transformers.js loads `model/` unchanged, in Node and in a browser, and says what Python says."""

import json
import shutil
import subprocess
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
from playwright.sync_api import sync_playwright

import nlp_distill
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
VARIANTS = {"fp32": "student-onnx-fp32", "q8": "student-onnx-int8"}
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
    common = ["teacher.finetune.epochs=1", "distill.epochs=1", "export=[{format: onnx, score_drop: 100}]"]
    run = nlp_distill.run(recipe, *common, f"data.dataset={data}", *settings, out=folder / "run")
    return run.path / "model", rows["validation"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model and real rows for each task. Questions whose context fits whole: JavaScript cuts longer ones."""
    classifier, texts = short_run(tmp_path_factory.mktemp("classifier"), "quickstart", "classification/data/sst2")
    answerer, questions = short_run(
        tmp_path_factory.mktemp("answerer"), "quickstart-qa", "question_answering/data/squad", "data.selection=20"
    )
    tokenizer = load_tokenizer(answerer)
    asked = [{"question": row["question"], "context": row["context"]} for row in questions]
    fitting = [row for row in asked if len(tokenizer(*row.values())["input_ids"]) < tokenizer.model_max_length]
    assert len(fitting) > ROWS / 2
    return {"classifier": (classifier, [{"text": row["sentence"]} for row in texts]), "answerer": (answerer, fitting)}


def python_says(model, rows, dtype):
    pipe = load_pipeline(model, VARIANTS[dtype])
    return [pipe(row["text"], top_k=None) if "text" in row else pipe(**row) for row in rows]


def compare(ours, theirs, tolerance):
    """The same answers, scores within the tolerance. Returns the largest difference."""
    worst = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        if isinstance(mine, dict):
            assert mine["answer"].strip() == other["answer"].strip()
            pairs = [(mine["score"], other["score"])]
        else:
            scores = {entry["label"]: entry["score"] for entry in other}
            assert set(scores) == {entry["label"] for entry in mine}
            assert mine[0]["label"] == other[0]["label"]
            pairs = [(entry["score"], scores[entry["label"]]) for entry in mine]
        worst = max([worst, *(abs(a - b) for a, b in pairs)])
    assert worst <= tolerance
    return worst


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
    compare(python_says(model, rows, dtype), theirs, tolerance=1e-6)


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


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    assert chromium, "install Chromium (`apt-get install chromium`)"
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("dtype", VARIANTS)
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
    compare(python_says(model, rows, dtype), theirs, tolerance=1e-5 if dtype == "fp32" else 2e-2)
