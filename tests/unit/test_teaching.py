from types import SimpleNamespace

import pytest
import torch

from nlp_distill import teaching
from nlp_distill.errors import CacheRefused, DiskFull, Interrupted
from nlp_distill.teaching import STOPPED, Lesson


def test_an_error_without_words_is_none_the_less_said(monkeypatch):
    heard = []
    monkeypatch.setattr(teaching, "gather_object", lambda mine: heard.extend(mine) or mine)
    lesson(False, MemoryError()).share(None)
    assert heard == [({}, "MemoryError()")]


def lesson(main, outcome):
    """A process's part in a cache that several write; `outcome`: what its own share comes to."""

    class Part(Lesson):
        def _fill(self, draft):
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

    return Part(SimpleNamespace(main=main), None, None, None, None, None, "distill", "")


def gathered(monkeypatch, *others):
    monkeypatch.setattr(teaching, "gather_object", lambda mine: [*mine, *others])


def test_all_have_done_theirs(monkeypatch):
    gathered(monkeypatch, ({"encoder": torch.zeros(5, 5)}, ""), ({}, ""))
    seen = lesson(True, {"encoder": torch.zeros(3, 3), "decoder": torch.zeros(2, 2)}).share(None)
    assert {stack: len(bias) for stack, bias in seen.items()} == {"encoder": 5, "decoder": 2}


@pytest.mark.parametrize(
    ("mine", "theirs", "raised", "words"),
    [
        ({}, "disk full", CacheRefused, "process 1 could not write its share: disk full"),
        ({}, STOPPED, Interrupted, "Stopped"),
        (MemoryError("none left"), "", MemoryError, "none left"),
        (Interrupted(step=0, stage="distill"), "", Interrupted, "Stopped"),
        (DiskFull(path="cache", reason="full"), STOPPED, DiskFull, "cache"),
    ],
)
def test_what_went_wrong_anywhere_is_raised_on_the_main_process_alone(mine, theirs, raised, words, monkeypatch):
    gathered(monkeypatch, ({}, theirs))
    with pytest.raises(raised, match=words):
        lesson(True, mine).share(None)
    lesson(False, mine).share(None)  # which hears what comes of it next
