"""Through the real command line: configurations that must agree do, and a killed run ends with the same bits."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.numpy import load_file

from nlp_distill.cli import main
from nlp_distill.cutting import slices
from nlp_distill.loading import load_model, load_tokenizer
from nlp_distill.losses import logits_kl
from nlp_distill.recipe_file import load_recipe
from nlp_distill.rows import Rows
from nlp_distill.signals import model_inputs
from nlp_distill.task import load_task
from nlp_distill.testing import save_tiny, tiny_questions, tiny_reversals, write_split

CLI = [sys.executable, "-m", "nlp_distill.cli"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
TORCHRUN += ["-m", "nlp_distill.cli"]
SLOWLY = []
for setting in ("distill.epochs=4", "distill.checkpoint_minutes=0", "teacher.finetune.checkpoint_minutes=0"):
    SLOWLY += ["-o", setting]


def environment(**extra):
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **extra}


def cli(*arguments, command, check=True, **extra):
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, env=environment(**extra))
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def here(*arguments):
    """The command line in this process, where nothing needs to be killed: exit code and all that it printed."""
    with pytest.raises(SystemExit) as stopped, contextlib.ExitStack() as stack:
        shown = io.StringIO()
        stack.enter_context(contextlib.redirect_stdout(shown))
        stack.enter_context(contextlib.redirect_stderr(shown))
        main(list(map(str, arguments)))
    return stopped.value.code, " ".join(shown.getvalue().split())


def finished(*arguments):
    """What `distill` printed here, where it must succeed."""
    code, shown = here("distill", *arguments, *SLOWLY)
    assert code == 0, shown
    return shown


def weights(run, folder="model"):
    return load_file(run / folder / "model.safetensors")


def equal(one, two):
    return one.keys() == two.keys() and all((one[name] == two[name]).all() for name in one)


def history(run):
    stages = json.loads((run / "manifest.json").read_text())["stages"]
    return stages["distill"]["trained"][0]["history"]


def agree(one, two, rel=1e-5):
    for a, b in zip(one, two, strict=True):
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=rel, abs=1e-7), name


def parts(task, folder):
    """What a recipe says of another task."""
    if task == "question_answering":
        data = {"dataset": write_split(folder / "questions", tiny_questions(160))}
        return {"task": task, "data": data, "max_length": 24, "options": {"stride": 4}}
    if task == "seq2seq":
        # Without dropout, unlike a new one: micro-batches draw noise of their own.
        teacher = str(save_tiny(folder / "t5", "t5", "AutoModelForSeq2SeqLM"))
        return {
            "task": task,
            "data": {"dataset": write_split(folder / "pairs", tiny_reversals(200))},
            "options": {"max_target_length": 8},
            "teacher": {"model": teacher, "finetune": {"epochs": 2, "learning_rate": 2e-3}},
            "student": {"decoder_layers": 2},
        }
    return {}


def of_tasks(*names):
    """Runs a test on the undisturbed run of each task."""
    return pytest.mark.parametrize("undisturbed", names, indirect=True, scope="module")


ALL_TASKS = of_tasks("classification", "question_answering", "seq2seq")
ONE_TASK = of_tasks("classification")


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NLP_DISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def undisturbed(request, write_recipe, tmp_path_factory):
    """One run, never disturbed, up to the distilled student: its recipe and folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    recipe = write_recipe(folder, **parts(request.param, folder))
    finished(recipe, "--out", folder / "run")
    return recipe, folder / "run"


@pytest.fixture
def straight(undisturbed, tmp_path):
    """A copy of it, to be changed."""
    recipe, run = undisturbed
    shutil.copytree(run, tmp_path / "straight")
    return recipe, tmp_path / "straight"


def signals_of(run):
    return json.loads((run / "manifest.json").read_text())["teaching"]["distill"]["cache"]


