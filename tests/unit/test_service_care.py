"""What an operator never wants to meet: empty secrets, tokens sent elsewhere, news that are lost, workers that end."""

import asyncio
import json
import os
import threading
from types import SimpleNamespace

import pytest
from sqlalchemy.exc import OperationalError

from nlp_distill.light.question_answering import LightAnswerer
from nlp_distill.service import worker
from nlp_distill.service.api import feed
from nlp_distill.service.attempt import furthest
from nlp_distill.service.client import Client
from nlp_distill.service.executors.local import _pump
from nlp_distill.service.home import Home
from nlp_distill.service.intake import news
from nlp_distill.service.store.queue import WrongStatus


def test_an_empty_file_is_no_secret(tmp_path):
    home = Home(tmp_path).make()
    for file, read in ((home.token, home.admin_token), (tmp_path / "session.key", home.session_key)):
        file.write_text("")
        made = read()
        assert len(made) > 40 and read() == made and file.stat().st_mode & 0o777 == 0o600
    home.use_token("a token of a person's own, long enough")
    assert home.admin_token() == "a token of a person's own, long enough"


@pytest.mark.parametrize(("url", "sent"), [("http://127.0.0.1:8000", True), ("http://elsewhere.example:8000", False)])
def test_this_machines_token_goes_to_no_other(tmp_path, monkeypatch, url, sent):
    monkeypatch.delenv("NLP_DISTILL_TOKEN", raising=False)
    Home(tmp_path).make().admin_token()
    assert ("Authorization" in Client(url, home=tmp_path).http.headers) == sent


def line(message):
    return json.dumps({"event": "note", "time": 1.0, "message": message}) + "\n"


def test_a_token_behind_a_line_break_is_hidden(tmp_path):
    file = tmp_path / "events.jsonl"
    file.write_text(line("refused:\nhf_abcdefgh12345678\tBearer abcdefgh12345"))
    said = news(file, 0)
    assert "hf_abc" not in json.dumps(said.events[0].data) and "abcdefgh12345" not in json.dumps(said.events[0].data)


def test_a_file_of_events_that_a_power_cut_shortened_is_read_on(tmp_path):
    file = tmp_path / "events.jsonl"
    file.write_text(line("one"))
    consumed = news(file, 500).consumed
    assert consumed == file.stat().st_size
    file.write_text(line("one") + line("two"))
    assert [event.message for event in news(file, consumed).events] == ["two"]


def test_each_try_and_phase_is_a_way_that_was_gone(tmp_path):
    def after(*folders):
        for folder in folders:
            (tmp_path / "checkpoints" / "teacher" / folder).mkdir(parents=True)
        return furthest(tmp_path)

    came = [after("aaaa/step-2000"), after("bbbb/step-500"), after("bbbb/step-1500"), after("cccc/step-10")]
    assert came == sorted(set(came))


def test_a_full_disk_ends_no_process_whose_log_it_was():
    read, write = os.pipe()
    source = open(read, "rb")
    reader = threading.Thread(target=_pump, args=(source, SimpleNamespace(exists=lambda: False, open=full)))
    reader.start()
    with open(write, "wb") as stream:
        stream.write(b"a line\n" * 50_000)
    reader.join(10)
    assert source.closed and not reader.is_alive()


def full(*_, **__):
    return open("/dev/full", "ab", buffering=0)


def test_a_job_that_somebody_else_removed_ends_no_worker(monkeypatch):
    asked = []

    def gone(home, queue, name):
        asked.append(name)
        raise (LookupError, WrongStatus)[len(asked) % 2](name)

    monkeypatch.setattr(worker, "remove_job", gone)

    class Connection:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def execute(self, _):
            return SimpleNamespace(scalars=lambda: ["a", "b"])

    database = SimpleNamespace(writing=Connection, reading=Connection)
    settings = worker.WorkerSettings(retention_days=7)
    one = worker.Worker(None, SimpleNamespace(database=database), None, settings)
    one._tidy()
    assert asked == ["a", "b"]


def test_streams_outlive_a_database_that_cannot_be_read(monkeypatch):
    monkeypatch.setattr(feed, "POLL_S", 0.01)
    looks = []

    def look(names):
        looks.append(names)
        if len(looks) == 1:
            raise OperationalError("select", {}, OSError("disk"))
        return {"job": (1, "running")}

    async def scene():
        one = feed.Feed(None)
        one._look = look
        bell = asyncio.Event()
        one._waiting["job"] = {bell}
        running = asyncio.create_task(one.run())
        await asyncio.wait_for(bell.wait(), 5)
        running.cancel()

    asyncio.run(scene())
    assert len(looks) >= 2


def test_contexts_of_too_many_windows_are_refused_before_they_are_cut():
    tokenizer = SimpleNamespace(model_max_length=384, count=lambda text: len(text.split()))
    reader = LightAnswerer.__new__(LightAnswerer)
    reader.settings, reader.tokenizer = {"max_seq_len": 384, "doc_stride": 128}, tokenizer
    entry = {"question": "a", "context": "a " * 50_000}
    with pytest.raises(ValueError, match="more than 4096 windows"):
        reader.ask([entry] * 20, max_seq_len=32, doc_stride=23)
