"""No boundary of a checkpoint's publication loses the one before, and nothing damaged is ever read."""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import sys

import pytest
import torch

from nlp_distill import checkpoint as module
from nlp_distill.checkpoint import Checkpoint, CheckpointFolder
from nlp_distill.rundir import sha256_file

FILES = ["state.json", "weights.safetensors", "optimizer.safetensors", "best.safetensors", "manifest.json"]


def moment(step):
    def tensors(number):
        return {"a": torch.full((4, 3), float(step + number)), "b": torch.arange(5) + step}

    return Checkpoint({"step": step, "epoch_sums": [{"labels": 0.1 * step}]}, tensors(1), tensors(2), tensors(3))


def same(one, two):
    parts = ("weights", "optimizer", "best")
    return one.state == two.state and all(
        getattr(one, part).keys() == getattr(two, part).keys()
        and all(torch.equal(value, getattr(two, part)[name]) for name, value in getattr(one, part).items())
        for part in parts
    )


@pytest.fixture
def folder(tmp_path):
    """Two checkpoints, of the steps 1 and 2."""
    kept = CheckpointFolder(tmp_path / "kept", key="k")
    for step in (1, 2):
        kept.save(moment(step))
    return tmp_path / "kept"


def newest(folder, key="k"):
    return CheckpointFolder(folder, key).load()


def test_two_are_kept_and_the_newest_is_named(folder):
    CheckpointFolder(folder, "k").save(moment(3))
    assert sorted(file.name for file in folder.iterdir()) == ["LATEST", "step-00000002", "step-00000003"]
    assert (folder / "LATEST").read_text() == "step-00000003\n"
    assert same(newest(folder), moment(3))


def test_another_key_is_never_resumed_from(folder):
    assert newest(folder, key="other") is None


# Mutants


def flip(file, generator):
    data = bytearray(file.read_bytes())
    data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    file.write_bytes(data)


def cut(file, generator):
    os.truncate(file, generator.randrange(file.stat().st_size))


def grown(file, generator):
    file.write_bytes(file.read_bytes() + generator.randbytes(1))


def swapped_within(file, generator):
    other = file.with_name(generator.choice([name for name in FILES if name != file.name]))
    one, two = file.read_bytes(), other.read_bytes()
    file.write_bytes(two)
    other.write_bytes(one)


def from_the_one_before(file, _generator):
    file.write_bytes((file.parent.with_name("step-00000001") / file.name).read_bytes())


def missing(file, _generator):
    file.unlink()


def empty(file, _generator):
    file.write_bytes(b"")


def a_folder(file, _generator):
    file.unlink()
    file.mkdir()


PER_FILE = {flip: 8, cut: 4, grown: 2, swapped_within: 1, from_the_one_before: 1, missing: 1, empty: 1, a_folder: 1}


def honest_manifest(folder, names):
    (folder / "manifest.json").write_text(json.dumps({name: sha256_file(folder / name) for name in names}))


def manifest_of_nothing(folder):
    (folder / "manifest.json").write_text("{}")


def manifest_is_a_list(folder):
    (folder / "manifest.json").write_text("[]")


def manifest_without_weights(folder):
    (folder / "weights.safetensors").unlink()
    honest_manifest(folder, FILES[:1] + FILES[2:4])


def manifest_with_a_stranger(folder):
    (folder / "stranger.bin").write_bytes(b"x")
    honest_manifest(folder, [*FILES[:4], "stranger.bin"])


def the_one_before_under_this_name(folder):
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("step-00000001"), folder)


def weights_are_no_tensors(folder):
    (folder / "weights.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0notjson!")
    honest_manifest(folder, FILES[:4])


WHOLE = [
    manifest_of_nothing,
    manifest_is_a_list,
    manifest_without_weights,
    manifest_with_a_stranger,
    the_one_before_under_this_name,
    weights_are_no_tensors,
]


def mutants():
    for mutate, times in PER_FILE.items():
        for name in FILES:
            yield from ((mutate, name, number) for number in range(times))
    yield from ((mutate, None, 0) for mutate in WHOLE)


