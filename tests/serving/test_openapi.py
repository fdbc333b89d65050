"""What the OpenAPI file promises holds: schemathesis with all its checks, against the real server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_server import FP32, INT8, serving

EXAMPLES = 5
ACCEPTED = """
[checks.positive_data_acceptance]
# Not every limit fits into a schema: texts that are too long together, windows that leave a question no room.
expected-statuses = ["2xx", "401", "413", "422"]
[checks.negative_data_rejection]
# What is too long for the schema may be too large for the door.
expected-statuses = ["400", "401", "404", "405", "413", "422"]
"""


def schemathesis(folder: Path, url: str, *arguments: str) -> subprocess.CompletedProcess:
    (folder / "schemathesis.toml").write_text(ACCEPTED)
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{url}/openapi.json", "--checks", "all"]
    command += ["--max-examples", str(EXAMPLES), "--seed", "7", "--no-color", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=dict(os.environ), check=False)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, classifiers, answerers):
    models = [classifiers["single"], answerers["v1"]]
    token = "a-token-of-enough-letters"
    folder = tmp_path_factory.mktemp("openapi")
    with serving(folder, *models, "--variant", INT8, NLP_DISTILL_TOKEN=token) as running:
        running.token = token
        yield running


def test_schemathesis_finds_nothing(guarded, tmp_path):
    done = schemathesis(tmp_path, guarded.url, "-H", f"Authorization: Bearer {guarded.token}")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    assert "Traceback" not in guarded.errors()


def test_every_model_is_described_by_what_it_takes(guarded):
    described = guarded.client.get("/openapi.json").json()
    assert {"/predict", "/", "/compare", "/models", "/models/single", "/models/v1", "/v2/models/v1/infer"} <= set(
        described["paths"]
    )
    for path, schema in (("/models/single", "ClassificationBody"), ("/models/v1", "AnsweringBody")):
        body = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert body == {"$ref": f"#/components/schemas/{schema}"}
    assert FP32 not in json.dumps(described)


def test_every_refusal_is_described_as_a_problem(guarded):
    described = guarded.client.get("/openapi.json").json()
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            for status, answer in operation["responses"].items():
                if not status.startswith("2"):
                    assert "application/problem+json" in answer["content"], (path, method, status)
