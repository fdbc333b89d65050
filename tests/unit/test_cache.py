"""A teacher's signals from disk against the teacher itself."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from nlp_distill import cache, shelf
from nlp_distill.cache import CachedTeacher, Examples, Plan, fill, longest, obstacle, plan, write
from nlp_distill.errors import CacheRefused
from nlp_distill.losses import logits_jsd, logits_kl
from nlp_distill.records import Part
from nlp_distill.signals import LAYERED, LiveTeacher, Request, TopLogits
from nlp_distill.task import load_task
from nlp_distill.terms import HiddenTerm, LogitsTerm
from nlp_distill.testing import tiny_config, tiny_model

LENGTHS = np.array([5, 2, 9, 4, 7, 3, 9, 6])
TARGETS = np.array([3, 4, 2, 5, 1, 2, 4, 3])
CLOSE = {"fp32": {"rtol": 1e-5, "atol": 1e-6}, "bf16": {"rtol": 4e-3, "atol": 1e-6}}


def assert_close(found, expected, precision):
    """int8: within half a step of each record's own scale."""
    if precision == "int8":
        assert ((found - expected).abs() <= expected.abs().amax(-1, keepdim=True) / 254 + 1e-6).all()
    else:
        assert torch.allclose(found.float(), expected, **CLOSE[precision])


def ragged(lengths, vocabulary, seed):
    generator = np.random.default_rng(seed)
    rows = [torch.tensor(generator.integers(5, vocabulary, length)) for length in lengths]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


class Tokens:
    """A task whose rows are random tokens, with logits as asked for."""

    name, noisy, distribution = "tokens", False, "softmax"

    def __init__(self, kind="labels", vocabulary=25):
        self.kind, self.vocabulary = kind, vocabulary

    def read(self, numbers, seed):
        ids = ragged(LENGTHS, self.vocabulary, 0)[numbers, : LENGTHS[numbers].max()]
        batch = {"input_ids": ids, "attention_mask": (ids != 0).long(), "row": torch.from_numpy(numbers)}
        if self.kind == "seq2seq":
            labels = ragged(TARGETS, self.vocabulary, 1)[numbers, : TARGETS[numbers].max()]
            batch["labels"] = labels.masked_fill(labels == 0, -100)
            start = torch.full((len(numbers), 1), 2)
            batch["decoder_input_ids"] = torch.cat([start, labels[:, :-1]], dim=1)
        if self.kind == "noisy":
            batch["input_ids"] = batch["input_ids"] + seed
        return batch

    def logits(self, outputs, batch):
        if self.kind == "span":
            outside = batch["attention_mask"] == 0
            return {name: outputs[f"{name}_logits"].masked_fill(outside, -1e5) for name in ("start", "end")}
        return {"logits": outputs.logits}

    def term_mask(self, batch, signal, stack):
        if self.kind == "seq2seq" and (stack == "decoder" or signal == "logits"):
            return batch["labels"] != -100
        mask = batch["attention_mask"].bool()
        return mask.new_ones(len(mask)) if signal == "logits" and self.kind != "tags" else mask


def places(stack, *layers):
    return frozenset((stack, layer) for layer in layers)


def cached(folder, model, task, request, precision, last="encoder", temperatures=(1.0,), live=None, world=1):
    live = live or LiveTeacher(model, task, request, None)
    examples = Examples(LENGTHS, task.read)
    planned = plan(task, live, request, examples, last, precision, temperatures)

    def filled(draft):
        return longest([fill(draft, task, live, examples, last, lambda *_: None, n, world) for n in range(world)])

    write(folder, planned, examples, last, {"teacher": "tiny"}, filled)
    return live, CachedTeacher(folder, task)