def test_each_of_100_mutants_is_found_before_use(folder, tmp_path):
    every = list(mutants())
    assert len(every) >= 100
    for number, (mutate, name, seed) in enumerate(every):
        copy = tmp_path / str(number)
        shutil.copytree(folder, copy)
        target = copy / "step-00000002"
        if name is None:
            mutate(target)
        else:
            mutate(target / name, random.Random(seed))
        kept = CheckpointFolder(copy, "k")
        found = kept.load()
        assert found is not None and same(found, moment(1)), (mutate.__name__, name)
        assert kept.moved_aside == ["damaged-step-00000002"], (mutate.__name__, name)
        # What was moved aside is not in the way of the same step, made again.
        kept.save(moment(2))
        assert same(newest(copy), moment(2))


def test_when_all_are_damaged_the_stage_starts_anew(folder):
    for step in (1, 2):
        (folder / f"step-0000000{step}" / "state.json").unlink()
    kept = CheckpointFolder(folder, "k")
    assert kept.load() is None
    assert len(kept.moved_aside) == 2


# Boundaries

WATCHED = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")


class Injector:
    """Counts everything that a publication asks of the file system, and does something at one of them."""

    def __init__(self, at, action):
        self.at, self.action, self.seen = at, action, 0

    def __call__(self, file=None):
        self.seen += 1
        if self.seen != self.at:
            return
        if self.action.startswith("short") and file is not None:
            os.truncate(file, os.stat(file).st_size // 2)
        if self.action in ("kill", "short and kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.action in errno.errorcode.values():
            raise OSError(getattr(errno, self.action), self.action)

    def install(self):
        def hook(event, arguments):
            writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wxa+")
            if event in WATCHED or writes:
                self()

        fsync, save = os.fsync, module.save_file

        def fsync_and_look(handle):
            path = os.readlink(f"/proc/self/fd/{handle}")
            self(None if os.path.isdir(path) else path)
            fsync(handle)

        def save_and_look(tensors, path):
            save(tensors, path)
            self(path)

        os.fsync, module.save_file = fsync_and_look, save_and_look
        sys.addaudithook(hook)


def saved_in_a_child(folder, at, action):
    """Save step 3 in a forked process: how many boundaries it met, and whether it was ended by a signal."""
    counted, told = os.pipe()
    child = os.fork()
    if not child:
        injector = Injector(at, action)
        injector.install()
        with contextlib.suppress(BaseException):
            CheckpointFolder(folder, "k").save(moment(3))
        os.write(told, str(injector.seen).encode())
        os._exit(0)
    os.close(told)
    with os.fdopen(counted) as stream:
        seen = stream.read()
    _, status = os.waitpid(child, 0)
    return int(seen or 0), os.WIFSIGNALED(status)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
@pytest.mark.parametrize("action", ["kill", "ENOSPC", "EIO", "short", "short and kill"])
def test_every_boundary_leaves_a_checkpoint(folder, tmp_path, action):
    boundaries, _ = saved_in_a_child(folder, at=0, action=action)
    assert boundaries > 20
    shutil.rmtree(folder / "step-00000003")
    shutil.copytree(folder / "step-00000002", tmp_path / "two")
    killed = 0
    for at in range(1, boundaries + 1):
        copy = tmp_path / f"at-{at}"
        # As it was before the third save: the first was dropped by it.
        copy.mkdir()
        shutil.copytree(tmp_path / "two", copy / "step-00000002")
        CheckpointFolder(copy, "k").save(moment(1))
        seen, dead = saved_in_a_child(copy, at, action)
        killed += dead
        assert dead or seen >= at
        found = newest(copy)
        assert found is not None and same(found, moment(found.state["step"])), at
        assert found.state["step"] in (2, 3)
        CheckpointFolder(copy, "k").save(moment(3))
        assert same(newest(copy), moment(3)), at
    assert killed == (boundaries if "kill" in action else 0)