def divergence(run):
    """Mean KL from the teacher's predictions to the student's, on rows that nobody trained on."""
    recipe = load_recipe(str(run / "recipe.yaml"))
    task = load_task(recipe.task, recipe.options)
    raw = slices(task.load_data(recipe.data), recipe.data, task).evaluation
    tokenizer = load_tokenizer(run / "model", recipe.max_length)
    rows, found = Rows(task.features(raw, tokenizer, tokenizer.model_max_length), raw), []
    for folder in ("model", "teacher"):
        model = load_model(run / folder, task.auto_class).eval()
        batch = rows.batch(np.arange(len(rows.lengths)), 0, task.collate(tokenizer, model.config))
        with torch.no_grad():
            found.append(task.logits(model(**model_inputs(batch)), batch))
    mask = task.term_mask(batch, "logits", "decoder" if model.config.is_encoder_decoder else "encoder")
    student, teacher = found
    kl = [logits_kl(student[it], teacher[it], mask, temperature=1.0, softmax=True) for it in teacher]
    return float(torch.stack(kl).mean() / mask.sum())


@ALL_TASKS
def test_cached_and_live_teachers_agree(undisturbed, tmp_path):
    """Exactly in fp32; with rounded signals a student ends as near its teacher."""
    recipe, one = undisturbed
    runs = {signals_of(one): one}
    for precision in {"none", "fp32", "bf16", "int8"} - {*runs}:
        runs[precision] = run = tmp_path / precision
        code, shown = here("distill", recipe, "--out", run, *SLOWLY, "-o", f"distill.cache={precision}")
        assert code == 0, shown
        assert (f"({precision}: logits, " in shown) == (precision != "none"), shown
        assert equal(weights(run, "teacher"), weights(one, "teacher"))
    agree(history(runs["fp32"]), history(runs["none"]))
    live = divergence(runs["none"])
    for precision in ("bf16", "int8"):
        assert not equal(weights(runs[precision]), weights(runs["fp32"]))
        assert divergence(runs[precision]) == pytest.approx(live, rel=0.02), precision
    code, shown = here("cache", "list")
    assert code == 0 and all(precision in shown for precision in ("fp32", "bf16", "int8"))
    code, shown = here("cache", "list", "--json")
    entries = json.loads(shown)
    assert code == 0 and {entry["precision"] for entry in entries} == {"fp32", "bf16", "int8"}
    assert all(entry["bytes"] > 0 and entry["teacher"] and entry["examples"] > 0 for entry in entries)


@of_tasks("seq2seq")
def test_a_frozen_encoder_is_run_once_or_never_and_changes_nothing(undisturbed, tmp_path):
    recipe, _ = undisturbed
    losses = ("-o", "distill.losses=[{kind: labels}, {kind: logits}, {kind: hidden, stacks: [decoder]}]")
    told = {}
    for name, *more in (("live", "distill.cache=none"), ("kept", "distill.cache=fp32")):
        switches = [part for setting in ("distill.freeze=[encoder]", *more) for part in ("-o", setting)]
        code, told[name] = here("distill", recipe, "--out", tmp_path / name, *SLOWLY, *losses, *switches)
        assert code == 0 and "share one pass through the encoder" in told[name], told[name]
    assert "(fp32: logits, the encoder's output, 2 × hidden)" in told["kept"]
    agree(history(tmp_path / "live"), history(tmp_path / "kept"))


@ONE_TASK
def test_frozen_embeddings_stay_the_teachers_to_the_bit(undisturbed, tmp_path):
    recipe, one = undisturbed
    finished(recipe, "--out", tmp_path / "run", "-o", "distill.freeze=[embeddings]")
    words, places = (f"bert.embeddings.{kind}_embeddings.weight" for kind in ("word", "position"))
    teacher, student = weights(one, "teacher"), weights(tmp_path / "run")
    assert (student[words] == teacher[words]).all() and (weights(one)[words] != teacher[words]).any()
    assert (student[places] != teacher[places]).any()


