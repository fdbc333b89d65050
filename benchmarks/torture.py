"""Kill runs with SIGKILL, whole process groups at once, at random moments; every one must end with the same bits.

    python benchmarks/torture.py [KILLS] [--seed 0] [--keep torture.result.json]

Three tasks, one process and two (torchrun, gloo). A third of the kills fall inside the writing of a checkpoint,
which is slowed down for that and proven by the half-written folder that is left behind; the others fall anywhere
between the first stage and the last. Then the same command is given again, until it ends well, and the result is
compared with that of a run that nobody disturbed: sha256 of each file of weights and exports, of the history of
each training, and of the predictions and scores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from nlp_distill.testing import save_tiny, tiny_questions, tiny_reversals, tiny_rows, write_split

TASKS: dict[str, tuple[str, str, Any]] = {
    "classification": ("bert", "AutoModel", tiny_rows),
    "question_answering": ("bert", "AutoModel", tiny_questions),
    "seq2seq": ("t5", "AutoModelForSeq2SeqLM", tiny_reversals),
}
SLOW_WRITES = """
import time
from nlp_distill import checkpoint
save = checkpoint.save_file
def slowly(tensors, path):
    save(tensors, path)
    time.sleep(0.15)
checkpoint.save_file = slowly
"""
"""Makes the window in which a checkpoint is half-written wide enough to hit."""
ENTRY = "from nlp_distill.cli import main; main()"
LIMIT_S = 900.0


def world(folder: Path, task: str) -> Path:
    """Teacher, data and recipe of a task; dropout is on, steps accumulate, a checkpoint follows each step."""
    model_type, auto_class, rows = TASKS[task]
    dropout = {"dropout_rate": 0.1} if model_type == "t5" else {"hidden_dropout_prob": 0.1}
    save_tiny(folder / "teacher", model_type, auto_class, **dropout)
    write_split(folder / "data", rows(120), validation=0.2)
    training = {"epochs": 2, "learning_rate": 1e-3, "batch_size": 16, "micro_batch_tokens": 120}
    recipe = {
        "task": task,
        "data": {"dataset": "data", "selection": 16},
        "teacher": {"model": "teacher", "finetune": {**training, "checkpoint_minutes": 0}},
        "student": {"layers": 2},
        "distill": {
            **training,
            "checkpoint_minutes": 0,
            "losses": [{"kind": "logits"}, {"kind": "labels"}, {"kind": "hidden"}],
        },
        "precision": "fp32",
        "export": [{"format": "onnx", "profile": "fast", "score_drop": 100}],
    }
    path = folder / f"{task}.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def start(recipe: Path, out: Path, processes: int, slow: bool = False) -> subprocess.Popen[bytes]:
    """The real command line, in a session of its own."""
    script = recipe.parent / ("slow.py" if slow else "fast.py")
    script.write_text((SLOW_WRITES if slow else "") + ENTRY, encoding="utf-8")
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return subprocess.Popen(
        [sys.executable, *(several if processes > 1 else []), script, "evaluate", recipe.name, "--out", out],
        cwd=recipe.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"},
        stdout=(out.parent / f"{out.name}.log").open("ab"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finish(recipe: Path, out: Path, processes: int) -> int:
    """The same command, undisturbed; its exit code."""
    return start(recipe, out, processes).wait(LIMIT_S)


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for the process and everything that it started, in whatever session."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.send_signal(signal.SIGSTOP)
    for member in family:
        member.kill()
    psutil.wait_procs(family[1:], timeout=30)
    process.wait()


def half_written(out: Path) -> list[Path]:
    """Checkpoints that a process is writing, or was when it died."""
    found = [Path(where) for where, _, _ in os.walk(out / "checkpoints")]
    return [folder for folder in found if folder.name.startswith(".step-") and folder.suffix == ".tmp"]


def killed_inside_a_write(recipe: Path, out: Path, processes: int, generator: random.Random) -> bool:
    """Kill at a random one of the checkpoints; whether a half-written one is left."""
    process, wanted = start(recipe, out, processes, slow=True), generator.randint(1, 16)
    seen: set[Path] = set()
    deadline = time.monotonic() + LIMIT_S
    while process.poll() is None and time.monotonic() < deadline:
        seen |= {*half_written(out)}
        if len(seen) >= wanted:
            time.sleep(generator.uniform(0, 0.25))
            break
        time.sleep(0.002)
    if process.poll() is None:
        kill(process)
    return bool(half_written(out))


def killed_somewhere(recipe: Path, out: Path, processes: int, generator: random.Random) -> str | None:
    """Kill at a random moment between the first event and the last; the stage that it hit, None if it had ended."""
    process, share = start(recipe, out, processes), generator.random()
    reference = reading(out.parent / f"reference-{processes}")
    begun, target, killed = None, share * (reference[-1]["time"] - reference[0]["time"]), False
    while process.poll() is None:
        events = reading(out)
        begun = begun or (time.monotonic() if events else None)
        if begun and time.monotonic() - begun >= target:
            kill(process)
            killed = True
        time.sleep(0.005)
    if not killed:
        return None
    stages = [event["stage"] for event in reading(out) if event["event"] == "stage"]
    return stages[-1] if stages else "start"


def reading(out: Path) -> list[dict[str, Any]]:
    """Whole lines of a run's events."""
    file = out / "events.jsonl"
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.is_file() else []


