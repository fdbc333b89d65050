"""The harness of the benchmarks: its order, its statistics, its void rule. No timing."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "arms")]

import goals  # noqa: E402
import harness  # noqa: E402
from feed import Feed, feed_of  # noqa: E402
from harness import Arm, Block, clock_of, compared, in_turn, interval, measured, speed_ratio  # noqa: E402

from nlp_distill.testing import save_tiny  # noqa: E402


def blocks(seconds, cpu=None, examples=10):
    return [Block(wall, used, examples, 130.0, 1.0) for wall, used in zip(seconds, cpu or seconds, strict=True)]


def test_rounds_go_forwards_and_backwards():
    assert [in_turn("abc", number) for number in range(4)] == [[*"abc"], [*"cba"], [*"abc"], [*"cba"]]


def test_a_ratio_is_of_the_blocks_of_one_round():
    """A machine that slows down threefold in some rounds slows both: the ratio stays."""
    slow = np.array([1, 3, 1, 3, 3, 1])
    found = speed_ratio({"ours": blocks(slow * 2.0), "theirs": blocks(slow * 5.0)}, "ours", "theirs", "wall")
    assert found == {"value": 2.5, "ci95": [2.5, 2.5]}


def test_a_ratio_counts_examples():
    found = speed_ratio({"ours": blocks([2.0], examples=40), "theirs": blocks([2.0])}, "ours", "theirs", "cpu")
    assert found["value"] == 4


def test_the_interval_covers_what_the_rounds_say():
    values = np.random.default_rng(1).normal(5, 1, 40)
    found = interval(values)
    assert found["ci95"][0] < np.median(values) < found["ci95"][1]
    assert 0.2 < found["ci95"][1] - found["ci95"][0] < 1.5


@pytest.mark.parametrize(
    ("wall", "cpu", "clock"), [(1.02, 1.2, "wall"), (1.04, 0.98, "cpu"), (0.96, 1.04, None), (1.03, 1.0, "wall")]
)
def test_a_run_counts_by_the_first_clock_whose_control_holds(wall, cpu, clock):
    assert clock_of({"wall": {"value": wall}, "cpu": {"value": cpu}}) == clock


def test_a_void_section_meets_no_goal():
    same, other = [1.0] * 6, [2.0] * 6
    found = compared({"ours": blocks(same), "again": blocks([1.2] * 6), "naive": blocks([99.0] * 6)}, "ours", "again")
    assert found["clock"] is None
    goal = goals.Goal("x", "s", "naive", 30)
    assert goal.found({"s": found})["met"] is None
    held = compared({"ours": blocks(same), "again": blocks(same), "naive": blocks([99.0] * 6)}, "ours", "again")
    assert goal.found({"s": held})["met"] is True
    slower = goals.Goal("x", "s", "plain", 1.05, at_most=True)
    plain = compared({"ours": blocks(other), "again": blocks(other), "plain": blocks(same)}, "ours", "again")
    assert slower.found({"s": plain}) == {"value": 2.0, "ci95": [2.0, 2.0], "clock": "wall", "met": False}


def test_a_goal_is_judged_by_the_worse_end():
    noisy = {"clock": "cpu", "ratio": {"tuned": {"cpu": {"value": 6.0, "ci95": [4.9, 7.0]}}}}
    assert goals.Goal("x", "s", "tuned", 5).found({"s": noisy})["met"] is False
    rows = goals.table({"s": noisy}) + goals.parity_table({"ratio": 1.01}) + goals.parity_table({"ratio": 1.03})
    assert [row["met"] for row in rows[-2:]] == [True, False] and rows[0]["why"] == "not measured"
    assert len(goals.lines(rows)) == len(rows)


def test_the_table_of_exports_says_what_was_met_missed_and_absent():
    speed = {"student-onnx-int8": {"wall": {"value": 10.4, "ci95": [9.9, 10.8]}}}
    section = {"clock": "wall", "faster_than": {"teacher": speed, "optimum-cli int8": speed}}
    found = {
        "lengths": {"128": section, "32": {**section, "clock": None}},
        "file_mb": {"student-onnx-int8": 8.7},
        "lost": {"student-onnx-int8": 0.34},
        "moved": {"student-onnx-int8": 5e-7},
    }
    rows = goals.export_table(found)
    said = {row["goal"]: row["met"] for row in rows}
    assert said["latency at 128 tokens: teacher / fast"] is False
    assert said["latency at 128 tokens: optimum-cli / fast"] is True
    assert said["latency at 32 tokens: teacher / fast"] is None
    assert said["MB of the file of fast"] is True and said["points that fast loses"] is False
    assert said["MB of the file of small"] is None and said["points that small loses"] is None
    assert said["logits of student-onnx-int8 that batch mates move"] is True
    assert len(goals.lines(rows)) == len(rows)


def test_the_kept_results_can_be_shown():
    for kept in BENCHMARKS.glob("[be][ex]*.result.json"):
        found = json.loads(kept.read_text(encoding="utf-8"))
        assert len(goals.lines(found["goals"])) == len(found["goals"]) > 5
    sections = json.loads((BENCHMARKS / "bench.result.json").read_text(encoding="utf-8"))["sections"]
    said = goals.asides(sections)
    assert any("× torch.mm" in line and "tokens/s" in line for line in said)
    parity = json.loads((BENCHMARKS / "parity.result.json").read_text(encoding="utf-8"))
    assert len(goals.lines(goals.parity_table(parity))) == 1


def test_arms_run_in_turn_in_processes_of_their_own(tmp_path, monkeypatch):
    """Each block is asked for only when the one before it is done; the warm-up is not counted."""
    script = tmp_path / "arm.py"
    script.write_text(
        f"import json, sys\nsys.path.insert(0, {str(BENCHMARKS / 'arms')!r})\n"
        "from gate import Gate\nsettings = json.loads(sys.argv[1])\ngate = Gate()\n"
        "print('what libraries print is no answer')\n"
        "while True:\n"
        "    open(settings['log'], 'a').write(settings['name'])\n"
        "    gate.block(examples=4, tokens=9.0)\n"
    )
    monkeypatch.setattr(harness, "ARMS", tmp_path)
    log = tmp_path / "log"
    arms = [Arm(name, "arm.py", {"log": str(log), "name": name}) for name in "ab"]
    found = measured(arms, 3, 1)
    assert sorted(log.read_text()[:2]) == ["a", "b"] and log.read_text()[2:] == "abbaab"
    assert [len(values) for values in found.values()] == [3, 3]
    assert found["a"][0].examples == 4 and found["a"][0].peak_mb >= 0


def test_an_arm_that_dies_says_why(tmp_path, monkeypatch):
    (tmp_path / "arm.py").write_text("raise SystemExit('no such model')")
    monkeypatch.setattr(harness, "ARMS", tmp_path)
    with pytest.raises(RuntimeError, match="no such model"):
        measured([Arm("broken", "arm.py", {})], 1, 1)


def test_blocks_of_a_feed_have_about_as_many_tokens(tmp_path):
    lengths = np.random.default_rng(0).integers(3, 60, 640)
    order = np.random.default_rng(1).permutation(640).reshape(-1, 32)
    ids = np.ones(lengths.sum(), dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    sorted_order = np.argsort(lengths, kind="stable").reshape(-1, 32)
    names = {"order_padded": order, "order_dynamic": order, "order_sorted": sorted_order}
    np.savez(tmp_path / "rows.npz", ids=ids, starts=starts, **names)
    feed = Feed(tmp_path / "rows.npz", "sorted", 4)
    widths = [sum(int(lengths[step].max()) for step in block) for block in feed.blocks]
    assert len(widths) == 5 and max(widths) < 1.15 * min(widths)
    batch = feed.batch([0, 1])
    assert batch["attention_mask"].sum() == lengths[0] + lengths[1]
    assert Feed(tmp_path / "rows.npz", "padded", 1).batch([0])["input_ids"].shape == (1, 128)


def test_a_default_feed_is_torchs_loader(tmp_path):
    """Shuffled, padded to the longest by transformers' collator; a block has so many steps."""
    save_tiny(tmp_path / "teacher", "bert")
    lengths = np.random.default_rng(0).integers(3, 20, 160)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    np.savez(tmp_path / "rows.npz", ids=np.full(lengths.sum(), 7), starts=starts)
    settings = {"feed": "default", "rows": str(tmp_path / "rows.npz"), "teacher": str(tmp_path / "teacher"), "steps": 4}
    said = []
    gate = SimpleNamespace(block=lambda **about: said.append(about))
    made = [batch for batch, _ in zip(feed_of(settings).batches(gate), range(9), strict=False)]
    masks = [batch["attention_mask"] for batch in made]
    assert all(set(batch) == {"input_ids", "attention_mask"} and len(batch["input_ids"]) == 32 for batch in made)
    assert (
        all(mask.shape[1] == mask.sum(1).max() for mask in masks)
        and sum(int(mask.sum()) for mask in masks[:5]) == starts[-1]
    )
    assert said == [
        {"examples": 128, "tokens": float(sum(mask.sum() for mask in some))} for some in (masks[:4], masks[4:8])
    ]


