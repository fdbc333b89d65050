"""One process at a time works in the folder of a run, and a dead one holds nothing."""

import signal
import subprocess
import sys

import pytest

from nlp_distill.errors import RunFolderBusy, RunFolderForeign
from nlp_distill.rundir import RunDir, write_text

HOLD = """
import sys, time
from nlp_distill.rundir import RunDir
run = RunDir(sys.argv[1])
run.create()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that works in the folder `run`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    write_text(tmp_path / "run" / "recipe.yaml", "task: x\n")
    yield process
    process.kill()
    process.communicate()


def test_a_folder_in_use_is_refused_and_its_owner_named(tmp_path, holder):
    with pytest.raises(RunFolderBusy, match=f"in use by process {holder.pid} on .* since 20"):
        RunDir(tmp_path / "run").create()


def test_what_another_process_is_writing_is_left_alone(tmp_path, holder):
    half = tmp_path / "run" / ".results.json.1.tmp"
    half.write_text("{")
    with pytest.raises(RunFolderBusy):
        RunDir(tmp_path / "run").create()
    assert half.exists()


def test_a_killed_process_holds_nothing(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    run = RunDir(tmp_path / "run")
    run.create()
    with pytest.raises(RunFolderBusy):
        RunDir(tmp_path / "run").create()
    run.release()
    RunDir(tmp_path / "run").create()


def test_a_folder_that_was_only_locked_is_no_foreign_one(tmp_path):
    run = RunDir(tmp_path / "run")
    run.create()
    run.release()
    RunDir(tmp_path / "run").create()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(RunFolderForeign):
        RunDir(tmp_path / "other").create()
    assert [file.name for file in (tmp_path / "other").iterdir()] == ["thesis.txt"]
