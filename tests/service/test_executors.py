"""What every executor must do: on this machine, and on a real Ray cluster of one."""

import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import FAST, RAY_TOKEN, RECIPE, RayCluster, events_of, free_ports, script_runs, until
from typer.testing import CliRunner

from nlp_distill.cli import app
from nlp_distill.errors import RayUnfit
from nlp_distill.recipe import Recipe
from nlp_distill.recipe_file import expand, load_recipe
from nlp_distill.rundir import sha256_file
from nlp_distill.service.executors import ray
from nlp_distill.service.executors.contract import Spec, Unavailable
from nlp_distill.service.executors.local import LocalExecutor
from nlp_distill.service.executors.ray import RayExecutor, ray_token
from nlp_distill.service.home import Home, new_id
from nlp_distill.service.processes import PROC, members
from nlp_distill.service.server import executor_of
from nlp_distill.service.store.tables import attempts, jobs
from nlp_distill.service.worker import Worker


@pytest.fixture
def new_ray(request, tmp_path, monkeypatch):
    """Gives executors of the cluster."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", RAY_TOKEN)
    # A machine that runs all these tests at once answers late.
    for name in ("ANSWER_S", "START_S", "REAP_S"):
        monkeypatch.setattr(ray, name, 120.0)
    cluster = request.getfixturevalue("ray_cluster")
    return lambda: RayExecutor(cluster.address, tmp_path / "ray")


@pytest.fixture(params=["local", "ray"])
def new_executor(request):
    """Gives executors of the same place."""
    return LocalExecutor if request.param == "local" else request.getfixturevalue("new_ray")


@pytest.fixture
def executor(new_executor):
    return new_executor()


@pytest.fixture
def spec(tmp_path):
    """An attempt that runs a script."""
    made = []

    def make(script, **more):
        (tmp_path / "acting.py").write_text(script)
        attempt = new_id("attempt")
        path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": path, **more.pop("environment", {})}
        arguments = more.pop("arguments", ("acting",))
        spec = Spec(attempt, arguments, tmp_path / "work", tmp_path / "log" / "a.log", environment, **more)
        made.append(spec)
        return spec

    yield make
    for spec in made:
        LocalExecutor().reap(spec.attempt_id, None)


def end_of(executor, handle):
    return until(lambda: (state := executor.poll(handle)).kind != "running" and state)


@pytest.mark.parametrize("code", [0, 75])
def test_the_exit_code_is_the_commands(executor, spec, code):
    handle = executor.submit(spec(f"import sys; sys.exit({code})"))
    assert end_of(executor, handle).exit_code == code


def test_what_it_writes_is_read_in_parts(executor, spec):
    given = spec("import sys\nprint('one')\nprint('two', file=sys.stderr)")
    handle = executor.submit(given)
    end_of(executor, handle)
    text = executor.logs(handle, 0)
    assert sorted(text.split()) == [b"one", b"two"]
    assert executor.logs(handle, 4) == text[4:] and executor.logs(handle, 0, 3) == text[:3]
    assert executor.logs(handle, 1000) == b""


def test_it_runs_in_its_folder_with_its_environment_and_no_other(executor, spec, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canarycanarycanary")
    script = "import os; print(os.getcwd()); print(dict(os.environ))"
    given = spec(script, environment={"GIVEN": "this"})
    handle = executor.submit(given)
    end_of(executor, handle)
    text = executor.logs(handle, 0).decode()
    assert text.split("\n")[0] == str(given.folder) and "'GIVEN': 'this'" in text
    assert "canary" not in text and "HF_TOKEN" not in text


def test_the_same_attempt_is_never_started_twice(executor, spec, tmp_path):
    given = spec("import time; open('began', 'a').write('x'); time.sleep(60)")
    first = executor.submit(given)
    until(lambda: (given.folder / "began").exists() and (given.folder / "began").read_text())
    assert executor.submit(given) == first
    assert executor.poll(first).kind == "running"
    executor.reap(given.attempt_id, first)
    assert (given.folder / "began").read_text() == "x"


STOPPABLE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("ready", flush=True)
time.sleep(60)
"""
DEAF = STOPPABLE.replace("lambda *_: sys.exit(75)", "signal.SIG_IGN")


