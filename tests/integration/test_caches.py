"""Runs whose teacher is read from disk: every task, and what goes wrong with disks and processes."""

import json
import os
import random
import threading
import time
from types import SimpleNamespace

import pytest
from safetensors.numpy import load_file

import nlp_distill
from nlp_distill import loop, shelf, stages, teaching
from nlp_distill.cache import CachedTeacher
from nlp_distill.errors import CacheTooLarge, DiskFull, Interrupted, NotWritable
from nlp_distill.signals import LiveTeacher
from nlp_distill.testing import WORDS

FAST = {"epochs": 1, "learning_rate": 2e-3, "batch_size": 16}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("NLP_DISTILL_CACHE", str(tmp_path / "cache"))


class Told(list):
    """What a run said; never false, since a run takes no listener for none."""

    def __bool__(self):
        return True

    def __call__(self, kind, **fields):
        if kind == "note":
            self.append(fields["message"])


def distilled(recipe, out, *overrides, **more):
    told = Told()
    run = nlp_distill.run(recipe, *overrides, out=out, until="distill", notify=told, **more)
    return run, told


def weights(run):
    return load_file(run.path / "model" / "model.safetensors")


def equal(one, two):
    return all((one[name] == two[name]).all() for name in one)


def history(run):
    return run.dir.manifest()["stages"]["distill"]["trained"][0]["history"]


def pairs(count):
    """Questions about a text, and texts turned around: enough to train on."""
    chance = random.Random(0)
    for number in range(count):
        words = [chance.choice(WORDS) for _ in range(chance.randint(4, 12))]
        answer = {"text": [words[3]], "answer_start": [len(" ".join(words[:3])) + 1]}
        question = {"id": str(number), "question": words[2], "context": " ".join(words), "answers": answer}
        yield question, {"source": " ".join(words[:4]), "target": " ".join(words[3::-1])}