def equal_where_it_counts(live, kept, task, request, precision, last="encoder"):
    """All signals, on batches that were never made while writing."""
    for numbers in (np.array([3, 0, 6]), np.array([1]), np.arange(8)):
        batch = task.read(numbers, 0)
        expected, found = live.signal(batch), kept.signal(batch)
        masks = {"encoder": batch["attention_mask"].bool()}
        if last == "decoder":
            masks["decoder"] = batch["labels"] != -100
        for kind in LAYERED:
            assert getattr(found, kind).keys() == getattr(expected, kind).keys()
            for place, values in getattr(found, kind).items():
                theirs = getattr(expected, kind)[place]
                mask = masks["encoder" if kind == "cross_key" else place[0]]
                if kind == "hidden" and place not in request.hidden:
                    mask = mask & (mask.cumsum(1) == 1)
                assert values.shape == theirs.shape
                assert_close(values[mask], theirs[mask], precision)
                assert not values[~mask].any()
        for stack, bias in expected.bias.items():
            assert torch.equal(bias, found.bias[stack])
        for name, logits in expected.logits.items():
            mask = task.term_mask(batch, "logits", last)
            assert_close(found.logits[name][mask], logits[mask], "fp32")


EVERY = {
    kind: Request(True, places("encoder", 0, 3), places("encoder", 1), places("encoder", 1), places("encoder", 2))
    for kind in ("bert", "distilbert", "albert", "mpnet")
}
EVERY["mpnet"] |= Request(bias=frozenset({"encoder"}))
EVERY["t5"] = Request(
    True,
    places("encoder", 0) | places("decoder", 2),
    places("decoder", 1),
    places("decoder", 1),
    places("encoder", 3),
    places("decoder", 3),
    places("decoder", 3),
    frozenset({"encoder", "decoder"}),
    places("decoder", 3),
)
EVERY["bart"] = Request(**{**vars(EVERY["t5"]), "bias": frozenset()})


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_every_signal_from_the_cache_is_the_teachers(kind, precision, tmp_path):
    seq2seq = kind in ("t5", "bart")
    task, last = Tokens("seq2seq" if seq2seq else "labels"), "decoder" if seq2seq else "encoder"
    model = tiny_model(kind, "AutoModelForSeq2SeqLM") if seq2seq else tiny_model(kind)
    live, kept = cached(tmp_path / "c", model, task, EVERY[kind], precision, last)
    equal_where_it_counts(live, kept, task, EVERY[kind], precision, last)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells what of a file is in memory")
def test_what_was_read_of_a_cache_is_not_kept_in_memory(tmp_path):
    task, request = Tokens(), Request(hidden=places("encoder", 1))
    _, kept = cached(tmp_path / "c", tiny_model("bert"), task, request, "fp32")

    def resident():
        said, held = Path("/proc/self/smaps").read_text().splitlines(), 0
        for number, line in enumerate(said):
            if line.endswith(f"{tmp_path / 'c' / kept.parts[0].file}"):
                held += next(int(rest.split()[1]) for rest in said[number:] if rest.startswith("Rss:"))
        return held

    assert kept.files[kept.parts[0].file]["values"].sum() != 0 and resident() > 0
    one = kept.signal(task.read(np.arange(8), 0))
    assert resident() == 0
    two = kept.signal(task.read(np.arange(8), 0))
    assert torch.equal(one.hidden["encoder", 1], two.hidden["encoder", 1])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_what_an_encoder_says_is_kept_for_a_student_that_shares_it(precision, tmp_path):
    task, request = Tokens("seq2seq"), Request(hidden=places("decoder", 1), encoded=True)
    model = tiny_model("t5", "AutoModelForSeq2SeqLM")
    live, kept = cached(tmp_path / "c", model, task, request, precision, "decoder")
    batch = task.read(np.array([4, 1, 2]), 0)
    mask = batch["attention_mask"].bool()
    found, expected = kept.signal(batch).encoded, live.signal(batch).encoded
    assert_close(found[mask], expected[mask], "fp32" if precision == "fp32" else "bf16")
    assert not found[~mask].any()


