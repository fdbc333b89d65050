"""What every executor must do: on this machine, and on a real Ray cluster of one."""

import os
import sys

import pytest
from conftest import RAY_TOKEN, until

from nlp_distill.service.executors.contract import Spec
from nlp_distill.service.executors.local import LocalExecutor
from nlp_distill.service.executors.ray import RayExecutor
from nlp_distill.service.home import new_id
from nlp_distill.service.processes import members


@pytest.fixture(params=["local", "ray"])
def new_executor(request, tmp_path, monkeypatch):
    """Gives executors of the same place."""
    if request.param == "local":
        return LocalExecutor
    monkeypatch.setenv("RAY_AUTH_TOKEN", RAY_TOKEN)
    cluster = request.getfixturevalue("ray_cluster")
    return lambda: RayExecutor(cluster.address, tmp_path / "ray")


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


@pytest.mark.parametrize("code", [0, 2, 3, 75])
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
    until(lambda: (given.folder / "began").exists())
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
    script = "import os; print('hf_abcdefghijklmnop', os.environ['HF_TOKEN']); print('Authorization: Bearer abcdefghij')"
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
distributed.destroy_process_group()
"""
    handle = executor.submit(spec(script, processes=2))
    assert until(lambda: (s := executor.poll(handle)).kind != "running" and s, 120).exit_code == 0
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