def outcome(out: Path) -> dict[str, str]:
    """sha256 of all that a run is about; measured times left out."""
    files = [*out.rglob("*.safetensors"), *out.rglob("*.onnx"), *(out / "predictions").rglob("*")]
    sums = {str(f.relative_to(out)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()}
    stages = json.loads((out / "manifest.json").read_text())["stages"]
    for record in stages.values():
        record.pop("seconds")
    sums["stages"] = hashlib.sha256(json.dumps(stages, sort_keys=True).encode()).hexdigest()
    return dict(sorted(sums.items()))


def main() -> None:
    """Run the kills, a task and a number of processes after the other."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kills", nargs="?", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    asked = parser.parse_args()
    generator = random.Random(asked.seed)
    cells = [(task, processes) for task in TASKS for processes in (1, 2)]
    rows: list[dict[str, Any]] = []
    expected: dict[tuple[str, int], dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["NLP_DISTILL_CACHE"] = str(Path(scratch) / "cache")
        for number in range(asked.kills):
            task, processes = cells[number % len(cells)]
            folder = Path(scratch) / task
            recipe = folder / f"{task}.yaml" if folder.is_dir() else world(folder, task)
            reference = folder / f"reference-{processes}"
            if (task, processes) not in expected:
                assert finish(recipe, reference, processes) == 0, (folder / f"{reference.name}.log").read_text()
                expected[task, processes] = outcome(reference)
            out = folder / f"killed-{number}"
            row: dict[str, Any] = {"task": task, "processes": processes}
            if number // len(cells) % 2 == 0:
                row |= {
                    "where": "checkpoint write",
                    "half_written": killed_inside_a_write(recipe, out, processes, generator),
                }
            else:
                while (where := killed_somewhere(recipe, out, processes, generator)) is None:
                    shutil.rmtree(out)
                row |= {"where": where}
            row["exit"] = finish(recipe, out, processes)
            row["same"] = row["exit"] == 0 and outcome(out) == expected[task, processes]
            rows.append(row)
            sys.stdout.write(f"{number + 1}/{asked.kills} {json.dumps(row)}\n")
            sys.stdout.flush()
            if row["same"]:
                shutil.rmtree(out)
            else:
                sys.stdout.write((folder / f"{out.name}.log").read_text()[-2000:])
                shutil.copytree(out, Path(tempfile.gettempdir()) / f"torture-{number}", dirs_exist_ok=True)
    summary = {
        "kills": len(rows),
        "finished": sum(row["exit"] == 0 for row in rows),
        "same_bits": sum(row["same"] for row in rows),
        "inside_a_checkpoint_write": sum(row.get("half_written", False) for row in rows),
        "two_processes": sum(row["processes"] == 2 for row in rows),
        "seed": asked.seed,
        "stages_hit": {where: sum(r["where"] == where for r in rows) for where in sorted({r["where"] for r in rows})},
    }
    sys.stdout.write(json.dumps(summary, indent=2) + "\n")
    if asked.keep:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        asked.keep.write_text(
            json.dumps({"commit": commit, **summary, "rows": rows}, indent=2) + "\n", encoding="utf-8"
        )
    sys.exit(0 if summary["same_bits"] == len(rows) else 1)


if __name__ == "__main__":
    main()
