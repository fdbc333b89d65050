"""Each variant in a process of its own: its time, its own memory, the files that it needs."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest

from nlp_distill import measuring
from nlp_distill.errors import RunFailed, UserError
from nlp_distill.exports.onnx_files import export_fp32
from nlp_distill.measuring import Measured, Worker, files_to_run, measure
from nlp_distill.testing import save_tiny

CLASSIFIER = "AutoModelForSequenceClassification"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("measured"), num_hidden_layers=2)
    (folder / "onnx").mkdir()
    export_fp32(folder, "text-classification", folder / "onnx")
    return folder


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(measuring, "ROUNDS", 2)
    monkeypatch.setattr(measuring, "RUNS", 3)


def test_a_slow_model_is_timed_less_often(model, monkeypatch):
    call = measuring._loaded(Measured("student", str(model), CLASSIFIER, None), 1)
    assert len(call(8, 1, 10)) == 10
    monkeypatch.setattr(measuring, "SECONDS", 0.0)
    assert len(call(8, 1, 10)) == measuring.LEAST


def test_every_variant_is_timed_at_every_length(model, short):
    variants = [
        Measured("student", str(model), CLASSIFIER, None),
        Measured("student-onnx-fp32", str(model), CLASSIFIER, "student-onnx-fp32"),
    ]
    seen = []
    found = measure(variants, [8, 32], 1, lambda done, total: seen.append((done, total)))
    assert seen == [(number, 8) for number in range(1, 9)]
    assert list(found) == ["student", "student-onnx-fp32"]
    for measured in found.values():
        assert [(row["sequence"], row["threads"], row["batch"]) for row in measured["latency_ms"]] == [
            (8, 1, 1),
            (32, 1, 1),
        ]
        assert all(0 < row["p50"] <= row["p90"] < 10_000 for row in measured["latency_ms"])
        assert 50 < measured["peak_memory_mb"] < 5000


def test_memory_is_the_workers_own_and_not_its_parents():
    """Linux hands a parent's peak down to its children's ru_maxrss: training's gigabytes must not show."""
    code = (
        "import subprocess, sys\n"
        "held = bytearray(600_000_000)\n"
        "child = 'from nlp_distill.measuring import _peak_memory_bytes; print(_peak_memory_bytes())'\n"
        "sys.stdout.write(subprocess.run([sys.executable, '-c', child], capture_output=True, text=True).stdout)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1e6 < int(done.stdout) < 300e6


def test_a_worker_that_cannot_load_says_why(tmp_path, short):
    with pytest.raises(UserError, match=r"it has no config\.json"):
        measure([Measured("broken", str(tmp_path), CLASSIFIER, None)], [8], 1)


def test_a_worker_killed_at_work_is_named(model):
    worker = Worker(Measured("student", str(model), CLASSIFIER, None), 1)
    try:
        worker.ask(ready=True)
        worker.process.kill()
        worker.process.wait()
        with pytest.raises(RunFailed, match="student died"):
            worker.ask(sequence=8, runs=1, warm_up=0)
    finally:
        worker.close()


def test_a_talkative_worker_neither_blocks_nor_confuses(tmp_path, monkeypatch):
    """More on stderr than a pipe holds, while nobody reads it."""
    script = (
        "import sys, json\n"
        "sys.stderr.write('x' * 1_000_000)\n"
        "sys.stderr.flush()\n"
        "for line in sys.stdin:\n"
        "    sys.stdout.write(json.dumps({'echo': json.loads(line)}) + '\\n')\n"
        "    sys.stdout.flush()\n"
    )
    real = subprocess.Popen
    monkeypatch.setattr(
        measuring.subprocess, "Popen", lambda command, **rest: real([sys.executable, "-c", script], **rest)
    )
    worker = Worker(Measured("loud", str(tmp_path), CLASSIFIER, None), 1)
    try:
        assert worker.ask(ready=True) == {"echo": {"ready": True}}
    finally:
        worker.close()


def test_what_libraries_print_is_no_answer(model):
    """The process answers on the stdout it was given; prints of libraries go to stderr."""
    code = (
        "import runpy, sys, builtins, nlp_distill.loading as loading\n"
        "load = loading.load_model\n"
        "def loud(*a, **k):\n"
        "    builtins.print('a library speaks', flush=True)\n"
        "    return load(*a, **k)\n"
        "loading.load_model = loud\n"
        "runpy.run_module('nlp_distill.measuring', run_name='__main__')\n"
    )
    described = {"name": "m", "folder": str(model), "auto_class": CLASSIFIER, "variant": None, "threads": 1}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(described)],
        input='{"sequence": 8, "warm_up": 0, "runs": 2}\n',
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = done.stdout.splitlines()
    assert len(json.loads(line)["ms"]) == 2
    assert "a library speaks" in done.stderr


def test_the_worker_answers_what_it_is_asked(model):
    asked = io.StringIO('{"ready": true}\n{"sequence": 8, "warm_up": 1, "runs": 4}\n{"memory": true}\n')
    answers = io.StringIO()
    import torch

    threads = torch.get_num_threads()
    measuring._serve(Measured("m", str(model), CLASSIFIER, "student-onnx-fp32"), threads, asked, answers)
    ready, timed, memory = map(json.loads, answers.getvalue().splitlines())
    assert ready["load_s"] > 0 and len(timed["ms"]) == 4 and memory["peak_memory_mb"] > 1


def test_the_median_and_the_90th_percentile():
    times = list(np.arange(1.0, 102.0))
    assert measuring._summary(times, 32, 2) == {"sequence": 32, "threads": 2, "batch": 1, "p50": 51.0, "p90": 91.0}


def test_the_files_that_a_variant_needs(model, tmp_path):
    stock = {"config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert {file.name for file in files_to_run(model, None)} == {"model.safetensors", *stock}
    assert {file.name for file in files_to_run(model, "student-onnx-fp32")} == {"model.onnx", *stock}


def test_weights_in_parts_count_whole(tmp_path):
    (tmp_path / "onnx").mkdir()
    names = ["a.safetensors", "b.safetensors", "model.safetensors.index.json"]
    exports = ["model.onnx", "model.onnx_data", "model_quantized.onnx"]
    for name in [*names, *(f"onnx/{export}" for export in exports)]:
        (tmp_path / name).write_text("x")
    assert [file.name for file in files_to_run(tmp_path, None)] == names
    assert [file.name for file in files_to_run(tmp_path, "student-onnx-fp32")] == exports[:2]
    assert [file.name for file in files_to_run(tmp_path, "student-onnx-int8")] == exports[2:]


def test_a_classifier_that_looks_at_the_end_of_its_text_is_timed(tmp_path, short):
    folder = save_tiny(tmp_path, "bart", CLASSIFIER)
    assert measure([Measured("student", str(folder), CLASSIFIER, None)], [8], 1, lambda done, total: None)["student"]
