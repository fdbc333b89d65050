"""What a machine does to a run is said in one sentence, with exit code 3."""

import errno
import re
import subprocess
import sys

import pytest
import torch

from nlp_distill.errors import DiskFailed, DiskFull, Interrupted, OutOfMemory, ProcessLost, RunFailed
from nlp_distill.outcome import OUTCOME_VARIABLE, leave_outcome, read_outcome
from nlp_distill.trouble import named, together


def test_more_memory_than_there_is(monkeypatch):
    with pytest.raises(OutOfMemory, match=r"^distill: out of memory \(.*allocate memory.*micro_batch_tokens") as error:
        with named("distill"):
            torch.empty(1 << 50)
    assert error.value.exit_code == 3


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ESTALE])
def test_a_failing_disk(number):
    with pytest.raises(DiskFailed, match=r"^export: the disk failed .*the same command resumes"):
        with named("export"):
            raise OSError(number, "gone", "model.onnx")


def test_a_disk_that_fills_while_a_stage_runs_is_no_mistake_of_the_user(tmp_path):
    with pytest.raises(DiskFailed, match="no space left on the device") as error:
        with named("distill"):
            raise DiskFull(path=tmp_path, reason="No space left on device")
    assert error.value.exit_code == 3


def test_safetensors_says_the_same_of_a_full_disk(tmp_path):
    """Files may grow to 1 kB here: safetensors says `os error 27`, which is EFBIG."""
    script = f"""
import resource, torch
from pathlib import Path
from safetensors.torch import save_file
from nlp_distill.rundir import new_folder
from nlp_distill.trouble import named
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
with named("distill"), new_folder(Path({str(tmp_path)!r}, "x")) as folder:
    save_file({{"a": torch.ones(1000)}}, folder / "a.safetensors")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "DiskFailed: distill: the disk failed" in done.stderr and "File too large" in done.stderr
    assert not list(tmp_path.iterdir())


def test_other_errors_are_not_dressed_up():
    for error in (RuntimeError("a bug"), OSError(errno.ENOENT, "no file"), ValueError("odd")):
        with pytest.raises(type(error), match=re.escape(str(error))), named("distill"):
            raise error


def test_what_ends_with_a_stop_did_not_fail():
    died = RunFailed(stage="measure", reason="the process that ran student died")
    with pytest.raises(Interrupted), named("measure", lambda: True):
        raise died
    with pytest.raises(RunFailed, match="died"), named("measure", lambda: False):
        raise died
    lost = ProcessLost(stage="distill", reason="connection reset")
    with pytest.raises(ProcessLost), named("distill", lambda: True):
        raise lost


def test_a_lost_process_only_where_there_were_several(monkeypatch):
    lost = "[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:2443"
    with pytest.raises(RuntimeError) as error, named("distill"):
        raise RuntimeError(lost)
    assert not isinstance(error.value, ProcessLost)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ProcessLost, match="another process of this run has gone"), named("distill"):
        raise RuntimeError(lost)


STALLING = """
import sys, time
from nlp_distill.trouble import watched
told = lambda kind, **fields: print(kind, fields["message"], flush=True)
with watched("distill", 0.5 / 60, told) as beat:
    for _ in range(10):
        time.sleep(0.1)
        beat()
    print("stalls", flush=True)
    time.sleep(30)
"""


def test_a_run_that_stands_still_is_ended_and_one_that_goes_on_is_not():
    done = subprocess.run([sys.executable, "-c", STALLING], capture_output=True, text=True, timeout=25)
    assert done.returncode == 3
    assert done.stderr.startswith("Error: distill: no step for 0.00833333 minutes;")
    assert done.stdout.startswith("stalls\nwarning distill: no step")


@pytest.mark.parametrize("told", ["time.sleep(60)", "(_ for _ in ()).throw(OSError(116, 'Stale file handle'))"])
def test_it_is_ended_too_where_nobody_can_be_told(told):
    """What the run writes to may stand on the disk that has gone."""
    script = STALLING.replace('print(kind, fields["message"], flush=True)', told)
    script = script.replace(
        "import sys, time", "import sys, time\nfrom nlp_distill import trouble\ntrouble.TELLING_SECONDS = 0.2"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=25)
    assert done.returncode == 3
    assert done.stderr.startswith("Error: distill: no step for") and "Traceback" not in done.stderr


def test_a_full_disk_before_the_first_stage_stays_the_users_to_mend_and_a_peer_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DiskFull), together("start"):
        raise DiskFull(path=tmp_path, reason="No space left on device")
    with pytest.raises(ProcessLost, match=r"^start: another process"), together("start"):
        raise RuntimeError("Connection closed by peer [127.0.0.1]:2443")


def test_an_outcome_that_was_cut_off_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv(OUTCOME_VARIABLE, str(tmp_path / "outcome"))
    assert read_outcome(tmp_path / "outcome") is None
    leave_outcome(ProcessLost(stage="distill", reason="gone"))
    leave_outcome(DiskFull(path=tmp_path, reason="later"))
    said = read_outcome(tmp_path / "outcome")
    assert said["families"][0] == "ProcessLost" and said["exit_code"] == 3
    (tmp_path / "outcome").write_text("")
    assert read_outcome(tmp_path / "outcome") is None