def test_results_are_kept_with_where_they_were_taken(tmp_path):
    target = harness.keep(str(tmp_path / "x.py"), {"value": 1}, harness.machine())
    kept = json.loads(target.read_text())
    assert kept["value"] == 1 and {"commit", "versions", "machine"} <= set(kept)


def test_losses_of_two_devices_are_compared_epoch_by_epoch():
    import gpu

    one = {"history": [{"logits": 1.0, "hidden": 2.0, "selection_score": 80.0}]}
    near = {"history": [{"logits": 1.001, "hidden": 2.0, "selection_score": 10.0}]}
    far = {"history": [{"logits": 1.1, "hidden": 2.0, "selection_score": 80.0}]}
    assert gpu.compared_histories(one, near)["passed"] is True
    assert gpu.compared_histories(one, far)["passed"] is False


def test_a_run_that_takes_too_long_is_stopped_and_said(monkeypatch):
    import gpu

    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(TimeoutError, match=r"`two` was stopped: it took longer than 0\.2 s"):
        gpu.finished(sleeper, {}, "two", seconds=0.2)
    assert gpu.finished([sys.executable, "-c", "raise SystemExit('no such model')"], {}, "one") == (
        1,
        "no such model\n",
    )


def test_the_roofline_of_a_last_layer_for_one_token_a_row():
    """Keys and values of all tokens; query, output and feed-forward of one a row."""
    import products

    whole, lean = products.products(448, 32, lean=False), products.products(448, 32, lean=True)
    assert len(whole) == len(lean) == 18 and {count for count, _ in whole} == {448} and lean[:12] == whole[:12]
    wide, inner = (products.WIDTH, products.WIDTH), (products.WIDTH, products.INNER)
    assert lean[12:] == [(448, wide), (448, wide), (32, wide), (32, wide), (32, inner), (32, inner[::-1])]