@pytest.fixture
def other_tasks(tmp_path):
    """Data folders of question answering and seq2seq."""
    for name, rows in zip(("qa", "seq2seq"), zip(*pairs(80), strict=True), strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_signals_read_before_their_step_are_the_same(tiny_recipe, tmp_path, monkeypatch):
    """As on a GPU: in a thread, beside the step before; a teacher that runs beside the student stays out of it."""
    recipe, threads = tiny_recipe(), []
    in_turn = {cache: distilled(recipe, tmp_path / cache, f"distill.cache={cache}")[0] for cache in ("fp32", "none")}
    monkeypatch.setattr(loop, "processor_idles", lambda device: True)
    for source in (CachedTeacher, LiveTeacher):
        asked = source.signal

        def signal(self, batch, asked=asked):
            threads.append((self.stored, threading.current_thread() is threading.main_thread()))
            return asked(self, batch)

        monkeypatch.setattr(source, "signal", signal)
    for cache, run in in_turn.items():
        beside, _ = distilled(recipe, tmp_path / f"{cache}-beside", f"distill.cache={cache}")
        assert equal(weights(beside), weights(run))
    assert set(threads) == {(True, False), (False, True)}


def test_question_answering(tiny_recipe, other_tasks):
    terms = [{"kind": "logits"}, {"kind": "hidden", "tokens": "first"}, {"kind": "attention"}]
    recipe = tiny_recipe(
        task="question_answering",
        data={"dataset": str(other_tasks / "qa")},
        distill={"epochs": 3, "losses": terms, "batch_size": 16},
    )
    live, _ = distilled(recipe, other_tasks / "live", "distill.cache=none")
    kept, told = distilled(recipe, other_tasks / "kept")
    assert "(fp32: logits, 2 × query, 2 × key, 2 × [CLS])" in told[-1]
    for one, two in zip(history(live), history(kept), strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-7)
    small, _ = distilled(recipe, other_tasks / "int8", "distill.cache=int8")
    assert history(small)[-1]["logits"] == pytest.approx(history(live)[-1]["logits"], rel=0.02, abs=1e-7)


def test_seq2seq_learns_from_the_largest_logits(tiny_recipe, other_tasks):
    new = {"layers": 2, "hidden_size": 32, "vocabulary": 300}
    terms = [{"kind": "logits"}, {"kind": "hidden"}, {"kind": "attention"}, {"kind": "attention", "of": "cross"}]
    recipe = tiny_recipe(
        task="seq2seq",
        data={"dataset": str(other_tasks / "seq2seq")},
        teacher={"new": new, "finetune": {**FAST, "epochs": 4}},
        student={"decoder_layers": 1},
        distill={"epochs": 3, "losses": terms, "batch_size": 16, "learning_rate": 1e-3},
    )
    live, told = distilled(recipe, other_tasks / "live")
    assert "the 64 largest logits" in told[-1] and not shelf.shelved()
    for precision in ("fp32", "bf16", "int8"):
        kept, told = distilled(recipe, other_tasks / precision, f"distill.cache={precision}")
        for one, two in zip(history(live), history(kept), strict=True):
            # The divergence over 65 classes is smaller, the flatter the distributions; the student is nearly the same.
            assert 0.2 * one["logits"] < two["logits"] <= one["logits"] * 1.001
            for name in ("hidden.encoder", "hidden.decoder", "attention.encoder", "attention_2", "selection_loss"):
                assert two[name] == pytest.approx(one[name], rel=0.05), name
    _, told = distilled(recipe, other_tasks / "hidden", "distill.losses=[{kind: hidden}]")
    assert "(fp32: 3 × hidden)" in told[-1]


def test_a_cache_cut_short_is_made_again(tiny_recipe, tmp_path):
    recipe = tiny_recipe()
    one, _ = distilled(recipe, tmp_path / "one")
    (kept,) = shelf.shelved()
    before = {file.name: file.read_bytes() for file in kept.folder.glob("*.bin")}
    largest = max(kept.folder.glob("*.bin"), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    assert shelf.shelved()[0].contents is None
    two, told = distilled(recipe, tmp_path / "two")
    assert "the teacher's signals take" in told[-1]
    assert {file.name: file.read_bytes() for file in kept.folder.glob("*.bin")} == before
    assert equal(weights(one), weights(two))


def test_a_new_cache_takes_the_place_of_forgotten_ones(tiny_recipe, tmp_path, monkeypatch):
    """What is free is looked up after they went: the new one fits in their place."""
    recipe = tiny_recipe()
    distilled(recipe, tmp_path / "one", "distill.cache=fp32")
    (forgotten,) = shelf.shelved()
    long_ago = time.time() - 31 * 86_400
    os.utime(forgotten.folder / shelf.MANIFEST, (long_ago, long_ago))
    free = lambda _: SimpleNamespace(free=0 if forgotten.folder.exists() else forgotten.size)  # noqa: E731
    monkeypatch.setattr(teaching.shutil, "disk_usage", free)
    monkeypatch.setattr(stages, "check_disk", lambda *_: None)
    _, told = distilled(recipe, tmp_path / "two", "distill.cache=bf16")
    assert not forgotten.folder.exists()
    assert any(forgotten.folder.name in line for line in told)
    assert len(shelf.shelved()) == 1


def test_what_does_not_fit_is_refused_or_run_live(tiny_recipe, tmp_path, monkeypatch):
    recipe = tiny_recipe()
    monkeypatch.setattr(teaching.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    monkeypatch.setattr(stages, "check_disk", lambda *_: None)
    with pytest.raises(CacheTooLarge, match=r"need .* MB in bf16, but only 0.0 MB are free"):
        distilled(recipe, tmp_path / "run", "distill.cache=bf16")
    _, told = distilled(recipe, tmp_path / "live")
    assert "in bf16, more than half of the 0.0 MB that are free; `cache: int8`" in told[-1]
    assert not any("rounded to bf16" in line for line in told), "it was not"
    monkeypatch.undo()
    monkeypatch.setenv("NLP_DISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(teaching, "AUTO_BYTES", 1000)
    _, told = distilled(recipe, tmp_path / "small")
    assert "the teacher runs beside the student: its cache would take" in told[-1]
    _, told = distilled(recipe, tmp_path / "once", "distill.epochs=1")
    assert "over a single epoch" in told[-1] and not shelf.shelved()


def test_auto_takes_half_the_size_where_the_exact_one_is_too_large(tiny_recipe, tmp_path, monkeypatch):
    recipe = tiny_recipe()
    distilled(recipe, tmp_path / "exact", "distill.cache=fp32")
    (exact,) = shelf.shelved()
    shelf.prune(0)
    monkeypatch.setattr(teaching, "AUTO_BYTES", exact.size * 0.7)
    auto, told = distilled(recipe, tmp_path / "auto")
    (half,) = shelf.shelved()
    assert half.size < exact.size * 0.7 and "bf16" in told[-1]
    _, told = distilled(recipe, tmp_path / "again")
    assert "cached already (bf16)" in told[-1]
    asked, _ = distilled(recipe, tmp_path / "asked", "distill.cache=bf16")
    assert equal(weights(auto), weights(asked))


@pytest.mark.parametrize("decided", ["none", "bf16"])
def test_a_resumed_run_keeps_what_auto_decided(tiny_recipe, tmp_path, monkeypatch, decided):
    recipe, slowly = tiny_recipe(), ("distill.epochs=4", "distill.checkpoint_minutes=0")
    straight, _ = distilled(recipe, tmp_path / "straight", *slowly, f"distill.cache={decided}")
    most = 1.2 * sum(entry.size for entry in shelf.shelved())
    shelf.prune(0)

    def stop():
        return (tmp_path / "run" / "checkpoints" / "distill").is_dir()

    with monkeypatch.context() as small:
        small.setattr(teaching, "AUTO_BYTES", most)
        with pytest.raises(Interrupted):
            distilled(recipe, tmp_path / "run", *slowly, stop=stop)
    run, _ = distilled(recipe, tmp_path / "run", *slowly)
    assert run.dir.manifest()["teaching"]["distill"]["cache"] == decided
    assert len(shelf.shelved()) == (decided != "none")
    assert equal(weights(run), weights(straight))


def test_where_no_cache_can_be_written_the_teacher_runs_beside_unless_one_was_asked_for(
    tiny_recipe, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NLP_DISTILL_CACHE", str(tmp_path / "file"))
    _, told = distilled(tiny_recipe(), tmp_path / "run")
    assert "the teacher runs beside the student: " in told[-1] and "cannot be written" in told[-1]
    with pytest.raises(NotWritable, match="cannot be written"):
        distilled(tiny_recipe(), tmp_path / "other", "distill.cache=fp32")


def test_what_auto_decides_before_the_cache_is_there_binds_nobody(tiny_recipe, tmp_path, monkeypatch):
    """The disk fills up while signals are written: the run goes on without, and so does the next one."""
    recipe = tiny_recipe()

    def full(*arguments):
        raise DiskFull(path=tmp_path, reason="No space left on device")

    with monkeypatch.context() as filling:
        filling.setattr(teaching, "write", full)
        run, told = distilled(recipe, tmp_path / "run")
    assert "no space left" in told[-1] and run.dir.manifest()["teaching"]["distill"]["cache"] == "none"
    assert not shelf.shelved()


def test_a_stop_while_writing_leaves_nothing_and_the_same_command_goes_on(tiny_recipe, tmp_path):
    recipe, told = tiny_recipe(), Told()
    with pytest.raises(Interrupted, match="'distill'"):
        nlp_distill.run(
            recipe, out=tmp_path / "run", until="distill", notify=told, stop=lambda: any("take" in t for t in told)
        )
    assert not shelf.shelved()
    run, _ = distilled(recipe, tmp_path / "run")
    assert len(shelf.shelved()) == 1 and (run.path / "model").is_dir()


def test_phases_share_what_they_both_read_and_the_table_names_it(tiny_recipe, tmp_path):
    phase = {"epochs": 2, "losses": [{"kind": "logits"}], "batch_size": 16}
    recipe = tiny_recipe(distill={"phases": [phase, {**phase, "losses": [{"kind": "logits", "temperature": 5.0}]}]})
    _, told = distilled(recipe, tmp_path / "run")
    assert "signals take" in told[-2] and "cached already" in told[-1]
    (entry,) = shelf.shelved()
    assert entry.line()["signals"] == "logits" and entry.line()["precision"] == "fp32"
    _, told = distilled(recipe, tmp_path / "other", "data.limit=64")
    assert "signals take" in told[-2] and len(shelf.shelved()) == 2
