"""The commands that people give, on a real server, a real worker and a real (tiny) training."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys

import pytest
import yaml
from conftest import until

from nlp_distill.errors import JobFailed, ServiceRefused, ServiceUnreachable
from nlp_distill.service.client import Client
from nlp_distill.service.home import Home
from nlp_distill.service.processes import alive, members
from nlp_distill.service.store.database import Database
from nlp_distill.service.store.tables import attempts
from nlp_distill.testing import save_tiny, tiny_rows


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A recipe that names a package with a tiny teacher and a file of ours; where commands find both."""
    folder = tmp_path_factory.mktemp("world")
    save_tiny(folder / "tiny_teacher" / "model", auto_class="AutoModel", hidden_dropout_prob=0.1)
    (folder / "tiny_teacher" / "__init__.py").touch()
    lines = [f"{row['text']},{row['label']}\n" for row in tiny_rows(200)]
    (folder / "rows.csv").write_text("text,label\n" + "".join(lines))
    training = {"epochs": 2, "learning_rate": 1e-3, "batch_size": 8, "checkpoint_minutes": 0}
    recipe = {
        "task": "classification",
        "data": {"dataset": "rows.csv"},
        "teacher": {"model": "package:tiny_teacher/model", "finetune": training},
        "student": {"layers": 2},
        "distill": {**training, "losses": [{"kind": "logits"}, {"kind": "labels"}]},
        "precision": "fp32",
        "export": [],
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture(scope="module")
def service(world):
    """`nlp-distill serve --jobs`; gives the way to call the other commands."""
    port, home = free_port(), world / "home"
    environment = {
        **os.environ,
        "PYTHONPATH": f"{world}:{os.environ.get('PYTHONPATH', '')}",
        "OMP_NUM_THREADS": "1",
        "NLP_DISTILL_URL": f"http://127.0.0.1:{port}",
        "NLP_DISTILL_SERVICE": str(home),
    }

    def command(*arguments, check=True):
        line = [sys.executable, "-m", "nlp_distill.cli", *arguments]
        done = subprocess.run(line, cwd=world, env=environment, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    line = [sys.executable, "-m", "nlp_distill.cli", "serve", "--jobs", "--port", str(port)]
    server = subprocess.Popen(line, cwd=world, env=environment, stdout=subprocess.PIPE, text=True)
    assert f":{port}" in server.stdout.readline()
    client = Client(environment["NLP_DISTILL_URL"], home=home)
    until(lambda: answers(client), 300)
    yield command, client, server, Home(home)
    server.terminate()
    server.wait(300)
    server.stdout.close()


def answers(client):
    try:
        return client.system()["workers"]
    except (ServiceUnreachable, ServiceRefused):
        return 0


def sums(folder):
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.glob("model/*.safetensors"))}


def worker_of(home):
    return (home.path / ".worker").read_text()


def test_from_a_persons_file_to_a_student_through_a_killed_worker(service, world):
    command, client, _, home = service
    job = command("submit", "own.yaml", "--name", "mine", "--tag", "t").stdout.strip()
    found = client.jobs.get(job)
    until(lambda: any("step-" in str(p) for p in home.run(job).rglob("checkpoints/**/step-*")), 600)
    first = worker_of(home)
    os.kill(int(first.split(":")[0]), signal.SIGKILL)
    seen = [event["seq"] for event in found.events()]
    assert seen == list(range(1, len(seen) + 1)) and found.wait().status == "succeeded"
    assert worker_of(home) != first and found.data["attempt"] == 2
    assert "mine" in command("jobs", "list", "--tag", "t").stdout
    shown = json.loads(command("jobs", "show", job[-8:], "--json").stdout)
    assert shown["status"] == "succeeded" and shown["recipe"]["data"]["dataset"].startswith("file_")
    assert "succeeded" in command("jobs", "watch", job).stdout and "Recommended" in command("jobs", "logs", job).stdout
    command("jobs", "download", job, "--out", "got")
    command("run", "own.yaml", "--out", "by-hand")
    assert sums(world / "got") == sums(world / "by-hand") != {}
    assert json.loads((world / "got" / "results.json").read_text())["variants"]
    clone = json.loads(command("jobs", "clone", job, "--json").stdout)["id"]
    for what, status in [("pause", {"paused", "pausing"}), ("cancel", {"cancelled", "cancelling"})]:
        assert json.loads(command("jobs", what, clone, "--json").stdout)["status"] in status
    until(lambda: client.jobs.get(clone).status == "cancelled", 300)
    command("jobs", "remove", clone)


def test_what_goes_wrong_is_one_sentence(service, world):
    command, client, _, _ = service
    (world / "bad.yaml").write_text((world / "own.yaml").read_text().replace("package:tiny_teacher", "package:no_such"))
    failed = command("submit", "bad.yaml", "--wait", check=False)
    assert failed.returncode == 3 and "hub_not_found" in str(client.jobs.list(limit=1)[0].data["error"])
    assert "Traceback" not in failed.stderr and "not installed" in failed.stderr
    (world / "worse.yaml").write_text((world / "own.yaml").read_text().replace("package:tiny_teacher", "/etc"))
    refused = command("submit", "worse.yaml", check=False)
    assert refused.returncode == 2 and "/recipe/teachers/0/model" in refused.stderr
    assert command("jobs", "show", "job_nothing", check=False).returncode == 2
    nowhere = command("jobs", "list", "--url", f"http://127.0.0.1:{free_port()}", check=False)
    assert nowhere.returncode == 2 and "No service answers" in nowhere.stderr
    second = command("serve", "--jobs", "--port", str(free_port()), check=False)
    assert second.returncode == 2 and "Another server" in second.stderr
    with pytest.raises(JobFailed):
        client.jobs.list(limit=1)[0].wait()


def test_the_server_and_its_worker_stop_together(service, world):
    _, client, server, home = service
    worker = worker_of(home)
    job = client.jobs.create(str(world / "own.yaml"), f"data.dataset={world / 'rows.csv'}")
    until(lambda: job.refresh().status == "running", 300)
    server.terminate()
    assert server.wait(300) == 0 and not alive(worker)
    database = Database(home.database)
    with database.reading() as connection:
        names = connection.execute(attempts.select()).all()
    assert not [pid for row in names for pid in members(row.id)]
    database.close()
