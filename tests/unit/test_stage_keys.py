"""Stages that stand on other bits than those that are there are made anew."""

import pytest

from nlp_distill.rundir import RunDir
from nlp_distill.stage_keys import UPSTREAM, StageKeys


@pytest.fixture
def keys(tmp_path):
    rundir = RunDir(tmp_path / "run")
    rundir.create()
    kept = StageKeys(rundir, {stage: {} for stage in UPSTREAM}, redo=False)
    for stage in UPSTREAM:
        (rundir.path / stage).write_text("made")
        kept.record(stage, [stage], 1.0)
    yield kept
    rundir.release()


def test_other_bits_under_the_same_key_forget_what_read_them(keys):
    """As an export that is made again on another machine."""
    (keys.rundir.path / "export").write_text("made elsewhere")
    assert not keys.complete("export") and keys.complete("results")
    keys.record("export", ["export"], 1.0)
    assert {stage for stage in UPSTREAM if keys.complete(stage)} == {
        *("data", "teacher", "student", "distill", "control", "export")
    }
    assert not (keys.rundir.path / "results").exists()


def test_the_same_bits_leave_what_read_them(keys):
    (keys.rundir.path / "export").unlink()
    assert not keys.complete("export")
    (keys.rundir.path / "export").write_text("made")
    keys.record("export", ["export"], 1.0)
    assert all(keys.complete(stage) for stage in UPSTREAM)


def test_other_bits_forget_what_was_half_made_of_the_old_ones(keys):
    """A distillation that was stopped resumes from no checkpoint of a student of another teacher."""
    run = keys.rundir
    run.update_manifest(stages={n: it for n, it in keys.records().items() if n in ("data", "teacher")})
    run.update_manifest(targets=keys.keys["teacher"], teaching={"distill": {"key": "k", "cache": "fp32"}})
    for half in ("distill/phase-0", "control"):
        (run.checkpoints / half).mkdir(parents=True)
    (run.path / "retrained" / "int8").mkdir(parents=True)
    (run.path / "teacher").write_text("made elsewhere")
    keys.record("teacher", ["teacher"], 1.0)
    assert not any(run.checkpoints.iterdir()) and not (run.path / "retrained").exists()
    assert run.manifest()["targets"] is None and run.manifest()["teaching"] == {}