@pytest.mark.parametrize("cache", ["none", "fp32"])
def test_cls_alone_in_the_last_layer_agrees_with_all_of_it(write_recipe, tmp_path, cache):
    losses = [{"kind": "logits"}, {"kind": "labels"}, {"kind": "hidden", "tokens": "first"}]
    distill = {"epochs": 2, "learning_rate": 1e-3, "batch_size": 16, "losses": losses, "cache": cache}
    recipe = write_recipe(tmp_path, distill=distill)
    for lean in ("true", "false"):
        switch = ("-o", f"distill.lean={lean}", "-o", f"teacher.finetune.lean={lean}")
        code, shown = here("distill", recipe, "--out", tmp_path / lean, *switch)
        assert code == 0, shown
    assert not equal(weights(tmp_path / "true"), weights(tmp_path / "false"))
    agree(history(tmp_path / "true"), history(tmp_path / "false"))


@ONE_TASK
def test_a_second_run_starts_from_the_first_ones_cache_and_prunes_change_no_bit(undisturbed, tmp_path, monkeypatch):
    recipe, one = undisturbed
    code, shown = here("distill", recipe, "--out", tmp_path / "again", *SLOWLY)
    assert code == 0 and "cached already (fp32)" in shown
    assert equal(weights(tmp_path / "again"), weights(one))
    monkeypatch.setenv("NLP_DISTILL_CACHE", str(tmp_path / "elsewhere"))
    process = started(recipe, tmp_path / "pruned", *SLOWLY)
    wait_for(tmp_path / "pruned", "distill")
    process.kill()
    process.communicate()
    code, shown = here("cache", "prune", "--all")
    assert code == 0 and "freed 0.0 MB" not in shown
    shown = finished(recipe, "--out", tmp_path / "pruned")
    assert "resumed at step" in shown and "cached already" not in shown
    assert equal(weights(tmp_path / "pruned"), weights(one))


def test_what_cannot_be_cached_is_refused_before_anything_starts(write_recipe, tmp_path):
    recipe = write_recipe(
        tmp_path, task="masked_lm", distill={"losses": [{"kind": "hidden"}], "cache": "bf16"}, name="masked"
    )
    code, shown = here("distill", recipe, "--out", tmp_path / "run")
    assert code == 2 and "masked_lm shows every example anew in each epoch" in shown
    assert not (tmp_path / "run").exists()
    code, shown = here("cache", "prune", "--older-than", "soon")
    assert code == 2 and "'soon' is not an age" in shown


@ALL_TASKS
def test_accumulation_agrees_with_whole_steps(undisturbed, tmp_path):
    recipe, one = undisturbed
    finished(recipe, "--out", tmp_path / "cut", "-o", "distill.micro_batch_tokens=40")
    agree(history(one), history(tmp_path / "cut"))


