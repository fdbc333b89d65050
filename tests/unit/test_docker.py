"""The Docker files, read: nobody is root, nothing is writable, torch stays out of `serve`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))
REQUIREMENTS = [
    line for line in (ROOT / "docker" / "serve.txt").read_text(encoding="utf-8").split("\n") if line and line[0] != "#"
]


def stages():
    """Name of each stage → its instructions, continued lines joined."""
    text = DOCKERFILE.replace("\\\n", " ")
    parts = re.split(r"^FROM \S+ AS (\S+)$", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("target", ["serve", "train-cpu", "jobs", "train-cuda"])
def test_targets_run_as_nobody(target):
    instructions = [line.split(" ")[0] for line in stages()[target].split("\n") if line and line[0].isalpha()]
    users = re.findall(r"^USER (\S+)$", stages()[target], re.MULTILINE)
    last = max(place for place, name in enumerate(instructions) if name == "USER")
    assert users[-1] == "10001"
    assert last > max(place for place, name in enumerate(instructions) if name == "RUN")
    assert "HEALTHCHECK" in instructions


def test_hadolint_finds_nothing():
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([linter, ROOT / "docker" / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_instructions_are_known_and_files_exist():
    known = {
        "ARG",
        "FROM",
        "WORKDIR",
        "RUN",
        "COPY",
        "ENV",
        "ENTRYPOINT",
        "USER",
        "EXPOSE",
        "HEALTHCHECK",
        "CMD",
        "VOLUME",
    }
    for line in DOCKERFILE.replace("\\\n", " ").split("\n"):
        if line and not line.startswith("#"):
            assert line.split(" ")[0] in known, line
        if line.startswith("COPY ") and "--from" not in line:
            for name in line.split(" ")[1:-1]:
                assert (ROOT / name).exists(), name
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    copied = [
        name for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()
    ]
    assert {f"!{name}" for name in copied} <= set(ignored)


def test_services_are_hardened_and_listen_on_loopback():
    for service in COMPOSE["services"].values():
        assert service["read_only"] and service["user"] == "10001" and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["build"]["target"] in stages()
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert "docker.sock" not in str(service)


def test_ray_asks_for_a_token_and_is_reached_from_inside_only():
    services = COMPOSE["services"]
    nodes = [service for service in services.values() if service.get("entrypoint") == ["ray"]]
    assert len(nodes) == 2
    for service in nodes:
        assert service["environment"]["RAY_AUTH_MODE"] == "token" and "ports" not in service
    for service in [*nodes, services["jobs-on-ray"]]:
        assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
        assert "ray_token" in service["secrets"] and "RAY_AUTH_TOKEN" not in service["environment"]
        # The word to stop, recipes and runs go through one folder, at one place.
        assert service["volumes"] == services["jobs"]["volumes"] == ["service:/data"]
    head = services["ray-head"]["command"]
    assert services["jobs-on-ray"]["environment"]["NLP_DISTILL_RAY"] == "http://ray-head:8265" and "--head" in head
    assert all(name in COMPOSE["secrets"] for service in services.values() for name in service.get("secrets", []))
    assert all(v.split(":")[0] in {*COMPOSE["volumes"], "${MODEL"} for s in services.values() for v in s["volumes"])


def test_serve_needs_no_torch_and_bounds_are_the_packages():
    names = {re.split(r"[<>=;\[ ]", line)[0] for line in REQUIREMENTS}
    assert not names & {"torch", "transformers", "optimum", "datasets", "accelerate"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["serve"]]
    bounds = {re.split(r"[<>=;\[ ]", line)[0]: line for line in wanted}
    for line in REQUIREMENTS:
        name = re.split(r"[<>=;\[ ]", line)[0]
        assert bounds.get(name, line) == line, f"{line} here, {bounds[name]} in pyproject.toml"