@pytest.mark.parametrize(
    ("kind", "auto"),
    [("tags", "AutoModelForTokenClassification"), ("span", "AutoModelForQuestionAnswering")],
)
def test_logits_of_tokens(kind, auto, tmp_path):
    task, request = Tokens(kind), Request(logits=True)
    live, kept = cached(tmp_path / "c", tiny_model("bert", auto), task, request, "int8")
    equal_where_it_counts(live, kept, task, request, "int8")
    batch = task.read(np.array([1, 2]), 0)
    for name, logits in live.signal(batch).logits.items():
        if kind == "span":
            assert_close(kept.signal(batch).logits[name], logits, "fp32")  # padding, too


def test_position_biases_reach_as_far_as_a_row_is_padded(tmp_path):
    """A GPU pads beyond the longest row, which nobody did while the cache was written."""
    task, request = Tokens(), Request(bias=frozenset({"encoder"}), query=places("encoder", 1))
    live, kept = cached(tmp_path / "c", tiny_model("mpnet"), task, request, "fp32")
    batch = task.read(np.arange(8), 0)
    wider = {**batch, **{n: torch.nn.functional.pad(batch[n], (0, 7)) for n in ("input_ids", "attention_mask")}}
    width = batch["input_ids"].shape[1]
    found, expected = kept.signal(wider).bias["encoder"], live.signal(wider).bias["encoder"]
    assert found.shape == expected.shape and torch.equal(found[:width, :width], expected[:width, :width])


def test_first_tokens_alone(tmp_path):
    task, request = Tokens(), Request(first=places("encoder", 1, 2), hidden=places("encoder", 2))
    live, kept = cached(tmp_path / "c", tiny_model("bert"), task, request, "fp32")
    equal_where_it_counts(live, kept, task, request, "fp32")
    small, whole = (next(p for p in kept.parts if p.place == ("encoder", layer)) for layer in (1, 2))
    assert len(kept.files[small.file]) == len(LENGTHS) and len(kept.files[whole.file]) == LENGTHS.sum()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("loss", [logits_kl, logits_jsd])
