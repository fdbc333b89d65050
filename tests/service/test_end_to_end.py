"""The commands that people give, on a real server, a real worker and a real (tiny) training."""

import hashlib
import json
import os
import signal
import subprocess
import sys

import pytest
import yaml
from conftest import free_ports, until

from nlp_distill.errors import JobFailed, ServiceRefused, ServiceUnreachable
from nlp_distill.service.client import Client
from nlp_distill.service.home import Home
from nlp_distill.service.processes import alive, members
from nlp_distill.service.store.database import Database
from nlp_distill.service.store.tables import attempts
from nlp_distill.testing import save_tiny, tiny_rows


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


class Service:
    """`nlp-distill serve --jobs`, and the way to call the other commands."""

    def __init__(self, world):
        (self.port,) = free_ports()
        self.world, self.home = world, Home(world / "home")
        self.environment = {
            **os.environ,
            "PYTHONPATH": f"{world}:{os.environ.get('PYTHONPATH', '')}",
            "OMP_NUM_THREADS": "1",
            "NLP_DISTILL_URL": f"http://127.0.0.1:{self.port}",
            "NLP_DISTILL_SERVICE": str(self.home.path),
        }
        self.start()
        self.client = Client(self.environment["NLP_DISTILL_URL"], home=self.home.path, patience_s=300)

    def start(self):
        line = [sys.executable, "-m", "nlp_distill.cli", "serve", "--jobs", "--port", str(self.port)]
        self.server = subprocess.Popen(
            line, cwd=self.world, env=self.environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert f":{self.port}" in self.server.stdout.readline()

    def command(self, *arguments, check=True):
        line = [sys.executable, "-m", "nlp_distill.cli", *arguments]
        done = subprocess.run(line, cwd=self.world, env=self.environment, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    @property
    def worker(self):
        """The worker beside: `PID:TICKS:BOOT`."""
        return (self.home.path / ".worker").read_text()

    def kill(self):
        """As if the machine lost its power: the server first, or it would start another worker."""
        self.server.kill()
        self.server.wait()
        self.server.stdout.close()
        os.kill(int(self.worker.split(":")[0]), signal.SIGKILL)
        until(lambda: not alive(self.worker))

    def stop(self):
        self.server.terminate()
        code = self.server.wait(300)
        self.server.stdout.close()
        return code

    def attempts(self):
        database = Database(self.home.database)
        with database.reading() as connection:
            names = [row.id for row in connection.execute(attempts.select())]
        database.close()
        return names


@pytest.fixture(scope="module")
def service(world):
    served = Service(world)
    until(lambda: answers(served.client), 300)
    yield served
    served.client.http.close()
    if served.server.poll() is None:
        served.stop()


def answers(client):
    try:
        return client.system()["workers"]
    except (ServiceUnreachable, ServiceRefused):
        return 0


def sums(folder):
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.glob("model/*.safetensors"))}


def figures(folder):
    """What a run says of its models; times and places are left out."""
    said = json.loads((folder / "results.json").read_text())
    kept = ("name", "n", "score", "score_ci95", "retained", "drop", "agreement", "params", "bytes")
    return [{key: variant.get(key) for key in kept} for variant in said["variants"]]


@pytest.mark.slow
def test_from_a_persons_file_to_a_student_though_all_is_killed(service, world):
    job = service.command("submit", "own.yaml", "--name", "mine", "--tag", "t").stdout.strip()
    found = service.client.jobs.get(job)
    until(found.checkpoints, 600)
    before = service.worker
    service.kill()
    until(lambda: not [pid for name in service.attempts() for pid in members(name)])
    service.start()
    seen = [event["seq"] for event in found.events()]
    assert seen == list(range(1, len(seen) + 1)) and found.wait().status == "succeeded"
    assert service.worker != before and found.data["attempt"] == 2
    service.command("jobs", "download", job, "--out", "got")
    service.command("run", "own.yaml", "--out", "by-hand")
    assert sums(world / "got") == sums(world / "by-hand") != {}
    assert figures(world / "got") == figures(world / "by-hand") != []


@pytest.mark.slow
def test_the_other_commands(service, world):
    job = service.client.jobs.list(tag="t")[0].id
    assert "mine" in service.command("jobs", "list", "--tag", "t").stdout
    shown = json.loads(service.command("jobs", "show", job[-8:], "--json").stdout)
    assert shown["status"] == "succeeded" and shown["recipe"]["data"]["dataset"].startswith("file_")
    assert "succeeded" in service.command("jobs", "watch", job).stdout
    assert "Recommended" in service.command("jobs", "logs", job).stdout
    assert "It has none" in service.command("jobs", "checkpoints", job).stdout
    clone = json.loads(service.command("jobs", "clone", job, "--json").stdout)["id"]
    for what, status in [("pause", {"paused", "pausing"}), ("cancel", {"cancelled", "cancelling"})]:
        assert json.loads(service.command("jobs", what, clone, "--json").stdout)["status"] in status
    until(lambda: service.client.jobs.get(clone).status == "cancelled", 300)
    service.command("jobs", "remove", clone)


def test_what_goes_wrong_is_one_sentence(service, world):
    (world / "bad.yaml").write_text((world / "own.yaml").read_text().replace("package:tiny_teacher", "package:no_such"))
    failed = service.command("submit", "bad.yaml", "--wait", check=False)
    assert failed.returncode == 3 and "hub_not_found" in str(service.client.jobs.list(limit=1)[0].data["error"])
    assert "Traceback" not in failed.stderr and "not installed" in failed.stderr
    (world / "worse.yaml").write_text((world / "own.yaml").read_text().replace("package:tiny_teacher", "/etc"))
    refused = service.command("submit", "worse.yaml", check=False)
    assert refused.returncode == 2 and "/recipe/teachers/0/model" in refused.stderr
    assert service.command("jobs", "show", "job_nothing", check=False).returncode == 2
    elsewhere, another = free_ports(2)
    nowhere = service.command("jobs", "list", "--url", f"http://127.0.0.1:{elsewhere}", check=False)
    assert nowhere.returncode == 2 and "No service answers" in nowhere.stderr
    second = service.command("serve", "--jobs", "--port", str(another), check=False)
    assert second.returncode == 2 and "Another server" in second.stderr
    with pytest.raises(JobFailed):
        service.client.jobs.list(limit=1)[0].wait()


def test_the_server_and_its_worker_stop_together(service, world):
    worker = service.worker
    job = service.client.jobs.create(str(world / "own.yaml"), f"data.dataset={world / 'rows.csv'}")
    until(lambda: job.refresh().status == "running", 300)
    assert service.stop() == 0 and not alive(worker)
    assert not [pid for name in service.attempts() for pid in members(name)]
