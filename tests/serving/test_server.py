"""The real server, over a socket: answers of the pipelines, clients of others, bad input, overload, its end."""

import asyncio
import contextlib
import functools
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import httpx
import huggingface_hub
import psutil
import pytest
from huggingface_hub import InferenceClient

from nlp_distill.prediction import load_pipeline
from nlp_distill.serving.app import Settings, make_app
from nlp_distill.serving.catalog import Served
from nlp_distill.serving.engines import Answer, Engine
from nlp_distill.serving.metrics import Metrics
from nlp_distill.testing import WORDS, tiny_rows

INT8, FP32 = "student-onnx-int8", "student-onnx-fp32"
TEXTS = [row["text"] for row in tiny_rows(32)]
QUESTION = {"question": "which film", "context": ", ".join(WORDS * 6)}


class Running:
    """`nlp-distill serve` in a process of its own."""

    def __init__(self, *arguments, said, **environment):
        self.said = said
        command = [sys.executable, "-m", "nlp_distill.cli", "serve", "--port", "0", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=said, text=True, env={**os.environ, **environment}
        )
        self.lines = []
        while (line := self.process.stdout.readline()) and not line.startswith("Listening"):
            self.lines.append(line.strip())
        assert line, f"{self.lines} {said.name}: {open(said.name).read()}"
        self.url = re.search(r"http://\S+?:\d+", line)[0]
        self.client = httpx.Client(base_url=self.url, timeout=60, verify=False)

    def post(self, path, body, **sent):
        return self.client.post(path, json=body, **sent)

    def engines(self):
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in found if "nlp_distill.serving.engine" in child.cmdline()]

    def counted(self, name, **labels):
        """A number of /metrics."""
        text = self.client.get("/metrics").text
        wanted = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
        found = re.search(rf"^{name}{{{wanted}}} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def errors(self):
        with open(self.said.name) as file:
            return file.read()

    def stop(self):
        self.client.close()
        self.process.terminate()
        self.process.stdout.close()
        return self.process.wait(60)


@contextlib.contextmanager
def serving(tmp_path, *arguments, **environment):
    with (tmp_path / "said.txt").open("w") as said:
        running = Running(*arguments, said=said, **environment)
        try:
            yield running
        finally:
            assert running.stop() == 0, running.errors()


@pytest.fixture(scope="module")
def server(tmp_path_factory, classifiers, answerers):
    """Without torch: int8 and fp32 of a classifier, and one that answers questions."""
    models = [classifiers["single"], f"many={classifiers['multi']}", f"questions={answerers['v2']}"]
    with serving(tmp_path_factory.mktemp("server"), "--variant", INT8, "--variant", FP32, *models) as running:
        yield running


@pytest.fixture(scope="module")
def pipelines(classifiers, answerers):
    folders = {"single": classifiers["single"], "many": classifiers["multi"], "questions": answerers["v2"]}
    return {
        f"{name}-{variant}": load_pipeline(folder, variant, threads=1)
        for name, folder in folders.items()
        for variant in (INT8, FP32)
    }


@pytest.fixture
def online(monkeypatch):
    """Offline mode is about the Hub; its clients refuse every address."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.utils.reset_sessions()
    yield
    huggingface_hub.utils.reset_sessions()


def is_problem(answer, *statuses):
    assert answer.status_code in statuses, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert "Traceback" not in answer.text and "/root" not in answer.text and "/tmp" not in answer.text
    return answer.json()


def test_it_says_what_it_serves(server):
    assert server.lines[0] == f"single-{INT8}: {INT8} (ONNX, without torch), classification"
    listed = server.client.get("/models").json()
    assert [line["id"] for line in listed][:3] == [f"single-{INT8}", f"single-{FP32}", f"many-{INT8}"]
    assert all(line["ready"] for line in listed)


@pytest.mark.parametrize("inputs", [TEXTS[0], TEXTS[:1], TEXTS[:5], {"text": "a", "text_pair": "film"}])
@pytest.mark.parametrize("parameters", [None, {}, {"top_k": None}, {"top_k": 2, "function_to_apply": "sigmoid"}])
def test_answers_are_the_pipelines(server, pipelines, inputs, parameters):
    body = {"inputs": inputs} if parameters is None else {"inputs": inputs, "parameters": parameters}
    for name in (f"single-{INT8}", f"many-{FP32}"):
        assert server.post(f"/models/{name}", body).json() == pipelines[name](inputs, **(parameters or {}))
    for path in ("/predict", "/"):
        assert server.post(path, body).json() == pipelines[f"single-{INT8}"](inputs, **(parameters or {}))


def test_questions_are_answered_as_by_the_pipeline(server, pipelines):
    for name in (f"questions-{INT8}", f"questions-{FP32}"):
        for parameters in ({}, {"top_k": 3}, {"handle_impossible_answer": False, "max_seq_len": 48, "doc_stride": 4}):
            answer = server.post(f"/models/{name}", {"inputs": QUESTION, "parameters": parameters}).json()
            assert answer == pipelines[name](**QUESTION, **parameters)


def test_mixed_requests_have_the_same_answers_one_by_one_and_32_at_once(server, pipelines):
    requests = []
    for number, text in enumerate(TEXTS * 4):
        name = list(pipelines)[number % len(pipelines)]
        inputs = {"question": text, "context": f"{TEXTS[number % 7]}, {text}"} if "questions" in name else text
        inputs = [inputs] * (number % 3 + 1) if number % 4 == 0 else inputs
        requests.append((f"/models/{name}", {"inputs": inputs}))
    alone = [server.post(path, body).json() for path, body in requests]

    async def together():
        async with httpx.AsyncClient(base_url=server.url, timeout=60, verify=False) as client:
            gate = asyncio.Semaphore(32)

            async def one(path, body):
                async with gate:
                    return (await client.post(path, json=body)).json()

            return await asyncio.gather(*(one(*request) for request in requests))

    assert asyncio.run(together()) == alone
    assert all(isinstance(answer, list | dict) and "status" not in answer for answer in alone)


def test_teacher_and_student_side_by_side(server, pipelines):
    answers = server.post("/compare", {"inputs": TEXTS[0]}).json()
    names = [answer["model"] for answer in answers]
    assert names == [f"single-{INT8}", f"single-{FP32}", f"many-{INT8}", f"many-{FP32}"]
    assert all(answer["outputs"] == pipelines[answer["model"]](TEXTS[0]) for answer in answers)
    assert all(answer["milliseconds"] > 0 for answer in answers)
    chosen = server.post("/compare", {"inputs": TEXTS[0], "models": names[1:2]}).json()
    assert [answer["model"] for answer in chosen] == names[1:2]
    is_problem(server.post("/compare", {"inputs": TEXTS[0], "models": [f"questions-{INT8}"]}), 422)


def test_hugging_faces_client_works_as_it_is(server, pipelines, online):
    name = f"single-{INT8}"
    expected = pipelines[name](TEXTS[0])[0]
    for url in (server.url, f"{server.url}/predict", f"{server.url}/models/{name}"):
        assert InferenceClient(model=url).text_classification(TEXTS[0]) == expected
    listed = InferenceClient(model=server.url).text_classification([TEXTS[0]], top_k=2)
    assert listed == pipelines[name]([TEXTS[0]], top_k=2)[0]
    client = InferenceClient(model=f"{server.url}/models/questions-{FP32}")
    assert client.question_answering(**QUESTION) == pipelines[f"questions-{FP32}"](**QUESTION)
    several = client.question_answering(**QUESTION, top_k=2)
    assert several == pipelines[f"questions-{FP32}"](**QUESTION, top_k=2)


def test_open_inference_protocol(server, pipelines):
    assert server.client.get("/v2").json()["name"] == "nlp-distill"
    assert server.client.get("/v2/health/live").status_code == server.client.get("/v2/health/ready").status_code == 200
    name = f"single-{FP32}"
    assert server.client.get(f"/v2/models/{name}/ready").json() == {"ready": True}
    assert [column["name"] for column in server.client.get(f"/v2/models/{name}").json()["inputs"]] == [
        "text",
        "text_pair",
    ]
    for texts in (TEXTS[:1], TEXTS[:3]):
        tensor = {"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": texts}
        answer = server.post(f"/v2/models/{name}/infer", {"id": "7", "inputs": [tensor]}).json()
        columns = {column["name"]: column["data"] for column in answer["outputs"]}
        expected = pipelines[name](texts)
        assert answer["id"] == "7" and answer["model_name"] == name
        assert columns == {key: [row[key] for row in expected] for key in ("label", "score")}
    tensors = [{"name": key, "datatype": "BYTES", "shape": [1], "data": [text]} for key, text in QUESTION.items()]
    answer = server.post(f"/v2/models/questions-{INT8}/infer", {"inputs": tensors}).json()
    expected = pipelines[f"questions-{INT8}"](**QUESTION)
    assert {column["name"]: column["data"] for column in answer["outputs"]} == {k: [v] for k, v in expected.items()}
    is_problem(server.post(f"/v2/models/questions-{INT8}/infer", {"inputs": tensors[:1]}), 422)


LONG_QUESTION = {"question": "film " * 200, "context": "film " * 200}
BAD = [
    ("/predict", b'{"inputs": "a"', 422),
    ("/predict", b"", 422),
    ("/predict", b"null", 422),
    ("/predict", b'{"inputs": "\xff"}', 400),
    ("/predict", b'{"inputs": "\\ud800"}', 422),
    ("/predict", b"[" * 100_000, 400),
    ("/predict", b'{"inputs": ' + b"9" * 5000 + b"}", 400),
    ("/predict", b'{"inputs": NaN}', 422),
    ("/predict", json.dumps({"inputs": "x" * 10_000_000}).encode(), 413),
    ("/predict", json.dumps({"inputs": "x" * 1_000_000}).encode(), 422),
    ("/predict", json.dumps({"inputs": ["x"] * 10_000}).encode(), 422),
    ("/predict", b'{"inputs": []}', 422),
    ("/predict", b'{"inputs": {"question": "a", "context": "b"}}', 422),
    ("/predict", b'{"inputs": "a", "parameters": {"top_k": 0}}', 422),
    ("/predict", b'{"inputs": "a", "parameters": {"top_k": "1"}}', 422),
    ("/predict", b'{"inputs": "a", "parameters": {"unknown": 1}}', 422),
    ("/predict", b'{"inputs": "a", "stream": true}', 422),
    (f"/models/questions-{INT8}", b'{"inputs": "a"}', 422),
    (f"/models/questions-{INT8}", b'{"inputs": {"question": "", "context": "b"}}', 422),
    (
        f"/models/questions-{INT8}",
        json.dumps({"inputs": {"question": "film " * 200, "context": "film " * 200}}).encode(),
        422,
    ),
    (f"/models/questions-{INT8}", json.dumps({"inputs": QUESTION, "parameters": {"max_seq_len": 65}}).encode(), 422),
    (f"/models/questions-{INT8}", json.dumps({"inputs": QUESTION, "parameters": {"doc_stride": 60}}).encode(), 422),
    ("/models/unknown", b'{"inputs": "a"}', 404),
    ("/models/..%2f..%2fetc%2fpasswd", b'{"inputs": "a"}', 404),
    ("/v2/models/unknown/infer", b"{}", 404),
]


@pytest.mark.parametrize(("path", "body", "status"), BAD)
def test_bad_input_gets_a_problem_document(server, path, body, status):
    sent = server.client.post(path, content=body, headers={"content-type": "application/json"})
    document = is_problem(sent, status)
    assert len(sent.content) < 4000 and document["detail"].endswith(".")
    assert server.post("/predict", {"inputs": "film"}).status_code == 200


def test_nul_bytes_are_text(server, pipelines):
    assert server.post("/predict", {"inputs": "a\x00film"}).json() == pipelines[f"single-{INT8}"]("a\x00film")


def test_clients_that_go_away_or_never_finish_hold_up_nobody(server):
    host, port = server.url.removeprefix("http://").split(":")
    slow = socket.create_connection((host, int(port)))
    slow.sendall(
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
    )
    for _ in range(5):
        gone = http.client.HTTPConnection(host, int(port))
        body = json.dumps({"inputs": [QUESTION] * 20})
        gone.request("POST", f"/models/questions-{FP32}", body, {"content-type": "application/json"})
        gone.close()
    assert server.post("/predict", {"inputs": "film"}).status_code == 200
    slow.close()
    end = time.monotonic() + 30
    while server.counted("nlpd_queue_rows", model=f"questions-{FP32}") and time.monotonic() < end:
        time.sleep(0.1)
    assert server.counted("nlpd_queue_rows", model=f"questions-{FP32}") == 0
    assert "Traceback" not in server.errors()


def test_metrics_count(server):
    labels = {"model": f"single-{INT8}", "outcome": "answered"}
    before = server.counted("nlpd_predictions_total", **labels)
    server.post("/predict", {"inputs": "film"})
    assert server.counted("nlpd_predictions_total", **labels) == before + 1
    assert server.counted("nlpd_engine_up", model=f"single-{INT8}") == 1


def test_the_web_process_loads_no_torch(server):
    with open(f"/proc/{server.process.pid}/maps") as file:
        loaded = file.read()
    assert "libtorch" not in loaded and "onnxruntime" not in loaded


def test_a_crashed_engine_takes_down_nothing_else_and_comes_back(server):
    name = f"single-{INT8}"
    before = server.counted("nlpd_engine_restarts_total", model=name)
    spec = {child: child.pid for child in server.engines()}
    # The engines were started in the order of the models.
    victim = min(spec.values())
    os.kill(victim, signal.SIGSEGV)
    end = time.monotonic() + 60
    statuses = set()
    while (answer := server.post("/predict", {"inputs": "film"})).status_code != 200 and time.monotonic() < end:
        statuses.add(is_problem(answer, 503)["code"])
        assert answer.headers["retry-after"] == "1"
        assert server.client.get("/health/live").status_code == 200
        assert server.post(f"/models/many-{INT8}", {"inputs": "film"}).status_code == 200
        time.sleep(0.05)
    assert statuses == {"engine_not_ready"} and answer.status_code == 200
    assert server.counted("nlpd_engine_restarts_total", model=name) == before + 1
    assert server.client.get("/health/ready").status_code == 200


def test_more_than_it_can_do_is_refused_at_once(tmp_path, answerers):
    questions = [QUESTION] * 40

    async def flood(url):
        async with httpx.AsyncClient(base_url=url, timeout=60, verify=False) as client:
            return await asyncio.gather(*(client.post("/predict", json={"inputs": questions}) for _ in range(12)))

    with serving(tmp_path, answerers["v1"], "--variant", FP32, "--queue", "80") as running:
        answers = asyncio.run(flood(running.url))
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {200, 429} and statuses.count(200) >= 2, statuses
        for answer in answers:
            if answer.status_code == 429:
                assert is_problem(answer, 429)["code"] == "queue_full"
                assert int(answer.headers["retry-after"]) >= 1
        assert running.post("/predict", {"inputs": questions}).status_code == 200


def test_what_a_full_engine_refuses_is_not_even_read(tmp_path):
    models = [Served(name, tmp_path, FP32, "classification", light=True) for name in ("full", "free")]
    metrics = Metrics()
    engines = {model.id: Engine(model, threads=1, most_rows=1, metrics=metrics) for model in models}
    for engine in engines.values():
        engine.ready = True
    engines["full"]._rows = 1
    app = httpx.ASGITransport(make_app(models, engines, metrics, Settings(token="a-token-of-enough-letters")))

    async def ask(path, method="POST", token="a-token-of-enough-letters"):
        async with httpx.AsyncClient(transport=app, base_url="http://localhost", verify=False) as client:
            answer = await client.request(method, path, content=b"{", headers={"authorization": f"Bearer {token}"})
            return answer.status_code

    for path in ("/predict", "/", "/models/full", "/v2/models/full/infer"):
        assert asyncio.run(ask(path)) == 429
        assert asyncio.run(ask(path, token="another")) == 401
    for path in ("/models/free", "/v2/models/free/infer", "/compare"):
        assert asyncio.run(ask(path)) == 422
    assert asyncio.run(ask("/models", "GET")) == 200


def test_a_burst_is_let_in_as_far_as_there_is_room(tmp_path, monkeypatch):
    model, metrics = Served("m", tmp_path, FP32, "classification", light=True), Metrics()
    engine = Engine(model, threads=1, most_rows=2, metrics=metrics)
    engine.ready, asked = True, []
    app = httpx.ASGITransport(make_app([model], {"m": engine}, metrics, Settings()))

    async def burst():
        answering, arriving = asyncio.Event(), asyncio.Event()

        async def ask(inputs, parameters, rows):
            asked.append(inputs)
            await answering.wait()
            return Answer(b"[]", 0.0)

        async def slow():
            yield b'{"inputs": '
            await arriving.wait()
            yield b'"slow"}'

        monkeypatch.setattr(engine, "ask", ask)
        async with httpx.AsyncClient(transport=app, base_url="http://localhost", verify=False) as client:
            post = functools.partial(client.post, "/predict", headers={"content-type": "application/json"})
            late = [asyncio.create_task(post(content=slow())) for _ in range(5)]
            await asyncio.sleep(0.05)
            sent = [asyncio.create_task(post(json={"inputs": str(number)})) for number in range(30)]
            await asyncio.sleep(0.2)
            assert len(asked) == 2 and sum(one.done() for one in sent) == 28
            answering.set()
            statuses = [answer.status_code for answer in await asyncio.gather(*sent)]
            arriving.set()
            assert [answer.status_code for answer in await asyncio.gather(*late)].count(200) >= 2
            return statuses

    statuses = asyncio.run(burst())
    assert (statuses.count(200), statuses.count(429)) == (2, 28)
    engine.look()
    assert engine._inside == 0


def test_what_was_asked_before_the_end_is_answered(tmp_path, answerers):
    with serving(tmp_path, answerers["v1"], "--variant", FP32) as running:
        host, port = running.url.removeprefix("http://").split(":")
        asking = http.client.HTTPConnection(host, int(port))
        body = json.dumps({"inputs": [QUESTION] * 60})
        asking.request("POST", "/predict", body, {"content-type": "application/json"})
        end = time.monotonic() + 30
        while not running.counted("nlpd_queue_rows", model="v1") and time.monotonic() < end:
            time.sleep(0.02)
        # As a terminal and systemd do it, all processes hear it.
        for process in [*running.engines(), running.process]:
            process.send_signal(signal.SIGTERM)
        answer = asking.getresponse()
        assert answer.status == 200 and len(json.loads(answer.read())) == 60
    assert running.process.returncode == 0


def test_pipelines_in_engines_of_their_own(tmp_path, rewriter, classifiers, online):
    """PyTorch and seq2seq, behind a token."""
    models = [f"t5={rewriter}", f"torch={classifiers['single']}"]
    token = "a-token-of-enough-letters"
    with serving(tmp_path, *models, "--variant", "student", NLP_DISTILL_TOKEN=token) as running:
        is_problem(running.post("/predict", {"inputs": "film"}), 401)
        assert running.client.get("/health/ready").status_code == 200
        is_problem(running.client.get("/metrics"), 401)
        for child in running.engines():
            assert "NLP_DISTILL_TOKEN" not in child.environ() and token not in " ".join(child.cmdline())
        client = InferenceClient(model=running.url, token=token)
        pipe = load_pipeline(rewriter, "student")
        expected = pipe("film great", max_new_tokens=5)
        assert client.text_generation("film great", max_new_tokens=5) == expected[0]["generated_text"]
        headers = {"authorization": f"Bearer {token}"}
        body = {"inputs": ["film", "great"], "parameters": {"generate_parameters": {"max_new_tokens": 4}}}
        assert running.post("/predict", body, headers=headers).json() == pipe(["film", "great"], max_new_tokens=4)
        beams = {"inputs": "film", "parameters": {"num_return_sequences": 3, "num_beams": 2}}
        assert "num_return_sequences" in is_problem(running.post("/predict", beams, headers=headers), 422)["detail"]
        one = load_pipeline(classifiers["single"], "student")
        for inputs in (TEXTS[0], TEXTS[:3], {"text": "a", "text_pair": "b"}):
            served, expected = running.post("/models/torch", {"inputs": inputs}, headers=headers).json(), one(inputs)
            # PyTorch in another process, with other threads, rounds the last digit differently now and then.
            for ours, theirs in zip(*map(_rows, (served, expected)), strict=True):
                assert ours == {**theirs, "score": pytest.approx(theirs["score"], abs=1e-6)}


def _rows(answer):
    return [answer] if isinstance(answer, dict) else answer


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--host", "0.0.0.0"], "no token is set"),
        (["--variant", "student-onnx-int4"], "has no variant"),
        (["--token-file", "absent"], "cannot be read"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_sentence(classifiers, tmp_path, arguments, reason):
    command = [sys.executable, "-m", "nlp_distill.cli", "serve", str(classifiers["single"]), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2 and reason in done.stderr and "Traceback" not in done.stderr


def test_an_engine_that_cannot_load_says_why(classifiers, tmp_path):
    import shutil

    shutil.copytree(classifiers["single"], tmp_path / "model")
    (tmp_path / "model" / "onnx" / "model_quantized.onnx").write_bytes(b"no graph")
    command = [sys.executable, "-m", "nlp_distill.cli", "serve", str(tmp_path / "model"), "--variant", INT8]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3 and "model_quantized.onnx cannot be read" in done.stderr
    assert "Traceback" not in done.stderr