def test_it_may_stop_by_itself(executor, spec):
    handle = executor.submit(spec(STOPPABLE))
    until(lambda: b"ready" in executor.logs(handle, 0))
    executor.stop(handle, grace_s=30)
    executor.stop(handle, grace_s=30)
    assert end_of(executor, handle).exit_code == 75


def test_after_the_grace_it_is_ended(executor, spec):
    given = spec(DEAF)
    handle = executor.submit(given)
    until(lambda: b"ready" in executor.logs(handle, 0))
    executor.stop(handle, grace_s=0.2)
    assert end_of(executor, handle).exit_code not in (0, 2, 3, 75)
    executor.reap(given.attempt_id, handle)
    assert list(members(given.attempt_id)) == []


FAMILY = """
import subprocess, sys, time
for _ in range(3):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print("ready", flush=True)
time.sleep(0 if {ends} else 60)
"""


@pytest.mark.parametrize("ends", [False, True])
def test_reaping_leaves_nothing_in_whatever_session(executor, spec, ends):
    given = spec(FAMILY.format(ends=ends))
    handle = executor.submit(given)
    until(lambda: b"ready" in executor.logs(handle, 0))
    executor.reap(given.attempt_id, handle)
    assert list(members(given.attempt_id)) == []
    executor.reap(given.attempt_id, handle)


def test_an_attempt_of_an_earlier_executor_is_reaped_by_name(executor, new_executor, spec):
    given = spec(DEAF)
    handle = executor.submit(given)
    until(lambda: b"ready" in executor.logs(handle, 0))
    new_executor().reap(given.attempt_id, None)
    assert list(members(given.attempt_id)) == []
    executor.reap(given.attempt_id, handle)


def test_a_handle_that_the_place_does_not_know_is_lost(executor, new_executor, spec):
    given = spec("")
    handle = executor.submit(given)
    end_of(executor, handle)
    executor.reap(given.attempt_id, handle)
    assert new_executor().poll(handle).kind == "lost"