def test_wide_logits_keep_the_largest_and_the_weight_of_the_rest(precision, temperature, loss, tmp_path):
    task, request = Tokens("seq2seq", vocabulary=400), Request(logits=True)
    model = tiny_model("t5", "AutoModelForSeq2SeqLM", vocab_size=400)
    live, kept = cached(tmp_path / "c", model, task, request, precision, "decoder", (1.0, 3.0))
    batch = task.read(np.arange(8), 0)
    mask = task.term_mask(batch, "logits", "decoder")
    full, top = live.signal(batch).logits["logits"], kept.signal(batch).logits["logits"]
    assert isinstance(top, TopLogits)
    student = torch.randn(full.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ours, theirs = top.against(student, temperature)
    chances = (full / temperature).softmax(-1)
    expected = torch.cat([chances.gather(-1, top.indices), chances.scatter(-1, top.indices, 0).sum(-1, True)], -1)
    close = {"rtol": 1e-4, "atol": 1e-6} if precision == "fp32" else {"rtol": 5e-3, "atol": 1e-4}
    assert torch.allclose((theirs / temperature).softmax(-1)[mask], expected[mask], **close)
    coarse = loss(ours, theirs, mask, temperature=temperature, softmax=True)
    assert 0 < coarse <= loss(student, full, mask, temperature=temperature, softmax=True) * 1.001
    coarse.backward()
    assert torch.isfinite(student.grad).all()
    assert student.grad[~mask].abs().sum() == 0


def test_blocks_above_the_highest_signal_are_not_run():
    model, calls = tiny_model("bert"), []
    for number, block in enumerate(model.bert.encoder.layer):
        block.register_forward_hook(lambda *_, number=number: calls.append(number))
    batch = Tokens().read(np.arange(3), 0)
    LiveTeacher(model, Tokens(), Request(hidden=places("encoder", 1), key=places("encoder", 0)), None).signal(batch)
    assert calls == [0, 1] or calls == [0]  # our hook comes before the one that ends the forward, or after
    calls.clear()
    LiveTeacher(model, Tokens(), Request(logits=True, hidden=places("encoder", 1)), None).signal(batch)
    assert calls == [0, 1, 2, 3]


def test_sizes_are_known_before_writing(tmp_path):
    task, request = Tokens(), EVERY["bert"]
    live = LiveTeacher(tiny_model("bert"), task, request, None)
    sizes = {}
    for precision in ("fp32", "bf16", "int8"):
        planned = plan(task, live, request, Examples(LENGTHS, task.read), "encoder", precision, [1.0])
        cached(tmp_path / precision, None, task, request, precision, live=live)
        files = (tmp_path / precision).glob("*.bin")
        assert planned.size == sum(file.stat().st_size for file in files)
        sizes[precision] = planned.size
        assert planned.size_in("int8") == LENGTHS.sum() * 5 * (32 + 4) + 8 * 2 * 4
    assert {precision: planned.size_in(precision) for precision in sizes} == sizes
    # Five tensors of width 32, and two logits a row.
    assert sizes["fp32"] == LENGTHS.sum() * 5 * 32 * 4 + 8 * 2 * 4
    assert sizes["int8"] == LENGTHS.sum() * 5 * (32 + 4) + 8 * 2 * 4


def test_the_size_in_another_precision_is_that_of_a_cache_in_it():
    """The largest logits of many are halved once, what a student reads is never in int8, a row's logits stay exact."""
    parts = [
        Part("logits", ("token",), "n", 9000, "top", temperatures=(1.0,)),
        Part("logits", ("row",), "n", 2, "float32"),
        Part("encoded", (), "n", 32, "float32"),
    ]
    planned = Plan(parts, {"n": np.array([1])})
    wide, row, encoded = 64 * 4 + 4, 2 * 4, 32 * 4
    assert planned.size == planned.size_in("fp32") == wide + 64 * 4 + row + encoded
    assert planned.size_in("bf16") == planned.size_in("int8") == wide + 64 * 2 + row + encoded // 2


@pytest.mark.parametrize("damage", ["truncated", "missing", "index", "manifest"])
def test_a_damaged_cache_is_noticed(damage, tmp_path):
    folder = tmp_path / "c"
    cached(folder, tiny_model("bert"), Tokens(), Request(hidden=places("encoder", 1)), "fp32")
    assert shelf.sealed(folder) is not None
    file = folder / "hidden.encoder.1.bin"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-4])
    elif damage == "missing":
        file.unlink()
    else:
        file = folder / (shelf.INDEX if damage == "index" else shelf.MANIFEST)
        content = bytearray(file.read_bytes())
        content[-12] ^= 1
        file.write_bytes(bytes(content))
    assert shelf.sealed(folder) is None
    with pytest.raises(CacheRefused, match="damaged"):
        CachedTeacher(folder, Tokens())


@pytest.mark.parametrize("kind", ["mpnet", "t5"])
def test_processes_that_share_the_writing_make_the_bytes_of_one(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "BUILD_TOKENS", 12)
    seq2seq = kind == "t5"
    task, last = Tokens("seq2seq" if seq2seq else "labels"), "decoder" if seq2seq else "encoder"
    model = tiny_model(kind, "AutoModelForSeq2SeqLM") if seq2seq else tiny_model(kind)
    assert len(Examples(LENGTHS, task.read).cuts()) > 3
    for world in (1, 2, 3):
        cached(tmp_path / str(world), model, task, EVERY[kind], "fp32", last, world=world)
    for file in (tmp_path / "1").iterdir():
        assert {(tmp_path / str(world) / file.name).read_bytes() for world in (2, 3)} == {file.read_bytes()}


def test_a_writer_that_stops_leaves_nothing(tmp_path):
    task, request = Tokens(), Request(logits=True)
    live = LiveTeacher(tiny_model("bert"), task, request, None)
    examples = Examples(LENGTHS, task.read)
    planned = plan(task, live, request, examples, "encoder", "fp32", [])

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(
            tmp_path / "c", planned, examples, "encoder", {}, lambda d: fill(d, task, live, examples, "encoder", stop)
        )
    assert list(tmp_path.iterdir()) == []