def started(recipe, out, *overrides, **extra):
    return subprocess.Popen(
        [*CLI, "distill", str(recipe), "--out", str(out), *overrides],
        env=environment(**extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(run: Path, stage: str, seconds: float = 120.0) -> None:
    """Until the newest checkpoint of the stage is a few steps in."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        # os.walk, unlike rglob, does not mind that folders vanish while it looks.
        folders = [Path(where) for where, _, _ in os.walk(run / "checkpoints" / stage)]
        if any(folder.name.startswith("step-") and int(folder.name[-8:]) >= 5 for folder in folders):
            return
        time.sleep(0.02)
    pytest.fail(f"{stage} never came to step 5")


@of_tasks("classification", *(pytest.param(name, marks=pytest.mark.slow) for name in ("question_answering", "seq2seq")))
def test_kill_9_anywhere_ends_with_the_same_bits(undisturbed, tmp_path):
    recipe, expected = undisturbed
    run = tmp_path / "killed"
    for stage in ("teacher", "distill"):
        process = started(recipe, run, *SLOWLY)
        wait_for(run, stage)
        process.kill()
        process.communicate()
    assert not (run / "model").exists()
    assert "resumed at step" in finished(recipe, "--out", run)
    assert equal(weights(run), weights(expected))
    assert equal(weights(run, "teacher"), weights(expected, "teacher"))
    assert history(run) == history(expected)


@ONE_TASK
def test_compiled_graphs_learn_the_same_and_go_on_after_kill_9(undisturbed, tmp_path):
    """The same up to rounding; who asks for the same bits is refused."""
    recipe, expected = undisturbed
    code, shown = here("distill", recipe, "--out", tmp_path / "no", "-o", "compile=true", "-o", "determinism=strict")
    assert code == 2 and "set `determinism: fast`" in shown and not (tmp_path / "no").exists()
    run = tmp_path / "compiled"
    process = started(recipe, run, *SLOWLY, "-o", "compile=true")
    wait_for(run, "distill", 300)
    process.kill()
    process.communicate()
    shown = finished(recipe, "--out", run, "-o", "compile=true")
    assert "compiling" in shown and "resumed at step" in shown
    assert json.loads((run / "manifest.json").read_text())["determinism"] == "fast"
    assert not equal(weights(run), weights(expected))
    agree(history(run), history(expected), 1e-4)


IN_SMALL_CUTS = """
import os

if "RANK" in os.environ:
    from nlp_distill import cache

    cache.BUILD_TOKENS, fill = 64, cache.fill

    def told(draft, *arguments):
        open(os.environ["TOLD"] + os.environ["RANK"], "w").close()
        return fill(draft, *arguments)

    cache.fill = told
"""


HALTED = """
import os
import time

if "HALT" in os.environ:
    from nlp_distill import cache

    cache.BUILD_TOKENS, fill = 64, cache.fill

    def halted(draft, task, teacher, examples, last, progress, *share):
        def stop(done, total):
            open(os.environ["HALT"], "w").close()
            time.sleep(600)

        return fill(draft, task, teacher, examples, last, stop, *share)

    cache.fill = halted
"""


@ONE_TASK
def test_a_cache_whose_writer_is_killed_is_written_by_the_one_that_waits(undisturbed, tmp_path, monkeypatch):
    """Two processes want one cache: the first dies by kill -9 in the middle of it, the second takes over."""
    recipe, expected = undisturbed
    monkeypatch.setenv("NLP_DISTILL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "sitecustomize.py").write_text(HALTED)
    halt, shelves = tmp_path / "halted", tmp_path / "cache" / "teachers"
    first = started(recipe, tmp_path / "first", *SLOWLY, PYTHONPATH=str(tmp_path), HALT=str(halt))
    limit = time.monotonic() + 120
    while not halt.exists():
        assert first.poll() is None and time.monotonic() < limit
        time.sleep(0.05)
    assert [folder for folder in shelves.glob(".*.tmp") if [*folder.glob("*.bin")]]
    second = started(recipe, tmp_path / "second", *SLOWLY)
    assert any("waiting for it" in line for line in second.stdout)
    first.kill()
    first.communicate()
    shown = second.communicate(timeout=300)[0]
    assert second.returncode == 0, shown
    assert len([*shelves.glob("*/manifest.json")]) == 1 and not [*shelves.glob(".*.tmp")]
    assert "cached already (fp32)" in finished(recipe, "--out", tmp_path / "first")
    for run in ("first", "second"):
        assert equal(weights(tmp_path / run), weights(expected))


@ONE_TASK
def test_two_processes_agree_with_one_and_share_the_cache(undisturbed, tmp_path):
    recipe, one = undisturbed
    (tmp_path / "sitecustomize.py").write_text(IN_SMALL_CUTS)
    extra = {"PYTHONPATH": tmp_path, "TOLD": tmp_path / "told", "NLP_DISTILL_CACHE": tmp_path / "cache"}
    arguments = ("distill", recipe, "--out", tmp_path / "two", "-o", "distill.cache=fp32", *SLOWLY)
    cli(*arguments, command=TORCHRUN, ACCELERATE_USE_CPU="true", **{k: str(v) for k, v in extra.items()})
    assert (tmp_path / "told0").exists() and (tmp_path / "told1").exists()
    assert len(list((tmp_path / "cache" / "teachers").glob("*/manifest.json"))) == 1
    manifest = json.loads((tmp_path / "two" / "manifest.json").read_text())
    assert manifest["machine"]["processes"] == 2
    agree(history(one), history(tmp_path / "two"))
    code, shown = here("distill", tmp_path / "two")
    assert code == 2 and "processes: 2 → 1" in shown


LATE = """
import os

if os.environ.get("RANK") == "1":
    import time

    from nlp_distill import teacher

    load = teacher.load_model

    def late(folder, *arguments, **settings):
        if folder.name.startswith("candidate-"):
            time.sleep(3)
        return load(folder, *arguments, **settings)

    teacher.load_model = late
"""


@pytest.mark.slow
@ONE_TASK
def test_a_stage_drops_nothing_that_a_slower_process_still_reads(undisturbed, tmp_path):
    recipe, _ = undisturbed
    (tmp_path / "sitecustomize.py").write_text(LATE)
    cli("distill", recipe, "--out", tmp_path / "two", command=TORCHRUN, ACCELERATE_USE_CPU="true", PYTHONPATH=tmp_path)
    assert (tmp_path / "two" / "teacher" / "model.safetensors").is_file()


@ONE_TASK
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step_with_75_and_the_same_command_resumes(undisturbed, tmp_path, number):
    recipe, expected = undisturbed
    run = tmp_path / "stopped"
    process = started(recipe, run, *SLOWLY)
    wait_for(run, "distill")
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert "the same command resumes" in output
    assert "Traceback" not in output
    finished(recipe, "--out", run)
    assert equal(weights(run), weights(expected))


def measured_by(number):
    """Whether a process has begun to measure for this one."""
    for child in psutil.Process(number).children():
        with contextlib.suppress(psutil.Error):
            if "nlp_distill.measuring" in child.cmdline():
                return True
    return False


@ONE_TASK
def test_ctrl_c_while_another_process_measures_ends_with_75_too(straight):
    """It reaches the whole group: the one that measures dies of it."""
    recipe, run = straight
    command = [*CLI, "run", str(recipe), "--out", str(run), *SLOWLY]
    output = subprocess.PIPE
    with subprocess.Popen(
        command, env=environment(), stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        while process.poll() is None and not measured_by(process.pid):
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        shown, _ = process.communicate(timeout=60)
    assert process.returncode == 75, shown
    assert "Stopped at step 0 of 'measure'" in shown and "the same command resumes" in shown
    assert "Traceback" not in shown and "Error" not in shown
    code, shown = here("run", recipe, "--out", run, *SLOWLY)
    assert code == 0, shown


@ONE_TASK
def test_a_disk_that_fails_in_the_middle_is_named_and_costs_nothing(undisturbed, tmp_path):
    """Files may grow to 20 kB: the data and the events fit, the first checkpoint does not."""
    recipe, expected = undisturbed
    run = tmp_path / "limited"
    small = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); "
    command = [sys.executable, "-c", small + "from nlp_distill.cli import main; main()"]
    done = cli("distill", recipe, "--out", run, *SLOWLY, check=False, command=command)
    assert done.returncode == 3
    assert "Error: teacher: the disk failed" in done.stderr and "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    finished(recipe, "--out", run)
    assert equal(weights(run), weights(expected))


@pytest.mark.slow
@ONE_TASK
def test_when_one_of_two_processes_dies_the_other_says_so(undisturbed, tmp_path):
    recipe, _ = undisturbed
    run, log = tmp_path / "lost", tmp_path / "lost.log"
    with log.open("w") as stream:
        launcher = subprocess.Popen(
            [*TORCHRUN, "distill", str(recipe), "--out", str(run), *SLOWLY],
            env=environment(ACCELERATE_USE_CPU="true"),
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
        wait_for(run, "teacher")
        ranks = {int(child.environ()["RANK"]): child for child in psutil.Process(launcher.pid).children()}
        ranks[1].kill()
        assert launcher.wait(timeout=120) != 0
    shown = " ".join(log.read_text().split())
    assert "Error: teacher: another process of this run has gone" in shown
    cli("distill", recipe, "--out", run, *SLOWLY, command=TORCHRUN, ACCELERATE_USE_CPU="true")


@ONE_TASK
def test_a_stage_that_was_begun_is_not_gone_on_with_under_other_settings(undisturbed, tmp_path):
    recipe, _ = undisturbed
    run = tmp_path / "begun"
    process = started(recipe, run, *SLOWLY)
    wait_for(run, "distill")
    process.kill()
    process.communicate()
    (run / "events.jsonl").write_bytes((run / "events.jsonl").read_bytes() + b'{"torn')
    faster = ("-o", "distill.learning_rate=0.002")
    code, shown = here("distill", recipe, "--out", run, *SLOWLY, *faster)
    assert code == 2 and "the stage 'distill' was begun with other settings" in shown
    assert "distill.phases.0.learning_rate: 0.001 → 0.002" in shown
    assert list((run / "checkpoints" / "distill").rglob("step-*"))
    code, shown = here("distill", recipe, "--out", run, *SLOWLY, *faster, "--redo")
    assert code == 0 and "resumed" not in shown
    # How often a checkpoint is written changes no result.
    code, shown = here("distill", recipe, "--out", run, *SLOWLY, *faster, "-o", "distill.checkpoint_minutes=9")
    assert code == 0 and "Distilling: already there" in shown
    assert all(json.loads(line) for line in (run / "events.jsonl").read_text().splitlines())


@ONE_TASK
def test_going_on_with_other_versions_is_said(straight):
    recipe, run = straight
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["versions"]["torch"] = "1.0"
    (run / "manifest.json").write_text(json.dumps(manifest))
    code, shown = here("distill", recipe, "--out", run, *SLOWLY)
    assert code == 0 and "the last bits may differ (torch: 1.0 → " in shown


@ONE_TASK
def test_complete_stages_are_skipped_changed_ones_refused_and_redone(straight):
    recipe, run = straight
    changed = run / "model" / "model.safetensors"
    before = changed.stat().st_mtime_ns
    code, shown = here("distill", recipe, "--out", run, *SLOWLY)
    assert code == 0 and "Distilling: already there" in shown
    assert changed.stat().st_mtime_ns == before
    faster = ("-o", "distill.learning_rate=0.002")
    code, shown = here("distill", recipe, "--out", run, *SLOWLY, *faster)
    assert code == 2 and "distill.phases.0.learning_rate: 0.001 → 0.002" in shown
    assert changed.stat().st_mtime_ns == before
    old = weights(run)
    code, shown = here("distill", recipe, "--out", run, *SLOWLY, *faster, "--redo")
    assert code == 0 and "Teacher: already there" in shown
    assert not equal(weights(run), old)
    # The run's own recipe is now the new one: it needs no override any more.
    code, shown = here("distill", run)
    assert code == 0 and "Distilling: already there" in shown


@ONE_TASK
def test_a_damaged_output_is_made_again(straight):
    recipe, run = straight
    expected = weights(run)
    (run / "model" / "model.safetensors").write_bytes(b"torn")
    code, shown = here("distill", recipe, "--out", run, *SLOWLY)
    assert code == 0 and "Distilling …" in shown
    assert equal(weights(run), expected)