def test_what_an_ablation_takes_out_is_there():
    import ablations
    import ours

    for gain in ours.OUT:
        assert all(hasattr(module, name) for module, name, _ in ours.OUT[gain]), gain
    given = [ablations.MINUS, *ablations.OF_LENGTH.values(), ablations.CUTS, ablations.SCORES]
    assert {name for gains in given for settings in gains.values() for name in settings.get("without", [])} < {
        *ours.OUT
    }


def test_what_is_on_only_when_asked_for_is_told_the_other_way_round():
    import ablations

    same = [1.0] * 4
    found = {
        "ours": blocks(same),
        "again": blocks(same),
        "x": blocks([2.0] * 4),
        "frozen embeddings": blocks([0.8] * 4),
    }
    said = ablations.worth(found)
    assert list(said["ratio"]) == ["x"] and said["ratio"]["x"]["wall"]["value"] == 2
    assert said["plus"]["frozen embeddings"]["wall"]["value"] == 1.25


def test_sections_of_an_earlier_run_keep_where_they_were_taken(tmp_path):
    import ablations

    kept = harness.keep(str(tmp_path / "x.json"), {"short": {"clock": "wall"}}, harness.machine())
    assert kept.name == "x.json" and ablations.earlier(tmp_path / "none.json") == {}
    assert ablations.earlier(kept)["short"].keys() == {"clock", "commit", "versions", "machine"}


def test_an_operators_time_belongs_to_what_is_around_it():
    import where_time_goes

    def event(name, around=None):
        return SimpleNamespace(name=name, cpu_parent=around)

    step = event("Optimizer.step#AdamW.step")
    names = {"aten::addmm": "matrix products", "aten::bmm": "products of attention", "aten::mul": "rest"}
    names |= {"aten::gelu_backward": "GELU, softmax, norms", "aten::copy_": "casts and copies"}
    assert {name: where_time_goes.group(event(name)) for name in names} == names
    assert where_time_goes.group(event("aten::copy_", event("aten::add", step))) == "optimizer"
    assert where_time_goes.group(event("aten::mul", event("aten::dropout"))) == "dropout's noise"


def test_every_goal_is_of_a_section_that_is_measured():
    import bench

    assert {goal.section for goal in goals.GOALS} <= {*bench.SECTIONS, "memory"}