def test_secrets_never_reach_the_log(executor, spec, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-long-secret-of-the-hub")
    script = (
        "import os; print('hf_abcdefghijklmnop', os.environ['HF_TOKEN']); print('Authorization: Bearer abcdefghij')"
    )
    handle = executor.submit(spec(script, environment={"HF_TOKEN": "a-long-secret-of-the-hub"}))
    end_of(executor, handle)
    text = executor.logs(handle, 0).decode()
    assert text.count("[secret]") == 3 and "abcdefgh" not in text and "a-long" not in text


def test_several_processes_form_one_world(executor, spec):
    script = """
import os
from torch import distributed
distributed.init_process_group("gloo")
print("rank", distributed.get_rank(), "of", distributed.get_world_size(), flush=True)
# Or the first to leave hangs up on one that is still connecting.
distributed.barrier()
distributed.destroy_process_group()
"""
    handle = executor.submit(spec(script, processes=2))
    assert end_of(executor, handle).exit_code == 0
    text = executor.logs(handle, 0).decode()
    assert "rank 0 of 2" in text and "rank 1 of 2" in text


def test_processes_die_with_the_worker(spec, tmp_path):
    """Local only: the kernel's tie. Torchrun's own processes are in sessions of their own."""
    import subprocess

    given = spec(FAMILY.format(ends=False))
    starter = f"""
import os, signal, time
from pathlib import Path
from nlp_distill.service.executors.contract import Spec
from nlp_distill.service.executors.local import LocalExecutor
executor = LocalExecutor()
executor.submit(Spec({given.attempt_id!r}, ("acting",), Path({str(given.folder)!r}), Path({str(given.log)!r}),
                     {dict(given.environment)!r}))
time.sleep(60)
"""
    worker = subprocess.Popen([sys.executable, "-c", starter])
    until(lambda: given.log.is_file() and b"ready" in given.log.read_bytes())
    first = [pid for pid in members(given.attempt_id)]
    assert len(first) == 4
    worker.kill()
    worker.wait()
    # The process that was started dies at once; what it started itself is reaped by the next worker, by name.
    until(lambda: len(list(members(given.attempt_id))) <= 3)
    LocalExecutor().reap(given.attempt_id, None)
    assert list(members(given.attempt_id)) == []


@pytest.fixture
def on_ray(new_ray):
    return new_ray()


def weights(run):
    files = [*run.glob("teacher/*.safetensors"), *run.glob("model/*.safetensors")]
    return {str(file.relative_to(run)): sha256_file(file) for file in files}


@pytest.mark.slow
def test_a_job_has_the_same_weights_on_ray_as_here(on_ray, home, queue, tiny_recipe, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("HF_TOKEN", "hf_canarycanarycanary")
    recipe = load_recipe(str(tiny_recipe())).resolved()
    resources = {"threads": 1}
    given = {"name": "", "tags": [], "priority": 0, "recipe": recipe, "recipe_sha256": "0", "resources": resources}
    names = []
    for executor in (LocalExecutor(), on_ray):
        with queue.database.writing() as connection:
            names.append(queue.submit(connection, **given))
        Worker(home, queue, executor, FAST).serve(lambda: False, once=True)
        with queue.database.reading() as connection:
            job = connection.execute(jobs.select().where(jobs.c.id == names[-1])).one()
            attempt = connection.execute(attempts.select().where(attempts.c.job_id == names[-1])).one()
        assert (job.status, attempt.ending) == ("succeeded", "ok"), job.detail
    here, there = (weights(home.run(name)) for name in names)
    assert here == there and len(here) == 2
    # Ray learns of the end later than we do.
    until(lambda: on_ray.cluster.job(attempt.id)["status"] == "SUCCEEDED")
    said = on_ray.cluster.job(attempt.id)
    assert said["metadata"] in ({}, None)
    assert "canary" not in json.dumps(said) and RAY_TOKEN not in json.dumps(said)
    assert not list(home.ray.parent.glob("ray/*")) and not (on_ray.shared / attempt.id).exists()


def refuses(address, shared, given):
    executor = RayExecutor(address, shared)
    with pytest.raises(RayUnfit, match="lets anybody in; start it with RAY_AUTH_MODE=token"):
        executor.check()
    with pytest.raises(Unavailable, match="lets anybody in"):
        executor.submit(given)
    assert not list(shared.glob("*"))
    return executor


def test_what_answers_anybody_is_refused(tmp_path, spec, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", RAY_TOKEN)
    asked = []

    class Open(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers["Authorization"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Open) as server:
        threading.Thread(target=server.serve_forever).start()
        refuses(f"http://127.0.0.1:{server.server_port}", tmp_path / "ray", spec(""))
        server.shutdown()
    # It gets no job, and no token.
    assert asked == [("/api/version", None)] * 2


@pytest.mark.slow
def test_a_cluster_that_lets_anybody_in_is_refused(tmp_path, spec):
    cluster = RayCluster("disabled")
    try:
        until(cluster.answers)
        given = spec("")
        executor = refuses(cluster.address, tmp_path / "ray", given)
        assert executor.cluster.job(given.attempt_id) is None
    finally:
        cluster.end()


def test_what_is_wrong_with_a_cluster_is_one_sentence(ray_cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another-token-than-the-clusters")
    with pytest.raises(RayUnfit, match="does not take our token; put the cluster's into RAY_AUTH_TOKEN"):
        RayExecutor(ray_cluster.address, tmp_path).check()
    nowhere = f"http://127.0.0.1:{free_ports()[0]}"
    with pytest.raises(RayUnfit, match="does not answer; start it"):
        RayExecutor(nowhere, tmp_path).check()
    with pytest.raises(RayUnfit, match="no address"):
        RayExecutor("auto", tmp_path)
    told = CliRunner().invoke(app, ["serve", "--jobs", "--home", str(tmp_path / "home"), "--ray", nowhere])
    assert isinstance(told.exception, RayUnfit) and told.exception.exit_code == 2
    # A worker waits, as jobs do; it is started anew whenever it ends.
    assert executor_of(Home(tmp_path), nowhere).name == "ray"


def test_the_token_comes_from_where_ray_keeps_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    assert ray_token() == ""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of the file\n")
    assert ray_token() == "of the file"
    (tmp_path / "named").write_text("of the named file")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "named"))
    assert ray_token() == "of the named file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the variable")
    assert ray_token() == "of the variable"


def test_a_node_that_does_not_see_the_folder_says_so(on_ray, spec, monkeypatch):
    real = ray._request
    monkeypatch.setattr(ray, "_request", lambda spec, folder: real(spec, folder / "elsewhere"))
    monkeypatch.setattr(ray, "SEEN_S", 0.5)
    state = end_of(on_ray, on_ray.submit(spec("")))
    assert state.kind == "lost" and "elsewhere: the service's folder must be mounted there" in state.detail


def test_a_job_whose_process_ray_kills_leaves_nothing(on_ray, spec):
    given = spec(FAMILY.format(ends=False))
    handle = on_ray.submit(given)
    until(lambda: b"ready" in on_ray.logs(handle, 0))
    assert len(list(members(given.attempt_id))) == 4
    os.kill(launcher_of(given), signal.SIGKILL)
    state = end_of(on_ray, handle)
    assert state.kind == "lost" and "Ray ended its job" in state.detail
    assert list(members(given.attempt_id)) == []


def launcher_of(given):
    """The process that Ray started."""
    for folder in PROC.glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if ray.NODE.encode() in line and any(given.attempt_id.encode() in part for part in line):
            return int(folder.name)
    raise LookupError(given.attempt_id)


def test_a_cluster_that_is_gone_has_lost_its_jobs(on_ray, spec, tmp_path, monkeypatch):
    given = spec("import time; time.sleep(60)")
    handle = on_ray.submit(given)
    there = on_ray.cluster.address
    on_ray.cluster.address = f"http://127.0.0.1:{free_ports()[0]}"
    monkeypatch.setattr(ray, "ASK_S", 0.0)
    assert on_ray.poll(handle).kind == "running"
    monkeypatch.setattr(ray, "PATIENCE_S", 0.0)
    state = on_ray.poll(handle)
    assert state.kind == "lost" and "does not answer" in state.detail
    with pytest.raises(Unavailable):
        on_ray.submit(spec(""))
    # Its node is told through the folder, and ends it though nobody asks Ray.
    on_ray.reap(given.attempt_id, handle)
    assert list(members(given.attempt_id)) == []
    # A new head knows nothing of it.
    on_ray.cluster.address, on_ray.cluster._rest_until = there, 0.0
    (on_ray.shared / "attempt_of_before").mkdir(parents=True)
    assert on_ray.poll(json.dumps({"attempt": "attempt_of_before"})).kind == "lost"


def test_jobs_wait_for_a_cluster_that_is_away(home, queue):
    executor = RayExecutor(f"http://127.0.0.1:{free_ports()[0]}", home.ray)
    recipe = Recipe.model_validate(expand(RECIPE)).resolved()
    given = {"name": "", "tags": [], "priority": 0, "recipe": recipe, "recipe_sha256": "0", "resources": {}}
    with queue.database.writing() as connection:
        name = queue.submit(connection, **given)
    worker = Worker(home, queue, executor, FAST)
    worker.prepare = script_runs("")
    for _ in range(5):
        worker.tick()
    with queue.database.reading() as connection:
        job = connection.execute(jobs.select().where(jobs.c.id == name)).one()
    assert (job.status, job.failures) == ("queued", 0)
    assert [e["message"] for e in events_of(queue, name)].count("starting") == 1
    assert "does not answer" in events_of(queue, name)[-1]["message"]


def test_what_no_signal_ends_is_looked_at_again(spec, monkeypatch):
    executor = LocalExecutor()
    given = spec("import time; time.sleep(60)")
    handle = executor.submit(given)
    with monkeypatch.context() as stubborn:
        stubborn.setattr("nlp_distill.service.executors.local.kill_all", lambda _: False)
        for _ in range(2):
            with pytest.raises(TimeoutError, match="do not end"):
                executor.reap(given.attempt_id, handle)
    executor.reap(given.attempt_id, handle)
    assert not [*members(given.attempt_id)]
