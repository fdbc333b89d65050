"""The steps of docker/Dockerfile's target `serve`, in a fresh environment: the wheel alone, no torch, real answers."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from nlp_distill.prediction import load_pipeline

ROOT = Path(__file__).parents[2]
TEXTS = ["great film", "a dull story", "so so", ""]


def run(*command, **environment):
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_a_model_is_served_where_torch_is_not_installed(tmp_path, classifiers):
    model = classifiers["single"]
    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "wheel", ROOT)
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    pip = [tmp_path / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet"]
    run(*pip, "-r", ROOT / "docker" / "serve.txt")
    run(*pip, "--no-deps", *(tmp_path / "wheel").glob("*.whl"))
    there = run(tmp_path / "venv" / "bin" / "python", "-m", "pip", "list", "--format", "json")
    assert not {entry["name"] for entry in json.loads(there)} & {"torch", "transformers", "optimum", "datasets"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [tmp_path / "venv" / "bin" / "nlp-distill", "serve", model, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) as server:
        try:
            lines = iter(server.stdout.readline, "")
            url = next(found[0] for line in lines if (found := re.search(r"http://\S+?:\d+", line)))
            body = json.dumps({"inputs": TEXTS}).encode()
            request = urllib.request.Request(f"{url}/predict", body, {"content-type": "application/json"})
            answers = json.loads(urllib.request.urlopen(request, timeout=60).read())
        finally:
            server.terminate()
    assert server.returncode == 0
    assert answers == load_pipeline(model, threads=1)(TEXTS)
    refused = subprocess.run([*command, "--variant", "student"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "needs PyTorch" in refused.stderr and "Traceback" not in refused.stderr