def test_two_writers_build_once(tmp_path):
    built, folder, waited = [], tmp_path / "c", []

    def run():
        with shelf.sole_writer(folder, lambda: waited.append(1)):
            if shelf.sealed(folder) is None:
                time.sleep(1.5)
                cached(folder, tiny_model("bert"), Tokens(), Request(logits=True), "fp32")
                built.append(1)

    threads = [threading.Thread(target=run) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert built == [1] and waited and shelf.sealed(folder) is not None


def test_a_killed_writer_leaves_what_the_next_one_removes(tmp_path):
    folder = tmp_path / "c"
    code = f"""
import time
from pathlib import Path
from nlp_distill import rundir, shelf
folder = Path({str(folder)!r})
with shelf.sole_writer(folder, lambda: None), rundir.new_folder(folder) as temporary:
    (temporary / "hidden.bin").write_bytes(b"half")
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    limit = time.monotonic() + 60
    while not list(tmp_path.glob(".c.*/hidden.bin")) and time.monotonic() < limit:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert list(tmp_path.glob(".c.*.tmp")) and not folder.exists()
    with shelf.sole_writer(folder, lambda: pytest.fail("a dead process holds the cache")):
        assert not list(tmp_path.glob(".c.*"))
        cached(folder, tiny_model("bert"), Tokens(), Request(logits=True), "fp32")
    assert shelf.sealed(folder) is not None


OLD, NEW = "0" * 20, "f" * 20
GONE = f".{'e' * 20}.123.tmp"


@pytest.fixture
def shelves(tmp_path, monkeypatch):
    monkeypatch.setenv("NLP_DISTILL_CACHE", str(tmp_path))
    for name, days in ((OLD, 40), (NEW, 1)):
        folder = tmp_path / "teachers" / name
        cached(folder, tiny_model("bert"), Tokens(), Request(logits=True), "fp32")
        used = time.time() - days * 86_400
        shelf.os.utime(folder / shelf.MANIFEST, (used, used))
    (tmp_path / "teachers" / GONE).mkdir()
    (tmp_path / "teachers" / "bert-large").mkdir()
    return tmp_path / "teachers"


def test_caches_are_listed_and_pruned(shelves):
    assert [entry.folder.name for entry in shelf.shelved()] == [GONE, NEW, OLD]
    assert shelf.shelved()[1].line()["teacher"] == "tiny"
    assert {entry.folder.name for entry in shelf.prune(shelf.age("30d"))} == {OLD, GONE}
    assert [entry.folder.name for entry in shelf.shelved()] == [NEW]
    with shelf.sole_writer(shelves / NEW, lambda: None):
        assert shelf.prune(0) == []
    assert [entry.folder.name for entry in shelf.prune(0)] == [NEW]
    assert shelf.shelved() == [] and (shelves / "bert-large").is_dir()


def test_what_a_run_reads_may_be_pruned(shelves):
    task = Tokens()
    kept = CachedTeacher(shelves / NEW, task)
    shelf.prune(0)
    assert torch.isfinite(kept.signal(task.read(np.arange(3), 0)).logits["logits"]).all()


def test_what_cannot_be_kept_is_said():
    bert, t5 = tiny_config("bert"), tiny_config("t5")
    classification, masked = load_task("classification"), load_task("masked_lm")
    assert obstacle(classification, bert, [LogitsTerm(distance="mse")], "auto") == ""
    assert "anew in each epoch" in obstacle(masked, bert, [HiddenTerm()], "bf16")
    assert obstacle(load_task("seq2seq"), t5, [HiddenTerm()], "auto") == ""
    assert "64 largest" in obstacle(load_task("seq2seq"), t5, [LogitsTerm()], "auto")
    assert obstacle(load_task("seq2seq"), t5, [LogitsTerm()], "fp32") == ""
    assert "squared error" in obstacle(load_task("seq2seq"), t5, [LogitsTerm(distance="mse")], "fp32")
    task = Tokens("noisy")
    live = LiveTeacher(tiny_model("bert"), task, Request(logits=True), None)
    with pytest.raises(CacheRefused, match="noise"):
        plan(task, live, Request(logits=True), Examples(LENGTHS, task.read), "encoder", "fp32", [])
