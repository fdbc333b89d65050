"""Every entry of tests/corpus/bad_inputs: refused in a few words, with place and fix, and nothing left behind."""

import hashlib
import importlib
import io
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from bad_inputs import Entry, World, entries

from nlp_distill.cli import main

SECONDS = 10
"""Of computing; a busy machine may let others go first."""
STANDSTILL = 60
LINES, CHARACTERS = 12, 1600
ENTRIES = entries()
REAL = [entry for entry in ENTRIES if entry.process]


class Hang(BaseException):
    """Not an `Exception`: nothing may catch it."""


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    # Libraries load once, before any clock runs.
    for name in ("stages", "doctor", "estimate", "starter"):
        importlib.import_module(f"nlp_distill.{name}")
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The entry's own folder, with a cache beside it."""
    monkeypatch.setenv("NLP_DISTILL_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def alarm():
    """Interrupts what takes too long."""

    def ring(number, frame):
        raise Hang(f"not done after {STANDSTILL} s")

    before = signal.signal(signal.SIGALRM, ring)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def tree(folder):
    """Every file with its hash; locks come and go."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if _plain(path) else ""
        for path in folder.rglob("*")
        if path.name != ".lock"
    }


def _plain(path):
    return path.is_file() and not path.is_symlink()


def stdin_of(entry):
    return bytes.fromhex(entry.stdin["hex"]) if isinstance(entry.stdin, dict) else entry.stdin.encode()


def judge(entry: Entry, code, message, output, seconds):
    """What holds for every entry, however it was run."""
    assert code == entry.code, message
    assert "Traceback" not in message and "this is a bug" not in message
    said = message if entry.code else message + output
    missing = [words for words in entry.says if str(words) not in " ".join(said.split())]
    assert not missing, f"{missing} not in: {said}"
    assert seconds < SECONDS
    if entry.code:
        assert message.startswith(("Error: ", "Usage: ")), message
        assert message.count("\n") <= LINES and len(message) <= CHARACTERS, message
        assert all(letter.isprintable() or letter == "\n" for letter in message), ascii(message)


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_bad_input(entry, world, here, alarm, monkeypatch, capsys):
    arguments = world.lay_out(entry, here)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin_of(entry)), encoding="utf-8"))
    for name, value in entry.environment.items():
        monkeypatch.setenv(name, world.filled(value, here))
    before = tree(here)
    capsys.readouterr()
    started = time.process_time()
    alarm(STANDSTILL)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    alarm(0)
    seconds = time.process_time() - started
    said = capsys.readouterr()
    judge(entry, stopped.value.code or 0, said.err, said.out, seconds)
    if entry.code == 2:
        assert tree(here) == before


@pytest.mark.parametrize("entry", REAL, ids=str)
def test_bad_input_through_the_real_command(entry, world, here):
    arguments = world.lay_out(entry, here)
    before = tree(here)
    done = subprocess.run(
        [sys.executable, "-m", "nlp_distill.cli", *arguments],
        input=stdin_of(entry),
        capture_output=True,
        timeout=2 * STANDSTILL,
        env={**os.environ, **entry.environment},
    )
    judge(entry, done.returncode, done.stderr.decode(), done.stdout.decode(), seconds=0)
    assert tree(here) == before


def test_the_corpus_is_large_and_its_names_are_unique():
    assert len(ENTRIES) >= 230
    assert not [name for name, count in Counter(map(str, ENTRIES)).items() if count > 1]
    assert len(REAL) >= 6
    assert all(entry.says for entry in ENTRIES)


@pytest.mark.parametrize("task", ["classification", "question_answering", "seq2seq", "masked_lm"])
def test_the_good_world_is_good(world, here, task, capsys):
    """Or every refusal above could be for another reason."""
    entry = Entry("good", task, [], base=task, run=["doctor", "<recipe>"])
    with pytest.raises(SystemExit) as stopped:
        main(world.lay_out(entry, here))
    assert not stopped.value.code
    assert "ready to run" in capsys.readouterr().out
